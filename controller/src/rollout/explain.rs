//! Why a rollout waits: every reason with a sentence, and who can do something about it.

use super::{
    approval::Scope,
    machine::HeldBack,
    rollout::{PauseWhy, Rollout, State},
    span::Span,
    stage::{Bucket, StageState},
    waiting::{WaitingOn, What, Who},
};
use edgefleet_shared::time::Timestamp;

/// Everything the rollout waits for now, the most important first; empty only when nothing is left to
/// wait for.
pub fn explain(rollout: &Rollout, now: Timestamp) -> Vec<WaitingOn> {
    Explainer { rollout, now, found: Vec::new() }.all()
}

struct Explainer<'a> {
    rollout: &'a Rollout,
    now: Timestamp,
    found: Vec<WaitingOn>,
}

impl Explainer<'_> {
    fn say(&mut self, what: What, since: Timestamp, until: Option<Timestamp>, who: Who, sentence: String) {
        let about_stage = !matches!(
            what,
            What::Submit
                | What::Start
                | What::StartTime
                | What::Members { .. }
                | What::Effects { .. }
                | What::Tail { .. }
        );
        let index = usize::from(self.rollout.stage);
        let stage = self.rollout.plan.stages.get(index).filter(|_| about_stage);
        let stage = stage.map(|stage| (self.rollout.stage, stage.name.clone()));
        self.found.push(WaitingOn { stage, what, since, until, who, sentence });
    }

    fn all(mut self) -> Vec<WaitingOn> {
        let (rollout, since) = (self.rollout, self.rollout.since);
        let rest = since + rollout.plan.wait(rollout.plan.timeouts.rest);
        match &rollout.state {
            State::Draft => {
                self.say(
                    What::Submit,
                    since,
                    Some(rest),
                    Who::Author,
                    "a draft: nobody has submitted it".into(),
                );
            }
            State::PendingApproval => self.approval(),
            State::Ready => {
                self.say(What::Start, since, Some(rest), Who::Operator, "ready: nobody has started it".into())
            }
            State::Scheduled { at } => {
                if *at > self.now {
                    self.say(What::StartTime, since, Some(*at), Who::Nobody, format!("starts at {at}"));
                }
                self.calendar();
            }
            State::Assigning { written, .. } => {
                let sentence = match written {
                    0 => "its members are written down once no other rollout moves their devices".to_owned(),
                    _ => format!("{written} members are written down; nobody is told before all are"),
                };
                self.say(What::Members { written: *written }, since, None, Who::Controller, sentence);
            }
            State::Running => self.running(),
            State::Paused { why } => self.paused(why),
            State::Reverting => self.reverting(),
            State::Completed { tail_until } if self.now < *tail_until => self.tail(*tail_until),
            State::Aborted | State::Superseded { .. } => {
                if rollout.sweep.as_ref().is_some_and(|sweep| !sweep.exhausted) {
                    let sentence = "devices that had not switched yet are being called back".to_owned();
                    self.say(What::Sweep, since, None, Who::Controller, sentence);
                }
            }
            State::Completed { .. } | State::Reverted { .. } | State::Expired => {}
        }
        let pending = rollout.pending.len() as u64;
        if pending > 0 {
            let sentence = format!("the controller has {pending} things left to do for it");
            self.say(What::Effects { pending }, rollout.clock, None, Who::Controller, sentence);
        }
        self.found
    }

    fn approval(&mut self) {
        let Some(open) = self.rollout.approvals.open.clone() else { return };
        let what = match open.scope {
            Scope::Start => "its start",
            Scope::Begin { .. } => "the beginning of this stage",
            Scope::Pass { .. } => "the end of this stage, which too few devices can prove sound",
        };
        let by = &self.rollout.by;
        let sentence = format!("somebody other than {by} has to agree to {what}");
        self.say(
            What::Approval { scope: open.scope },
            open.since,
            Some(open.until),
            Who::OtherPerson,
            sentence,
        );
    }

    fn calendar(&mut self) {
        if let Some(line) = self.rollout.line.clone() {
            let sentence = format!("{} stopped the line: {}", line.by, line.reason);
            self.say(What::LineStopped { by: line.by }, line.at, None, Who::Operator, sentence);
        }
        if let Some(freeze) = self.rollout.freeze.clone() {
            let sentence = format!("freeze period `{}` until {}", freeze.name, freeze.until);
            let until = Some(freeze.until);
            self.say(
                What::FreezeCalendar { name: freeze.name },
                self.rollout.since,
                until,
                Who::Operator,
                sentence,
            );
        }
    }

    fn running(&mut self) {
        let rollout = self.rollout;
        let at = usize::from(rollout.stage);
        let Some((plan, stage)) = rollout.plan.stages.get(at).zip(rollout.stages.get(at)) else { return };
        if rollout.approvals.open.is_some() {
            self.approval();
        }
        self.turns();
        match stage.state {
            StageState::Delivering => {
                let (finished, wanted, counted) = rollout.coverage(at);
                let by_bucket = stage.counts.iter().collect();
                let sentence = if counted == 0 {
                    "no device of the stage has been seen lately; it waits for one".to_owned()
                } else {
                    format!("{finished} of {wanted} devices have finished ({counted} were seen lately)")
                };
                self.say(
                    What::Coverage { finished, wanted, by_bucket },
                    stage.since,
                    None,
                    Who::Devices,
                    sentence,
                );
            }
            StageState::Soaking => {
                let from = stage.soak_from.unwrap_or(stage.since);
                let soaked = from + rollout.plan.wait(plan.soak);
                let gates: Vec<_> = rollout
                    .asked(at)
                    .into_iter()
                    .filter(|gate| {
                        let report = rollout.assessment.as_ref().and_then(|seen| seen.gate(*gate));
                        report.is_none_or(|report| report.verdict != crate::evidence::Verdict::Pass)
                    })
                    .map(|gate| gate.to_string())
                    .collect();
                if self.now < soaked || gates.is_empty() {
                    let sentence =
                        format!("watched until {soaked} at least, unless evidence decides earlier");
                    self.say(What::Soak, from, Some(soaked), Who::Nobody, sentence);
                }
                if !gates.is_empty() {
                    let most = Span::secs(plan.max_soak().as_secs().saturating_add(stage.extended.as_secs()));
                    let until = from + rollout.plan.wait(most);
                    let sentence =
                        format!("no verdict yet on {}; without one it pauses at {until}", gates.join(", "));
                    self.say(What::Evidence { gates }, from, Some(until), Who::Devices, sentence);
                }
            }
            StageState::Waiting
            | StageState::Passed
            | StageState::Failed
            | StageState::Inconclusive
            | StageState::Skipped => {}
        }
    }

    /// Why the next devices have no turn yet.
    fn turns(&mut self) {
        let rollout = self.rollout;
        let Some(piece) = rollout.next_piece() else { return };
        let left = piece.left;
        let since = rollout.clock;
        match rollout.next_turns(self.now) {
            Err(HeldBack::Rate) => {
                let per_min = rollout.tokens.per_min(&rollout.plan) * rollout.plan.time_scale;
                let sentence = format!("{left} devices wait for their turn, at {per_min:.0} a minute");
                self.say(What::Rate { per_min, left }, since, rollout.wake, Who::Nobody, sentence);
            }
            Err(HeldBack::Concurrency) => {
                let (in_flight, cap) = (rollout.in_flight(), rollout.concurrency_cap());
                let sentence =
                    format!("{in_flight} devices are under way, at most {cap} may be; {left} wait");
                self.say(What::Concurrency { in_flight, cap }, since, None, Who::Devices, sentence);
            }
            Err(HeldBack::Bytes) => {
                let budget = rollout.plan.limits.bytes_per_day.unwrap_or(0);
                let used = rollout.tokens.bytes;
                let until = rollout.tokens.day + std::time::Duration::from_secs(86_400);
                let sentence = format!("{used} of {budget} bytes of the day are used; {left} devices wait");
                self.say(What::BytesPerDay { used, budget }, since, Some(until), Who::Nobody, sentence);
            }
            Err(HeldBack::Groups) => {
                let sentence = format!("{left} devices wait because others of their group are under way");
                self.say(What::Groups { left }, since, rollout.tokens.blocked_until, Who::Devices, sentence);
            }
            Err(HeldBack::Nobody | HeldBack::Driver) | Ok(_) => {}
        }
    }

    fn paused(&mut self, why: &PauseWhy) {
        let rollout = self.rollout;
        let plan = &rollout.plan;
        let (text, span) = match why {
            PauseWhy::FreezeCalendar { .. } | PauseWhy::LineStopped => return self.calendar(),
            PauseWhy::Operator { by, reason } => (format!("{by} paused it: {reason}"), plan.timeouts.rest),
            PauseWhy::Gate { sentence, .. } => (sentence.clone(), plan.on_inconclusive.unattended),
            PauseWhy::Inconclusive => {
                ("the longest soak is over without a verdict".to_owned(), plan.on_inconclusive.unattended)
            }
            PauseWhy::ApprovalExpired => {
                ("nobody agreed in time".to_owned(), plan.on_inconclusive.unattended)
            }
        };
        let until = rollout.since + plan.wait(span);
        let who = if matches!(why, PauseWhy::Operator { .. }) { Who::Operator } else { Who::OtherPerson };
        let sentence = format!("{text}; resume, extend, skip or revert");
        self.say(What::Decision { why: text }, rollout.since, Some(until), who, sentence);
    }

    fn reverting(&mut self) {
        let rollout = self.rollout;
        let left: u64 = rollout.stages.iter().map(|stage| stage.counts.get(Bucket::Reverting)).sum();
        let swept = rollout.sweep.as_ref().map_or(0, |sweep| sweep.swept);
        let until = rollout.since + rollout.plan.wait(rollout.plan.timeouts.rest);
        let sentence = format!("{swept} devices were told to go back, {left} of them have not said they did");
        let what = What::Revert { left, unreachable: 0 };
        self.say(what, rollout.since, Some(until), Who::Devices, sentence);
    }

    fn tail(&mut self, until: Timestamp) {
        let over = |bucket: Bucket| {
            bucket.is_finished()
                || matches!(
                    bucket,
                    Bucket::Cancelled | Bucket::Superseded | Bucket::Removed | Bucket::Reverted
                )
        };
        let stragglers: u64 = self.rollout.stages.iter().map(|stage| stage.counts.sum(|b| !over(b))).sum();
        if stragglers > 0 {
            let sentence = format!("completed; {stragglers} stragglers still get it when they come");
            self.say(What::Tail { stragglers }, self.rollout.since, Some(until), Who::Devices, sentence);
        }
    }
}
