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
use super::open::{Engine, drop_guarded, guard};
use super::record::Totals;
use super::{Shared, space, transfer};
use crate::store::transaction::MAX_TRANSACTION_BYTES;
use crate::store::{Committed, ExportSummary, StoreError, Transaction};

/// Most transactions in one group: enough that the fsync no longer matters, few enough to answer soon.
const GROUP: usize = 256;
/// The marker is rewritten once this many revisions were acknowledged since.
const MARK_EVERY: u64 = 1_024;
/// How long closing waits for reads that are under way.
const READERS_LIMIT: Duration = Duration::from_secs(5);

pub(super) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Work for the commit thread. Whoever stopped waiting for the answer does not stop the work.
pub(super) enum Job {
    Commit { transaction: Transaction, reply: Reply<Committed> },
    Export { out: Box<dyn Write + Send>, reply: Reply<ExportSummary> },
    Import { from: Box<dyn Read + Send>, reply: Reply<ExportSummary> },
    Flush(Reply<()>),
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
                Job::Flush(reply) => drop(reply.send(self.working().map(|_| ()))),
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
        let engine = self.working()?;
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

    /// After a failed write sled cannot be opened again in this process: dropping it was seen to wait for ever,
    /// and so was every later opening, of other folders too. So it is left as it is until the process ends.
    fn abandon(&mut self, reason: &str) {
        self.shared.give_up(format!(
            "its engine failed: {reason}. What was acknowledged is safe; restart the program to go on"
        ));
        self.heads.clear();
        mem::forget(self.engine.take());
    }

    fn working(&self) -> Result<Arc<Engine>, StoreError> {
        match &self.engine {
            Some(engine) => Ok(Arc::clone(engine)),
            None => Err(self.shared.gone()),
        }
    }

    fn export(&mut self, out: Box<dyn Write + Send>) -> Result<ExportSummary, StoreError> {
        let engine = self.working()?;
        let revision = self.totals.revision;
        let _long = self.shared.long_work();
        guard(|| transfer::export(&engine, revision, out))
            .unwrap_or_else(|reason| Err(StoreError::Corrupt { what: "state".to_owned(), reason }))
    }

    fn import(&mut self, from: Box<dyn Read + Send>) -> Result<ExportSummary, StoreError> {
        let engine = self.writable()?;
        if self.totals.revision != 0 {
            return Err(StoreError::invalid("an import", "the store is not empty and new"));
        }
        let dir = self.shared.config.dir.clone();
        let shared = Arc::clone(&self.shared);
        let _long = shared.long_work();
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
        let Some(engine) = self.engine.take() else { return Err(self.shared.gone()) };
        self.shared.give_up("it was closed".to_owned());
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
