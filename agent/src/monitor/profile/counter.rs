//! One channel while it is counted: bins, moments, resemblance of neighbours, runs. Constant memory.

use edgefleet_shared::{
    ids::ChannelId,
    telemetry::{
        Channel, Moments,
        channel::{OTHER, bin_of},
    },
};
use std::collections::BTreeMap;

/// Digits of the numbers that go over the wire: two devices' worth of noise is far above the seventh.
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
        let Moments { n, mean, m2, min, max } = done.moments;
        let [mean, m2, min, max] = [mean, m2, min, max].map(|x| rounded(x, DIGITS));
        Channel {
            id: id.clone(),
            n: done.n,
            missing: done.missing,
            bins: done.bins,
            moments: Moments { n, mean, m2, min, max },
            categories,
            lag1: rounded(done.pairs.lag1(), 2),
            longest_run: done.longest,
        }
    }

    /// Exact, for a baseline.
    pub(super) fn moments(&self) -> Moments {
        self.moments
    }
}

/// To so many digits after the first; never turns the order of two numbers round.
pub(super) fn rounded(x: f64, digits: usize) -> f64 {
    format!("{x:.digits$e}").parse().unwrap_or(x)
}
