//! How many windows a second the controller takes in: the worker with its store alone, in this process, and the whole of
//! it, over MQTT and TLS with a session per device. The difference of processor time is the broker's share.

use super::{
    clients::{self, Device},
    memory::Pss,
    telemetry::{Speaker, WINDOWS_PER_HOUR},
};
use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use edgefleet_controller::{
    demo::stage::Stage,
    ingest::{Ingest, Monitoring, Surroundings},
    rollouts::{Documents, Enlisted, Rollouts, Roster},
    store::{
        FleetStore,
        audit::AuditLog,
        sled_home::{SledConfig, SledStore},
    },
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    selector::Selector,
    telemetry::Ack,
    time::Timestamp,
    topics::Channel,
};
use rumqttc::{AsyncClient, Event, Packet, QoS};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinSet};

const BUNDLE: &str = "digits@1";
/// Nothing is heard for so long: it stands still.
const SILENCE: Duration = Duration::from_secs(60);
/// Clock ticks of `/proc/PID/stat` in a second, on Linux.
const TICKS: f64 = 100.0;

/// `hours` of `devices`, first to the worker alone, then through the broker.
pub(super) async fn ingest(
    controller: &Path,
    agent: &Path,
    dir: &Path,
    devices: u64,
    hours: u64,
) -> Result<Value> {
    let alone = alone(dir, devices, hours).await?;
    let whole = whole(controller, agent, dir, devices, hours).await?;
    let cpu = |part: &Value| part["cpu_us_per_window"].as_f64().unwrap_or(0.0);
    Ok(json!({
        "devices": devices,
        "hours": hours,
        "cores": std::thread::available_parallelism()?.get(),
        "broker_share_of_cpu": 1.0 - cpu(&alone[0]) / cpu(&whole).max(1e-9),
        "rows": [alone[0], alone[1], whole],
    }))
}

fn now() -> Timestamp {
    edgefleet_controller::clock::now()
}

/// Processor seconds of a process, all its threads, both modes.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = text.rsplit_once(')').context("/proc/PID/stat has another form")?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|n| n.parse::<f64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("/proc/PID/stat has another form")?;
    Ok((user + system) / TICKS)
}

/// Reads memory at the start and when half is done; the end is read by whoever sees it.
struct Progress {
    pid: u32,
    all: u64,
    memory: Vec<Pss>,
}

impl Progress {
    fn at(&mut self, done: u64) -> Result<()> {
        if self.memory.len() < 2 && done * 2 >= self.memory.len() as u64 * self.all {
            self.memory.push(Pss::read(self.pid)?);
        }
        Ok(())
    }
}

struct Nobody;

impl Roster for Nobody {
    fn select(&self, _: &[Selector]) -> Vec<Enlisted> {
        vec![]
    }
    fn last_seen(&self, _: &DeviceId) -> Option<Timestamp> {
        None
    }
    fn reported_generation(&self, _: &DeviceId) -> u64 {
        0
    }
    fn is_enrolled(&self, _: &DeviceId) -> bool {
        false
    }
    fn is_online(&self, _: &DeviceId) -> bool {
        false
    }
}

struct Around(mpsc::UnboundedSender<(DeviceId, Ack)>);

#[async_trait]
impl Surroundings for Around {
    async fn is_known(&self, bundle: &BundleName) -> bool {
        bundle.to_string() == BUNDLE
    }
    fn is_isolated(&self, _: &DeviceId) -> bool {
        false
    }
    fn labels(&self, _: &DeviceId) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    async fn acknowledge(&self, device: &DeviceId, ack: Ack) {
        let _ = self.0.send((device.clone(), ack));
    }
}

/// The worker with sled, twice: a window a message, as it is every day, and an hour a message, as after an outage.
async fn alone(dir: &Path, devices: u64, hours: u64) -> Result<[Value; 2]> {
    let (store, _) = SledStore::open(SledConfig::new(dir.join("alone"))).await?;
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let audit = Arc::new(AuditLog::new(store.clone()));
    let rollouts = Rollouts::new(Documents::new(store.clone()), audit.clone(), Arc::new(Nobody));
    let monitoring = Monitoring::open(store.clone(), audit).await?;
    let (sender, mut acks) = mpsc::unbounded_channel();
    let (worker, queue) = Ingest::new(store.clone(), rollouts, Arc::new(Around(sender)), monitoring);
    let running = tokio::spawn(worker.run());
    let pid = std::process::id();
    let mut rows = Vec::new();
    for (name, number, together) in
        [("worker, a window a message", 0, 1), ("worker, an hour a message", 10_000_000, WINDOWS_PER_HOUR)]
    {
        let span = Duration::from_secs(3_600) * u32::try_from(hours)?;
        let mut speakers = BTreeMap::new();
        for n in 0..devices {
            let id: DeviceId = format!("dev-{}", number + n).parse()?;
            speakers.insert(id.clone(), Speaker::new(id, number + n, BUNDLE.parse()?, now() - span));
        }
        let messages = hours * WINDOWS_PER_HOUR / together;
        // What devices do is no part of the measurement.
        let mut said = Vec::new();
        for _ in 0..messages {
            for (id, speaker) in &mut speakers {
                said.push((id.clone(), speaker.next(together)?, speaker.said()));
            }
        }
        let windows = devices * hours * WINDOWS_PER_HOUR;
        let mut progress = Progress { pid, all: said.len() as u64, memory: Vec::new() };
        let (began, cpu) = (Instant::now(), cpu_seconds(pid)?);
        let mut last = BTreeMap::new();
        progress.at(0)?;
        for (at, (id, message, upto)) in said.into_iter().enumerate() {
            while queue.offer(&id, &message).is_err() {
                hear(&mut acks, &mut last).await?; // a full queue empties
            }
            last.entry(id).or_insert((0, 0)).1 = upto;
            progress.at(at as u64)?;
        }
        while last.values().any(|(heard, said)| heard < said) {
            hear(&mut acks, &mut last).await?;
        }
        progress.memory.push(Pss::read(pid)?);
        rows.push(row(name, windows, began.elapsed(), cpu_seconds(pid)? - cpu, &progress.memory)?);
    }
    drop(queue);
    running.await?;
    let size = store.size_on_disk().await?;
    store.close().await?;
    rows[1]["store_bytes"] = size.into();
    let [steady, outage] = <[Value; 2]>::try_from(rows).map_err(|_| anyhow::anyhow!("two runs"))?;
    Ok([steady, outage])
}

/// Takes the next acknowledgement in: (heard, said) by device.
async fn hear(
    acks: &mut mpsc::UnboundedReceiver<(DeviceId, Ack)>,
    last: &mut BTreeMap<DeviceId, (u64, u64)>,
) -> Result<()> {
    let next = tokio::time::timeout(SILENCE, acks.recv()).await.context("no acknowledgement")?;
    let (device, ack) = next.context("the worker ended")?;
    let heard = ack.boots.first().map_or(0, |boot| boot.contiguous);
    let entry = last.entry(device).or_insert((0, 0));
    entry.0 = entry.0.max(heard);
    Ok(())
}

fn row(name: &str, windows: u64, took: Duration, cpu: f64, memory: &[Pss]) -> Result<Value> {
    let pss = |at: usize| memory.get(at).map(|pss| pss.pss_bytes);
    Ok(json!({
        "what": name,
        "windows": windows,
        "windows_per_second": windows as f64 / took.as_secs_f64(),
        "cpu_us_per_window": cpu * 1e6 / windows as f64,
        "pss_bytes": [pss(0), pss(1), pss(memory.len().saturating_sub(1))],
    }))
}

/// A controller of its own, a session per device, one message on its way each.
async fn whole(controller: &Path, agent: &Path, dir: &Path, devices: u64, hours: u64) -> Result<Value> {
    let stage = Stage::open(controller.to_owned(), agent.to_owned(), dir.to_owned()).await?;
    let bundle = dir.join("bundle");
    let bundle = bundle.to_string_lossy();
    stage.command(&["model", "build", "models/digits/v1", "--out", &bundle]).await?;
    let key = stage.controller_dir().join("keys/publisher.pk8");
    stage.command(&["model", "sign", &bundle, "--key", &key.to_string_lossy()]).await?;
    stage.command(&["model", "push", &bundle]).await?;
    let uses = devices.to_string();
    let invite =
        stage.command(&["device", "invite", "--labels", "site=lab", "--uses", &uses, "--ttl", "2h"]).await?;
    let code = invite["code"].as_str().context("no join code")?;
    let enrolled = clients::enrol(code, usize::try_from(devices)?).await?;

    let messages = hours * WINDOWS_PER_HOUR;
    let begin = now() - Duration::from_secs(3_600) * u32::try_from(hours)?;
    let pid = stage.serve.pid();
    let done = Arc::new(AtomicU64::new(0));
    let (ready, mut readies) = mpsc::channel(1);
    let (go, going) = tokio::sync::watch::channel(false);
    let mut sessions = JoinSet::new();
    for (number, device) in enrolled.into_iter().enumerate() {
        let speaker = Speaker::new(device.id().clone(), number as u64, BUNDLE.parse()?, begin);
        let said = said(speaker, messages)?;
        sessions.spawn(session(device, said, done.clone(), ready.clone(), going.clone()));
    }
    for n in 0..devices {
        let next = tokio::time::timeout(SILENCE, readies.recv()).await;
        ensure!(next.ok().flatten().is_some(), "only {n} of {devices} devices connected");
    }
    let windows = devices * messages;
    let mut progress = Progress { pid, all: windows, memory: Vec::new() };
    let (began, cpu) = (Instant::now(), cpu_seconds(pid)?);
    go.send(true)?;
    let mut heard = (Instant::now(), 0);
    while done.load(Relaxed) < windows {
        progress.at(done.load(Relaxed))?;
        if done.load(Relaxed) > heard.1 {
            heard = (Instant::now(), done.load(Relaxed));
        }
        ensure!(heard.0.elapsed() < SILENCE, "{} of {windows} windows were acknowledged", heard.1);
        if let Some(Err(ended)) | Some(Ok(Err(ended))) =
            sessions.try_join_next().map(|joined| joined.map_err(anyhow::Error::from))
        {
            return Err(ended.context("a session ended"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (took, cpu) = (began.elapsed(), cpu_seconds(pid)? - cpu);
    progress.memory.push(Pss::read(pid)?);
    let shown = stage.command(&["monitor", "show", BUNDLE, "--since", "30d"]).await?;
    ensure!(shown["windows"] == windows, "{} of {windows} windows are stored", shown["windows"]);
    row("controller, a window a message, MQTT over TLS", windows, took, cpu, &progress.memory)
}

/// Messages and the number of their last record.
fn said(mut speaker: Speaker, messages: u64) -> Result<Vec<(Vec<u8>, u64)>> {
    (0..messages).map(|_| Ok((speaker.next(1)?, speaker.said()))).collect()
}

async fn session(
    device: Device,
    said: Vec<(Vec<u8>, u64)>,
    done: Arc<AtomicU64>,
    ready: mpsc::Sender<()>,
    mut going: tokio::sync::watch::Receiver<bool>,
) -> Result<()> {
    let mut options = clients::options(&device)?;
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut events) = AsyncClient::new(options, 16);
    let id = device.id().clone();
    let mut said = said.into_iter();
    let mut awaited = None;
    let publish =
        |message: Vec<u8>| client.try_publish(Channel::Telemetry.of(&id), QoS::AtLeastOnce, false, message);
    let mut begun = false;
    loop {
        let event = tokio::select! {
            event = events.poll() => event.with_context(|| format!("device `{id}`"))?,
            changed = going.changed(), if !begun => {
                changed?;
                begun = true;
                if let Some((message, upto)) = said.next() {
                    publish(message)?;
                    awaited = Some(upto);
                }
                continue;
            }
        };
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                client.try_subscribe(Channel::Ack.of(&id), QoS::AtLeastOnce)?;
            }
            Event::Incoming(Packet::SubAck(_)) => ready.send(()).await?,
            Event::Incoming(Packet::Publish(publication)) => {
                let ack: Ack = serde_json::from_slice(&publication.payload)?;
                let Some(boot) = ack.boots.first() else { bail!("an empty acknowledgement") };
                if awaited.is_none_or(|upto| boot.contiguous < upto) {
                    continue;
                }
                awaited = None;
                done.fetch_add(1, Relaxed);
                if let Some((message, upto)) = said.next() {
                    publish(message)?;
                    awaited = Some(upto);
                }
            }
            _ => {}
        }
    }
}
