//! The behavioural suite on sled, and what only this home promises.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tempfile::TempDir;

use super::*;
use crate::store::suite::{Home, store_suite};
use crate::store::{Expect, Retry};

pub(super) const DEVICE: Kind = Kind::new("device");

/// Disk limits that never refuse: the disk of the machine is not what is tested.
pub(super) fn config(dir: &Path) -> SledConfig {
    SledConfig {
        disk: DiskLimits { min_free_bytes: 0, max_used_percent: 100, enough_free_bytes: 0 },
        ..SledConfig::new(dir)
    }
}

struct SledHome {
    dir: TempDir,
    store: Arc<SledStore>,
}

impl SledHome {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, outcome) = SledStore::open(config(dir.path())).await.unwrap();
        assert_eq!(outcome, OpenOutcome::Clean);
        Self { dir, store: Arc::new(store) }
    }
}

#[async_trait]
impl Home for SledHome {
    fn store(&self) -> Arc<dyn FleetStore> {
        Arc::clone(&self.store) as Arc<dyn FleetStore>
    }

    async fn reopen(&mut self) {
        // Closing twice is refused, and some tests close by hand.
        let closed = self.store.close().await;
        assert!(matches!(closed, Ok(()) | Err(StoreError::Unavailable { .. })), "{closed:?}");
        let (store, outcome) = SledStore::open(config(self.dir.path())).await.unwrap();
        assert_eq!(outcome, OpenOutcome::Clean);
        self.store = Arc::new(store);
    }

    async fn another(&self) -> Box<dyn Home> {
        Box::new(Self::new().await)
    }
}

store_suite!(sled, SledHome::new());

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opener_is_told_who_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = SledStore::open(config(dir.path())).await.unwrap();
    let second = SledStore::open(config(dir.path())).await.err().unwrap();
    assert!(matches!(&second, StoreError::Locked { dir: found } if found == dir.path()), "{second}");
    assert!(second.to_string().contains("stop it first"), "{second}");
    assert_eq!(second.retry(), Retry::Never);
    first.close().await.unwrap();
    SledStore::open(config(dir.path())).await.unwrap().0.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_dropped_without_closing_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SledStore::open(config(dir.path())).await.unwrap();
    store.commit(Transaction::new().put(DEVICE, "d", Expect::Absent, b"1")).await.unwrap();
    drop(store);
    let deadline = Instant::now() + Duration::from_secs(10);
    let (store, _) = loop {
        match SledStore::open(config(dir.path())).await {
            Ok(opened) => break opened,
            Err(StoreError::Locked { .. }) if Instant::now() < deadline => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(store.get(DEVICE, "d").await.unwrap().unwrap().body, b"1");
}

/// Not a test of speed: prints it. Run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints how many durable commits a second this machine does"]
async fn durable_commits_per_second() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (store, _) = SledStore::open(config(dir.path())).await.unwrap();
    let store = Arc::new(store);
    for writers in [1_usize, 8, 64, 256] {
        let (start, per_writer) = (Instant::now(), 4_000 / writers.max(4));
        let tasks: Vec<_> = (0..writers)
            .map(|writer| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut waits = Vec::new();
                    for number in 0..per_writer {
                        let id = format!("d-{writer}-{number}");
                        let begun = Instant::now();
                        let transaction = Transaction::new().put(DEVICE, id, Expect::Any, vec![7; 1_024]);
                        store.commit(transaction).await.unwrap();
                        waits.push(begun.elapsed());
                    }
                    waits
                })
            })
            .collect();
        let mut waits = Vec::new();
        for task in tasks {
            waits.extend(task.await.unwrap());
        }
        waits.sort();
        let (p50, p99) = (waits[waits.len() / 2], waits[waits.len() * 99 / 100]);
        let rate = waits.len() as f64 / start.elapsed().as_secs_f64();
        println!("{writers} writers: {rate:.0} commits/s of 1 KiB, p50 {p50:?}, p99 {p99:?}");
    }
    store.close().await.unwrap();
}
