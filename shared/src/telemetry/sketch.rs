//! A latency sketch with relative error of at most 1 %, or 3 % where less will do, mergeable by addition.
//!
//! Source: Masson, Rim, Lee: DDSketch, VLDB 2019 (arXiv 1908.10693), with alpha = 0.01, in
//! microseconds: bucket i holds (gamma^(i-1), gamma^i], gamma = (1 + alpha) / (1 - alpha). Buckets
//! are integers from 0 (up to 1 us) to [`LAST_BUCKET`] (an hour), so memory is bounded.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const ALPHA: f64 = 0.01;
/// ceil(ln(3.6e9) / ln(gamma)): one hour in microseconds.
pub const LAST_BUCKET: u16 = 1_101;

/// Counts by bucket; values in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sketch {
    /// Written as sorted pairs: JSON has only text keys, and those do not survive serde's flattening.
    #[serde(with = "pairs")]
    buckets: BTreeMap<u16, u64>,
    pub sum_us: u64,
    pub max_us: u64,
}

mod pairs {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub(super) fn serialize<S: Serializer>(buckets: &BTreeMap<u16, u64>, s: S) -> Result<S::Ok, S::Error> {
        s.collect_seq(buckets)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<u16, u64>, D::Error> {
        Ok(Vec::<(u16, u64)>::deserialize(d)?.into_iter().collect())
    }
}

fn ln_gamma() -> f64 {
    ((1.0 + ALPHA) / (1.0 - ALPHA)).ln()
}

fn bucket_of(value: u64) -> u16 {
    if value <= 1 {
        return 0;
    }
    ((value as f64).ln() / ln_gamma()).ceil().min(f64::from(LAST_BUCKET)) as u16
}

impl Sketch {
    pub fn record_us(&mut self, value: u64) {
        self.add(bucket_of(value), value);
    }

    /// To a relative error of 3 %: of three buckets only the middle one is used. For what is looked at, not judged by;
    /// a third of the bytes.
    pub fn record_coarse_us(&mut self, value: u64) {
        let bucket = match bucket_of(value) {
            0 => 0,
            bucket => (bucket / 3 * 3 + 1).min(LAST_BUCKET),
        };
        self.add(bucket, value);
    }

    fn add(&mut self, bucket: u16, value: u64) {
        *self.buckets.entry(bucket).or_default() += 1;
        self.sum_us = self.sum_us.saturating_add(value);
        self.max_us = self.max_us.max(value);
    }

    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum, n| sum.saturating_add(*n))
    }

    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    pub fn merge(&mut self, other: &Self) {
        for (bucket, n) in other.buckets.iter().filter(|(bucket, _)| **bucket <= LAST_BUCKET) {
            let mine = self.buckets.entry(*bucket).or_default();
            *mine = mine.saturating_add(*n);
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// Value in microseconds below which a share `q` (0 to 1) of the values lies; `None` if empty.
    pub fn quantile_us(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * (count - 1) as f64) as u64;
        let mut seen = 0u64;
        for (bucket, n) in &self.buckets {
            seen = seen.saturating_add(*n);
            if seen > rank {
                let gamma = ln_gamma().exp();
                let middle = 2.0 * (f64::from(*bucket) * ln_gamma()).exp() / (gamma + 1.0);
                return Some(middle.min(self.max_us as f64));
            }
        }
        Some(self.max_us as f64)
    }

    /// Whether every bucket is one this code writes; a device may claim anything.
    pub fn is_sound(&self) -> bool {
        self.buckets.keys().all(|bucket| *bucket <= LAST_BUCKET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(mut values in prop::collection::vec(2u64..3_000_000_000, 1..400), q in 0.0..1.0f64) {
            let mut sketch = Sketch::default();
            values.iter().for_each(|v| sketch.record_us(*v));
            values.sort_unstable();
            let exact = values[(q * (values.len() - 1) as f64) as usize] as f64;
            let found = sketch.quantile_us(q).unwrap();
            prop_assert!((found - exact).abs() <= exact * 0.0101, "{found} for {exact}");
        }

        #[test]
        fn coarse_quantiles_are_within_three_percent_with_a_third_of_the_buckets(
            mut values in prop::collection::vec(2u64..3_000_000_000, 1..400), q in 0.0..1.0f64,
        ) {
            let mut sketch = Sketch::default();
            values.iter().for_each(|v| sketch.record_coarse_us(*v));
            values.sort_unstable();
            let exact = values[(q * (values.len() - 1) as f64) as usize] as f64;
            let found = sketch.quantile_us(q).unwrap();
            prop_assert!((found - exact).abs() <= exact * 0.0305 + 1.0, "{found} for {exact}");
            prop_assert!(sketch.is_sound() && sketch.count() == values.len() as u64);
            prop_assert!(sketch.buckets.keys().all(|bucket| bucket % 3 == 1 || *bucket == LAST_BUCKET));
        }

        #[test]
        fn merging_equals_recording_together(a in prop::collection::vec(0u64..1_000_000, 0..50), b in prop::collection::vec(0u64..1_000_000, 0..50)) {
            let of = |values: &[u64]| {
                let mut sketch = Sketch::default();
                values.iter().for_each(|v| sketch.record_us(*v));
                sketch
            };
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }
    }

    #[test]
    fn extremes_stay_within_the_buckets() {
        let mut sketch = Sketch::default();
        sketch.record_us(0);
        sketch.record_us(u64::MAX);
        assert!(sketch.is_sound());
        assert_eq!(sketch.count(), 2);
    }
}
