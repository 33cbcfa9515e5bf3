//! A store that says which kinds of documents changed, after each commit: what live pages listen to.
//!
//! Commits may come by the thousand; notices come once in [`GAP`] at most, each with all kinds since the one before.
//! They are numbered, and the last [`KEPT`] stay, so that a listener whose line broke goes on where it was. One that is
//! slower than that starts anew instead of holding anybody up.

use super::{
    Change, Committed, Document, ExportSummary, FleetStore, Health, Kind, LogEntry, Page, Scan, StoreError,
    Transaction,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, VecDeque},
    io::{Read, Write},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

/// Shortest time between two notices.
pub const GAP: Duration = Duration::from_secs(1);
/// Notices that can be had again, and that a listener may be behind.
pub const KEPT: usize = 128;

/// Kinds of documents that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// 1, 2, 3 ... since the start of the controller.
    pub number: u64,
    pub kinds: BTreeSet<&'static str>,
}

/// What was changed, for who listens. Cheap to clone.
#[derive(Clone)]
pub struct Changes(Arc<Hub>);

struct Hub {
    state: Mutex<State>,
    wake: Notify,
    sender: broadcast::Sender<Notice>,
}

#[derive(Default)]
struct State {
    pending: BTreeSet<&'static str>,
    last: u64,
    kept: VecDeque<Notice>,
}

/// Where a listener begins.
pub struct Listening {
    /// What it missed, oldest first.
    pub missed: Vec<Notice>,
    /// Whether more was missed than can be told.
    pub is_cut: bool,
    pub next: broadcast::Receiver<Notice>,
}

impl Default for Changes {
    fn default() -> Self {
        let (sender, _) = broadcast::channel(KEPT);
        Self(Arc::new(Hub { state: Mutex::default(), wake: Notify::new(), sender }))
    }
}

impl Changes {
    fn note(&self, kinds: impl Iterator<Item = Kind>) {
        let mut state = self.0.state.lock();
        let before = state.pending.len();
        state.pending.extend(kinds.map(|kind| kind.as_str()));
        if state.pending.len() > before {
            self.0.wake.notify_one();
        }
    }

    /// Sends one notice about everything that is pending.
    fn tell(&self) {
        let mut state = self.0.state.lock();
        if state.pending.is_empty() {
            return;
        }
        state.last += 1;
        let notice = Notice { number: state.last, kinds: std::mem::take(&mut state.pending) };
        state.kept.push_back(notice.clone());
        while state.kept.len() > KEPT {
            state.kept.pop_front();
        }
        // Under the lock, so that nobody who begins to listen misses one or gets it twice. Nobody may listen.
        let _ = self.0.sender.send(notice);
    }

    /// Runs until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.0.wake.notified() => self.tell(),
                () = stop.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(GAP) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// From now on, or from after the notice `last` on.
    pub fn listen(&self, last: Option<u64>) -> Listening {
        let state = self.0.state.lock();
        let next = self.0.sender.subscribe();
        let Some(last) = last else { return Listening { missed: vec![], is_cut: false, next } };
        let oldest = state.kept.front().map_or(state.last + 1, |notice| notice.number);
        // A number of the future is one of a process before this one.
        let is_cut = last > state.last || last + 1 < oldest;
        let missed = state.kept.iter().filter(|notice| !is_cut && notice.number > last).cloned().collect();
        Listening { missed, is_cut, next }
    }
}

/// Passes everything on, and tells [`Changes`] what was committed.
pub struct Announced<S> {
    inner: S,
    changes: Changes,
}

impl<S: FleetStore> Announced<S> {
    pub fn new(inner: S, changes: Changes) -> Self {
        Self { inner, changes }
    }
}

#[async_trait]
impl<S: FleetStore> FleetStore for Announced<S> {
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Document>, StoreError> {
        self.inner.get(kind, id).await
    }
    async fn scan(&self, kind: Kind, scan: Scan) -> Result<Page<Document>, StoreError> {
        self.inner.scan(kind, scan).await
    }
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        let changed = transaction.operations.iter().filter(|one| one.change != Change::Check);
        let kinds: Vec<Kind> = changed.map(|one| one.kind).collect();
        let committed = self.inner.commit(transaction).await?;
        self.changes.note(kinds.into_iter());
        Ok(committed)
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

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 3] = [Kind::new("device"), Kind::new("rollout"), Kind::new("incident")];

    #[tokio::test]
    async fn a_thousand_commits_are_one_notice() {
        let changes = Changes::default();
        let mut listening = changes.listen(None);
        for n in 0..1_000 {
            changes.note([KINDS[n % 3]].into_iter());
        }
        let stop = CancellationToken::new();
        let task = tokio::spawn(changes.clone().run(stop.clone()));
        let next = tokio::time::timeout(GAP * 20, listening.next.recv()).await.unwrap().unwrap();
        let all = BTreeSet::from(["device", "incident", "rollout"]);
        assert_eq!(next, Notice { number: 1, kinds: all });
        assert!(listening.next.is_empty());
        changes.note([KINDS[1]].into_iter());
        let next = tokio::time::timeout(GAP * 20, listening.next.recv()).await.unwrap().unwrap();
        assert_eq!(next, Notice { number: 2, kinds: BTreeSet::from(["rollout"]) });
        stop.cancel();
        task.await.unwrap();
    }

    #[test]
    fn who_comes_back_gets_what_was_missed_or_is_told_that_it_cannot() {
        let changes = Changes::default();
        for _ in 0..KEPT + 10 {
            changes.note([KINDS[0]].into_iter());
            changes.tell();
        }
        let last = (KEPT + 10) as u64;
        let missed = |from: u64| {
            let listening = changes.listen(Some(from));
            (listening.missed.len(), listening.is_cut)
        };
        assert_eq!((missed(last), missed(last - 3)), ((0, false), (3, false)));
        assert_eq!((missed(10), missed(9)), ((KEPT, false), (0, true)));
        assert_eq!(missed(last + 1), (0, true), "a number of another process");
        assert_eq!(changes.listen(None).missed, []);
    }
}
