//! Orders of people: checked first, then carried out.

use super::super::{
    approval::Scope,
    event::{AbortMode, Event, Refused},
    rollout::{PauseWhy, Rollout, State},
    span::Span,
    stage::StageState,
    verdict::{Because, Decision, Rule},
};
use edgefleet_shared::time::Timestamp;

const ACTIVE: &str = "running or paused";

/// Longest reason kept, bytes.
const MAX_REASON: usize = 500;

fn person(by: &str, reason: &str) -> Because {
    let mut reason = reason.to_owned();
    while reason.len() > MAX_REASON {
        reason.pop();
    }
    Because::Person { by: by.chars().take(100).collect(), reason }
}

impl Rollout {
    pub(super) fn order(&mut self, event: &Event, now: Timestamp) -> Result<(), Refused> {
        match event {
            Event::Submit { by } => self.submit(by, now),
            Event::Approve { by, reason } => self.approve(by, reason, now),
            Event::Deny { by, reason } => self.deny(by, reason, now),
            Event::Start { by } => self.start(by, now),
            Event::Pause { by, reason } => self.pause_by(by, reason, now),
            Event::Resume { by, reason } => self.resume_by(by, reason, now),
            Event::Abort { by, reason, mode } => self.abort(by, reason, *mode, now),
            Event::Skip { by, reason } => self.skip(by, reason, now),
            Event::Extend { by, reason, span } => self.extend(by, reason, *span, now),
            // The rest is no order; `apply` deals with it.
            Event::Tick
            | Event::Freeze { .. }
            | Event::Line { .. }
            | Event::SupersededBy { .. }
            | Event::Joined { .. }
            | Event::MembersWritten { .. }
            | Event::HandedOut { .. }
            | Event::Swept { .. }
            | Event::Done { .. }
            | Event::Moved { .. } => Ok(()),
        }
    }

    fn wrong(&self, order: &'static str, allowed: &'static str) -> Refused {
        Refused::WrongState { order, state: self.state.name(), allowed }
    }

    fn submit(&mut self, by: &str, now: Timestamp) -> Result<(), Refused> {
        if self.state != State::Draft {
            return Err(self.wrong("submit", "a draft"));
        }
        if let Err(mistakes) = self.plan.check() {
            let first = mistakes.first().map(ToString::to_string).unwrap_or_default();
            return Err(Refused::PlanMistakes { count: mistakes.len(), first });
        }
        self.by = by.to_owned();
        if self.plan.needs_approval() {
            self.enter(State::PendingApproval, now);
            self.ask(Scope::Start, format!("rollout {} may start", self.id), now);
        } else {
            self.make_ready(now);
        }
        Ok(())
    }

    fn make_ready(&mut self, now: Timestamp) {
        match self.plan.start_at {
            Some(at) => self.enter(State::Scheduled { at: at.max(now) }, now),
            None => self.enter(State::Ready, now),
        }
    }

    fn approve(&mut self, by: &str, reason: &str, now: Timestamp) -> Result<(), Refused> {
        let Some(request) = self.approvals.open.as_ref().filter(|request| now < request.until) else {
            return Err(Refused::NothingToApprove { rollout: self.id.clone() });
        };
        if by == self.by {
            let what = match request.scope {
                Scope::Start => "its start",
                Scope::Begin { .. } => "the stage",
                Scope::Pass { .. } => "the end of the stage",
            };
            return Err(Refused::OwnApproval { by: by.to_owned(), what });
        }
        let scope = self.approvals.give(by, reason, now);
        let stage = match scope {
            Some(Scope::Begin { stage } | Scope::Pass { stage }) => Some(stage),
            Some(Scope::Start) | None => None,
        };
        self.record(Decision::Approved, person(by, reason), stage, now);
        if self.state == State::PendingApproval {
            self.make_ready(now);
        }
        Ok(())
    }

    fn deny(&mut self, by: &str, reason: &str, now: Timestamp) -> Result<(), Refused> {
        let Some(request) = self.approvals.open.take() else {
            return Err(Refused::NothingToApprove { rollout: self.id.clone() });
        };
        self.record(Decision::Denied, person(by, reason), None, now);
        match request.scope {
            Scope::Start => self.enter(State::Draft, now),
            // A no to going on is a stop that a person has to resolve.
            Scope::Begin { .. } | Scope::Pass { .. } => {
                let why = PauseWhy::Operator { by: by.to_owned(), reason: reason.to_owned() };
                if self.state == State::Running {
                    self.pause(why, person(by, reason), now);
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, by: &str, now: Timestamp) -> Result<(), Refused> {
        if !matches!(self.state, State::Ready | State::Scheduled { .. }) {
            return Err(self.wrong("start", "ready or scheduled"));
        }
        self.record(Decision::Started, person(by, ""), None, now);
        // What the calendar forbids waits here.
        self.enter(State::Scheduled { at: now }, now);
        Ok(())
    }

    fn pause_by(&mut self, by: &str, reason: &str, now: Timestamp) -> Result<(), Refused> {
        let by_calendar = matches!(
            self.state,
            State::Paused { why: PauseWhy::FreezeCalendar { .. } | PauseWhy::LineStopped }
        );
        if self.state != State::Running && !by_calendar {
            return Err(self.wrong("pause", "running"));
        }
        let why = PauseWhy::Operator { by: by.to_owned(), reason: reason.to_owned() };
        self.pause(why, person(by, reason), now);
        Ok(())
    }

    fn resume_by(&mut self, by: &str, reason: &str, now: Timestamp) -> Result<(), Refused> {
        let State::Paused { why } = &self.state else {
            return Err(self.wrong("resume", "paused by a person or a gate"));
        };
        match why.clone() {
            PauseWhy::FreezeCalendar { .. } | PauseWhy::LineStopped => {
                return Err(self.wrong("resume", "paused by a person or a gate"));
            }
            PauseWhy::Operator { .. } => {}
            PauseWhy::Gate { .. } | PauseWhy::Inconclusive | PauseWhy::ApprovalExpired if by == self.by => {
                return Err(Refused::OwnApproval { by: by.to_owned(), what: "going on after a verdict" });
            }
            PauseWhy::Gate { .. } | PauseWhy::Inconclusive if reason.trim().is_empty() => {
                return Err(Refused::ReasonMissing);
            }
            PauseWhy::Gate { .. } => self.accept_harm(),
            PauseWhy::Inconclusive => {
                self.resume_running(now);
                self.finish_stage(StageState::Passed, Decision::StagePassed, person(by, reason), now);
                return Ok(());
            }
            PauseWhy::ApprovalExpired => {}
        }
        self.record(Decision::Resumed, person(by, reason), self.open_stage(), now);
        self.resume_running(now);
        Ok(())
    }

    fn abort(&mut self, by: &str, reason: &str, mode: AbortMode, now: Timestamp) -> Result<(), Refused> {
        let because = person(by, reason);
        match self.state {
            State::Draft | State::PendingApproval | State::Ready | State::Scheduled { .. } | State::Assigning { .. } => {
                self.end(State::Aborted, Decision::Aborted, because, now);
            }
            State::Running | State::Paused { .. } => match mode {
                AbortMode::Freeze => {
                    let why = PauseWhy::Operator { by: by.to_owned(), reason: reason.to_owned() };
                    self.pause(why, because, now);
                }
                AbortMode::Halt => self.halt(because, now),
                AbortMode::Revert => self.revert(because, now),
            },
            State::Reverting
            | State::Reverted { .. }
            | State::Aborted
            | State::Completed { .. }
            | State::Superseded { .. }
            | State::Expired => return Err(self.wrong("abort", "not over and not going back")),
        }
        Ok(())
    }

    fn skip(&mut self, by: &str, reason: &str, now: Timestamp) -> Result<(), Refused> {
        if !matches!(self.state, State::Running | State::Paused { .. }) {
            return Err(self.wrong("skip a stage", ACTIVE));
        }
        let at = self.at();
        let Some(stage) = self.stages.get(at).filter(|stage| !stage.state.is_over()) else {
            return Err(Refused::NoOpenStage { rollout: self.id.clone() });
        };
        let name = self.plan.stages.get(at).map_or_else(String::new, |stage| stage.name.clone());
        if let Some((rule, _)) = self.hard_rule(at) {
            return Err(Refused::HardGateOpen { stage: name, rule: format!("{rule:?}") });
        }
        if stage.state == StageState::Failed
            && let State::Paused { why: PauseWhy::Gate { rule, .. } } = &self.state
            && *rule != Rule::Harm
        {
            return Err(Refused::HardGateOpen { stage: name, rule: format!("{rule:?}") });
        }
        if reason.trim().is_empty() {
            return Err(Refused::ReasonMissing);
        }
        // A harm verdict is accepted with the stage it was about; else it would end the next one.
        self.accept_harm();
        if matches!(self.state, State::Paused { why: PauseWhy::Gate { .. } | PauseWhy::Inconclusive }) {
            self.resume_running(now);
        }
        self.stages[at].skipped = Some(format!("{by}: {reason}").chars().take(MAX_REASON).collect());
        self.finish_stage(StageState::Skipped, Decision::StageSkipped, person(by, reason), now);
        Ok(())
    }

    fn extend(&mut self, by: &str, reason: &str, span: Span, now: Timestamp) -> Result<(), Refused> {
        let inconclusive = matches!(self.state, State::Paused { why: PauseWhy::Inconclusive });
        if self.state != State::Running && !inconclusive {
            return Err(self.wrong("extend the soak", "running or paused without a verdict"));
        }
        let at = self.at();
        let Some(stage) = self.stages.get_mut(at).filter(|stage| stage.soak_from.is_some()) else {
            return Err(Refused::NoOpenStage { rollout: self.id.clone() });
        };
        // At most a year in all: every state has an end.
        let sum = stage.extended.as_secs().saturating_add(span.as_secs()).min(Span::days(366).as_secs());
        stage.extended = Span::secs(sum);
        self.record(Decision::Extended, person(by, reason), Some(self.stage), now);
        if inconclusive {
            self.resume_running(now);
        }
        Ok(())
    }
}
