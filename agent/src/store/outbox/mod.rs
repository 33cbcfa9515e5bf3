//! The telemetry outbox: what the controller has not yet acknowledged, on disk, bounded.
//!
//! A record is acknowledged to its producer only when it would survive a power cut (sled's flush and
//! an fsync of its file), in groups: every 200 ms or 16 records. When the outbox is full, windows and
//! profiles of one subject that were never handed out become one, by the hour, then by the day; only then
//! the oldest go and are counted in a `dropped` record. A damaged
//! store is repaired or set aside, never fatal, and what was lost is reported upward the same way.
//!
//! All disk work happens on one thread of its own (`queue`); this is its front desk.

mod codec;
mod home;
mod merge;
mod queue;

use edgefleet_shared::{
    ids::BootId,
    telemetry::{Ack, Record, RecordBody},
};
use queue::Queue;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{Notify, oneshot, watch};

/// Requests that may wait for the disk.
const DESK: usize = 512;
/// Records that are made durable together.
const GROUP: usize = 16;
/// Longest time a record waits for company.
const GROUP_PATIENCE: Duration = Duration::from_millis(200);

/// How much the outbox keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub records: usize,
    /// Of record contents; the folder may take up to four times as much.
    pub bytes: u64,
}
impl Default for Bounds {
    fn default() -> Self {
        Self { records: 20_000, bytes: 16 << 20 }
    }
}

/// What was found at the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenOutcome {
    New,
    Kept {
        records: usize,
    },
    /// Records were lost, or the store had to be mended; reported upward as well.
    Recovered {
        kept: usize,
        lost: u64,
        how: String,
    },
    /// The disk does not let the store open now; it is tried again and again.
    Unavailable {
        reason: String,
    },
}

/// Why a record is not in the outbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutboxError {
    #[error("the disk of `{}` is full: {available} bytes are left", path.display())]
    DiskFull { path: PathBuf, available: u64 },
    #[error("the outbox in `{}` does not work: {reason}", path.display())]
    Store { path: PathBuf, reason: String },
    #[error("the outbox in `{}` is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("a record of {bytes} bytes, at most {limit} are kept")]
    RecordTooLarge { bytes: usize, limit: usize },
    #[error("the outbox has more to write than the disk takes")]
    Busy,
    #[error("the outbox is closed")]
    Closed,
}

enum Request {
    Append { body: Box<RecordBody>, done: Option<oneshot::Sender<Result<u64, OutboxError>>> },
    Peek { bytes: usize, records: usize, essential: bool, reply: oneshot::Sender<Vec<Record>> },
    Ack { ack: Ack, reply: oneshot::Sender<usize> },
    ThinOut { most: usize, reply: oneshot::Sender<u64> },
    Flush { reply: oneshot::Sender<()> },
    Close { reply: oneshot::Sender<()> },
}

#[derive(Default)]
struct Gauges {
    records: AtomicUsize,
    bytes: AtomicU64,
    lost: AtomicU64,
    merged: AtomicU64,
    urgent: AtomicUsize,
}

/// Appends, hands out, forgets what was acknowledged. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    desk: SyncSender<Request>,
    gauges: Arc<Gauges>,
    appended: Arc<Notify>,
    /// Closed when the clerk's thread has ended.
    clerk: watch::Receiver<()>,
}

impl Outbox {
    /// Opens or creates the store in `dir`, mending or setting it aside if it is damaged. Records of
    /// this run get `boot` and count from 1. Blocks for up to half a minute on a damaged store.
    ///
    /// # Errors
    /// [`OutboxError::InUse`]; everything else is an [`OpenOutcome`].
    pub fn open(dir: &Path, boot: BootId, bounds: Bounds) -> Result<(Self, OpenOutcome), OutboxError> {
        let (queue, outcome) = Queue::open(dir, boot, bounds)?;
        let (desk, requests) = sync_channel(DESK);
        let gauges = Arc::new(Gauges::default());
        let appended = Arc::new(Notify::new());
        let (alive, clerk) = watch::channel(());
        let outbox = Self { desk, gauges: gauges.clone(), appended: appended.clone(), clerk };
        let clerk = Clerk { queue, gauges, appended, waiting: vec![], _alive: alive };
        clerk.show();
        thread::Builder::new().name("outbox".into()).spawn(move || clerk.work(&requests)).map_err(|e| {
            OutboxError::Store { path: dir.to_owned(), reason: format!("no thread for it: {e}") }
        })?;
        Ok((outbox, outcome))
    }

    /// Stores a record and returns its number in this boot once it is durable.
    ///
    /// # Errors
    /// [`OutboxError`]; the loss is counted and reported with the next record that fits.
    pub async fn append(&self, body: RecordBody) -> Result<u64, OutboxError> {
        let (done, stored) = oneshot::channel();
        self.hand_in(body, Some(done))?;
        stored.await.map_err(|_| OutboxError::Closed)?
    }

    /// Stores a record without waiting for the disk.
    ///
    /// # Errors
    /// [`OutboxError::Busy`] or [`OutboxError::Closed`]: the caller may keep it and try again. A record
    /// that the disk refuses later is counted as lost.
    pub fn append_soon(&self, body: RecordBody) -> Result<(), OutboxError> {
        self.hand_in(body, None)
    }

    fn hand_in(
        &self,
        body: RecordBody,
        done: Option<oneshot::Sender<Result<u64, OutboxError>>>,
    ) -> Result<(), OutboxError> {
        self.desk.try_send(Request::Append { body: Box::new(body), done }).map_err(|e| match e {
            TrySendError::Full(_) => OutboxError::Busy,
            TrySendError::Disconnected(_) => OutboxError::Closed,
        })
    }

    /// The oldest records, in order, at most so many bytes (one at least) and records. They stay.
    pub async fn peek(&self, bytes: usize, records: usize) -> Vec<Record> {
        let (reply, found) = oneshot::channel();
        let essential = false;
        self.ask(Request::Peek { bytes, records, essential, reply }, found).await.unwrap_or_default()
    }

    /// The same of terminal reports and losses alone.
    pub async fn peek_essential(&self, bytes: usize, records: usize) -> Vec<Record> {
        let (reply, found) = oneshot::channel();
        let essential = true;
        self.ask(Request::Peek { bytes, records, essential, reply }, found).await.unwrap_or_default()
    }

    /// Forgets what the controller has stored; returns how many that were.
    pub async fn ack(&self, ack: Ack) -> usize {
        let (reply, removed) = oneshot::channel();
        self.ask(Request::Ack { ack, reply }, removed).await.unwrap_or_default()
    }

    /// Adds up what was never handed out: windows and profiles of one subject by the hour, and by the day if more than
    /// `most` records wait even so. How many became part of another.
    pub async fn thin_out(&self, most: usize) -> u64 {
        let (reply, merged) = oneshot::channel();
        self.ask(Request::ThinOut { most, reply }, merged).await.unwrap_or_default()
    }

    /// Returns when everything handed in before is durable, or has failed.
    pub async fn flush(&self) {
        let (reply, flushed) = oneshot::channel();
        self.ask(Request::Flush { reply }, flushed).await;
    }

    /// Flushes and lets go of the store; later calls fail.
    pub async fn close(&self) {
        let (reply, closed) = oneshot::channel();
        self.ask(Request::Close { reply }, closed).await;
    }

    async fn ask<T>(&self, request: Request, answer: oneshot::Receiver<T>) -> Option<T> {
        let mut request = request;
        // The desk is full only while the disk is slow; these must not be lost.
        while let Err(e) = self.desk.try_send(request) {
            match e {
                TrySendError::Disconnected(_) => return None,
                TrySendError::Full(back) => request = back,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answer.await.ok()
    }

    /// Records kept.
    pub fn len(&self) -> usize {
        self.gauges.records.load(Ordering::Relaxed)
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Bytes of records kept.
    pub fn bytes(&self) -> u64 {
        self.gauges.bytes.load(Ordering::Relaxed)
    }
    /// Whether something waits that should not wait for company: an end, a loss, a failure, a candidate's answers.
    pub fn is_urgent(&self) -> bool {
        self.gauges.urgent.load(Ordering::Relaxed) > 0
    }
    /// Records lost since the start: dropped, refused or found damaged.
    pub fn lost(&self) -> u64 {
        self.gauges.lost.load(Ordering::Relaxed)
    }
    /// Records since the start that became part of another.
    pub fn merged(&self) -> u64 {
        self.gauges.merged.load(Ordering::Relaxed)
    }
    /// Returns when nothing is stored any more: closed, or its thread has failed.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut clerk = self.clerk.clone();
        async move { while clerk.changed().await.is_ok() {} }
    }
    /// Returns soon after a record was stored.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }
}

/// Works off the requests, one thread for all.
struct Clerk {
    queue: Queue,
    gauges: Arc<Gauges>,
    appended: Arc<Notify>,
    waiting: Vec<(oneshot::Sender<Result<u64, OutboxError>>, u64)>,
    /// Dropped with it; that is how [`Outbox::ended`] learns of its end.
    _alive: watch::Sender<()>,
}

impl Clerk {
    fn work(mut self, requests: &Receiver<Request>) {
        let mut due: Option<Instant> = None;
        loop {
            let request = match due {
                None => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => requests.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match request {
                Ok(Request::Append { body, done }) => {
                    match (self.queue.stage(*body), done) {
                        (Ok(seq), Some(done)) => self.waiting.push((done, seq)),
                        (Err(e), Some(done)) => drop(done.send(Err(e))),
                        (Ok(_), None) => {}
                        (Err(error), None) => tracing::warn!(%error, "a telemetry record was not stored"),
                    }
                    if self.queue.staged() >= GROUP {
                        self.commit();
                    }
                }
                Ok(Request::Peek { bytes, records, essential, reply }) => {
                    self.commit(); // nothing is sent that could still be lost and numbered anew
                    reply.send(self.queue.peek(bytes, records, essential)).ok();
                }
                Ok(Request::Ack { ack, reply }) => {
                    reply.send(self.queue.ack(&ack)).ok();
                }
                Ok(Request::ThinOut { most, reply }) => {
                    self.commit(); // only what is on disk is added up
                    let merged = self.queue.thin_out(most);
                    self.commit();
                    reply.send(merged).ok();
                }
                Ok(Request::Flush { reply }) => {
                    self.commit();
                    reply.send(()).ok();
                }
                Ok(Request::Close { reply }) => {
                    self.commit();
                    let gauges = self.gauges.clone();
                    drop(self); // the store's lock is free before the answer
                    drop(gauges);
                    reply.send(()).ok();
                    return;
                }
                Err(RecvTimeoutError::Timeout) => self.commit(),
                Err(RecvTimeoutError::Disconnected) => return self.commit(),
            }
            self.show();
            due = match (self.queue.is_dirty(), due) {
                (false, _) => None,
                (true, None) => Some(Instant::now() + GROUP_PATIENCE),
                (true, same) => same,
            };
        }
    }

    fn commit(&mut self) {
        let result = self.queue.commit();
        let fresh = !self.waiting.is_empty();
        for (done, seq) in self.waiting.drain(..) {
            done.send(result.clone().map(|()| seq)).ok();
        }
        if fresh || result.is_ok() {
            self.appended.notify_one();
        }
        self.show();
    }

    fn show(&self) {
        self.gauges.records.store(self.queue.len(), Ordering::Relaxed);
        self.gauges.bytes.store(self.queue.bytes(), Ordering::Relaxed);
        self.gauges.urgent.store(self.queue.urgent(), Ordering::Relaxed);
        self.gauges.merged.store(self.queue.merged(), Ordering::Relaxed);
        self.gauges.lost.fetch_max(self.queue.lost(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
