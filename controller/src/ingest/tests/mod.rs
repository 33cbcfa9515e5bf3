//! Telemetry with a real store and a clock of the tests' own.

mod beside;
mod faults;
mod keeping;
mod profiles;
mod records;

use super::{thin::tests::profile as content, *};
use crate::{
    fleet::{Actor, attributes::Labels},
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
        Ack, Counts, LabelCounts, Latency, Profile, Record, RecordBody, Role, Sketch, TelemetryBatch, Window,
        batch::TELEMETRY_SCHEMA,
    },
    time::Timestamp,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::mpsc;

/// Knows `digits@1` and hands acknowledgements to the test.
struct Around {
    acks: mpsc::UnboundedSender<(DeviceId, Ack)>,
    labels: Arc<Mutex<BTreeMap<DeviceId, Labels>>>,
}

#[async_trait]
impl Surroundings for Around {
    async fn is_known(&self, bundle: &BundleName) -> bool {
        bundle.to_string() == "digits@1"
    }
    fn is_isolated(&self, device: &DeviceId) -> bool {
        device.as_str() == "dev-shared"
    }
    fn labels(&self, device: &DeviceId) -> Labels {
        self.labels.lock().get(device).cloned().unwrap_or_default()
    }
    async fn acknowledge(&self, device: &DeviceId, ack: Ack) {
        let _ = self.acks.send((device.clone(), ack));
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

/// Everything around one store.
struct Bench {
    _dir: tempfile::TempDir,
    store: Arc<dyn FleetStore>,
    monitoring: Monitoring,
    worker: Ingest,
    queue: IngestQueue,
    acks: mpsc::UnboundedReceiver<(DeviceId, Ack)>,
    labels: Arc<Mutex<BTreeMap<DeviceId, Labels>>>,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temp");
        let (store, _) = SledStore::open(SledConfig::new(dir.path().join("s"))).await.expect("store");
        Self::with(dir, Arc::new(store)).await
    }

    async fn with(dir: tempfile::TempDir, store: Arc<dyn FleetStore>) -> Self {
        let (sender, acks) = mpsc::unbounded_channel();
        let labels = Arc::<Mutex<BTreeMap<DeviceId, Labels>>>::default();
        let audit = Arc::new(AuditLog::new(store.clone()));
        let monitoring = Monitoring::open(store.clone(), audit).await.expect("settings");
        let around = Arc::new(Around { acks: sender, labels: labels.clone() });
        let (worker, queue) = Ingest::new(store.clone(), rollouts(&store), around, monitoring.clone());
        Self { _dir: dir, store, monitoring, worker, queue, acks, labels }
    }

    /// Takes `records` of one boot in at `now`.
    async fn take(&self, device: &str, records: Vec<(u64, RecordBody)>, now: Timestamp) {
        self.settle(&[batch(device, records)], now).await;
    }

    async fn settle(&self, batches: &[TelemetryBatch], now: Timestamp) {
        self.worker.settle(&batches.iter().collect::<Vec<_>>(), now).await;
    }

    async fn total(&self, cohort: Option<&str>) -> Aggregate {
        let (bundle, cohort) = (bundle(), cohort.map(|text| text.parse().expect("cohort")));
        self.monitoring.total(ever(&bundle, cohort.as_ref())).await.expect("total")
    }

    async fn profile(&self, cohort: Option<&str>) -> ProfileTotals {
        let (bundle, cohort) = (bundle(), cohort.map(|text| text.parse().expect("cohort")));
        self.monitoring.profile(ever(&bundle, cohort.as_ref())).await.expect("profile")
    }

    async fn ids(&self, kind: crate::store::Kind) -> Vec<String> {
        let mut found = Vec::new();
        let mut scan = crate::store::Scan::all();
        loop {
            let page = self.store.scan(kind, scan.clone()).await.expect("scan");
            found.extend(page.entries.into_iter().map(|(id, _)| id));
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return found,
            }
        }
    }

    /// The last acknowledgement of every device.
    fn acked(&mut self) -> BTreeMap<DeviceId, Ack> {
        std::iter::from_fn(|| self.acks.try_recv().ok()).collect()
    }

    async fn cohorts(&self, by: &[&str], now: Timestamp) {
        let by = by.iter().map(|key| (*key).to_owned()).collect();
        let model = "digits".parse().expect("model");
        self.monitoring.set_cohorts(&Actor::controller(), &model, by, now).await.expect("choice");
    }

    fn label(&self, device: &str, key: &str, value: &str) {
        let device = device.parse().expect("device");
        self.labels.lock().entry(device).or_default().insert(key.to_owned(), value.to_owned());
    }
}

fn bundle() -> BundleName {
    "digits@1".parse().expect("bundle")
}
fn ever<'a>(bundle: &'a BundleName, cohort: Option<&'a Cohort>) -> Range<'a> {
    let (from, until) = (Timestamp::EPOCH, Timestamp::from_millis(u64::MAX));
    Range { bundle, role: Role::Primary, cohort, from, until }
}

fn boot() -> BootId {
    BootId::from_random([1; 16])
}
fn at() -> Timestamp {
    crate::clock::now()
}

pub(super) fn window(bundle: &str, requests: u64) -> RecordBody {
    window_at(bundle, requests, at())
}

fn window_at(bundle: &str, requests: u64, start: Timestamp) -> RecordBody {
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
        wall_start: start,
        wall_end: start + Duration::from_secs(300),
        clock: ClockQuality::Plausible,
        counts: Counts { requests, rows: requests, ok: requests, ..Counts::default() },
        latency: Latency { total, ..Latency::default() },
        classes: BTreeMap::from([("7".to_owned(), requests)]),
        first_bad_ms: None,
        exceed: vec![],
        agreement: None,
        device: None,
    }))
}

fn profile_at(bundle: &str, bins: Vec<u64>, start: Timestamp) -> RecordBody {
    RecordBody::Profile(Box::new(Profile {
        slot: "digits".parse().expect("slot"),
        bundle: bundle.parse().expect("bundle"),
        digest: BundleDigest::of(b"m"),
        role: Role::Primary,
        attempt: AttemptId { rollout: "r-1".parse().expect("id"), number: 1 },
        mono_start_ms: 0,
        mono_end_ms: 3_600_000,
        wall_start: start,
        wall_end: start + Duration::from_secs(3_600),
        clock: ClockQuality::Plausible,
        content: content(bins),
    }))
}

fn labels(matched: u64, correct: u64) -> RecordBody {
    labels_at(matched, correct, at())
}

fn labels_at(matched: u64, correct: u64, start: Timestamp) -> RecordBody {
    RecordBody::Labels(LabelCounts {
        slot: "digits".parse().expect("slot"),
        bundle: "digits@1".parse().expect("bundle"),
        digest: BundleDigest::of(b"m"),
        attempt: AttemptId { rollout: "r-1".parse().expect("id"), number: 1 },
        bucket: Level::FiveMinutes.start_of(start),
        source: "local".into(),
        matched,
        correct,
        confusion: vec![("1".into(), "7".into(), matched - correct)],
        unmatched: BTreeMap::new(),
        versus: None,
    })
}

fn batch(device: &str, records: Vec<(u64, RecordBody)>) -> TelemetryBatch {
    batch_of(device, boot(), records)
}

fn batch_of(device: &str, boot: BootId, records: Vec<(u64, RecordBody)>) -> TelemetryBatch {
    let records = records.into_iter().map(|(seq, body)| Record { boot, seq, body }).collect();
    TelemetryBatch { schema: TELEMETRY_SCHEMA, device: device.parse().expect("device"), records }
}

fn bytes(device: &str, records: Vec<(u64, RecordBody)>) -> Vec<u8> {
    batch(device, records).to_bytes().expect("bytes")
}
