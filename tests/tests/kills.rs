//! kill -9 of a real agent under a real controller: while it downloads, and at any moment of an update.
//!
//! After every kill: the device answers rightly before it has a network, and gets where it should in
//! the end. The table of each test is on standard output.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::faults::{Device, KeepAlive, Oracle, Stage, Throttle, source::Source, until};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 32 * 1024;
/// The outbox makes records durable together, at the latest 200 ms after the first.
const OUTBOX_GROUP: Duration = Duration::from_millis(400);

/// A different run each time, and the same one again with the seed it printed.
fn random() -> StdRng {
    let seed = std::env::var("EDGEFLEET_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("EDGEFLEET_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn oracle() -> Result<Oracle> {
    Oracle::default()
        .with("digits@1", "digits/v1/golden")?
        .with("digits@2", "digits/v2/golden")?
        .with("digits@3", "digits/v1/golden")
}

/// Length of the growing part file, and how much of it is noted as synced.
fn part(device: &Device) -> Option<(u64, u64)> {
    let folder = device.data.join("bundles/blobs/sha256");
    let paths: Vec<_> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let part = paths.iter().find(|path| path.extension().is_some_and(|e| e == "part"))?;
    let len = fs::metadata(part).ok()?.len();
    let notes = fs::read(part.with_extension("note")).unwrap_or_default();
    let noted =
        notes.chunks_exact(12).filter_map(|note| Some(u64::from_le_bytes(*note.first_chunk()?))).max();
    Some((len, noted.unwrap_or(0)))
}

/// Starts the agent with its link cut, checks what it answers, and mends the link.
async fn restart(device: &mut Device, link: &Throttle, oracle: &Oracle, allowed: &[&str]) -> Result<String> {
    link.cut();
    device.start().await?;
    let bundles = device.answering(oracle).await.context("right after the restart, without a network")?;
    ensure!(bundles.iter().all(|bundle| allowed.contains(&bundle.as_str())), "{bundles:?} serve");
    let first = bundles.into_iter().next().context("nobody answered")?;
    let connected = &device.status().await?["link"]["connected"];
    ensure!(*connected == false, "the link was cut, and `connected` is {connected}");
    link.mend();
    Ok(first)
}

/// Bytes of blocks the controller has sent to the device.
async fn sent(stage: &Stage, device: &Device) -> Result<u64> {
    let telemetry = stage.telemetry(device).await?;
    Ok(telemetry["transfer"]["bytes"].as_u64().unwrap_or(0))
}

/// As [`sent`], once the session of the killed agent is over and nothing more is sent.
async fn sent_at_rest(stage: &Stage, device: &Device) -> Result<u64> {
    until("the end of the session", async || {
        let shown = stage.device(device).await?;
        Ok(if shown["online"] == false { Ok(()) } else { Err("still online".into()) })
    })
    .await?;
    let mut before = sent(stage, device).await?;
    until("the end of sending", async || {
        let now = sent(stage, device).await?;
        Ok(if std::mem::replace(&mut before, now) == now { Ok(now) } else { Err(format!("{now} bytes")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_kills_within_a_download_cost_at_most_one_mebibyte_each() -> Result<()> {
    const KILLS: usize = 20;
    const SIZE: u64 = 8 * MIB;
    let mut random = random();
    let stage = Stage::open().await?;
    stage.publish(Source::digits(1)?, 1).await?;
    let mut large = Source::digits(2)?;
    large.pad(SIZE as usize, 1)?; // not above 8 MiB: still over MQTT
    stage.publish(large, 2).await?;
    let oracle = oracle()?;

    let mut device = stage.enrol("killed").await?;
    let link = Throttle::start(stage.mqtt.parse()?, 100 * MIB).await?;
    device.connect_to(link.address)?;
    device.start().await?;
    stage.committed(&stage.assign(1, 0).await?, &device).await?;

    let mut at: Vec<u64> = (0..KILLS).map(|_| random.random_range(0..SIZE / BLOCK)).collect();
    at.sort_unstable();
    let first = sent(&stage, &device).await?;
    link.set_rate(4 * MIB);
    let rollout = stage.assign(2, 0).await?;
    let (mut before, mut kept) = (first, 0);
    let mut wasted = Vec::new();
    println!("{:>4} {:>6} {:>10} {:>10} {:>12}", "kill", "block", "on disk", "synced", "asked again");
    for (n, block) in at.iter().enumerate() {
        let reached = Instant::now();
        // Tight: a block of 32 KiB takes 8 ms.
        while part(&device).is_none_or(|(len, _)| len < (block * BLOCK).max(1)) {
            ensure!(reached.elapsed() < Duration::from_secs(60), "block {block} was not reached");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        device.kill();
        let (len, synced) = part(&device).context("the part is gone")?;
        let now = sent_at_rest(&stage, &device).await?;
        // What was sent since the last start and is not safely on disk will be asked for again.
        let lost = (now - before).saturating_sub(synced - kept);
        println!("{:>4} {block:>6} {len:>10} {synced:>10} {lost:>12}", n + 1);
        ensure!(lost <= MIB, "kill {} costs {lost} bytes", n + 1);
        wasted.push(lost);
        (before, kept) = (now, synced);
        restart(&mut device, &link, &oracle, &["digits@1"]).await?;
    }
    link.set_rate(100 * MIB);
    stage.committed(&rollout, &device).await?;
    ensure!(device.examine(&oracle).await? == "digits@2");
    let total = sent(&stage, &device).await? - first;
    let again = total.saturating_sub(SIZE);
    wasted.sort_unstable();
    println!(
        "{KILLS} kills: {SIZE} bytes took {total}, {again} asked again; per kill median {}, most {}",
        wasted[KILLS / 2],
        wasted[KILLS - 1]
    );
    ensure!(again <= KILLS as u64 * MIB + MIB, "{again} bytes were asked again");
    Ok(())
}

/// Closed-loop askers that outlive the agent's kills, and what they heard.
struct Askers {
    address: Arc<tokio::sync::watch::Sender<String>>,
    heard: Arc<Heard>,
    tasks: Vec<tokio::task::JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Heard {
    /// Right answers.
    answers: AtomicU64,
    /// Requests whose answer a kill cut off: counted by the agent or not.
    broken: AtomicU64,
    stop: AtomicBool,
}

impl Askers {
    fn start(count: usize, oracle: &Oracle) -> Self {
        let address = Arc::new(tokio::sync::watch::Sender::new(String::new()));
        let heard = Arc::new(Heard::default());
        let tasks = (0..count)
            .map(|n| tokio::spawn(ask(n, oracle.clone(), address.subscribe(), heard.clone())))
            .collect();
        Self { address, heard, tasks }
    }

    /// The agent answers here from now on; empty while there is none.
    fn point_to(&self, address: &str) {
        self.address.send_replace(address.to_owned());
    }

    fn answers(&self) -> u64 {
        self.heard.answers.load(Ordering::SeqCst)
    }

    /// # Errors
    /// The first wrong answer.
    async fn end(self) -> Result<(u64, u64)> {
        self.heard.stop.store(true, Ordering::SeqCst);
        self.point_to("");
        drop(self.address);
        for task in self.tasks {
            task.await??;
        }
        Ok((self.heard.answers.load(Ordering::SeqCst), self.heard.broken.load(Ordering::SeqCst)))
    }
}

async fn ask(
    n: usize,
    oracle: Oracle,
    mut address: tokio::sync::watch::Receiver<String>,
    heard: Arc<Heard>,
) -> Result<()> {
    let mut question = n;
    loop {
        let Ok(found) = address.wait_for(|address| !address.is_empty()).await.map(|found| found.clone())
        else {
            return Ok(());
        };
        let Ok(mut connection) = KeepAlive::connect(&found).await else {
            if address.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        while *address.borrow() == found && !heard.stop.load(Ordering::SeqCst) {
            question += 1;
            match oracle.ask(&mut connection, question).await {
                Ok(_) => heard.answers.fetch_add(1, Ordering::SeqCst),
                // Killed in between, or the wrong thing was said: these must be told apart.
                Err(error) if error.downcast_ref::<std::io::Error>().is_some() => {
                    heard.broken.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                Err(error) if error.to_string() == "the connection was closed" => {
                    heard.broken.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                Err(error) => return Err(error),
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if *address.borrow() == found && address.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// Requests the controller counted for the device, all bundles together.
async fn counted(stage: &Stage, device: &Device) -> Result<u64> {
    let telemetry = stage.telemetry(device).await?;
    ensure!(telemetry["dropped"] == 0, "the device lost records: {telemetry}");
    let bundles = telemetry["bundles"].as_array().cloned().unwrap_or_default();
    Ok(bundles.iter().filter_map(|bundle| bundle["counts"]["requests"].as_u64()).sum())
}

/// Has the device send what it counted, and waits until at least `least` requests are counted.
async fn settle(stage: &Stage, device: &Device, least: u64) -> Result<u64> {
    let path = format!("/api/v1/devices/{}/commands", device.id);
    until(&format!("{least} counted requests"), async || {
        // Refused while the device is still on its way back.
        let told = stage.post(&path, &json!({"action": {"kind": "report"}})).await;
        let now = counted(stage, device).await?;
        Ok(if now >= least { Ok(now) } else { Err(format!("{now} so far ({:?})", told.err())) })
    })
    .await
}

/// Where kills are aimed at; what is hit is what the table says.
const AIMS: [&str; 6] = ["", "fetching", "testing", "switching", "probation", "committed"];

/// Waits until the rollout is in that phase on the device, or beyond it.
async fn aimed(device: &Device, rollout: &str, aim: &str) -> Result<()> {
    let rank = |phase: &str| AIMS.iter().position(|aim| *aim == phase);
    until(&format!("{rollout} {aim}"), async || {
        let status = device.status().await?;
        let slot = &status["update"]["slots"]["digits"];
        let under_way =
            ["target", "active"].iter().any(|at| slot[at]["attempt"].to_string().contains(rollout));
        let now = phase(&status);
        // Given up, or come to the end: no phase follows.
        let there = under_way && rank(&now).is_none_or(|now| Some(now) >= rank(aim));
        let refused = slot["last_error"]["attempt"].to_string().contains(rollout);
        Ok(if aim.is_empty() || there || refused { Ok(()) } else { Err(status.to_string()) })
    })
    .await
}

fn phase(status: &Value) -> String {
    status["update"]["slots"]["digits"]["phase"].as_str().unwrap_or("none").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_at_any_moment_leave_a_right_bundle_and_lose_no_acknowledged_count() -> Result<()> {
    const KILLS: u64 = 54;
    let mut random = random();
    let stage = Stage::open().await?;
    stage.publish(Source::digits(1)?, 1).await?;
    stage.publish(Source::digits(2)?, 2).await?;
    let mut large = Source::digits(1)?;
    large.pad(3 << 20, 3)?;
    stage.publish(large, 3).await?;
    let oracle = oracle()?;
    let mut device = stage.enrol("killed").await?;
    let link = Throttle::start(stage.mqtt.parse()?, 16 * MIB).await?;
    device.connect_to(link.address)?;
    device.start().await?;
    stage.committed(&stage.assign(1, 0).await?, &device).await?;

    let askers = Askers::start(3, &oracle);
    askers.point_to(&device.http);
    let mut rows = BTreeMap::<(String, String), u64>::new();
    let mut exposed = 0; // answers given since the device last sent all it had counted: a kill may cost them
    let (mut base_counted, mut base_answers) = (0, 0);
    for n in 0..KILLS {
        if n % 18 == 17 {
            offline_windows_survive(&stage, &mut device, &link, &askers, &oracle, &mut rows).await?;
            (base_counted, base_answers) = (counted(&stage, &device).await?, askers.answers());
            continue;
        }
        let rollout = stage.assign((n + 1) % 3 + 1, 1).await?;
        let (aim, pause) = (random.random_range(0..AIMS.len()), random.random_range(0..300));
        aimed(&device, &rollout, AIMS[aim]).await?;
        match n % 3 {
            // Everything counted so far has to be there before the kill.
            0 => {
                let answers = askers.answers();
                settle(&stage, &device, base_counted + (answers - base_answers)).await?;
                base_answers = answers;
            }
            // Killed while windows or their acknowledgements are on the way.
            1 => {
                let path = format!("/api/v1/devices/{}/commands", device.id);
                let body = json!({"action": {"kind": "report"}});
                let report = stage.post(&path, &body);
                tokio::time::timeout(Duration::from_millis(pause), report).await.ok();
            }
            _ => tokio::time::sleep(Duration::from_millis(pause)).await,
        }
        let seen = device.status().await.map_or_else(|_| "none".into(), |status| phase(&status));
        askers.point_to("");
        device.kill();
        exposed += askers.answers() - base_answers;
        let served = restart(&mut device, &link, &oracle, &["digits@1", "digits@2", "digits@3"]).await?;
        *rows.entry((seen, served)).or_default() += 1;
        base_counted = counted(&stage, &device).await?;
        base_answers = askers.answers();
        // The questions of the restart are answers, too.
        askers.heard.answers.fetch_add(oracle.questions() as u64, Ordering::SeqCst);
        askers.point_to(&device.http);
    }
    let last = stage.assign(2, 1).await?;
    stage.committed(&last, &device).await?;
    ensure!(device.examine(&oracle).await? == "digits@2");
    askers.heard.answers.fetch_add(oracle.questions() as u64, Ordering::SeqCst);
    let (answers, broken) = askers.end().await?;
    let least = base_counted + (answers - base_answers);
    settle(&stage, &device, least).await?;
    // Once more, so that whatever else waited has come.
    let total = settle(&stage, &device, least).await?;

    println!("{:<20} {:<10} {:>5}", "phase at the kill", "serves", "kills");
    rows.iter().for_each(|((phase, served), n)| println!("{phase:<20} {served:<10} {n:>5}"));
    println!(
        "{answers} answers, {broken} cut off by a kill, {total} counted; a kill may cost {exposed} in all"
    );
    ensure!(rows.values().sum::<u64>() == KILLS, "{rows:?}");
    ensure!(
        total <= answers + broken,
        "{total} counted, {answers} + {broken} answered: something counted twice"
    );
    ensure!(total + exposed >= answers, "{total} counted of {answers}, at most {exposed} may be missing");
    let rollouts = stage.get("/api/v1/rollouts").await?;
    for rollout in rollouts["items"].as_array().context("no rollouts")? {
        let counts = &rollout["counts"];
        let ended: u64 = ["committed", "failed", "superseded", "cancelled"]
            .iter()
            .filter_map(|b| counts[b].as_u64())
            .sum();
        ensure!(ended == 1, "one device, one attempt, one end: {rollout}");
    }
    Ok(())
}

/// Lets the device finish the update under way without a network, kills it, and checks that the
/// controller then gets every single request that the old bundle had answered.
async fn offline_windows_survive(
    stage: &Stage,
    device: &mut Device,
    link: &Throttle,
    askers: &Askers,
    oracle: &Oracle,
    rows: &mut BTreeMap<(String, String), u64>,
) -> Result<()> {
    // Whatever goes on ends first; then the other of two bundles that are both on disk.
    let now = until("a settled device", async || {
        let status = device.status().await?;
        let settled = ["committed", "rolled-back-local"].contains(&phase(&status).as_str());
        let report = &status["update"]["slots"]["digits"];
        let have = report["active"]["bundle"].as_str().map(str::to_owned);
        Ok(have.filter(|_| settled && report["target"].is_null()).ok_or(status.to_string()))
    })
    .await?;
    let other = if now == "digits@2" { 1 } else { 2 };
    stage.committed(&stage.assign(other, 0).await?, device).await?;
    let back = now.rsplit('@').next().and_then(|n| n.parse().ok()).context("a bundle without counter")?;
    askers.point_to("");
    until("no request in flight", async || {
        let status = device.status().await?;
        let busy = &status["slots"]["digits"]["in_flight"];
        Ok(if *busy == 0 { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    let before = settle_exactly(stage, device).await?;
    let asked = 3 * oracle.questions() as u64;
    for _ in 0..3 {
        device.examine(oracle).await?;
    }
    askers.heard.answers.fetch_add(asked, Ordering::SeqCst);
    // As soon as the device knows what is wanted, the network is gone; all it needs is on disk.
    let rollout = stage.assign(back, 0).await?;
    until("the new generation", async || {
        let status = device.status().await?;
        let slot = &status["update"]["slots"]["digits"];
        let attempt = |which: &str| slot[which]["attempt"].to_string().contains(&rollout);
        Ok(if attempt("target") || attempt("active") { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    link.cut();
    until("the switch without a network", async || {
        let status = device.status().await?;
        let slot = &status["update"]["slots"]["digits"];
        let there = slot["active"]["bundle"] == *now && phase(&status) == "committed";
        Ok(if there { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    until("the old bundle's window in the outbox", async || {
        let status = device.status().await?;
        let there = status["records_waiting"] == 0 && status["outbox"]["records"].as_u64() >= Some(2);
        Ok(if there { Ok(()) } else { Err(status.to_string()) })
    })
    .await?;
    tokio::time::sleep(OUTBOX_GROUP).await;
    device.kill();
    let served = restart(device, link, oracle, &[&now]).await?;
    askers.heard.answers.fetch_add(oracle.questions() as u64, Ordering::SeqCst);
    let after = until("the windows of the bundle before", async || {
        let found = counted(stage, device).await?;
        Ok(if found >= before + asked { Ok(found) } else { Err(format!("{found}, before {before}")) })
    })
    .await?;
    ensure!(after == before + asked, "{after} counted, {before} and {asked} are right");
    stage.committed(&rollout, device).await?;
    *rows.entry(("committed offline".into(), served)).or_default() += 1;
    askers.point_to(&device.http);
    Ok(())
}

/// Has the device send everything and waits until nothing more comes. Nobody asks it anything meanwhile.
async fn settle_exactly(stage: &Stage, device: &Device) -> Result<u64> {
    let path = format!("/api/v1/devices/{}/commands", device.id);
    let mut before = None;
    until("an empty outbox", async || {
        if stage.post(&path, &json!({"action": {"kind": "report"}})).await.is_err() {
            return Ok(Err("no answer to the command".into()));
        }
        // What the command has just handed over is in the outbox's figures a moment later.
        tokio::time::sleep(OUTBOX_GROUP).await;
        let status = device.status().await?;
        if status["outbox"]["records"] != 0 || status["records_waiting"] != 0 {
            return Ok(Err(status.to_string()));
        }
        let now = counted(stage, device).await?;
        let same = before.replace(now) == Some(now);
        Ok(if same { Ok(now) } else { Err(format!("{now} counted, and perhaps more")) })
    })
    .await
}
