//! Pulls blobs over the session with the controller, block by block, at the device's own pace.
//!
//! A window of blocks is in flight; they may come twice, late, out of order or not at all. Lost ones
//! are asked for again after silence. "Later" from the controller is obeyed. While the session is
//! down the transfer waits: being offline is no failed try. What arrives goes in order through
//! [`PartFile`], so that a kill costs at most 1 MiB (unsynced plus in flight).

use super::part::{PartError, PartFile, SYNC_BYTES};
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    digest::BlobDigest,
    ids::{DeviceId, MessageId},
    reported::RefusalCode,
    transfer::{
        BlockAnswer, BlockFrame, FetchObject, FetchRequest, MAX_BLOCK_BYTES, MAX_BLOCKS_PER_REQUEST,
        MIN_BLOCK_BYTES, TRANSFER_SCHEMA, block_count,
    },
    trust::envelope::MAX_ENVELOPE_BYTES,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// Bytes in flight at most; 16 blocks of the default size.
pub const WINDOW_BYTES: u64 = 512 * 1024;
const _: () = assert!(WINDOW_BYTES + SYNC_BYTES <= 1 << 20);
/// Deadline of one exchange; after three of them in silence the transfer fails.
const DEADLINE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(90);
/// Silence after which a block that others have overtaken is asked for again.
const GAP: Duration = Duration::from_secs(2);
/// How often a request is tried again while the session is down.
const LINK_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_LATER: Duration = Duration::from_secs(3_600);

/// The session with the controller is down, or its queue is full. Tried again until it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session with the controller is down")]
pub struct LinkDown;

/// Carries fetch requests to the controller.
#[async_trait]
pub trait BlockLink: Send + Sync {
    /// # Errors
    /// [`LinkDown`] if it cannot be sent now.
    async fn send(&self, request: FetchRequest) -> Result<(), LinkDown>;
}

/// Why an object could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("no block of {object} came in {} s", PATIENCE.as_secs())]
    Timeout { object: String },
    #[error("the controller does not have {object}")]
    NotFound { object: String },
    #[error("the controller refused {object}: {reason}")]
    Refused { object: String, reason: String },
    #[error("{object} has {found} bytes at the controller, {wanted} were announced")]
    Size { object: String, found: u64, wanted: u64 },
    #[error("the agent is shutting down")]
    Closed,
    #[error("{reason}")]
    Https { reason: String },
    #[error("fetching it broke: {reason}")]
    Broke { reason: String },
    #[error(transparent)]
    Part(#[from] PartError),
}

impl TransferError {
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::Timeout { .. } | Self::Closed | Self::Https { .. } => RefusalCode::TransferTimeout,
            Self::NotFound { .. } | Self::Refused { .. } => RefusalCode::NotFound,
            Self::Size { .. } => RefusalCode::SizeMismatch,
            Self::Broke { .. } => RefusalCode::Unknown,
            Self::Part(e) => e.code(),
        }
    }
}

/// Told what a transfer does; called often.
pub trait Watch: Send + Sync {
    /// `len` contiguous bytes of the blob are written.
    fn written(&self, len: u64);
    /// Bytes came over the network, wanted or not.
    fn received(&self, bytes: u64);
}

impl Watch for () {
    fn written(&self, _len: u64) {}
    fn received(&self, _bytes: u64) {}
}

/// Asks for objects and sorts the incoming frames to whoever asked.
pub struct Blocks {
    link: Arc<dyn BlockLink>,
    device: DeviceId,
    /// Makes ids differ between starts: a frame for the process before must not match.
    run: String,
    next: AtomicU64,
    routes: Mutex<HashMap<u64, mpsc::Sender<BlockFrame>>>,
    block_bytes: AtomicU32,
    reconnects: watch::Sender<u64>,
}

/// Frames that wait for a slow disk; more are dropped and asked for again.
const ROUTE_QUEUE: usize = 2 * MAX_BLOCKS_PER_REQUEST as usize;

impl Blocks {
    /// `run`: a few random letters or digits, new at each start.
    pub fn new(link: Arc<dyn BlockLink>, device: DeviceId, run: &str) -> Arc<Self> {
        Arc::new(Self {
            link,
            device,
            run: run.chars().filter(char::is_ascii_alphanumeric).take(16).collect(),
            next: AtomicU64::new(0),
            routes: Mutex::default(),
            block_bytes: AtomicU32::new(edgefleet_shared::transfer::DEFAULT_BLOCK_BYTES),
            reconnects: watch::Sender::new(0),
        })
    }

    /// Payload per block from the settings; out-of-range values are moved into it.
    pub fn set_block_bytes(&self, bytes: u32) {
        self.block_bytes.store(bytes.clamp(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES), Ordering::Relaxed);
    }

    /// The session is up again: what was in flight is lost and is asked for at once.
    pub fn reconnected(&self) {
        self.reconnects.send_modify(|n| *n += 1);
    }

    /// Hands a frame to its transfer. Frames nobody waits for are dropped.
    pub fn deliver(&self, frame: BlockFrame) {
        let Some(transfer) = self.transfer_of(&frame.header.id) else { return };
        let route = self.routes.lock().get(&transfer).cloned();
        if let Some(route) = route {
            let _ = route.try_send(frame); // full: the window asks again
        }
    }

    fn transfer_of(&self, id: &MessageId) -> Option<u64> {
        let mut parts = id.as_str().split('-');
        (parts.next()? == self.run).then_some(())?;
        parts.next()?.parse().ok()
    }

    fn open(self: &Arc<Self>, object: FetchObject, block_bytes: u32) -> Exchange {
        let transfer = self.next.fetch_add(1, Ordering::Relaxed);
        let (tx, frames) = mpsc::channel(ROUTE_QUEUE);
        self.routes.lock().insert(transfer, tx);
        let reconnects = self.reconnects.subscribe();
        Exchange { blocks: self.clone(), transfer, requests: 0, object, block_bytes, frames, reconnects }
    }

    /// Fetches trust document `version` as its raw envelope, at most [`MAX_ENVELOPE_BYTES`].
    ///
    /// # Errors
    /// [`TransferError`]. The content is unchecked.
    pub async fn trust(self: &Arc<Self>, version: u64) -> Result<Bytes, TransferError> {
        // The largest block holds the largest envelope: one question, one answer.
        const _: () = assert!(MAX_ENVELOPE_BYTES <= MAX_BLOCK_BYTES as usize);
        let mut exchange = self.open(FetchObject::Trust(version), MAX_BLOCK_BYTES);
        let mut silence = Silence::new();
        let whole = BTreeSet::from([0]);
        exchange.ask(&whole, &mut silence).await;
        loop {
            let frame = match exchange.next(silence.deadline(false)).await? {
                Came::Frame(frame) => frame,
                Came::Deadline => {
                    silence.check(&exchange)?;
                    exchange.ask(&whole, &mut silence).await;
                    continue;
                }
                Came::Reconnected => {
                    exchange.ask(&whole, &mut silence).await;
                    continue;
                }
            };
            match frame.header.answer {
                BlockAnswer::Block { index: 0, total_bytes, .. }
                    if total_bytes == frame.payload.len() as u64 =>
                {
                    return Ok(frame.payload);
                }
                BlockAnswer::Block { total_bytes, .. } => {
                    let wanted = MAX_ENVELOPE_BYTES as u64;
                    return Err(TransferError::Size { object: exchange.name(), found: total_bytes, wanted });
                }
                BlockAnswer::Later { retry_after_ms } => {
                    tokio::time::sleep(Duration::from_millis(retry_after_ms).min(LONGEST_LATER)).await;
                    silence = Silence::new();
                    exchange.ask(&whole, &mut silence).await;
                }
                BlockAnswer::NotFound => return Err(TransferError::NotFound { object: exchange.name() }),
                BlockAnswer::Refused { reason } => return Err(exchange.refused(&reason)),
            }
        }
    }

    /// Fetches a blob of exactly `size` bytes to `target`, going on from where a former run stopped.
    ///
    /// # Errors
    /// [`TransferError`]; what was synced stays for the next try, except where it says removed.
    pub async fn blob(
        self: &Arc<Self>,
        digest: BlobDigest,
        size: u64,
        target: &Path,
        watch: &dyn Watch,
    ) -> Result<(), TransferError> {
        let mut part = PartFile::open(target, digest, size).await?;
        watch.written(part.len());
        let block_bytes = self.block_bytes.load(Ordering::Relaxed);
        let mut pull = Pull {
            exchange: self.open(FetchObject::Blob(digest), block_bytes),
            count: block_count(block_bytes, size),
            size,
            block_bytes,
            asked: BTreeSet::new(),
            held: BTreeMap::new(),
        };
        let pulled = pull.run(&mut part, watch).await;
        match pulled {
            Ok(()) => Ok(part.finish().await?),
            Err(e) => {
                if !matches!(e, TransferError::Part(_)) {
                    part.sync().await?;
                }
                Err(e)
            }
        }
    }
}

/// One object being asked for.
struct Exchange {
    blocks: Arc<Blocks>,
    transfer: u64,
    requests: u64,
    object: FetchObject,
    block_bytes: u32,
    frames: mpsc::Receiver<BlockFrame>,
    reconnects: watch::Receiver<u64>,
}

/// What an exchange waited for.
enum Came {
    Frame(BlockFrame),
    Deadline,
    Reconnected,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.blocks.routes.lock().remove(&self.transfer);
    }
}

impl Exchange {
    fn name(&self) -> String {
        match self.object {
            FetchObject::Blob(digest) => digest.to_string(),
            FetchObject::Trust(version) => format!("trust document {version}"),
        }
    }
    fn refused(&self, reason: &str) -> TransferError {
        TransferError::Refused { object: self.name(), reason: reason.chars().take(200).collect() }
    }

    /// Sends a request for `blocks`; waits as long as the session is down, and then forgives the
    /// silence so far.
    async fn ask(&mut self, blocks: &BTreeSet<u64>, silence: &mut Silence) {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for index in blocks.iter().take(MAX_BLOCKS_PER_REQUEST as usize) {
            match ranges.last_mut() {
                Some((_, end)) if end == index => *end += 1,
                _ => ranges.push((*index, index + 1)),
            }
        }
        self.requests += 1;
        let id = format!("{}-{}-{}", self.blocks.run, self.transfer, self.requests);
        let Ok(id) = id.parse() else { return }; // short, letters, digits and dashes
        let request = FetchRequest {
            schema: TRANSFER_SCHEMA,
            id,
            device: self.blocks.device.clone(),
            object: self.object,
            block_bytes: self.block_bytes,
            blocks: ranges,
        };
        while self.blocks.link.send(request.clone()).await.is_err() {
            let _ = tokio::time::timeout(LINK_PAUSE, self.reconnects.changed()).await;
            *silence = Silence::new();
        }
    }

    /// The next frame about this object, at most until `deadline`.
    async fn next(&mut self, deadline: Instant) -> Result<Came, TransferError> {
        loop {
            tokio::select! {
                biased;
                frame = self.frames.recv() => match frame {
                    None => return Err(TransferError::Closed),
                    Some(frame) if frame.header.object == self.object => return Ok(Came::Frame(frame)),
                    Some(_) => {}
                },
                Ok(()) = self.reconnects.changed() => return Ok(Came::Reconnected),
                () = tokio::time::sleep_until(deadline) => return Ok(Came::Deadline),
            }
        }
    }
}

/// How long nothing useful came.
struct Silence {
    since: Instant,
    asked: Instant,
}
impl Silence {
    fn new() -> Self {
        let now = Instant::now();
        Self { since: now, asked: now }
    }
    fn deadline(&self, gap: bool) -> Instant {
        self.asked + if gap { GAP } else { DEADLINE }
    }
    /// At a deadline: time to ask again, or to give up.
    fn check(&mut self, exchange: &Exchange) -> Result<(), TransferError> {
        self.asked = Instant::now();
        if self.asked.duration_since(self.since) >= PATIENCE {
            return Err(TransferError::Timeout { object: exchange.name() });
        }
        Ok(())
    }
}

/// The window over one blob.
struct Pull {
    exchange: Exchange,
    count: u64,
    size: u64,
    block_bytes: u32,
    /// In flight.
    asked: BTreeSet<u64>,
    /// Arrived before an earlier one.
    held: BTreeMap<u64, Bytes>,
}

impl Pull {
    async fn run(&mut self, part: &mut PartFile, watch: &dyn Watch) -> Result<(), TransferError> {
        let block = u64::from(self.block_bytes);
        let window = (WINDOW_BYTES / block).clamp(1, MAX_BLOCKS_PER_REQUEST);
        let mut silence = Silence::new();
        let mut later: Option<Instant> = None;
        while part.len() < self.size {
            // A part synced under another block size may end inside a block.
            let first = part.len() / block;
            let wanted: BTreeSet<u64> = (first..self.count.min(first + window))
                .filter(|n| !self.asked.contains(n) && !self.held.contains_key(n))
                .collect();
            // Half a window at once: few requests, and the pipe never runs dry.
            let idle = self.asked.is_empty();
            let worth = idle || wanted.len() as u64 >= window.div_ceil(2) || first + window >= self.count;
            if later.is_none() && !wanted.is_empty() && worth {
                self.exchange.ask(&wanted, &mut silence).await;
                self.asked.extend(&wanted);
                if idle {
                    silence = Silence { asked: Instant::now(), ..silence };
                }
            }
            let overtaken = !self.held.is_empty();
            let deadline = later.unwrap_or_else(|| silence.deadline(overtaken));
            let frame = match self.exchange.next(deadline).await? {
                Came::Frame(frame) => frame,
                Came::Reconnected => {
                    let lost = self.asked.clone();
                    if later.is_none() && !lost.is_empty() {
                        self.exchange.ask(&lost, &mut silence).await;
                    }
                    silence = Silence::new();
                    continue;
                }
                Came::Deadline => {
                    if later.take().is_some() {
                        silence = Silence::new();
                        continue;
                    }
                    silence.check(&self.exchange)?;
                    // Only what others overtook is surely lost; after a long silence, all of it.
                    let newest = self.held.last_key_value().map_or(u64::MAX, |(n, _)| *n);
                    let lost: BTreeSet<u64> = self.asked.range(..newest).copied().collect();
                    self.exchange.ask(&lost, &mut silence).await;
                    continue;
                }
            };
            watch.received(frame.payload.len() as u64);
            match frame.header.answer {
                BlockAnswer::Block { total_bytes, .. } if total_bytes != self.size => {
                    let (found, wanted) = (total_bytes, self.size);
                    return Err(TransferError::Size { object: self.exchange.name(), found, wanted });
                }
                BlockAnswer::Block { index, block_bytes, .. } => {
                    // Only what is in flight: nobody can fill memory with blocks nobody asked for.
                    if block_bytes != self.block_bytes || !self.asked.remove(&index) {
                        continue;
                    }
                    silence = Silence::new();
                    self.held.insert(index, frame.payload);
                    self.drain(part, watch).await?;
                }
                BlockAnswer::Later { retry_after_ms } => {
                    let pause = Duration::from_millis(retry_after_ms).min(LONGEST_LATER);
                    self.asked.clear();
                    later = Some(Instant::now() + pause);
                }
                BlockAnswer::NotFound => {
                    return Err(TransferError::NotFound { object: self.exchange.name() });
                }
                BlockAnswer::Refused { reason } => return Err(self.exchange.refused(&reason)),
            }
        }
        Ok(())
    }

    /// Writes what has become contiguous.
    async fn drain(&mut self, part: &mut PartFile, watch: &dyn Watch) -> Result<(), TransferError> {
        let block = u64::from(self.block_bytes);
        while let Some(bytes) = self.held.remove(&(part.len() / block)) {
            let skip = usize::try_from(part.len() % block).unwrap_or(usize::MAX);
            part.append(bytes.get(skip..).unwrap_or_default()).await?;
            watch.written(part.len());
            if bytes.len() <= skip {
                break; // an empty block cannot move anything
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
