//! Agreement: how often does the candidate, in shadow, answer differently from the incumbent?
//!
//! Same device, same input: no variance between devices, hence the strongest evidence of small fleets.
//! Disagreement is not error: with labels in the plan this only informs (DECISIONS 24).

use super::bounded::{Influence, Slices};
use super::mixture::{HARM_RATIOS, SAFE_RATIOS, ln_bernoulli, ln_mean_exp, thin};
use super::observation::Disagreement;
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Shadow {
    pub(super) n: f64,
    pub(super) disagree: f64,
    /// Who disagrees, and who agrees: bounds for the leave-one-out values.
    disagreeing: Influence,
    agreeing: Influence,
    pub(super) classes: Slices,
    pub(super) slices: Slices,
}

impl Shadow {
    pub(super) fn add(
        &mut self,
        device: &DeviceId,
        stratum: &str,
        (n, disagree): (u64, u64),
        classes: &BTreeMap<String, Disagreement>,
        per_window: u32,
    ) {
        let in_classes = classes.values().fold(0_u64, |sum, class| sum.saturating_add(class.n));
        let scale = thin(n.max(in_classes), per_window);
        let (n, disagree) = (n as f64 * scale, disagree.min(n) as f64 * scale);
        self.n += n;
        self.disagree += disagree;
        self.disagreeing.add(device, disagree);
        self.agreeing.add(device, n - disagree);
        self.slices.add(stratum, disagree, n);
        // Only as many classes as are kept: a hostile map costs no more than a large honest one.
        for (name, class) in classes.iter().take(1024) {
            self.classes.add(name, class.disagree.min(class.n) as f64 * scale, class.n as f64 * scale);
        }
    }

    /// ln E against "at most `1 - floor` disagree", and its leave-one-out bound.
    ///
    /// The Bernoulli mixture of 6.4 (d), an e-process when P(disagree | past) <= 1 - floor. With
    /// `class_floor` half of the stake goes to single classes, a fixed sixteenth of it each, so that one
    /// class that went wrong is found however rare: a mean of e-processes with fixed weights is one.
    /// Removing a device takes at most `disagreeing.most()` disagreements from the total and from each class.
    pub(super) fn ln_harm(&self, floor: f64, class_floor: Option<f64>) -> (f64, f64) {
        let at = |taken: f64| {
            let (n, x) = (self.n, self.disagree);
            let all = ln_bernoulli((x - taken).max(0.0), n - x, 1.0 - floor, &HARM_RATIOS);
            let Some(class_floor) = class_floor else { return all };
            let mut logs = [0.0; Slices::KEPT];
            for (log, (_, x, n)) in logs.iter_mut().zip(self.classes.iter()) {
                *log = ln_bernoulli((x - taken).max(0.0), (n - x).max(0.0), 1.0 - class_floor, &HARM_RATIOS);
            }
            ln_mean_exp([all, ln_mean_exp(logs)])
        };
        (at(0.0), at(self.disagreeing.most()))
    }

    /// ln E against "at least `1 - floor` disagree", and its leave-one-out bound.
    pub(super) fn ln_safe(&self, floor: f64) -> (f64, f64) {
        let agree = self.n - self.disagree;
        let at = |agree: f64| ln_bernoulli(self.disagree, agree.max(0.0), 1.0 - floor, &SAFE_RATIOS);
        (at(agree), at(agree - self.agreeing.most()))
    }

    pub(super) fn disagreeing_devices(&self) -> u32 {
        self.disagreeing.devices()
    }

    pub(super) fn agreeing_devices(&self) -> u32 {
        self.agreeing.devices()
    }

    pub(super) fn examples(&self) -> Vec<DeviceId> {
        self.disagreeing.examples(5)
    }
}
