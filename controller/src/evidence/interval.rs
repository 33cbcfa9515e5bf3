//! Confidence sequences: intervals for plots and sentences that hold at every look. They carry no verdict.

use super::special::ln_beta;

/// Interval, at level `1 - alpha` over all time, of a proportion after `x` of `n`.
///
/// All p at which the beta-binomial mixture `B(x+1/2, n-x+1/2) / (B(1/2,1/2) p^x (1-p)^(n-x))` is below
/// `1/alpha`: the mixture is an e-process at the true p, so by Ville it is missed ever with probability at
/// most `alpha`. Valid when P(success | past) = p. Source: Robbins 1970; Howard et al. arXiv 1810.08240.
pub fn proportion(x: f64, n: f64, alpha: f64) -> (f64, f64) {
    let n = if n.is_finite() { n.clamp(0.0, 1e15) } else { 0.0 };
    let x = if x.is_finite() { x.clamp(0.0, n) } else { 0.0 };
    if n <= 0.0 || alpha.is_nan() || alpha <= 0.0 || alpha >= 1.0 {
        return (0.0, 1.0);
    }
    let mixture = ln_beta(x + 0.5, n - x + 0.5) - ln_beta(0.5, 0.5);
    let term = |count: f64, p: f64| if count > 0.0 { count * p.ln() } else { 0.0 };
    let out = |p: f64| mixture - term(x, p) - term(n - x, 1.0 - p) >= -alpha.ln();
    let search = |mut inside: f64, mut outside: f64| {
        if !out(outside) {
            return outside;
        }
        // To a billionth: nobody is shown more digits than three.
        for _ in 0..30 {
            let middle = 0.5 * (inside + outside);
            if out(middle) { outside = middle } else { inside = middle }
        }
        outside
    };
    let best = x / n;
    (search(best, 0.0), search(best, 1.0))
}

/// Interval of a ratio of rates from the share of events that fell on canaries: `share / (1 - share)`
/// divided by the mean odds of the risk sets (canaries over controls). Exact while those odds stay the
/// same; a description otherwise. Bounds saturate at 1e6.
pub fn ratio(canary: f64, control: f64, odds: f64, alpha: f64) -> (f64, f64, f64) {
    let (low, high) = proportion(canary, canary + control, alpha);
    let turn = |share: f64| {
        let ratio = share / (1.0 - share) / odds;
        if ratio.is_finite() { ratio.clamp(0.0, 1e6) } else { 1e6 }
    };
    let events = canary + control;
    let estimate = if events > 0.0 { turn(canary / events) } else { 1.0 };
    (estimate, turn(low), turn(high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intervals_hold_the_estimate_and_shrink() {
        let mut width = 1.0;
        for n in [10.0, 100.0, 1_000.0, 100_000.0] {
            let (low, high) = proportion(0.1 * n, n, 0.05);
            assert!(low < 0.1 && 0.1 < high && high - low < width, "{n}: {low} {high}");
            width = high - low;
        }
        assert_eq!(proportion(0.0, 0.0, 0.05), (0.0, 1.0));
        assert_eq!(proportion(0.0, 50.0, 0.05).0, 0.0);
    }

    proptest! {
        #[test]
        fn intervals_are_ordered_numbers(x in 0.0..1e9f64, more in 0.0..1e9f64, odds in 0.0..10.0f64) {
            let (low, high) = proportion(x, x + more, 0.05);
            prop_assert!((0.0..=1.0).contains(&low) && low <= high && high <= 1.0);
            let (estimate, low, high) = ratio(x, more, odds, 0.05);
            prop_assert!(low <= high && estimate.is_finite() && high <= 1e6, "{low} {estimate} {high}");
        }
    }
}
