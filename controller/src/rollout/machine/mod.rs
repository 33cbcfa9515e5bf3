//! The machine: event in, effects out.
//!
//! | state | leaves to |
//! |---|---|
//! | draft | pending-approval, ready, scheduled (submit); aborted; expired |
//! | pending-approval | ready, scheduled (approve), draft (deny), aborted, expired (72 h) |
//! | ready | scheduled, assigning (start), aborted, expired |
//! | scheduled | assigning (time, start), aborted, expired |
//! | assigning | running (members written), aborted, superseded |
//! | running | paused, reverting, aborted, completed, superseded |
//! | paused | running, reverting, aborted, superseded |
//! | reverting | reverted |
//! | completed | paused, once, by its tail |
//!
//! Everything else is refused by name if a person asks for it, and ignored if the world says so. The last of
//! reverted, aborted, superseded and expired is for ever; their sweeps still run to their end.

mod decide;
mod deliver;
mod driver;
mod orders;
mod wake;

pub(super) use deliver::HeldBack;

use super::{
    approval::Scope,
    effect::{Effect, Note, Pending},
    event::{Event, Refused},
    plan::{OnFail, Severity},
    rollout::{PauseWhy, Rollout, State, Sweep, SweepKind},
    stage::{Bucket, StageState},
    verdict::{Because, Decision, Rule, VerdictRecord},
};
use edgefleet_shared::time::Timestamp;

impl Rollout {
    /// Total and deterministic: no clock but `now`, no I/O. Changes the document in place; returns the
    /// effects that are new, which also stand in `pending`. O(1) for [`Event::Moved`], whatever the fleet.
    ///
    /// # Errors
    /// [`Refused`], for orders of people only; the document is unchanged then.
    pub fn apply(&mut self, event: &Event, now: Timestamp) -> Result<Vec<Pending>, Refused> {
        let now = now.max(self.clock);
        let first = self.next_effect;
        match event {
            Event::Submit { .. }
            | Event::Approve { .. }
            | Event::Deny { .. }
            | Event::Start { .. }
            | Event::Pause { .. }
            | Event::Resume { .. }
            | Event::Abort { .. }
            | Event::Skip { .. }
            | Event::Extend { .. } => self.order(event, now)?,
            Event::Moved { moved } => {
                self.clock = now;
                self.moved(moved, now);
                return Ok(self.since_effect(first));
            }
            Event::Tick => {}
            Event::Freeze { active } => self.freeze = active.clone(),
            Event::Line { stopped } => self.line = stopped.clone(),
            Event::SupersededBy { rollout } => self.superseded(rollout.clone(), now),
            Event::Joined { devices } => self.joined(*devices),
            Event::MembersWritten { effect, digest, written, done } => {
                self.members_written(*effect, *digest, *written, done.as_ref(), now);
            }
            Event::HandedOut { effect, count, controls, cursor, exhausted } => {
                self.handed_out(*effect, *count, *controls, *cursor, *exhausted, now);
            }
            Event::Swept { effect, cursor, count, exhausted } => {
                self.swept(*effect, *cursor, *count, *exhausted);
            }
            Event::Done { effect } => self.pending.retain(|pending| {
                pending.id != *effect
                    || !matches!(pending.effect, Effect::Verdict { .. } | Effect::Note { .. })
            }),
        }
        self.clock = now;
        self.advance(now);
        self.waiting = super::explain::explain(self, now);
        self.wake = self.next_wake(now);
        Ok(self.since_effect(first))
    }

    fn since_effect(&self, first: u64) -> Vec<Pending> {
        if self.next_effect == first {
            return Vec::new();
        }
        self.pending.iter().filter(|pending| pending.id >= first).cloned().collect()
    }

    /// Whatever time and numbers allow now, until nothing more follows.
    fn advance(&mut self, now: Timestamp) {
        // Every round ends a stage or changes the state; both are finite.
        for _ in 0..2 * self.plan.stages.len() + 8 {
            let before = (self.state.name(), self.stage, self.stages.get(self.at()).map(|s| s.state));
            self.advance_once(now);
            if before == (self.state.name(), self.stage, self.stages.get(self.at()).map(|s| s.state)) {
                return;
            }
        }
    }

    fn advance_once(&mut self, now: Timestamp) {
        let rest = self.plan.wait(self.plan.timeouts.rest);
        match self.state.clone() {
            State::Draft | State::Ready => {
                if now >= self.since + rest {
                    self.end(
                        State::Expired,
                        Decision::Expired,
                        self.rule(Rule::Deadline, "nobody started it in time"),
                        now,
                    );
                }
            }
            State::PendingApproval => {
                if self.approvals.open.as_ref().is_none_or(|request| now >= request.until) {
                    self.approvals.open = None;
                    self.note(Note::ApprovalExpired {
                        sentence: "nobody agreed to the start in time".into(),
                    });
                    let because = self.rule(Rule::ApprovalExpired, "nobody agreed to the start in time");
                    self.end(State::Expired, Decision::Expired, because, now);
                }
            }
            State::Scheduled { at } => {
                if now >= at + rest {
                    self.end(
                        State::Expired,
                        Decision::Expired,
                        self.rule(Rule::Deadline, "its start stayed blocked"),
                        now,
                    );
                } else if now >= at && self.blocked_by().is_none() {
                    self.enter(State::Assigning { written: 0, digest: None }, now);
                    self.emit(Effect::WriteMembers);
                }
            }
            State::Assigning { .. } => {
                if now >= self.since + rest {
                    let because = self.rule(Rule::Deadline, "its members were never written");
                    self.end(State::Aborted, Decision::Aborted, because, now);
                }
            }
            State::Running => match self.blocked_by() {
                Some(why) => self.pause_for(why, now),
                None => self.run(now),
            },
            State::Paused { why } => self.paused(&why, now),
            State::Reverting => self.reverting(now),
            State::Completed { tail_until } => {
                if now < tail_until {
                    self.tail(now);
                }
            }
            State::Aborted | State::Superseded { .. } => self.sweep_on(now),
            State::Reverted { .. } | State::Expired => {}
        }
    }

    /// Index of the open stage.
    fn at(&self) -> usize {
        usize::from(self.stage)
    }

    /// What forbids anybody's turn now, apart from the rollout itself.
    fn blocked_by(&self) -> Option<PauseWhy> {
        if self.line.is_some() {
            return Some(PauseWhy::LineStopped);
        }
        let exempt = self.plan.override_freeze.is_some() && self.plan.rollout.severity == Severity::Critical;
        match &self.freeze {
            Some(freeze) if !exempt && freeze.until > self.clock => {
                Some(PauseWhy::FreezeCalendar { name: freeze.name.clone() })
            }
            _ => None,
        }
    }

    /// The calendar or the switch stops it; it goes on by itself afterwards.
    fn pause_for(&mut self, why: PauseWhy, now: Timestamp) {
        let because = match &why {
            PauseWhy::FreezeCalendar { name } => {
                self.rule(Rule::FreezeCalendar, format!("freeze period `{name}`"))
            }
            _ => {
                let by = self.line.as_ref().map_or("somebody", |line| line.by.as_str());
                self.rule(Rule::LineStopped, format!("{by} stopped the line"))
            }
        };
        self.pause(why, because, now);
    }

    fn paused(&mut self, why: &PauseWhy, now: Timestamp) {
        let blocked = self.blocked_by();
        match why {
            PauseWhy::FreezeCalendar { .. } | PauseWhy::LineStopped => match blocked {
                None => {
                    self.record(
                        Decision::Resumed,
                        self.rule(Rule::FreezeCalendar, "nothing forbids it any more"),
                        None,
                        now,
                    );
                    return self.resume_running(now);
                }
                // Held by the other of the two now; the deadline of a person's inaction does not apply.
                Some(other) if other != *why => self.state = State::Paused { why: other },
                Some(_) => {}
            },
            PauseWhy::Operator { .. } => {
                if now >= self.since + self.plan.wait(self.plan.timeouts.rest) {
                    let because = self.rule(Rule::Unattended, "paused by a person and left alone");
                    return self.halt(because, now);
                }
            }
            PauseWhy::Gate { .. } | PauseWhy::Inconclusive | PauseWhy::ApprovalExpired => {
                if now >= self.since + self.plan.wait(self.plan.on_inconclusive.unattended) {
                    let sentence = "paused for a decision that nobody made";
                    return match self.plan.on_inconclusive.then {
                        OnFail::Revert => self.revert(self.rule(Rule::Unattended, sentence), now),
                        OnFail::Halt => self.halt(self.rule(Rule::Unattended, sentence), now),
                        OnFail::Freeze => {
                            if now >= self.since + self.plan.wait(self.plan.timeouts.rest) {
                                self.halt(self.rule(Rule::Unattended, sentence), now);
                            }
                        }
                    };
                }
            }
        }
        // Evidence goes on; harm does not wait for anybody.
        if !matches!(why, PauseWhy::Gate { .. }) {
            self.look_for_harm(now);
        }
    }

    fn enter(&mut self, state: State, now: Timestamp) {
        self.state = state;
        self.since = now;
    }

    /// Ends it for good. Hand-outs that may be under way are counted before their sweep.
    fn end(&mut self, state: State, decision: Decision, because: Because, now: Timestamp) {
        self.approvals.open = None;
        self.stop_handing_out();
        self.enter(state, now);
        self.record(decision, because, None, now);
    }

    fn pause(&mut self, why: PauseWhy, because: Because, now: Timestamp) {
        self.stop_handing_out();
        self.enter(State::Paused { why }, now);
        let sentence = match &because {
            Because::Rule { sentence, .. } => sentence.clone(),
            Because::Person { by, reason } => format!("{by}: {reason}"),
        };
        let stage = self.open_stage();
        self.record(Decision::Paused, because, stage, now);
        self.note(Note::Paused { sentence });
    }

    /// Time spent paused is given back to the soak.
    fn resume_running(&mut self, now: Timestamp) {
        let lost =
            super::span::Span::secs((now.since(self.since).as_secs_f64() * self.plan.time_scale) as u64);
        let at = self.at();
        if let Some(stage) = self.stages.get_mut(at) {
            if stage.soak_from.is_some() {
                stage.extended =
                    super::span::Span::secs(stage.extended.as_secs().saturating_add(lost.as_secs()));
            }
            if matches!(stage.state, StageState::Failed | StageState::Inconclusive) {
                // One that failed for what an earlier stage showed may not have begun.
                let back = match (stage.soak_from, stage.opened) {
                    (Some(_), _) => StageState::Soaking,
                    (None, Some(_)) => StageState::Delivering,
                    (None, None) => StageState::Waiting,
                };
                stage.enter(back, now);
            }
        }
        self.enter(State::Running, now);
    }

    /// Everything goes back, newest first.
    fn revert(&mut self, because: Because, now: Timestamp) {
        self.approvals.open = None;
        self.stop_handing_out();
        self.sweep = Some(Sweep { kind: SweepKind::Revert, cursor: None, exhausted: false, swept: 0 });
        self.enter(State::Reverting, now);
        self.record(Decision::Reverting, because, self.open_stage(), now);
    }

    /// What has not been activated is cancelled; the rest stays as it is.
    fn halt(&mut self, because: Because, now: Timestamp) {
        let handed_out = self.stages.iter().any(|stage| stage.handed_out > 0) || self.has_hand_out();
        if handed_out {
            self.sweep = Some(Sweep { kind: SweepKind::Cancel, cursor: None, exhausted: false, swept: 0 });
            let devices = self.stages.iter().map(|stage| stage.counts.get(Bucket::Committed)).sum();
            self.note(Note::Mixed { devices });
        }
        self.end(State::Aborted, Decision::Aborted, because, now);
    }

    fn superseded(&mut self, by: edgefleet_shared::ids::RolloutId, now: Timestamp) {
        match self.state {
            State::Ready
            | State::Scheduled { .. }
            | State::Assigning { .. }
            | State::Running
            | State::Paused { .. } => {
                if self.stages.iter().any(|stage| stage.handed_out > 0) || self.has_hand_out() {
                    self.sweep =
                        Some(Sweep { kind: SweepKind::Cancel, cursor: None, exhausted: false, swept: 0 });
                }
                let because = self.rule(Rule::Deadline, format!("rollout {by} takes its place"));
                self.end(State::Superseded { by }, Decision::Superseded, because, now);
            }
            // A draft is no rollout yet; a revert goes on for the devices the other one leaves alone.
            State::Draft
            | State::PendingApproval
            | State::Reverting
            | State::Reverted { .. }
            | State::Aborted
            | State::Completed { .. }
            | State::Superseded { .. }
            | State::Expired => {}
        }
    }

    fn has_hand_out(&self) -> bool {
        self.pending.iter().any(|pending| matches!(pending.effect, Effect::HandOut { .. }))
    }

    /// No new turns: a hand-out that may be half done shrinks to what was done, and is still reported.
    fn stop_handing_out(&mut self) {
        self.pending.retain(|pending| !matches!(pending.effect, Effect::WriteMembers));
        for pending in &mut self.pending {
            if let Effect::HandOut { at_most, .. } = &mut pending.effect {
                *at_most = 0;
            }
        }
    }

    fn emit(&mut self, effect: Effect) {
        let id = self.next_effect;
        self.next_effect += 1;
        self.pending.push(Pending { id, effect });
    }

    /// Notes wait for the driver; if it is away for long, the oldest make room: findings are not history.
    fn note(&mut self, note: Note) {
        let effect = Effect::Note { note };
        if self.pending.iter().any(|pending| pending.effect == effect) {
            return;
        }
        let notes = self.pending.iter().filter(|p| matches!(p.effect, Effect::Note { .. })).count();
        if notes >= MAX_NOTES
            && let Some(oldest) = self.pending.iter().position(|p| matches!(p.effect, Effect::Note { .. }))
        {
            self.pending.remove(oldest);
        }
        self.emit(effect);
    }

    fn rule(&self, rule: Rule, sentence: impl Into<String>) -> Because {
        Because::Rule { rule, sentence: sentence.into() }
    }

    fn open_stage(&self) -> Option<u16> {
        let open = |stage: &super::stage::StageProgress| {
            stage.state != StageState::Waiting || stage.opened.is_some()
        };
        self.stages.get(self.at()).filter(|stage| open(stage)).map(|_| self.stage)
    }

    /// Writes down a decision with the numbers it rests on.
    fn record(&mut self, decision: Decision, because: Because, stage: Option<u16>, at: Timestamp) {
        let row = stage.and_then(|stage| Some((stage, self.stages.get(usize::from(stage))?)));
        let name = |n: u16| self.plan.stages.get(usize::from(n)).map_or_else(String::new, |s| s.name.clone());
        let record = VerdictRecord {
            rollout: self.id.clone(),
            bundle: self.release.bundle.clone(),
            stage: row.map(|(n, _)| (n, name(n))),
            decision,
            because,
            at,
            devices: row.map(|(_, stage)| stage.counts.iter().collect()).unwrap_or_default(),
            failures: row.map(|(_, stage)| stage.failures.clone()).unwrap_or_default(),
            assessment: self.assessment.clone().filter(|_| stage.is_some()),
            time_scale: self.plan.time_scale,
        };
        // The log is far away for very long: numbers of older verdicts make room, the verdicts stay.
        let full = self.pending.iter().filter(|p| matches!(p.effect, Effect::Verdict { .. })).count() >= 4;
        if full {
            for pending in &mut self.pending {
                if let Effect::Verdict { record } = &mut pending.effect {
                    record.assessment = None;
                }
            }
        }
        self.emit(Effect::Verdict { record: Box::new(record) });
    }

    fn ask(&mut self, scope: Scope, sentence: String, now: Timestamp) {
        if !self.approvals.is_open(scope) {
            self.approvals.ask(scope, now, now + self.plan.wait(self.plan.timeouts.approval));
            self.note(Note::ApprovalWanted { sentence });
        }
    }
}

const MAX_NOTES: usize = 16;

/// [`Rollout::apply`] on a copy.
///
/// # Errors
/// As there.
pub fn step(rollout: &Rollout, event: &Event, now: Timestamp) -> Result<(Rollout, Vec<Pending>), Refused> {
    let mut next = rollout.clone();
    let effects = next.apply(event, now)?;
    Ok((next, effects))
}
