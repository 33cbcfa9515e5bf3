//! The anytime log-rank factor: was the device that failed next more often a canary than it should be?

use super::mixture::ln_mean_exp;
use serde::{Deserialize, Serialize};

/// Alternatives, as multiples of the margin: harm above it, safety below it (6.4 a).
const HARM: [f64; 5] = [1.5, 2.0, 3.0, 5.0, 10.0];
const SAFE: [f64; 5] = [0.1, 0.2, 0.4, 0.6, 0.8];

/// Sums of log factors per alternative, and the largest single factor of each.
///
/// One event among `n_c` canaries and `n_b` controls at risk falls on a canary with probability
/// `th(r) = r n_c / (r n_c + n_b)` where r is the true ratio of rates. The factor of alternative r_j is
/// `th(rho r_j)/th(rho)` for a canary and `(1-th(rho r_j))/(1-th(rho))` for a control; its expectation is
/// linear in the true th, equal to 1 at `th(rho)` and, for r_j > 1, at most 1 for every ratio up to rho.
/// The base rate cancels, so it may vary over time; `n_c` and `n_b` are those just before the event.
///
/// Source: `research/fleet-control.md` 6.4 (a); anytime-valid log-rank: ter Schure, Perez-Ortiz, Ly,
/// Gruenwald arXiv 2011.06931; counts: Lindon and Malek arXiv 2011.03567.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct LogRank {
    harm: [f64; 5],
    harm_peak: [f64; 5],
    safe: [f64; 5],
    safe_peak: [f64; 5],
}

impl LogRank {
    /// `count` events in one arm, each drawn with these numbers at risk.
    pub(super) fn draw(&mut self, is_canary: bool, count: f64, n_c: f64, n_b: f64, margin: f64) {
        if !(margin.is_finite() && margin > 0.0 && n_c > 0.0 && n_b > 0.0 && count > 0.0) {
            return; // With one arm empty every factor is 1: nothing to learn.
        }
        let th = |ratio: f64| ratio * n_c / (ratio * n_c + n_b);
        let factor = |ratio: f64| {
            let (one, null) = (th(margin * ratio), th(margin));
            if is_canary { (one / null).ln() } else { ((1.0 - one) / (1.0 - null)).ln() }
        };
        let add = |sums: &mut [f64; 5], peaks: &mut [f64; 5], ratios: [f64; 5]| {
            for ((sum, peak), ratio) in sums.iter_mut().zip(peaks).zip(ratios) {
                let log = factor(ratio);
                *sum = (*sum + count * log).clamp(-1e12, 1e12);
                *peak = peak.max(log);
            }
        };
        add(&mut self.harm, &mut self.harm_peak, HARM);
        add(&mut self.safe, &mut self.safe_peak, SAFE);
    }

    pub(super) fn ln_harm(&self) -> f64 {
        ln_mean_exp(self.harm)
    }

    pub(super) fn ln_safe(&self) -> f64 {
        ln_mean_exp(self.safe)
    }

    /// A lower bound of the e-value without any one device. A device has one event, whose factor is at
    /// most the largest seen; dividing each alternative by its own largest bounds every choice of device.
    pub(super) fn ln_harm_without_one(&self) -> f64 {
        ln_mean_exp([0, 1, 2, 3, 4].map(|j| self.harm[j] - self.harm_peak[j]))
    }

    pub(super) fn ln_safe_without_one(&self) -> f64 {
        ln_mean_exp([0, 1, 2, 3, 4].map(|j| self.safe[j] - self.safe_peak[j]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_next_event_is_expected_to_add_nothing_under_the_null(
            past in prop::collection::vec((any::<bool>(), 1u32..200, 1u32..600), 0..40),
            n_c in 1u32..200, n_b in 1u32..600, margin in 1.0..2.0f64, null in 0.01..1.0f64,
        ) {
            let mut now = LogRank::default();
            for (canary, c, b) in past {
                now.draw(canary, 1.0, f64::from(c), f64::from(b), margin);
            }
            let (n_c, n_b) = (f64::from(n_c), f64::from(n_b));
            let step = |canary: bool| {
                let mut next = now.clone();
                next.draw(canary, 1.0, n_c, n_b, margin);
                (next.ln_harm() - now.ln_harm(), next.ln_safe() - now.ln_safe())
            };
            let (canary, control) = (step(true), step(false));
            let mean = |ratio: f64, up: f64, down: f64| {
                let th = ratio * n_c / (ratio * n_c + n_b);
                th * up.exp() + (1.0 - th) * down.exp()
            };
            prop_assert!(mean(margin * null, canary.0, control.0) <= 1.0 + 1e-9);
            prop_assert!(mean(margin / null, canary.1, control.1) <= 1.0 + 1e-9);
        }
    }

    #[test]
    fn without_one_is_below_every_real_removal() {
        let events = [(true, 20.0, 60.0), (true, 3.0, 90.0), (false, 18.0, 60.0), (true, 18.0, 59.0)];
        let run = |skip: Option<usize>| {
            let mut all = LogRank::default();
            for (at, (canary, c, b)) in events.iter().enumerate() {
                if Some(at) != skip {
                    all.draw(*canary, 1.0, *c, *b, 1.25);
                }
            }
            all
        };
        for at in 0..events.len() {
            assert!(run(None).ln_harm_without_one() <= run(Some(at)).ln_harm() + 1e-12);
            assert!(run(None).ln_safe_without_one() <= run(Some(at)).ln_safe() + 1e-12);
        }
    }
}
