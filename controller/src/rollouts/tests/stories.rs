//! Rollouts from their start to their end.

use super::{
    bench::{Bench, author, other, plan},
    devices::{Manner, slot},
};
use crate::{
    alerts::AlertKind,
    clock,
    desired::{compose, intent_id},
    evidence::Gate,
    ingest::{AGGREGATE, Aggregate, BucketId, Cohort, Level},
    rollout::{
        Arm, AttemptState, Because, Bucket, Decision, Event, Refused, Rule, Span, StateName, plan::OnOverlap,
    },
    rollouts::{OrderError, StartError},
    store::{Expect, Transaction},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::{
    desired::{Metric, Settings},
    telemetry::Role,
    trust::{RoleName, envelope},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stages_bring_everybody_the_bundle_and_nobody_else() {
    let bench = Bench::on_first(10).await;
    let stranger = bench.devices.add("dev-99");
    bench.devices.with(&stranger, |device| device.labels.insert("site".into(), "elsewhere".into()));
    let process = bench.start(None).await;
    let mut plan = plan("digits@2");
    plan.select = vec!["site!=elsewhere".parse().unwrap()];
    process.roll(plan, "r-2").await;
    bench.reaches("r-2", StateName::Completed).await;
    let rollout = bench.rollout("r-2").await;
    let [canary, all] = &rollout.stages[..] else { panic!("two stages") };
    assert_eq!((canary.counts.get(Bucket::Committed), all.counts.get(Bucket::Committed)), (4, 6));
    assert_eq!((canary.handed_out, all.handed_out), (4, 6));
    assert_eq!(bench.alerts("r-2").await, [AlertKind::RolloutFinished]);
    for (id, device) in bench.devices.all() {
        let wanted = (id != stranger).then(|| "digits@2".to_owned());
        assert_eq!((bench.runs(&id), bench.wanted(&id).await), (wanted.clone(), wanted), "{id}");
        assert_eq!(device.told.len(), if id == stranger { 0 } else { 2 }, "{id}");
    }
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_canaries_that_go_back_take_everybody_back_and_every_verdict_is_signed() {
    let bench = Bench::on_first(10).await;
    let former: Vec<_> = bench.devices.all().into_values().map(|device| device.active).collect();
    let process = bench.start(None).await;
    // Whoever the canaries are: half of the fleet goes back, so that two of four certainly do.
    for id in bench.devices.ids().iter().take(8) {
        bench.devices.behave(id, Manner::GoesBack);
    }
    process.roll(plan("digits@2"), "r-2").await;
    bench.reaches("r-2", StateName::Reverted).await;
    let rollout = bench.rollout("r-2").await;
    assert_eq!(rollout.stages[1].handed_out, 0);
    assert_eq!(bench.alerts("r-2").await, [AlertKind::RolloutAborted, AlertKind::RolloutFinished]);
    bench
        .until("everybody runs what it ran before", || async {
            let now: Vec<_> = bench.devices.all().into_values().map(|device| device.active).collect();
            now == former
        })
        .await;
    for id in bench.devices.ids() {
        assert_eq!(bench.wanted(&id).await.as_deref(), Some("digits@1"), "{id}");
    }
    let states: Vec<_> = bench.attempts("r-2").await.into_values().map(|attempt| attempt.state).collect();
    assert!(!states.iter().any(|state| matches!(state, AttemptState::Committed { .. })), "{states:?}");

    // What was decided, in the rollout's log and in the audit log, and signed by the controller.
    let id = "r-2".parse().unwrap();
    let verdicts = process.rollouts.verdicts(&id, 1, 100).await.unwrap();
    let decisions: Vec<_> = verdicts.iter().map(|verdict| verdict.record.decision).collect();
    use Decision::{Reverted, Reverting, StageFailed, Started};
    assert_eq!(decisions, [Started, StageFailed, Reverting, Reverted]);
    assert!(matches!(verdicts[1].record.because, Because::Rule { rule: Rule::RolledBack, .. }));
    let trust = bench.trust.current();
    for verdict in &verdicts {
        let raw = BASE64.decode(&verdict.envelope).unwrap();
        let signed: crate::rollout::VerdictRecord =
            envelope::open(&raw, envelope::VERDICT_TYPE, &trust, RoleName::Controller).unwrap();
        assert_eq!(signed, verdict.record);
        let mut forged = envelope::Envelope::parse(&raw).unwrap();
        forged.payload =
            BASE64.encode(String::from_utf8(forged.payload().unwrap()).unwrap().replace("r-2", "r-3"));
        let forged = forged.to_bytes();
        let opened: Result<serde_json::Value, _> =
            envelope::open(&forged, envelope::VERDICT_TYPE, &trust, RoleName::Controller);
        assert!(opened.is_err(), "a changed verdict still has its signature");
    }
    process.audit.verify().await.unwrap();
    let entries = process.audit.read(1, 1_000).await.unwrap();
    let audited: Vec<_> =
        entries.iter().filter(|e| e.action == "rollout.verdict" && e.subject == "rollout/r-2").collect();
    assert_eq!(audited.len(), verdicts.len());
    for (entry, verdict) in audited.iter().zip(&verdicts) {
        assert_eq!(entry.after.as_deref(), Some(serde_json::to_string(verdict).unwrap().as_str()));
    }
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_takes_everybody_back() {
    let bench = Bench::on_first(6).await;
    let process = bench.start(None).await;
    process.roll(plan("digits@2"), "r-2").await;
    bench
        .until("everybody has it", || async {
            bench.devices.ids().iter().all(|id| bench.runs(id).as_deref() == Some("digits@2"))
        })
        .await;
    bench.reaches("r-2", StateName::Completed).await;
    let event = Event::Abort {
        by: author().name().to_owned(),
        reason: "it looked wrong".into(),
        mode: crate::rollout::AbortMode::Revert,
    };
    // What is over is over: the way back is a rollout of its own.
    let refused = process.order("r-2", &author(), event.clone()).await;
    assert!(matches!(refused, Err(OrderError::Refused(Refused::WrongState { .. }))), "{refused:?}");
    process.kill().await;

    let bench = Bench::on_first(6).await;
    let slow = bench.devices.ids()[0].clone();
    bench.devices.ids().iter().for_each(|id| bench.devices.behave(id, Manner::Commits));
    let process = bench.start(None).await;
    bench.devices.behave(&slow, Manner::Fetches);
    let mut one_stage = plan("digits@2");
    one_stage.stages.remove(0);
    process.roll(one_stage, "r-2").await;
    bench
        .until("all but one have it", || async {
            bench.rollout("r-2").await.stages[0].counts.get(Bucket::Committed) == 5
        })
        .await;
    process.order("r-2", &author(), event).await.unwrap();
    bench.reaches("r-2", StateName::Reverted).await;
    bench
        .until("everybody runs the first release", || async {
            bench.devices.ids().iter().all(|id| bench.runs(id).as_deref() == Some("digits@1"))
        })
        .await;
    let attempts = bench.attempts("r-2").await;
    assert_eq!(attempts[&slow].state, AttemptState::Cancelled);
    assert!(
        attempts.values().filter(|one| one.device != slow).all(|one| one.state == AttemptState::Reverted)
    );
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_refused_a_bundle_is_not_given_it_back_later() {
    let bench = Bench::on_first(6).await;
    let refuses = bench.devices.ids()[2].clone();
    bench.devices.behave(&refuses, Manner::GoesBack);
    let process = bench.start(None).await;
    let mut second = plan("digits@2");
    second.stages.remove(0);
    second.stages[0].dynamic = false;
    process.roll(second.clone(), "r-2").await;
    bench.reaches("r-2", StateName::Completed).await;
    assert_eq!(bench.attempts("r-2").await[&refuses].state, AttemptState::Failed);
    bench.devices.with(&refuses, |device| device.manner = Manner::Commits);
    let mut third = second;
    third.rollout.bundle = "digits@3".parse().unwrap();
    third.stages[0].soak = crate::rollout::Span::hours(10);
    process.roll(third, "r-3").await;
    bench
        .until("everybody has the third", || async {
            bench.devices.ids().iter().all(|id| bench.runs(id).as_deref() == Some("digits@3"))
        })
        .await;
    let mode = crate::rollout::AbortMode::Revert;
    let event = Event::Abort { by: author().name().to_owned(), reason: "no".into(), mode };
    process.order("r-3", &author(), event).await.unwrap();
    bench.reaches("r-3", StateName::Reverted).await;
    for id in bench.devices.ids() {
        let former = if id == refuses { "digits@1" } else { "digits@2" };
        assert_eq!(bench.wanted(&id).await.as_deref(), Some(former), "{id}");
        assert_eq!(bench.runs(&id).as_deref(), Some(former), "{id}");
    }
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_rollout_takes_over_who_has_not_activated_and_only_if_it_says_so() {
    let bench = Bench::on_first(10).await;
    let process = bench.start(None).await;
    let ids = bench.devices.ids();
    ids.iter().take(9).for_each(|id| bench.devices.behave(id, Manner::Fetches));
    process.roll(plan("digits@2"), "r-2").await;
    bench
        .until("the canaries have begun", || async {
            bench.attempts("r-2").await.values().filter(|one| one.state == AttemptState::Downloading).count()
                >= 3
        })
        .await;
    let refused = process.start_rollout(plan("digits@3"), "r-3").await;
    assert!(matches!(refused, Err(StartError::Conflict { .. })), "{refused:?}");
    ids.iter().for_each(|id| bench.devices.with(id, |device| device.manner = Manner::Commits));
    let mut next = plan("digits@3");
    next.rollout.on_overlap = OnOverlap::Supersede;
    process.roll(next, "r-3").await;
    bench.reaches("r-2", StateName::Superseded).await;
    bench.reaches("r-3", StateName::Completed).await;
    for id in &ids {
        assert_eq!(bench.runs(id).as_deref(), Some("digits@3"), "{id}");
    }
    // Who was on the way is told to stop by the one, who had not begun is taken by the other.
    let left = bench.attempts("r-2").await;
    let taken = left.values().filter(|one| match &one.state {
        AttemptState::Superseded { by } => by.as_str() == "r-3",
        state => *state == AttemptState::Cancelled,
    });
    assert!(taken.count() >= 9, "{left:#?}");
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_waits_for_a_person_takes_nobody_s_place_until_they_agree() {
    let bench = Bench::on_first(10).await;
    let process = bench.start(None).await;
    let ids = bench.devices.ids();
    ids.iter().for_each(|id| bench.devices.behave(id, Manner::Fetches));
    process.roll(plan("digits@2"), "r-2").await;
    bench.reaches("r-2", StateName::Running).await;
    let mut next = plan("digits@3");
    next.rollout.on_overlap = OnOverlap::Supersede;
    next.approval = true;
    let waiting = process.start_rollout(next, "r-3").await.unwrap();
    assert_eq!(waiting.state.name(), StateName::PendingApproval);
    assert_eq!(bench.rollout("r-2").await.state.name(), StateName::Running);
    ids.iter().for_each(|id| bench.devices.with(id, |device| device.manner = Manner::Commits));
    let agreed = Event::Approve { by: other().name().to_owned(), reason: "looked at it".into() };
    process.order("r-3", &other(), agreed).await.unwrap();
    process.order("r-3", &author(), Event::Start { by: author().name().to_owned() }).await.unwrap();
    bench.reaches("r-2", StateName::Superseded).await;
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_scheduled_waits_for_what_began_meanwhile_and_is_not_started_by_hand() {
    let bench = Bench::on_first(10).await;
    let process = bench.start(None).await;
    let ids = bench.devices.ids();
    let mut scheduled = plan("digits@3");
    scheduled.start_at = Some(clock::now() + std::time::Duration::from_secs(2));
    process.start_rollout(scheduled, "r-3").await.unwrap();
    ids.iter().for_each(|id| bench.devices.behave(id, Manner::Fetches));
    process.roll(plan("digits@2"), "r-2").await;
    let by_hand = process.order("r-3", &author(), Event::Start { by: author().name().to_owned() }).await;
    assert!(matches!(by_hand, Err(OrderError::Conflict { devices: 10, .. })), "{by_hand:?}");
    bench
        .until("its time has come", || async {
            bench.rollout("r-3").await.state.name() == StateName::Assigning
        })
        .await;
    let waiting = bench.rollout("r-3").await.waiting;
    assert!(waiting.iter().any(|one| one.sentence.contains("no other rollout")), "{waiting:?}");
    assert_eq!(bench.rollout("r-2").await.state.name(), StateName::Running);
    ids.iter().for_each(|id| bench.devices.with(id, |device| device.manner = Manner::Commits));
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_device_leaves_and_a_late_one_joins_the_last_stage() {
    let bench = Bench::on_first(10).await;
    let process = bench.start(None).await;
    let ids = bench.devices.ids();
    ids.iter().for_each(|id| bench.devices.behave(id, Manner::Fetches));
    process.roll(plan("digits@2"), "r-2").await;
    bench
        .until("the canaries have begun", || async {
            bench.attempts("r-2").await.values().filter(|one| one.state == AttemptState::Downloading).count()
                == 4
        })
        .await;
    let attempts = bench.attempts("r-2").await;
    let canary = attempts.values().find(|one| one.stage == 0).unwrap().device.clone();
    let planned = attempts.values().find(|one| one.stage == 1).unwrap().device.clone();
    for gone in [&canary, &planned] {
        process.remove(&bench.devices, gone).await;
    }
    bench
        .until("both are out", || async {
            let stages = bench.rollout("r-2").await.stages;
            stages.iter().all(|stage| stage.counts.get(Bucket::Removed) == 1)
        })
        .await;
    let late = bench.devices.add("dev-50");
    process.rollouts.look_again();
    bench
        .until("the late one is a member", || async { bench.attempts("r-2").await.contains_key(&late) })
        .await;
    assert_eq!(bench.attempts("r-2").await[&late].stage, 1);
    ids.iter().for_each(|id| bench.devices.behave(id, Manner::Commits));
    process.visit(&bench.devices.ids()).await;
    bench.reaches("r-2", StateName::Completed).await;
    for id in bench.devices.ids() {
        let wanted = if id == canary || id == planned { None } else { Some("digits@2".to_owned()) };
        assert_eq!(bench.wanted(&id).await, wanted, "{id}");
    }
    assert_eq!(bench.runs(&late).as_deref(), Some("digits@2"));
    assert_eq!(bench.runs(&planned).as_deref(), Some("digits@1"), "the removed got nothing");
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_approves_the_own_rollout() {
    let bench = Bench::on_first(4).await;
    let process = bench.start(None).await;
    let mut plan = plan("digits@2");
    plan.approval = true;
    let begun = process.start_rollout(plan, "r-2").await.unwrap();
    assert_eq!(begun.state.name(), StateName::PendingApproval);
    let approve =
        |by: &crate::fleet::Actor| Event::Approve { by: by.name().to_owned(), reason: "seen".into() };
    let own = process.order("r-2", &author(), approve(&author())).await;
    assert!(matches!(own, Err(OrderError::Refused(Refused::OwnApproval { .. }))), "{own:?}");
    let early = process.order("r-2", &author(), Event::Start { by: author().name().to_owned() }).await;
    assert!(matches!(early, Err(OrderError::Refused(Refused::WrongState { .. }))), "{early:?}");
    let now = clock::now();
    process.order("r-2", &other(), approve(&other())).await.unwrap();
    process.order("r-2", &author(), Event::Start { by: author().name().to_owned() }).await.unwrap();
    bench.reaches("r-2", StateName::Completed).await;
    let verdicts = process.rollouts.verdicts(&"r-2".parse().unwrap(), 1, 100).await.unwrap();
    let approved = verdicts.iter().find(|one| one.record.decision == Decision::Approved).unwrap();
    let by = Because::Person { by: other().name().to_owned(), reason: "seen".into() };
    assert!(approved.record.because == by && approved.record.at >= now, "{approved:?}");
    process.kill().await;
    bench.check();
}

/// What is stored is read again, whatever the state: one unreadable rollout would hide all others.
#[test]
fn every_state_is_read_as_it_was_written() {
    use crate::rollout::{PauseWhy, Plan, Release, Rollout, Seed, State};
    let now = clock::now();
    let bundle: edgefleet_shared::ids::BundleName = "digits@2".parse().unwrap();
    let envelope = edgefleet_shared::digest::EnvelopeDigest::of(b"release");
    let release = Release { bundle: bundle.clone(), envelope, envelope_size: 1, download: 1 };
    let plan = Plan::new("digits".parse().unwrap(), bundle);
    let mut rollout =
        Rollout::draft("r-1".parse().unwrap(), 1, release, plan, Seed::new([1; 32]), "ana", now);
    let by: edgefleet_shared::ids::RolloutId = "r-2".parse().unwrap();
    let paused = |why| State::Paused { why };
    for state in [
        State::Draft,
        State::PendingApproval,
        State::Ready,
        State::Scheduled { at: now },
        State::Assigning { written: 3, digest: None },
        State::Running,
        paused(PauseWhy::Operator { by: "eve".into(), reason: "why not".into() }),
        paused(PauseWhy::Gate { rule: Rule::Lost, sentence: "2 are silent".into() }),
        paused(PauseWhy::FreezeCalendar { name: "holidays".into() }),
        paused(PauseWhy::LineStopped),
        State::Reverting,
        State::Reverted { unreachable: 1 },
        State::Aborted,
        State::Completed { tail_until: now },
        State::Superseded { by },
        State::Expired,
    ] {
        rollout.state = state;
        let text = serde_json::to_string(&rollout).unwrap();
        assert_eq!(
            serde_json::from_str::<Rollout>(&text).map_err(|e| format!("{e}: {text}")),
            Ok(rollout.clone())
        );
    }
}

/// What the incumbents' p95 was is frozen when the rollout is made; only canaries count what goes beyond it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_count_what_is_slower_than_the_bundle_before_was() {
    let bench = Bench::on_first(10).await;
    let mut last_hour = Aggregate { windows: 10, ..Aggregate::default() };
    (1..=1_000).for_each(|ms| last_hour.latency.total.record_us(ms * 1_000));
    let bundle = "digits@1".parse().unwrap();
    let start = Level::FiveMinutes.start_of(clock::now());
    let id = BucketId { bundle, role: Role::Primary, start, cohort: Cohort::all() }.to_string();
    let written = Transaction::new().put_json(AGGREGATE, id, Expect::Absent, &last_hour).unwrap();
    bench.documents.store.commit(written).await.unwrap();

    let process = bench.start(None).await;
    let mut plan = plan("digits@2");
    plan.stages[0].gates.push(Gate::Latency);
    plan.stages[0].soak = Span::minutes(10);
    plan.gates.min_canaries = 3;
    process.roll(plan, "r-2").await;
    bench.until("the first turns", || async { bench.rollout("r-2").await.stages[0].handed_out > 0 }).await;
    let frozen = bench.rollout("r-2").await.slow_us.unwrap();
    assert!((930_000..=970_000).contains(&frozen), "{frozen}");
    for (device, attempt) in bench.attempts("r-2").await.iter().filter(|(_, one)| one.handed_at.is_some()) {
        assert_eq!(attempt.arm, Arm::Canary);
        let key = intent_id(device, &slot());
        let intent = bench.documents.intents.find_json(&key).await.unwrap().unwrap().value;
        assert_eq!(intent.slow_us, Some(frozen));
        let desired = compose(device, &[intent], &Settings::default(), 1);
        let [threshold] = &desired.slots[&slot()].thresholds[..] else { panic!("{desired:?}") };
        assert_eq!((threshold.metric, threshold.value), (Metric::TotalMs, frozen as f64 / 1e3));
    }
    process.kill().await;
    bench.check();
}
