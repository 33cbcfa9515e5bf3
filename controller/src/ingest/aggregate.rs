//! Pure: what the devices of one bundle and cohort counted over some time, merged by addition.

use super::{
    health::{CpuSpent, HealthTotals},
    level::{Level, Summed},
    versus::{self, VersusByCandidate},
};
use crate::store::Kind;
use edgefleet_shared::ids::DeviceId;
use edgefleet_shared::telemetry::{Agreement, Counts, LabelCounts, Latency, Window, window::MAX_KEYS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const AGGREGATE: Kind = Kind::new("aggregate");
pub const AGGREGATE_HOUR: Kind = Kind::new("aggregate-hour");
pub const AGGREGATE_DAY: Kind = Kind::new("aggregate-day");

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Aggregate {
    pub windows: u64,
    pub counts: Counts,
    pub latency: Latency,
    pub classes: BTreeMap<String, u64>,
    /// Labels joined to predictions of this bucket, by source: `controller`, and `local` for all others.
    pub labels: BTreeMap<String, LabelTotals>,
    /// Of a shadow: how its answers compare with the active bundle's.
    #[serde(skip_serializing_if = "AgreementTotals::is_none")]
    pub agreement: AgreementTotals,
    /// Of an active bundle: how candidates did on labelled inputs that both answered.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub versus: VersusByCandidate,
    /// How the devices did that answered.
    #[serde(skip_serializing_if = "HealthTotals::is_none")]
    pub health: HealthTotals,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelTotals {
    pub matched: u64,
    pub correct: u64,
    pub unmatched: u64,
    /// Truth, predicted, rows; at most [`MAX_CELLS`], the rest under `other` and `other`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub confusion: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Inputs that shadow and active bundle both answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgreementTotals {
    pub n: u64,
    pub disagree: u64,
    /// Inputs the active bundle answered and the shadow failed; not part of `n`.
    pub errors: u64,
}

impl AgreementTotals {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
    fn add(&mut self, n: u64, disagree: u64, errors: u64) {
        self.n = self.n.saturating_add(n);
        self.disagree = self.disagree.saturating_add(disagree.min(n));
        self.errors = self.errors.saturating_add(errors);
    }
}

/// Pairs of truth and prediction told apart for one source of labels.
pub(super) const MAX_CELLS: usize = 512;

impl LabelTotals {
    /// Adds what was right and wrong, without saying what was taken for what.
    pub fn add_counts(&mut self, labels: &LabelCounts) {
        self.matched = self.matched.saturating_add(labels.matched);
        // A device may claim anything, but not more right answers than answers.
        self.correct = self.correct.saturating_add(labels.correct.min(labels.matched));
        let unmatched = labels.unmatched.values().fold(0u64, |sum, n| sum.saturating_add(*n));
        self.unmatched = self.unmatched.saturating_add(unmatched);
    }
    pub fn add(&mut self, labels: &LabelCounts) {
        self.add_counts(labels);
        let told = labels.confusion.iter().try_fold(0u64, |sum, (_, _, n)| sum.checked_add(*n));
        if told.is_some_and(|n| n <= labels.matched) {
            labels.confusion.iter().for_each(|(truth, said, n)| self.confuse(truth, said, *n));
        }
    }
    fn merge(&mut self, other: &Self) {
        self.matched = self.matched.saturating_add(other.matched);
        self.correct = self.correct.saturating_add(other.correct);
        self.unmatched = self.unmatched.saturating_add(other.unmatched);
        for (truth, row) in &other.confusion {
            row.iter().for_each(|(said, n)| self.confuse(truth, said, *n));
        }
    }
    fn confuse(&mut self, truth: &str, said: &str, n: u64) {
        let known = self.confusion.get(truth).is_some_and(|row| row.contains_key(said));
        let cells: usize = self.confusion.values().map(BTreeMap::len).sum();
        let fits =
            truth.len() <= MAX_KEY_BYTES && said.len() <= MAX_KEY_BYTES && (known || cells < MAX_CELLS);
        let (truth, said) = if fits { (truth, said) } else { ("other", "other") };
        let cell = self.confusion.entry(truth.to_owned()).or_default().entry(said.to_owned()).or_default();
        *cell = cell.saturating_add(n);
    }
    /// Share of right answers; `None` before the first label.
    pub fn accuracy(&self) -> Option<f64> {
        (self.matched > 0).then(|| self.correct as f64 / self.matched as f64)
    }
}

/// Longest key, bytes: a device may claim any, and what it claims stays in the document of a bundle.
const MAX_KEY_BYTES: usize = 128;

/// Adds `n` under `key`, or under `other` if that is too long or the map is full.
fn add_bounded(map: &mut BTreeMap<String, u64>, key: &str, n: u64) {
    let fits = key.len() <= MAX_KEY_BYTES && (map.contains_key(key) || map.len() < MAX_KEYS);
    let key = if fits { key } else { "other" };
    let entry = map.entry(key.to_owned()).or_default();
    *entry = entry.saturating_add(n);
}

/// Adds the counts of `other` to `counts`.
pub(super) fn add_counts(counts: &mut Counts, other: &Counts) {
    counts.requests = counts.requests.saturating_add(other.requests);
    counts.rows = counts.rows.saturating_add(other.rows);
    counts.ok = counts.ok.saturating_add(other.ok);
    counts.rejected = counts.rejected.saturating_add(other.rejected);
    for (code, n) in &other.errors {
        add_bounded(&mut counts.errors, code, *n);
    }
}

/// Adds the sketches of `other` to `latency`.
pub(super) fn add_latency(latency: &mut Latency, other: &Latency) {
    latency.queue.merge(&other.queue);
    latency.infer.merge(&other.infer);
    latency.pre.merge(&other.pre);
    latency.post.merge(&other.post);
    latency.total.merge(&other.total);
    if latency.passes.len() < other.passes.len() {
        latency.passes.resize(other.passes.len(), 0);
    }
    for (mine, theirs) in latency.passes.iter_mut().zip(&other.passes) {
        *mine = mine.saturating_add(*theirs);
    }
}

impl Aggregate {
    pub fn add_window(&mut self, window: &Window) {
        self.windows = self.windows.saturating_add(1);
        add_counts(&mut self.counts, &window.counts);
        add_latency(&mut self.latency, &window.latency);
        for (class, n) in &window.classes {
            add_bounded(&mut self.classes, class, *n);
        }
        if let Some(Agreement { n, disagree, errors, .. }) = &window.agreement {
            self.agreement.add(*n, *disagree, *errors);
        }
    }
    /// What the device did while it answered; of its processors, since the window before.
    pub(super) fn add_health(&mut self, window: &Window, spent: Option<CpuSpent>) {
        self.health.add(window, spent);
    }
    /// How a candidate did on the labelled inputs that `device` tells of.
    pub fn add_versus(&mut self, labels: &LabelCounts, device: &DeviceId) {
        versus::add(&mut self.versus, labels, device);
    }
    pub fn add_labels(&mut self, labels: &LabelCounts) {
        let source = if labels.source == "controller" { "controller" } else { "local" };
        self.labels.entry(source.to_owned()).or_default().add(labels);
    }
    /// What was taken for what, over all sources: truth, predicted, rows.
    pub fn confusion(&self) -> BTreeMap<(&str, &str), u64> {
        let mut sum = BTreeMap::<_, u64>::new();
        for (truth, row) in self.labels.values().flat_map(|part| &part.confusion) {
            for (said, n) in row {
                let cell = sum.entry((truth.as_str(), said.as_str())).or_default();
                *cell = cell.saturating_add(*n);
            }
        }
        sum
    }
    /// Over all sources, without what was taken for what.
    pub fn all_labels(&self) -> LabelTotals {
        self.labels.values().fold(LabelTotals::default(), |mut sum, part| {
            sum.matched = sum.matched.saturating_add(part.matched);
            sum.correct = sum.correct.saturating_add(part.correct);
            sum.unmatched = sum.unmatched.saturating_add(part.unmatched);
            sum
        })
    }
}

impl Summed for Aggregate {
    const LEVELS: &'static [(Level, Kind)] =
        &[(Level::FiveMinutes, AGGREGATE), (Level::Hour, AGGREGATE_HOUR), (Level::Day, AGGREGATE_DAY)];

    fn merge(&mut self, other: &Self) {
        self.windows = self.windows.saturating_add(other.windows);
        add_counts(&mut self.counts, &other.counts);
        add_latency(&mut self.latency, &other.latency);
        for (class, n) in &other.classes {
            add_bounded(&mut self.classes, class, *n);
        }
        for (source, part) in &other.labels {
            self.labels.entry(source.clone()).or_default().merge(part);
        }
        let AgreementTotals { n, disagree, errors } = other.agreement;
        self.agreement.add(n, disagree, errors);
        versus::merge(&mut self.versus, &other.versus);
        self.health.merge(&other.health);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_bounded_whatever_devices_claim() {
        let mut map = BTreeMap::new();
        for n in 0..10_000 {
            add_bounded(&mut map, &format!("class-{n}"), u64::MAX / 2);
        }
        assert!(map.len() <= MAX_KEYS + 1);
        assert!(map.contains_key("other"));
        let mut map = BTreeMap::new();
        add_bounded(&mut map, &"x".repeat(1 << 20), 1);
        assert_eq!(map, BTreeMap::from([("other".to_owned(), 1)]));
    }

    #[test]
    fn labels_say_what_was_taken_for_what_within_bounds() {
        let labels = |matched: u64, confusion: Vec<(String, String, u64)>| LabelCounts {
            slot: "digits".parse().unwrap(),
            bundle: "digits@1".parse().unwrap(),
            digest: edgefleet_shared::digest::BundleDigest::of(b"m"),
            attempt: edgefleet_shared::ids::AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
            bucket: edgefleet_shared::time::Timestamp::EPOCH,
            source: "controller".into(),
            matched,
            correct: 0,
            confusion,
            unmatched: BTreeMap::new(),
            versus: None,
        };
        let mut sum = Aggregate::default();
        sum.add_labels(&labels(3, vec![("1".into(), "7".into(), 2), ("3".into(), "8".into(), 1)]));
        sum.add_labels(&labels(1, vec![("1".into(), "7".into(), 5)])); // more than there were: only counted
        let mut local = labels(1, vec![("1".into(), "7".into(), 1)]);
        local.source = "anybody".into();
        sum.add_labels(&local);
        assert_eq!((sum.labels["controller"].matched, sum.labels["controller"].confusion["1"]["7"]), (4, 2));
        assert_eq!(sum.labels["local"].confusion["1"]["7"], 1);
        let mut other = Aggregate::default();
        for n in 0..2_000 {
            other.add_labels(&labels(1, vec![(n.to_string(), "x".repeat(n), 1)]));
        }
        sum.merge(&other);
        let cells = &sum.labels["controller"].confusion;
        assert!(cells.values().map(BTreeMap::len).sum::<usize>() <= MAX_CELLS + 1);
        assert_eq!(cells.values().flat_map(BTreeMap::values).sum::<u64>(), 2_003);
        assert_eq!(cells["1"]["7"], 2);
        let bytes = serde_json::to_vec(&sum).unwrap().len();
        assert!(bytes < 400 << 10, "{bytes}");
    }
}
