//! One channel while it is counted: bins, moments, resemblance of neighbours, runs. Constant memory.

use edgefleet_shared::{
    ids::ChannelId,
    telemetry::{
        Channel, Moments,
        channel::{OTHER, bin_of},
    },
};
use std::collections::BTreeMap;

/// Digits of numbers that do not scatter.
const DIGITS: usize = 6;

/// Beyond it the square of a number is none any more; such a value counts as missing.
const LARGEST: f64 = 1e100;

pub(super) struct Counter {
    n: u64,
    missing: u64,
    edges: Vec<f64>,
    bins: Vec<u64>,
    /// Counts by number of the category, `other` last; empty for numbers.
    categories: Vec<u64>,
    moments: Moments,
    pairs: Pairs,
    run: u64,
    longest: u64,
}

/// Sums over neighbouring values, less the first value so that a large offset costs no digits.
#[derive(Default)]
struct Pairs {
    n: f64,
    origin: f64,
    before: Option<f64>,
    x: f64,
    y: f64,
    xx: f64,
    yy: f64,
    xy: f64,
}

impl Pairs {
    fn take(&mut self, value: f64) {
        let Some(before) = self.before.replace(value) else {
            self.origin = value;
            return;
        };
        let (x, y) = (before - self.origin, value - self.origin);
        self.n += 1.0;
        self.x += x;
        self.y += y;
        self.xx += x * x;
        self.yy += y * y;
        self.xy += x * y;
    }
    /// Pearson's correlation of a value with the next one; 0 where there is none to speak of.
    fn lag1(&self) -> f64 {
        let n = self.n.max(1.0);
        let (a, b) = (self.xx - self.x * self.x / n, self.yy - self.y * self.y / n);
        let r = (self.xy - self.x * self.y / n) / (a * b).sqrt();
        // Two pairs always lie on a line.
        if self.n >= 3.0 && a > 0.0 && b > 0.0 && r.is_finite() { r.clamp(-1.0, 1.0) } else { 0.0 }
    }
}

impl Counter {
    pub(super) fn numbers(edges: Vec<f64>) -> Self {
        let bins = if edges.is_empty() { vec![] } else { vec![0; edges.len() + 1] };
        Self {
            n: 0,
            missing: 0,
            edges,
            bins,
            categories: vec![],
            moments: Moments::default(),
            pairs: Pairs::default(),
            run: 0,
            longest: 0,
        }
    }
    /// `known` are told apart, what is none of them is one more.
    pub(super) fn categories(known: usize) -> Self {
        Self { categories: vec![0; known + 1], ..Self::numbers(vec![]) }
    }

    pub(super) fn take(&mut self, value: f64) {
        if !value.is_finite() || value.abs() > LARGEST {
            self.missing += 1;
            return;
        }
        self.n += 1;
        self.run = if self.pairs.before == Some(value) { self.run + 1 } else { 1 };
        self.longest = self.longest.max(self.run);
        if self.categories.is_empty() {
            if let Some(bin) = self.bins.get_mut(bin_of(&self.edges, value)) {
                *bin += 1;
            }
            self.moments.take(value);
            self.pairs.take(value);
        } else {
            let number = (value as usize).min(self.categories.len() - 1);
            self.categories[number] += 1;
            self.pairs.before = Some(value);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.n == 0 && self.missing == 0
    }

    /// What was counted; it begins anew.
    pub(super) fn cut(&mut self, id: &ChannelId, names: &[String]) -> Channel {
        let is_category = !self.categories.is_empty();
        let fresh = match is_category {
            true => Self::categories(self.categories.len() - 1),
            false => Self::numbers(std::mem::take(&mut self.edges)),
        };
        let done = std::mem::replace(self, fresh);
        let counted = names.iter().map(String::as_str).chain([OTHER]).zip(&done.categories);
        let categories: BTreeMap<_, _> =
            counted.filter(|(_, n)| **n > 0).map(|(name, n)| (name.to_owned(), *n)).collect();
        Channel {
            id: id.clone(),
            n: done.n,
            missing: done.missing,
            bins: done.bins,
            moments: brief(done.moments),
            categories,
            // Of a few hundred rows it is known to some hundredths.
            lag1: (100.0 * done.pairs.lag1()).round() / 100.0,
            longest_run: done.longest,
        }
    }

    /// Exact, for a baseline.
    pub(super) fn moments(&self) -> Moments {
        self.moments
    }
}

/// With the digits that can matter: the mean to a thousandth of the spread or finer, the extremes to a tenth, outwards,
/// so that the mean stays between them. Digits of chance would be most of a profile's bytes.
fn brief(moments: Moments) -> Moments {
    let Moments { n, mean, m2, min, max } = moments;
    let few = || {
        let [mean, m2, min, max] = [mean, m2, min, max].map(|x| rounded(x, DIGITS));
        Moments { n, mean, m2, min, max }
    };
    let Some(std) = moments.std().filter(|std| std.is_normal()) else { return few() };
    // Places behind the point at which one is between a hundredth and a tenth of the spread.
    let places = 1 - std.log10().floor() as i32;
    let at = |x: f64, places: i32, whole: fn(f64) -> f64| match places {
        0.. => whole(x * 10f64.powi(places)) / 10f64.powi(places),
        _ => whole(x / 10f64.powi(-places)) * 10f64.powi(-places),
    };
    let brief = Moments {
        n,
        mean: at(mean, places + 2, f64::round),
        m2: rounded(m2, 3),
        min: at(min, places, f64::floor),
        max: at(max, places, f64::ceil),
    };
    // Powers of ten beyond 22 are not exact, and an offset may be far larger than the spread.
    let is_exact = places.abs() < 21 && [min, max].iter().all(|x| x.abs() < 1e9 * std);
    if is_exact && brief.is_sound() { brief } else { few() }
}

/// To so many digits after the first; never turns the order of two numbers round.
pub(super) fn rounded(x: f64, digits: usize) -> f64 {
    format!("{x:.digits$e}").parse().unwrap_or(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn brief_moments_are_sound_and_near(
            values in prop::collection::vec(-1.0..1.0f64, 1..60), scale in -30..30i32, offset in -1e4..1e4f64,
        ) {
            let mut exact = Moments::default();
            values.iter().for_each(|x| exact.take((x + offset) * 10f64.powi(scale)));
            let brief = brief(exact);
            prop_assert!(brief.is_sound() && brief.n == exact.n, "{brief:?} of {exact:?}");
            let spread = exact.std().unwrap_or(0.0);
            let slack = 1e-6 * exact.mean.abs().max(exact.min.abs()).max(exact.max.abs());
            prop_assert!((brief.mean - exact.mean).abs() <= spread / 1_000.0 + slack, "{brief:?} of {exact:?}");
            prop_assert!((brief.m2 - exact.m2).abs() <= exact.m2 / 1_000.0, "{brief:?} of {exact:?}");
            for (near, far) in [(brief.min, exact.min), (brief.max, exact.max)] {
                prop_assert!((near - far).abs() <= spread / 10.0 + slack, "{brief:?} of {exact:?}");
            }
        }
    }

    #[test]
    fn numbers_on_the_wire_are_short() {
        let mut exact = Moments::default();
        (0..1_000).for_each(|n| exact.take(f64::from(n as f32 * 0.37 % 7.3)));
        let text = serde_json::to_string(&brief(exact)).unwrap();
        assert!(text.len() < 58, "{text}");
    }
}
