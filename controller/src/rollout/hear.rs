//! What a device's words mean for its attempt. Idempotent; reports in another order lead to the same end: a
//! success outlasts every failure of the same attempt, what the device says outlasts what the controller
//! guessed (time-out, lost).

use super::{
    assignment::Arm,
    attempt::{Attempt, AttemptState, Deferral, DeviceSaid, Presence},
    event::{Change, Move},
    plan::{Mode, Plan},
    span::Span,
    stage::{Bucket, Failure, FailureKind},
};
use crate::evidence::{HardFailure, Observation};
use edgefleet_shared::{
    ids::AttemptId,
    reported::{Phase, Refusal, RefusalCode, Retry},
    time::Timestamp,
};
use std::time::Duration;

/// A window comes when it is over, and with the next sending: two windows' time for the last one to arrive.
const GRACE: Span = Span::minutes(10);

/// A full report, taken apart.
struct Report<'a> {
    generation: u64,
    phase: Phase,
    target: Option<&'a AttemptId>,
    active: Option<&'a AttemptId>,
    deferral: Option<Deferral>,
    refusal: Option<&'a Refusal>,
}

impl Attempt {
    /// Takes in what a device said and returns what that moves, each move exactly once.
    pub fn hear(&mut self, said: &DeviceSaid, plan: &Plan, now: Timestamp) -> Vec<Move> {
        let mut moves = Vec::new();
        match said {
            DeviceSaid::Report { generation, phase, target, active, deferral, refusal } => {
                let report = Report {
                    generation: *generation,
                    phase: *phase,
                    target: target.as_ref(),
                    active: active.as_ref(),
                    deferral: *deferral,
                    refusal: refusal.as_ref(),
                };
                self.report(&report, plan, now, &mut moves);
            }
            DeviceSaid::Ended { generation, phase, attempt, refusal, took_ms, fetched_bytes } => {
                if !phase.is_terminal() || attempt.rollout != self.rollout {
                    return moves; // not an end, whatever the device calls it
                }
                let committed = *phase == Phase::Committed;
                let report = Report {
                    generation: (*generation).max(if committed { 0 } else { self.generation }),
                    phase: *phase,
                    target: Some(attempt),
                    active: Some(attempt).filter(|_| committed),
                    deferral: None,
                    refusal: refusal.as_ref(),
                };
                if attempt.number == self.number {
                    (self.took_ms, self.fetched_bytes) = (*took_ms, *fetched_bytes);
                }
                // Of an end only what it says of this attempt counts, not what it leaves unsaid.
                if !matches!(self.state, AttemptState::Reverting | AttemptState::Reverted) {
                    self.report(&report, plan, now, &mut moves);
                }
            }
            DeviceSaid::Window(window) => self.window(window, plan, &mut moves),
            DeviceSaid::Shadow { key, attempt, n, disagree, classes } => {
                if attempt.rollout == self.rollout && self.seen.take(*key) {
                    self.shadow_window(*n, *disagree, classes, &mut moves);
                }
            }
            DeviceSaid::Labels { key, attempt, source, both_right, both_wrong, wins, losses } => {
                if attempt.rollout == self.rollout && self.seen.take(*key) {
                    moves.push(observed(Observation::Labels {
                        device: self.device.clone(),
                        stratum: self.stratum.clone(),
                        source: source.clone(),
                        both_right: *both_right,
                        both_wrong: *both_wrong,
                        wins: *wins,
                        losses: *losses,
                    }));
                }
            }
            DeviceSaid::CanaryActivated { last_seen } => {
                self.control_joins(*last_seen, plan, now, &mut moves)
            }
            DeviceSaid::Clock { last_seen } => self.clock(*last_seen, plan, now, &mut moves),
            DeviceSaid::Unselected => {
                if self.activated_at.is_none() && !self.is_over() {
                    self.remove(now, &mut moves);
                }
            }
            DeviceSaid::LeftFleet => {
                if self.state != AttemptState::Removed {
                    self.remove(now, &mut moves);
                }
            }
            DeviceSaid::SupersededBy { rollout } => {
                // One that was cancelled may have activated it nevertheless; what becomes of that is now the
                // other rollout's business.
                let yields = matches!(self.state, AttemptState::Reverting | AttemptState::Cancelled);
                if !self.is_over() || yields {
                    self.leave_risk_set(&mut moves);
                    self.cancel_shadow(&mut moves);
                    self.mode = Mode::Active;
                    self.go(AttemptState::Superseded { by: rollout.clone() }, None, now, &mut moves);
                }
            }
        }
        if !moves.is_empty() {
            self.updated = now;
        }
        self.deadline = self.next_deadline(plan);
        moves
    }

    /// Nothing more happens without somebody's doing.
    pub fn is_over(&self) -> bool {
        matches!(
            self.state,
            AttemptState::Committed { .. }
                | AttemptState::Failed
                | AttemptState::TimedOut { .. }
                | AttemptState::Lost
                | AttemptState::Cancelled
                | AttemptState::Superseded { .. }
                | AttemptState::Removed
                | AttemptState::Reverting
                | AttemptState::Reverted
        )
    }

    fn is_mine(&self, attempt: Option<&AttemptId>) -> bool {
        attempt.is_some_and(|attempt| attempt.rollout == self.rollout)
    }

    fn report(&mut self, report: &Report<'_>, plan: &Plan, now: Timestamp, moves: &mut Vec<Move>) {
        self.heard_at = self.heard_at.max(Some(now));
        match self.state {
            AttemptState::Planned
            | AttemptState::Held
            | AttemptState::Superseded { .. }
            | AttemptState::Removed
            | AttemptState::Reverted => return,
            AttemptState::Cancelled => {
                // It had activated before the word came; what is wanted of it is the old bundle already.
                if self.mode == Mode::Active && self.is_mine(report.active) {
                    self.go(AttemptState::Reverting, None, now, moves);
                }
                return;
            }
            AttemptState::Reverting => {
                let settled = matches!(report.phase, Phase::Idle | Phase::Committed | Phase::Probation)
                    || report.phase.is_failure();
                if report.generation >= self.generation && !self.is_mine(report.active) && settled {
                    self.go(AttemptState::Reverted, None, now, moves);
                }
                return;
            }
            _ => {}
        }
        self.back(now, moves);
        let this = |attempt: Option<&AttemptId>| {
            attempt.is_some_and(|a| a.rollout == self.rollout && a.number == self.number)
        };
        let about_this = this(report.target) || (report.target.is_none() && this(report.active));
        if !about_this || (report.generation < self.generation && report.phase != Phase::Committed) {
            return;
        }
        if report.phase.is_failure() {
            let code = report.refusal.map_or(RefusalCode::Unknown, |refusal| refusal.code);
            let retry = report.refusal.map_or(code.retry(), |refusal| refusal.retry);
            return self.ended_badly(report.phase, code, retry, report.refusal, plan, now, moves);
        }
        // At rest on this very attempt is committed, too.
        let at_rest = report.phase == Phase::Idle && this(report.active);
        if report.phase == Phase::Committed || at_rest {
            // In a shadow turn the incumbent is what is committed.
            if self.mode == Mode::Active {
                self.activated(now, moves);
                self.made_it(now, moves);
            }
            return;
        }
        // Ends stay, but for the one the controller only guessed.
        let over = self.is_over() && self.state != AttemptState::Lost;
        if over || matches!(self.state, AttemptState::RetryWait { .. } | AttemptState::Again) {
            return;
        }
        let state = match report.phase {
            Phase::Idle => AttemptState::Notified,
            Phase::Deferred => AttemptState::Deferred { why: report.deferral.unwrap_or(Deferral::Unknown) },
            Phase::Fetching => AttemptState::Downloading,
            Phase::Verified => AttemptState::Verified,
            Phase::Testing => AttemptState::Preflight,
            Phase::Shadowing => AttemptState::Shadowing,
            Phase::Switching => AttemptState::Activating,
            Phase::Probation => AttemptState::Probation,
            _ => return, // ends: dealt with above
        };
        if state == AttemptState::Probation && self.mode == Mode::Active {
            self.activated(now, moves);
        }
        // A guess is taken back; a failure of an earlier try only by success.
        let failure = self.failure.filter(|failure| failure.kind != FailureKind::Lost);
        self.go(state, failure, now, moves);
    }

    /// It is heard again after a silence.
    fn back(&mut self, now: Timestamp, moves: &mut Vec<Move>) {
        if self.presence == Presence::Here {
            return;
        }
        self.presence = Presence::Here;
        self.settle(now, self.failure, moves);
    }

    fn activated(&mut self, now: Timestamp, moves: &mut Vec<Move>) {
        if self.activated_at.is_some() {
            return;
        }
        self.activated_at = Some(now);
        if self.arm == Arm::Canary {
            self.compared.joined = Some(now);
            // Without controls of its own it is in no risk set: its hours count, its first bad one is no draw.
            self.compared.left = self.match_of.is_none();
            if let Some(match_of) = self.match_of {
                moves.push(observed(Observation::Joined {
                    arm: crate::evidence::Arm::Canary,
                    cohort: self.cohort,
                    stratum: self.stratum.clone(),
                    site: self.site.clone(),
                }));
                moves.push(Move::ControlsJoin { match_of });
            }
        }
    }

    fn made_it(&mut self, now: Timestamp, moves: &mut Vec<Move>) {
        if matches!(self.state, AttemptState::Committed { .. }) {
            return;
        }
        let late =
            matches!(self.state, AttemptState::TimedOut { .. } | AttemptState::Lost | AttemptState::Failed);
        self.refusal = None;
        self.go(AttemptState::Committed { late }, None, now, moves);
    }

    #[allow(clippy::too_many_arguments)] // one failure has that many sides
    fn ended_badly(
        &mut self,
        phase: Phase,
        code: RefusalCode,
        retry: Retry,
        refusal: Option<&Refusal>,
        plan: &Plan,
        now: Timestamp,
        moves: &mut Vec<Move>,
    ) {
        match self.state {
            AttemptState::Committed { .. }
            | AttemptState::Failed
            | AttemptState::RetryWait { .. }
            | AttemptState::Again => return,
            _ => {}
        }
        let kind = match phase {
            Phase::Incompatible => FailureKind::Incompatible,
            Phase::DownloadFailed => FailureKind::Download,
            Phase::VerifyFailed => FailureKind::Verify,
            Phase::RolledBackLocal => FailureKind::RolledBack,
            Phase::TimedOut => FailureKind::TimedOut,
            _ => FailureKind::Preflight,
        };
        self.refusal = refusal.cloned();
        let failure = Failure { kind, code };
        // Whoever is late has no further try.
        let again = retry != Retry::Never
            && !matches!(self.state, AttemptState::TimedOut { .. } | AttemptState::Lost);
        match kind {
            FailureKind::Download if again => {
                self.tries.downloads += 1;
                if self.tries.downloads < plan.retry.download {
                    let until = now + self.backoff(plan, self.tries.downloads);
                    return self.go(
                        AttemptState::RetryWait { until, penalty: false },
                        self.failure,
                        now,
                        moves,
                    );
                }
                if self.tries.penalties < plan.retry.penalties {
                    self.tries.penalties += 1;
                    self.tries.downloads = 0;
                    let until = now + plan.wait(plan.retry.penalty);
                    return self.go(
                        AttemptState::RetryWait { until, penalty: true },
                        Some(failure),
                        now,
                        moves,
                    );
                }
            }
            FailureKind::Preflight | FailureKind::TimedOut
                if again && self.tries.activations < plan.retry.activation =>
            {
                self.tries.activations += 1;
                let until = now + self.backoff(plan, 1);
                return self.go(AttemptState::RetryWait { until, penalty: false }, self.failure, now, moves);
            }
            _ => {}
        }
        let hard = match kind {
            FailureKind::Verify => Some(HardFailure::Refused),
            FailureKind::RolledBack => Some(HardFailure::RolledBack),
            _ => None,
        };
        self.hard(hard, moves);
        self.leave_risk_set(moves);
        self.go(AttemptState::Failed, Some(failure), now, moves);
        // A bundle that fails beside the active one is not tried in its place.
        let hopeless =
            matches!(kind, FailureKind::Incompatible | FailureKind::Verify | FailureKind::Preflight);
        if self.mode == Mode::Shadow && hopeless && self.bucket == Bucket::Planned {
            self.bucket = Bucket::Failed;
            moves.push(Move::Change(Change {
                stage: self.stage,
                from: Bucket::Planned,
                to: Bucket::Failed,
                failed: None,
                unfailed: None,
            }));
        }
    }

    fn hard(&self, failure: Option<HardFailure>, moves: &mut Vec<Move>) {
        if let Some(failure) = failure.filter(|_| self.arm == Arm::Canary) {
            moves.push(observed(Observation::Hard { device: self.device.clone(), failure }));
        }
    }

    /// Doubling from the first wait up to the longest, with up to a quarter more that differs by device.
    fn backoff(&self, plan: &Plan, tries: u32) -> Duration {
        let doubled = plan.retry.first_wait.as_secs().saturating_mul(1 << tries.saturating_sub(1).min(20));
        let wait = Span::secs(doubled.min(plan.retry.longest_wait.as_secs()));
        let wait = plan.wait(wait);
        let spread = self.rank.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(u64::from(tries)) >> 56;
        wait + wait.mul_f64(spread as f64 / 1_024.0)
    }

    fn clock(&mut self, last_seen: Option<Timestamp>, plan: &Plan, now: Timestamp, moves: &mut Vec<Move>) {
        self.heard_at = self.heard_at.max(last_seen.map(|seen| seen.min(now)));
        if let AttemptState::RetryWait { until, .. } = self.state {
            if now >= until {
                self.go(AttemptState::Again, self.failure, now, moves);
            }
            return;
        }
        if self.is_under_way() {
            self.look_at_silence(plan, now, moves);
        }
        if self.is_under_way()
            && let Some(limit) = self.time_out(plan)
            && now >= limit
        {
            let phase = self.phase();
            let failure = Failure { kind: FailureKind::TimedOut, code: RefusalCode::Unknown };
            self.leave_risk_set(moves);
            self.go(AttemptState::TimedOut { phase }, Some(failure), now, moves);
        }
        if let Some(match_of) = self.compare_due(plan, now) {
            moves.push(Move::CompareDue { match_of });
        }
    }

    /// Between its hand-out and its end.
    fn is_under_way(&self) -> bool {
        match self.state {
            AttemptState::Assigned
            | AttemptState::Notified
            | AttemptState::Deferred { .. }
            | AttemptState::Downloading
            | AttemptState::Verified
            | AttemptState::Preflight
            | AttemptState::Activating
            | AttemptState::Probation => true,
            AttemptState::Shadowing => self.mode == Mode::Active,
            _ => false,
        }
    }

    fn look_at_silence(&mut self, plan: &Plan, now: Timestamp, moves: &mut Vec<Move>) {
        let silent = now.since(self.heard_at.or(self.handed_at).unwrap_or(self.since));
        let presence = if silent >= plan.wait(plan.timeouts.seen) {
            Presence::Gone
        } else if silent >= plan.wait(plan.timeouts.silence) {
            Presence::Away
        } else {
            Presence::Here
        };
        if presence != Presence::Here && self.activated_at.is_some() {
            let failure = Failure { kind: FailureKind::Lost, code: RefusalCode::Unknown };
            self.hard(Some(HardFailure::Lost), moves);
            return self.go(AttemptState::Lost, Some(failure), now, moves);
        }
        if presence != self.presence {
            self.presence = presence;
            self.settle(now, self.failure, moves);
        }
    }

    fn time_out(&self, plan: &Plan) -> Option<Timestamp> {
        let limits = &plan.timeouts;
        let queued = self.handed_at.unwrap_or(self.since) + plan.wait(limits.queued);
        if self.presence != Presence::Here {
            return Some(queued);
        }
        let span = match self.state {
            AttemptState::Assigned | AttemptState::Notified => limits.first_report,
            AttemptState::Deferred { .. } => return Some(queued),
            AttemptState::Downloading | AttemptState::Verified => limits.download,
            AttemptState::Preflight => limits.preflight,
            AttemptState::Activating => limits.activation,
            AttemptState::Probation => {
                return Some(self.since + plan.wait(plan.probation) + plan.wait(limits.probation));
            }
            AttemptState::Shadowing if self.mode == Mode::Active => limits.activation,
            _ => return None,
        };
        Some(self.since + plan.wait(span))
    }

    fn phase(&self) -> Phase {
        match self.state {
            AttemptState::Deferred { .. } => Phase::Deferred,
            AttemptState::Downloading => Phase::Fetching,
            AttemptState::Verified => Phase::Verified,
            AttemptState::Preflight => Phase::Testing,
            AttemptState::Shadowing => Phase::Shadowing,
            AttemptState::Activating => Phase::Switching,
            AttemptState::Probation => Phase::Probation,
            _ => Phase::Idle,
        }
    }

    fn compare_due(&self, plan: &Plan, now: Timestamp) -> Option<u32> {
        let due = self.compare_at(plan).is_some_and(|due| now >= due);
        self.match_of.filter(|_| due)
    }
    fn compare_at(&self, plan: &Plan) -> Option<Timestamp> {
        let open = self.arm == Arm::Canary && self.match_of.is_some() && !self.compared.done;
        self.activated_at.filter(|_| open).map(|at| at + plan.wait(plan.assign.compare) + plan.wait(GRACE))
    }

    pub(super) fn next_deadline(&self, plan: &Plan) -> Option<Timestamp> {
        let mut next = self.compare_at(plan);
        let mut sooner = |at: Timestamp| next = Some(next.map_or(at, |next| next.min(at)));
        if let AttemptState::RetryWait { until, .. } = self.state {
            sooner(until);
        }
        if self.is_under_way() {
            let heard = self.heard_at.or(self.handed_at).unwrap_or(self.since);
            match self.presence {
                Presence::Here => sooner(heard + plan.wait(plan.timeouts.silence)),
                Presence::Away => sooner(heard + plan.wait(plan.timeouts.seen)),
                Presence::Gone => {}
            }
            if let Some(limit) = self.time_out(plan) {
                sooner(limit);
            }
        }
        next
    }

    fn remove(&mut self, now: Timestamp, moves: &mut Vec<Move>) {
        self.leave_risk_set(moves);
        self.cancel_shadow(moves);
        self.mode = Mode::Active;
        self.go(AttemptState::Removed, None, now, moves);
    }

    /// The shadow turn is over for other reasons than its own.
    pub(super) fn cancel_shadow(&mut self, moves: &mut Vec<Move>) {
        let (Some(stage), Some(from)) = (self.shadow, self.shadow_bucket) else { return };
        let over = matches!(from, Bucket::Shadowing | Bucket::Failed | Bucket::TimedOut | Bucket::Cancelled);
        if !over {
            self.shadow_bucket = Some(Bucket::Cancelled);
            moves.push(Move::Change(Change {
                stage,
                from,
                to: Bucket::Cancelled,
                failed: None,
                unfailed: None,
            }));
        }
    }

    /// Enters a state; `failure` is what its stage shall count against it from now on.
    pub(super) fn go(
        &mut self,
        state: AttemptState,
        failure: Option<Failure>,
        now: Timestamp,
        moves: &mut Vec<Move>,
    ) {
        if state != self.state {
            self.state = state;
            self.since = now;
        }
        // A device that went back failed nevertheless; its stage remembers.
        let keeps = matches!(
            self.state,
            AttemptState::Reverting
                | AttemptState::Reverted
                | AttemptState::Cancelled
                | AttemptState::Superseded { .. }
                | AttemptState::Removed
        );
        self.settle(now, if keeps { self.failure } else { failure }, moves);
    }

    /// Brings the buckets in line with the state.
    pub(super) fn settle(&mut self, _now: Timestamp, failure: Option<Failure>, moves: &mut Vec<Move>) {
        let to = self.wanted_bucket();
        if matches!(to, Bucket::Deferred | Bucket::Away | Bucket::Gone) {
            self.gave_slot_up = true;
        }
        let (stage, from) = match (self.mode, self.shadow, self.shadow_bucket) {
            (Mode::Shadow, Some(stage), Some(from)) => (stage, from),
            _ => (self.stage, self.bucket),
        };
        // What the controller guessed is taken back when the device speaks; so is what it counted before.
        let failed = failure.filter(|failure| Some(*failure) != self.failure);
        let unfailed = self.failure.filter(|old| failure != Some(*old));
        self.failure = failure;
        if from == to && failed.is_none() && unfailed.is_none() {
            return;
        }
        match self.mode {
            Mode::Shadow if self.shadow.is_some() => self.shadow_bucket = Some(to),
            _ => self.bucket = to,
        }
        moves.push(Move::Change(Change { stage, from, to, failed, unfailed }));
    }

    fn wanted_bucket(&self) -> Bucket {
        match &self.state {
            AttemptState::Planned => Bucket::Planned,
            AttemptState::Held => Bucket::Held,
            AttemptState::Shadowing if self.mode == Mode::Shadow => Bucket::Shadowing,
            AttemptState::Assigned
            | AttemptState::Notified
            | AttemptState::Deferred { .. }
            | AttemptState::Downloading
            | AttemptState::Verified
            | AttemptState::Preflight
            | AttemptState::Shadowing
            | AttemptState::Activating
            | AttemptState::Probation => match self.presence {
                Presence::Away => Bucket::Away,
                Presence::Gone => Bucket::Gone,
                Presence::Here if matches!(self.state, AttemptState::Deferred { .. }) => Bucket::Deferred,
                Presence::Here if self.gave_slot_up => Bucket::Returned,
                Presence::Here => Bucket::InFlight,
            },
            AttemptState::Committed { .. } => Bucket::Committed,
            AttemptState::Failed => Bucket::Failed,
            AttemptState::TimedOut { .. } => Bucket::TimedOut,
            AttemptState::Lost => Bucket::Lost,
            AttemptState::RetryWait { .. } => Bucket::Waiting,
            AttemptState::Again => Bucket::Again,
            AttemptState::Cancelled => Bucket::Cancelled,
            AttemptState::Superseded { .. } => Bucket::Superseded,
            AttemptState::Removed => Bucket::Removed,
            AttemptState::Reverting => Bucket::Reverting,
            AttemptState::Reverted => Bucket::Reverted,
        }
    }
}

pub(super) fn observed(observation: Observation) -> Move {
    Move::Observed { observation }
}
