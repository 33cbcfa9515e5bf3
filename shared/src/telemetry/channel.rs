//! One channel: a number or a category of every row, summed up over some time.
//!
//! Bins have fixed edges, shipped with the bundle's [`Baseline`](crate::bundle::Baseline), so that merging is adding
//! and a comparison needs no second binning.

use super::moments::Moments;
use crate::ids::ChannelId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Channels of one bundle.
pub const MAX_CHANNELS: usize = 128;
/// Edges of one channel; `edges.len() + 1` bins.
pub const MAX_EDGES: usize = 64;
/// Categories told apart in one channel; the rest is counted under [`OTHER`].
pub const MAX_CATEGORIES: usize = 128;
/// Longest name of a category, bytes.
pub const MAX_CATEGORY_BYTES: usize = 64;
/// What is beyond [`MAX_CATEGORIES`], and, beside a baseline, what the baseline does not know.
pub const OTHER: &str = "other";

/// What one channel was like. Numbers fill `bins` and `moments`, categories fill `categories`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    pub id: ChannelId,
    /// Rows with a value.
    pub n: u64,
    /// Rows whose value was missing: null, NaN or infinite.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing: u64,
    /// Bin 0 is below the first edge, bin i holds `[edges[i-1], edges[i])`, the last one is at or above the last
    /// edge. Empty if the bundle ships no edges for this channel.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bins: Vec<u64>,
    #[serde(default, skip_serializing_if = "has_none")]
    pub moments: Moments,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub categories: BTreeMap<String, u64>,
    /// Correlation of a value with the one before it on the same device, -1 to 1. Rows that resemble their
    /// predecessors prove less than their number: n_eff = n (1 - r) / (1 + r).
    #[serde(default, skip_serializing_if = "is_none_or_zero")]
    pub lag1: f64,
    /// Longest run of equal values; of several devices the longest. A stuck sensor shows here.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub longest_run: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}
fn is_none_or_zero(x: &f64) -> bool {
    *x == 0.0
}
fn has_none(moments: &Moments) -> bool {
    moments.n == 0
}

/// The bin of `x` among `edges`, which ascend.
pub fn bin_of(edges: &[f64], x: f64) -> usize {
    edges.partition_point(|edge| *edge <= x)
}

impl Channel {
    pub fn new(id: ChannelId) -> Self {
        Self {
            id,
            n: 0,
            missing: 0,
            bins: Vec::new(),
            moments: Moments::default(),
            categories: BTreeMap::new(),
            lag1: 0.0,
            longest_run: 0,
        }
    }

    /// Adds what the same channel was like elsewhere or later. Bins of another number (of another baseline) do not
    /// fit: then the moments alone are added.
    pub fn merge(&mut self, other: &Self) {
        let (mine, theirs) = (self.n as f64, other.n as f64);
        if mine + theirs > 0.0 {
            self.lag1 = (self.lag1 * mine + other.lag1 * theirs) / (mine + theirs);
        }
        if self.bins.is_empty() && self.n == 0 {
            self.bins.clone_from(&other.bins);
        } else if self.bins.len() == other.bins.len() {
            for (mine, theirs) in self.bins.iter_mut().zip(&other.bins) {
                *mine = mine.saturating_add(*theirs);
            }
        }
        self.n = self.n.saturating_add(other.n);
        self.missing = self.missing.saturating_add(other.missing);
        self.moments.merge(&other.moments);
        self.longest_run = self.longest_run.max(other.longest_run);
        for (name, n) in &other.categories {
            add_category(&mut self.categories, name, *n);
        }
    }

    /// Rows that prove as much as these if each were independent of the one before, at least 1 if there are any.
    pub fn effective_n(&self) -> f64 {
        let r = if self.lag1.is_finite() { self.lag1.clamp(0.0, 0.999) } else { 0.0 };
        let n = self.n as f64;
        (n * (1.0 - r) / (1.0 + r)).max(n.min(1.0))
    }

    /// Whether this can be true and is within bounds; a device may claim anything.
    pub fn is_sound(&self) -> bool {
        let bins = self.bins.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
        let categories = self.categories.values().try_fold(0u64, |sum, n| sum.checked_add(*n));
        self.bins.len() <= MAX_EDGES + 1
            && self.categories.len() <= MAX_CATEGORIES + 1
            && self.categories.keys().all(|name| name.len() <= MAX_CATEGORY_BYTES)
            && bins.is_some_and(|n| self.bins.is_empty() || n == self.n)
            && categories.is_some_and(|n| self.categories.is_empty() || n == self.n)
            && self.moments.is_sound()
            && self.moments.n <= self.n
            && (-1.0..=1.0).contains(&self.lag1)
            && self.longest_run <= self.n
    }
}

/// Adds `n` rows of a category, or of [`OTHER`] if the name is too long or the map is full.
pub fn add_category(categories: &mut BTreeMap<String, u64>, name: &str, n: u64) {
    let has_room = categories.len() < MAX_CATEGORIES || categories.contains_key(name);
    let name = if has_room && name.len() <= MAX_CATEGORY_BYTES { name } else { OTHER };
    let sum = match categories.get_mut(name) {
        Some(sum) => sum,
        None => categories.entry(name.to_owned()).or_default(),
    };
    *sum = sum.saturating_add(n);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn channel(values: &[f64], edges: &[f64]) -> Channel {
        let mut channel = Channel::new("input/x".parse().unwrap());
        channel.bins = vec![0; edges.len() + 1];
        for x in values {
            channel.n += 1;
            channel.bins[bin_of(edges, *x)] += 1;
            channel.moments.take(*x);
        }
        channel
    }

    #[test]
    fn bins_are_closed_below_and_open_above() {
        let edges = [0.0, 1.0, 2.0];
        let found: Vec<_> = [-0.1, 0.0, 0.9, 1.0, 1.5, 2.0, 9.0].iter().map(|x| bin_of(&edges, *x)).collect();
        assert_eq!(found, [0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(bin_of(&[], 1.0), 0);
    }

    proptest! {
        #[test]
        fn merging_equals_counting_together(
            a in prop::collection::vec(-3.0..3.0f64, 0..50),
            b in prop::collection::vec(-3.0..3.0f64, 0..50),
        ) {
            let edges = [-1.0, 0.0, 1.0];
            let mut merged = channel(&a, &edges);
            merged.merge(&channel(&b, &edges));
            let all = channel(&[a, b].concat(), &edges);
            prop_assert!(merged.is_sound());
            prop_assert_eq!((&merged.bins, merged.n), (&all.bins, all.n));
        }
    }

    #[test]
    fn bins_of_another_baseline_are_not_mixed() {
        let mut merged = channel(&[0.5], &[0.0, 1.0]);
        merged.merge(&channel(&[0.5], &[0.0]));
        assert_eq!((merged.bins.iter().sum::<u64>(), merged.n, merged.moments.n), (1, 2, 2));
    }

    #[test]
    fn rows_that_follow_each_other_prove_less() {
        let mut channel = channel(&[1.0; 100], &[]);
        assert_eq!(channel.effective_n(), 100.0);
        channel.lag1 = 0.5;
        assert!((channel.effective_n() - 100.0 / 3.0).abs() < 1e-9);
        channel.lag1 = 1.0;
        assert_eq!(channel.effective_n(), 1.0);
    }

    #[test]
    fn impossible_claims_are_seen() {
        let sound = channel(&[0.5, 1.5], &[1.0]);
        assert!(sound.is_sound());
        let claims: [fn(&mut Channel); 6] = [
            |c| c.bins = vec![u64::MAX, 2],
            |c| c.bins = vec![1, 2],
            |c| c.bins = vec![0; MAX_EDGES + 2],
            |c| c.lag1 = f64::NAN,
            |c| c.longest_run = 3,
            |c| c.categories = [("x".repeat(100), 2)].into(),
        ];
        for claim in claims {
            let mut odd = sound.clone();
            claim(&mut odd);
            assert!(!odd.is_sound(), "{odd:?}");
        }
    }

    #[test]
    fn categories_are_bounded_and_lose_nothing() {
        let mut categories = BTreeMap::new();
        for n in 0..1_000 {
            add_category(&mut categories, &n.to_string(), 2);
        }
        add_category(&mut categories, &"x".repeat(65), 1);
        assert_eq!(categories.len(), MAX_CATEGORIES + 1);
        assert_eq!(categories.values().sum::<u64>(), 2_001);
    }
}
