//! The candidate's lane and the maintenance window, step by step.

use super::{tests::*, *};
use edgefleet_shared::{
    desired::{ShadowSettings, SlotDesired},
    maintenance::{Download, MaintenanceWindow, TimeZone},
    reported::{DeferReason, Deferred, Phase},
    time::Timestamp,
};

fn window() -> MaintenanceWindow {
    serde_json::from_str(r#"{"cron":"0 2 * * *","for_secs":3600,"zone":"UTC"}"#).unwrap()
}

impl Slot {
    fn lane(&self) -> u64 {
        CANDIDATE_LANE | self.state.lane_ticket
    }
    fn desire_beside(&mut self, active: u64, candidate: u64, attempt: u32) -> &mut Self {
        let generation = self.state.generation + 1;
        let both = SlotDesired { candidate: Some(assigned(candidate, attempt)), ..wants(active, 1) };
        self.on(Event::Desired { generation, slot: Box::new(both) })
    }
    fn tested_beside(&mut self, counter: u64) -> &mut Self {
        self.on(Event::ReleaseChecked { ticket: self.lane(), release: release(counter) });
        self.on(Event::ManifestReady { ticket: self.lane() });
        self.on(Event::BlobsReady { ticket: self.lane() });
        self.on(Event::TestBegun { ticket: self.lane() });
        self.on(Event::Tested { ticket: self.lane() })
    }
    fn shadowing(&mut self, active: u64, candidate: u64) -> &mut Self {
        self.committed(active, 1).desire_beside(active, candidate, 7).tested_beside(candidate);
        self.runs()
    }
    fn runs(&mut self) -> &mut Self {
        self.on(Event::Switched { ticket: self.lane() })
    }
    fn tested(&mut self) -> &mut Self {
        self.on(Event::Tested { ticket: self.ticket() })
    }
    fn candidate(&self) -> Phase {
        self.state.report().candidate.expect("a candidate").phase
    }
    fn has(&self, wanted: impl Fn(&Effect) -> bool) -> bool {
        self.effects.iter().any(wanted)
    }
}

#[test]
fn a_candidate_goes_its_way_beside_the_active_bundle_until_it_shadows() {
    let mut slot = Slot::new();
    slot.committed(1, 1).desire_beside(1, 2, 7);
    let mut phases = vec![slot.candidate()];
    assert!(slot.has(|e| matches!(e, Effect::FetchRelease { ticket, .. } if ticket & CANDIDATE_LANE != 0)));
    slot.on(Event::ReleaseChecked { ticket: slot.lane(), release: release(2) });
    slot.on(Event::ManifestReady { ticket: slot.lane() });
    slot.on(Event::Progress { ticket: slot.lane(), done_bytes: 1, total_bytes: 2 });
    assert_eq!(slot.state.report().candidate.unwrap().progress.unwrap().done_bytes, 1);
    slot.on(Event::BlobsReady { ticket: slot.lane() });
    phases.push(slot.candidate());
    slot.on(Event::TestBegun { ticket: slot.lane() });
    phases.push(slot.candidate());
    slot.on(Event::Tested { ticket: slot.lane() });
    assert!(slot.has(|e| matches!(e, Effect::Shadow { bundle, .. } if bundle.name.counter == 2)));
    slot.runs();
    phases.push(slot.candidate());
    use Phase::*;
    assert_eq!(phases, [Fetching, Verified, Testing, Shadowing]);
    assert_eq!((slot.state.phase(), slot.active()), (Committed, Some(1)), "the slot itself did nothing");
    assert_eq!(slot.terminals(), [(Committed, 1), (Shadowing, 2)]);
    // Other settings cost no new load and no new report of an end.
    let both = SlotDesired {
        shadow: Some(ShadowSettings { share: 0.5, ..ShadowSettings::default() }),
        ..slot.state.wanted.clone().unwrap()
    };
    let generation = slot.state.generation + 1;
    slot.on(Event::Desired { generation, slot: Box::new(both) });
    assert!(slot.has(|e| matches!(e, Effect::Shadow { settings, .. } if settings.share == 0.5)));
    slot.runs();
    assert_eq!((slot.candidate(), slot.terminals().len()), (Shadowing, 2));
}

#[test]
fn a_candidate_that_is_no_longer_wanted_ends_and_its_files_go() {
    let mut slot = Slot::new();
    slot.shadowing(1, 2);
    assert_eq!(slot.state.kept().count(), 2);
    slot.desire(1, 1);
    assert!(slot.effects.contains(&Effect::StopShadow) && slot.effects.contains(&Effect::CollectGarbage));
    assert_eq!((slot.state.report().candidate, slot.state.kept().count()), (None, 1));
    slot.shadowing(1, 3).on(Event::Removed { generation: 99 });
    assert!(slot.effects.contains(&Effect::StopShadow) && slot.effects.contains(&Effect::Deactivate));
}

#[test]
fn a_candidate_that_becomes_active_is_switched_to_as_it_is() {
    let mut slot = Slot::new();
    slot.shadowing(1, 2).desire(2, 8);
    assert!(slot.effects.contains(&Effect::StopShadow));
    let kept: Vec<_> = slot.state.kept().collect();
    assert!(kept.contains(&(assigned(2, 8).release, Some(release(2).manifest))), "its files stay: {kept:?}");
    slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(2) });
    assert!(!slot.downloads() && !slot.tests());
    assert_eq!(slot.state.phase(), Phase::Switching);
    slot.on(Event::Switched { ticket: slot.ticket() });
    assert_eq!((slot.active(), slot.previous(), slot.state.phase()), (Some(2), Some(1), Phase::Probation));
    assert_eq!(slot.state.active.as_ref().unwrap().attempt.number, 8);
    // One that failed as a shadow has to go the whole way.
    let mut slot = Slot::new();
    slot.shadowing(1, 2).on(Event::ShadowBad { code: RefusalCode::Unhealthy, reason: "5 of 9".into() });
    slot.desire(2, 8);
    slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(2) });
    assert!(slot.downloads());
}

#[test]
fn a_candidate_waits_while_the_slot_is_busy() {
    let mut slot = Slot::new();
    slot.provisional(1, 1).desire_beside(1, 2, 7);
    assert_eq!(slot.candidate(), Phase::Deferred);
    assert_eq!(slot.state.report().deferred, Some(Deferred { reason: DeferReason::Busy, until: None }));
    slot.on(Event::TimerFired { ticket: slot.ticket() });
    assert_eq!((slot.state.phase(), slot.candidate()), (Phase::Committed, Phase::Fetching));
    slot.tested_beside(2).runs();
    // A new target interrupts it; afterwards it is loaded again, not tested again.
    let late = slot.lane();
    slot.desire_beside(3, 2, 7);
    assert!(slot.effects.contains(&Effect::StopShadow));
    slot.fetched(3).tested();
    slot.on(Event::Switched { ticket: late });
    assert_eq!(slot.candidate(), Phase::Deferred, "a late answer");
    slot.on(Event::Switched { ticket: slot.ticket() });
    slot.on(Event::TimerFired { ticket: slot.ticket() });
    assert!(slot.has(|e| matches!(e, Effect::Shadow { .. })) && !slot.tests());
}

#[test]
fn a_failed_candidate_is_told_once_and_not_tried_again() {
    let mut slot = Slot::new();
    slot.committed(1, 1).desire_beside(1, 2, 7);
    let lane = slot.lane();
    slot.on(Event::StepFailed { ticket: lane, refusal: refusal(RefusalCode::SignatureInvalid), jitter: 0 });
    assert_eq!(slot.candidate(), Phase::VerifyFailed);
    assert_eq!(slot.terminals(), [(Phase::Committed, 1), (Phase::VerifyFailed, 2)]);
    let told = slot.state.unacked.last().unwrap().refusal.clone().unwrap();
    assert_eq!((told.attempt.unwrap().number, told.subject.unwrap().as_str()), (7, "digits@2"));
    slot.on(Event::Started);
    assert!(!slot.has(|e| matches!(e, Effect::FetchRelease { .. })));
    assert_eq!((slot.active(), slot.state.phase()), (Some(1), Phase::Committed));
    slot.desire_beside(1, 2, 8);
    assert_eq!(slot.candidate(), Phase::Fetching, "a new attempt is a new try");
    // What the network did is tried again after a pause.
    let lane = slot.lane();
    slot.on(Event::StepFailed { ticket: lane, refusal: refusal(RefusalCode::TransferTimeout), jitter: 0 });
    assert!(slot.has(|e| matches!(e, Effect::StartTimer { ticket, .. } if *ticket == slot.lane())));
    assert!(slot.state.report().candidate.unwrap().error.is_some());
    slot.on(Event::TimerFired { ticket: slot.lane() });
    assert!(slot.has(|e| matches!(e, Effect::FetchRelease { .. })));
}

#[test]
fn a_candidate_resumes_after_a_kill_and_is_given_up_if_it_brings_the_agent_down() {
    let mut slot = Slot::new();
    slot.shadowing(1, 2);
    for boot in 1..=3 {
        slot.on(Event::Started);
        let serves = slot.effects.iter().position(|e| matches!(e, Effect::Activate(_)));
        let shadows = slot.effects.iter().position(|e| matches!(e, Effect::Shadow { .. }));
        assert!(serves.is_some() && serves < shadows, "boot {boot}: serving first");
        assert!(!slot.tests() && !slot.downloads());
        slot.runs();
        assert_eq!(slot.terminals().len(), 2, "told once");
    }
    slot.on(Event::Started);
    assert_eq!((slot.candidate(), slot.active()), (Phase::RolledBackLocal, Some(1)));
    assert_eq!(slot.state.unacked.last().unwrap().refusal.as_ref().unwrap().code, RefusalCode::CrashLoop);
    // Orderly ends do not count, and neither does what came before a calm time.
    let mut slot = Slot::new();
    slot.shadowing(1, 2);
    for _ in 0..20 {
        slot.on(Event::Stopping).on(Event::Started).runs();
        slot.on(Event::Started).runs();
        slot.on(Event::TimerFired { ticket: slot.lane() });
    }
    assert_eq!(slot.candidate(), Phase::Shadowing);
}

#[test]
fn a_closed_window_holds_up_activation_and_nothing_else() {
    let mut slot = Slot::new();
    slot.committed(1, 1);
    slot.gate = closed(Download::Anytime);
    slot.desire(2, 2).fetched(2).tested();
    assert_eq!((slot.state.phase(), slot.active()), (Phase::Deferred, Some(1)));
    let report = slot.state.report();
    let until = Some(Timestamp::from_secs(7_200));
    assert_eq!(report.deferred, Some(Deferred { reason: DeferReason::Window, until }));
    assert_eq!(report.target.unwrap().bundle.counter, 2);
    for _ in 0..10 {
        slot.on(Event::Started).on(Event::WindowLooked);
        assert_eq!(slot.state.phase(), Phase::Deferred, "starts while it waits are no failed ones");
    }
    slot.gate = Gate::Open;
    slot.on(Event::WindowLooked);
    assert!(slot.has(|e| matches!(e, Effect::Switch { .. })));
    assert_eq!(slot.effects[0], Effect::Persist);
    slot.on(Event::Switched { ticket: slot.ticket() });
    // The way back asks no window.
    slot.gate = closed(Download::Inside);
    slot.on(Event::HealthBad { code: RefusalCode::Latency, reason: "p95 30 ms, budget 10 ms".into() });
    assert_eq!((slot.active(), slot.state.phase()), (Some(1), Phase::RolledBackLocal));
    // The same bundle under another attempt is no activation either.
    slot.desire(1, 9);
    assert_eq!((slot.state.phase(), slot.downloads()), (Phase::Committed, false));
}

#[test]
fn a_download_that_belongs_inside_waits_and_pauses_when_the_window_closes() {
    let mut slot = Slot::new();
    slot.committed(1, 1);
    slot.gate = closed(Download::Inside);
    slot.desire(2, 2);
    assert_eq!(slot.state.phase(), Phase::Deferred);
    assert!(!slot.has(|e| matches!(e, Effect::FetchRelease { .. })));
    slot.gate = Gate::Open;
    slot.on(Event::WindowLooked);
    slot.on(Event::ReleaseChecked { ticket: slot.ticket(), release: release(2) });
    slot.on(Event::ManifestReady { ticket: slot.ticket() });
    assert_eq!(slot.state.phase(), Phase::Fetching);
    slot.gate = closed(Download::Inside);
    slot.on(Event::WindowLooked);
    assert_eq!(slot.state.phase(), Phase::Deferred);
    assert!(slot.effects.contains(&Effect::StopJob));
    slot.gate = Gate::Open;
    slot.on(Event::WindowLooked);
    assert!(slot.has(|e| matches!(e, Effect::FetchBlobs { .. })), "and goes on where it was");
    // The same for a candidate.
    let mut slot = Slot::new();
    slot.committed(1, 1);
    slot.gate = closed(Download::Inside);
    slot.desire_beside(1, 2, 7);
    assert_eq!(slot.candidate(), Phase::Deferred);
    slot.gate = Gate::Open;
    slot.on(Event::WindowLooked).tested_beside(2).runs();
    slot.gate = closed(Download::Inside);
    slot.on(Event::WindowLooked);
    assert_eq!(slot.candidate(), Phase::Shadowing, "a shadow is no activation");
}

#[test]
fn an_urgent_desired_state_passes_a_closed_window_at_once() {
    let mut slot = Slot::new();
    slot.committed(1, 1);
    slot.gate = closed(Download::Anytime);
    slot.desire(2, 2).fetched(2).tested();
    let mut urgent = window();
    urgent.ignore_window = true;
    slot.gate = Gate::of(Some(&urgent), Some(&TimeZone::UTC), Timestamp::EPOCH);
    let generation = slot.state.generation + 1;
    slot.on(Event::Desired {
        generation,
        slot: Box::new(SlotDesired { window: Some(urgent), ..wants(2, 2) }),
    });
    assert!(slot.has(|e| matches!(e, Effect::Switch { .. })));
    // A closed one that came to a slot whose swap has begun does not interrupt it.
    slot.gate = closed(Download::Inside);
    slot.on(Event::WindowLooked);
    slot.on(Event::Switched { ticket: slot.ticket() });
    assert_eq!(slot.active(), Some(2));
}

#[test]
fn the_gate_knows_the_window_its_zone_and_the_next_opening() {
    let window = window();
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let gate = |at| Gate::of(Some(&window), Some(&TimeZone::UTC), at);
    assert_eq!(gate(at("2026-11-23T02:30:00Z")), Gate::Open);
    let Gate::Closed { deferred, .. } = gate(at("2026-11-23T03:00:00Z")) else { panic!("it is over") };
    assert_eq!(deferred.until, Some(at("2026-11-24T02:00:00Z")));
    let Gate::Closed { deferred, .. } = Gate::of(Some(&window), None, Timestamp::EPOCH) else { panic!() };
    assert_eq!(deferred.reason, DeferReason::ZoneUnknown);
    assert_eq!(Gate::of(None, None, Timestamp::EPOCH), Gate::Open);
}

#[test]
fn the_stored_form_of_a_candidate_is_as_devices_have_it() {
    let mut slot = Slot::new();
    slot.shadowing(1, 2);
    slot.gate = closed(Download::Anytime);
    slot.desire_beside(3, 2, 7).fetched(3).tested();
    insta::assert_snapshot!("slot_state_v1_candidate", serde_json::to_string_pretty(&slot.state).unwrap());
}
