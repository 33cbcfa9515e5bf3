//! Pure: five minutes of one bundle over all devices, merged by addition.

use crate::store::Kind;
use edgefleet_shared::{
    ids::BundleName,
    telemetry::{Counts, LabelCounts, Latency, Role, Window, window::MAX_KEYS},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

pub const AGGREGATE: Kind = Kind::new("aggregate");
/// Length of a bucket.
pub const BUCKET: Duration = Duration::from_secs(300);

/// Start of the bucket that `at` falls in.
pub fn bucket_of(at: Timestamp) -> Timestamp {
    Timestamp::from_secs(at.as_secs() / BUCKET.as_secs() * BUCKET.as_secs())
}

/// `digits@3/primary/2026-11-23T07:00:00.000Z`: one bundle is one prefix, in the order of time.
pub fn aggregate_id(bundle: &BundleName, role: Role, bucket: Timestamp) -> String {
    let role = match role {
        Role::Primary => "primary",
        Role::Shadow => "shadow",
    };
    format!("{bundle}/{role}/{bucket}")
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Aggregate {
    pub windows: u64,
    pub counts: Counts,
    pub latency: Latency,
    pub classes: BTreeMap<String, u64>,
    /// Labels joined to predictions of this bucket, by source.
    pub labels: BTreeMap<String, LabelTotals>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelTotals {
    pub matched: u64,
    pub correct: u64,
    pub unmatched: u64,
}

impl LabelTotals {
    pub fn add(&mut self, labels: &LabelCounts) {
        self.matched = self.matched.saturating_add(labels.matched);
        // A device may claim anything, but not more right answers than answers.
        self.correct = self.correct.saturating_add(labels.correct.min(labels.matched));
        let unmatched = labels.unmatched.values().fold(0u64, |sum, n| sum.saturating_add(*n));
        self.unmatched = self.unmatched.saturating_add(unmatched);
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
    latency.total.merge(&other.total);
}

impl Aggregate {
    pub fn add_window(&mut self, window: &Window) {
        self.windows = self.windows.saturating_add(1);
        add_counts(&mut self.counts, &window.counts);
        add_latency(&mut self.latency, &window.latency);
        for (class, n) in &window.classes {
            add_bounded(&mut self.classes, class, *n);
        }
    }
    pub fn add_labels(&mut self, labels: &LabelCounts) {
        let source = if labels.source == "controller" { "controller" } else { "local" };
        self.labels.entry(source.to_owned()).or_default().add(labels);
    }
    /// Over all sources.
    pub fn all_labels(&self) -> LabelTotals {
        self.labels.values().fold(LabelTotals::default(), |mut sum, part| {
            sum.matched = sum.matched.saturating_add(part.matched);
            sum.correct = sum.correct.saturating_add(part.correct);
            sum.unmatched = sum.unmatched.saturating_add(part.unmatched);
            sum
        })
    }
    /// Adds another bucket, for summaries over time.
    pub fn merge(&mut self, other: &Self) {
        self.windows = self.windows.saturating_add(other.windows);
        add_counts(&mut self.counts, &other.counts);
        add_latency(&mut self.latency, &other.latency);
        for (class, n) in &other.classes {
            add_bounded(&mut self.classes, class, *n);
        }
        for (source, part) in &other.labels {
            let mine = self.labels.entry(source.clone()).or_default();
            mine.matched = mine.matched.saturating_add(part.matched);
            mine.correct = mine.correct.saturating_add(part.correct);
            mine.unmatched = mine.unmatched.saturating_add(part.unmatched);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_start_every_five_minutes() {
        let at = |secs| Timestamp::from_secs(secs);
        for (secs, start) in [(0, 0), (299, 0), (300, 300), (301, 300), (86_399, 86_100)] {
            assert_eq!(bucket_of(at(secs)), at(start));
        }
    }

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
}
