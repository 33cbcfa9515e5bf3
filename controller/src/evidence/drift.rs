//! Drift: does the candidate answer with another mix of classes than the controls do?
//!
//! Significance alone fires on any shift once there is enough data, so a verdict needs an effect as well:
//! the population stability index. And a mix of classes belongs to a place: arms that see different scenes
//! drift without fault. Randomised assignment makes them alike on average, the effect's floor and three
//! devices do the rest; `research/fleet-control.md` 7 names the PSI limits a convention.

use super::bounded::{Influence, label};
use super::mixture::{ln_mean_exp, thin};
use super::observation::Arm;
use super::special::ln_gamma;
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Classes told apart; the rest count as one.
const CLASSES: usize = 16;
const REST: &str = "others";
/// Stakes of the bets on each class's share, both directions.
const STAKES: [f64; 4] = [-0.75, -0.25, 0.25, 0.75];
/// Canary devices that may share one comparison while no control has reported.
const WAITING: usize = 4;

/// One class: totals of both arms, the comparison that is filling, and the log of each bet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Class {
    name: String,
    total: [f64; 2],
    open: [f64; 2],
    bets: [f64; 4],
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Drift {
    classes: Vec<Class>,
    open: [f64; 2],
    waiting: Vec<DeviceId>,
    influence: Influence,
    canaries: Influence,
}

impl Drift {
    pub(super) fn add(
        &mut self,
        device: &DeviceId,
        arm: Arm,
        classes: &BTreeMap<String, u64>,
        per_window: u32,
    ) {
        let n = classes.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
        if n == 0 {
            return;
        }
        let scale = thin(n, per_window);
        let side = usize::from(arm == Arm::Control);
        let joins = arm == Arm::Control || self.waiting.len() < WAITING || self.waiting.contains(device);
        for (name, count) in classes.iter().take(1024).filter(|(_, count)| **count > 0) {
            let weight = *count as f64 * scale;
            let at = self.place(name);
            if let Some(class) = self.classes.get_mut(at) {
                class.total[side] += weight;
                class.open[side] += if joins { weight } else { 0.0 };
            }
            self.open[side] += if joins { weight } else { 0.0 };
        }
        if arm == Arm::Canary {
            self.canaries.add(device, n as f64 * scale);
            if joins && !self.waiting.contains(device) {
                self.waiting.push(device.clone());
            }
        }
        self.close();
    }

    fn place(&mut self, name: &str) -> usize {
        let name = label(name);
        let find = |classes: &[Class], wanted: &str| classes.iter().position(|c| c.name == wanted);
        if let Some(at) = find(&self.classes, &name) {
            return at;
        }
        let name = if self.classes.len() + 1 < CLASSES { name } else { REST.to_owned() };
        find(&self.classes, &name).unwrap_or_else(|| {
            self.classes.push(Class { name, ..Class::default() });
            self.classes.len() - 1
        })
    }

    /// Once both arms have reported: one comparison of shares, then a fresh start of both.
    ///
    /// For class i, D_i = canary share - control share of this comparison. Each bet `1 + stake D_i` has
    /// expectation 1 if both arms have the same expected share given the past, **whatever** the dependence
    /// inside the windows: no count is taken for independent. Both sides start afresh each time, since a
    /// control share already seen would be a known offset.
    fn close(&mut self) {
        let [canary, control] = self.open;
        if canary <= 0.0 || control <= 0.0 {
            return;
        }
        let mut largest = 0.0_f64;
        for class in &mut self.classes {
            let d = (class.open[0] / canary - class.open[1] / control).clamp(-1.0, 1.0);
            largest = largest.max(d.abs());
            for (bet, stake) in class.bets.iter_mut().zip(STAKES) {
                *bet = (*bet + (stake * d).ln_1p()).clamp(-1e12, 1e12);
            }
            class.open = [0.0; 2];
        }
        // No bet can have gained more than this from the comparison.
        let weight = (0.75 * largest).ln_1p();
        for device in self.waiting.drain(..) {
            self.influence.add(&device, weight);
        }
        self.open = [0.0; 2];
    }

    /// ln E against "both arms answer alike", and without the most influential canary. The mean over a
    /// fixed number of classes and stakes is an e-process. Removing a canary from its comparisons takes
    /// from each bet at most what those comparisons can have gained, `influence.most()`.
    pub(super) fn ln_harm(&self) -> (f64, f64) {
        let mut logs = [0.0; CLASSES * STAKES.len()];
        for (log, bet) in logs.iter_mut().zip(self.classes.iter().flat_map(|class| class.bets)) {
            *log = bet;
        }
        (ln_mean_exp(logs), ln_mean_exp(logs) - self.influence.most())
    }

    pub(super) fn totals(&self) -> [f64; 2] {
        self.classes.iter().fold([0.0; 2], |sum, class| [sum[0] + class.total[0], sum[1] + class.total[1]])
    }

    /// PSI of canaries against controls over everything seen, less what sampling alone is expected to
    /// give (`(classes - 1) (1/n_c + 1/n_b)`); never below 0.
    pub(super) fn psi(&self) -> f64 {
        let [n_c, n_b] = self.totals();
        if n_c <= 0.0 || n_b <= 0.0 {
            return 0.0;
        }
        let pairs: Vec<_> = self.classes.iter().map(|c| (c.total[0] / n_c, c.total[1] / n_b)).collect();
        let noise = (pairs.len() as f64 - 1.0) * (1.0 / n_c + 1.0 / n_b);
        (population_stability(&pairs) - noise).max(0.0)
    }

    pub(super) fn devices(&self) -> u32 {
        self.canaries.devices()
    }

    pub(super) fn examples(&self) -> Vec<DeviceId> {
        self.influence.examples(5)
    }

    /// The three classes whose shares differ most: (name, canary answers, of all canary answers).
    pub(super) fn worst(&self) -> Vec<super::Slice> {
        let [n_c, n_b] = self.totals();
        if n_c <= 0.0 || n_b <= 0.0 {
            return Vec::new();
        }
        let apart = |c: &Class| (c.total[0] / n_c - c.total[1] / n_b).abs();
        let mut all: Vec<_> = self.classes.iter().collect();
        all.sort_by(|a, b| apart(b).total_cmp(&apart(a)).then_with(|| a.name.cmp(&b.name)));
        all.into_iter()
            .take(3)
            .map(|c| super::Slice { name: c.name.clone(), bad: c.total[0], of: n_c })
            .collect()
    }
}

/// PSI = sum (p - q) ln(p/q) over pairs of shares, each at least 1e-4.
pub fn population_stability(pairs: &[(f64, f64)]) -> f64 {
    pairs
        .iter()
        .map(|(p, q)| {
            let (p, q) = (p.max(1e-4), q.max(1e-4));
            (p - q) * (p / q).ln()
        })
        .sum()
}

/// ln E of counts against known shares: the Dirichlet-multinomial mixture with a_i = k share_i.
///
/// `[G(A)/G(A+N)] prod_i G(a_i+n_i)/G(a_i) prod_i share_i^(-n_i)`. An e-process if every draw has these
/// shares given the past, so thin dependent samples first. For comparing with a bundle's **reference**
/// histogram; canaries against controls, whose shares are unknown, go by bets. Shares of 0 count as 1e-4.
/// Extra entries of the longer list are ignored.
///
/// Source: Lindon and Malek arXiv 2011.03567 (optimizely/ssrm); `research/fleet-control.md` 6.4 (c).
pub fn ln_dirichlet_multinomial(counts: &[f64], shares: &[f64], k: f64) -> f64 {
    let pairs = || counts.iter().zip(shares).map(|(n, share)| (n.clamp(0.0, 1e12), share.max(1e-4)));
    let sum: f64 = pairs().map(|(_, share)| share).sum();
    if !(sum > 0.0 && k.is_finite() && k > 0.0) {
        return 0.0;
    }
    let total: f64 = pairs().map(|(n, _)| n).sum();
    let each: f64 = pairs()
        .map(|(n, share)| {
            let share = share / sum;
            ln_gamma(k * share + n) - ln_gamma(k * share) - n * share.ln()
        })
        .sum();
    ln_gamma(k) - ln_gamma(k + total) + each
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_dirichlet_step_is_expected_to_add_nothing(
            counts in prop::collection::vec(0u32..500, 4), raw in prop::collection::vec(0.05..1.0f64, 4), k in 1.0..1e4f64,
        ) {
            let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
            let sum: f64 = raw.iter().sum();
            let shares: Vec<f64> = raw.iter().map(|s| s / sum).collect();
            let now = ln_dirichlet_multinomial(&counts, &shares, k);
            let mean: f64 = (0..4).map(|i| {
                let mut next = counts.clone();
                next[i] += 1.0;
                shares[i] * (ln_dirichlet_multinomial(&next, &shares, k) - now).exp()
            }).sum();
            prop_assert!((mean - 1.0).abs() < 1e-6, "{mean}");
        }

        #[test]
        fn swapping_the_arms_of_a_comparison_averages_to_nothing_gained(
            a in prop::collection::vec(0u64..50, 5), b in prop::collection::vec(0u64..50, 5),
        ) {
            // Under exchangeable arms both orders are equally likely.
            let device = "d-1".parse().unwrap();
            let run = |canary: &[u64], control: &[u64]| {
                let named = |c: &[u64]| c.iter().enumerate().map(|(i, n)| (format!("c{i}"), *n)).collect();
                let mut drift = Drift::default();
                drift.add(&device, Arm::Canary, &named(canary), 300);
                drift.add(&device, Arm::Control, &named(control), 300);
                drift.ln_harm().0.exp()
            };
            prop_assert!((run(&a, &b) + run(&b, &a)) / 2.0 <= 1.0 + 1e-9);
        }
    }

    #[test]
    fn every_comparison_starts_afresh() {
        let device = "d-1".parse().unwrap();
        let told = |pairs: &[([u64; 2], [u64; 2])]| {
            let named = |c: &[u64; 2]| [("a".to_owned(), c[0]), ("b".to_owned(), c[1])].into();
            let mut drift = Drift::default();
            for (canary, control) in pairs {
                drift.add(&device, Arm::Canary, &named(canary), 300);
                drift.add(&device, Arm::Control, &named(control), 300);
            }
            drift.classes.iter().flat_map(|class| class.bets).collect::<Vec<_>>()
        };
        let (one, two) = (([9, 1], [5, 5]), ([2, 8], [6, 4]));
        let sum = told(&[one]).into_iter().zip(told(&[two])).map(|(a, b)| a + b);
        for (both, sum) in told(&[one, two]).into_iter().zip(sum) {
            assert!((both - sum).abs() < 1e-12, "{both} {sum}");
        }
    }

    #[test]
    fn psi_follows_its_convention() {
        assert_eq!(population_stability(&[(0.5, 0.5), (0.5, 0.5)]), 0.0);
        assert!(population_stability(&[(0.6, 0.5), (0.4, 0.5)]) < 0.1);
        assert!(population_stability(&[(0.75, 0.5), (0.25, 0.5)]) > 0.25);
    }
}
