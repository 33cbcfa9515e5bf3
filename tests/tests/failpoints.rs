//! kill -9 of the real agent at each of its named crash points, once: every durable step of an update,
//! of a trust document and of the garbage collection.
//!
//! The same points, several times each, are passed in the agent's own unit tests with a stub network;
//! here everything is real.

use anyhow::{Context, Result, ensure};
use edgefleet_controller::{
    desired::{INTENT, Intent},
    store::{
        Expect, FleetStore, Repository, Transaction,
        sled_home::{SledConfig, SledStore},
    },
};
use edgefleet_tests::faults::{Device, Oracle, Stage, Throttle, failpoint_agent_bin, source::Source, until};
use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, sync::Arc, time::Duration};

/// From `agent/src/failpoint.rs`, whose own test knows that each is called.
const NAMES: &str = include_str!("../../agent/src/failpoint.rs");
/// Only a desired state with a candidate comes by these; the agent's own matrix has one.
const BESIDE: &str = "shadow.";
const DEATH: Duration = Duration::from_secs(60);
/// Golden samples that its model does not meet; pushed with the check overridden.
const BAD: u64 = 4;

fn names() -> Vec<&'static str> {
    let list = NAMES.split("NAMES: &[&str] = &[").nth(1).and_then(|rest| rest.split("];").next());
    let all = list.unwrap_or_default().split('"').skip(1).step_by(2);
    all.filter(|name| !name.starts_with(BESIDE)).collect()
}

fn oracle() -> Result<Oracle> {
    Oracle::default()
        .with("digits@1", "digits/v1/golden")?
        .with("digits@2", "digits/v2/golden")?
        .with("digits@3", "digits/v1/golden")
}

/// One device and where it stands in the round of @1, @2, @3: the next one is never on its disk.
struct Unit {
    name: String,
    device: Device,
    link: Throttle,
    active: u64,
}

impl Unit {
    async fn join(stage: &Stage, name: String) -> Result<Self> {
        let mut device = stage.enrol(&name).await?;
        device.program = failpoint_agent_bin()?;
        let link = Throttle::start(stage.mqtt.parse()?, 64 << 20).await?;
        device.connect_to(link.address)?;
        device.start().await?;
        let mut unit = Self { name, device, link, active: 0 };
        for counter in [1, 2] {
            let rollout = unit.assign(stage, counter).await?;
            stage.committed(&rollout, &unit.device).await?;
            unit.active = counter;
        }
        Ok(unit)
    }

    async fn assign(&self, stage: &Stage, counter: u64) -> Result<String> {
        stage.assign_to(&format!("unit={}", self.name), counter, 1).await
    }

    /// Is killed at `point` on the way to the next bundle, and gets there all the same.
    async fn pass(&mut self, stage: &Stage, point: &str, oracle: &Oracle) -> Result<String> {
        self.device.stop().await?;
        let env = [("EDGEFLEET_FAILPOINT", point.to_owned())];
        let mut agent = self.device.spawn(&env)?;
        let next = match point {
            "persisted.failed" => BAD,
            _ => self.active % 3 + 1,
        };
        let rollout = match point {
            "trust.chain-written" => {
                renew_trust(stage).await?;
                None
            }
            _ => Some(self.assign(stage, next).await?),
        };
        let status = agent.wait(DEATH).await.with_context(|| format!("nobody came by {point}"))?;
        ensure!(status.signal() == Some(9), "{point}: {status}\n{}", agent.log_tail());

        self.link.cut();
        self.device.start().await?;
        let served = self.device.answering(oracle).await.context("right after the restart")?;
        let right = [self.active, next].map(|counter| format!("digits@{counter}"));
        ensure!(served.iter().all(|bundle| right.contains(bundle)), "{served:?} serve, {right:?} are right");
        self.link.mend();
        match rollout {
            Some(rollout) if next == BAD => {
                let end = stage.attempt_ended(&rollout, &self.device).await?;
                ensure!(end["state"] == "failed" && end["refusal"]["code"] == "golden-mismatch", "{end}");
            }
            Some(rollout) => {
                stage.committed(&rollout, &self.device).await?;
                self.active = next;
            }
            None => {
                until("the new trust document", async || {
                    let shown = stage.device(&self.device).await?;
                    let have = shown["reported"]["trust_version"].as_u64();
                    Ok(if have >= Some(2) { Ok(()) } else { Err(shown.to_string()) })
                })
                .await?;
            }
        }
        let ends = self.device.examine(oracle).await?;
        ensure!(ends == format!("digits@{}", self.active), "{ends} serves in the end");
        Ok(served.join(", then "))
    }
}

/// Installs trust document 2.
async fn renew_trust(stage: &Stage) -> Result<()> {
    let request = stage.dir().join("trust-request.json");
    let request = request.to_string_lossy();
    let key = stage.data().join("keys/trust.pk8");
    stage.command(&["trust", "propose", "--renew", "--out", &request]).await?;
    stage.command(&["trust", "sign", &request, "--key", &key.to_string_lossy()]).await?;
    stage.command(&["trust", "merge", &request]).await?;
    Ok(())
}

/// Takes every wish from the stopped controller's store: the devices shall serve nothing.
async fn want_nothing(stage: &mut Stage) -> Result<()> {
    stage.stop().await?;
    let (store, _) = SledStore::open(SledConfig::new(stage.data().join("store"))).await?;
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let intents = Repository::<Intent>::new(store.clone(), INTENT).list_all("").await?;
    let mut transaction = Transaction::new();
    for (id, _) in intents {
        transaction = transaction.delete(INTENT, id, Expect::Any);
    }
    store.commit(transaction).await?;
    store.close().await?;
    stage.start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_each_crash_point_is_survived_by_the_real_agent() -> Result<()> {
    const UNITS: usize = 4;
    let mut stage = Stage::open().await?;
    for (counter, version) in [(1, 1), (2, 2), (3, 1)] {
        let mut source = Source::digits(version)?;
        source.pad(1 << 20, counter)?; // crosses sync intervals
        stage.publish(source, counter).await?;
    }
    let bad = Source::digits(3)?.write(&stage.dir().join("sources/bad"), BAD)?;
    let built = stage.dir().join("bundles/bad");
    let (bad, built) = (bad.to_string_lossy(), built.to_string_lossy());
    let key = stage.publisher.to_string_lossy().into_owned();
    stage.command(&["model", "build", &bad, "--out", &built, "--no-probe"]).await?;
    stage.command(&["model", "sign", &built, "--key", &key]).await?;
    stage.command(&["model", "push", &built, "--override-checks", "--reason", "a test of devices"]).await?;
    let oracle = oracle()?;

    let mut units = Vec::new();
    for n in 0..UNITS {
        units.push(Unit::join(&stage, format!("unit-{n}")).await?);
    }
    let last = "persisted.idle";
    let all: Vec<_> = names().into_iter().filter(|name| *name != last).collect();
    ensure!(all.len() > 20, "the list of crash points was not found: {all:?}");
    let share = |unit: usize| all.iter().skip(unit).step_by(UNITS).copied();
    let passes = units.iter_mut().enumerate().map(|(n, unit)| {
        let (stage, oracle) = (&stage, &oracle);
        async move {
            let mut rows = BTreeMap::new();
            for point in share(n) {
                let served = unit.pass(stage, point, oracle).await.with_context(|| point.to_owned())?;
                rows.insert(point, served);
            }
            anyhow::Ok(rows)
        }
    });
    let mut rows = BTreeMap::new();
    for row in futures::future::join_all(passes).await {
        rows.extend(row?);
    }

    // A slot that is taken away.
    for unit in &mut units[1..] {
        unit.device.stop().await?;
    }
    let unit = &mut units[0];
    unit.device.stop().await?;
    let mut agent = unit.device.spawn(&[("EDGEFLEET_FAILPOINT", last.to_owned())])?;
    want_nothing(&mut stage).await?;
    let status = agent.wait(DEATH).await.context("nobody came by persisted.idle")?;
    ensure!(status.signal() == Some(9), "{last}: {status}");
    unit.device.start().await?;
    until("a device without slots", async || {
        let status = unit.device.status().await?;
        let slots = status["update"]["slots"].as_object().map_or(0, serde_json::Map::len);
        let phase = &status["update"]["slots"]["digits"]["phase"];
        Ok(if slots == 0 || *phase == "idle" { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    rows.insert(last, "nothing".into());

    println!("{:<22} {:>5}  serves after it", "crash point", "kills");
    rows.iter().for_each(|(point, served)| println!("{point:<22} {:>5}  {served}", 1));
    ensure!(rows.len() == names().len(), "{} of {} crash points", rows.len(), names().len());
    Ok(())
}
