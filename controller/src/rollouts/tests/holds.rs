//! What holds hand-outs back, and lets them go.

use super::{
    bench::{Bench, author, plan},
    devices::Manner,
};
use crate::{
    clock,
    rollout::{AttemptState, FreezePeriod, PauseWhy, Rollout, State, StateName},
};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);

fn handed_out(rollout: &Rollout) -> u64 {
    rollout.stages.iter().map(|stage| stage.handed_out).sum()
}

/// A rollout whose canaries have it under way.
async fn with_canaries_under_way() -> Bench {
    let bench = Bench::on_first(10).await;
    bench.devices.ids().iter().for_each(|id| bench.devices.behave(id, Manner::Fetches));
    bench
}

async fn canaries_begin(bench: &Bench) {
    bench
        .until("the canaries have begun", || async {
            bench.attempts("r-2").await.values().filter(|one| one.state == AttemptState::Downloading).count()
                == 4
        })
        .await;
}

/// Lets the canaries commit, which would open the next stage.
async fn canaries_commit(bench: &Bench, process: &super::bench::Process) {
    bench.devices.ids().iter().for_each(|id| bench.devices.behave(id, Manner::Commits));
    process.visit(&bench.devices.ids()).await;
    bench
        .until("the canaries have committed", || async {
            let committed = |state: &AttemptState| matches!(state, AttemptState::Committed { .. });
            bench.attempts("r-2").await.values().filter(|one| committed(&one.state)).count() == 4
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_holds_the_next_stage_back_until_it_is_taken_away() {
    let bench = with_canaries_under_way().await;
    let process = bench.start(None).await;
    process.roll(plan("digits@2"), "r-2").await;
    canaries_begin(&bench).await;
    let now = clock::now();
    let period = FreezePeriod {
        name: "holidays".into(),
        from: now,
        until: now + HOUR,
        slots: vec![],
        reason: "nobody is there".into(),
    };
    process.calendar.add(&author(), period, now).await.unwrap();
    process.rollouts.look_again();
    bench
        .until("it is frozen", || async {
            let why = PauseWhy::FreezeCalendar { name: "holidays".into() };
            bench.rollout("r-2").await.state == State::Paused { why }
        })
        .await;
    canaries_commit(&bench, &process).await;
    // It has seen that (its clock is later) and still waits.
    let seen = clock::now();
    bench.until("it has looked again", || async { bench.rollout("r-2").await.clock > seen }).await;
    let rollout = bench.rollout("r-2").await;
    assert_eq!((rollout.state.name(), handed_out(&rollout)), (StateName::Paused, 4));
    process.calendar.remove(&author(), "holidays", clock::now()).await.unwrap();
    process.rollouts.look_again();
    bench.reaches("r-2", StateName::Completed).await;
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_ends_by_itself_and_over_restarts() {
    let bench = Bench::on_first(4).await;
    let process = bench.start(None).await;
    let now = clock::now();
    let period = FreezePeriod {
        name: "short".into(),
        from: now,
        until: now + Duration::from_secs(2),
        slots: vec!["digits".parse().unwrap()],
        reason: String::new(),
    };
    let until = period.until;
    process.calendar.add(&author(), period, now).await.unwrap();
    process.roll(plan("digits@2"), "r-2").await;
    bench
        .until("it waits", || async {
            let rollout = bench.rollout("r-2").await;
            rollout.state.name() == StateName::Paused && rollout.freeze.is_some()
        })
        .await;
    process.kill().await;
    let process = bench.start(None).await;
    bench.reaches("r-2", StateName::Completed).await;
    let first = bench.attempts("r-2").await.into_values().filter_map(|one| one.handed_at).min().unwrap();
    assert!(first >= until, "handed out at {first}, frozen until {until}");
    process.kill().await;
    bench.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_the_line_stops_everything_until_it_goes_on() {
    let bench = with_canaries_under_way().await;
    let process = bench.start(None).await;
    process.roll(plan("digits@2"), "r-2").await;
    canaries_begin(&bench).await;
    process.calendar.stop_the_line(&author(), true, "smoke".into(), clock::now()).await.unwrap();
    process.rollouts.look_again();
    bench
        .until("it stands", || async {
            bench.rollout("r-2").await.state == State::Paused { why: PauseWhy::LineStopped }
        })
        .await;
    canaries_commit(&bench, &process).await;
    process.kill().await;
    // The switch is not forgotten with the process.
    let process = bench.start(None).await;
    let seen = clock::now();
    bench.until("it has looked again", || async { bench.rollout("r-2").await.clock > seen }).await;
    let rollout = bench.rollout("r-2").await;
    assert_eq!((rollout.state.name(), handed_out(&rollout)), (StateName::Paused, 4));
    process.calendar.stop_the_line(&author(), false, "it was steam".into(), clock::now()).await.unwrap();
    process.rollouts.look_again();
    bench.reaches("r-2", StateName::Completed).await;
    process.kill().await;
    bench.check();
}
