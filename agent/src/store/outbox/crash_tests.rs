//! The outbox against kill -9 and against a full disk. The victim is this test program, run again.

use super::{
    tests::{boot, labels},
    *,
};
use edgefleet_shared::telemetry::{BootAck, LabelCounts};
use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

const VICTIM: &str = "EDGEFLEET_TEST_OUTBOX_VICTIM";

/// Not a test of its own: appends for ever, says on stdout what was acknowledged.
#[tokio::test]
#[ignore = "runs only as the child of the kill test"]
async fn victim() {
    let Ok(setup) = std::env::var(VICTIM) else { return };
    let (round, path) = setup.split_once(':').unwrap();
    let round: u8 = round.parse().unwrap();
    let (outbox, _) = Outbox::open(Path::new(path), boot(round), Bounds::default()).unwrap();
    println!("open");
    for n in 0u64.. {
        let group = (0..16).map(|i| outbox.append(labels(n * 16 + i)));
        for seq in futures::future::join_all(group).await {
            println!("kept {}", seq.unwrap());
        }
        if n % 8 == 7 {
            // The controller has the first half of what is kept.
            let kept = outbox.peek(usize::MAX, 16).await;
            if let Some(last) = kept.iter().rfind(|r| r.boot == boot(round)) {
                println!("gone {}", last.seq);
                let ack = BootAck { boot: boot(round), contiguous: last.seq, extra: vec![] };
                outbox.ack(Ack { schema: 1, boots: vec![ack] }).await;
            }
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_over_fifty_kills() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let (mut expected, mut maybe) = (BTreeSet::new(), BTreeSet::new());
    for round in 0u8..50 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::outbox::crash_tests::victim", "--exact", "--ignored", "--nocapture"])
            .env(VICTIM, format!("{round}:{}", path.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Killed after a number of lines that differs from round to round: 0 is while it opens.
        let lines = usize::from(round) * 7 % 150;
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let mut seen = 0;
        let mut line = String::new();
        let mut killed = false;
        loop {
            if seen >= lines && !killed {
                child.kill().unwrap();
                killed = true; // what is still in the pipe counts as well
            }
            line.clear();
            if reader.read_line(&mut line).unwrap() == 0 {
                break;
            }
            match line.trim().split_once(' ') {
                Some(("kept", seq)) => {
                    expected.insert((boot(round).to_string(), seq.parse::<u64>().unwrap()));
                }
                Some(("gone", upto)) => {
                    let upto: u64 = upto.parse().unwrap();
                    for seq in 1..=upto {
                        let key = (boot(round).to_string(), seq);
                        expected.remove(&key);
                        maybe.insert(key);
                    }
                }
                _ if line.starts_with("open") => {}
                _ => continue, // the test harness talks too
            }
            seen += 1;
        }
        child.wait().unwrap();
        assert!(killed, "the victim ended by itself in round {round}");
        let (outbox, outcome) = Outbox::open(&path, boot(200), Bounds::default()).unwrap();
        assert!(matches!(outcome, OpenOutcome::New | OpenOutcome::Kept { .. }), "round {round}: {outcome:?}");
        let kept: BTreeSet<_> = outbox
            .peek(usize::MAX, usize::MAX)
            .await
            .iter()
            .map(|record| {
                assert!(matches!(record.body, RecordBody::Labels(LabelCounts { .. })), "{record:?}");
                (record.boot.to_string(), record.seq)
            })
            .collect();
        let missing: Vec<_> = expected.difference(&kept).collect();
        assert!(missing.is_empty(), "round {round}: {missing:?}");
        outbox.close().await;
    }
    assert!(expected.len() > 200, "only {} records survived to be checked", expected.len());
}

/// Not a test of its own: fills an outbox that merges all the time.
#[tokio::test]
#[ignore = "runs only as the child of the kill test"]
async fn merging_victim() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let bounds = Bounds { records: 24, bytes: 1 << 20 };
    let (outbox, _) = Outbox::open(Path::new(&path), boot(1), bounds).unwrap();
    println!("open");
    for n in 0u64.. {
        super::tests::append_windows(&outbox, (4 * n..4 * n + 4).map(|n| n % 1_400)).await;
        println!("kept {}", 4 * n + 4);
    }
}

#[tokio::test]
async fn a_kill_while_it_merges_neither_loses_nor_doubles_a_request() {
    for round in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["store::outbox::crash_tests::merging_victim", "--exact", "--ignored", "--nocapture"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut kept = 0u64;
        let mut killed = false;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(("kept", n)) = line.unwrap().trim().split_once(' ') {
                kept = n.parse().unwrap();
            }
            if kept >= 20 + round * 7 && !killed {
                child.kill().unwrap();
                killed = true; // what is still in the pipe counts as well
            }
        }
        child.wait().unwrap();
        let (outbox, _) = Outbox::open(&path, boot(2), Bounds::default()).unwrap();
        let records = outbox.peek(usize::MAX, usize::MAX).await;
        let requests: u64 = records
            .iter()
            .filter_map(|r| if let RecordBody::Window(w) = &r.body { Some(w.counts.requests) } else { None })
            .sum();
        // One more may have been stored and not acknowledged yet.
        assert!(
            [4 * kept, 4 * (kept + 1)].contains(&requests),
            "round {round}: {requests} of {kept} windows"
        );
        assert!(records.len() <= 25, "round {round}: it did merge: {}", records.len());
        outbox.close().await;
    }
}

/// A tmpfs of 3 MiB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);
impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(dir.path()).status();
        assert!(done.unwrap().success(), "this test mounts a tmpfs and must run as root");
        Self(dir)
    }
}
impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_records_counts_them_and_recovers_when_there_is_room() {
    let disk = SmallDisk::mount();
    let path = disk.0.path().join("outbox");
    let (outbox, _) = Outbox::open(&path, boot(1), Bounds::default()).unwrap();
    for n in 0..50 {
        outbox.append_soon(labels(n)).unwrap();
    }
    outbox.flush().await;
    let filler = disk.0.path().join("filler");
    std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", &format!("of={}", filler.display())])
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let mut refused = 0;
    for n in 0..20 {
        match outbox.append(labels(n)).await {
            Err(OutboxError::DiskFull { .. }) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(outbox.len(), 50);
    std::fs::remove_file(&filler).unwrap();
    outbox.append(labels(99)).await.unwrap();
    let kept = outbox.peek(usize::MAX, usize::MAX).await;
    let told: u64 = kept
        .iter()
        .filter_map(|r| if let RecordBody::Dropped { records, .. } = &r.body { Some(*records) } else { None })
        .sum();
    assert_eq!((told, kept.len()), (refused, 52));
}
