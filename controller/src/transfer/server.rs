//! Answers `fetch` with frames on `blocks`.
//!
//! A fixed number of workers reads and sends, so a thousand asking devices cost a bounded number of
//! buffers; a request that finds no room is answered "later", never queued without bound.

use super::budget::{Budget, Limits};
use crate::{
    broker::{Broker, Message, Qos},
    clock,
};
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    ids::DeviceId,
    topics::Channel,
    transfer::{
        BlockAnswer, BlockFrame, BlockHeader, FetchObject, FetchRequest, TRANSFER_SCHEMA, block_length,
    },
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests answered at the same time; each holds one block in memory.
const WORKERS: usize = 64;
/// Of these for one device: one that asks faster than it takes must not keep the others waiting.
const WORKERS_PER_DEVICE: usize = 8;
/// Answers "later" under way at the same time. A request beyond it gets none; the device asks again after
/// its own deadline.
const LATERS: usize = 1_024;
/// What a request is told to wait when all workers are busy, milliseconds: spread, so that they do not all
/// come back at once.
const BUSY_MS: std::ops::Range<u64> = 200..1_000;

/// What may be fetched and where it lies.
#[async_trait]
pub trait Library: Send + Sync {
    /// Exact size of `object` in bytes, or `None` if devices may not have it.
    async fn size(&self, object: &FetchObject) -> Result<Option<u64>, LibraryError>;
    /// Bytes `offset..offset + len` of an object whose size was just asked.
    async fn read(&self, object: &FetchObject, offset: u64, len: u64) -> Result<Bytes, LibraryError>;
}

/// The library could not be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read {object}: {reason}")]
pub struct LibraryError {
    pub object: String,
    pub reason: String,
}

/// What one device has been sent since the controller started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferTotals {
    pub requests: u64,
    pub blocks: u64,
    pub bytes: u64,
    /// Requests answered with "later".
    pub deferred: u64,
}

/// One worker that answers a device; free again when dropped.
struct Worker {
    server: Arc<BlockServer>,
    device: DeviceId,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut busy = self.server.busy.lock();
        if let Some(own) = busy.get_mut(&self.device) {
            *own -= 1;
            if *own == 0 {
                busy.remove(&self.device);
            }
        }
    }
}

pub struct BlockServer {
    library: Arc<dyn Library>,
    broker: Arc<dyn Broker>,
    budget: Mutex<Budget>,
    workers: Arc<Semaphore>,
    laters: Arc<Semaphore>,
    /// Workers by device, those without any left out.
    busy: Mutex<HashMap<DeviceId, usize>>,
    totals: Mutex<HashMap<DeviceId, TransferTotals>>,
    sent_bytes: AtomicU64,
    refused: AtomicU64,
}

impl BlockServer {
    pub fn new(library: Arc<dyn Library>, broker: Arc<dyn Broker>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            library,
            broker,
            budget: Mutex::new(Budget::new(limits, clock::now())),
            workers: Arc::new(Semaphore::new(WORKERS)),
            laters: Arc::new(Semaphore::new(LATERS)),
            busy: Mutex::new(HashMap::new()),
            totals: Mutex::new(HashMap::new()),
            sent_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    pub fn totals(&self, device: &DeviceId) -> TransferTotals {
        self.totals.lock().get(device).copied().unwrap_or_default()
    }

    /// Payload bytes sent to all devices.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Requests that were none, or in another device's name.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub fn forget_idle(&self) {
        self.budget.lock().forget_idle(clock::now());
    }

    pub fn forget(&self, device: &DeviceId) {
        self.totals.lock().remove(device);
    }

    /// Answers one request of `device`. Returns at once; the blocks follow.
    pub fn handle(self: &Arc<Self>, device: DeviceId, payload: &Bytes) {
        let request = match FetchRequest::parse(payload) {
            Ok(request) if request.device == device => request,
            Ok(request) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%device, claimed = %request.device, "fetch.refuse: names another device");
                return;
            }
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                // Without a readable id there is nobody to answer.
                tracing::warn!(%device, %error, "fetch.refuse");
                return;
            }
        };
        let server = self.clone();
        if let Some(worker) = self.worker(&device) {
            tokio::spawn(async move {
                let _worker = worker;
                server.answer(&device, &request).await;
            });
        } else if let Ok(permit) = self.laters.clone().try_acquire_owned() {
            tokio::spawn(async move {
                let _permit = permit;
                server.later(&device, &request, rand::random_range(BUSY_MS)).await;
            });
        } else {
            self.count(&device, |totals| totals.deferred += 1);
        }
    }

    fn worker(self: &Arc<Self>, device: &DeviceId) -> Option<Worker> {
        let permit = self.workers.clone().try_acquire_owned().ok()?;
        let mut busy = self.busy.lock();
        let own = busy.entry(device.clone()).or_default();
        if *own >= WORKERS_PER_DEVICE {
            return None;
        }
        *own += 1;
        Some(Worker { server: self.clone(), device: device.clone(), _permit: permit })
    }

    async fn answer(&self, device: &DeviceId, request: &FetchRequest) {
        let total = match self.library.size(&request.object).await {
            Ok(Some(total)) => total,
            Ok(None) => return self.send(device, request, BlockAnswer::NotFound, Bytes::new()).await,
            Err(error) => {
                tracing::error!(%device, %error, "fetch.answer");
                return self.later(device, request, 5_000).await;
            }
        };
        let wanted: Vec<(u64, u64)> = request
            .blocks
            .iter()
            .flat_map(|(from, to)| *from..*to)
            .map(|index| (index, block_length(index, request.block_bytes, total)))
            .filter(|(_, len)| *len > 0)
            .collect();
        let bytes: u64 = wanted.iter().map(|(_, len)| len).sum();
        let taken = self.budget.lock().take(device, bytes, clock::now());
        if let Err(wait) = taken {
            let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
            return self.later(device, request, wait).await;
        }
        if wanted.is_empty() {
            let reason = format!("the object has only {total} bytes");
            return self.send(device, request, BlockAnswer::Refused { reason }, Bytes::new()).await;
        }
        self.count(device, |totals| totals.requests += 1);
        for (index, len) in wanted {
            let offset = index * u64::from(request.block_bytes);
            match self.library.read(&request.object, offset, len).await {
                Ok(payload) => {
                    let answer =
                        BlockAnswer::Block { index, block_bytes: request.block_bytes, total_bytes: total };
                    self.count(device, |totals| {
                        totals.blocks += 1;
                        totals.bytes += len;
                    });
                    self.sent_bytes.fetch_add(len, Ordering::Relaxed);
                    self.send(device, request, answer, payload).await;
                }
                Err(error) => {
                    tracing::error!(%device, %error, "fetch.answer");
                    return self.later(device, request, 5_000).await;
                }
            }
        }
    }

    async fn later(&self, device: &DeviceId, request: &FetchRequest, retry_after_ms: u64) {
        self.count(device, |totals| totals.deferred += 1);
        self.send(device, request, BlockAnswer::Later { retry_after_ms }, Bytes::new()).await;
    }

    async fn send(&self, device: &DeviceId, request: &FetchRequest, answer: BlockAnswer, payload: Bytes) {
        let header =
            BlockHeader { schema: TRANSFER_SCHEMA, id: request.id.clone(), object: request.object, answer };
        let message = Message {
            topic: Channel::Blocks.of(device),
            payload: BlockFrame { header, payload }.to_bytes().into(),
            retain: false,
            qos: Qos::AtLeastOnce,
        };
        if let Err(error) = self.broker.publish(message).await {
            // The device asks again after its own deadline.
            tracing::debug!(%device, %error, "fetch.send");
        }
    }

    fn count(&self, device: &DeviceId, change: impl FnOnce(&mut TransferTotals)) {
        change(self.totals.lock().entry(device.clone()).or_default());
    }
}
