//! What a device's words mean for its attempt.
use super::{
    attempt::{Attempt, DeviceSaid},
    event::{EffectId, Move},
    plan::{Mode, Plan},
};
use edgefleet_shared::{desired::Assigned, time::Timestamp};

impl Attempt {
    /// Takes in what a device said. Idempotent; the order of reports does not matter to where it ends.
    pub fn hear(&mut self, said: &DeviceSaid, plan: &Plan, now: Timestamp) -> Vec<Move> {
        let _ = (said, plan, now);
        Vec::new()
    }
    /// Its turn has come. `before`: what its slot is to have if it goes back; `generation`: of the
    /// desired state that says so. The rollout counts hand-outs itself, by [`Event::HandedOut`](super::Event); so the
    /// moves returned are only what that does not say. Nothing changes if this effect did it already.
    pub fn hand_out(
        &mut self,
        by: EffectId,
        mode: Mode,
        before: Option<Assigned>,
        generation: u64,
        plan: &Plan,
        now: Timestamp,
    ) -> Vec<Move> {
        let _ = (by, mode, before, generation, plan, now);
        Vec::new()
    }
    /// Go back to what was before, under `generation`. Empty if there is nothing to take back.
    pub fn take_back(&mut self, generation: u64, plan: &Plan, now: Timestamp) -> Vec<Move> {
        let _ = (generation, plan, now);
        Vec::new()
    }
    /// Do not begin what has not been activated. Empty if it has been, or never was handed out.
    pub fn cancel(&mut self, generation: u64, now: Timestamp) -> Vec<Move> {
        let _ = (generation, now);
        Vec::new()
    }
}
