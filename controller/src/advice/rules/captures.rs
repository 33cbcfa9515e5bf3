//! A22: capture quotas that are used up at once, or never.

use super::super::{
    action::Action,
    evidence::{CaptureCounts, Evidence},
    finding::{Confidence, Finding, RuleId, Severity, percent},
    rule::{AdviceSettings, Judged},
};
use edgefleet_shared::time::Timestamp;

const DAYS: u32 = 3;
/// Turned away, of what the strategy wanted.
const EXHAUSTED: f64 = 0.5;
/// Taken, of the quota, although much was seen.
const UNUSED: f64 = 0.05;
const SEEN: u64 = 1_000;

pub(in super::super) fn quota(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    for slice in &evidence.slices {
        let long =
            |counts: &&CaptureCounts| counts.days >= DAYS && counts.quota_per_day > 0 && counts.seen >= SEEN;
        for counts in slice.captures.iter().filter(long) {
            judged.looked_at.insert(slice.scope.clone());
            let wanted = counts.taken.saturating_add(counts.dropped);
            let per_day = wanted as f64 / f64::from(counts.days);
            let turned_away = counts.dropped as f64 / (wanted.max(1)) as f64;
            let used = counts.taken as f64 / (counts.quota_per_day as f64 * f64::from(counts.days));
            let (what, why, to) = if wanted > 0 && turned_away >= EXHAUSTED {
                (
                    format!(
                        "`{}` wanted {per_day:.0} captures a day of a device and was turned away {} of the time by its quota of {}.",
                        counts.strategy,
                        percent(turned_away),
                        counts.quota_per_day
                    ),
                    "What comes after the quota is full is never seen: mornings are labelled, evenings are not.",
                    // Twice at most in one step: uploads cost as well.
                    (per_day.ceil() as u64).min(counts.quota_per_day.saturating_mul(2)),
                )
            } else if used < UNUSED {
                (
                    format!(
                        "`{}` took {} captures in {} days of a quota of {} a day, though {} inputs passed by.",
                        counts.strategy, counts.taken, counts.days, counts.quota_per_day, counts.seen
                    ),
                    "Its condition is nearly never met: a threshold that is too strict.",
                    (counts.quota_per_day / 4).max(1),
                )
            } else {
                continue;
            };
            let share =
                if counts.labelled_share.is_finite() { counts.labelled_share.clamp(0.0, 1.0) } else { 0.0 };
            let expected = per_day.min(to as f64) * share * f64::from(counts.devices.max(1));
            let action = Action::ChangeQuota {
                strategy: counts.strategy.clone(),
                from_per_day: counts.quota_per_day,
                to_per_day: to,
                expected_labels_per_day: expected,
            };
            judged.found.push(
                Finding::new(RuleId::A22, slice.scope.clone(), now, action)
                    .detail(counts.strategy.clone())
                    .rated(Severity::Info, Confidence::High)
                    .number("wanted_per_day", per_day)
                    .number("quota_per_day", counts.quota_per_day as f64)
                    .number("turned_away", turned_away)
                    .number("used", used)
                    .says(what, why, format!("Set the quota to {to} a day; at today's pace of labelling that yields {expected:.1} labels a day.")),
            );
        }
    }
    judged
}
