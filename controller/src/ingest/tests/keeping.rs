//! Old buckets become coarse ones, whatever fails in between, and reading finds all of them.

use super::*;
use crate::store::{
    Committed, Document, ExportSummary, Health, Kind, LogEntry, Page, Scan, StoreError, Transaction,
};
use std::{
    io::{Read, Write},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

fn begin() -> Timestamp {
    "2026-03-15T00:00:00Z".parse().expect("time")
}

/// Forty days of two cohorts, a window every two hours, a profile each time.
async fn fill(bench: &Bench, days: u64) {
    bench.cohorts(&["site"], begin()).await;
    for device in ["dev-1", "dev-2"] {
        bench.label(device, "site", if device == "dev-1" { "berlin" } else { "paris" });
        for day in 0..days {
            let of_day = (0..12u64).flat_map(|n| {
                let (start, seq) = (begin() + day as u32 * DAY + n as u32 * 2 * HOUR, (day * 12 + n) * 2);
                let window = window_at("digits@1", 1, start + Duration::from_secs(n * 300));
                [(seq + 1, window), (seq + 2, profile_at("digits@1", vec![1, day], start))]
            });
            bench.take(device, of_day.collect(), begin() + (day as u32 + 1) * DAY).await;
        }
    }
}

async fn keep(bench: &Bench, five_minutes: u32, hours: u32, days: u32) {
    let retention = Retention { five_minutes, hours, days };
    bench.monitoring.set_retention(&Actor::controller(), retention, begin()).await.expect("retention");
}

#[tokio::test]
async fn old_buckets_become_hours_and_days_and_nothing_is_lost_or_doubled() {
    let bench = Bench::new().await;
    fill(&bench, 40).await;
    keep(&bench, 2, 31, 60).await;
    let keeper = Keeper::new(bench.store.clone(), bench.monitoring.clone());
    let (before, profile_before) = (bench.total(None).await, bench.profile(None).await);
    assert_eq!(before.windows, 960);

    let now = begin() + 40 * DAY;
    let kept = keeper.round(now).await.expect("a round");
    assert!(kept.folded > 900 && kept.deleted == 0 && kept.put_off == 0, "{kept:?}");
    assert_eq!(bench.ids(AGGREGATE).await.len(), 2 * 2 * 12);
    assert_eq!(bench.ids(AGGREGATE_HOUR).await.len(), (38 - 9) * 2 * 12);
    assert_eq!(bench.ids(AGGREGATE_DAY).await.len(), 9 * 2);
    assert_eq!(bench.ids(PROFILE_DAY).await.len(), 9 * 2);
    assert_eq!(bench.total(None).await, before);
    let profile = bench.profile(None).await;
    assert_eq!(profile.content.channels[0].bins, profile_before.content.channels[0].bins);
    assert_eq!(keeper.round(now).await.expect("a round"), Kept::default(), "done is done");

    // A window three weeks late, into an hour that was folded: it counts, before and after it is folded, too.
    let late = vec![(1_000, window_at("digits@1", 7, begin() + 20 * DAY))];
    bench.take("dev-1", late, now).await;
    for _ in 0..2 {
        let sum = bench.total(Some("site=berlin")).await;
        assert_eq!((sum.windows, sum.counts.requests), (481, 487));
        keeper.round(now).await.expect("a round");
    }
    assert_eq!(bench.ids(AGGREGATE).await.len(), 2 * 2 * 12);

    // Series: days of the coarse past are whole, the hours that follow are hours. The clocks of Europe changed on day 14.
    let bundle = bundle();
    let range = Range { from: begin(), until: now, ..ever(&bundle, None) };
    let daily = bench.monitoring.series(range, DAY).await.expect("series");
    assert_eq!(daily.len(), 40);
    assert!(daily.iter().all(|day| day.length == DAY && day.aggregate.windows >= 24));
    let three_days = Range { from: begin() + 7 * DAY + 5 * HOUR, until: begin() + 10 * DAY, ..range };
    let mixed = bench.monitoring.series(three_days, HOUR).await.expect("series");
    let lengths: Vec<_> = mixed.iter().map(|point| point.length).collect();
    assert_eq!((lengths.len(), lengths[0], lengths[1], lengths[2]), (14, DAY, DAY, HOUR));
    let error = bench.monitoring.series(range, Duration::from_secs(1)).await.expect_err("too many");
    assert_eq!(error.to_string(), "11520 points in steps of 300 s were asked for, 2016 are allowed");

    // A year later all is gone, and what devices are like is forgotten.
    let kept = keeper.round(now + 365 * DAY).await.expect("a round");
    assert!(kept.deleted > 0, "{kept:?}");
    for kind in [AGGREGATE, AGGREGATE_HOUR, AGGREGATE_DAY, PROFILE_HOUR, PROFILE_DAY, DEVICE_PROFILE] {
        assert!(bench.ids(kind).await.is_empty(), "{kind}");
    }
}

/// A store of which some commits fail: some have happened nevertheless, some have not.
struct Failing {
    inner: Arc<dyn FleetStore>,
    commits: AtomicUsize,
    armed: Arc<std::sync::atomic::AtomicBool>,
}

#[async_trait]
impl FleetStore for Failing {
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError> {
        let lost = || StoreError::Unavailable { reason: "the test says so".into() };
        match self.commits.fetch_add(1, Relaxed) % 5 {
            1 if self.armed.load(Relaxed) => Err(lost()),
            3 if self.armed.load(Relaxed) => self.inner.commit(transaction).await.and(Err(lost())),
            _ => self.inner.commit(transaction).await,
        }
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

#[tokio::test]
async fn however_often_keeping_is_cut_off_every_window_counts_once() {
    let dir = tempfile::tempdir().expect("temp");
    let (inner, _) = SledStore::open(SledConfig::new(dir.path().join("s"))).await.expect("store");
    let armed = Arc::<std::sync::atomic::AtomicBool>::default();
    let failing = Failing { inner: Arc::new(inner), commits: AtomicUsize::default(), armed: armed.clone() };
    let bench = Bench::with(dir, Arc::new(failing)).await;
    fill(&bench, 35).await;
    keep(&bench, 1, 31, 60).await;
    let before = bench.total(None).await;
    armed.store(true, Relaxed);
    let keeper = Keeper::new(bench.store.clone(), bench.monitoring.clone());
    let (now, mut failures) = (begin() + 36 * DAY, 0);
    while keeper.round(now).await.is_err() {
        failures += 1;
        if failures % 50 == 0 {
            assert_eq!(bench.total(None).await, before, "after {failures} failures");
        }
        assert!(failures < 2_000);
    }
    assert!(failures > 100, "{failures}");
    assert_eq!(bench.total(None).await, before);
    assert_eq!(bench.ids(AGGREGATE_DAY).await.len(), 5 * 2);
}

/// Ingestion and keeping write the same documents at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_windows_and_keeping_do_not_hurt_each_other() {
    let bench = Bench::new().await;
    keep(&bench, 1, 31, 60).await;
    let now = begin() + 20 * DAY;
    let keeper = Keeper::new(bench.store.clone(), bench.monitoring.clone());
    let stop = Arc::new(std::sync::atomic::AtomicBool::default());
    let stopped = stop.clone();
    let keeping = tokio::spawn(async move {
        let mut folded = 0;
        while !stopped.load(Relaxed) {
            folded += keeper.round(now).await.expect("a round").folded;
        }
        folded + keeper.round(now).await.expect("a round").folded
    });
    for seq in 0..300u64 {
        let start = begin() + Duration::from_secs(seq % 3 * 300);
        bench.take("dev-1", vec![(seq + 1, window_at("digits@1", 1, start))], now).await;
    }
    stop.store(true, Relaxed);
    assert!(keeping.await.expect("keeping") >= 3);
    assert_eq!(bench.total(None).await.windows, 300);
    assert_eq!((bench.ids(AGGREGATE).await.len(), bench.ids(AGGREGATE_HOUR).await.len()), (0, 1));
}
