//! A12: one part of the fleet that is served worse than the rest.

use super::super::{
    action::Action,
    evidence::Evidence,
    finding::{Confidence, Finding, RuleId, Severity, percent},
    rule::{AdviceSettings, Judged},
};
use crate::drift::chance::normal_quantile;
use edgefleet_shared::time::Timestamp;

pub(in super::super) fn worst(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    let audited: Vec<_> = evidence
        .cohorts()
        .filter_map(|(cohort, slice)| {
            let audited = slice.audited.filter(|audited| audited.labels >= settings.min_labels)?;
            Some((cohort, slice, audited))
        })
        .collect();
    if audited.len() < 2 {
        return judged;
    }
    // The worst of several is the worst by chance: 5 % over all of them (Bonferroni).
    let z = normal_quantile(2.0 * 0.05 / audited.len() as f64);
    for (cohort, slice, own) in &audited {
        let others = || audited.iter().filter(|(other, _, _)| other != cohort);
        let labels: f64 = others().map(|(_, _, a)| a.labels as f64).sum();
        let rest = others().map(|(_, _, a)| a.labels as f64 * a.accuracy).sum::<f64>() / labels.max(1.0);
        let deviation = others()
            .map(|(_, _, a)| (a.labels as f64 / labels.max(1.0) * a.deviation()).powi(2))
            .sum::<f64>()
            .sqrt();
        let gap = rest - own.accuracy;
        let low = gap - z * deviation.hypot(own.deviation());
        let is_worst = others().all(|(_, _, a)| a.accuracy >= own.accuracy);
        let found = (is_worst && low > 0.0 && gap >= settings.drop).then(|| {
            // As many labels as halve the interval.
            let count = (own.labels.saturating_mul(3)).clamp(100, 1_000);
            let action = Action::TargetCaptures { cohort: (*cohort).to_owned(), count };
            Finding::new(RuleId::A12, slice.scope.clone(), now, action)
                .rated(Severity::Warning, if low >= settings.drop { Confidence::High } else { Confidence::Medium })
                .number("accuracy", own.accuracy)
                .number("rest", rest)
                .number("gap", gap)
                .number("labels", own.labels as f64)
                .says(
                    format!(
                        "`{cohort}` is served worst: {} of {} labelled answers are right, {} in the other {} cohorts.",
                        percent(own.accuracy),
                        own.labels,
                        percent(rest),
                        audited.len() - 1
                    ),
                    "The training data probably holds too little of what this part of the fleet sees.",
                    format!("Capture {count} inputs there on purpose, label them and train with them."),
                )
        });
        judged.look(&slice.scope, found);
    }
    judged
}
