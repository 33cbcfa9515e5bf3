//! Pure: findings and rollouts in the words of alerts.

use super::event::{AlertEvent, AlertKind, Severity};
use crate::{
    findings::{Finding, FindingCode},
    rollout::{PauseWhy, Rollout, State, StateName},
};
use edgefleet_shared::time::Timestamp;
use serde_json::{Map, Value};

fn occurrence_of(finding: &Finding) -> String {
    format!("{}/{}/{}", finding.device, finding.code, finding.since)
}

pub fn finding_opened(finding: &Finding) -> AlertEvent {
    let severity = match finding.code {
        FindingCode::DuplicateIdentity | FindingCode::ImpossibleGeneration => Severity::Critical,
        FindingCode::ControllerStateBehind => Severity::Warning,
    };
    let title = format!("{} on {}", finding.code, finding.device);
    let text = format!("{}\n\nWhat to do: {}.", finding.message, finding.code.advice());
    let numbers = finding.numbers.iter().map(|(name, n)| (name.clone(), Value::from(*n))).collect();
    AlertEvent::new(AlertKind::FindingOpened, severity, finding.since, &occurrence_of(finding), &title, &text)
        .device(&finding.device)
        .numbers(numbers)
}

/// `by`: who resolved it.
pub fn finding_resolved(finding: &Finding, by: &str, now: Timestamp) -> AlertEvent {
    let title = format!("{} on {} is resolved", finding.code, finding.device);
    let text = format!("{by} resolved what was open since {}.", finding.since);
    AlertEvent::new(AlertKind::FindingResolved, Severity::Info, now, &occurrence_of(finding), &title, &text)
        .device(&finding.device)
}

/// What people should hear when a rollout that was in the state `before` is now as it is.
pub fn rollout_changed(before: StateName, rollout: &Rollout) -> Option<AlertEvent> {
    use AlertKind::{RolloutAborted, RolloutFinished, RolloutPaused};
    if before == rollout.state.name() {
        return None;
    }
    let (kind, severity, what, text) = match &rollout.state {
        State::Paused { why } => {
            let (severity, text) = paused(why);
            (RolloutPaused, severity, "is paused", text)
        }
        State::Reverting => {
            let text = "Every device of it goes back to what it had, the newest first.".to_owned();
            (RolloutAborted, Severity::Critical, "goes back", text)
        }
        State::Aborted => {
            let text = "Nothing more is handed out; devices that have it keep it.".to_owned();
            (RolloutAborted, Severity::Warning, "was stopped", text)
        }
        State::Reverted { unreachable: 0 } => {
            (RolloutFinished, Severity::Warning, "went back", "Every device went back.".to_owned())
        }
        State::Reverted { unreachable } => {
            let text = format!("{unreachable} devices were not reached and keep the order to go back.");
            (RolloutFinished, Severity::Warning, "went back", text)
        }
        State::Completed { .. } => {
            (RolloutFinished, Severity::Info, "is complete", "All stages are done.".to_owned())
        }
        State::Superseded { by } => {
            (RolloutFinished, Severity::Info, "was superseded", format!("Rollout {by} took its place."))
        }
        State::Expired => {
            (RolloutFinished, Severity::Warning, "expired", "Nobody started it in time.".to_owned())
        }
        State::Draft
        | State::PendingApproval
        | State::Ready
        | State::Scheduled { .. }
        | State::Assigning { .. }
        | State::Running => return None,
    };
    let state = rollout.state.name();
    let title = format!("Rollout {} of {} {what}", rollout.id, rollout.release.bundle);
    let occurrence = format!("{}/{state}/{}", rollout.id, rollout.since);
    let stages = rollout.plan.stages.len() as u64;
    let numbers: Map<String, Value> = [
        ("stage", u64::from(rollout.stage) + 1),
        ("stages", stages),
        ("members", rollout.members()),
        ("in_flight", rollout.in_flight()),
    ]
    .into_iter()
    .map(|(name, n)| (name.to_owned(), Value::from(n)))
    .collect();
    let event = AlertEvent::new(kind, severity, rollout.since, &occurrence, &title, &text)
        .rollout(&rollout.id)
        .bundle(&rollout.release.bundle)
        .slot(&rollout.plan.rollout.slot)
        .numbers(numbers);
    Some(event)
}

fn paused(why: &PauseWhy) -> (Severity, String) {
    match why {
        PauseWhy::Gate { sentence, .. } => (Severity::Critical, sentence.clone()),
        PauseWhy::Operator { by, reason } => (Severity::Info, format!("{by}: {reason}")),
        PauseWhy::Inconclusive => {
            (Severity::Warning, "The stage ended without a verdict; a person has to decide.".to_owned())
        }
        PauseWhy::ApprovalExpired => (Severity::Warning, "Nobody approved it in time.".to_owned()),
        PauseWhy::FreezeCalendar { name } => (Severity::Info, format!("The freeze `{name}` holds.")),
        PauseWhy::LineStopped => (Severity::Warning, "The line is stopped.".to_owned()),
    }
}
