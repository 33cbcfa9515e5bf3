//! [`SledStore`]: the home of fleet state inside the controller, on sled 0.34.7 and never anything newer or
//! looser (its successor lost acknowledged records).
//!
//! ```text
//! <dir>/lock            held while open; a second process is told so
//! <dir>/marker.json     newest revision known to be on disk some time ago
//! <dir>/sled/           the engine's files
//! <dir>/sled.bad-1/     set aside because it was damaged (only with OnDamage::SetAside)
//! ```
//!
//! All writes go through one thread that collects what waits, applies it as one atomic batch and answers after
//! `flush` **and** fsync: many writers share one fsync, and compare-and-set needs no locks. Reads go to sled
//! directly, on blocking threads. Writes stop well before the disk is full and go on by themselves once there is
//! room. Should sled itself meet a full disk, it is beyond use for the rest of the process: the store is then
//! [`Health::Down`], nothing acknowledged is lost, and the program has to be restarted.

mod commit;
mod group;
mod marker;
mod open;
mod read;
mod record;
mod space;
mod transfer;

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use super::{
    Committed, Document, ExportSummary, FleetStore, Health, Kind, LogEntry, Page, Scan, StoreError,
    Transaction, check_id,
};
use commit::{Committer, Job};
use open::Engine;
pub use space::DiskLimits;

/// Jobs that may wait for the commit thread before callers wait to hand theirs over.
const QUEUE: usize = 1_024;

/// How long opening waits for another process before it says that there is one.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
/// A write that takes longer than this will not come back.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What to do with a store that cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDamage {
    /// Touch nothing and fail with [`StoreError::Damaged`]: a person restores the backup.
    Refuse,
    /// Move it aside and start empty: for state that can be rebuilt.
    SetAside,
}

/// How opening went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpenOutcome {
    Clean,
    /// A broken snapshot file was removed; nothing is lost.
    SnapshotRepaired,
    /// An import was cut off, so nothing of it was kept; the store is empty.
    UnfinishedImportDiscarded,
    /// The damaged store now lies at `path`; this one is empty.
    SetAside {
        path: PathBuf,
        reason: String,
    },
}

/// Where the store is and how careful it is.
#[derive(Debug, Clone)]
pub struct SledConfig {
    /// Belongs to the store alone; created if missing.
    pub dir: PathBuf,
    /// sled's page cache; it uses more than this, about ten times for full scans.
    pub cache_bytes: u64,
    pub on_damage: OnDamage,
    pub disk: DiskLimits,
    /// How long sled may take to open (checking the records comes after that).
    pub open_limit: Duration,
}

impl SledConfig {
    /// 8 MiB of cache, refusing damage, 20 s to open.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            cache_bytes: 8 << 20,
            on_damage: OnDamage::Refuse,
            disk: DiskLimits::default(),
            open_limit: Duration::from_secs(20),
        }
    }
}

struct Shared {
    config: SledConfig,
    /// The engine, or why there is none any more.
    engine: RwLock<Result<Arc<Engine>, String>>,
    /// An export or import keeps the commit thread busy for as long as it takes.
    long_work: AtomicBool,
}

impl Shared {
    fn give_up(&self, reason: String) {
        *self.engine.write() = Err(reason);
    }

    fn gone(&self) -> StoreError {
        match &*self.engine.read() {
            Err(reason) => StoreError::unavailable(reason.clone()),
            Ok(_) => StoreError::unavailable("its commit thread ended"),
        }
    }

    fn long_work(&self) -> LongWork<'_> {
        self.long_work.store(true, Ordering::SeqCst);
        LongWork(&self.long_work)
    }
}

struct LongWork<'a>(&'a AtomicBool);

impl Drop for LongWork<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Fleet state in a folder. Open it once per process and share it.
pub struct SledStore {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

impl SledStore {
    /// Opens or creates the store in `config.dir`, checking every record.
    ///
    /// # Errors
    /// [`StoreError::Locked`], [`StoreError::Damaged`] (only with [`OnDamage::Refuse`]),
    /// [`StoreError::Unavailable`].
    pub async fn open(config: SledConfig) -> Result<(Self, OpenOutcome), StoreError> {
        let opening = tokio::task::spawn_blocking(move || Self::open_blocking(config));
        opening.await.map_err(|error| StoreError::unavailable(format!("opening it failed: {error}")))?
    }

    fn open_blocking(config: SledConfig) -> Result<(Self, OpenOutcome), StoreError> {
        let lock = lock(&config.dir)?;
        let (engine, totals, outcome) = open::open_guarded(&config)?;
        let engine = Arc::new(engine);
        let shared = Arc::new(Shared {
            config,
            engine: RwLock::new(Ok(Arc::clone(&engine))),
            long_work: AtomicBool::new(false),
        });
        let (jobs, queue) = mpsc::channel(QUEUE);
        let committer = Committer::new(Arc::clone(&shared), engine, totals, lock);
        std::thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn(move || committer.run(queue))
            .map_err(|error| StoreError::unavailable(format!("could not start its thread: {error}")))?;
        Ok((Self { shared, jobs }, outcome))
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| self.shared.gone())?;
        answer.await.map_err(|_| self.shared.gone())
    }

    /// Runs `work` on a blocking thread.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let engine = match &*self.shared.engine.read() {
            Ok(engine) => Arc::clone(engine),
            Err(reason) => return Err(StoreError::unavailable(reason.clone())),
        };
        let reading = tokio::task::spawn_blocking(move || {
            let found = open::guard(|| work(&engine));
            // Let go before the answer arrives: closing waits for it.
            drop(engine);
            found
        });
        match reading.await {
            Ok(Ok(found)) => found,
            Ok(Err(reason)) => Err(StoreError::Corrupt { what: "state".to_owned(), reason }),
            Err(error) => Err(StoreError::unavailable(format!("a read was cut off: {error}"))),
        }
    }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let trouble = |error: std::io::Error| {
        StoreError::unavailable(format!("could not create or lock `{}`: {error}", dir.display()))
    };
    fs::create_dir_all(dir).map_err(trouble)?;
    let file =
        File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(trouble)?;
    // A process that is just ending, or a child of it between fork and exec, lets go in a moment.
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(trouble(error)),
        }
    }
}

#[async_trait]
impl FleetStore for SledStore {
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Document>, StoreError> {
        check_id(kind.as_str(), id)?;
        let key = record::document_key(kind.as_str(), id);
        self.read(move |engine| read::document(engine, &key)).await
    }

    async fn scan(&self, kind: Kind, scan: Scan) -> Result<Page<Document>, StoreError> {
        self.read(move |engine| read::scan(engine, kind, &scan)).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        transaction.check_form()?;
        let committing = self.ask(|reply| Job::Commit { transaction, reply });
        tokio::pin!(committing);
        loop {
            match tokio::time::timeout(ANSWER_LIMIT, &mut committing).await {
                Ok(answer) => return answer?,
                Err(_) if self.shared.long_work.load(Ordering::SeqCst) => {}
                // sled was seen to wait for ever after a write that failed.
                Err(_) => {
                    let reason = format!("a write has not come back for {} s", ANSWER_LIMIT.as_secs());
                    self.shared.give_up(format!("{reason}; restart the program to go on"));
                    return Err(self.shared.gone());
                }
            }
        }
    }

    async fn log_read(&self, log: &str, from: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        check_id("log", log)?;
        let log = log.to_owned();
        self.read(move |engine| read::log(engine, &log, from, limit)).await
    }

    async fn log_head(&self, log: &str) -> Result<u64, StoreError> {
        check_id("log", log)?;
        let log = log.to_owned();
        self.read(move |engine| read::log_head(engine, &log)).await
    }

    async fn health(&self) -> Health {
        if let Err(error) = self.read(|_| Ok(())).await {
            return Health::Down { reason: error.to_string() };
        }
        match space::refusal(&self.shared.config.dir, self.shared.config.disk) {
            Some(reason) => Health::ReadOnly { reason },
            None => Health::Ready,
        }
    }

    async fn size_on_disk(&self) -> Result<u64, StoreError> {
        let dir = self.shared.config.dir.clone();
        self.read(move |_| {
            read::allocated_bytes(&dir).map_err(|error| {
                StoreError::unavailable(format!("could not measure `{}`: {error}", dir.display()))
            })
        })
        .await
    }

    async fn export(&self, out: Box<dyn Write + Send>) -> Result<ExportSummary, StoreError> {
        self.ask(|reply| Job::Export { out, reply }).await?
    }

    async fn import(&self, from: Box<dyn Read + Send>) -> Result<ExportSummary, StoreError> {
        self.ask(|reply| Job::Import { from, reply }).await?
    }

    async fn flush(&self) -> Result<(), StoreError> {
        self.ask(Job::Flush).await?
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.ask(Job::Close).await?
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod damage_tests;
#[cfg(test)]
pub(crate) mod disk_full_tests;
#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod tests;
