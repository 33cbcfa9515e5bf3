use super::*;
use crate::{
    rollouts::{Documents, Enlisted, Rollouts, Roster},
    store::{
        FleetStore, Repository,
        audit::AuditLog,
        sled_home::{SledConfig, SledStore},
    },
};
use async_trait::async_trait;
use edgefleet_shared::{
    digest::BundleDigest,
    ids::{AttemptId, BootId, BundleName, DeviceId},
    reported::ClockQuality,
    selector::Selector,
    telemetry::{
        Ack, Counts, LabelCounts, Latency, Record, RecordBody, Role, Sketch, TelemetryBatch, Window,
        batch::TELEMETRY_SCHEMA,
    },
    time::Timestamp,
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::mpsc;

/// Knows `digits@1` and hands acknowledgements to the test.
struct Around(mpsc::UnboundedSender<(DeviceId, Ack)>);

#[async_trait]
impl Surroundings for Around {
    async fn is_known(&self, bundle: &BundleName) -> bool {
        bundle.to_string() == "digits@1"
    }
    fn is_isolated(&self, device: &DeviceId) -> bool {
        device.as_str() == "dev-shared"
    }
    async fn acknowledge(&self, device: &DeviceId, ack: Ack) {
        let _ = self.0.send((device.clone(), ack));
    }
}

/// A fleet without devices: these tests are about records, not about rollouts.
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

fn rollouts(store: &Arc<dyn FleetStore>) -> Rollouts {
    let audit = Arc::new(AuditLog::new(store.clone()));
    Rollouts::new(Documents::new(store.clone()), audit, Arc::new(Nobody))
}

fn boot() -> BootId {
    BootId::from_random([1; 16])
}
fn at() -> Timestamp {
    crate::clock::now()
}

pub(super) fn window(bundle: &str, requests: u64) -> RecordBody {
    let mut total = Sketch::default();
    (0..requests).for_each(|_| total.record_us(1_000));
    RecordBody::Window(Box::new(Window {
        slot: "digits".parse().expect("slot"),
        bundle: bundle.parse().expect("bundle"),
        digest: BundleDigest::of(b"m"),
        role: Role::Primary,
        attempt: AttemptId { rollout: "r-1".parse().expect("id"), number: 1 },
        mono_start_ms: 0,
        mono_end_ms: 1_000,
        wall_start: at(),
        wall_end: at(),
        clock: ClockQuality::Plausible,
        counts: Counts { requests, rows: requests, ok: requests, ..Counts::default() },
        latency: Latency { total, ..Latency::default() },
        classes: BTreeMap::from([("7".to_owned(), requests)]),
        first_bad_ms: None,
        exceed: vec![],
        agreement: None,
    }))
}

fn labels(matched: u64, correct: u64) -> RecordBody {
    RecordBody::Labels(LabelCounts {
        slot: "digits".parse().expect("slot"),
        bundle: "digits@1".parse().expect("bundle"),
        digest: BundleDigest::of(b"m"),
        attempt: AttemptId { rollout: "r-1".parse().expect("id"), number: 1 },
        bucket: bucket_of(at()),
        source: "local".into(),
        matched,
        correct,
        confusion: vec![],
        unmatched: BTreeMap::new(),
        versus: None,
    })
}

fn batch(device: &str, records: Vec<(u64, RecordBody)>) -> Vec<u8> {
    let records = records.into_iter().map(|(seq, body)| Record { boot: boot(), seq, body }).collect();
    let device = device.parse().expect("device");
    TelemetryBatch { schema: TELEMETRY_SCHEMA, device, records }.to_bytes().expect("bytes")
}

#[tokio::test]
async fn each_record_counts_once_however_often_it_comes_and_only_stored_ones_are_acknowledged() {
    let dir = tempfile::tempdir().expect("temp");
    let (store, _) = SledStore::open(SledConfig::new(dir.path().join("s"))).await.expect("store");
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let _ = tracing_subscriber::fmt().with_test_writer().try_init();
    let (sender, mut acks) = mpsc::unbounded_channel();
    let (worker, queue) = Ingest::new(store.clone(), rollouts(&store), Arc::new(Around(sender)));
    let totals = worker.totals();
    let running = tokio::spawn(worker.run());
    let device: DeviceId = "dev-1".parse().expect("device");

    let first = batch("dev-1", vec![(1, window("digits@1", 10)), (2, labels(10, 9))]);
    for _ in 0..3 {
        queue.offer(&device, &first).expect("room");
    }
    queue.offer(&device, &batch("dev-1", vec![(4, window("invented@7", 5))])).expect("room");
    queue.offer(&device, &batch("dev-2", vec![(1, window("digits@1", 5))])).expect("room"); // forged
    queue.offer(&device, b"garbage").expect("room");
    drop(queue);
    running.await.expect("worker");

    let mut last = None;
    while let Ok((who, ack)) = acks.try_recv() {
        assert_eq!(who, device);
        last = Some(ack);
    }
    let ack = &last.expect("an acknowledgement").boots[0];
    assert_eq!((ack.contiguous, ack.extra.as_slice()), (2, &[(4, 4)][..]));

    let aggregates = Repository::<Aggregate>::new(store.clone(), AGGREGATE);
    let all = aggregates.list_all("").await.expect("aggregates");
    assert!(all.iter().all(|(id, _)| id.starts_with("digits@1/primary/")), "{all:?}");
    let mut sum = Aggregate::default();
    all.iter().for_each(|(_, aggregate)| sum.merge(&aggregate.value));
    assert_eq!((sum.counts.requests, sum.windows, sum.all_labels().accuracy()), (10, 1, Some(0.9)));
    let devices = Repository::<DeviceTelemetry>::new(store, DEVICE_TELEMETRY);
    let own = devices.get_json("dev-1").await.expect("totals").value;
    assert_eq!((own.bundles.len(), own.bundles[0].counts.requests), (1, 10));
    use std::sync::atomic::Ordering::Relaxed;
    assert_eq!((totals.repeats.load(Relaxed), totals.refused.load(Relaxed)), (4, 2));
}

#[tokio::test]
async fn a_full_queue_turns_messages_away_instead_of_growing() {
    let dir = tempfile::tempdir().expect("temp");
    let (store, _) = SledStore::open(SledConfig::new(dir.path().join("s"))).await.expect("store");
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let (sender, _acks) = mpsc::unbounded_channel();
    let (_worker, queue) = Ingest::new(store.clone(), rollouts(&store), Arc::new(Around(sender)));
    let device: DeviceId = "dev-1".parse().expect("device");
    let message = batch("dev-1", vec![(1, labels(1, 1))]);
    let taken = (0..5_000).take_while(|_| queue.offer(&device, &message).is_ok()).count();
    assert!((1..5_000).contains(&taken), "{taken}");
}

/// Windows of `n` distinct buckets, each with sketches as large as they get: more than one transaction
/// may hold.
fn hoard(device: &str) -> Vec<u8> {
    let mut total = Sketch::default();
    (0..3_000u64).for_each(|n| total.record_us((1.02f64.powi(n as i32 % 1_000) as u64).max(1) * 7));
    let records = (1..=256).map(|seq| {
        let RecordBody::Window(mut window) = window("digits@1", 1) else { unreachable!("a window") };
        window.wall_start = at() - std::time::Duration::from_secs(300 * seq);
        window.latency = Latency { total: total.clone(), queue: total.clone(), infer: total.clone() };
        window.classes = (0..128).map(|n| (format!("{n:0>120}"), 1)).collect();
        (seq, RecordBody::Window(window))
    });
    batch(device, records.collect())
}

#[tokio::test]
async fn one_device_whose_message_cannot_be_stored_does_not_keep_others_from_being_acknowledged() {
    let dir = tempfile::tempdir().expect("temp");
    let (store, _) = SledStore::open(SledConfig::new(dir.path().join("s"))).await.expect("store");
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let (sender, mut acks) = mpsc::unbounded_channel();
    let (worker, queue) = Ingest::new(store.clone(), rollouts(&store), Arc::new(Around(sender)));
    let totals = worker.totals();
    let hostile: DeviceId = "dev-hostile".parse().expect("device");
    let honest: DeviceId = "dev-1".parse().expect("device");
    queue.offer(&hostile, &hoard("dev-hostile")).expect("room");
    queue.offer(&honest, &batch("dev-1", vec![(1, window("digits@1", 10))])).expect("room");
    drop(queue);
    worker.run().await;
    let mut told = Vec::new();
    while let Ok((who, _)) = acks.try_recv() {
        told.push(who);
    }
    assert_eq!(told, [honest]);
    assert_eq!(totals.refused.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn windows_of_a_shared_identity_are_acknowledged_and_are_no_evidence() {
    let dir = tempfile::tempdir().expect("temp");
    let (store, _) = SledStore::open(SledConfig::new(dir.path().join("s"))).await.expect("store");
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let (sender, mut acks) = mpsc::unbounded_channel();
    let (worker, queue) = Ingest::new(store.clone(), rollouts(&store), Arc::new(Around(sender)));
    let shared: DeviceId = "dev-shared".parse().expect("device");
    let message = batch("dev-shared", vec![(1, window("digits@1", 10)), (2, labels(10, 1))]);
    queue.offer(&shared, &message).expect("room");
    drop(queue);
    worker.run().await;
    assert_eq!(acks.try_recv().expect("an acknowledgement").1.boots[0].contiguous, 2);
    let aggregates = Repository::<Aggregate>::new(store, AGGREGATE).list_all("").await.expect("aggregates");
    assert!(aggregates.is_empty(), "{aggregates:?}");
}
