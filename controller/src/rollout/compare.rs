//! A canary against its controls, once.
use super::{attempt::Attempt, event::Move, plan::Plan};

/// When [`Move::CompareDue`] asks for it: the canary's latency vote and who has reported, as observations.
/// The canary remembers that it was done; the second call gives nothing.
pub fn compare(canary: &mut Attempt, controls: &[&Attempt], plan: &Plan) -> Vec<Move> {
    let _ = (canary, controls, plan);
    Vec::new()
}
