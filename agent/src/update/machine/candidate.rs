//! The lane of the candidate: it is fetched, verified and tested as a target is, and then runs in the
//! shadow of the active bundle. It waits whenever the slot itself has something to do, and whatever
//! becomes of it, the active bundle does not notice.

use super::{CANDIDATE_LANE, Effect, Event, MAX_FAILED_BOOTS, MAX_TEST_BOOTS, Run, Step, Target, Work};
use edgefleet_shared::{
    desired::{Assigned, ShadowSettings},
    reported::{CandidateReport, DeferReason, Deferred, Installed, Phase, Progress, Refusal, RefusalCode},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// A shadow that ran this long did not bring the agent down: earlier starts are forgotten.
const CALM: Duration = Duration::from_secs(600);

/// A bundle that shall run, or runs, beside the active one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its step `Switching` means being loaded, and then running.
    pub target: Target,
    pub settings: ShadowSettings,
    pub standing: Standing,
    /// Its terminal report says that it runs.
    pub told: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Waits until the slot has nothing else to do, or for its window.
    Held(DeferReason),
    Busy,
    Running,
    Failed(Refusal),
}

impl Candidate {
    fn new(assigned: Assigned, settings: ShadowSettings) -> Self {
        let standing = Standing::Held(DeferReason::Busy);
        Self { target: Target::new(assigned), settings, standing, told: false }
    }

    /// Whether its bundle went through its test on this device.
    pub(super) fn is_tested(&self) -> bool {
        self.target.step == Step::Switching && !matches!(self.standing, Standing::Failed(_))
    }

    /// Whether its bundle is being loaded, or runs.
    pub fn may_run(&self) -> bool {
        self.works() && self.target.step == Step::Switching
    }

    fn works(&self) -> bool {
        matches!(self.standing, Standing::Busy | Standing::Running)
    }

    pub fn phase(&self) -> Phase {
        match &self.standing {
            Standing::Held(_) => Phase::Deferred,
            Standing::Running => Phase::Shadowing,
            Standing::Failed(refusal) => refusal.code.phase(),
            Standing::Busy => match self.target.step {
                Step::Testing if !self.target.test_begun => Phase::Verified,
                Step::Switching => Phase::Testing, // it is loaded
                step => step.phase(),
            },
        }
    }

    /// Without the counts, which the server has.
    pub fn report(&self, last_error: Option<&Refusal>) -> CandidateReport {
        let error = match &self.standing {
            Standing::Failed(refusal) => Some(refusal.clone()),
            Standing::Held(_) | Standing::Busy | Standing::Running => last_error.cloned(),
        };
        CandidateReport {
            installed: self.target.installed(),
            phase: self.phase(),
            progress: self.target.progress().filter(|_| self.phase() == Phase::Fetching),
            error,
            mirrored: 0,
            shed: BTreeMap::new(),
        }
    }
}

impl Target {
    pub(super) fn installed(&self) -> Installed {
        Installed {
            bundle: self.assigned.bundle.clone(),
            digest: self.bundle.as_ref().map(|b| b.digest),
            attempt: self.assigned.attempt.clone(),
        }
    }
    pub(super) fn progress(&self) -> Option<Progress> {
        (self.total_bytes > 0)
            .then_some(Progress { done_bytes: self.done_bytes, total_bytes: self.total_bytes })
    }
}

impl Run<'_> {
    /// After every event: the candidate is the one that is wanted, and works if it may.
    pub(super) fn tend_candidate(&mut self) {
        let wanted = self.next.wanted.as_ref();
        let wanted = wanted.and_then(|w| Some((w.candidate.clone()?, w.shadow.unwrap_or_default())));
        let known = self.next.candidate.as_ref().map(|c| &c.target.assigned);
        if known != wanted.as_ref().map(|(assigned, _)| assigned) {
            self.drop_candidate();
            self.next.candidate =
                wanted.clone().map(|(assigned, settings)| Candidate::new(assigned, settings));
        }
        let free = self.next.active.is_some()
            && self.next.provisional.is_none()
            && !matches!(self.next.work, Work::Busy(_));
        let Some(candidate) = &mut self.next.candidate else { return };
        if let Some((_, settings)) = wanted
            && settings != candidate.settings
        {
            candidate.settings = settings;
            if candidate.works() && candidate.target.step == Step::Switching {
                candidate.standing = Standing::Busy;
                self.enter_candidate(Step::Switching);
                return self.tend_candidate();
            }
        }
        let held = if free { None } else { Some(DeferReason::Busy) };
        // A shadow is no activation: only its download may belong inside the window.
        let by_window = || match candidate.target.step {
            Step::Switching => None,
            step => self.now.gate.holds(step).map(|deferred| deferred.reason),
        };
        let step = candidate.target.step;
        match (&candidate.standing, held.or_else(by_window)) {
            (Standing::Failed(_), _) | (Standing::Busy | Standing::Running, None) => {}
            (Standing::Held(_), None) => self.enter_candidate(step),
            (Standing::Held(known), Some(held)) if *known == held => {}
            (Standing::Held(_), Some(held)) => {
                candidate.standing = Standing::Held(held);
                self.effects.push(Effect::Report);
            }
            (Standing::Busy | Standing::Running, Some(held)) => {
                candidate.standing = Standing::Held(held);
                self.end_candidate_work(step);
                self.effects.push(Effect::Report);
            }
        }
    }

    /// It is no longer wanted.
    pub(super) fn drop_candidate(&mut self) {
        let Some(candidate) = self.next.candidate.take() else { return };
        self.next.last_candidate_error = None;
        if candidate.works() {
            self.end_candidate_work(candidate.target.step);
        }
        self.effects.extend([Effect::Report, Effect::CollectGarbage]);
    }

    fn end_candidate_work(&mut self, step: Step) {
        self.next.lane_ticket += 1;
        self.effects.push(Effect::StopCandidateJob);
        if step == Step::Switching {
            self.effects.push(Effect::StopShadow);
        }
    }

    fn enter_candidate(&mut self, step: Step) {
        self.next.lane_ticket += 1;
        let ticket = CANDIDATE_LANE | self.next.lane_ticket;
        let Some(candidate) = &mut self.next.candidate else { return };
        candidate.standing = Standing::Busy;
        let job = candidate.target.begin(step, ticket);
        let job = match job {
            Effect::Switch { ticket, to } => {
                Effect::Shadow { ticket, bundle: to, settings: candidate.settings }
            }
            job => job,
        };
        self.effects.extend([Effect::Report, job]);
    }

    /// Answers of the candidate's jobs; the ticket is the present one.
    pub(super) fn on_candidate(&mut self, event: Event) {
        let Some(candidate) = &mut self.next.candidate else { return };
        let target = &mut candidate.target;
        match (&candidate.standing, event) {
            (Standing::Failed(_), _) => {}
            (_, Event::StepFailed { refusal, jitter, .. }) => self.candidate_step_failed(refusal, jitter),
            (Standing::Busy, Event::TimerFired { .. }) if target.waiting => {
                let step = target.step;
                self.enter_candidate(step);
            }
            (Standing::Running, Event::TimerFired { .. }) => target.boots = 0,
            (Standing::Busy, event) if !target.waiting => {
                match (target.step, event) {
                    (Step::Release, Event::ReleaseChecked { release, .. }) => {
                        target.checked(release);
                        self.enter_candidate(Step::Manifest);
                    }
                    (Step::Manifest, Event::ManifestReady { .. }) => self.enter_candidate(Step::Blobs),
                    (Step::Blobs, Event::BlobsReady { .. }) => self.enter_candidate(Step::Testing),
                    (Step::Testing, Event::TestBegun { .. }) => {
                        target.test_begun = true;
                        self.effects.push(Effect::Report);
                    }
                    (Step::Testing, Event::Tested { .. }) => self.enter_candidate(Step::Switching),
                    (Step::Switching, Event::Switched { ticket }) => self.candidate_runs(ticket),
                    (_, event) => {
                        if target.counts(&event) {
                            self.effects.push(Effect::Report);
                        }
                    }
                };
            }
            (Standing::Busy | Standing::Running | Standing::Held(_), _) => {}
        }
    }

    fn candidate_runs(&mut self, ticket: u64) {
        let Some(candidate) = &mut self.next.candidate else { return };
        candidate.standing = Standing::Running;
        let (installed, meter) = (candidate.target.installed(), candidate.target.meter);
        let told = std::mem::replace(&mut candidate.told, true);
        self.next.last_candidate_error = None;
        if !told {
            self.terminal(Phase::Shadowing, installed, None, meter);
        }
        self.effects.extend([Effect::Report, Effect::StartTimer { ticket, after: CALM }]);
    }

    fn candidate_step_failed(&mut self, refusal: Refusal, jitter: u32) {
        let Some(candidate) = &mut self.next.candidate else { return };
        let step = candidate.target.step;
        let Some(after) = candidate.target.another_try(&refusal, jitter) else {
            return self.fail_candidate(refusal);
        };
        self.next.last_candidate_error = Some(refusal);
        self.end_candidate_work(step);
        let ticket = CANDIDATE_LANE | self.next.lane_ticket;
        if let Some(candidate) = &mut self.next.candidate
            && candidate.works()
        {
            candidate.standing = Standing::Busy;
            self.effects.extend([Effect::Report, Effect::StartTimer { ticket, after }]);
        }
    }

    /// The candidate misbehaves while it runs.
    pub(super) fn shadow_bad(&mut self, code: RefusalCode, reason: String) {
        if self.next.candidate.as_ref().is_some_and(|c| c.standing == Standing::Running) {
            let refusal = self.refusal(code, reason);
            self.fail_candidate(refusal);
        }
    }

    fn fail_candidate(&mut self, refusal: Refusal) {
        let Some(candidate) = &self.next.candidate else { return };
        let (installed, meter) = (candidate.target.installed(), candidate.target.meter);
        let (step, works) = (candidate.target.step, candidate.works());
        let refusal = self.about(refusal, &installed);
        if works {
            self.end_candidate_work(step);
        }
        if let Some(candidate) = &mut self.next.candidate {
            candidate.standing = Standing::Failed(refusal.clone());
        }
        self.next.last_candidate_error = None;
        self.terminal(refusal.code.phase(), installed, Some(refusal), meter);
        self.effects.extend([Effect::Report, Effect::CollectGarbage]);
    }

    /// Whatever was under way begins anew, unless it keeps bringing the agent down.
    pub(super) fn candidate_started(&mut self) {
        self.next.lane_ticket += 1;
        let Some(candidate) = &mut self.next.candidate else { return };
        if !candidate.works() {
            return;
        }
        candidate.standing = Standing::Held(DeferReason::Busy);
        candidate.target.boots += 1;
        let boots = candidate.target.boots;
        let said = match candidate.target.step {
            Step::Testing if boots > MAX_TEST_BOOTS => (
                RefusalCode::ProbeCrashed,
                format!("{MAX_TEST_BOOTS} starts in a row ended while testing it"),
            ),
            Step::Switching if boots > MAX_FAILED_BOOTS => {
                let said = format!("{MAX_FAILED_BOOTS} starts in a row ended while it ran as a shadow");
                (RefusalCode::CrashLoop, said)
            }
            _ => return,
        };
        let refusal = self.refusal(said.0, said.1);
        self.fail_candidate(refusal);
    }

    pub(super) fn candidate_stopping(&mut self) {
        if let Some(candidate) = self.next.candidate.as_mut().filter(|c| c.works()) {
            candidate.target.boots = candidate.target.boots.saturating_sub(1);
            self.effects.push(Effect::StopCandidateJob);
        }
    }
}

/// What the candidate waits for, as the slot reports it.
pub(super) fn deferred(candidate: &Candidate) -> Option<Deferred> {
    match candidate.standing {
        Standing::Held(reason) => Some(Deferred { reason, until: None }),
        Standing::Busy | Standing::Running | Standing::Failed(_) => None,
    }
}
