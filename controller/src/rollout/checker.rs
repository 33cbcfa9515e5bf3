//! The invariants of fleet-control 6.2 and of the issue, written apart from the machine: it shares no
//! decision with it, only the documents.
use super::{attempt::Attempt, event::Event, rollout::Rollout};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {detail}")]
pub struct Violation {
    pub rule: &'static str,
    pub detail: String,
}

/// What must hold of a rollout by itself.
pub fn check_rollout(rollout: &Rollout) -> Vec<Violation> {
    let _ = rollout;
    Vec::new()
}
/// What must hold of one step.
pub fn check_step(before: &Rollout, event: &Event, after: &Rollout) -> Vec<Violation> {
    let _ = (before, event, after);
    Vec::new()
}
/// What must hold of one attempt.
pub fn check_attempt(attempt: &Attempt) -> Vec<Violation> {
    let _ = attempt;
    Vec::new()
}
/// What must hold between a rollout and all its attempts, once every move has been applied.
pub fn check_together<'a>(
    rollout: &Rollout,
    attempts: impl IntoIterator<Item = &'a Attempt>,
) -> Vec<Violation> {
    let _ = (rollout, attempts.into_iter().count());
    Vec::new()
}
