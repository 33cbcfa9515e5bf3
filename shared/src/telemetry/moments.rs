//! Count, mean, spread and extremes of a number, mergeable without error.
//!
//! Source: Welford, Technometrics 4 (1962) for one value; Chan, Golub, LeVeque, Technical Report
//! STAN-CS-79-773 (1979) for the merge.

use serde::{Deserialize, Serialize};

/// Of finite values; the value's own unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Moments {
    pub n: u64,
    pub mean: f64,
    /// Sum of squared deviations from the mean.
    pub m2: f64,
    /// 0 while `n` is 0.
    pub min: f64,
    pub max: f64,
}

impl Moments {
    /// Values that are not finite are the caller's to count.
    pub fn take(&mut self, x: f64) {
        self.n += 1;
        if self.n == 1 {
            *self = Self { n: 1, mean: x, m2: 0.0, min: x, max: x };
            return;
        }
        let before = x - self.mean;
        self.mean += before / self.n as f64;
        self.m2 += before * (x - self.mean);
        self.min = self.min.min(x);
        self.max = self.max.max(x);
    }

    pub fn merge(&mut self, other: &Self) {
        if other.n == 0 {
            return;
        }
        if self.n == 0 {
            *self = *other;
            return;
        }
        let n = self.n.saturating_add(other.n);
        let apart = other.mean - self.mean;
        let share = other.n as f64 / n as f64;
        self.m2 += other.m2 + apart * apart * share * self.n as f64;
        self.mean += apart * share;
        self.n = n;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Of the sample (divides by n - 1); `None` below two values.
    pub fn variance(&self) -> Option<f64> {
        (self.n >= 2).then(|| self.m2 / (self.n - 1) as f64)
    }
    pub fn std(&self) -> Option<f64> {
        self.variance().map(f64::sqrt)
    }

    /// Whether the numbers can belong together; a device may claim anything.
    pub fn is_sound(&self) -> bool {
        let finite = [self.mean, self.m2, self.min, self.max].iter().all(|x| x.is_finite());
        // The mean of equal values may differ from them in the last place.
        let slack = 1e-9 * (self.min.abs() + self.max.abs());
        finite
            && self.m2 >= 0.0
            && self.min <= self.max
            && (self.n == 0 || (self.min - slack <= self.mean && self.mean <= self.max + slack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[f64]) -> Moments {
        let mut moments = Moments::default();
        values.iter().for_each(|x| moments.take(*x));
        moments
    }

    proptest! {
        #[test]
        fn merging_equals_taking_together(
            a in prop::collection::vec(-1e6..1e6f64, 0..60),
            b in prop::collection::vec(-1e6..1e6f64, 0..60),
        ) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            let all = of(&[a, b].concat());
            prop_assert!(merged.is_sound() && all.is_sound());
            prop_assert_eq!((merged.n, merged.min, merged.max), (all.n, all.min, all.max));
            prop_assert!((merged.mean - all.mean).abs() <= 1e-6);
            prop_assert!((merged.m2 - all.m2).abs() <= 1e-9 * all.m2.max(1.0));
        }
    }

    #[test]
    fn a_large_offset_does_not_swallow_the_spread() {
        let values: Vec<_> = (0..1_000).map(|n| 1e9 + f64::from(n % 2)).collect();
        let moments = of(&values);
        assert!((moments.std().unwrap() - 0.5).abs() < 1e-3, "{moments:?}");
        assert_eq!((of(&[]).std(), of(&[1.0]).std()), (None, None));
    }

    #[test]
    fn impossible_claims_are_seen() {
        let sound = of(&[1.0, 2.0]);
        assert!(sound.is_sound() && Moments::default().is_sound());
        for odd in [
            Moments { m2: -1.0, ..sound },
            Moments { mean: f64::NAN, ..sound },
            Moments { mean: 9.0, ..sound },
            Moments { min: 3.0, ..sound },
            Moments { max: f64::INFINITY, ..sound },
        ] {
            assert!(!odd.is_sound(), "{odd:?}");
        }
    }
}
