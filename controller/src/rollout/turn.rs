//! What the driver does to an attempt: its turn, and taking it back.

use super::{
    assignment::Arm,
    attempt::{Attempt, AttemptState, Presence},
    event::{EffectId, Move},
    plan::{Mode, Plan},
    stage::Bucket,
};
use edgefleet_shared::{desired::Assigned, time::Timestamp};

impl Attempt {
    /// Whether an [`Effect::HandOut`](super::Effect) for `stage` may choose it.
    pub fn is_ready(&self, stage: u16, again: bool) -> bool {
        let mine = stage == self.stage;
        if again {
            return self.state == AttemptState::Again && stage == self.turn_stage();
        }
        if mine {
            return matches!(self.bucket, Bucket::Planned | Bucket::Held);
        }
        self.shadow == Some(stage) && self.shadow_bucket == Some(Bucket::Planned) && self.mode == Mode::Shadow
    }

    /// The stage its current turn belongs to.
    pub fn turn_stage(&self) -> u16 {
        match self.mode {
            Mode::Shadow => self.shadow.unwrap_or(self.stage),
            Mode::Active => self.stage,
        }
    }

    /// It may have, or come to have, what the rollout gave it.
    pub fn is_handed_out(&self) -> bool {
        self.handed_at.is_some()
    }

    /// Its turn has come. `before`: what its slot is to have if it goes back (kept from its first turn);
    /// `generation`: of the desired state that says so.
    ///
    /// The rollout counts hand-outs by [`Event::HandedOut`](super::Event), so the moves returned are only what that does
    /// not say. Nothing changes if this very effect handed it out before.
    pub fn hand_out(
        &mut self,
        by: EffectId,
        mode: Mode,
        before: Option<Assigned>,
        generation: u64,
        plan: &Plan,
        now: Timestamp,
    ) -> Vec<Move> {
        let mut moves = Vec::new();
        if self.handed_by == Some(by) {
            return moves;
        }
        if self.handed_at.is_some() {
            self.number = self.number.saturating_add(1);
        } else {
            self.before = before;
        }
        if mode == Mode::Active {
            // Its shadow turn, if any, is over; a control stops being one.
            if self.mode == Mode::Shadow {
                self.failure = None; // counted by the shadow stage, and stays there
            }
            self.cancel_shadow(&mut moves);
            if self.arm == Arm::Control {
                self.leave_risk_set(&mut moves);
            }
            self.bucket = Bucket::InFlight;
        } else {
            self.shadow_bucket = Some(Bucket::InFlight);
        }
        self.mode = mode;
        self.state = AttemptState::Assigned;
        self.since = now;
        self.presence = Presence::Here;
        self.gave_slot_up = false;
        self.generation = self.generation.max(generation);
        self.handed_by = Some(by);
        self.handed_at = Some(now);
        self.heard_at = self.heard_at.max(Some(now));
        self.updated = now;
        self.deadline = self.next_deadline(plan);
        moves
    }

    /// Everybody goes back. `Some`: write what it had before into its desired state, under `generation`, and
    /// apply the moves. `None`: it never had a turn, or is told already.
    pub fn take_back(&mut self, generation: u64, plan: &Plan, now: Timestamp) -> Option<Vec<Move>> {
        let moves = self.withdraw(generation, now, true)?;
        self.deadline = self.next_deadline(plan);
        Some(moves)
    }

    /// Only what has not been activated is taken back. As [`Self::take_back`], and `None` if it runs the bundle.
    pub fn cancel(&mut self, generation: u64, plan: &Plan, now: Timestamp) -> Option<Vec<Move>> {
        let has_it = self.activated_at.is_some() && self.state != AttemptState::Failed
            || matches!(self.state, AttemptState::Activating);
        if has_it {
            return None;
        }
        let moves = self.withdraw(generation, now, false)?;
        self.deadline = self.next_deadline(plan);
        Some(moves)
    }

    fn withdraw(&mut self, generation: u64, now: Timestamp, all: bool) -> Option<Vec<Move>> {
        self.handed_at?;
        let next = match self.state {
            AttemptState::Planned
            | AttemptState::Held
            | AttemptState::Superseded { .. }
            | AttemptState::Removed
            | AttemptState::Cancelled
            | AttemptState::Reverting
            | AttemptState::Reverted => return None,
            AttemptState::Committed { .. } if !all => return None,
            AttemptState::Committed { .. } | AttemptState::Activating | AttemptState::Probation | AttemptState::Lost => {
                AttemptState::Reverting
            }
            // It is back on the old bundle, but its desired state must not name the new one any longer.
            AttemptState::Failed => {
                self.generation = self.generation.max(generation);
                return Some(Vec::new());
            }
            AttemptState::TimedOut { .. } if self.activated_at.is_some() => AttemptState::Reverting,
            _ => AttemptState::Cancelled,
        };
        let mut moves = Vec::new();
        self.leave_risk_set(&mut moves);
        self.generation = self.generation.max(generation);
        self.presence = Presence::Here;
        self.go(next, None, now, &mut moves);
        self.updated = now;
        Some(moves)
    }
}
