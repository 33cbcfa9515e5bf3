//! One window in the making. Pure: time comes in, nothing goes out but the finished window.

use super::classes::Class;
use crate::engine::aside::Steps;
use edgefleet_shared::{
    desired::{Metric, Threshold},
    digest::BundleDigest,
    ids::{AttemptId, BundleName, SlotName},
    reported::ClockQuality,
    telemetry::{
        Agreement, ClassAgreement, Counts, Exceed, Latency, Role, Window,
        window::{MAX_KEYS, MAX_POWERS},
    },
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

/// Thresholds one window counts; a device is asked about a handful.
const MAX_THRESHOLDS: usize = 64;

/// What a window speaks of: it is cut whenever one of these changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub slot: SlotName,
    pub bundle: BundleName,
    pub digest: BundleDigest,
    pub role: Role,
    pub attempt: AttemptId,
    /// From the manifest.
    pub classes: Arc<ClassNames>,
}

/// Class names by index and back, so that a label costs a look-up even among 100,000 classes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClassNames {
    names: Vec<String>,
    by_name: HashMap<String, u32>,
}

impl From<&[String]> for ClassNames {
    /// Where two classes share a name, the first has it.
    fn from(names: &[String]) -> Self {
        let mut by_name = HashMap::with_capacity(names.len());
        for (index, name) in (0u32..).zip(names) {
            by_name.entry(name.clone()).or_insert(index);
        }
        Self { names: names.to_vec(), by_name }
    }
}

impl ClassNames {
    pub(super) fn name(&self, index: u32) -> String {
        self.names.get(index as usize).cloned().unwrap_or_else(|| index.to_string())
    }
    pub(super) fn index(&self, text: &str) -> Option<u32> {
        if let Some(index) = self.by_name.get(text) {
            return Some(*index);
        }
        let index: u32 = text.parse().ok()?;
        let known = self.names.len();
        (known == 0 || (index as usize) < known).then_some(index)
    }
}

impl Subject {
    /// The label at `index`, or the number itself where there is no label.
    pub fn class_name(&self, index: u32) -> String {
        self.classes.name(index)
    }
    /// Whether class `mine` of this bundle and class `theirs` of `other` have one name. Bundles with equal
    /// names share the table of them, and then it is a comparison of numbers.
    pub fn is_same_class(&self, mine: u32, other: &Self, theirs: u32) -> bool {
        if Arc::ptr_eq(&self.classes, &other.classes) {
            return mine == theirs;
        }
        self.class_name(mine) == other.class_name(theirs)
    }
    /// A class by its name or, where no class has that name, by its index.
    pub fn class_index(&self, text: &str) -> Option<u32> {
        self.classes.index(text)
    }
}

/// One instant on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since the agent's start.
    pub mono_ms: u64,
    pub wall: Timestamp,
    pub clock: ClockQuality,
}

/// Why a request failed, as windows and metrics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorCode {
    /// The client's tensors, body or headers do not fit.
    BadInput,
    /// The client went away before its answer.
    Cancelled,
    Engine,
    /// The agent was stopping.
    Stopped,
}

impl ErrorCode {
    pub const ALL: [Self; 4] = [Self::BadInput, Self::Cancelled, Self::Engine, Self::Stopped];
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadInput => "bad-input",
            Self::Cancelled => "cancelled",
            Self::Engine => "engine",
            Self::Stopped => "stopped",
        }
    }
    /// Whether the bundle or the device is to blame, so that the window counts as bad.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Engine)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    Failed(ErrorCode),
    /// Turned away, the queue was full.
    Rejected,
}

/// One request as the monitor sees it. Times count only for [`Outcome::Ok`].
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// Inputs in the request; a batch of 8 has 8.
    pub rows: u64,
    pub outcome: Outcome,
    pub queue: Duration,
    pub infer: Duration,
    /// Of `infer`: the bundle's own steps, if it has any.
    pub steps: Option<Steps>,
    /// Rows of the pass through the model that is counted with this request; 0 if another counts it.
    pub pass_rows: u64,
    pub total: Duration,
    /// What was predicted, by row; empty if the model predicts no class.
    pub classes: &'a [Class],
}

/// Adds up observations until [`WindowBuilder::cut`].
pub struct WindowBuilder {
    subject: Arc<Subject>,
    thresholds: Vec<Threshold>,
    start: Moment,
    requests: u64,
    rows: u64,
    ok: u64,
    errors: [u64; ErrorCode::ALL.len()],
    rejected: u64,
    latency: Latency,
    classes: BTreeMap<u32, u64>,
    /// Predictions beyond the bound of `classes`.
    other: u64,
    first_bad_ms: Option<u64>,
    /// (asked, beyond) by threshold.
    exceed: Vec<(u64, u64)>,
    /// The active bundle that a shadow is compared with.
    against: Option<Arc<Subject>>,
    agreed: Agreed,
}

/// Rows by the active bundle's class, and whether the shadow agreed.
#[derive(Default)]
struct Agreed {
    n: u64,
    disagree: u64,
    errors: u64,
    classes: BTreeMap<u32, ClassAgreement>,
    other: ClassAgreement,
}

/// How a shadow's answer to one input compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowVerdict {
    /// The active bundle's class, if its answer is one.
    pub class: Option<u32>,
    pub agrees: bool,
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl WindowBuilder {
    pub fn new(subject: Arc<Subject>, thresholds: Vec<Threshold>, now: Moment) -> Self {
        let mut builder = Self {
            subject,
            thresholds: Vec::new(),
            start: now,
            requests: 0,
            rows: 0,
            ok: 0,
            errors: Default::default(),
            rejected: 0,
            latency: Latency::default(),
            classes: BTreeMap::new(),
            other: 0,
            first_bad_ms: None,
            exceed: Vec::new(),
            against: None,
            agreed: Agreed::default(),
        };
        builder.set_thresholds(thresholds);
        builder
    }

    /// Makes it the window of a shadow of `against`.
    pub fn against(mut self, against: Arc<Subject>) -> Self {
        self.against = Some(against);
        self
    }

    /// Inputs both answered, and inputs that the shadow failed.
    pub fn compare(&mut self, rows: &[RowVerdict], errors: u64) {
        self.agreed.errors = self.agreed.errors.saturating_add(errors);
        for row in rows {
            let disagree = u64::from(!row.agrees);
            self.agreed.n += 1;
            self.agreed.disagree += disagree;
            let Some(class) = row.class else { continue };
            let classes = &mut self.agreed.classes;
            let full = classes.len() >= MAX_KEYS - 1 && !classes.contains_key(&class);
            let counts = if full { &mut self.agreed.other } else { classes.entry(class).or_default() };
            counts.n += 1;
            counts.disagree += disagree;
        }
    }

    /// From now on; cut first, or the counts of two sets mix.
    pub fn set_thresholds(&mut self, mut thresholds: Vec<Threshold>) {
        thresholds.truncate(MAX_THRESHOLDS);
        self.exceed = vec![(0, 0); thresholds.len()];
        self.thresholds = thresholds;
    }

    pub fn started_ms(&self) -> u64 {
        self.start.mono_ms
    }

    pub fn record(&mut self, seen: &Observation<'_>, mono_ms: u64) {
        match seen.outcome {
            Outcome::Rejected => {
                self.rejected += 1;
                return;
            }
            Outcome::Failed(code) => {
                self.requests += 1;
                self.errors[code as usize] += 1;
                if code.is_ours() {
                    self.first_bad_ms.get_or_insert(mono_ms);
                }
                return;
            }
            Outcome::Ok => {}
        }
        self.requests += 1;
        self.ok += 1;
        self.rows = self.rows.saturating_add(seen.rows);
        self.latency.queue.record_coarse_us(micros(seen.queue));
        self.latency.infer.record_coarse_us(micros(seen.infer));
        self.latency.total.record_us(micros(seen.total));
        if let Some(Steps { pre, post }) = seen.steps {
            self.latency.pre.record_coarse_us(micros(pre));
            self.latency.post.record_coarse_us(micros(post));
        }
        if let Some(power) = seen.pass_rows.checked_ilog2() {
            let power = (power as usize).min(MAX_POWERS - 1);
            if self.latency.passes.len() <= power {
                self.latency.passes.resize(power + 1, 0);
            }
            self.latency.passes[power] += 1;
        }
        for (threshold, (n, x)) in self.thresholds.iter().zip(&mut self.exceed) {
            let value = match threshold.metric {
                Metric::TotalMs => seen.total,
                Metric::InferMs => seen.infer,
            };
            *n += 1;
            *x += u64::from(value.as_secs_f64() * 1_000.0 > threshold.value);
        }
        for class in seen.classes {
            // One key is left for `other`.
            if self.classes.len() < MAX_KEYS - 1 || self.classes.contains_key(&class.index) {
                *self.classes.entry(class.index).or_default() += 1;
            } else {
                self.other += 1;
            }
        }
    }

    /// Ends the window at `now` and begins the next. `None` if nothing has happened in it: silence
    /// is no evidence, and presence is told elsewhere.
    pub fn cut(&mut self, now: Moment) -> Option<Window> {
        let mut next = Self::new(self.subject.clone(), self.thresholds.clone(), now);
        next.against = self.against.clone();
        let done = std::mem::replace(self, next);
        if done.requests == 0 && done.rejected == 0 {
            return None;
        }
        let mut latency = done.latency;
        if latency.passes.len() <= 1 {
            latency.passes.clear(); // each row alone, as the counts say already
        }
        let subject = done.subject;
        let mut classes = BTreeMap::new();
        for (index, n) in done.classes {
            *classes.entry(subject.class_name(index)).or_default() += n;
        }
        if done.other > 0 {
            *classes.entry("other".to_owned()).or_default() += done.other;
        }
        let agreement = done.against.map(|against| {
            let Agreed { n, disagree, errors, classes, other } = done.agreed;
            let named = classes.into_iter().map(|(index, counts)| (against.class_name(index), counts));
            let other = (other.n > 0).then(|| ("other".to_owned(), other));
            let mut classes = BTreeMap::<String, ClassAgreement>::new();
            for (name, counts) in named.chain(other) {
                let sum = classes.entry(name).or_default();
                (sum.n, sum.disagree) = (sum.n + counts.n, sum.disagree + counts.disagree);
            }
            Agreement { n, disagree, errors, classes }
        });
        let errors = ErrorCode::ALL.iter().zip(done.errors).filter(|(_, n)| *n > 0);
        let exceed = done.thresholds.into_iter().zip(done.exceed);
        Some(Window {
            slot: subject.slot.clone(),
            bundle: subject.bundle.clone(),
            digest: subject.digest,
            role: subject.role,
            attempt: subject.attempt.clone(),
            mono_start_ms: done.start.mono_ms,
            mono_end_ms: now.mono_ms,
            wall_start: done.start.wall,
            wall_end: now.wall,
            clock: now.clock,
            counts: Counts {
                requests: done.requests,
                rows: done.rows,
                ok: done.ok,
                errors: errors.map(|(code, n)| (code.as_str().to_owned(), n)).collect(),
                rejected: done.rejected,
            },
            latency,
            classes,
            first_bad_ms: done.first_bad_ms,
            agreement,
            device: None,
            exceed: exceed.map(|(threshold, (n, x))| Exceed { id: threshold.id, n, x }).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, subject};
    use super::*;

    fn ok(classes: &[Class]) -> Observation<'_> {
        let ms = Duration::from_millis;
        let steps = Some(Steps { pre: ms(2), post: ms(1) });
        let (outcome, queue, infer, total) = (Outcome::Ok, ms(1), ms(5), ms(8));
        Observation { rows: 1, outcome, queue, infer, steps, pass_rows: 1, total, classes }
    }

    #[test]
    fn a_window_counts_requests_rows_errors_and_thresholds() {
        let thresholds = vec![
            Threshold { id: "slow".into(), metric: Metric::TotalMs, value: 7.5 },
            Threshold { id: "infer".into(), metric: Metric::InferMs, value: 5.0 },
        ];
        let mut builder = WindowBuilder::new(Arc::new(subject("digits", 2, 1)), thresholds, at(1_000));
        assert!(builder.cut(at(2_000)).is_none(), "nothing happened");
        let class = [Class { index: 3, confidence: 0.9 }];
        builder.record(&Observation { rows: 8, ..ok(&class) }, 2_100);
        builder.record(&ok(&class), 2_200);
        for (outcome, ms) in [
            (Outcome::Rejected, 2_300),
            (Outcome::Failed(ErrorCode::BadInput), 2_400),
            (Outcome::Failed(ErrorCode::Engine), 2_500),
            (Outcome::Failed(ErrorCode::Engine), 2_600),
        ] {
            builder.record(&Observation { outcome, ..ok(&[]) }, ms);
        }
        let window = builder.cut(at(3_000)).unwrap();
        assert_eq!((window.mono_start_ms, window.mono_end_ms), (2_000, 3_000));
        assert_eq!((window.counts.requests, window.counts.rows, window.counts.ok), (5, 9, 2));
        assert_eq!(window.counts.rejected, 1);
        assert_eq!(window.counts.errors, BTreeMap::from([("bad-input".into(), 1), ("engine".into(), 2)]));
        assert_eq!(window.first_bad_ms, Some(2_500), "a client's mistake is not the bundle's");
        assert_eq!(window.latency.total.count(), 2);
        assert_eq!(window.classes, BTreeMap::from([("three".into(), 2)]));
        let exceed: Vec<_> = window.exceed.iter().map(|e| (e.id.as_str(), e.n, e.x)).collect();
        assert_eq!(exceed, [("slow", 2, 2), ("infer", 2, 0)]);
        assert!(builder.cut(at(4_000)).is_none(), "counts were not carried over");
    }

    #[test]
    fn the_map_of_classes_is_bounded_and_loses_nothing() {
        let mut builder = WindowBuilder::new(Arc::new(subject("digits", 2, 1)), vec![], at(0));
        let classes: Vec<_> = (0..1_000).map(|index| Class { index, confidence: 0.5 }).collect();
        builder.record(&ok(&classes), 1);
        builder.record(&ok(&classes[..4]), 2);
        let window = builder.cut(at(10)).unwrap();
        assert_eq!(window.classes.len(), MAX_KEYS);
        assert_eq!(window.classes.values().sum::<u64>(), 1_004);
        assert_eq!(window.classes["three"], 2);
    }
}
