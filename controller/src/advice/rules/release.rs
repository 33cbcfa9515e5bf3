//! A08 and A24: what a release brought, and who has not got it.

use super::{
    super::{
        action::Action,
        evidence::Evidence,
        finding::{Confidence, Finding, RuleId, Severity, percent},
        rule::{AdviceSettings, Judged},
    },
    inputs::{INPUTS, channels, histogram, scope_of},
};
use crate::drift::Cause;
use edgefleet_shared::time::Timestamp;
use std::time::Duration;

/// Looks are hourly, and it takes two of three: a drift that came with the bundle has begun by then.
const AFTER: Duration = Duration::from_secs(3 * 3_600);
/// Before a rollout has had this time, devices are not late.
pub const PATIENCE: Duration = Duration::from_secs(3 * 24 * 3_600);
const BEHIND: f64 = 0.05;

pub(in super::super) fn regression(evidence: &Evidence, _: &AdviceSettings, _: Timestamp) -> Judged {
    let (Some(incidents), Some(release)) = (&evidence.incidents, &evidence.release) else {
        return Judged::default();
    };
    let mut found = Vec::new();
    for incident in incidents.iter().filter(|one| one.key.cause != Cause::Local) {
        let Some(activated) = release.activated.get(&incident.key.cohort) else { continue };
        let after = incident.since.since(*activated);
        if incident.since < *activated || after > AFTER {
            continue;
        }
        let inputs_hold = !incident.touches(&INPUTS);
        let confidence = match (inputs_hold, release.steps_changed) {
            (true, _) | (_, true) => Confidence::High,
            (false, false) => Confidence::Medium,
        };
        let scope = scope_of(incident);
        let changed = match release.changed.is_empty() {
            true => "nothing but the model".to_owned(),
            false => release.changed.iter().take(8).cloned().collect::<Vec<_>>().join(", "),
        };
        let back = release.previous.as_ref().map_or("the bundle before".into(), ToString::to_string);
        let action = Action::RollBack {
            from: incident.key.bundle.clone(),
            to: release.previous.clone(),
            changed: release.changed.clone(),
        };
        let mut finding = Finding::new(RuleId::A08, scope.clone(), incident.since, action)
            .rated(Severity::Error, confidence)
            .number("minutes_after_activation", after.as_secs() as f64 / 60.0)
            .number("devices", incident.devices as f64)
            .number("size", incident.size())
            .says(
                format!(
                    "Drift began {} min after the bundle became active in `{}`: {}.",
                    after.as_secs() / 60,
                    incident.key.cohort,
                    channels(incident)
                ),
                if inputs_hold {
                    "Inputs did not move, answers did: the bundle changed, not the world."
                } else {
                    "What the model is given changed with the bundle, so its steps or its baseline are the first suspects."
                },
                format!("Go back to {back}; then compare what changed: {changed}."),
            );
        finding.plots.extend(histogram(evidence, evidence.slice(&scope), incident));
        found.push(finding);
    }
    Judged::all(found)
}

pub(in super::super) fn stragglers(evidence: &Evidence, _: &AdviceSettings, now: Timestamp) -> Judged {
    let (Some(scope), Some(versions)) = (evidence.bundle_scope(), &evidence.versions) else {
        return Judged::default();
    };
    let behind = versions.behind.values().fold(0_u64, |sum, n| sum.saturating_add(*n));
    let share = behind as f64 / versions.wanted.max(1) as f64;
    let mut judged = Judged::default();
    let late = now.since(versions.assigned) >= PATIENCE && now >= versions.assigned;
    let found = (late && behind > 0 && share >= BEHIND).then(|| {
        let mut reasons: Vec<_> = versions.behind.iter().collect();
        reasons.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
        let told: Vec<_> = reasons.iter().take(4).map(|(reason, n)| format!("{n} {reason}")).collect();
        let action = Action::ListStragglers {
            by_reason: versions.behind.clone(),
            examples: versions.examples.iter().take(16).cloned().collect(),
        };
        Finding::new(RuleId::A24, scope.clone(), versions.assigned, action)
            .rated(Severity::Warning, Confidence::High)
            .number("behind", behind as f64)
            .number("share", share)
            .says(
                format!(
                    "{behind} of {} devices ({}) still run an older bundle {} days after this one was assigned: {}.",
                    versions.wanted,
                    percent(share),
                    now.since(versions.assigned).as_secs() / 86_400,
                    told.join(", ")
                ),
                "Each reason asks for something else: offline ones will follow by themselves, full disks and refusals will not.",
                "Go through the list by reason, the largest first.".into(),
            )
    });
    judged.look(&scope, found);
    judged
}
