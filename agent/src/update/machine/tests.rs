use super::*;
use edgefleet_shared::{
    desired::Assigned,
    digest::{BundleDigest, EnvelopeDigest},
    ids::SlotName,
    maintenance::Download,
    reported::{DeferReason, Deferred, Phase},
    time::Timestamp,
};
use proptest::prelude::*;

pub(super) fn slot_name() -> SlotName {
    "digits".parse().unwrap()
}
pub(super) fn engine_slot() -> SlotName {
    "engine/onnxruntime".parse().unwrap()
}
pub(super) fn assigned(counter: u64, attempt: u32) -> Assigned {
    Assigned {
        bundle: format!("digits@{counter}").parse().unwrap(),
        release: EnvelopeDigest::of(&counter.to_le_bytes()),
        release_size: 100,
        attempt: AttemptId { rollout: "r".parse().unwrap(), number: attempt },
    }
}
pub(super) fn wants(counter: u64, attempt: u32) -> SlotDesired {
    SlotDesired {
        active: assigned(counter, attempt),
        candidate: None,
        probation_secs: 60,
        slower_percent: None,
        thresholds: vec![],
        shadow: None,
        window: None,
    }
}
pub(super) fn release(counter: u64) -> Release {
    Release {
        bundle: format!("digits@{counter}").parse().unwrap(),
        manifest: BundleDigest::of(&counter.to_le_bytes()),
        length: 10,
        hardware: vec![],
        issued: Timestamp::EPOCH,
    }
}
pub(super) fn refusal(code: RefusalCode) -> Refusal {
    Refusal {
        code,
        retry: code.retry(),
        message: "because".into(),
        subject: None,
        attempt: None,
        generation: None,
        at: Timestamp::EPOCH,
    }
}

/// A slot with a steady clock that moves a second per step.
pub(super) struct Slot {
    name: SlotName,
    pub(super) state: SlotState,
    pub(super) gate: Gate,
    clock: u64,
    pub(super) effects: Vec<Effect>,
}
impl Slot {
    pub(super) fn new() -> Self {
        Self::named(slot_name())
    }
    pub(super) fn named(name: SlotName) -> Self {
        Self { name, state: SlotState::default(), gate: Gate::Open, clock: 0, effects: vec![] }
    }
    pub(super) fn on(&mut self, event: Event) -> &mut Self {
        self.clock += 1_000;
        let now = Now { wall: Timestamp::from_millis(self.clock), steady_ms: self.clock, gate: self.gate };
        let (next, effects) = step(&self.state, &self.name, event, now);
        self.state = next;
        self.effects = effects;
        self
    }
    pub(super) fn ticket(&self) -> u64 {
        self.state.ticket
    }
    pub(super) fn desire(&mut self, counter: u64, attempt: u32) -> &mut Self {
        let generation = self.state.generation + 1;
        self.on(Event::Desired { generation, slot: Box::new(wants(counter, attempt)) })
    }
    pub(super) fn fetched(&mut self, counter: u64) -> &mut Self {
        self.on(Event::ReleaseChecked { ticket: self.ticket(), release: release(counter) });
        self.on(Event::ManifestReady { ticket: self.ticket() });
        self.on(Event::BlobsReady { ticket: self.ticket() })
    }
    pub(super) fn provisional(&mut self, counter: u64, attempt: u32) -> &mut Self {
        self.desire(counter, attempt).fetched(counter);
        self.on(Event::Tested { ticket: self.ticket() });
        self.on(Event::Switched { ticket: self.ticket() })
    }
    pub(super) fn committed(&mut self, counter: u64, attempt: u32) -> &mut Self {
        self.provisional(counter, attempt);
        self.on(Event::TimerFired { ticket: self.ticket() })
    }
    pub(super) fn failed(&mut self, code: RefusalCode) -> &mut Self {
        self.on(Event::StepFailed { ticket: self.ticket(), refusal: refusal(code), jitter: 0 })
    }
    pub(super) fn active(&self) -> Option<u64> {
        self.state.active.as_ref().map(|b| b.name.counter)
    }
    pub(super) fn previous(&self) -> Option<u64> {
        self.state.previous.as_ref().map(|b| b.name.counter)
    }
    pub(super) fn terminals(&self) -> Vec<(Phase, u64)> {
        self.state.unacked.iter().map(|r| (r.phase, r.target.bundle.counter)).collect()
    }
    pub(super) fn downloads(&self) -> bool {
        self.effects.iter().any(|e| matches!(e, Effect::FetchManifest { .. } | Effect::FetchBlobs { .. }))
    }
    pub(super) fn tests(&self) -> bool {
        self.effects.iter().any(|e| matches!(e, Effect::RunTest { .. }))
    }
}

#[test]
fn a_bundle_goes_the_straight_way_to_committed() {
    let mut slot = Slot::new();
    let mut phases = vec![slot.state.phase()];
    slot.desire(1, 1);
    phases.push(slot.state.phase());
    slot.fetched(1);
    phases.push(slot.state.phase());
    slot.on(Event::TestBegun { ticket: slot.ticket() });
    assert!(!slot.effects.contains(&Effect::Persist), "a test begins anew after a restart");
    phases.push(slot.state.phase());
    slot.on(Event::Tested { ticket: slot.ticket() });
    phases.push(slot.state.phase());
    slot.on(Event::Switched { ticket: slot.ticket() });
    phases.push(slot.state.phase());
    slot.on(Event::TimerFired { ticket: slot.ticket() });
    phases.push(slot.state.phase());
    use Phase::*;
    assert_eq!(phases, [Idle, Fetching, Verified, Testing, Switching, Probation, Committed]);
    assert_eq!(slot.terminals(), [(Committed, 1)]);
    let took = slot.state.unacked[0].took_ms;
    assert_eq!(took, 7_000, "seven steps of a second after the desired state was seen");
}

#[test]
fn going_back_to_previous_downloads_and_tests_nothing() {
    let mut slot = Slot::new();
    slot.committed(1, 1).committed(2, 2);
    assert_eq!((slot.active(), slot.previous()), (Some(2), Some(1)));
    slot.desire(1, 3);
    slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(1) });
    assert!(!slot.downloads() && !slot.tests());
    assert_eq!(slot.state.phase(), Phase::Switching);
    slot.on(Event::Switched { ticket: slot.ticket() });
    assert_eq!((slot.active(), slot.previous()), (Some(1), Some(2)));
}

#[test]
fn a_bad_bundle_goes_back_by_itself_and_is_not_tried_again() {
    let mut slot = Slot::new();
    slot.committed(1, 1).committed(2, 2).provisional(3, 3);
    assert_eq!(slot.previous(), Some(2));
    slot.on(Event::HealthBad { code: RefusalCode::Unhealthy, reason: "9 of 10 requests failed".into() });
    assert_eq!((slot.active(), slot.previous()), (Some(2), Some(1)), "and the one before is back too");
    assert_eq!(slot.state.phase(), Phase::RolledBackLocal);
    assert_eq!(slot.terminals().last(), Some(&(Phase::RolledBackLocal, 3)));
    // The same wish again, after a reboot, in a new generation for another slot: no work.
    slot.on(Event::Started);
    assert!(matches!(slot.effects[..], [Effect::Activate(_), ..]), "{:?}", slot.effects);
    slot.desire(3, 3);
    assert_eq!(slot.state.phase(), Phase::RolledBackLocal);
    // A new attempt is a new try.
    slot.desire(3, 4);
    assert_eq!(slot.state.phase(), Phase::Fetching);
}

#[test]
fn three_failed_boots_restore_previous_without_the_network() {
    let mut slot = Slot::new();
    slot.committed(1, 1).provisional(2, 2);
    for boot in 1..=3 {
        slot.on(Event::Started);
        assert_eq!(slot.active(), Some(2), "boot {boot}");
    }
    slot.on(Event::Started);
    assert_eq!(slot.active(), Some(1));
    assert_eq!(slot.state.phase(), Phase::RolledBackLocal);
    assert!(matches!(&slot.effects[..2], [Effect::Persist, Effect::Activate(b)] if b.name.counter == 1));
    assert_eq!(slot.state.unacked.last().unwrap().refusal.as_ref().unwrap().code, RefusalCode::CrashLoop);
}

/// Found by fifty kills: each rollout took its turn before the one before had ended, one of them brought back the
/// bundle that was committed, and after the next crash loop nothing was left to serve.
#[test]
fn the_last_committed_bundle_stays_to_go_back_to_while_it_is_tried_anew() {
    for crashing in [1, 3] {
        let mut slot = Slot::new();
        slot.committed(1, 1).provisional(2, 2);
        slot.desire(1, 3);
        slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(1) });
        slot.on(Event::Switched { ticket: slot.ticket() });
        assert_eq!((slot.active(), slot.state.phase()), (Some(1), Phase::Probation));
        if crashing == 3 {
            slot.provisional(3, 4);
        }
        for _ in 0..4 {
            slot.on(Event::Started);
        }
        assert_eq!((slot.active(), slot.state.phase()), (Some(1), Phase::RolledBackLocal), "{crashing}");
        assert!(slot.state.provisional.is_none());
    }
    // Once it is committed anew, the pair is two bundles again.
    let mut slot = Slot::new();
    slot.committed(1, 1).committed(2, 2).provisional(3, 3);
    slot.desire(2, 4);
    slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(2) });
    slot.on(Event::Switched { ticket: slot.ticket() });
    slot.on(Event::TimerFired { ticket: slot.ticket() });
    assert_eq!((slot.active(), slot.previous(), slot.state.phase()), (Some(2), Some(1), Phase::Committed));
}

#[test]
fn orderly_restarts_are_no_failed_boots() {
    let mut slot = Slot::new();
    slot.committed(1, 1).provisional(2, 2);
    for _ in 0..20 {
        slot.on(Event::Started).on(Event::Stopping);
    }
    assert_eq!((slot.active(), slot.state.phase()), (Some(2), Phase::Probation));
}

#[test]
fn three_boots_that_ended_in_the_switch_give_it_up() {
    let mut slot = Slot::new();
    slot.committed(1, 1).desire(2, 2).fetched(2);
    slot.on(Event::Tested { ticket: slot.ticket() });
    for _ in 0..3 {
        slot.on(Event::Started);
        assert!(slot.effects.iter().any(|e| matches!(e, Effect::Switch { .. })));
    }
    slot.on(Event::Started);
    assert_eq!((slot.active(), slot.state.phase()), (Some(1), Phase::RolledBackLocal));
}

#[test]
fn a_newer_wish_replaces_whatever_is_under_way() {
    let mut slot = Slot::new();
    slot.committed(1, 1).desire(2, 2);
    let late = slot.ticket();
    slot.desire(3, 3);
    assert!(slot.effects.contains(&Effect::StopJob));
    slot.on(Event::ReleaseChecked { ticket: late, release: release(2) });
    assert_eq!(slot.effects, [], "an answer to the replaced work");
    slot.fetched(3);
    // Back to what runs: cancel is simply another generation.
    slot.desire(1, 1);
    assert_eq!((slot.state.phase(), slot.active()), (Phase::Committed, Some(1)));
    assert_eq!(slot.terminals(), [(Phase::Committed, 1)], "its attempt was reported before");
}

#[test]
fn a_wish_during_the_swap_waits_for_its_end() {
    let mut slot = Slot::new();
    slot.committed(1, 1).desire(2, 2).fetched(2);
    slot.on(Event::Tested { ticket: slot.ticket() });
    slot.desire(1, 1);
    assert_eq!(slot.state.phase(), Phase::Switching, "the server may have swapped already");
    slot.on(Event::Switched { ticket: slot.ticket() });
    assert_eq!((slot.active(), slot.state.phase()), (Some(2), Phase::Fetching));
    slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(1) });
    slot.on(Event::Switched { ticket: slot.ticket() });
    assert_eq!((slot.active(), slot.previous()), (Some(1), Some(1)), "2 was never committed");
    slot.on(Event::TimerFired { ticket: slot.ticket() });
    assert_eq!((slot.active(), slot.previous()), (Some(1), None));
}

#[test]
fn previous_is_never_overwritten_by_a_bundle_that_was_not_committed() {
    let mut slot = Slot::new();
    slot.committed(1, 1).provisional(2, 2).provisional(3, 3);
    assert_eq!((slot.active(), slot.previous()), (Some(3), Some(1)));
    slot.on(Event::HealthBad { code: RefusalCode::Unhealthy, reason: "bad".into() });
    assert_eq!(slot.active(), Some(1));
}

#[test]
fn the_same_bundle_again_adopts_the_attempt_and_does_no_work() {
    let mut slot = Slot::new();
    slot.committed(1, 1).desire(1, 2);
    assert_eq!(slot.state.phase(), Phase::Committed);
    assert!(!slot.downloads());
    assert_eq!(slot.state.active.as_ref().unwrap().attempt.number, 2);
    assert_eq!(slot.terminals().len(), 2, "the new attempt is over too");
    slot.desire(1, 2);
    assert_eq!(slot.terminals().len(), 2, "once");
}

#[test]
fn retries_are_bounded_by_their_kind() {
    // code, retries before it ends, phase it ends in
    for (code, retries, phase) in [
        (RefusalCode::TransferTimeout, 10, Phase::DownloadFailed),
        (RefusalCode::DiskFull, 10, Phase::DownloadFailed),
        (RefusalCode::DigestMismatch, 3, Phase::DownloadFailed),
        (RefusalCode::SignatureInvalid, 0, Phase::VerifyFailed),
        (RefusalCode::Expired, 0, Phase::VerifyFailed),
        (RefusalCode::WrongHardware, 0, Phase::Incompatible),
    ] {
        let mut slot = Slot::new();
        slot.committed(1, 1).desire(2, 2);
        let mut seen = 0;
        let mut pauses = vec![];
        while slot.failed(code).state.phase() == Phase::Fetching {
            pauses.extend(slot.effects.iter().filter_map(|e| match e {
                Effect::StartTimer { after, .. } => Some(after.as_secs()),
                _ => None,
            }));
            slot.on(Event::TimerFired { ticket: slot.ticket() });
            seen += 1;
        }
        assert_eq!((seen, slot.state.phase()), (retries, phase), "{code}");
        assert_eq!(slot.active(), Some(1), "{code}");
        if retries == 10 {
            assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]);
        }
    }
}

#[test]
fn progress_gives_new_tries_for_the_network_but_not_for_damage() {
    let mut slot = Slot::new();
    slot.desire(1, 1);
    slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(1) });
    slot.on(Event::ManifestReady { ticket: slot.ticket() });
    for round in 1..100 {
        slot.on(Event::Progress { ticket: slot.ticket(), done_bytes: round, total_bytes: 1_000 });
        slot.failed(RefusalCode::TransferTimeout);
        slot.on(Event::TimerFired { ticket: slot.ticket() });
        assert_eq!(slot.state.phase(), Phase::Fetching);
    }
    for round in 100..104 {
        slot.on(Event::Progress { ticket: slot.ticket(), done_bytes: round, total_bytes: 1_000 });
        slot.failed(RefusalCode::DigestMismatch);
        slot.on(Event::TimerFired { ticket: slot.ticket() });
    }
    assert_eq!(slot.state.phase(), Phase::DownloadFailed);
}

#[test]
fn terminal_reports_stay_until_acknowledged_and_are_repeated_at_every_start() {
    let mut slot = Slot::new();
    slot.committed(1, 1);
    for _ in 0..3 {
        slot.on(Event::Started);
        assert_eq!(slot.effects.iter().filter(|e| matches!(e, Effect::Terminal(_))).count(), 1);
    }
    let attempt = assigned(1, 1).attempt;
    slot.on(Event::Acked { attempt, phase: Phase::Committed });
    slot.on(Event::Started);
    assert!(!slot.effects.iter().any(|e| matches!(e, Effect::Terminal(_))));
}

#[test]
fn a_committed_bundle_that_no_longer_loads_leaves_the_one_before_serving() {
    let mut slot = Slot::new();
    slot.committed(1, 1).committed(2, 2).on(Event::Started);
    slot.on(Event::ActivateFailed { refusal: refusal(RefusalCode::ActivationFailed) });
    assert_eq!(slot.active(), Some(1));
    assert_eq!(slot.state.phase(), Phase::Fetching, "and what is wanted is verified and tried anew");
}

#[test]
fn a_removed_slot_serves_nothing_and_comes_back_when_wanted() {
    let mut slot = Slot::new();
    slot.committed(1, 1);
    slot.on(Event::Removed { generation: 9 });
    assert!(slot.effects.contains(&Effect::Deactivate));
    assert_eq!((slot.active(), slot.state.phase()), (None, Phase::Idle));
    slot.on(Event::Desired { generation: 8, slot: Box::new(wants(1, 1)) });
    assert_eq!(slot.state.phase(), Phase::Idle, "an older generation is nothing");
    slot.desire(1, 2);
    assert_eq!(slot.state.phase(), Phase::Fetching);
}

#[test]
fn the_stored_form_is_as_devices_have_it() {
    let mut slot = Slot::new();
    slot.committed(1, 1).provisional(2, 2).desire(3, 3);
    slot.failed(RefusalCode::TransferTimeout);
    insta::assert_snapshot!("slot_state_v1", serde_json::to_string_pretty(&slot.state).unwrap());
}

pub(super) fn closed(download: Download) -> Gate {
    let until = Some(Timestamp::from_secs(7_200));
    Gate::Closed { deferred: Deferred { reason: DeferReason::Window, until }, download }
}
fn any_gate(is_closed: bool) -> Gate {
    if is_closed { closed(Download::Inside) } else { Gate::Open }
}

#[derive(Clone, Debug)]
enum Any {
    Desire { ahead: u64, counter: u64, attempt: u32, candidate: bool },
    Removed,
    Answer { late: bool, lane: bool, kind: u8, counter: u64 },
    Fail { code: usize, lane: bool },
    Health,
    ShadowBad,
    Looked,
    ActivateFailed,
    Started,
    Stopping,
    Acked,
}

fn any_event() -> impl Strategy<Value = Any> {
    prop_oneof![
        3 => (0..3u64, 1..5u64, 1..4u32, any::<bool>())
            .prop_map(|(ahead, counter, attempt, candidate)| Any::Desire { ahead, counter, attempt, candidate }),
        1 => Just(Any::Removed),
        16 => (prop::bool::weighted(0.1), prop::bool::weighted(0.3), 0..10u8, 1..5u64)
            .prop_map(|(late, lane, kind, counter)| Any::Answer { late, lane, kind, counter }),
        2 => (0..RefusalCode::ALL.len(), prop::bool::weighted(0.3))
            .prop_map(|(code, lane)| Any::Fail { code, lane }),
        1 => Just(Any::Health),
        1 => Just(Any::ShadowBad),
        3 => Just(Any::Looked),
        1 => Just(Any::ActivateFailed),
        2 => Just(Any::Started),
        1 => Just(Any::Stopping),
        1 => Just(Any::Acked),
    ]
}

/// The event `any` means in `state`; answers mostly fit, so that deep states are reached.
fn event_for(state: &SlotState, any: &Any) -> Event {
    match any {
        Any::Desire { ahead, counter, attempt, candidate } => {
            let candidate = candidate.then(|| assigned(5 - counter, 9));
            let slot = SlotDesired { candidate, ..wants(*counter, *attempt) };
            Event::Desired { generation: (state.generation + ahead).saturating_sub(1), slot: Box::new(slot) }
        }
        Any::Removed => Event::Removed { generation: state.generation + 1 },
        Any::Answer { late, lane, kind, counter } => {
            let ticket = if *lane { CANDIDATE_LANE | state.lane_ticket } else { state.ticket };
            let ticket = if *late { ticket.wrapping_sub(1) } else { ticket };
            let wanted = state.assigned(ticket).map_or(*counter, |assigned| assigned.bundle.counter);
            match kind {
                0 => Event::ReleaseChecked { ticket, release: release(wanted) },
                1 => Event::ManifestReady { ticket },
                2 => Event::BlobsReady { ticket },
                3 => Event::Tested { ticket },
                4 => Event::Switched { ticket },
                5 => Event::TimerFired { ticket },
                6 => Event::TestBegun { ticket },
                // The shell says so only of a pack that is not wanted.
                7 if state.is_withdrawn() => Event::Withdrawn { ticket },
                8 => Event::StillNeeded { ticket, refusal: refusal(RefusalCode::NoArtifact) },
                _ => Event::Progress { ticket, done_bytes: *counter, total_bytes: 5 },
            }
        }
        Any::ShadowBad => Event::ShadowBad { code: RefusalCode::Unhealthy, reason: "bad".into() },
        Any::Looked => Event::WindowLooked,
        Any::Fail { code, lane } => {
            let refusal = refusal(RefusalCode::ALL[*code]);
            let ticket = if *lane { CANDIDATE_LANE | state.lane_ticket } else { state.ticket };
            Event::StepFailed { ticket, refusal, jitter: 500 }
        }
        Any::Health => Event::HealthBad { code: RefusalCode::Unhealthy, reason: "bad".into() },
        Any::ActivateFailed => Event::ActivateFailed { refusal: refusal(RefusalCode::ActivationFailed) },
        Any::Started => Event::Started,
        Any::Stopping => Event::Stopping,
        Any::Acked => {
            let attempt = state.unacked.first().map_or(assigned(1, 1).attempt, |r| r.target.attempt.clone());
            Event::Acked { attempt, phase: Phase::Committed }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn whatever_happens_the_invariants_hold(
        events in prop::collection::vec(any_event(), 1..80), closed in prop::collection::vec(prop::bool::weighted(0.2), 80),
        is_engine: bool,
    ) {
        let name = if is_engine { engine_slot() } else { slot_name() };
        let mut state = SlotState::default();
        let mut serving: Option<BundleDigest> = None; // what the shell would serve
        let mut good: Option<BundleDigest> = None; // last committed
        let mut shadow: Option<EnvelopeDigest> = None; // what the shell would run beside
        for (n, any) in events.iter().enumerate() {
            let event = event_for(&state, any);
            let now = Now { wall: Timestamp::from_secs(n as u64), steady_ms: n as u64, gate: any_gate(closed[n]) };
            let (next, effects) = step(&state, &name, event.clone(), now);
            prop_assert_eq!(&(next.clone(), effects.clone()), &step(&state, &name, event.clone(), now));

            // The marker is first, or nothing durable changed.
            if let Some(at) = effects.iter().position(|e| *e == Effect::Persist) {
                prop_assert_eq!(at, 0);
            } else {
                prop_assert_eq!(durable(&next), durable(&state));
            }
            for effect in &effects {
                match effect {
                    Effect::Shadow { bundle, .. } => {
                        prop_assert!(next.active.is_some() && next.provisional.is_none());
                        shadow = Some(bundle.release);
                    }
                    Effect::StopShadow => shadow = None,
                    Effect::Switch { to, .. } => {
                        prop_assert!(now.gate == Gate::Open, "a switch outside of the window");
                        prop_assert_eq!(shadow, None, "a switch under a running shadow");
                        prop_assert_eq!(&effects[0], &Effect::Persist, "a switch without its marker");
                        prop_assert!(matches!(&next.work, Work::Busy(t) if t.step == Step::Switching
                            && t.bundle.as_ref() == Some(to)));
                    }
                    Effect::Activate(bundle) => serving = Some(bundle.digest),
                    Effect::Deactivate => serving = None,
                    _ => {}
                }
            }
            // A shadow runs exactly while the machine says so, and never that of another wish.
            let runs = next.candidate.as_ref().filter(|c| c.may_run() && !c.target.waiting);
            if !matches!(event, Event::Started) {
                prop_assert_eq!(shadow, runs.map(|c| c.target.assigned.release), "after {:?}", event);
            } else {
                shadow = runs.map(|c| c.target.assigned.release); // a new process runs nothing by itself
            }
            let wish = next.wanted.as_ref().and_then(|w| w.candidate.as_ref());
            prop_assert_eq!(next.candidate.as_ref().map(|c| &c.target.assigned), wish);
            let removed = matches!(event, Event::Removed { .. }) && next.wanted.is_none();
            let broken = matches!(event, Event::ActivateFailed { .. } | Event::Withdrawn { .. });
            if matches!(event, Event::Withdrawn { .. }) && next.active.is_none() {
                serving = None; // the shell had emptied it before it said so
            }
            if let Event::Switched { ticket } = event && ticket == state.ticket && next.ticket != ticket {
                serving = next.active.as_ref().map(|b| b.digest);
            }
            // Once a bundle was committed there is always an active one, and it is the one served.
            if removed || broken {
                good = next.active.as_ref().filter(|_| next.provisional.is_none()).map(|b| b.digest);
            } else if next.provisional.is_none() && next.active.is_some() {
                good = next.active.as_ref().map(|b| b.digest);
            }
            if good.is_some() {
                prop_assert!(next.active.is_some(), "nothing active after {:?}", event);
            }
            prop_assert_eq!(next.active.as_ref().map(|b| b.digest), serving, "after {:?}", event);
            // While a bundle is provisional, what it would go back to is a committed one.
            if let (Some(_), Some(good)) = (&next.provisional, good) {
                prop_assert_eq!(next.previous.as_ref().map(|b| b.digest), Some(good));
            }
            prop_assert!(next.previous.as_ref().map(|b| b.digest) != next.active.as_ref().map(|b| b.digest)
                || next.active.is_none());

            // Phase and target belong together; a failure lasts until something new is wanted.
            let report = next.report();
            match report.phase {
                Phase::Fetching | Phase::Verified | Phase::Testing | Phase::Switching | Phase::Deferred =>
                    prop_assert!(report.target.is_some()),
                Phase::Committed | Phase::Probation =>
                    prop_assert!(report.active.is_some() && report.target.is_none()),
                Phase::Idle => prop_assert!(report.active.is_none()),
                failure => prop_assert!(failure.is_failure() && report.last_error.is_some()),
            }
            if let Work::Failed(failed) = &state.work {
                let stays = !matches!(event, Event::Desired { .. } | Event::Removed { .. } | Event::HealthBad { .. }
                    | Event::ActivateFailed { .. } | Event::Started);
                prop_assert!(!stays || next.work == Work::Failed(failed.clone()), "{:?}", event);
            }
            prop_assert!(next.generation >= state.generation);
            // A state is its JSON: nothing is lost over a restart.
            let json = serde_json::to_vec(&next).unwrap();
            prop_assert_eq!(&serde_json::from_slice::<SlotState>(&json).unwrap(), &next);
            state = next;
        }
    }
}
