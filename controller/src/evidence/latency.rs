//! Latency: does a canary get slower than its controls? One vote per device.

use super::bounded::Slices;
use super::mixture::{ln_bernoulli, ln_sign, thin};
use super::observation::Vote;
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};

/// A device's p95 before and after the switch, in milliseconds; for controls, over the same two spans.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BeforeAfter {
    pub before_ms: f64,
    pub after_ms: f64,
}

impl BeforeAfter {
    /// After over before; `None` unless both are finite and above 0.
    fn ratio(self) -> Option<f64> {
        let ratio = self.after_ms / self.before_ms;
        (self.before_ms > 0.0 && self.after_ms > 0.0 && ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }
}

/// The vote of one canary: its own ratio against `factor` times the **median** ratio of its own controls.
///
/// Every device is its own baseline, so neither its speed nor the scale or tail of its latencies matter.
/// If the candidate is not slower, own ratio and controls' ratios are exchangeable and `Slower` has
/// probability at most 1/2 for `factor >= 1` (for an even number of controls the lower median is taken
/// for a loss and the upper for a win, and what lies between is a tie, which keeps this exact).
/// No usable control, or no usable figures: `Tie`.
///
/// Source: `research/fleet-control.md` 6.4 (b), verdict 2.
pub fn latency_vote(own: BeforeAfter, controls: &[BeforeAfter], factor: f64) -> Vote {
    let mut ratios: Vec<f64> = controls.iter().filter_map(|c| c.ratio()).collect();
    ratios.sort_by(f64::total_cmp);
    let (Some(own), Some(low), Some(high)) =
        (own.ratio(), ratios.get(ratios.len().wrapping_sub(1) / 2), ratios.get(ratios.len() / 2))
    else {
        return Vote::Tie;
    };
    if own > factor * high {
        Vote::Slower
    } else if own < factor * low {
        Vote::NotSlower
    } else {
        Vote::Tie
    }
}

/// Alternatives of the alarm on single results.
const EXCEED: [f64; 4] = [1.4, 2.0, 3.4, 6.7];

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) slower: u32,
    pub(super) not_slower: u32,
    pub(super) ties: u32,
    over: f64,
    under: f64,
    pub(super) examples: Vec<DeviceId>,
    pub(super) slices: Slices,
}

impl Latency {
    pub(super) fn vote(&mut self, device: &DeviceId, stratum: &str, vote: Vote) {
        let count = match vote {
            Vote::Slower => &mut self.slower,
            Vote::NotSlower => &mut self.not_slower,
            Vote::Tie => &mut self.ties,
        };
        *count = count.saturating_add(1);
        match vote {
            Vote::Slower => {
                self.slices.add(stratum, 1.0, 1.0);
                if !self.examples.contains(device) {
                    self.examples.truncate(4);
                    self.examples.insert(0, device.clone());
                }
            }
            Vote::NotSlower => self.slices.add(stratum, 0.0, 1.0),
            Vote::Tie => {}
        }
    }

    pub(super) fn exceeded(&mut self, n: u64, x: u64, per_window: u32) {
        let scale = thin(n, per_window);
        let x = x.min(n);
        self.over += x as f64 * scale;
        self.under += (n - x) as f64 * scale;
    }

    /// ln E against "a canary is slower with probability at most 1/2", and without one vote.
    /// The sign test e(slower, not slower); each device votes once, so one vote is one device.
    pub(super) fn ln_harm(&self) -> (f64, f64) {
        let (w, l) = (f64::from(self.slower), f64::from(self.not_slower));
        (ln_sign(w, l), ln_sign((w - 1.0).max(0.0), l))
    }

    /// The mirror image: against "a canary is slower with probability at least 1/2".
    pub(super) fn ln_safe(&self) -> (f64, f64) {
        let (w, l) = (f64::from(self.slower), f64::from(self.not_slower));
        (ln_sign(l, w), ln_sign((l - 1.0).max(0.0), w))
    }

    /// ln E against "at most `share` of results exceed the frozen threshold": for alarms only, since a
    /// slow device exceeds in every window (DECISIONS 23).
    pub(super) fn ln_exceed(&self, share: f64) -> f64 {
        ln_bernoulli(self.over, self.under, share.min(0.9), &EXCEED)
    }

    pub(super) fn exceed_share(&self) -> f64 {
        let n = self.over + self.under;
        if n > 0.0 { self.over / n } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(before_ms: f64, after_ms: f64) -> BeforeAfter {
        BeforeAfter { before_ms, after_ms }
    }

    #[test]
    fn a_vote_compares_with_the_median_of_the_controls() {
        let controls = [at(10.0, 10.0), at(40.0, 44.0), at(20.0, 60.0)];
        for (own, wanted) in [
            (at(8.0, 8.0), Vote::NotSlower),
            (at(8.0, 9.6), Vote::NotSlower),
            (at(8.0, 9.8), Vote::Slower),
            (at(8.0, 24.0), Vote::Slower),
            (at(0.0, 24.0), Vote::Tie),
            (at(f64::NAN, 24.0), Vote::Tie),
        ] {
            assert_eq!(latency_vote(own, &controls, 1.1), wanted, "{own:?}");
        }
        assert_eq!(latency_vote(at(8.0, 80.0), &[], 1.1), Vote::Tie);
        assert_eq!(latency_vote(at(8.0, 80.0), &[at(0.0, 1.0), at(1.0, f64::INFINITY)], 1.1), Vote::Tie);
    }

    proptest! {
        #[test]
        fn exchangeable_devices_win_at_most_half_the_votes(ratios in prop::collection::vec(0.2..5.0f64, 2..7)) {
            // Each device in turn is the canary, the others its controls: under exchangeability the
            // probability of a win is the share of wins over the turns.
            let devices: Vec<_> = ratios.iter().map(|r| at(1.0, *r)).collect();
            let votes: Vec<_> = (0..devices.len()).map(|own| {
                let controls: Vec<_> = devices.iter().enumerate().filter(|(i, _)| *i != own).map(|(_, d)| *d).collect();
                latency_vote(devices[own], &controls, 1.0)
            }).collect();
            let slower = votes.iter().filter(|v| **v == Vote::Slower).count();
            let not = votes.iter().filter(|v| **v == Vote::NotSlower).count();
            prop_assert!(slower <= not, "{slower} {not} {ratios:?}");
        }
    }
}
