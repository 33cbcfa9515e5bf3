//! When the next tick is wanted.

use super::super::{
    plan::OnFail,
    rollout::{PauseWhy, Rollout, State},
    span::Span,
    stage::StageState,
};
use super::deliver::HeldBack;
use edgefleet_shared::time::Timestamp;
use std::time::Duration;

/// While evidence gathers, it is looked at this often; looking costs nothing.
const LOOK: Span = Span::secs(60);
/// Ticks closer together than this do nothing that the next would not do.
const CLOSEST: Duration = Duration::from_millis(200);

impl Rollout {
    pub(super) fn next_wake(&self, now: Timestamp) -> Option<Timestamp> {
        let rest = self.plan.wait(self.plan.timeouts.rest);
        let look = now + self.plan.wait(LOOK).max(CLOSEST);
        match &self.state {
            State::Draft | State::Ready => Some(self.since + rest),
            State::PendingApproval => self.approvals.open.as_ref().map(|open| open.until),
            State::Scheduled { at } => Some(if *at > now { *at } else { look }),
            State::Assigning { .. } => Some(look),
            State::Running => {
                let mut wakes = vec![look];
                wakes.extend(self.next_turn(now, 1.0));
                wakes.extend(self.stage_ends(now));
                wakes.into_iter().min()
            }
            State::Paused { why } => {
                let deadline = match why {
                    PauseWhy::Operator { .. } => self.since + rest,
                    PauseWhy::FreezeCalendar { .. } => {
                        self.freeze.as_ref().map_or(look, |freeze| freeze.until)
                    }
                    PauseWhy::LineStopped => look,
                    PauseWhy::Gate { .. } | PauseWhy::Inconclusive | PauseWhy::ApprovalExpired => {
                        let patience = self.plan.wait(self.plan.on_inconclusive.unattended);
                        let froze = self.plan.on_inconclusive.then == OnFail::Freeze;
                        self.since + if froze { patience.max(rest) } else { patience }
                    }
                };
                Some(look.min(deadline.max(now + CLOSEST)))
            }
            State::Reverting => {
                let credit =
                    self.next_turn(now, 4.0).filter(|_| self.sweep.as_ref().is_some_and(|s| !s.exhausted));
                Some(credit.map_or(look, |credit| credit.min(look)))
            }
            State::Completed { tail_until } => {
                (now < *tail_until).then(|| self.next_turn(now, 1.0).unwrap_or(*tail_until).min(*tail_until))
            }
            State::Aborted | State::Superseded { .. } => {
                self.sweep.as_ref().is_some_and(|sweep| !sweep.exhausted).then_some(look)
            }
            State::Reverted { .. } | State::Expired => None,
        }
    }

    /// When the next turn may be given, if only time is missing.
    fn next_turn(&self, now: Timestamp, speed: f64) -> Option<Timestamp> {
        if self.state != State::Reverting {
            match self.next_turns(now) {
                Err(HeldBack::Rate) => {
                    return Some(self.next_by_rate(now, speed).max(self.next_by_spread(now)));
                }
                Err(HeldBack::Groups) => return self.tokens.blocked_until,
                Err(HeldBack::Bytes | HeldBack::Nobody | HeldBack::Driver | HeldBack::Concurrency) => {
                    return None;
                }
                Ok(_) => return Some(now + CLOSEST),
            }
        }
        Some(self.next_by_rate(now, speed))
    }

    fn next_by_rate(&self, now: Timestamp, speed: f64) -> Timestamp {
        let per_sec = self.tokens.per_min(&self.plan) * self.plan.time_scale * speed / 60.0;
        // About a second's worth at a time: fewer, larger writes, and still an even stream.
        let missing = (per_sec.max(1.0) - self.tokens.credit).max(0.0);
        let wait = Duration::from_secs_f64((missing / per_sec.max(1e-9)).clamp(0.0, 3_600.0));
        now + wait.max(CLOSEST)
    }

    /// When time alone can end or fail the open stage.
    fn stage_ends(&self, now: Timestamp) -> Vec<Timestamp> {
        let Some((plan, stage)) = self.plan.stages.get(self.at()).zip(self.stages.get(self.at())) else {
            return Vec::new();
        };
        let mut ends = Vec::new();
        if let (StageState::Soaking, Some(from)) = (stage.state, stage.soak_from) {
            let most = Span::secs(plan.max_soak().as_secs().saturating_add(stage.extended.as_secs()));
            ends.extend([plan.soak, most].map(|span| from + self.plan.wait(span)));
        }
        ends.extend(self.approvals.open.as_ref().map(|open| open.until));
        ends.retain(|end| *end > now);
        ends
    }
}
