//! Accuracy, from labels: inputs where exactly one of incumbent and candidate is right (McNemar's pairs).

use super::bounded::{Influence, Slices};
use super::mixture::{ln_mean_exp, ln_sign, thin};
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};

/// Stakes of the bet against a drop in accuracy.
const STAKES: [f64; 5] = [0.05, 0.1, 0.2, 0.4, 0.8];

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Accuracy {
    pub(super) wins: f64,
    pub(super) losses: f64,
    pub(super) ties: f64,
    pub(super) right: f64,
    winning: Influence,
    losing: Influence,
    tying: Influence,
    pub(super) slices: Slices,
    /// Labels of sources that the plan does not name.
    pub(super) ignored: u64,
}

/// Labels of one device window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Labelled {
    pub(super) both_right: u64,
    pub(super) both_wrong: u64,
    pub(super) wins: u64,
    pub(super) losses: u64,
}

impl Labelled {
    pub(super) fn n(self) -> u64 {
        [self.both_right, self.both_wrong, self.wins, self.losses].into_iter().fold(0, u64::saturating_add)
    }
}

impl Accuracy {
    pub(super) fn add(&mut self, device: &DeviceId, stratum: &str, labels: Labelled, per_window: u32) {
        let scale = thin(labels.n(), per_window);
        let [wins, losses, right, wrong] = [labels.wins, labels.losses, labels.both_right, labels.both_wrong]
            .map(|count| count as f64 * scale);
        self.wins += wins;
        self.losses += losses;
        self.ties += right + wrong;
        self.right += right;
        self.winning.add(device, wins);
        self.losing.add(device, losses);
        self.tying.add(device, right + wrong);
        self.slices.add(stratum, losses, wins + losses + right + wrong);
    }

    /// ln E against "among discordant inputs the candidate is right at least half the time": the sign
    /// test e(losses, wins), valid when P(loss | past, discordant) <= 1/2 (DECISIONS 24).
    pub(super) fn ln_harm(&self) -> (f64, f64) {
        let at = |losses: f64| ln_sign(losses, self.wins);
        (at(self.losses), at(self.losses - self.losing.most()))
    }

    /// ln E against "accuracy falls by at least `max_drop`".
    ///
    /// Half of the stake on the sign test e(wins, losses): only a better candidate earns there, soon. Half
    /// on a bet that holds for an equal one too: with D = 1 for a loss, -1 for a win, 0 otherwise, the
    /// factor `1 + stake (max_drop - D)` has expectation at most 1 whenever E[D | past] >= max_drop, and
    /// is above 0 for every stake up to 1. A better or equal model passes; neither needs the other's data.
    ///
    /// Source: betting on a mean, Waudby-Smith and Ramdas arXiv 2010.09686; sign test 6.4 (b).
    pub(super) fn ln_safe(&self, max_drop: f64) -> (f64, f64) {
        let at = |wins: f64, ties: f64| {
            let (wins, ties) = (wins.max(0.0), ties.max(0.0));
            let bet = ln_mean_exp(STAKES.map(|stake| {
                let ln = |d: f64| (stake * (max_drop - d)).max(-0.999_999).ln_1p();
                wins * ln(-1.0) + self.losses * ln(1.0) + ties * ln(0.0)
            }));
            ln_mean_exp([ln_sign(wins, self.losses), bet])
        };
        // Removing a device takes at most these; its losses, if any, would only raise the value.
        (at(self.wins, self.ties), at(self.wins - self.winning.most(), self.ties - self.tying.most()))
    }

    pub(super) fn losing_devices(&self) -> u32 {
        self.losing.devices()
    }

    /// Devices that speak for the candidate, at least.
    pub(super) fn safe_devices(&self) -> u32 {
        self.winning.devices().max(self.tying.devices())
    }

    pub(super) fn n(&self) -> f64 {
        self.wins + self.losses + self.ties
    }

    pub(super) fn examples(&self) -> Vec<DeviceId> {
        self.losing.examples(5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(wins: f64, losses: f64, ties: f64) -> Accuracy {
        Accuracy { wins, losses, ties, ..Accuracy::default() }
    }

    #[test]
    fn equal_and_better_models_are_safe_and_worse_ones_harm() {
        for (wins, losses, ties, safe, harm) in [
            (0.0, 0.0, 0.0, false, false),
            (0.0, 0.0, 400.0, true, false),
            (9.0, 0.0, 10.0, true, false),
            (60.0, 20.0, 500.0, true, false),
            (20.0, 60.0, 500.0, false, true),
            (2.0, 3.0, 40.0, false, false),
        ] {
            let labels = with(wins, losses, ties);
            assert_eq!(labels.ln_safe(0.02).0 >= 20_f64.ln(), safe, "{wins} {losses} {ties}");
            assert_eq!(labels.ln_harm().0 >= 300_f64.ln(), harm, "{wins} {losses} {ties}");
        }
    }

    proptest! {
        #[test]
        fn the_next_label_is_expected_to_add_nothing_under_the_null(
            wins in 0u32..200, losses in 0u32..200, ties in 0u32..2000, drop in 0.001..0.3f64, p_win in 0.0..0.3f64,
        ) {
            let (w, l, t) = (f64::from(wins), f64::from(losses), f64::from(ties));
            let now = with(w, l, t);
            let p_loss = p_win + drop;
            let step = |next: Accuracy| (next.ln_safe(drop).0 - now.ln_safe(drop).0).exp();
            let mean = p_win * step(with(w + 1.0, l, t))
                + p_loss * step(with(w, l + 1.0, t))
                + (1.0 - p_win - p_loss) * step(with(w, l, t + 1.0));
            prop_assert!(mean <= 1.0 + 1e-9, "{mean}");
        }
    }
}
