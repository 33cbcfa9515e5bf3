//! A full disk stops writes, keeps reads, loses nothing, and is over when there is room again. On a small tmpfs
//! where mounting is permitted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::tests::DEVICE;
use super::*;
use crate::store::Expect;

/// A mounted tmpfs, unmounted on drop.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, said on stderr, where mounting is not permitted.
    pub(crate) fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            Ok(output) => {
                eprintln!(
                    "SKIPPED: mounting a tmpfs is not permitted: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                None
            }
            Err(error) => {
                eprintln!("SKIPPED: there is no mount command: {error}");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the space there is.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4_096, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a thread of a store that failed may still hold a file.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

async fn put(store: &SledStore, number: u32) -> Result<Committed, StoreError> {
    let body = vec![number as u8; 20_000];
    store.commit(Transaction::new().put(DEVICE, format!("d-{number:06}"), Expect::Absent, body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_stop_before_the_disk_is_full_and_go_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let (store, _) = SledStore::open(SledConfig::new(disk.path().join("store"))).await.unwrap();
    put(&store, 0).await.unwrap();
    let filler = disk.fill();
    let refused = put(&store, 1).await.unwrap_err();
    assert!(refused.to_string().contains("100 % full"), "{refused}");
    assert!(matches!(store.health().await, Health::ReadOnly { .. }));
    assert_eq!(store.get(DEVICE, "d-000000").await.unwrap().unwrap().body.len(), 20_000);
    fs::remove_file(filler).unwrap();
    put(&store, 1).await.unwrap();
    assert_eq!(store.health().await, Health::Ready);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_ran_into_the_full_disk_comes_back_with_everything_acknowledged() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    // Limits off, so that sled itself meets the full disk.
    let config = super::tests::config(&disk.path().join("store"));
    let (store, _) = SledStore::open(config.clone()).await.unwrap();
    let reserve = disk.path().join("reserve");
    fs::write(&reserve, vec![1; 8 << 20]).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        match put(&store, acknowledged).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 2_000, "24 MiB never filled up");
    };
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused}");
    fs::remove_file(reserve).unwrap();
    // Its engine died of this; it is opened again at most once a second.
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut next = acknowledged + 1;
    loop {
        match put(&store, next).await {
            Ok(_) => break,
            Err(StoreError::Unavailable { .. }) if Instant::now() < deadline => next += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    }
    for number in 0..acknowledged {
        assert!(store.get(DEVICE, &format!("d-{number:06}")).await.unwrap().is_some(), "{number}");
    }
    eprintln!("{acknowledged} acknowledged before the disk was full: {refused}");
    store.close().await.unwrap();
    let (store, outcome) = SledStore::open(config).await.unwrap();
    assert_eq!(outcome, OpenOutcome::Clean);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_on_a_full_disk_blames_the_disk_and_not_the_store() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let config = SledConfig::new(disk.path().join("store"));
    let (store, _) = SledStore::open(config.clone()).await.unwrap();
    put(&store, 0).await.unwrap();
    store.close().await.unwrap();
    let filler = disk.fill();
    match SledStore::open(config.clone()).await {
        // Whether sled needs room depends on what it left behind.
        Ok((store, _)) => {
            assert!(matches!(store.health().await, Health::ReadOnly { .. }));
            store.close().await.unwrap();
        }
        Err(error) => assert!(matches!(error, StoreError::Unavailable { .. }), "{error}"),
    }
    fs::remove_file(filler).unwrap();
    let (store, _) = SledStore::open(config).await.unwrap();
    assert!(store.get(DEVICE, "d-000000").await.unwrap().is_some());
    store.close().await.unwrap();
}
