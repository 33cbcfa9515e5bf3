//! The one consumer of telemetry.

use super::{
    aggregate::{AGGREGATE, Aggregate, aggregate_id, bucket_of},
    dedup::Verdict,
    device_totals::{DEVICE_TELEMETRY, DeviceTelemetry},
};
use crate::{
    clock,
    rollouts::{Documents, Ears, Rollouts, Working as Heard},
    store::{Expect, FleetStore, Repository, Retry, Revision, StoreError, Transaction, Versioned},
};
use async_trait::async_trait;
use edgefleet_shared::{
    ids::{BootId, BundleName, DeviceId},
    telemetry::{Ack, RecordBody, Role, TelemetryBatch, batch::MAX_BATCH_BYTES},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What the waiting messages may hold, unpacked, bytes: a small message may unpack to 2 MiB.
const QUEUE_BYTES: usize = 64 << 20;
/// Messages that may wait. Beyond it the oldest rule of the protocol holds: no acknowledgement, so
/// the device keeps the records and sends them again.
const QUEUE: usize = 1_024;
/// Messages merged into one transaction: enough to share one fsync, few enough to stay small.
const MERGE: usize = 64;
/// How old or how far ahead a bucket may be; outside of it the time of arrival counts. A device may
/// claim any time, and every new bucket is a document.
const OLDEST_BUCKET: Duration = Duration::from_secs(30 * 86_400);
const AHEAD: Duration = Duration::from_secs(3_600);

/// What the worker needs to know and to tell.
#[async_trait]
pub trait Surroundings: Send + Sync {
    /// Whether the registry has this bundle: others are not aggregated.
    async fn is_known(&self, bundle: &BundleName) -> bool;
    /// Whether nobody knows who speaks for this device; its windows are stored as its own and are no
    /// evidence about a bundle.
    fn is_isolated(&self, device: &DeviceId) -> bool;
    /// Sends an acknowledgement; lost ones are repeated when the device repeats its records.
    async fn acknowledge(&self, device: &DeviceId, ack: Ack);
}

/// Counters for `/metrics`.
#[derive(Debug, Default)]
pub struct IngestTotals {
    pub messages: AtomicU64,
    pub records: AtomicU64,
    pub repeats: AtomicU64,
    pub refused: AtomicU64,
    pub overloaded: AtomicU64,
}

/// Where the link puts telemetry. Cheap to clone.
#[derive(Clone)]
pub struct IngestQueue {
    sender: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
    totals: Arc<IngestTotals>,
}

/// A message and its part of [`QUEUE_BYTES`].
struct Waiting {
    batch: TelemetryBatch,
    _bytes: OwnedSemaphorePermit,
}

/// The queue is full: nothing was taken, the device will send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("telemetry queue is full")]
pub struct Overloaded;

impl IngestQueue {
    /// Parses and queues one message of `device`. Malformed ones are counted and dropped.
    ///
    /// # Errors
    /// [`Overloaded`] if the worker does not keep up.
    pub fn offer(&self, device: &DeviceId, payload: &[u8]) -> Result<(), Overloaded> {
        let overloaded = |_| {
            self.totals.overloaded.fetch_add(1, Ordering::Relaxed);
            Overloaded
        };
        let share = self.bytes.clone().try_acquire_many_owned(unpacked_bytes(payload));
        let _bytes = share.map_err(|_| overloaded(()))?;
        let batch = match TelemetryBatch::parse(payload) {
            Ok(batch) if batch.device == *device => batch,
            Ok(batch) => {
                tracing::warn!(%device, claimed = %batch.device, "telemetry.refuse: names another device");
                self.totals.refused.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(%device, %error, "telemetry.refuse");
                self.totals.refused.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        };
        self.sender.try_send(Waiting { batch, _bytes }).map_err(|_| overloaded(()))
    }
}

/// What a payload says it unpacks to; one that does not say is taken for the largest.
fn unpacked_bytes(payload: &[u8]) -> u32 {
    let claimed = zstd::zstd_safe::get_frame_content_size(payload).ok().flatten();
    let claimed = claimed.map_or(MAX_BATCH_BYTES, |n| usize::try_from(n).unwrap_or(MAX_BATCH_BYTES));
    (claimed.min(MAX_BATCH_BYTES) + payload.len()) as u32 // both far below 4 GiB
}

/// The worker.
pub struct Ingest {
    receiver: mpsc::Receiver<Waiting>,
    store: Arc<dyn FleetStore>,
    devices: Repository<DeviceTelemetry>,
    aggregates: Repository<Aggregate>,
    rollouts: Rollouts,
    around: Arc<dyn Surroundings>,
    totals: Arc<IngestTotals>,
}

/// Documents of one transaction, loaded once and changed in memory.
#[derive(Default)]
struct Working {
    devices: BTreeMap<DeviceId, Loaded<DeviceTelemetry>>,
    aggregates: BTreeMap<String, Loaded<Aggregate>>,
    /// Boots heard of in this round, by device.
    boots: BTreeMap<DeviceId, BTreeSet<BootId>>,
    known: BTreeMap<BundleName, bool>,
    counted: u64,
    repeats: u64,
}

struct Loaded<T> {
    revision: Option<Revision>,
    value: T,
}

impl<T> Loaded<T> {
    fn expect(&self) -> Expect {
        self.revision.map_or(Expect::Absent, Expect::Revision)
    }
}
impl<T> From<Versioned<T>> for Loaded<T> {
    fn from(found: Versioned<T>) -> Self {
        Self { revision: Some(found.revision), value: found.value }
    }
}

impl Ingest {
    pub fn new(
        store: Arc<dyn FleetStore>,
        rollouts: Rollouts,
        around: Arc<dyn Surroundings>,
    ) -> (Self, IngestQueue) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let totals = Arc::new(IngestTotals::default());
        let worker = Self {
            receiver,
            devices: Repository::new(store.clone(), DEVICE_TELEMETRY),
            aggregates: Repository::new(store.clone(), AGGREGATE),
            rollouts,
            store,
            around,
            totals: totals.clone(),
        };
        (worker, IngestQueue { sender, bytes: Arc::new(Semaphore::new(QUEUE_BYTES)), totals })
    }

    pub fn totals(&self) -> Arc<IngestTotals> {
        self.totals.clone()
    }

    /// Runs until every [`IngestQueue`] is gone.
    pub async fn run(mut self) {
        let mut waiting = Vec::with_capacity(MERGE);
        while self.receiver.recv_many(&mut waiting, MERGE).await > 0 {
            self.totals.messages.fetch_add(waiting.len() as u64, Ordering::Relaxed);
            let batches: Vec<_> = waiting.iter().map(|one| &one.batch).collect();
            self.settle(&batches).await;
            waiting.clear();
        }
    }

    /// Stores and acknowledges; what cannot be stored together is stored one by one, so that a message
    /// that never can be is refused alone.
    async fn settle(&self, batches: &[&TelemetryBatch]) {
        match self.store_all(batches, clock::now()).await {
            Ok(acks) => {
                for (device, ack) in acks {
                    self.around.acknowledge(&device, ack).await;
                }
            }
            Err(error) if error.retry() != Retry::Never => {
                // Not acknowledged, so every device keeps its records and sends them again.
                tracing::error!(%error, messages = batches.len(), "telemetry.store");
            }
            Err(error) => match batches {
                [one] => {
                    self.totals.refused.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(device = %one.device, %error, "telemetry.refuse: it cannot be stored");
                }
                many => {
                    for one in many {
                        Box::pin(self.settle(&[one])).await;
                    }
                }
            },
        }
    }

    /// Stores `batches` in one transaction; repeats it from fresh documents if another writer (an
    /// assignment that supersedes an attempt) was faster.
    async fn store_all(
        &self,
        batches: &[&TelemetryBatch],
        now: Timestamp,
    ) -> Result<Vec<(DeviceId, Ack)>, StoreError> {
        loop {
            let documents: &Documents = self.rollouts.documents();
            let (mut work, mut heard, mut ears) =
                (Working::default(), self.rollouts.working(), Ears::new(documents));
            for batch in batches {
                self.take(&mut work, &mut heard, &mut ears, batch, now).await?;
            }
            let mut transaction = Transaction::new();
            for (device, loaded) in &work.devices {
                transaction = transaction.put_json(
                    DEVICE_TELEMETRY,
                    device.as_str(),
                    loaded.expect(),
                    &loaded.value,
                )?;
            }
            for (id, loaded) in &work.aggregates {
                transaction = transaction.put_json(AGGREGATE, id.as_str(), loaded.expect(), &loaded.value)?;
            }
            transaction = heard.stage(transaction)?;
            if transaction.operations.is_empty() {
                return Ok(vec![]);
            }
            match self.store.commit(transaction).await {
                Ok(_) => {
                    self.totals.records.fetch_add(work.counted, Ordering::Relaxed);
                    self.totals.repeats.fetch_add(work.repeats, Ordering::Relaxed);
                    self.rollouts.after(heard.aftermath());
                    return Ok(work.acks());
                }
                Err(StoreError::StaleRevision { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn take(
        &self,
        work: &mut Working,
        heard: &mut Heard<'_>,
        ears: &mut Ears<'_>,
        batch: &TelemetryBatch,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let device = &batch.device;
        let isolated = self.around.is_isolated(device);
        if !work.devices.contains_key(device) {
            let found = self.devices.find_json(device.as_str()).await?;
            let loaded =
                found.map_or(Loaded { revision: None, value: DeviceTelemetry::default() }, Loaded::from);
            work.devices.insert(device.clone(), loaded);
        }
        for record in &batch.records {
            work.boots.entry(device.clone()).or_default().insert(record.boot);
            let Some(own) = work.devices.get_mut(device) else { continue };
            match own.value.seen.note(record.boot, record.seq) {
                Verdict::New => work.counted += 1,
                Verdict::Repeat => {
                    work.repeats += 1;
                    continue;
                }
                Verdict::OutOfOrder => continue,
            }
            own.value.last = now;
            if let RecordBody::Window(window) = &record.body
                && !sound(window)
            {
                continue;
            }
            ears.hear(heard, device, record, !isolated, now).await?;
            match &record.body {
                RecordBody::Window(window) => {
                    if !self.known(work, &window.bundle).await {
                        continue;
                    }
                    if let Some(own) = work.devices.get_mut(device) {
                        own.value.add_window(window);
                    }
                    if isolated {
                        continue;
                    }
                    let bucket = plausible_bucket(window.wall_start, now);
                    let id = aggregate_id(&window.bundle, window.role, bucket);
                    self.aggregate(work, id).await?.add_window(window);
                }
                RecordBody::Labels(labels) => {
                    if !self.known(work, &labels.bundle).await {
                        continue;
                    }
                    if let Some(own) = work.devices.get_mut(device) {
                        own.value.add_labels(labels);
                    }
                    if isolated {
                        continue;
                    }
                    let bucket = plausible_bucket(labels.bucket, now);
                    let id = aggregate_id(&labels.bundle, Role::Primary, bucket);
                    self.aggregate(work, id).await?.add_labels(labels);
                }
                RecordBody::Terminal(_) => {}
                RecordBody::Dropped { records, reason } => {
                    tracing::warn!(%device, records, reason, "telemetry.lost on the device");
                    own.value.dropped = own.value.dropped.saturating_add(*records);
                }
            }
        }
        Ok(())
    }

    async fn known(&self, work: &mut Working, bundle: &BundleName) -> bool {
        if let Some(known) = work.known.get(bundle) {
            return *known;
        }
        let known = self.around.is_known(bundle).await;
        work.known.insert(bundle.clone(), known);
        known
    }

    async fn aggregate<'w>(
        &self,
        work: &'w mut Working,
        id: String,
    ) -> Result<&'w mut Aggregate, StoreError> {
        use std::collections::btree_map::Entry;
        match work.aggregates.entry(id) {
            Entry::Occupied(entry) => Ok(&mut entry.into_mut().value),
            Entry::Vacant(entry) => {
                let found = self.aggregates.find_json(entry.key()).await?;
                let loaded =
                    found.map_or(Loaded { revision: None, value: Aggregate::default() }, Loaded::from);
                Ok(&mut entry.insert(loaded).value)
            }
        }
    }
}

impl Working {
    fn acks(&self) -> Vec<(DeviceId, Ack)> {
        self.boots
            .iter()
            .filter_map(|(device, boots)| {
                let boots: Vec<_> = boots.iter().copied().collect();
                Some((device.clone(), self.devices.get(device)?.value.seen.ack(&boots)))
            })
            .collect()
    }
}

fn plausible_bucket(claimed: Timestamp, now: Timestamp) -> Timestamp {
    let plausible = claimed + OLDEST_BUCKET >= now && claimed <= now + AHEAD;
    bucket_of(if plausible { claimed } else { now })
}

fn sound(window: &edgefleet_shared::telemetry::Window) -> bool {
    let latency = &window.latency;
    latency.queue.is_sound() && latency.infer.is_sound() && latency.total.is_sound()
}
