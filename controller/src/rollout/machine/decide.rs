//! Whether a stage may go on, has failed, or nobody can tell.

use super::super::{
    approval::Scope,
    effect::Note,
    plan::{Mode, OnFail},
    rollout::{PauseWhy, Rollout, State},
    span::Span,
    stage::{Bucket, FailureKind, StageState},
    verdict::{Because, Decision, Rule},
};
use crate::evidence::{ArmSizes, Assessment, Gate, Verdict};
use edgefleet_shared::time::Timestamp;

/// A stage ends early only on evidence, and never before this (or its soak, if that is shorter).
const LEAST_SOAK: Span = Span::hours(1);

impl Rollout {
    /// The open stage, one move.
    pub(super) fn run(&mut self, now: Timestamp) {
        let at = self.at();
        let Some(state) = self.stages.get(at).map(|stage| stage.state) else {
            return self.complete(now);
        };
        match state {
            StageState::Waiting => self.open(at, now),
            StageState::Delivering | StageState::Soaking => {
                self.look_for_harm(now);
                if self.state != State::Running {
                    return;
                }
                self.deliver(now);
                if state == StageState::Delivering {
                    self.look_for_coverage(at, now);
                } else {
                    self.decide(at, now);
                }
            }
            StageState::Passed | StageState::Skipped => {
                if at < self.plan.last_stage() {
                    self.stage += 1;
                } else {
                    self.complete(now);
                }
            }
            // Both come with a pause or an end; a resume puts them back.
            StageState::Failed | StageState::Inconclusive => {}
        }
    }

    fn open(&mut self, at: usize, now: Timestamp) {
        let Some(plan) = self.plan.stages.get(at) else { return };
        let scope = Scope::Begin { stage: self.stage };
        if plan.approval && !self.approvals.has(scope) {
            let sentence = format!("stage `{}` may begin", plan.name);
            return self.wait_for(scope, sentence, now);
        }
        if self.stages[at].counts.members() == 0 && !(plan.dynamic && self.members() > 0) {
            self.stages[at].skipped = Some("no devices".into());
            self.stages[at].enter(StageState::Skipped, now);
            return;
        }
        self.stages[at].opened = Some(now);
        self.stages[at].enter(StageState::Delivering, now);
    }

    /// Asks for an approval, or pauses if nobody gave it in time.
    fn wait_for(&mut self, scope: Scope, sentence: String, now: Timestamp) {
        if self.approvals.is_open(scope) && self.approvals.open.as_ref().is_some_and(|open| now >= open.until)
        {
            self.approvals.open = None;
            self.note(Note::ApprovalExpired { sentence: sentence.clone() });
            let because = self.rule(Rule::ApprovalExpired, format!("nobody agreed in time: {sentence}"));
            return self.pause(PauseWhy::ApprovalExpired, because, now);
        }
        self.ask(scope, sentence, now);
    }

    fn look_for_coverage(&mut self, at: usize, now: Timestamp) {
        let may_finish = |bucket: Bucket| {
            bucket.counts_for_coverage()
                || bucket == Bucket::Gone
                || (bucket == Bucket::Held && self.plan.is_last(at))
        };
        if self.stages[at].counts.is_settled() && self.stages[at].counts.sum(may_finish) == 0 {
            self.stages[at].skipped = Some("all its devices left".into());
            let because = self.rule(Rule::Soaked, "all devices of the stage left the fleet or this rollout");
            return self.finish_stage(StageState::Skipped, Decision::StageSkipped, because, now);
        }
        if !self.is_covered(at) {
            return;
        }
        if let Some(sentence) = self.nobody_succeeded(at) {
            return self.fail(Rule::NobodySucceeded, sentence, now);
        }
        self.stages[at].soak_from = Some(now);
        self.stages[at].enter(StageState::Soaking, now);
    }

    /// Enough devices of the stage have finished, of those seen lately; no telemetry is never success.
    pub(in super::super) fn is_covered(&self, at: usize) -> bool {
        let (finished, wanted, _) = self.coverage(at);
        finished >= wanted && wanted > 0
    }

    /// Finished, wanted, and what the second is a share of.
    pub(in super::super) fn coverage(&self, at: usize) -> (u64, u64, u64) {
        let Some((plan, stage)) = self.plan.stages.get(at).zip(self.stages.get(at)) else { return (0, 0, 0) };
        let last = self.plan.is_last(at);
        let (finished, mut counted) = stage.coverage();
        if last {
            counted += stage.counts.get(Bucket::Held);
        }
        let share = plan.coverage.map_or(if last { 1.0 } else { 0.9 }, |share| share.fraction(counted));
        let wanted = ((counted as f64) * share - 1e-9).ceil().max(0.0) as u64;
        (finished, wanted.min(counted), counted)
    }

    fn nobody_succeeded(&self, at: usize) -> Option<String> {
        let stage = self.stages.get(at)?;
        let good = stage.counts.get(Bucket::Committed) + stage.counts.get(Bucket::Shadowing);
        let bad = stage.failures.total().saturating_sub(stage.accepted.total());
        (good == 0 && bad > 0).then(|| format!("all {bad} attempts failed"))
    }

    fn decide(&mut self, at: usize, now: Timestamp) {
        let Some((plan, stage)) = self.plan.stages.get(at).zip(self.stages.get(at)) else { return };
        let Some(from) = stage.soak_from else { return };
        let soak = self.plan.wait(plan.soak);
        let most =
            self.plan.wait(Span::secs(plan.max_soak().as_secs().saturating_add(stage.extended.as_secs())));
        let least = self.plan.wait(LEAST_SOAK.min(plan.soak));
        let name = plan.name.clone();
        let passed = now.since(from);
        let (mut open, mut powerless) = (Vec::new(), Vec::new());
        for gate in self.asked(at) {
            match self.assessment.as_ref().and_then(|seen| seen.gate(gate)).map(|report| report.verdict) {
                Some(Verdict::Pass) => {}
                Some(Verdict::Powerless) => powerless.push(gate),
                Some(Verdict::Fail | Verdict::Inconclusive | Verdict::NotAsked) | None => open.push(gate),
            }
        }
        let asked = !self.asked(at).is_empty();
        if open.is_empty() && powerless.is_empty() {
            if asked && passed >= least {
                let because = self.rule(Rule::Safe, "every gate asked is safe");
                self.finish_stage(StageState::Passed, Decision::StagePassed, because, now);
            } else if passed >= soak {
                let because = self.rule(Rule::Soaked, "the soak is over without a failure");
                self.finish_stage(StageState::Passed, Decision::StagePassed, because, now);
            }
            return;
        }
        if open.is_empty() && passed >= soak {
            let scope = Scope::Pass { stage: self.stage };
            if let Some(approval) = self.approvals.given.iter().find(|given| given.scope == scope) {
                let because = Because::Person { by: approval.by.clone(), reason: approval.reason.clone() };
                return self.finish_stage(StageState::Passed, Decision::StagePassed, because, now);
            }
            let gates: Vec<_> = powerless.iter().map(ToString::to_string).collect();
            let sentence = format!(
                "stage `{name}` may pass, though {} can prove nothing on so few devices",
                gates.join(", ")
            );
            return self.wait_for(scope, sentence, now);
        }
        if passed >= most {
            let gates: Vec<_> = open.iter().map(ToString::to_string).collect();
            let because =
                self.rule(Rule::MaxSoak, format!("no verdict on {} in the longest soak", gates.join(", ")));
            self.stages[at].enter(StageState::Inconclusive, now);
            self.record(Decision::StageInconclusive, because.clone(), Some(self.stage), now);
            self.pause(PauseWhy::Inconclusive, because, now);
        }
    }

    /// Gates that must be safe before the stage passes.
    pub(in super::super) fn asked(&self, at: usize) -> Vec<Gate> {
        let gates = self.plan.stages.get(at).map(|stage| stage.gates.as_slice()).unwrap_or_default();
        let counts = |gate: &Gate| {
            *gate != Gate::Hard && self.plan.gates.decides(*gate) && !self.accepted_gates.contains(gate)
        };
        gates.iter().copied().filter(counts).collect()
    }

    pub(super) fn finish_stage(
        &mut self,
        state: StageState,
        decision: Decision,
        because: Because,
        now: Timestamp,
    ) {
        let at = self.at();
        let Some(stage) = self.stages.get_mut(at) else { return };
        stage.enter(state, now);
        self.approvals.open = None;
        self.record(decision, because, Some(self.stage), now);
        if at < self.plan.last_stage() {
            self.stage += 1;
        }
    }

    fn complete(&mut self, now: Timestamp) {
        let tail_until = now + self.plan.wait(self.plan.timeouts.rest);
        self.enter(State::Completed { tail_until }, now);
        let because = self.rule(Rule::Safe, "its last stage passed");
        self.record(Decision::Completed, because, Some(self.stage), now);
    }

    /// After the end: stragglers get their turn; if they show what nobody saw before, a person looks.
    pub(super) fn tail(&mut self, now: Timestamp) {
        if !self.reopened {
            let at = self.plan.last_stage();
            if let Some((rule, sentence)) = self.hard_rule(at) {
                self.reopened = true;
                let sentence = format!("after completion: {sentence}");
                self.stages[at].enter(StageState::Failed, now);
                let because = self.rule(rule, sentence.clone());
                return self.pause(PauseWhy::Gate { rule, sentence }, because, now);
            }
        }
        if self.blocked_by().is_none() {
            self.deliver(now);
        }
    }

    /// Rules without statistics, over everything that has had its turn. Strict up to the canary stage.
    pub(super) fn hard_rule(&self, at: usize) -> Option<(Rule, String)> {
        let hard = &self.plan.hard;
        let canary = self.membership.canary_stage.map_or(0, usize::from);
        let mut later = 0;
        for (number, stage) in self.stages.iter().enumerate().take(at + 1) {
            let name = self.plan.stages.get(number).map_or("", |stage| stage.name.as_str());
            let new = |kind| stage.failures.since(&stage.accepted, kind);
            let strict = number <= canary && (self.plan.stages.len() > 1);
            let refused = new(FailureKind::Verify);
            later += refused;
            if refused >= 1 && strict || later >= hard.verify_failed.max(1) {
                return Some((
                    Rule::VerifyFailed,
                    format!("{later} devices refused the signature or version in `{name}`"),
                ));
            }
            let rules = [
                (FailureKind::RolledBack, hard.rolled_back, Rule::RolledBack, "went back by themselves"),
                (FailureKind::Lost, hard.lost, Rule::Lost, "fell silent after they had activated it"),
                (
                    FailureKind::Preflight,
                    hard.preflight_failed,
                    Rule::PreflightFailed,
                    "failed the trial run",
                ),
            ];
            for (kind, limit, rule, what) in rules {
                let failed = new(kind);
                if strict && failed >= limit.max(1) {
                    return Some((rule, format!("{failed} devices of `{name}` {what} (limit {limit})")));
                }
            }
            let finished = stage.finished_attempts().saturating_sub(stage.accepted.total());
            let failed = stage.failures.total().saturating_sub(stage.accepted.total());
            // Failures finish before successes: of those that have finished early most failed, whatever the
            // bundle. Those under way count as what they still may become.
            let begun = finished + stage.in_flight();
            let share = failed as f64 / begun.max(1) as f64;
            if finished >= hard.min_attempts.max(1) && share > hard.failed.fraction(begun) {
                let sentence =
                    format!("{failed} of {begun} attempts in `{name}` failed (limit {})", hard.failed);
                return Some((Rule::FailureRate, sentence));
            }
        }
        None
    }

    /// Hard rules and harm by evidence; ends or pauses the rollout if one holds.
    pub(super) fn look_for_harm(&mut self, now: Timestamp) {
        let at = self.at();
        if let Some((rule, sentence)) = self.hard_rule(at) {
            return self.fail(rule, sentence, now);
        }
        let assessment = self.evidence.assess(&self.plan.gates, &self.arms());
        let alarms: Vec<_> = assessment
            .alarms()
            .filter(|(gate, text)| {
                let before = self.assessment.as_ref().and_then(|seen| seen.gate(*gate));
                before.and_then(|report| report.alarm.as_deref()) != Some(*text)
                    && before.is_none_or(|report| report.alarm.is_none())
            })
            .map(|(gate, text)| Note::Alarm { gate: gate.to_string(), text: text.to_owned() })
            .collect();
        let harmful = assessment
            .gates
            .iter()
            .find(|report| report.verdict == Verdict::Fail && !self.accepted_gates.contains(&report.gate));
        let harm = harmful.map(|report| format!("{}: {}", report.gate, report.sentence));
        self.assessment = Some(bounded(assessment));
        alarms.into_iter().for_each(|alarm| self.note(alarm));
        if let Some(sentence) = harm {
            self.fail(Rule::Harm, sentence, now);
        }
    }

    /// A stage failed: what the plan says happens. A refused signature always waits for a person.
    fn fail(&mut self, rule: Rule, sentence: String, now: Timestamp) {
        let at = self.at();
        if let Some(stage) = self.stages.get_mut(at) {
            stage.enter(StageState::Failed, now);
        }
        let because = self.rule(rule, sentence.clone());
        self.record(Decision::StageFailed, because.clone(), Some(self.stage), now);
        if rule == Rule::VerifyFailed {
            let devices = self.stages.iter().map(|stage| stage.failures.get(FailureKind::Verify)).sum();
            self.note(Note::SignatureRefused { stage: self.stage, devices });
            return self.pause(PauseWhy::Gate { rule, sentence }, because, now);
        }
        match self.plan.on_fail {
            OnFail::Revert => self.revert(because, now),
            OnFail::Halt => self.halt(because, now),
            OnFail::Freeze => self.pause(PauseWhy::Gate { rule, sentence }, because, now),
        }
    }

    /// A person goes on in spite of what was found so far; new failures count again.
    pub(super) fn accept_harm(&mut self) {
        for stage in &mut self.stages {
            stage.accepted = stage.failures.clone();
        }
        if let Some(seen) = &self.assessment {
            self.accepted_gates
                .extend(seen.gates.iter().filter(|g| g.verdict == Verdict::Fail).map(|g| g.gate));
        }
    }

    /// How many devices each arm has by now.
    pub(in super::super) fn arms(&self) -> ArmSizes {
        let last = self.plan.last_stage();
        let (mut canaries, mut compared, mut controls) = (0, 0, 0);
        for (plan, size) in self.plan.stages.iter().zip(&self.membership.stages).take(last.min(self.at() + 1))
        {
            if plan.mode == Mode::Active && plan.is_drawn() {
                canaries += size.devices;
                compared += size.compared;
                controls += size.against;
            }
        }
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        ArmSizes { canaries: narrow(canaries), compared: narrow(compared), controls: narrow(controls) }
    }
}

/// Sentences, slices and examples end up in the document.
fn bounded(mut assessment: Assessment) -> Assessment {
    for report in &mut assessment.gates {
        report.worst.truncate(5);
        report.examples.truncate(5);
        for text in report.alarm.iter_mut().chain([&mut report.sentence]) {
            while text.len() > 400 {
                text.pop();
            }
        }
    }
    assessment
}
