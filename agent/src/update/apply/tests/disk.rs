//! A disk without room costs the update and nothing else.

use super::*;

/// A small file system of its own, where root may mount one.
struct Tmpfs(PathBuf);
impl Tmpfs {
    fn mount(bytes: u64) -> Option<Self> {
        let path = tempfile::tempdir().unwrap().keep();
        let size = format!("size={bytes}");
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&path)
            .stderr(std::process::Stdio::null())
            .status();
        if status.is_ok_and(|s| s.success()) {
            return Some(Self(path));
        }
        let _ = fs::remove_dir(&path);
        eprintln!("not run: this user may not mount a tmpfs");
        None
    }
}
impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_does_not_fit_is_refused_before_a_byte_is_fetched() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let mut rig = Rig::at(&disk.0);
    rig.reserve = 1 << 20;
    let (one, big) = (rig.publish(1, 500_000), rig.publish(2, 3_500_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &big.assigned)]).await;
    let report = rig.until_phase("digits", 2, Phase::DownloadFailed).await;
    let error = report.slots.values().next().unwrap().last_error.clone().unwrap();
    assert_eq!(error.code, RefusalCode::DiskFull);
    assert!(!rig.outside.asked.lock().contains(&FetchObject::Blob(BlobDigest::of(&big.model))));
    assert_eq!(rig.serving("digits"), Some(1));
    rig.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_up_meanwhile_costs_the_part_and_nothing_else() {
    let Some(disk) = Tmpfs::mount(4 << 20) else { return };
    let mut rig = Rig::at(&disk.0);
    let (one, big) = (rig.publish(1, 500_000), rig.publish(2, 2_000_000));
    rig.start().await;
    rig.desire(1, &[("digits", &one.assigned)]).await;
    rig.until_phase("digits", 1, Phase::Committed).await;
    rig.desire(2, &[("digits", &big.assigned)]).await;
    rig.until("halfway", |r| r.slots.values().next().unwrap().progress.is_some_and(|p| p.done_bytes > 0))
        .await;
    let filler = disk.0.join("filler");
    fs::write(&filler, vec![1; 8 << 20]).unwrap_err();
    let full = |r: &DeviceReport| {
        let slot = r.slots.values().next().unwrap();
        slot.last_error.as_ref().is_some_and(|e| e.code == RefusalCode::DiskFull)
            || r.refused.as_ref().is_some_and(|e| e.code == RefusalCode::DiskFull)
    };
    rig.until("full", full).await;
    assert_eq!(rig.serving("digits"), Some(1));
    // With the disk still full, a restart serves all the same.
    rig.kill().await;
    rig.start().await;
    assert_eq!(rig.serving("digits"), Some(1));
    fs::remove_file(&filler).unwrap();
    rig.desire(2, &[("digits", &big.assigned)]).await;
    rig.until_phase("digits", 2, Phase::Committed).await;
    assert_eq!(rig.serving("digits"), Some(2));
    rig.kill().await;
}
