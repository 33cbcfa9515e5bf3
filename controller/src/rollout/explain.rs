//! Why a rollout waits.
use super::{rollout::Rollout, waiting::WaitingOn};
use edgefleet_shared::time::Timestamp;

/// Everything the rollout waits for now, the most important first; empty only when it is over.
pub fn explain(rollout: &Rollout, now: Timestamp) -> Vec<WaitingOn> {
    let _ = now;
    rollout.waiting.clone()
}
