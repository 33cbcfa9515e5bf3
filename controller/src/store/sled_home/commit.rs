//! The one thread that writes: it takes what waits as one group, applies it, makes it durable, then answers.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::group::Group;
use super::marker::{self, Marker};
use super::open::{self, Engine, drop_guarded, guard};
use super::record::Totals;
use super::{Gone, OnDamage, Shared, SledConfig, space, transfer};
use crate::store::transaction::MAX_TRANSACTION_BYTES;
use crate::store::{Committed, ExportSummary, StoreError, Transaction};

/// Most transactions in one group: enough that the fsync no longer matters, few enough to answer soon.
const GROUP: usize = 256;
/// The marker is rewritten once this many revisions were acknowledged since.
const MARK_EVERY: u64 = 1_024;
/// A failed engine is not opened again more often than this.
const REVIVE_EVERY: Duration = Duration::from_secs(1);
/// How long closing waits for reads that are under way.
const READERS_LIMIT: Duration = Duration::from_secs(5);

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Work for the commit thread. Whoever stopped waiting for the answer does not stop the work.
pub(super) enum Job {
    Commit { transaction: Transaction, reply: Reply<Committed> },
    Export { out: Box<dyn Write + Send>, reply: Reply<ExportSummary> },
    Import { from: Box<dyn Read + Send>, reply: Reply<ExportSummary> },
    Flush(Reply<()>),
    Revive(Reply<()>),
    Close(Reply<()>),
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    engine: Option<Arc<Engine>>,
    /// As of the newest batch that was applied.
    totals: Totals,
    /// Newest number of each log that was written to since opening.
    heads: HashMap<String, u64>,
    /// Newest revision whose writer was told.
    acknowledged: u64,
    /// Revision in the marker file.
    marked: u64,
    revived: Option<Instant>,
    /// Keeps other processes out until the engine is gone.
    lock: File,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, engine: Arc<Engine>, totals: Totals, lock: File) -> Self {
        let acknowledged = totals.revision;
        let mut committer = Self {
            shared,
            engine: Some(engine),
            totals,
            heads: HashMap::new(),
            acknowledged,
            marked: 0,
            revived: None,
            lock,
        };
        committer.mark();
        committer
    }

    /// Works until it is told to close or nobody is left who could.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut held = None;
        while let Some(job) = held.take().or_else(|| queue.blocking_recv()) {
            match job {
                Job::Commit { transaction, reply } => {
                    let mut bytes = transaction.body_bytes();
                    let mut group = vec![(transaction, reply)];
                    while group.len() < GROUP && bytes < MAX_TRANSACTION_BYTES {
                        match queue.try_recv() {
                            Ok(Job::Commit { transaction, reply }) => {
                                bytes += transaction.body_bytes();
                                group.push((transaction, reply));
                            }
                            Ok(other) => {
                                held = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(group);
                }
                Job::Export { out, reply } => drop(reply.send(self.export(out))),
                Job::Import { from, reply } => drop(reply.send(self.import(from))),
                // Whatever was acknowledged is on disk, and this thread acknowledges before it takes a new job.
                Job::Flush(reply) => drop(reply.send(self.revive().map(|_| ()))),
                Job::Revive(reply) => drop(reply.send(self.revive().map(|_| ()))),
                Job::Close(reply) => {
                    queue.close();
                    let closed = self.close();
                    drop(reply.send(closed));
                    return;
                }
            }
        }
        if let Err(error) = self.close() {
            tracing::warn!(error = %error, "the store did not close cleanly");
        }
    }

    fn commit(&mut self, group: Vec<(Transaction, Reply<Committed>)>) {
        let engine = match self.writable() {
            Ok(engine) => engine,
            Err(error) => {
                let reason = match error {
                    StoreError::Unavailable { reason } => reason,
                    other => other.to_string(),
                };
                for (_, reply) in group {
                    drop(reply.send(Err(StoreError::unavailable(reason.clone()))));
                }
                return;
            }
        };
        let (transactions, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let (totals, heads) = (self.totals, mem::take(&mut self.heads));
        let mut replies: Vec<_> = replies.into_iter().map(Some).collect();
        let applied = guard(|| {
            let mut staging = Group::new(&engine, totals, heads);
            let results: Vec<_> =
                transactions.into_iter().map(|transaction| staging.stage(transaction)).collect();
            let (batch, totals, heads) = staging.finish();
            if results.iter().any(Result::is_ok) {
                engine.tree.apply_batch(batch).map_err(|error| error.to_string())?;
            }
            Ok::<_, String>((results, totals, heads))
        });
        let (results, totals, heads) = match applied {
            Ok(Ok(applied)) => applied,
            Ok(Err(reason)) | Err(reason) => return self.fail(engine, &reason, replies),
        };
        self.totals = totals;
        self.heads = heads;
        let mut winners = Vec::with_capacity(results.len());
        for (slot, result) in replies.iter_mut().zip(results) {
            match (slot.take(), result) {
                (Some(reply), Ok(committed)) => winners.push((reply, committed)),
                // Losers may read again now: what they lost to is applied.
                (Some(reply), Err(error)) => drop(reply.send(Err(error))),
                (None, _) => {}
            }
        }
        if winners.is_empty() {
            return;
        }
        match guard(|| engine.sync()) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let replies = winners.into_iter().map(|(reply, _)| Some(reply)).collect();
                return self.fail(engine, &error.to_string(), replies);
            }
            Err(reason) => {
                let replies = winners.into_iter().map(|(reply, _)| Some(reply)).collect();
                return self.fail(engine, &reason, replies);
            }
        }
        // The very first answer must already be protected by the marker.
        if self.marked == 0 || totals.revision - self.marked >= MARK_EVERY {
            self.mark_at(totals.revision);
        }
        self.acknowledged = totals.revision;
        for (reply, committed) in winners {
            drop(reply.send(Ok(committed)));
        }
    }

    /// An engine that accepts writes now.
    fn writable(&mut self) -> Result<Arc<Engine>, StoreError> {
        let engine = self.revive()?;
        match space::refusal(&self.shared.config.dir, self.shared.config.disk) {
            Some(reason) => Err(StoreError::unavailable(reason)),
            None => Ok(engine),
        }
    }

    /// Gives up an engine that failed in the middle of something and tells the writers.
    fn fail(&mut self, engine: Arc<Engine>, reason: &str, replies: Vec<Option<Reply<Committed>>>) {
        drop(engine);
        self.abandon(reason);
        for reply in replies.into_iter().flatten() {
            let reason = format!("{reason}; whether this write happened is not known");
            drop(reply.send(Err(StoreError::unavailable(reason))));
        }
    }

    fn abandon(&mut self, reason: &str) {
        *self.shared.engine.write() = Err(Gone::Failed(format!("its engine failed: {reason}")));
        self.heads.clear();
        if let Some(engine) = self.engine.take() {
            release(engine);
        }
    }

    /// The engine, opened again if it had failed and that is possible now.
    fn revive(&mut self) -> Result<Arc<Engine>, StoreError> {
        if let Some(engine) = &self.engine {
            return Ok(Arc::clone(engine));
        }
        let reason = match &*self.shared.engine.read() {
            Err(Gone::Failed(reason) | Gone::Forever(reason)) => reason.clone(),
            Ok(_) => "it was given up".to_owned(),
        };
        let forever = matches!(&*self.shared.engine.read(), Err(Gone::Forever(_)));
        if forever || self.revived.is_some_and(|at| at.elapsed() < REVIVE_EVERY) {
            return Err(StoreError::unavailable(reason));
        }
        if let Some(full) = space::refusal(&self.shared.config.dir, self.shared.config.disk) {
            return Err(StoreError::unavailable(full));
        }
        let config = SledConfig { on_damage: OnDamage::Refuse, ..self.shared.config.clone() };
        let opened = open::open_guarded(&config);
        self.revived = Some(Instant::now());
        let (engine, totals, _) = opened.map_err(|error| StoreError::unavailable(error.to_string()))?;
        if totals.revision < self.acknowledged {
            let (found, promised) = (totals.revision, self.acknowledged);
            drop_guarded(engine);
            let reason = format!(
                "it came back at revision {found} although {promised} was acknowledged; stop the controller and \
                 restore the newest backup"
            );
            *self.shared.engine.write() = Err(Gone::Forever(reason.clone()));
            return Err(StoreError::unavailable(reason));
        }
        let engine = Arc::new(engine);
        self.totals = totals;
        self.acknowledged = totals.revision;
        self.engine = Some(Arc::clone(&engine));
        *self.shared.engine.write() = Ok(Arc::clone(&engine));
        tracing::info!(dir = %config.dir.display(), revision = totals.revision, "the store works again");
        Ok(engine)
    }

    fn export(&mut self, out: Box<dyn Write + Send>) -> Result<ExportSummary, StoreError> {
        let engine = self.revive()?;
        let revision = self.totals.revision;
        guard(|| transfer::export(&engine, revision, out))
            .unwrap_or_else(|reason| Err(StoreError::Corrupt { what: "state".to_owned(), reason }))
    }

    fn import(&mut self, from: Box<dyn Read + Send>) -> Result<ExportSummary, StoreError> {
        let engine = self.writable()?;
        if self.totals.revision != 0 {
            return Err(StoreError::invalid("an import", "the store is not empty and new"));
        }
        let dir = self.shared.config.dir.clone();
        // Checked as a whole from a copy, since what is read from may not allow reading twice.
        let mut spool = transfer::spool(&dir, from)?;
        match guard(|| transfer::import(&engine, &mut spool)) {
            Ok(Ok((totals, summary))) => {
                self.totals = totals;
                self.mark_at(totals.revision);
                self.acknowledged = totals.revision;
                Ok(summary)
            }
            Ok(Err(error)) => {
                drop(engine);
                self.abandon(&error.to_string());
                Err(error)
            }
            Err(reason) => {
                drop(engine);
                self.abandon(&reason);
                Err(StoreError::unavailable(reason))
            }
        }
    }

    fn mark(&mut self) {
        if self.acknowledged > 0 {
            self.mark_at(self.acknowledged);
        }
    }

    /// `revision` must be on disk. A marker that stays behind protects less, it never does harm.
    fn mark_at(&mut self, revision: u64) {
        match marker::write(&self.shared.config.dir, Marker::at(revision)) {
            Ok(()) => self.marked = revision,
            Err(error) => {
                let dir = self.shared.config.dir.display();
                tracing::warn!(error = %error, dir = %dir, "could not write the store's marker file");
            }
        }
    }

    fn close(mut self) -> Result<(), StoreError> {
        *self.shared.engine.write() = Err(Gone::Forever("it was closed".to_owned()));
        let Some(engine) = self.engine.take() else { return Ok(()) };
        let synced = guard(|| engine.sync());
        if self.marked < self.acknowledged {
            self.mark();
        }
        let gone = release(engine);
        drop(self.lock);
        match synced {
            Ok(Ok(())) if gone => Ok(()),
            Ok(Ok(())) => {
                Err(StoreError::unavailable("it is durable, but its files were not let go in time"))
            }
            Ok(Err(error)) => Err(StoreError::unavailable(format!("it did not close cleanly: {error}"))),
            Err(reason) => Err(StoreError::unavailable(format!("it did not close cleanly: {reason}"))),
        }
    }
}

/// Waits for reads that are under way, then drops the engine; false if that took too long.
fn release(mut engine: Arc<Engine>) -> bool {
    let deadline = Instant::now() + READERS_LIMIT;
    loop {
        match Arc::try_unwrap(engine) {
            Ok(engine) => return drop_guarded(engine),
            Err(shared) if Instant::now() < deadline => {
                engine = shared;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(_) => return false,
        }
    }
}
