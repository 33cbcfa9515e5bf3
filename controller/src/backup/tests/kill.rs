//! Kill -9 in the middle of a restore: the target is missing or complete. The test starts its own program again.

use super::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const FILE: &str = "EDGEFLEET_TEST_RESTORE_FILE";
const ROUNDS: u32 = 20;

/// Does nothing unless it was started by the test below.
#[tokio::test]
async fn restoring_process() {
    let Ok(file) = std::env::var(FILE) else { return };
    let file = PathBuf::from(file);
    let target = file.with_file_name("new");
    restore(std::fs::File::open(&file).unwrap(), restore_order(&target)).await.unwrap();
}

#[tokio::test]
async fn a_kill_leaves_no_half_folder() {
    let home = Home::new().await;
    for seed in 0..6 {
        home.parts.blobs.put(blob(seed, 1_000_000)).await.unwrap();
    }
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("backup.efb");
    std::fs::write(&file, home.backup(true).await).unwrap();
    let target = place.path().join("new");
    let before = files(home.data());
    let mut random = StdRng::seed_from_u64(5);
    let (mut cut, mut complete) = (0, 0);
    let mut longest = Duration::from_millis(400);
    for _ in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["backup::tests::kill::restoring_process", "--exact", "--test-threads=1"])
            .env(FILE, &file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        // Begin to count once it works.
        while begun.elapsed() < Duration::from_secs(20)
            && !names(place.path()).iter().any(|name| name.starts_with(".edgefleet-restore-"))
            && child.try_wait().unwrap().is_none()
        {
            std::thread::yield_now();
        }
        // The moment of the kill is the point of the test, not a wait for something.
        std::thread::sleep(longest.mul_f64(random.random_range(0.0..1.0)));
        child.kill().unwrap();
        child.wait().unwrap();
        if target.exists() {
            complete += 1;
            longest = begun.elapsed().min(longest);
            assert_eq!(files(&target), before);
            let store = open_store(&target).await;
            let audit = AuditLog::new(Arc::clone(&store));
            assert_eq!(audit.verify().await.unwrap(), home.parts.audit.verify().await.unwrap());
            assert!(note_restored(&store, &audit, at(900)).await.unwrap().is_some());
            let (blobs, _) = LocalBlobs::open(target.join("blobs")).await.unwrap();
            assert_eq!(blobs.list().await.unwrap(), home.parts.blobs.list().await.unwrap());
            store.close().await.unwrap();
            std::fs::remove_dir_all(&target).unwrap();
        } else {
            cut += 1;
        }
    }
    assert!(cut >= ROUNDS / 4, "{cut} kills were in the middle, {complete} came too late");
    // What the kills left does not keep the next restore from working.
    let file = std::fs::File::open(&file).unwrap();
    restore(file, restore_order(&target)).await.unwrap();
    assert_eq!(files(&target), before);
}
