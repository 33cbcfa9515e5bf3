//! Latency: does a canary get slower than its controls? One vote per device.

use super::observation::Vote;
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
