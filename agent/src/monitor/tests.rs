use super::*;
use edgefleet_shared::{
    digest::BundleDigest,
    ids::{AttemptId, BundleName},
    message::Label,
    reported::ClockQuality,
    telemetry::{LabelCounts, Role, Window},
    time::Timestamp,
};
use std::sync::atomic::AtomicU64;

/// The wall clock of the tests starts in the middle of a bucket.
const WALL: u64 = 1_795_417_350_000;

pub(super) fn at(mono_ms: u64) -> Moment {
    Moment { mono_ms, wall: Timestamp::from_millis(WALL + mono_ms), clock: ClockQuality::Plausible }
}

pub(super) fn subject(model: &str, counter: u64, attempt: u32) -> Subject {
    let bundle = BundleName { model: model.parse().unwrap(), counter };
    Subject {
        slot: model.parse().unwrap(),
        digest: BundleDigest::of(bundle.to_string().as_bytes()),
        bundle,
        role: Role::Primary,
        attempt: AttemptId { rollout: "r1".parse().unwrap(), number: attempt },
        classes: Arc::new((&["zero", "one", "two", "three"].map(String::from)[..]).into()),
    }
}

#[derive(Default)]
struct Hand(AtomicU64);
impl MonitorClock for Hand {
    fn now(&self) -> Moment {
        at(self.0.load(Ordering::SeqCst))
    }
}

#[derive(Default)]
struct Kept {
    records: Mutex<Vec<RecordBody>>,
    full: AtomicBool,
}
impl RecordSink for Kept {
    fn append(&self, record: RecordBody) -> Result<(), SinkError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(SinkError { reason: "disk full".into() });
        }
        self.records.lock().push(record);
        Ok(())
    }
}
impl Kept {
    fn windows(&self) -> Vec<Window> {
        let records = self.records.lock();
        let windows =
            records.iter().filter_map(|r| if let RecordBody::Window(w) = r { Some(w) } else { None });
        windows.map(|window| (**window).clone()).collect()
    }
    fn labels(&self) -> Vec<LabelCounts> {
        let records = self.records.lock();
        let labels =
            records.iter().filter_map(|r| if let RecordBody::Labels(l) = r { Some(l) } else { None });
        labels.cloned().collect()
    }
}

struct Bench {
    clock: Arc<Hand>,
    kept: Arc<Kept>,
    monitor: Monitor,
}

fn bench() -> Bench {
    let (clock, kept) = (Arc::new(Hand::default()), Arc::new(Kept::default()));
    let config = MonitorConfig::new("dev-1".parse().unwrap(), BootId::from_random([7; 16]));
    Bench { monitor: Monitor::new(config, clock.clone(), kept.clone()), clock, kept }
}

impl Bench {
    fn pass(&self, ms: u64) {
        self.clock.0.fetch_add(ms, Ordering::SeqCst);
    }
    fn ok(&self, recorder: &Recorder) {
        let ms = Duration::from_millis;
        let seen = Observation {
            rows: 1,
            outcome: Outcome::Ok,
            queue: ms(0),
            steps: None,
            pass_rows: 1,
            infer: ms(1),
            total: ms(2),
            classes: &[],
        };
        recorder.record(&seen, self.monitor.now().mono_ms);
    }
    fn counted(&self) -> Vec<(u64, u32, u64)> {
        let windows = self.kept.windows();
        windows.iter().map(|w| (w.bundle.counter, w.attempt.number, w.counts.requests)).collect()
    }
}

#[test]
fn windows_are_cut_by_time_and_at_every_switch_and_lose_nothing() {
    let bench = bench();
    let old = bench.monitor.watch(subject("digits", 1, 1));
    bench.ok(&old);
    bench.monitor.tick();
    assert_eq!(bench.counted(), [], "the window is young");
    bench.pass(300_000);
    bench.monitor.tick();
    assert_eq!(bench.counted(), [(1, 1, 1)]);
    bench.ok(&old);
    let new = bench.monitor.watch(subject("digits", 2, 2));
    bench.monitor.retire(&old);
    bench.ok(&new);
    bench.ok(&old); // still in flight at the switch
    bench.monitor.tick();
    assert_eq!(bench.counted(), [(1, 1, 1), (1, 1, 1), (1, 1, 1)]);
    bench.monitor.flush();
    assert_eq!(bench.counted()[3..], [(2, 2, 1)]);
    drop(old);
    bench.monitor.tick();
    assert_eq!(bench.monitor.inner.lock().recorders.len(), 1, "the retired one is forgotten");
}

#[test]
fn a_change_of_thresholds_cuts_the_window() {
    let bench = bench();
    let recorder = bench.monitor.watch(subject("digits", 1, 1));
    let slow =
        |value| Threshold { id: "slow".into(), metric: edgefleet_shared::desired::Metric::TotalMs, value };
    bench.ok(&recorder);
    bench.monitor.set_thresholds(&"digits".parse().unwrap(), vec![slow(1.0)]);
    bench.ok(&recorder);
    bench.monitor.set_thresholds(&"digits".parse().unwrap(), vec![slow(1.0)]);
    bench.ok(&recorder);
    bench.monitor.flush();
    let seen: Vec<_> = bench.kept.windows().iter().map(|w| (w.counts.requests, w.exceed.len())).collect();
    assert_eq!(seen, [(1, 0), (2, 1)]);
    assert_eq!(bench.kept.windows()[1].exceed[0].x, 2);
}

#[test]
fn a_sink_that_fails_gets_the_same_records_later_in_order() {
    let bench = bench();
    let recorder = bench.monitor.watch(subject("digits", 1, 1));
    bench.kept.full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        bench.ok(&recorder);
        assert_eq!(bench.monitor.flush(), 0);
        bench.pass(10);
    }
    assert_eq!(bench.monitor.waiting(), 3);
    bench.kept.full.store(false, Ordering::SeqCst);
    assert_eq!(bench.monitor.tick(), 3);
    let starts: Vec<_> = bench.kept.windows().iter().map(|w| w.mono_start_ms).collect();
    assert!(starts.is_sorted() && starts.len() == 3, "{starts:?}");
    bench.kept.full.store(true, Ordering::SeqCst);
    for _ in 0..MAX_WAITING + 5 {
        bench.ok(&recorder);
        bench.monitor.flush();
    }
    bench.kept.full.store(false, Ordering::SeqCst);
    bench.monitor.tick();
    bench.monitor.tick();
    let records = bench.kept.records.lock();
    let windows = records.iter().filter(|r| matches!(r, RecordBody::Window(_))).count() as u64 - 3;
    let lost: u64 =
        records.iter().map(|r| if let RecordBody::Dropped { records, .. } = r { *records } else { 0 }).sum();
    assert_eq!(windows + lost, MAX_WAITING as u64 + 5);
}

#[test]
fn labels_come_back_in_the_bucket_of_their_prediction() {
    let bench = bench();
    let class = |index| Class { index, confidence: 0.9 };
    let first = bench.monitor.watch(subject("digits", 1, 1));
    let early = bench.monitor.remember(&first, &[class(1), class(2), class(3)], None).unwrap();
    let bucket = ring::bucket_start(at(0).wall);
    bench.pass(86_400_000);
    let second = bench.monitor.watch(subject("digits", 2, 2));
    bench.monitor.retire(&first);
    let late = bench.monitor.remember(&second, &[class(0)], None).unwrap();
    let foreign = PredictionId { device: "dev-2".parse().unwrap(), ..early.clone() };
    let earlier_boot = PredictionId { boot: BootId::from_random([1; 16]), ..early.clone() };
    let future = PredictionId { sequence: 99, ..early.clone() };
    let summary = bench.monitor.join(
        &LabelSource::Local,
        [
            (&early, 0, "one"),
            (&early, 1, "3"),
            (&early, 2, "three"),
            (&early, 2, "three"),
            (&early, 3, "zero"), // sequence + 3 is a row of `late`, which is another request
            (&late, 0, "zero"),
            (&foreign, 0, "one"),
            (&earlier_boot, 0, "one"),
            (&future, 0, "one"),
            (&future, u64::MAX, "one"),
            (&late, 0, "seventeen"),
        ],
    );
    assert_eq!((summary.matched, summary.correct), (4, 3));
    let reasons = [("duplicate", 1), ("expired", 1), ("foreign", 1), ("unknown-id", 3), ("unknown-label", 1)];
    assert_eq!(summary.unmatched, reasons.into());
    let from_controller = Labels {
        schema: 1,
        source: "controller".into(),
        labels: vec![Label { prediction: early.clone(), label: "one".into() }],
    };
    assert_eq!(bench.monitor.join_from_controller(&from_controller).matched, 1);
    assert_eq!(bench.monitor.join_from_controller(&from_controller).matched, 0);
    bench.monitor.flush();
    let labels = bench.kept.labels();
    let told: Vec<_> =
        labels.iter().map(|l| (l.bundle.counter, l.source.as_str(), l.matched, l.correct)).collect();
    assert_eq!(
        told,
        [
            (1, "local", 3, 2),
            (1, "controller", 1, 1),
            (2, "local", 1, 1),
            (2, "local", 0, 0),
            (2, "controller", 0, 0)
        ]
    );
    assert_eq!(labels[0].bucket, bucket, "the original bucket, a day earlier");
    assert_eq!(labels[0].attempt.number, 1);
    assert!(labels[0].confusion.contains(&("three".into(), "two".into(), 1)));
    assert_eq!(labels[2].bucket, ring::bucket_start(at(86_400_000).wall));
    assert_eq!(labels[3].unmatched["foreign"], 1);
    bench.monitor.flush();
    assert_eq!(bench.kept.labels().len(), 5, "told once");
}

#[test]
fn recording_costs_little() {
    let bench = bench();
    let recorder = bench.monitor.watch(subject("digits", 1, 1));
    let classes = [Class { index: 3, confidence: 0.5 }];
    let rounds = 20_000u32;
    let start = std::time::Instant::now();
    for n in 0..rounds {
        let spent = Duration::from_micros(u64::from(n % 977) + 20);
        let seen = Observation {
            rows: 1,
            outcome: Outcome::Ok,
            queue: spent,
            steps: None,
            pass_rows: 1,
            infer: spent,
            total: spent,
            classes: &classes,
        };
        recorder.record(&seen, 1);
        bench.monitor.remember(&recorder, &classes, None);
    }
    let each = start.elapsed() / rounds;
    println!("monitor cost per request: {each:?}");
    // The budget is 20 us; this leaves room for unoptimised code on a busy machine.
    assert!(each < Duration::from_micros(100), "{each:?}");
}
