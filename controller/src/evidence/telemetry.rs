//! Telemetry: is the candidate's arm silent more often? Missing reports count against the candidate.
//!
//! Drawn are the **silent** devices, by the conditional formula of [`LogRank`]: in a group of n_c canaries
//! and n_b controls whose time to report is over, each silent one is a canary with probability th(r).
//! Counting the ones that did report (the sample-ratio test of 6.4 e) sees the same loss far later: 4
//! silent of 20 canaries beside 60 reporting controls move the share of reporters from 25 % to 21 %, while
//! all 4 silent ones are canaries. Valid if devices go silent independently given the rate and each device
//! is counted once; given the sum of silent devices the count is hypergeometric at ratio 1, and a convex
//! function of it has at most its binomial expectation (Hoeffding 1963), so factors of whole groups hold.
//!
//! Source: `research/fleet-control.md` 6.4 (a) and (e).

use super::logrank::LogRank;
use super::observation::Reporting;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Telemetry {
    silent: LogRank,
    pub(super) canary_expected: u64,
    pub(super) canary_silent: u64,
    pub(super) control_expected: u64,
    pub(super) control_silent: u64,
}

impl Telemetry {
    pub(super) fn add(&mut self, canary: Reporting, control: Reporting, margin: f64) {
        let silent = |r: Reporting| r.expected.saturating_sub(r.received);
        let (n_c, n_b) = (f64::from(canary.expected), f64::from(control.expected));
        self.silent.draw(true, f64::from(silent(canary)), n_c, n_b, margin);
        self.silent.draw(false, f64::from(silent(control)), n_c, n_b, margin);
        self.canary_expected = self.canary_expected.saturating_add(u64::from(canary.expected));
        self.control_expected = self.control_expected.saturating_add(u64::from(control.expected));
        self.canary_silent = self.canary_silent.saturating_add(u64::from(silent(canary)));
        self.control_silent = self.control_silent.saturating_add(u64::from(silent(control)));
    }

    pub(super) fn ln_harm(&self) -> (f64, f64) {
        (self.silent.ln_harm(), self.silent.ln_harm_without_one())
    }

    /// Share of the expected canaries that reported; 0 if none was expected.
    pub(super) fn coverage(&self) -> f64 {
        if self.canary_expected == 0 {
            return 0.0;
        }
        1.0 - self.canary_silent as f64 / self.canary_expected as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::special::ln_beta;
    use super::*;
    use proptest::prelude::*;

    fn ln_choose(n: u32, k: u32) -> f64 {
        let (n, k) = (f64::from(n), f64::from(k));
        -(n + 1.0).ln() - ln_beta(k + 1.0, n - k + 1.0)
    }

    proptest! {
        #[test]
        fn a_group_is_expected_to_add_nothing_up_to_the_margin(
            n_c in 1u32..14, n_b in 1u32..30, share in 0.01..0.79f64, below in 0.0..1.0f64,
        ) {
            // Exact expectation over independent silent devices: canaries at most 1.25 times the controls' share.
            let (p_b, p_c) = (share, share * 1.25 * below);
            let ln_p = |n: u32, k: u32, p: f64| ln_choose(n, k) + f64::from(k) * p.max(1e-300).ln() + f64::from(n - k) * (-p).ln_1p();
            let mut mean = 0.0;
            for k_c in 0..=n_c {
                for k_b in 0..=n_b {
                    let mut telemetry = Telemetry::default();
                    let group = |n: u32, k: u32| Reporting { expected: n, received: n - k };
                    telemetry.add(group(n_c, k_c), group(n_b, k_b), 1.25);
                    mean += (ln_p(n_c, k_c, p_c) + ln_p(n_b, k_b, p_b) + telemetry.ln_harm().0).exp();
                }
            }
            prop_assert!(mean <= 1.0 + 1e-6, "{mean}");
        }
    }

    #[test]
    fn silence_of_the_canaries_alone_is_found_and_common_silence_is_not() {
        for (canaries, controls, found) in
            [(20, 60, false), (12, 60, false), (10, 60, true), (16, 48, false), (20, 40, false)]
        {
            let mut telemetry = Telemetry::default();
            let canary = Reporting { expected: 20, received: canaries };
            telemetry.add(canary, Reporting { expected: 60, received: controls }, 1.25);
            assert_eq!(
                telemetry.ln_harm().1 > 1000_f64.ln(),
                found,
                "{canaries} {controls}: {:?}",
                telemetry.ln_harm()
            );
        }
    }
}
