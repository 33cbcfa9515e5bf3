//! One outbox at a time in a folder of its own; damage is done to the real files of a closed store.

use super::*;
use edgefleet_shared::{
    desired::DESIRED_SCHEMA,
    ids::AttemptId,
    reported::{Installed, Phase},
    telemetry::{BootAck, LabelCounts, TerminalReport},
    time::Timestamp,
};
use std::{collections::BTreeMap, fs};

pub(super) fn boot(n: u8) -> BootId {
    BootId::from_random([n; 16])
}

fn attempt() -> AttemptId {
    AttemptId { rollout: "r-1".parse().unwrap(), number: 1 }
}

/// A record of a known size class; `n` tells it apart.
pub(super) fn labels(n: u64) -> RecordBody {
    RecordBody::Labels(LabelCounts {
        slot: "digits".parse().unwrap(),
        bundle: "digits@1".parse().unwrap(),
        digest: edgefleet_shared::digest::BundleDigest::of(b"m"),
        attempt: attempt(),
        bucket: Timestamp::from_secs(n),
        source: "local".into(),
        matched: n,
        correct: 0,
        confusion: vec![],
        unmatched: BTreeMap::new(),
        versus: None,
    })
}

fn terminal() -> RecordBody {
    RecordBody::Terminal(TerminalReport {
        slot: "digits".parse().unwrap(),
        generation: u64::from(DESIRED_SCHEMA),
        phase: Phase::Committed,
        target: Installed { bundle: "digits@1".parse().unwrap(), digest: None, attempt: attempt() },
        refusal: None,
        took_ms: 1,
        fetched_bytes: 1,
        at: Timestamp::from_secs(1),
    })
}

fn matched(record: &Record) -> Option<u64> {
    if let RecordBody::Labels(labels) = &record.body { Some(labels.matched) } else { None }
}

fn dropped(records: &[Record]) -> u64 {
    records
        .iter()
        .filter_map(|r| if let RecordBody::Dropped { records, .. } = &r.body { Some(*records) } else { None })
        .sum()
}

fn small() -> Bounds {
    Bounds { records: 100, bytes: 1 << 20 }
}

async fn all(outbox: &Outbox) -> Vec<Record> {
    outbox.peek(usize::MAX, usize::MAX).await
}

fn ack_upto(boot: BootId, contiguous: u64, extra: Vec<(u64, u64)>) -> Ack {
    Ack { schema: 1, boots: vec![BootAck { boot, contiguous, extra }] }
}

#[tokio::test]
async fn records_keep_their_numbers_and_order_over_a_restart_until_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let (outbox, outcome) = Outbox::open(&path, boot(1), small()).unwrap();
    assert_eq!(outcome, OpenOutcome::New);
    for n in 1..=5 {
        assert_eq!(outbox.append(labels(n)).await, Ok(n));
    }
    assert_eq!(outbox.ack(ack_upto(boot(1), 1, vec![(3, 3)])).await, 2);
    assert!(matches!(Outbox::open(&path, boot(9), small()), Err(OutboxError::InUse { .. })));
    outbox.close().await;

    let (outbox, outcome) = Outbox::open(&path, boot(2), small()).unwrap();
    assert_eq!(outcome, OpenOutcome::Kept { records: 3 });
    assert_eq!(outbox.append(terminal()).await, Ok(1));
    let numbers: Vec<_> = all(&outbox).await.iter().map(|r| (r.boot, r.seq)).collect();
    assert_eq!(numbers, [(boot(1), 2), (boot(1), 4), (boot(1), 5), (boot(2), 1)]);
    // Acknowledgements may come twice, for foreign boots and for what never was.
    for _ in 0..2 {
        outbox.ack(ack_upto(boot(7), 99, vec![(1, u64::MAX)])).await;
        outbox.ack(ack_upto(boot(1), u64::MAX, vec![])).await;
    }
    assert_eq!(all(&outbox).await.len(), 1);
    assert_eq!(outbox.len(), 1);
}

#[tokio::test]
async fn peek_keeps_within_its_bounds_but_never_returns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot(1), small()).unwrap();
    for n in 0..10 {
        outbox.append_soon(labels(n)).unwrap();
    }
    assert_eq!(outbox.peek(usize::MAX, 3).await.len(), 3);
    assert_eq!(outbox.peek(1, 100).await.len(), 1);
    assert_eq!(outbox.peek(1000, 100).await.len(), 3);
}

#[tokio::test]
async fn a_full_outbox_drops_the_oldest_windows_counts_them_and_keeps_terminal_reports() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let bounds = Bounds { records: 20, bytes: 1 << 20 };
    let (outbox, _) = Outbox::open(&path, boot(1), bounds).unwrap();
    outbox.append(terminal()).await.unwrap();
    let mut told_early = 0;
    for n in 0..200 {
        outbox.append_soon(labels(n)).unwrap();
        if n == 100 {
            // Half-way the sender reads everything: what it read keeps its content.
            told_early = dropped(&all(&outbox).await);
        }
    }
    let kept = all(&outbox).await;
    assert!(kept.len() <= 20, "{}", kept.len());
    assert!(matches!(kept[0].body, RecordBody::Terminal(_)));
    let newest: Vec<_> = kept.iter().filter_map(matched).collect();
    assert_eq!(newest.last(), Some(&199));
    assert!(newest.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{newest:?}");
    assert!(told_early > 0);
    assert_eq!(dropped(&kept) + newest.len() as u64, 200);
    assert_eq!(outbox.lost(), 200 - newest.len() as u64);
    let mut numbers: Vec<_> = kept.iter().map(|r| r.seq).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), kept.len());
}

#[tokio::test]
async fn the_byte_bound_holds_too() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { records: 1000, bytes: 8 * 1024 };
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot(1), bounds).unwrap();
    for n in 0..200 {
        outbox.append_soon(labels(n)).unwrap();
        if n % 10 == 0 {
            outbox.flush().await;
            assert!(outbox.bytes() <= 8 * 1024 + 300, "{}", outbox.bytes());
        }
    }
    let kept = all(&outbox).await;
    assert_eq!(dropped(&kept) + kept.iter().filter_map(matched).count() as u64, 200);
}

/// Fills a store, closes it, lets `damage` at its files, opens it again.
async fn after(damage: impl Fn(&Path)) -> (OpenOutcome, Vec<Record>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let (outbox, _) = Outbox::open(&path, boot(1), Bounds::default()).unwrap();
    for n in 0..400 {
        outbox.append_soon(labels(n)).unwrap();
        if n % 100 == 99 {
            outbox.flush().await;
        }
    }
    outbox.close().await;
    damage(&path);
    let (outbox, outcome) = Outbox::open(&path, boot(2), Bounds::default()).unwrap();
    let records = all(&outbox).await;
    // Whatever happened, it takes records again.
    outbox.append(labels(7)).await.unwrap();
    (outcome, records, dir)
}

fn cut(path: &Path, keep: impl Fn(u64) -> u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(keep(len)).unwrap();
}

/// 400 records were acknowledged to their producers: each is there or counted as lost.
fn accounted(records: &[Record]) -> u64 {
    records.iter().filter_map(matched).count() as u64 + dropped(records)
}

#[tokio::test]
async fn leftover_snapshots_are_cleared_away_and_nothing_is_lost() {
    let (outcome, records, _dir) =
        after(|path| fs::write(path.join("snap.00000000000000AA.generating"), b"garbage").unwrap()).await;
    assert_eq!((outcome, records.len()), (OpenOutcome::Kept { records: 400 }, 400));
    for content in [b"".as_slice(), b"garbage"] {
        let (outcome, records, _dir) = after(|path| {
            fs::write(path.join("snap.FFFFFFFFFFFFFF00"), content).unwrap();
        })
        .await;
        assert!(matches!(outcome, OpenOutcome::Recovered { lost: 0, .. }), "{outcome:?}");
        assert_eq!(records.len(), 400);
    }
}

#[tokio::test]
async fn torn_emptied_and_deleted_files_lose_records_but_never_silently() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("the end is torn off", |path| cut(&path.join("db"), |len| len / 2)),
        ("37 bytes are torn off", |path| cut(&path.join("db"), |len| len - 37)),
        ("the file is empty", |path| cut(&path.join("db"), |_| 0)),
        ("the file is gone", |path| fs::remove_file(path.join("db")).unwrap()),
        ("the folder is gone", |path| fs::remove_dir_all(path).unwrap()),
        ("the settings are garbage", |path| fs::write(path.join("conf"), b"garbage").unwrap()),
    ];
    for (name, damage) in damages {
        let (outcome, records, _dir) = after(damage).await;
        let counted = accounted(&records);
        match &outcome {
            OpenOutcome::Kept { records } => assert_eq!(*records, 400, "{name}"),
            OpenOutcome::Recovered { kept, lost, .. } => {
                assert_eq!((*kept as u64) + lost, 400, "{name}: {outcome:?}");
                assert_eq!(dropped(&records), *lost, "{name}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!(counted, 400, "{name}: {outcome:?}");
    }
}

#[tokio::test]
async fn flipped_bytes_are_noticed_wherever_they_are() {
    for at in [0.1, 0.3, 0.5, 0.7, 0.9] {
        let (outcome, records, _dir) = after(|path| {
            let mut bytes = fs::read(path.join("db")).unwrap();
            let used = bytes.iter().rposition(|b| *b != 0).unwrap();
            let place = (used as f64 * at) as usize;
            bytes[place] ^= 0x40;
            fs::write(path.join("db"), bytes).unwrap();
        })
        .await;
        assert_eq!(accounted(&records), 400, "{at}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_drained_store_gives_its_disk_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let bounds = Bounds { records: 4000, bytes: 256 * 1024 };
    let (outbox, _) = Outbox::open(&path, boot(1), bounds).unwrap();
    let size = || -> u64 { fs::metadata(path.join("db")).map_or(0, |m| m.len()) };
    let mut largest = 0;
    let mut shrunk = false;
    for round in 0..40 {
        for n in 0..200 {
            outbox.append_soon(labels(n)).unwrap();
            if n % 50 == 0 {
                outbox.flush().await;
            }
        }
        outbox.flush().await;
        let newest = all(&outbox).await.last().unwrap().seq;
        outbox.ack(ack_upto(boot(1), newest, vec![])).await;
        outbox.flush().await;
        assert!(outbox.is_empty(), "round {round}");
        shrunk |= size() < largest;
        largest = largest.max(size());
    }
    assert!(shrunk, "the folder only grew, to {largest} bytes");
    outbox.close().await;
    let (_, outcome) = Outbox::open(&path, boot(2), bounds).unwrap();
    assert_eq!(outcome, OpenOutcome::Kept { records: 0 });
}

/// A window of `minutes` after the start of the day, of four requests.
pub(super) fn window(minutes: u64) -> RecordBody {
    let window = serde_json::json!({
        "kind": "window",
        "slot": "digits", "bundle": "digits@1", "role": "primary",
        "digest": edgefleet_shared::digest::BundleDigest::of(b"m"),
        "attempt": attempt(),
        "mono_start_ms": minutes * 60_000, "mono_end_ms": (minutes + 5) * 60_000,
        "wall_start": Timestamp::from_secs(1_800_057_600 + minutes * 60),
        "wall_end": Timestamp::from_secs(1_800_057_600 + (minutes + 5) * 60),
        "clock": edgefleet_shared::reported::ClockQuality::Plausible,
        "counts": {"requests": 4, "rows": 4, "ok": 3, "errors": {"engine": 1}, "rejected": 0},
        "latency": {"total": {"buckets": [[300, 3]], "sum_us": 900, "max_us": 310}},
        "classes": {"7": 3},
        "exceed": [{"id": "slow", "n": 3, "x": 1}],
    });
    serde_json::from_value(window).unwrap()
}

/// In groups that are durable before the next.
pub(super) async fn append_windows(outbox: &Outbox, starts: impl IntoIterator<Item = u64>) {
    let starts: Vec<u64> = starts.into_iter().collect();
    for group in starts.chunks(4) {
        group.iter().for_each(|minutes| outbox.append_soon(window(*minutes)).unwrap());
        outbox.flush().await;
    }
}

fn windows(records: &[Record]) -> Vec<(u64, u64)> {
    let each = records.iter().filter_map(|r| match &r.body {
        RecordBody::Window(w) => Some((w.mono_start_ms / 60_000, w.counts.requests)),
        _ => None,
    });
    each.collect()
}

#[tokio::test]
async fn a_full_outbox_keeps_the_sums_of_hours_then_of_days_before_it_drops_anything() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { records: 40, bytes: 1 << 20 };
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot(1), bounds).unwrap();
    outbox.append(terminal()).await.unwrap();
    append_windows(&outbox, (0..288).map(|n| n * 5)).await;
    let kept = all(&outbox).await;
    assert_eq!((dropped(&kept), outbox.lost()), (0, 0));
    assert!(kept.len() <= 40 && outbox.merged() >= 248, "{} {}", kept.len(), outbox.merged());
    assert!(matches!(kept[0].body, RecordBody::Terminal(_)));
    assert_eq!(windows(&kept).iter().map(|(_, requests)| requests).sum::<u64>(), 288 * 4);
    let RecordBody::Window(first) = &kept[1].body else { panic!("{kept:?}") };
    let requests = first.counts.requests;
    assert_eq!((first.classes["7"], first.counts.errors["engine"]), (requests * 3 / 4, requests / 4));
    assert_eq!((first.exceed[0].n, first.latency.total.count()), (requests * 3 / 4, requests * 3 / 4));
    assert!(kept.windows(2).all(|pair| pair[0].seq < pair[1].seq), "numbers stay in order");
}

#[tokio::test]
async fn what_was_handed_out_is_never_merged_not_even_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let bounds = Bounds { records: 20, bytes: 1 << 20 };
    let (outbox, _) = Outbox::open(&path, boot(1), bounds).unwrap();
    append_windows(&outbox, 0..10).await;
    let sent = outbox.peek(usize::MAX, 4).await;
    outbox.close().await;
    let (outbox, _) = Outbox::open(&path, boot(2), bounds).unwrap();
    append_windows(&outbox, 10..40).await;
    let kept = all(&outbox).await;
    assert_eq!(kept[..4], sent[..], "as they were sent");
    assert_eq!(windows(&kept).iter().map(|(_, requests)| requests).sum::<u64>(), 40 * 4);
    assert!(kept.iter().all(|record| record.boot != boot(1) || record.seq <= 10));
    // The controller has the first four: what it is sent later holds nothing of them.
    outbox.ack(ack_upto(boot(1), 4, vec![])).await;
    assert_eq!(windows(&all(&outbox).await).iter().map(|(_, requests)| requests).sum::<u64>(), 36 * 4);
}

#[tokio::test]
async fn essentials_are_handed_out_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = Outbox::open(&dir.path().join("outbox"), boot(1), small()).unwrap();
    for body in [window(0), terminal(), window(5)] {
        outbox.append(body).await.unwrap();
    }
    let found = outbox.peek_essential(usize::MAX, usize::MAX).await;
    assert_eq!(found.iter().map(|record| record.seq).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn what_must_wait_is_added_up_by_the_hour_then_by_the_day_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let (outbox, _) = Outbox::open(&path, boot(1), Bounds::default()).unwrap();
    outbox.append(terminal()).await.unwrap();
    append_windows(&outbox, (0..2 * 288).map(|n| n * 5)).await;
    let sum = async |outbox: &Outbox| windows(&all(outbox).await).iter().map(|(_, n)| n).sum::<u64>();
    // One hour's windows become one. Hours and days in one go: the sums of sums are not on disk in between.
    let merged = outbox.thin_out(20).await;
    assert_eq!((merged, outbox.len()), (2 * 288 - outbox.len() as u64 + 1, outbox.len()));
    assert!((3..=4).contains(&outbox.len()), "a terminal report and two or three days: {}", outbox.len());
    outbox.close().await;
    let (outbox, outcome) = Outbox::open(&path, boot(2), Bounds::default()).unwrap();
    assert!(matches!(outcome, OpenOutcome::Kept { .. }), "{outcome:?}");
    assert_eq!((sum(&outbox).await, outbox.lost()), (2 * 288 * 4, 0));
    // Handed out now: it stays as it is.
    append_windows(&outbox, [5_000, 5_005]).await;
    let before = outbox.len();
    assert_eq!(outbox.thin_out(0).await, 1);
    assert_eq!((outbox.len(), sum(&outbox).await), (before - 1, (2 * 288 + 2) * 4));
}
