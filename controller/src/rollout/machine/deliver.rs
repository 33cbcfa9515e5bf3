//! Turns and sweeps: how many devices the driver may touch next.

use super::super::{
    effect::{Effect, Note},
    handout::CHUNK,
    plan::Mode,
    rollout::{Rollout, State, SweepKind},
    stage::{Bucket, StageProgress},
    verdict::{Decision, Rule},
};
use edgefleet_shared::time::Timestamp;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
/// A revert is faster than the rollout by this (fleet-control 6.3).
const REVERT_SPEED: f64 = 4.0;

/// Why nobody has a turn now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in super::super) enum HeldBack {
    /// Nobody is left.
    Nobody,
    /// The driver is busy with the last piece.
    Driver,
    Rate,
    Concurrency,
    Bytes,
    Groups,
}

/// The next piece of a hand-out.
pub(in super::super) struct Piece {
    pub(in super::super) stage: u16,
    pub(in super::super) mode: Mode,
    pub(in super::super) again: bool,
    pub(in super::super) left: u64,
}

impl Rollout {
    /// Gives turns to as many devices as rate, cap and budget allow.
    pub(super) fn deliver(&mut self, now: Timestamp) {
        self.earn(1.0, now);
        let Ok((piece, at_most)) = self.next_turns(now) else { return };
        self.tokens.credit -= at_most as f64;
        let after = self.stages.get(usize::from(piece.stage)).and_then(|stage| stage.cursor);
        self.emit(Effect::HandOut {
            stage: piece.stage,
            mode: piece.mode,
            at_most,
            after: after.filter(|_| !piece.again),
            again: piece.again,
        });
    }

    fn earn(&mut self, speed: f64, now: Timestamp) {
        let per_min = self.tokens.per_min(&self.plan) * self.plan.time_scale * speed;
        self.tokens.earn(per_min, now);
        if now >= self.tokens.day + DAY {
            self.tokens.day = now;
            self.tokens.bytes = 0;
        }
    }

    /// Whose turn is next: those who wait for another try, then earlier stages, then the open one.
    pub(in super::super) fn next_piece(&self) -> Option<Piece> {
        let at = usize::from(self.stage);
        let last = self.plan.last_stage();
        let piece = |n: usize, again: bool, left: u64| Piece {
            stage: n as u16,
            mode: self.plan.stages[n].mode,
            again,
            left,
        };
        let served = |n: &usize| *n == at || self.plan.stages[*n].mode == Mode::Active;
        let stages =
            (0..=at.min(last)).filter(served).filter(|n| self.stages[*n].opened.is_some() || *n < at);
        let again = stages.clone().map(|n| (n, self.stages[n].counts.get(Bucket::Again)));
        if let Some((n, left)) = again.into_iter().find(|(_, left)| *left > 0) {
            return Some(piece(n, true, left));
        }
        stages
            .filter(|n| !self.stages[*n].exhausted)
            .map(|n| {
                let held = if n == last { self.stages[n].counts.get(Bucket::Held) } else { 0 };
                (n, self.stages[n].counts.get(Bucket::Planned) + held)
            })
            .find(|(_, left)| *left > 0)
            .map(|(n, left)| piece(n, false, left))
    }

    /// The next piece and how large it may be.
    pub(in super::super) fn next_turns(&self, now: Timestamp) -> Result<(Piece, u64), HeldBack> {
        let Some(piece) = self.next_piece() else { return Err(HeldBack::Nobody) };
        if self.pending.iter().any(|pending| matches!(pending.effect, Effect::HandOut { .. })) {
            return Err(HeldBack::Driver);
        }
        if self.tokens.blocked_until.is_some_and(|until| now < until) {
            return Err(HeldBack::Groups);
        }
        let room = self.concurrency_cap().saturating_sub(self.in_flight());
        if room == 0 {
            return Err(HeldBack::Concurrency);
        }
        let mut most = piece.left.min(CHUNK).min(room);
        if let Some(budget) = self.plan.limits.bytes_per_day {
            let affordable = budget.saturating_sub(self.tokens.bytes) / self.release.download.max(1);
            if affordable == 0 {
                return Err(HeldBack::Bytes);
            }
            most = most.min(affordable);
        }
        if !piece.again
            && let Some(due) = self.due_by_spread(usize::from(piece.stage), now)
        {
            most = most.min(due);
        }
        most = most.min(self.tokens.credit.floor().max(0.0) as u64);
        if most == 0 { Err(HeldBack::Rate) } else { Ok((piece, most)) }
    }

    /// With `spread`: how many turns are due by now beyond those given, so that the k-th of n falls to
    /// k/n of the time. Never before its time, whatever the rate.
    fn due_by_spread(&self, at: usize, now: Timestamp) -> Option<u64> {
        let (stage, spread, all) = self.spread_of(at)?;
        let passed = now.since(stage.opened.unwrap_or(now)).as_millis().min(spread);
        let due = (all * passed / spread + 1).min(all);
        Some(u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(stage.handed_out))
    }

    /// A stage, milliseconds its turns are spread over, and how many there are. `None` without `spread`.
    fn spread_of(&self, at: usize) -> Option<(&StageProgress, u128, u128)> {
        let (plan, stage) = self.plan.stages.get(at).zip(self.stages.get(at))?;
        let spread = self.plan.wait(plan.spread?).as_millis().max(1);
        let waiting = stage.counts.get(Bucket::Planned) + stage.counts.get(Bucket::Held);
        Some((stage, spread, u128::from(stage.handed_out + waiting)))
    }

    /// When the next turn of the open stage is due by its `spread`; long ago without one.
    pub(super) fn next_by_spread(&self, now: Timestamp) -> Timestamp {
        let spread = |piece: Piece| {
            let (stage, spread, all) = self.spread_of(usize::from(piece.stage)).filter(|_| !piece.again)?;
            let passed = (u128::from(stage.handed_out) * spread).div_ceil(all.max(1));
            let passed = Duration::from_millis(u64::try_from(passed).unwrap_or(u64::MAX));
            Some(stage.opened.unwrap_or(now) + passed)
        };
        self.next_piece().and_then(spread).unwrap_or(Timestamp::EPOCH)
    }

    pub(super) fn reverting(&mut self, now: Timestamp) {
        let left: u64 = self.stages.iter().map(|stage| stage.counts.get(Bucket::Reverting)).sum();
        let swept = self.sweep.as_ref().is_none_or(|sweep| sweep.exhausted) && !self.is_sweeping();
        if swept && left == 0 {
            let because = self.rule(Rule::AllReverted, "every device that had it went back");
            return self.end(State::Reverted { unreachable: 0 }, Decision::Reverted, because, now);
        }
        if now >= self.since + self.plan.wait(self.plan.timeouts.rest) && swept {
            self.note(Note::Unreachable { devices: left });
            let because = self
                .rule(Rule::Deadline, format!("{left} devices were not reached; they still have the order"));
            return self.end(State::Reverted { unreachable: left }, Decision::Reverted, because, now);
        }
        self.sweep_on(now);
    }

    pub(super) fn is_sweeping(&self) -> bool {
        let sweeps = |effect: &Effect| {
            matches!(effect, Effect::Revert { .. } | Effect::Cancel { .. } | Effect::HandOut { .. })
        };
        self.pending.iter().any(|pending| sweeps(&pending.effect))
    }

    /// The next piece of a sweep; not before the last hand-out has been reported.
    pub(super) fn sweep_on(&mut self, now: Timestamp) {
        let Some(sweep) = self.sweep.clone().filter(|sweep| !sweep.exhausted) else { return };
        if self.is_sweeping() {
            return;
        }
        match sweep.kind {
            SweepKind::Cancel => self.emit(Effect::Cancel { before: sweep.cursor, at_most: CHUNK }),
            SweepKind::Revert => {
                self.earn(REVERT_SPEED, now);
                let at_most = (self.tokens.credit.floor().max(0.0) as u64).min(CHUNK);
                if at_most > 0 {
                    self.tokens.credit -= at_most as f64;
                    self.emit(Effect::Revert { before: sweep.cursor, at_most });
                }
            }
        }
    }
}
