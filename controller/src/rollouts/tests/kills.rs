//! The process dies before and after each of its commits; the next one ends in the same place.

use super::{
    bench::{Bench, plan},
    devices::Manner,
    stores::Death,
};
use crate::rollout::{Share, StateName};
use futures::{StreamExt as _, stream};
use std::time::Duration;

const DEVICES: usize = 5;
/// Runs at a time: they mostly wait for the disk and the clock.
const AT_A_TIME: usize = 12;

/// What does not depend on when who was heard.
#[derive(Debug, PartialEq)]
struct End {
    state: StateName,
    decisions: Vec<String>,
    handed_out: Vec<u64>,
    devices: Vec<Place>,
}

/// A device: its stage, what it runs, what is wanted of it, how often it was told again. Whether it was told at all
/// shows in what it runs; of a way back it need not be: the others may have gone back before it was reached.
type Place = (String, u16, Option<String>, Option<String>, usize);

async fn end(bench: &Bench) -> End {
    let rollout = bench.rollout("r-2").await;
    let attempts = bench.attempts("r-2").await;
    let log = bench.documents.store.log_read("verdict/r-2", 1, 100).await.unwrap();
    let decision = |body: &[u8]| {
        let verdict: serde_json::Value = serde_json::from_slice(body).unwrap();
        verdict["record"]["decision"].as_str().unwrap().to_owned()
    };
    let mut devices = Vec::new();
    for (id, device) in bench.devices.all() {
        let told = device.told.iter().filter(|attempt| attempt.rollout.as_str() == "r-2").count();
        let again = told.saturating_sub(1);
        devices.push((id.to_string(), attempts[&id].stage, bench.runs(&id), bench.wanted(&id).await, again));
    }
    End {
        state: rollout.state.name(),
        decisions: log.iter().map(|entry| decision(&entry.body)).collect(),
        handed_out: rollout.stages.iter().map(|stage| stage.handed_out).collect(),
        devices,
    }
}

/// A rollout with a process that dies; `false`: it came to its end before that.
async fn killed(manner: Manner, goal: StateName, death: Option<Death>) -> (End, bool) {
    let bench = Bench::on_first(DEVICES).await;
    bench.devices.ids().iter().for_each(|id| bench.devices.behave(id, manner));
    // What a person orders is one transaction of its own.
    let idle = bench.start_idle().await;
    let mut plan = plan("digits@2");
    plan.stages[0].size = Some(Share::Count(3));
    idle.roll(plan, "r-2").await;
    idle.kill().await;
    let process = bench.start(death).await;
    let died = tokio::select! {
        () = process.dies() => true,
        () = settled(&bench, goal) => false,
    };
    if died {
        let next = bench.start(None).await;
        settled(&bench, goal).await;
        next.kill().await;
    }
    bench.check();
    (end(&bench).await, died)
}

async fn settled(bench: &Bench, goal: StateName) {
    bench.reaches("r-2", goal).await;
    bench
        .until("everybody runs what is wanted of it", || async {
            for id in bench.devices.ids() {
                if bench.runs(&id) != bench.wanted(&id).await {
                    return false;
                }
            }
            bench.devices.all().values().all(|device| device.ends.is_empty())
        })
        .await;
}

async fn everywhere(manner: Manner, goal: StateName) {
    let (wanted, _) = killed(manner, goal, None).await;
    let begun = std::time::Instant::now();
    // Until the process comes to the end of the rollout before it has to die.
    let (mut deaths, mut at) = (0, 1);
    loop {
        let batch: Vec<_> = (at..at + 6).flat_map(|n| [Death::Before(n), Death::After(n)]).collect();
        at += 6;
        let ends: Vec<_> = stream::iter(batch)
            .map(|death| async move { (death, killed(manner, goal, Some(death)).await) })
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        let mut any = false;
        for (death, (end, died)) in ends {
            assert_eq!(end, wanted, "{death:?}");
            deaths += u32::from(died);
            any |= died;
        }
        if !any {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(300), "no end of commits after {deaths} deaths");
    }
    println!("{deaths} deaths, all with the same end: {wanted:?}");
    assert!(deaths >= 20, "only {deaths} deaths: the process did not commit what it should");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_to_everybody_survives_a_death_around_each_commit() {
    everywhere(Manner::Commits, StateName::Completed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_survives_a_death_around_each_commit() {
    everywhere(Manner::GoesBack, StateName::Reverted).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_drivers_on_one_store_do_everything_once() {
    let bench = Bench::on_first(10).await;
    let (one, two) = (bench.start(None).await, bench.start(None).await);
    one.roll(plan("digits@2"), "r-2").await;
    // Each of them is kept awake by what happens, so that they meet at every save.
    bench
        .until("the end", || async {
            two.rollouts.after(crate::rollouts::Aftermath {
                rollouts: vec!["r-2".parse().unwrap()],
                deadlines: vec![],
            });
            two.visit(&bench.devices.ids()[..1]).await;
            let rollout = bench.rollout("r-2").await;
            rollout.state.name() == StateName::Completed && rollout.pending.is_empty()
        })
        .await;
    let attempts = bench.attempts("r-2").await;
    assert!(attempts.values().all(|attempt| attempt.number == 1), "{attempts:#?}");
    let decisions = end(&bench).await.decisions;
    assert_eq!(decisions, ["started", "stage-passed", "stage-passed", "completed"]);
    one.audit.verify().await.unwrap();
    one.kill().await;
    two.kill().await;
    bench.check();
}
