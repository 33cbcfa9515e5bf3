//! Shares with exact bounds.

use serde::Serialize;

/// `hits` of `n`, with the two-sided 98 % Clopper-Pearson interval: each bound alone holds with 99 %.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rate {
    pub hits: u64,
    pub n: u64,
    pub low: f64,
    pub high: f64,
}

/// Chance, on either side, that the truth lies beyond the bound.
const BEYOND: f64 = 0.01;

impl Rate {
    pub fn of(hits: u64, n: u64) -> Self {
        let hits = hits.min(n);
        if n == 0 {
            return Self { hits, n, low: 0.0, high: 1.0 };
        }
        // P(X >= hits | low) = BEYOND and P(X <= hits | high) = BEYOND.
        let low = if hits == 0 { 0.0 } else { solve(|p| 1.0 - at_most(hits - 1, n, p) >= BEYOND) };
        let high = if hits == n { 1.0 } else { solve(|p| at_most(hits, n, p) <= BEYOND) };
        Self { hits, n, low, high }
    }
    pub fn share(self) -> f64 {
        if self.n == 0 { 0.0 } else { self.hits as f64 / self.n as f64 }
    }
}

/// The smallest p in [0, 1] at which the rising condition holds.
fn solve(reached: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if reached(middle) { high = middle } else { low = middle }
    }
    high
}

/// P(X <= k) of a binomial of n at p, summed from the largest term down.
fn at_most(k: u64, n: u64, p: f64) -> f64 {
    if p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return if k >= n { 1.0 } else { 0.0 };
    }
    let odds = p / (1.0 - p);
    // From X = 0 upwards in logarithms: n is at most some ten thousands.
    let mut ln = n as f64 * (1.0 - p).ln();
    let mut sum = ln.exp();
    for i in 0..k {
        ln += ((n - i) as f64 / (i + 1) as f64 * odds).ln();
        sum += ln.exp();
    }
    sum.min(1.0)
}

/// The middle of what is there; `None` of nothing.
pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (n > 0).then(|| 0.5 * (values[(n - 1) / 2] + values[n / 2]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_those_of_the_tables() {
        // scipy.stats.beta.ppf([0.01, 0.99], ...) of Clopper and Pearson's formula.
        for (hits, n, low, high) in [
            (0, 10_000, 0.0, 0.000_460_4),
            (100, 10_000, 0.007_823, 0.012_570),
            (5, 10, 0.150_4, 0.849_6),
            (10, 10, 0.631, 1.0),
        ] {
            let rate = Rate::of(hits, n);
            assert!(
                (rate.low - low).abs() < 2e-4 && (rate.high - high).abs() < 2e-4,
                "{hits} of {n}: {rate:?}"
            );
        }
    }
}
