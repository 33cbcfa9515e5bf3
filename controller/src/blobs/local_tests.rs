//! A folder of blobs under good and bad uploads, bad reads, full disks and kills.

use std::process::{Command, Stdio};

use super::*;
use crate::store::sled_home::disk_full_tests::SmallDisk;

const WRITER_DIR: &str = "EDGEFLEET_TEST_BLOB_WRITER_DIR";

fn sample(size: usize) -> (Bytes, BlobDigest) {
    let bytes: Bytes = (0..size).map(|at| (at * 31 % 251) as u8).collect();
    let digest = BlobDigest::of(&bytes);
    (bytes, digest)
}

async fn fresh() -> (tempfile::TempDir, LocalBlobs) {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, swept) = LocalBlobs::open(dir.path()).await.unwrap();
    assert_eq!(swept, 0);
    (dir, blobs)
}

fn uploads(dir: &Path) -> usize {
    fs::read_dir(dir.join(UPLOADS)).unwrap().count()
}

#[tokio::test]
async fn a_streamed_blob_appears_under_its_digest_once_it_is_complete() {
    let (dir, blobs) = fresh().await;
    let (bytes, digest) = sample(300_000);
    let mut writer = blobs.writer(digest, 300_000).await.unwrap();
    for part in bytes.chunks(7_777) {
        writer.write(Bytes::copy_from_slice(part)).await.unwrap();
        assert!(!blobs.has(&digest).await.unwrap());
    }
    let info = writer.finish().await.unwrap();
    assert_eq!(info, BlobInfo { digest, size: 300_000 });
    let hex = digest.to_hex();
    let path = dir.path().join("sha256").join(&hex[..2]).join(&hex);
    assert!(fs::read(path).unwrap() == bytes);
    assert_eq!((blobs.size(&digest).await.unwrap(), uploads(dir.path())), (300_000, 0));
    let (again, _) = LocalBlobs::open(dir.path()).await.unwrap();
    assert!(again.read(&digest, 1 << 20).await.unwrap() == bytes);
}

#[tokio::test]
async fn ranges_are_exact_and_never_beyond_the_end() {
    let (_dir, blobs) = fresh().await;
    let (bytes, digest) = sample(1_000);
    blobs.put(bytes.clone()).await.unwrap();
    for (offset, len) in [(0, 0), (0, 1_000), (999, 1), (1_000, 0), (500, 100)] {
        let found = blobs.read_range(&digest, offset, len).await.unwrap();
        assert_eq!(found, bytes[offset as usize..(offset + len) as usize], "{offset} {len}");
    }
    for (offset, len) in [(0, 1_001), (1_000, 1), (1_001, 0), (u64::MAX, 1), (u64::MAX, MAX_READ_BYTES)] {
        let refused = blobs.read_range(&digest, offset, len).await;
        assert!(
            matches!(refused, Err(BlobError::OutOfRange { size: 1_000, .. })),
            "{offset} {len}: {refused:?}"
        );
    }
    let refused = blobs.read_range(&digest, 0, u64::MAX).await;
    assert!(matches!(refused, Err(BlobError::ReadTooLarge { .. })), "{refused:?}");
    let refused = blobs.read(&digest, 999).await;
    assert!(matches!(refused, Err(BlobError::ReadTooLarge { len: 1_000, limit: 999 })), "{refused:?}");
    let (_, missing) = sample(7);
    for refused in
        [blobs.read_range(&missing, 0, 1).await.map(|_| ()), blobs.size(&missing).await.map(|_| ())]
    {
        assert!(matches!(refused, Err(BlobError::NotFound { digest }) if digest == missing), "{refused:?}");
    }
}

#[tokio::test]
async fn wrong_too_long_and_abandoned_uploads_leave_nothing() {
    let (dir, blobs) = fresh().await;
    let (bytes, digest) = sample(1_000);
    let (other, other_digest) = sample(999);

    let mut writer = blobs.writer(digest, 2_000).await.unwrap();
    writer.write(other).await.unwrap();
    let refused = writer.finish().await;
    assert!(
        matches!(refused, Err(BlobError::DigestMismatch { expected, found, size: 999 })
            if expected == digest && found == other_digest),
        "{refused:?}"
    );

    let mut writer = blobs.writer(digest, 1_500).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    let refused = writer.write(bytes.clone()).await;
    assert!(matches!(refused, Err(BlobError::TooLarge { limit: 1_500, .. })), "{refused:?}");
    assert!(writer.write(Bytes::new()).await.is_err());
    assert!(writer.finish().await.is_err());

    let mut writer = blobs.writer(digest, 1_500).await.unwrap();
    writer.write(bytes).await.unwrap();
    assert_eq!(uploads(dir.path()), 1);
    // A sweep spares what is under way in this process.
    assert_eq!(blobs.sweep().await.unwrap(), 0);
    drop(writer);

    assert_eq!(uploads(dir.path()), 0);
    assert_eq!(blobs.list().await.unwrap(), []);
}

#[tokio::test]
async fn blobs_are_listed_in_order_and_removed_once() {
    let (dir, blobs) = fresh().await;
    let mut expected = Vec::new();
    for size in 0..20 {
        expected.push(blobs.put(sample(size).0).await.unwrap());
        // Twice is as good as once.
        blobs.put(sample(size).0).await.unwrap();
    }
    expected.sort_by_key(|blob| blob.digest);
    for stranger in ["sha256/README", "sha256/ab/notes.txt"] {
        let path = dir.path().join(stranger);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"x").unwrap();
    }
    assert_eq!(blobs.list().await.unwrap(), expected);
    let gone = expected.remove(3);
    assert!(blobs.remove(&gone.digest).await.unwrap());
    assert!(!blobs.remove(&gone.digest).await.unwrap());
    assert!(!blobs.has(&gone.digest).await.unwrap());
    assert_eq!(blobs.list().await.unwrap(), expected);
}

#[tokio::test]
async fn a_copy_that_rotted_is_healed_by_uploading_it_again() {
    let (_dir, blobs) = fresh().await;
    let (bytes, digest) = sample(500);
    blobs.put(bytes.clone()).await.unwrap();
    fs::write(blobs.path(&digest), b"rotten").unwrap();
    blobs.put(bytes.clone()).await.unwrap();
    assert_eq!(blobs.read(&digest, 500).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_full_disk_ends_the_upload_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount(8) else { return };
    let (blobs, _) = LocalBlobs::open(disk.path().join("blobs")).await.unwrap();
    let (kept, kept_digest) = sample(100_000);
    blobs.put(kept.clone()).await.unwrap();
    let (large, digest) = sample(1 << 20);
    let mut writer = blobs.writer(digest, 64 << 20).await.unwrap();
    let refused = loop {
        if let Err(error) = writer.write(large.clone()).await {
            break error;
        }
    };
    assert!(matches!(refused, BlobError::DiskFull { .. }) && refused.is_temporary(), "{refused:?}");
    assert_eq!(uploads(&disk.path().join("blobs")), 0);
    assert_eq!(blobs.list().await.unwrap(), [BlobInfo { digest: kept_digest, size: 100_000 }]);
    assert_eq!(blobs.read(&kept_digest, 100_000).await.unwrap(), kept);
    // The file is gone, so there is room again.
    blobs.put(large).await.unwrap();
}

/// Uploads half a blob and stays: does nothing unless it was started by the test below.
#[tokio::test]
async fn writer_process() {
    let Ok(dir) = std::env::var(WRITER_DIR) else { return };
    let (blobs, _) = LocalBlobs::open(dir).await.unwrap();
    let (bytes, digest) = sample(1 << 20);
    let mut writer = blobs.writer(digest, 1 << 20).await.unwrap();
    writer.write(bytes.slice(..1 << 19)).await.unwrap();
    println!("\nHALF");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_a_killed_push_left_is_swept_on_the_next_start() {
    let (dir, blobs) = fresh().await;
    let (kept, kept_digest) = sample(100);
    blobs.put(kept).await.unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["blobs::local::tests::writer_process", "--exact", "--nocapture"])
        .env(WRITER_DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().ends_with("HALF")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(uploads(dir.path()), 1);
    let (blobs, swept) = LocalBlobs::open(dir.path()).await.unwrap();
    assert_eq!((swept, uploads(dir.path())), (1, 0));
    assert_eq!(blobs.list().await.unwrap(), [BlobInfo { digest: kept_digest, size: 100 }]);
}
