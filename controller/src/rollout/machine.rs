//! The machine.
use super::{
    effect::Pending,
    event::{Event, Refused},
    rollout::Rollout,
};
use edgefleet_shared::time::Timestamp;

impl Rollout {
    /// Total and deterministic: no clock but `now`, no I/O. Changes the document in place; returns the effects
    /// that are new, which also stand in `pending`.
    ///
    /// # Errors
    /// [`Refused`], for orders of people only; the document is unchanged then.
    pub fn apply(&mut self, event: &Event, now: Timestamp) -> Result<Vec<Pending>, Refused> {
        let _ = event;
        self.clock = self.clock.max(now);
        Ok(Vec::new())
    }
}

/// [`Rollout::apply`] on a copy.
///
/// # Errors
/// As there.
pub fn step(rollout: &Rollout, event: &Event, now: Timestamp) -> Result<(Rollout, Vec<Pending>), Refused> {
    let mut next = rollout.clone();
    let effects = next.apply(event, now)?;
    Ok((next, effects))
}
