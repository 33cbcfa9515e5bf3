//! What profiles cost: time of a request, bytes of a device's day on the wire. `profile_cost`; one JSON document on
//! stdout, parts of `make bench`.
//!
//! On and off take turns in blocks of the same run, with the agent's own monitor; the bytes are those of the messages
//! that a real outbox hands out, over a day whose clock is turned by hand: the same in every run.

use anyhow::{Context, Result};
use bytes::Bytes;
use edgefleet_agent::{
    monitor::{
        Class, Moment, Monitor, MonitorClock, MonitorConfig, Observation, Outcome, RecordSink, Recorder,
        SinkError, Subject,
        profile::{BundleBaseline, Profiler},
    },
    store::outbox::{Bounds, Outbox},
};
use edgefleet_shared::{
    bundle::{Baseline, Manifest},
    digest::BundleDigest,
    ids::{AttemptId, BootId},
    reported::ClockQuality,
    telemetry::{Ack, BootAck, DeviceHealth, Latency, Moments, RecordBody, Role, TelemetryBatch},
    tensor::{Datatype, Tensor},
    time::Timestamp,
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const BLOCKS: usize = 60;
const REQUESTS: usize = 200;
/// Rows that a device of the day's measurement answers in five minutes.
const ROWS: u64 = 100;

struct Hand(AtomicU64);
impl MonitorClock for Hand {
    fn now(&self) -> Moment {
        let mono_ms = self.0.load(Ordering::Relaxed);
        let wall = Timestamp::from_millis(1_800_000_000_000 + mono_ms);
        Moment { mono_ms, wall, clock: ClockQuality::Plausible }
    }
}

/// Into the outbox, or nowhere.
struct Sink(Option<Outbox>);
impl RecordSink for Sink {
    fn append(&self, record: RecordBody) -> Result<(), SinkError> {
        let Some(outbox) = &self.0 else { return Ok(()) };
        outbox.append_soon(record).map_err(|e| SinkError { reason: e.to_string() })
    }
}

/// Numbers that look like noise, the same in every run.
struct Noise(u64);
impl Noise {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}

fn manifest(inputs: Value) -> Result<Manifest> {
    Ok(serde_json::from_value(json!({
        "schema": 1, "model": {"name": "m", "counter": 1, "version": "1"},
        "interface": {"inputs": inputs, "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 10]}]},
        "prediction": {"scores": "p"}
    }))?)
}

fn tensor(name: &str, shape: &[usize], values: impl Iterator<Item = f64>) -> Result<Tensor> {
    let raw: Vec<u8> = values.flat_map(|x| (x as f32).to_le_bytes()).collect();
    Ok(Tensor::new(name, Datatype::Fp32, shape.to_vec(), Bytes::from(raw))?)
}

struct Case {
    monitor: Monitor,
    clock: Arc<Hand>,
    recorder: Arc<Recorder>,
}

fn case(manifest: &Manifest, baseline: BundleBaseline, outbox: Option<Outbox>) -> Result<Case> {
    let clock = Arc::new(Hand(AtomicU64::new(0)));
    let config = MonitorConfig::new("bench".parse()?, BootId::from_random([1; 16]));
    let monitor = Monitor::new(config, clock.clone(), Arc::new(Sink(outbox)));
    let subject = Subject {
        slot: "m".parse()?,
        bundle: manifest.name(),
        digest: BundleDigest::of(b"m"),
        role: Role::Primary,
        attempt: AttemptId { rollout: "bench".parse()?, number: 1 },
        classes: Arc::default(),
    };
    let recorder = monitor.watch_inputs(subject, Arc::new(Profiler::new(manifest, baseline)));
    Ok(Case { monitor, clock, recorder })
}

fn answer(noise: &mut Noise) -> Result<(Tensor, Class)> {
    let raw: Vec<f64> = (0..10).map(|_| noise.unit().powi(6)).collect();
    let sum: f64 = raw.iter().sum();
    let (index, best) = raw.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).context("ten scores")?;
    let class = Class { index: index as u32, confidence: (best / sum) as f32 };
    Ok((tensor("p", &[1, 10], raw.iter().map(|x| x / sum))?, class))
}

/// Median nanoseconds of a request's look and profile, on and off.
fn cost(name: &str, manifest: &Manifest, inputs: &[Tensor], baseline: BundleBaseline) -> Result<Value> {
    let Case { monitor, recorder, .. } = case(manifest, baseline, None)?;
    let (scores, class) = answer(&mut Noise(7))?;
    let mut blocks = [Vec::new(), Vec::new()];
    for block in 0..2 * BLOCKS {
        let on = block % 2 == 0;
        monitor.set_profile(Duration::from_secs(if on { 3_600 } else { 0 }));
        let started = Instant::now();
        for _ in 0..REQUESTS {
            let look = recorder.look(std::hint::black_box(inputs));
            recorder.profile(look.as_ref(), std::slice::from_ref(&scores), &[class], &[]);
        }
        blocks[usize::from(on)].push(started.elapsed().as_nanos() as f64 / REQUESTS as f64);
    }
    blocks.iter_mut().for_each(|block| block.sort_by(f64::total_cmp));
    let [off, on] = blocks.map(|block| block[BLOCKS / 2]);
    Ok(
        json!({"case": name, "channels": Profiler::new(manifest, BundleBaseline::Absent).plan().channels().len(),
        "off_us": off / 1e3, "on_us": on / 1e3}),
    )
}

/// Edges for all channels of the table, as a baseline of normal numbers has them.
fn baseline(ids: &[String]) -> Result<BundleBaseline> {
    let mut noise = Noise(3);
    let mut values: Vec<f64> = (0..10_001).map(|_| noise.normal()).collect();
    values.sort_by(f64::total_cmp);
    let edges: Vec<f64> = (0..=20).map(|n| values[n * 500]).collect();
    let mut ids = ids.to_vec();
    ids.sort();
    let channels: Vec<Value> = ids
        .iter()
        .map(|id| json!({"id": id, "kind": "input", "n": 0, "edges": edges, "bins": vec![0; 22]}))
        .collect();
    let whole = json!({"schema": 1, "rows": 10_001, "channels": channels,
        "quality": {"n": 100, "accuracy": 0.9, "atc_threshold": 0.5, "calibration": {}, "ece_before": 0.0, "ece_after": 0.0}});
    Ok(BundleBaseline::Sound(Arc::new(Baseline::parse(&serde_json::to_vec(&whole)?)?)))
}

fn table(noise: &mut Noise) -> Result<Vec<Tensor>> {
    ["a", "b"].into_iter().map(|name| tensor(name, &[1, 16], (0..16).map(|_| noise.normal()))).collect()
}

/// Messages of a day, `windows` of five minutes in each.
async fn day(
    manifest: &Manifest,
    edges: &BundleBaseline,
    windows: u64,
    rows: u64,
) -> Result<Vec<TelemetryBatch>> {
    let dir = tempfile::tempdir()?;
    let boot = BootId::from_random([1; 16]);
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot, Bounds::default())?;
    let Case { monitor, clock, recorder } = case(manifest, edges.clone(), Some(outbox.clone()))?;
    let mut noise = Noise(11);
    let mut messages = Vec::new();
    for window in 0..288u64 {
        for _ in 0..rows {
            let inputs = table(&mut noise)?;
            let (scores, class) = answer(&mut noise)?;
            let look = recorder.look(&inputs);
            recorder.profile(look.as_ref(), std::slice::from_ref(&scores), &[class], &[]);
            let micros = |x: f64| Duration::from_micros(x as u64);
            let infer = micros(180.0 * (0.2 * noise.normal()).exp());
            let (queue, total) = (micros(12.0 * (0.5 * noise.normal()).exp()), infer + micros(90.0));
            let (outcome, classes) = (Outcome::Ok, &[class][..]);
            let seen =
                Observation { rows: 1, outcome, queue, infer, steps: None, pass_rows: 1, total, classes };
            recorder.record(&seen, window * 300_000);
        }
        clock.0.store((window + 1) * 300_000, Ordering::Relaxed);
        monitor.set_device(DeviceHealth {
            pss_kib: Some(24_000 + (noise.unit() * 900.0) as u64),
            rss_kib: Some(31_000 + (noise.unit() * 900.0) as u64),
            cpu_ms: Some(window * 2_000 + (noise.unit() * 500.0) as u64),
            cpu_percent: Some(1),
            temp_c: Some(50 + (noise.unit() * 9.0) as i32),
            slowed: Some(false),
            disk_free_mib: Some(9_000 - window),
        });
        monitor.tick();
        outbox.flush().await;
        if !(window + 1).is_multiple_of(windows) {
            continue;
        }
        let records = outbox.peek(1 << 20, 256).await;
        let Some(last) = records.last().map(|record| record.seq) else { continue };
        messages.push(TelemetryBatch { schema: 1, device: "d-0123456789abcdef".parse()?, records });
        outbox.ack(Ack { schema: 1, boots: vec![BootAck { boot, contiguous: last, extra: vec![] }] }).await;
    }
    outbox.close().await;
    Ok(messages)
}

fn bytes(messages: &[TelemetryBatch]) -> Result<usize> {
    messages.iter().try_fold(0, |sum, message| Ok(sum + message.to_bytes()?.len()))
}

/// What the messages are smaller by without one part of them.
fn parts(messages: &[TelemetryBatch]) -> Result<Value> {
    type Cut = fn(&mut RecordBody);
    let cuts: [(&str, Cut); 5] = [
        ("latency of windows", |body| {
            if let RecordBody::Window(window) = body {
                window.latency = Latency::default();
            }
        }),
        ("classes of windows", |body| {
            if let RecordBody::Window(window) = body {
                window.classes.clear();
            }
        }),
        ("device health of windows", |body| {
            if let RecordBody::Window(window) = body {
                window.device = None;
            }
        }),
        ("bins of profiles", |body| {
            if let RecordBody::Profile(profile) = body {
                profile.content.channels.iter_mut().for_each(|channel| channel.bins.clear());
            }
        }),
        ("moments of profiles", |body| {
            if let RecordBody::Profile(profile) = body {
                profile.content.channels.iter_mut().for_each(|channel| channel.moments = Moments::default());
            }
        }),
    ];
    let whole = bytes(messages)?;
    let mut found = Vec::new();
    for (part, cut) in cuts {
        let mut less = messages.to_vec();
        less.iter_mut().flat_map(|message| &mut message.records).for_each(|record| cut(&mut record.body));
        found.push(json!({"part": part, "bytes": whole - bytes(&less)?}));
    }
    let mut windows = messages.to_vec();
    for message in &mut windows {
        message.records.retain(|record| matches!(record.body, RecordBody::Window(_)));
    }
    windows.retain(|message| !message.records.is_empty());
    found.push(json!({"part": "profiles altogether", "bytes": whole - bytes(&windows)?}));
    Ok(Value::Array(found))
}

#[tokio::main]
async fn main() -> Result<()> {
    let spec = |name: &str, shape: Value| json!({"name": name, "datatype": "FP32", "shape": shape});
    let digits = manifest(json!([spec("image", json!([-1, 64]))]))?;
    let picture = manifest(json!([spec("image", json!([-1, 3, 224, 224]))]))?;
    let tables = manifest(json!([spec("a", json!([-1, 16])), spec("b", json!([-1, 16]))]))?;
    let ids: Vec<String> = Profiler::new(&tables, BundleBaseline::Absent)
        .plan()
        .channels()
        .iter()
        .map(|c| c.id.to_string())
        .collect();
    let edges = baseline(&ids)?;
    let mut noise = Noise(5);
    let image = tensor("image", &[1, 64], (0..64).map(|_| noise.unit() * 16.0))?;
    let large = tensor("image", &[1, 3, 224, 224], (0..3 * 224 * 224).map(|_| noise.unit()))?;
    let row = table(&mut noise)?;
    let costs = [
        cost("digits 8x8", &digits, &[image], BundleBaseline::Absent)?,
        cost("picture 3x224x224", &picture, &[large], BundleBaseline::Absent)?,
        cost("table of 32 columns", &tables, &row, edges.clone())?,
    ];
    let mut days = Vec::new();
    for (windows, rows) in [(1, ROWS), (12, ROWS), (1, ROWS / 10), (12, ROWS / 10)] {
        let messages = day(&tables, &edges, windows, rows).await?;
        days.push(json!({"channels": ids.len(), "rows": 288 * rows, "windows_a_message": windows,
            "messages": messages.len(), "bytes": bytes(&messages)?, "parts": parts(&messages)?}));
    }
    println!("{}", serde_json::to_string_pretty(&json!({"request": costs, "day": days}))?);
    Ok(())
}
