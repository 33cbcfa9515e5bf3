//! A full disk stops writes, keeps reads, loses nothing, and is over when there is room again. On a small tmpfs
//! where mounting is permitted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tests::DEVICE;
use super::*;
use crate::store::Expect;

const WRITER_DIR: &str = "EDGEFLEET_TEST_FULL_DISK_WRITER_DIR";

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
    let Some(disk) = SmallDisk::mount(96) else { return };
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

/// Writes until it is refused: does nothing unless it was started by the test below.
#[tokio::test(flavor = "multi_thread")]
async fn writer_process() {
    let Ok(dir) = std::env::var(WRITER_DIR) else { return };
    let (store, _) = SledStore::open(super::tests::config(Path::new(&dir))).await.unwrap();
    let (mut acknowledged, mut refused) = (0, 0);
    // Full for good ends the store; full for a moment (the marker did not fit, the log did) refuses one write.
    while refused < 20 && !matches!(store.health().await, Health::Down { .. }) {
        match put(&store, acknowledged).await {
            Ok(_) => acknowledged += 1,
            Err(StoreError::Unavailable { .. }) => refused += 1,
            Err(error) => panic!("{error:?}"),
        }
        assert!(acknowledged < 5_000, "the disk never filled up");
    }
    assert!(refused > 0, "the store went down without refusing a write");
    println!("\nACKNOWLEDGED {acknowledged}");
    // As a program does that must be restarted: sled's threads do not end any more.
    std::process::exit(0);
}

/// In a process of its own, since a sled that met a full disk harms all others of its process.
#[test]
fn a_store_that_ran_into_the_full_disk_has_everything_acknowledged_after_a_restart() {
    let Some(disk) = SmallDisk::mount(24) else { return };
    let dir = disk.path().join("store");
    let reserve = disk.path().join("reserve");
    fs::write(&reserve, vec![1; 8 << 20]).unwrap();
    let writer = Command::new(std::env::current_exe().unwrap())
        .args(["store::sled_home::disk_full_tests::writer_process", "--exact", "--nocapture"])
        .env(WRITER_DIR, &dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&writer.stdout);
    let complaint = String::from_utf8_lossy(&writer.stderr);
    let acknowledged = said.lines().find_map(|line| line.strip_prefix("ACKNOWLEDGED ")?.parse::<u32>().ok());
    let acknowledged = acknowledged.unwrap_or_else(|| panic!("{said} {complaint}"));
    assert!(acknowledged > 50, "{acknowledged}");
    fs::remove_file(reserve).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (store, outcome) = SledStore::open(super::tests::config(&dir)).await.unwrap();
        assert!(matches!(outcome, OpenOutcome::Clean | OpenOutcome::SnapshotRepaired), "{outcome:?}");
        for number in 0..acknowledged {
            let found = store.get(DEVICE, &format!("d-{number:06}")).await.unwrap().unwrap();
            assert_eq!(found.body, vec![number as u8; 20_000]);
        }
        put(&store, 1_000_000).await.unwrap();
        store.close().await.unwrap();
    });
    eprintln!("{acknowledged} acknowledged before the disk was full, all there after the restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_on_a_full_disk_blames_the_disk_and_not_the_store() {
    let Some(disk) = SmallDisk::mount(96) else { return };
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
