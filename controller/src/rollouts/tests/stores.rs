//! Two coats around a real store: one that looks at every commit, one that dies at a chosen one.

use crate::{
    rollout::{Rollout, check_rollout, check_together},
    rollouts::Documents,
    store::{
        Committed, Document, ExportSummary, FleetStore, Health, Kind, LogEntry, Page, Scan, StoreError,
        Transaction,
    },
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};
use tokio::sync::Notify;

/// What a coat does with a commit.
#[async_trait]
pub(super) trait Coat: Send + Sync {
    async fn commit(&self, inner: &dyn FleetStore, transaction: Transaction)
    -> Result<Committed, StoreError>;
}

/// A store in a coat: everything but `commit` goes straight through.
pub(super) struct Coated<C> {
    inner: Arc<dyn FleetStore>,
    pub(super) coat: C,
}

#[async_trait]
impl<C: Coat> FleetStore for Coated<C> {
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        self.coat.commit(&*self.inner, transaction).await
    }
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Document>, StoreError> {
        self.inner.get(kind, id).await
    }
    async fn scan(&self, kind: Kind, scan: Scan) -> Result<Page<Document>, StoreError> {
        self.inner.scan(kind, scan).await
    }
    async fn log_read(&self, log: &str, from: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.inner.log_read(log, from, limit).await
    }
    async fn log_head(&self, log: &str) -> Result<u64, StoreError> {
        self.inner.log_head(log).await
    }
    async fn health(&self) -> Health {
        self.inner.health().await
    }
    async fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.inner.size_on_disk().await
    }
    async fn export(&self, out: Box<dyn Write + Send>) -> Result<ExportSummary, StoreError> {
        self.inner.export(out).await
    }
    async fn import(&self, from: Box<dyn Read + Send>) -> Result<ExportSummary, StoreError> {
        self.inner.import(from).await
    }
    async fn flush(&self) -> Result<(), StoreError> {
        self.inner.flush().await
    }
    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}

/// Holds every committed state of every rollout against the invariants.
pub(super) struct Checked {
    documents: Documents,
    /// One commit at a time, so that a look sees one moment.
    gate: tokio::sync::Mutex<()>,
    pub(super) broken: Mutex<Vec<String>>,
    pub(super) commits: AtomicU64,
}

impl Checked {
    pub(super) fn around(inner: Arc<dyn FleetStore>) -> Arc<Coated<Self>> {
        let coat = Self {
            documents: Documents::new(inner.clone()),
            gate: tokio::sync::Mutex::default(),
            broken: Mutex::default(),
            commits: AtomicU64::new(0),
        };
        Arc::new(Coated { inner, coat })
    }

    async fn look(&self) -> Result<(), StoreError> {
        for (_, found) in self.documents.rollouts.list_all("").await? {
            let rollout: Rollout = found.value;
            let attempts = self.documents.attempts.list_all(&format!("{}/", rollout.id)).await?;
            let attempts: Vec<_> = attempts.into_iter().map(|(_, attempt)| attempt.value).collect();
            let mut broken = check_rollout(&rollout);
            broken.extend(check_together(&rollout, &attempts));
            let twice = attempts.iter().filter(|attempt| attempt.number > 1);
            let mut all = self.broken.lock();
            all.extend(broken.iter().map(|one| format!("{}: {one}", rollout.id)));
            all.extend(twice.map(|attempt| format!("{} had {} turns", attempt.device, attempt.number)));
        }
        Ok(())
    }
}

#[async_trait]
impl Coat for Checked {
    async fn commit(
        &self,
        inner: &dyn FleetStore,
        transaction: Transaction,
    ) -> Result<Committed, StoreError> {
        let _gate = self.gate.lock().await;
        let committed = inner.commit(transaction).await?;
        self.commits.fetch_add(1, SeqCst);
        self.look().await?;
        Ok(committed)
    }
}

/// When a process dies, counted in its own commits from 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum Death {
    /// The commit never reaches the store.
    Before(u64),
    /// It does, and nobody learns of it.
    After(u64),
}

/// The store as one process has it.
pub(super) struct Mortal {
    death: Option<Death>,
    commits: AtomicU64,
    dead: AtomicBool,
    died: Notify,
}

impl Mortal {
    pub(super) fn around(inner: Arc<dyn FleetStore>, death: Option<Death>) -> Arc<Coated<Self>> {
        let (commits, dead, died) = (AtomicU64::new(0), AtomicBool::new(false), Notify::new());
        Arc::new(Coated { inner, coat: Self { death, commits, dead, died } })
    }

    /// Returns once it has died.
    pub(super) async fn died(&self) {
        self.died.notified().await;
    }

    async fn die(&self) -> Result<Committed, StoreError> {
        self.dead.store(true, SeqCst);
        self.died.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl Coat for Mortal {
    async fn commit(
        &self,
        inner: &dyn FleetStore,
        transaction: Transaction,
    ) -> Result<Committed, StoreError> {
        if self.dead.load(SeqCst) {
            return std::future::pending().await;
        }
        let number = self.commits.fetch_add(1, SeqCst) + 1;
        match self.death {
            Some(Death::Before(at)) if at == number => self.die().await,
            Some(Death::After(at)) if at == number => {
                let _ = inner.commit(transaction).await; // whatever it says, nobody hears it
                self.die().await
            }
            _ => inner.commit(transaction).await,
        }
    }
}
