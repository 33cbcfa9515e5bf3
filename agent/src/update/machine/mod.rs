//! The life of one slot, decided without clock, file or network.
//!
//! `Idle -> Fetching -> Verified -> Testing -> Switching -> Probation -> Committed`; failures by
//! [`RefusalCode::phase`]. [`step`] is total and deterministic. If anything durable changed, the
//! first effect is [`Effect::Persist`], and nothing after it may happen before it is on disk. A newer
//! desired state replaces whatever is under way; no handshake cancels anything.
//!
//! A candidate has a lane of its own beside ([`Candidate`]): it goes the same way up to its test, and
//! then runs in the active bundle's shadow while the slot has nothing else to do. A maintenance window
//! ([`Gate`]) holds up steps towards another bundle, never the way back.
//!
//! Going back needs no network: `previous` stays on disk and is never overwritten while the active
//! bundle is provisional. Three process starts that did not live to the end of probation send the
//! fourth back to it.

mod candidate;
mod state;
mod target;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_beside;
#[cfg(test)]
mod tests_engines;
mod window;
mod withdrawal;

pub use candidate::{Candidate, Standing};
pub use state::{Bundle, Failed, Meter, Now, Provisional, SlotState, Work};
pub use target::{Step, Target};
pub use window::Gate;

use edgefleet_shared::{
    desired::{Assigned, ShadowSettings, SlotDesired},
    digest::BundleDigest,
    ids::{AttemptId, SlotName},
    reported::{Installed, Phase, Refusal, RefusalCode},
    telemetry::batch::TerminalReport,
    trust::Release,
};
use std::time::Duration;

/// Failed starts after which a provisional bundle, or one being switched to, is given up.
pub const MAX_FAILED_BOOTS: u32 = 3;
/// Process starts that may find a test unfinished: a candidate's test must not keep killing the agent.
const MAX_TEST_BOOTS: u32 = 5;
/// Longest probation a desired state may ask for.
const LONGEST_PROBATION_SECS: u64 = 7 * 86_400;
/// Terminal reports kept while the outbox cannot take them; the oldest goes first.
const MAX_UNACKED: usize = 64;

/// Set in tickets of the candidate's jobs and timers.
pub const CANDIDATE_LANE: u64 = 1 << 63;

/// What happened. `ticket` names the job or timer that answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The process starts; before anything else.
    Started,
    /// The process ends in good order: this run does not count as a failed boot.
    Stopping,
    /// The controller wants this of the slot, in an accepted desired state.
    Desired {
        generation: u64,
        slot: Box<SlotDesired>,
    },
    /// The accepted desired state no longer has the slot.
    Removed {
        generation: u64,
    },
    /// The assigned release is signed by the publisher and allowed here.
    ReleaseChecked {
        ticket: u64,
        release: Release,
    },
    /// The manifest is on disk, matches its digest and is sound.
    ManifestReady {
        ticket: u64,
    },
    Progress {
        ticket: u64,
        done_bytes: u64,
        total_bytes: u64,
    },
    /// Every blob is on disk and verified.
    BlobsReady {
        ticket: u64,
    },
    /// Bytes that came over the network for this attempt.
    Fetched {
        ticket: u64,
        bytes: u64,
    },
    /// Fetching, testing or switching failed. `jitter`: 0 to 1000, spreads retries.
    StepFailed {
        ticket: u64,
        refusal: Refusal,
        jitter: u32,
    },
    /// The test had to wait for its turn and runs now.
    TestBegun {
        ticket: u64,
    },
    Tested {
        ticket: u64,
    },
    Switched {
        ticket: u64,
    },
    /// The provisional bundle misbehaves.
    HealthBad {
        code: RefusalCode,
        reason: String,
    },
    /// The candidate misbehaves as a shadow.
    ShadowBad {
        code: RefusalCode,
        reason: String,
    },
    /// Time has passed, or the clock jumped: the window is looked at again.
    WindowLooked,
    /// A bundle that [`Effect::Activate`] named does not run.
    ActivateFailed {
        refusal: Refusal,
    },
    /// Answers of [`Effect::Withdraw`].
    Withdrawn {
        ticket: u64,
    },
    StillNeeded {
        ticket: u64,
        refusal: Refusal,
    },
    TimerFired {
        ticket: u64,
    },
    /// The outbox has the terminal report of this attempt.
    Acked {
        attempt: AttemptId,
        phase: Phase,
    },
}

/// What the shell does, in order. A job of a slot replaces the one before.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make the state durable before going on.
    Persist,
    /// End the slot's running job and timer, if any.
    StopJob,
    /// The same of its candidate.
    StopCandidateJob,
    FetchRelease {
        ticket: u64,
        assigned: Assigned,
    },
    FetchManifest {
        ticket: u64,
        bundle: Bundle,
    },
    FetchBlobs {
        ticket: u64,
        bundle: Bundle,
    },
    RunTest {
        ticket: u64,
        bundle: Bundle,
    },
    /// Swap the served bundle; answers with `Switched` or `StepFailed`.
    Switch {
        ticket: u64,
        to: Bundle,
    },
    /// Serve this bundle from disk, at once: starting up, going back, or the same one under a new
    /// attempt. Idempotent.
    Activate(Bundle),
    /// Serve nothing in this slot.
    Deactivate,
    /// The same, unless something that serves runs on nothing but this slot's engine; answers with `Withdrawn`
    /// or `StillNeeded`.
    Withdraw {
        ticket: u64,
    },
    /// Run this bundle in the shadow of the active one; answers with `Switched` or `StepFailed`.
    /// Idempotent; the same bundle with other settings costs no load.
    Shadow {
        ticket: u64,
        bundle: Bundle,
        settings: ShadowSettings,
    },
    /// No shadow from now on.
    StopShadow,
    StartTimer {
        ticket: u64,
        after: Duration,
    },
    Terminal(TerminalReport),
    Report,
    CollectGarbage,
}

/// One step of one slot.
pub fn step(state: &SlotState, name: &SlotName, event: Event, now: Now) -> (SlotState, Vec<Effect>) {
    let mut run = Run { next: state.clone(), name, now, effects: vec![] };
    run.count_time(matches!(event, Event::Started));
    run.on(event);
    run.tend_candidate();
    let Run { next, mut effects, .. } = run;
    if durable(&next) != durable(state) {
        effects.insert(0, Effect::Persist);
    }
    (next, effects)
}

/// The state without what may be lost in a power cut: meters, progress, tickets of dead jobs.
fn durable(state: &SlotState) -> SlotState {
    let mut bare = SlotState { ticket: 0, lane_ticket: 0, mark_ms: 0, ..state.clone() };
    bare.last_candidate_error = None;
    if let Some(provisional) = &mut bare.provisional {
        provisional.meter = Meter::default();
    }
    let target = if let Work::Busy(target) = &mut bare.work { Some(target) } else { None };
    let candidate = bare.candidate.as_mut().map(|candidate| &mut candidate.target);
    for target in target.into_iter().chain(candidate) {
        target.meter = Meter::default();
        (target.done_bytes, target.total_bytes, target.tries) = (0, 0, 0);
        target.test_begun = false;
    }
    bare
}

struct Run<'a> {
    next: SlotState,
    name: &'a SlotName,
    now: Now,
    effects: Vec<Effect>,
}

impl Run<'_> {
    fn count_time(&mut self, started: bool) {
        let passed = self.now.steady_ms.saturating_sub(self.next.mark_ms);
        self.next.mark_ms = self.now.steady_ms;
        if started {
            return; // the steady clock began anew
        }
        if let Some(provisional) = &mut self.next.provisional {
            provisional.meter.spent_ms += passed;
        }
        if let Work::Busy(target) = &mut self.next.work {
            target.meter.spent_ms += passed;
        }
        if let Some(candidate) = self.next.candidate.as_mut().filter(|c| !c.told) {
            candidate.target.meter.spent_ms += passed;
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Started => self.started(),
            Event::Stopping => self.stopping(),
            Event::Desired { generation, slot } => self.desired(generation, *slot),
            Event::Removed { generation } => self.removed(generation),
            Event::Acked { attempt, phase } => self.acked(&attempt, phase),
            Event::HealthBad { code, reason } => {
                if self.next.provisional.is_some() {
                    self.go_back(code, reason);
                }
            }
            Event::ShadowBad { code, reason } => self.shadow_bad(code, reason),
            Event::WindowLooked => self.window_looked(),
            Event::ActivateFailed { refusal } => self.activate_failed(refusal),
            Event::ReleaseChecked { ticket, .. }
            | Event::ManifestReady { ticket }
            | Event::Progress { ticket, .. }
            | Event::BlobsReady { ticket }
            | Event::Fetched { ticket, .. }
            | Event::StepFailed { ticket, .. }
            | Event::TestBegun { ticket }
            | Event::Tested { ticket }
            | Event::Switched { ticket }
            | Event::TimerFired { ticket }
                if ticket & CANDIDATE_LANE != 0 =>
            {
                if ticket == CANDIDATE_LANE | self.next.lane_ticket {
                    self.on_candidate(event);
                }
            }
            Event::ReleaseChecked { ticket, .. }
            | Event::ManifestReady { ticket }
            | Event::Progress { ticket, .. }
            | Event::BlobsReady { ticket }
            | Event::Fetched { ticket, .. }
            | Event::StepFailed { ticket, .. }
            | Event::TestBegun { ticket }
            | Event::Tested { ticket }
            | Event::Switched { ticket }
            | Event::TimerFired { ticket }
                if ticket != self.next.ticket => {} // of something that was replaced
            Event::TimerFired { .. } => self.timer_fired(),
            Event::Withdrawn { ticket } => self.withdrawn(ticket),
            Event::StillNeeded { ticket, refusal } => self.still_needed(ticket, refusal),
            event => self.on_target(event),
        }
    }

    /// Answers of jobs: each fits one step, at another it is late and ignored.
    fn on_target(&mut self, event: Event) {
        let Work::Busy(target) = &mut self.next.work else { return };
        // Nothing runs that could answer; only the shell itself may end it.
        if target.waiting && !matches!(event, Event::StepFailed { .. }) {
            return;
        }
        match (target.step, event) {
            (Step::Release, Event::ReleaseChecked { release, .. }) => {
                let tested = target.tested.take();
                let bundle = target.checked(release);
                self.known(bundle, tested);
            }
            (Step::Manifest, Event::ManifestReady { .. }) => self.enter(Step::Blobs),
            (Step::Blobs, Event::BlobsReady { .. }) => self.enter(Step::Testing),
            (Step::Testing, Event::TestBegun { .. }) => {
                target.test_begun = true;
                self.effects.push(Effect::Report);
            }
            (Step::Testing, Event::Tested { .. }) => self.enter(Step::Switching),
            (Step::Switching, Event::Switched { .. }) => self.switched(),
            (_, Event::StepFailed { refusal, jitter, .. }) => self.step_failed(refusal, jitter),
            (_, event) => {
                if target.counts(&event) {
                    self.effects.push(Effect::Report);
                }
            }
        }
    }

    /// The release names the bundle: perhaps it is here already, or went through its test as the
    /// candidate. An engine pack is tested each time, going back too: what serves by now may run on the newer alone.
    fn known(&mut self, bundle: Bundle, tested: Option<BundleDigest>) {
        let same = |here: &Option<Bundle>| here.as_ref().is_some_and(|h| h.digest == bundle.digest);
        if same(&self.next.active) {
            // The same bytes under a newly signed release.
            self.settle(bundle);
        } else if !self.name.is_engine() && (same(&self.next.previous) || tested == Some(bundle.digest)) {
            self.enter(Step::Switching);
        } else {
            self.enter(Step::Manifest);
        }
    }

    fn desired(&mut self, generation: u64, slot: SlotDesired) {
        let same = self.next.wanted.as_ref() == Some(&slot);
        if generation < self.next.generation || (generation == self.next.generation && same) {
            return;
        }
        self.next.generation = generation;
        self.wanted_again();
        self.next.wanted = Some(slot);
        self.reconcile();
        self.effects.push(Effect::Report);
    }

    /// Moves towards `wanted` from wherever the slot is.
    fn reconcile(&mut self) {
        let Some(wanted) = self.next.wanted.as_ref().map(|w| w.active.clone()) else { return };
        match &mut self.next.work {
            // A swap is under way in the server: judged again when it has answered.
            Work::Busy(target) if target.step == Step::Switching && !target.waiting => return,
            Work::Busy(target) if target.assigned.release == wanted.release => {
                let again = target.assigned.attempt != wanted.attempt && target.waiting;
                let deferred = target.deferred.is_some();
                if let Some(bundle) = &mut target.bundle {
                    bundle.attempt = wanted.attempt.clone();
                }
                target.assigned = wanted;
                if again {
                    // A new attempt does not sit out the pauses of the one before.
                    (target.tries, target.corrupt, target.switch_tries) = (0, 0, 0);
                    let step = target.step;
                    self.effects.push(Effect::StopJob);
                    self.enter(step);
                } else if deferred {
                    self.window_looked(); // another window may have come with it
                }
                return;
            }
            Work::Failed(f) if f.release == wanted.release && f.target.attempt == wanted.attempt => return,
            Work::Busy(_) | Work::Settled | Work::Failed(_) => {}
        }
        if let Some(active) = self.next.active.clone().filter(|a| a.release == wanted.release) {
            if self.next.work != Work::Settled || active.attempt != wanted.attempt {
                self.settle(Bundle { attempt: wanted.attempt, ..active });
            }
            return;
        }
        let mut target = Target::new(wanted);
        if let Some(candidate) = &self.next.candidate
            && candidate.is_tested()
            && candidate.target.assigned.release == target.assigned.release
        {
            // Its files are here and stay; its release is checked once more, by the trust of today.
            target.tested = candidate.target.bundle.as_ref().map(|b| b.digest);
            let attempt = target.assigned.attempt.clone();
            target.bundle = candidate.target.bundle.clone().map(|b| Bundle { attempt, ..b });
        }
        self.next.work = Work::Busy(target);
        self.next.last_error = None;
        self.effects.push(Effect::StopJob);
        self.enter(Step::Release);
    }

    /// What is wanted is what is active, perhaps under another attempt or release.
    fn settle(&mut self, active: Bundle) {
        let known = self.next.active.as_ref().is_some_and(|a| a.attempt == active.attempt);
        if !known {
            // The server names the attempt in what it measures.
            self.effects.push(Effect::Activate(active.clone()));
        }
        self.next.active = Some(active);
        let meter = match std::mem::take(&mut self.next.work) {
            Work::Busy(target) => target.meter,
            Work::Settled | Work::Failed(_) => Meter::default(),
        };
        self.next.ticket += 1;
        self.next.last_error = None;
        self.effects.push(Effect::StopJob);
        if self.next.provisional.is_some() {
            self.start_probation_timer();
        } else if !known {
            self.committed(meter);
        }
        self.effects.extend([Effect::Report, Effect::CollectGarbage]);
    }

    /// Reports the active bundle's attempt as done.
    fn committed(&mut self, meter: Meter) {
        if let Some(active) = &self.next.active {
            let target = active.installed();
            self.terminal(Phase::Committed, target, None, meter);
        }
    }

    /// Starts `step` of the present target, if the window lets it: the marker is durable before the
    /// work begins.
    fn enter(&mut self, step: Step) {
        let held = self.now.gate.holds(step);
        let Work::Busy(target) = &mut self.next.work else { return };
        self.next.ticket += 1;
        let job = target.begin(step, self.next.ticket);
        if let Some(held) = held {
            (target.waiting, target.deferred) = (true, Some(held));
            self.effects.extend([Effect::StopJob, Effect::Report]);
        } else {
            self.effects.extend([Effect::Report, job]);
        }
    }

    fn switched(&mut self) {
        let Work::Busy(target) = std::mem::take(&mut self.next.work) else { return };
        let Some(bundle) = target.bundle else { return };
        let former = self.next.active.replace(bundle);
        let older = match self.next.provisional.take() {
            // The former one was never committed: `previous` stays the last good one.
            Some(unproven) => unproven.older,
            None => std::mem::replace(&mut self.next.previous, former),
        };
        // Assigned anew, `previous` stays what it is, the last good one, until the new attempt is committed: if that
        // one or the next fails, there is something to go back to.
        let older = older.filter(|o| self.next.previous.as_ref().is_none_or(|p| p.digest != o.digest));
        let secs = self.next.wanted.as_ref().map_or(60, |w| w.probation_secs);
        self.next.provisional = Some(Provisional {
            boots: 0,
            probation_secs: secs.min(LONGEST_PROBATION_SECS),
            generation: self.next.generation,
            meter: target.meter,
            older,
        });
        self.next.ticket += 1;
        self.next.last_error = None;
        self.effects.push(Effect::Report);
        self.start_probation_timer();
        self.reconcile(); // a newer desired state may have come while the server swapped
    }

    fn start_probation_timer(&mut self) {
        if let Some(provisional) = &self.next.provisional {
            let after = Duration::from_secs(provisional.probation_secs);
            self.effects.push(Effect::StartTimer { ticket: self.next.ticket, after });
        }
    }

    fn timer_fired(&mut self) {
        match &self.next.work {
            Work::Busy(target) if target.waiting => {
                let step = target.step;
                self.enter(step);
            }
            Work::Busy(_) => {}
            Work::Settled | Work::Failed(_) => {
                if let Some(provisional) = self.next.provisional.take() {
                    let digest = |bundle: &Option<Bundle>| bundle.as_ref().map(|bundle| bundle.digest);
                    if digest(&self.next.previous) == digest(&self.next.active) {
                        self.next.previous = provisional.older;
                    }
                    self.committed(provisional.meter);
                    self.effects.extend([Effect::Report, Effect::CollectGarbage]);
                }
                self.ask_again();
            }
        }
    }

    fn step_failed(&mut self, refusal: Refusal, jitter: u32) {
        let Work::Busy(target) = &mut self.next.work else { return };
        let switching = target.step == Step::Switching;
        let Some(after) = target.another_try(&refusal, jitter) else {
            return self.fail(refusal, switching);
        };
        self.next.ticket += 1;
        let ticket = self.next.ticket;
        self.next.last_error = Some(refusal);
        self.effects.extend([Effect::Report, Effect::StartTimer { ticket, after }]);
        if switching {
            self.serve_active();
            self.reconcile();
        }
    }

    /// Ends the attempt that is under way.
    ///
    /// `switching`: the server may have been touched.
    fn fail(&mut self, refusal: Refusal, switching: bool) {
        let Work::Busy(target) = std::mem::take(&mut self.next.work) else { return };
        let installed = target.installed();
        let refusal = self.about(refusal, &installed);
        self.next.ticket += 1;
        self.next.last_error = None;
        self.next.work = Work::Failed(Failed {
            target: installed.clone(),
            release: target.assigned.release,
            refusal: refusal.clone(),
        });
        self.effects.push(Effect::StopJob);
        if switching {
            self.serve_active();
        }
        self.terminal(refusal.code.phase(), installed, Some(refusal), target.meter);
        self.start_probation_timer(); // of the bundle that goes on serving, if it is provisional
        self.effects.extend([Effect::Report, Effect::CollectGarbage]);
        if switching {
            self.reconcile();
        }
    }

    /// After a swap that failed or may have been cut: whatever the server holds, the marker decides.
    fn serve_active(&mut self) {
        self.effects.push(match &self.next.active {
            Some(active) => Effect::Activate(active.clone()),
            None => Effect::Deactivate,
        });
    }

    /// The provisional bundle failed: `previous` serves again, without the network.
    fn go_back(&mut self, code: RefusalCode, message: String) {
        let Some(provisional) = self.next.provisional.take() else { return };
        let Some(bad) = self.next.active.take() else { return };
        self.next.active = self.next.previous.take();
        self.next.previous = provisional.older;
        let installed = bad.installed();
        let refusal = self.refusal(code, message);
        let refusal = self.about(refusal, &installed);
        self.serve_active();
        self.terminal(code.phase(), installed.clone(), Some(refusal.clone()), provisional.meter);
        // Work on a newer target goes on; otherwise the failure is what the slot is left with.
        if !matches!(self.next.work, Work::Busy(_)) {
            self.next.ticket += 1;
            self.next.work = Work::Failed(Failed { target: installed, release: bad.release, refusal });
            self.effects.push(Effect::StopJob);
        }
        self.effects.extend([Effect::Report, Effect::CollectGarbage]);
    }

    fn activate_failed(&mut self, refusal: Refusal) {
        if self.next.provisional.is_some() {
            let message = refusal.message;
            return self.go_back(RefusalCode::Unhealthy, message);
        }
        self.next.last_error = Some(refusal);
        // A committed bundle that no longer loads: its files are damaged, or the device is short of
        // something. The one before serves meanwhile; what is wanted is verified and tried anew.
        self.next.active = self.next.previous.take();
        self.serve_active();
        if matches!(self.next.work, Work::Settled) {
            let error = self.next.last_error.take();
            self.reconcile();
            self.next.last_error = error;
        }
        self.effects.push(Effect::Report);
    }

    fn started(&mut self) {
        self.next.ticket += 1;
        let unacked = self.next.unacked.clone();
        if let Some(provisional) = &mut self.next.provisional {
            if provisional.boots >= MAX_FAILED_BOOTS {
                let said =
                    format!("{} starts in a row did not live to the end of probation", provisional.boots);
                self.go_back(RefusalCode::CrashLoop, said);
            } else {
                provisional.boots += 1;
                self.serve_if_any();
            }
        } else {
            self.serve_if_any();
        }
        self.effects.extend(unacked.into_iter().map(Effect::Terminal));
        match &mut self.next.work {
            Work::Busy(target) => {
                // Waiting for its window it did nothing that could have brought the agent down.
                target.boots += u32::from(target.deferred.is_none());
                let (step, boots) = (target.step, target.boots);
                if step == Step::Switching && boots > MAX_FAILED_BOOTS {
                    let said = format!("{MAX_FAILED_BOOTS} starts in a row ended while switching to it");
                    let refusal = self.refusal(RefusalCode::CrashLoop, said);
                    self.fail(refusal, true);
                } else if step == Step::Testing && boots > MAX_TEST_BOOTS {
                    let said = format!("{MAX_TEST_BOOTS} starts in a row ended while testing it");
                    let refusal = self.refusal(RefusalCode::ProbeCrashed, said);
                    self.fail(refusal, false);
                } else {
                    self.enter(step);
                }
            }
            Work::Settled | Work::Failed(_) => {
                self.start_probation_timer();
                self.ask_later();
                self.effects.push(Effect::Report);
            }
        }
        self.candidate_started();
        self.effects.push(Effect::CollectGarbage);
    }

    fn serve_if_any(&mut self) {
        if let Some(active) = &self.next.active {
            self.effects.push(Effect::Activate(active.clone()));
        }
    }

    fn stopping(&mut self) {
        if let Some(provisional) = &mut self.next.provisional {
            provisional.boots = provisional.boots.saturating_sub(1);
        }
        if let Work::Busy(target) = &mut self.next.work {
            target.boots = target.boots.saturating_sub(1);
        }
        self.effects.push(Effect::StopJob);
        self.candidate_stopping();
    }

    fn acked(&mut self, attempt: &AttemptId, phase: Phase) {
        self.next.unacked.retain(|r| r.target.attempt != *attempt || r.phase != phase);
    }

    fn terminal(&mut self, phase: Phase, target: Installed, refusal: Option<Refusal>, meter: Meter) {
        let report = TerminalReport {
            slot: self.name.clone(),
            generation: self.next.generation,
            phase,
            target,
            refusal,
            took_ms: meter.spent_ms,
            fetched_bytes: meter.fetched_bytes,
            at: self.now.wall,
        };
        if self.next.unacked.len() >= MAX_UNACKED {
            self.next.unacked.remove(0);
        }
        self.next.unacked.push(report.clone());
        self.effects.push(Effect::Terminal(report));
    }

    fn refusal(&self, code: RefusalCode, message: String) -> Refusal {
        let at = self.now.wall;
        Refusal { code, retry: code.retry(), message, subject: None, attempt: None, generation: None, at }
    }

    fn about(&self, refusal: Refusal, target: &Installed) -> Refusal {
        Refusal {
            subject: refusal.subject.or_else(|| Some(target.bundle.to_string())),
            attempt: Some(target.attempt.clone()),
            generation: Some(self.next.generation),
            ..refusal
        }
    }
}
