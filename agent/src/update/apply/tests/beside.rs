//! Candidates and windows, with real files and signatures.

use super::*;
use edgefleet_shared::{maintenance::MaintenanceWindow, reported::DeferReason};
use std::sync::atomic::{AtomicU64, Ordering};

impl Rig {
    pub(super) async fn desire_beside(
        &self,
        generation: u64,
        active: &Assigned,
        candidate: Option<&Assigned>,
        window: Option<&str>,
    ) {
        let mut desired = self.signers.desired_document(generation, &[("digits", active.clone())]);
        for slot in desired.slots.values_mut() {
            slot.candidate = candidate.cloned();
            slot.window = window.map(|json| serde_json::from_str::<MaintenanceWindow>(json).unwrap());
        }
        self.tell(Command::Desired(self.signers.seal_desired(&desired).into())).await;
    }
    fn shadowing(&self) -> Option<u64> {
        self.outside.shadows.lock().get(&"digits".parse().unwrap()).map(|(name, _)| name.counter)
    }
    pub(super) async fn until_candidate(&self, phase: Phase) -> DeviceReport {
        self.until(&format!("candidate {phase}"), |r| {
            r.slots.values().any(|s| s.candidate.as_ref().is_some_and(|c| c.phase == phase))
        })
        .await
    }
    async fn one_and_two(&mut self) -> (Bundle, Bundle) {
        let (one, two) = (self.publish(1, 60_000), self.publish(2, 700_000));
        self.start().await;
        self.desire(1, &[("digits", &one.assigned)]).await;
        self.until_phase("digits", 1, Phase::Committed).await;
        (one, two)
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_runs_beside_and_becomes_active_without_another_byte() {
    let mut rig = Rig::new();
    let (one, two) = rig.one_and_two().await;
    rig.desire_beside(2, &one.assigned, Some(&two.assigned), None).await;
    let report = rig.until_candidate(Phase::Shadowing).await;
    assert_eq!((rig.serving("digits"), rig.shadowing()), (Some(1), Some(2)));
    let slot = report.slots.values().next().unwrap();
    assert_eq!(slot.phase, Phase::Committed);
    let candidate = slot.candidate.clone().unwrap();
    assert_eq!(candidate.installed.digest, Some(two.digest));
    assert_eq!((candidate.mirrored, candidate.shed[&ShedReason::QueueFull]), (7, 2));
    let terminal = rig.outside.terminals.lock().last().unwrap().clone();
    let shared = b"golden".len() as u64; // a blob of both bundles
    assert_eq!((terminal.phase, terminal.fetched_bytes), (Phase::Shadowing, two.bytes - shared));
    let (bytes, probes) = (*rig.outside.asked_bytes.lock(), *rig.outside.probes.lock());
    assert_eq!(probes, 2, "tested like a target");

    let again = Assigned { attempt: AttemptId { number: 9, ..two.assigned.attempt }, ..two.assigned };
    rig.desire_beside(3, &again, None, None).await;
    rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!((rig.serving("digits"), rig.shadowing()), (Some(2), None));
    assert_eq!(*rig.outside.asked_bytes.lock(), bytes, "nothing was fetched again");
    assert_eq!(*rig.outside.probes.lock(), probes, "nor tested again");
    assert_eq!(rig.terminals(), [(Phase::Committed, 1), (Phase::Shadowing, 2), (Phase::Committed, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_is_refused_or_misbehaves_leaves_the_active_bundle_alone() {
    let mut rig = Rig::new();
    let (one, two) = rig.one_and_two().await;
    rig.outside.refused.lock().insert(two.digest);
    rig.desire_beside(2, &one.assigned, Some(&two.assigned), None).await;
    let report = rig.until_candidate(Phase::PreflightFailed).await;
    let slot = report.slots.values().next().unwrap();
    assert_eq!((slot.phase, rig.serving("digits")), (Phase::Committed, Some(1)));
    assert_eq!(rig.terminals().last(), Some(&(Phase::PreflightFailed, 2)));
    let three = rig.publish(3, 9_000);
    rig.outside.sick.lock().insert(three.assigned.bundle.clone());
    rig.desire_beside(3, &one.assigned, Some(&three.assigned), None).await;
    rig.until_candidate(Phase::RolledBackLocal).await;
    assert_eq!((rig.serving("digits"), rig.shadowing()), (Some(1), None));
    assert_eq!(rig.terminals().last(), Some(&(Phase::RolledBackLocal, 3)));
    rig.desire_beside(4, &one.assigned, None, None).await;
    rig.until("no candidate", |r| r.slots.values().all(|s| s.candidate.is_none())).await;
    let left: Vec<_> = fs::read_dir(rig.data_dir().join("bundles/manifests")).unwrap().collect();
    assert_eq!(left.len(), 1, "its files are gone");
}

/// At any await of the way of a candidate.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_moment_of_a_candidates_way_serves_and_resumes() {
    let mut phases = BTreeMap::<Phase, u32>::new();
    for n in 0..40u64 {
        let mut rig = Rig::new();
        let (one, two) = rig.one_and_two().await;
        rig.desire_beside(2, &one.assigned, Some(&two.assigned), None).await;
        tokio::time::sleep(Duration::from_millis(n * 20)).await;
        rig.kill().await;
        let seen = rig.outside.report.borrow().clone().unwrap();
        let candidate = seen.slots.values().next().unwrap().candidate.clone();
        *phases.entry(candidate.map_or(Phase::Idle, |c| c.phase)).or_default() += 1;
        *rig.outside.down.lock() = true;
        rig.start().await;
        assert_eq!(rig.serving("digits"), Some(1), "killed after {} ms", n * 20);
        *rig.outside.down.lock() = false;
        rig.desire_beside(2, &one.assigned, Some(&two.assigned), None).await;
        rig.until_candidate(Phase::Shadowing).await;
        assert_eq!((rig.serving("digits"), rig.shadowing()), (Some(1), Some(2)));
        let told = rig.terminals().iter().filter(|t| **t == (Phase::Shadowing, 2)).count();
        assert_eq!(told, 1, "killed after {} ms", n * 20);
    }
    for phase in [Phase::Fetching, Phase::Testing, Phase::Shadowing] {
        assert!(phases.get(&phase).is_some_and(|n| *n > 0), "no kill struck in {phase}: {phases:?}");
    }
}

/// Seconds that the device's clock is beyond `today()`; it may jump.
static BEYOND: AtomicU64 = AtomicU64::new(0);
fn moving() -> Timestamp {
    today() + Duration::from_secs(BEYOND.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn an_update_waits_for_its_window_offline_and_through_a_jump_of_the_clock() {
    let hour = |at: Timestamp| at.as_secs() / 3_600 % 24;
    // Opens three hours from now, in a zone two hours east.
    let opens = (hour(today()) + 3) % 24;
    let window = format!(r#"{{"cron":"0 {} * * *","for_secs":3600,"zone":"+02:00"}}"#, (opens + 2) % 24);
    let mut rig = Rig::new();
    rig.clock = moving;
    let (_, two) = rig.one_and_two().await;
    rig.desire_beside(2, &two.assigned, None, Some(&window)).await;
    let report = rig.until_phase("digits", 2, Phase::Deferred).await;
    let deferred = report.slots.values().next().unwrap().deferred.unwrap();
    assert_eq!(deferred.reason, DeferReason::Window);
    assert_eq!(hour(deferred.until.unwrap()), opens);
    assert_eq!(*rig.outside.probes.lock(), 2, "fetched and tested meanwhile");
    // Restarts while it waits, without a network.
    *rig.outside.down.lock() = true;
    for _ in 0..5 {
        rig.kill().await;
        rig.start().await;
        assert_eq!(rig.serving("digits"), Some(1));
    }
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(rig.serving("digits"), Some(1), "the steady clock is not the one on the wall");
    BEYOND.store(deferred.until.unwrap().since(today()).as_secs() + 60, Ordering::SeqCst);
    rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!(rig.serving("digits"), Some(2));
}

#[tokio::test(start_paused = true)]
async fn an_urgent_update_and_the_way_back_do_not_wait() {
    let hour = today().as_secs() / 3_600 % 24;
    let json = |urgent: bool| {
        format!(
            r#"{{"cron":"0 {} * * *","for_secs":1800,"zone":"UTC","download":"inside","ignore_window":{urgent}}}"#,
            (hour + 5) % 24
        )
    };
    let mut rig = Rig::new();
    let (_, two) = rig.one_and_two().await;
    rig.outside.sick.lock().insert(two.assigned.bundle.clone());
    rig.desire_beside(2, &two.assigned, None, Some(&json(false))).await;
    rig.until_phase("digits", 2, Phase::Deferred).await;
    assert_eq!(*rig.outside.probes.lock(), 1, "not even fetched");
    rig.desire_beside(3, &two.assigned, None, Some(&json(true))).await;
    rig.until_phase("digits", 2, Phase::Probation).await;
    rig.until_phase("digits", 2, Phase::RolledBackLocal).await;
    assert_eq!(rig.serving("digits"), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_window_in_a_zone_the_device_does_not_know_stays_closed_and_says_so() {
    let mut rig = Rig::new();
    let (_, two) = rig.one_and_two().await;
    let window = r#"{"cron":"* * * * *","for_secs":3600,"zone":"Atlantis/Capital"}"#;
    rig.desire_beside(2, &two.assigned, None, Some(window)).await;
    let report = rig.until_phase("digits", 2, Phase::Deferred).await;
    assert_eq!(report.slots.values().next().unwrap().deferred.unwrap().reason, DeferReason::ZoneUnknown);
    assert_eq!(rig.serving("digits"), Some(1));
}
