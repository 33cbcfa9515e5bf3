//! The one consumer of telemetry: takes what waits, has it stored, acknowledges.

use super::{
    Cohort, Monitoring,
    taking::{Contents, Taking},
};
use crate::{
    clock,
    fleet::attributes::Labels,
    rollouts::Rollouts,
    store::{FleetStore, Retry, StoreError},
};
use async_trait::async_trait;
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    telemetry::{Ack, TelemetryBatch, batch::MAX_BATCH_BYTES},
    time::Timestamp,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What the waiting messages may hold, unpacked, bytes: a small message may unpack to 2 MiB.
const QUEUE_BYTES: usize = 64 << 20;
/// Messages that may wait. Beyond it the oldest rule of the protocol holds: no acknowledgement, so
/// the device keeps the records and sends them again.
const QUEUE: usize = 1_024;
/// Messages merged into one transaction: enough to share one fsync, few enough to stay small.
const MERGE: usize = 64;

/// What the worker needs to know and to tell.
#[async_trait]
pub trait Surroundings: Send + Sync {
    /// Whether the registry has this bundle: others are not aggregated.
    async fn is_known(&self, bundle: &BundleName) -> bool;
    /// Whether nobody knows who speaks for this device; its windows are stored as its own and are no
    /// evidence about a bundle.
    fn is_isolated(&self, device: &DeviceId) -> bool;
    /// As people set them.
    fn labels(&self, device: &DeviceId) -> Labels;
    /// A device's profile of a primary bundle is stored.
    fn profiled(&self, _bundle: BundleName, _device: DeviceId, _cohort: Cohort) {}
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
    /// Rounds that did not fit into one transaction and were cut in two.
    pub split: AtomicU64,
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
    taking: Taking,
    around: Arc<dyn Surroundings>,
    totals: Arc<IngestTotals>,
}

impl Ingest {
    pub fn new(
        store: Arc<dyn FleetStore>,
        rollouts: Rollouts,
        around: Arc<dyn Surroundings>,
        monitoring: Monitoring,
    ) -> (Self, IngestQueue) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let totals = Arc::new(IngestTotals::default());
        let taking = Taking::new(store, rollouts, around.clone(), monitoring);
        let worker = Self { receiver, taking, around, totals: totals.clone() };
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
            self.settle(&batches, clock::now()).await;
            waiting.clear();
        }
    }

    /// Stores and acknowledges. What is too much for one transaction is cut in two, messages first, then the records of
    /// a message; a record that cannot be stored even alone is noted as seen, counted as refused and left out, because
    /// its device would send it for ever.
    pub(super) async fn settle(&self, batches: &[&TelemetryBatch], now: Timestamp) {
        let Err(error) = self.store_all(batches, now, Contents::Counted).await else { return };
        if error.retry() != Retry::Never || !is_about_a_document(&error) {
            // Not acknowledged, so every device keeps its records and sends them again.
            tracing::error!(%error, messages = batches.len(), "telemetry.store");
            return;
        }
        match batches {
            [] => {}
            [one] if one.records.len() > 1 => {
                self.totals.split.fetch_add(1, Ordering::Relaxed);
                let (first, second) = one.records.split_at(one.records.len() / 2);
                for records in [first, second] {
                    let part = TelemetryBatch {
                        schema: one.schema,
                        device: one.device.clone(),
                        records: records.to_vec(),
                    };
                    Box::pin(self.settle(&[&part], now)).await;
                }
            }
            [one] => {
                self.totals.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(device = %one.device, %error, "telemetry.refuse: it cannot be stored");
                if let Err(error) = self.store_all(&[one], now, Contents::LeftOut).await {
                    tracing::error!(device = %one.device, %error, "telemetry.store");
                }
            }
            many => {
                self.totals.split.fetch_add(1, Ordering::Relaxed);
                let (first, second) = many.split_at(many.len() / 2);
                Box::pin(self.settle(first, now)).await;
                Box::pin(self.settle(second, now)).await;
            }
        }
    }

    async fn store_all(
        &self,
        batches: &[&TelemetryBatch],
        now: Timestamp,
        contents: Contents,
    ) -> Result<(), StoreError> {
        let Some(taken) = self.taking.store_all(batches, now, contents).await? else { return Ok(()) };
        self.totals.records.fetch_add(taken.counted, Ordering::Relaxed);
        self.totals.repeats.fetch_add(taken.repeats, Ordering::Relaxed);
        for (bundle, device, cohort) in taken.profiled {
            self.around.profiled(bundle, device, cohort);
        }
        for (device, ack) in taken.acks {
            self.around.acknowledge(&device, ack).await;
        }
        Ok(())
    }
}

/// Whether fewer records at a time, or another one, may help.
fn is_about_a_document(error: &StoreError) -> bool {
    use StoreError::{Corrupt, Invalid, TooLarge, Unreadable};
    matches!(error, TooLarge { .. } | Invalid { .. } | Unreadable { .. } | Corrupt { .. })
}
