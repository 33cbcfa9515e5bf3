//! A04 and A23: what labels say against what was estimated.

use super::{
    super::{
        action::Action,
        evidence::{Audited, Evidence, Slice},
        finding::{Confidence, Finding, RuleId, Severity, percent},
        rule::{AdviceSettings, Judged},
    },
    inputs::{INPUTS, fallen, scope_of},
};
use crate::estimate::Trust;
use edgefleet_shared::time::Timestamp;

/// Deviations below the estimate at which the lower bound lies: this is asked every hour of overlapping labels, and at
/// 1.96 the replay heard of falls that were none.
const CERTAIN: f64 = 3.0;

/// How much accuracy fell by audits, and a lower bound.
pub(super) fn lost(
    slice: &Slice,
    evidence: &Evidence,
    settings: &AdviceSettings,
) -> Option<(Audited, f64, f64)> {
    let now = slice.audited.filter(|audited| audited.labels >= settings.min_labels)?;
    let before = match slice.audited_before.filter(|audited| audited.labels >= settings.min_labels) {
        Some(before) => (before.accuracy, before.deviation()),
        None => {
            let held = evidence.baseline.as_ref()?.quality.as_ref()?;
            (held.accuracy, (held.accuracy * (1.0 - held.accuracy) / held.n.max(1) as f64).sqrt())
        }
    };
    let fallen = before.0 - now.accuracy;
    Some((now, fallen, fallen - CERTAIN * before.1.hypot(now.deviation())))
}

pub(in super::super) fn concept_drift(
    evidence: &Evidence,
    settings: &AdviceSettings,
    now: Timestamp,
) -> Judged {
    let mut judged = Judged::default();
    let Some(incidents) = &evidence.incidents else { return judged };
    for slice in &evidence.slices {
        let Some((audited, value, low)) = lost(slice, evidence, settings) else { continue };
        let has_moved =
            incidents.iter().any(|one| scope_of(one).covers(&slice.scope) && one.touches(&INPUTS));
        let estimate = fallen(evidence, slice);
        let flat = estimate.as_ref().is_some_and(|(_, _, fallen)| fallen.value < settings.drop);
        let found = (low > 0.0 && value >= settings.drop && !has_moved && flat).then(|| {
            let rate = evidence.audit_rate.unwrap_or(0.01);
            let confidence = if low >= settings.drop { Confidence::High } else { Confidence::Medium };
            let estimated = estimate.map_or(f64::NAN, |(_, now, _)| now.value);
            Finding::new(
                RuleId::A04,
                slice.scope.clone(),
                now,
                Action::RaiseAuditRate { from: rate, to: (4.0 * rate).min(1.0) },
            )
            .rated(Severity::Error, confidence)
            .number("audited", audited.accuracy)
            .number("low", audited.low)
            .number("high", audited.high)
            .number("labels", audited.labels as f64)
            .number("fallen", value)
            .number("estimate", estimated)
            .says(
                format!(
                    "{} labels find {} of answers right ({} to {}), {} less than before; the estimate without labels still says {}.",
                    audited.labels,
                    percent(audited.accuracy),
                    percent(audited.low),
                    percent(audited.high),
                    percent(value),
                    percent(estimated)
                ),
                "Inputs look as they did and the model is as sure as it was: either the truth behind the same inputs changed (concept drift), which no estimate without labels can see, or the labels are wrong.",
                "Have 50 of these labels checked by a second person. If they hold, audit more and train with new labels.".into(),
            )
        });
        judged.look(&slice.scope, found);
    }
    judged
}

pub(in super::super) fn untrusted(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let Some(scope) = evidence.bundle_scope().filter(|_| !evidence.estimators.is_empty()) else {
        return Judged::default();
    };
    if evidence.estimators.values().all(|score| score.trust == Trust::Unknown) {
        return Judged::default();
    }
    let wrong = evidence.estimators.iter().filter(|(_, score)| score.trust == Trust::Untrusted);
    let found = wrong.map(|(which, score)| {
        let flatters = if score.bias > 0.0 { "more" } else { "fewer" };
        Finding::new(
            RuleId::A23,
            scope.clone(),
            now,
            Action::DistrustEstimator { estimator: which.name().to_lowercase() },
        )
        .detail(which.name().to_lowercase())
        .rated(Severity::Warning, Confidence::High)
        .number("mean_gap", score.mean_gap)
        .number("bias", score.bias)
        .number("by_chance", score.by_chance)
        .number("labels", score.labels as f64)
        .number("hours", score.hours as f64)
        .says(
            format!(
                "Over {} hours with {} labels, {} was {} off in the mean (chance alone: {}), and named {} right answers than there were, by {}.",
                score.hours,
                score.labels,
                which.name(),
                percent(score.mean_gap),
                percent(score.by_chance),
                flatters,
                percent(score.bias.abs())
            ),
            "What it assumes does not hold for this model in the field: a confidence no longer means what it meant on held-out data.",
            "Do not use this estimate for decisions; rely on audits until it was right again, or push a new calibration.".into(),
        )
    });
    let found = found.collect();
    Judged { found, looked_at: [scope.clone()].into(), all: false }
}
