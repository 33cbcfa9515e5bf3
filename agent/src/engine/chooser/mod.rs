//! Chooses how a model is run on this device, from what was proved and measured. Pure.
//!
//! Every setup that is offered and allowed is tried in a confined child first; those that gave right
//! answers take turns at one golden input, two at a time, and the medians decide: of batches where the
//! device is set to serve those, of single inputs otherwise. What runs a bundle already, or is
//! preferred in the settings, stays unless another is more than 10 % faster: a choice that flips with the
//! noise of a device helps nobody. A first choice takes the fastest, tract where it is as good as that.

mod drift;
mod duels;
mod retry;
mod rounds;

pub use drift::{Drift, Expected, MIN_PASSES, Seen};
pub use duels::{Duels, Step, Times, Turn, order};
pub use retry::Retry;
pub(crate) use rounds::median;
pub use rounds::{Budget, Rounds};

use super::setup::{EngineName, Pattern, Setup};
use edgefleet_shared::{
    bundle::{Artifact, Precision},
    digest::BundleDigest,
    reported::RefusalCode,
};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// A setup in use, or a preferred one, gives way to one that saves more than this share of its time.
pub const GAIN: f64 = 0.10;
/// For a first choice two setups are as good as each other within this share: what counts as never
/// slower than ONNX Runtime.
pub const TIE: f64 = 0.05;

/// What the settings say about setups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// These stay unless another is clearly faster; the earlier named, the stronger.
    pub prefer: Vec<Pattern>,
    /// Never these.
    pub forbid: Vec<Pattern>,
    /// Only these, however slow; nothing where empty.
    pub pin: Vec<Pattern>,
    /// Most threads of one inference; at least 1.
    pub threads: usize,
    /// Most rows that are served together (`serving.batch`); 0 and 1 are none.
    pub rows: usize,
}

impl Policy {
    /// Whether a setup may be used at all.
    pub fn allows(&self, setup: &Setup) -> bool {
        self.forbidding(setup).is_none() && self.pins(setup)
    }
    fn forbidding(&self, setup: &Setup) -> Option<&Pattern> {
        self.forbid.iter().find(|pattern| pattern.matches(setup))
    }
    fn pins(&self, setup: &Setup) -> bool {
        self.pin.is_empty() || self.pin.iter().any(|pattern| pattern.matches(setup))
    }
}

/// Everything a choice depends on. Another key, another choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub bundle: BundleDigest,
    /// Name and identity of each engine that is here.
    pub engines: Vec<String>,
    pub cpu: String,
    pub policy: Policy,
}

/// A setup that is not used for a bundle, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub setup: Setup,
    /// `None` if it was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<RefusalCode>,
    pub reason: String,
}

/// A setup that gave right answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Passed {
    pub setup: Setup,
    /// Engine and version that were tried.
    pub engine: String,
    /// Of one inference of the smallest golden input, of one row of it where batches are served; `None` if
    /// nothing was there to compare with, or the time was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub median_ms: Option<f64>,
    /// Of a batch, where such are served: then this decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Batch>,
}

/// What a batch takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    pub rows: usize,
    /// Of all rows together; of one after the other where the setup does not take them together.
    pub median_ms: f64,
}

impl Passed {
    /// What decides, infinite where it is unknown.
    fn time_ms(&self) -> f64 {
        self.batch.map(|batch| batch.median_ms).or(self.median_ms).unwrap_or(f64::INFINITY)
    }
}

/// How a bundle is run, and what that rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    pub key: Key,
    /// Best first; the first is used.
    pub passed: Vec<Passed>,
    pub refused: Vec<Refused>,
    /// Rounds that were measured, of the one with most.
    pub rounds: usize,
    /// Rows of the input that `median_ms` is about.
    #[serde(default)]
    pub rows: usize,
}

impl Selection {
    /// What a setup should take by the measurement; `None` where there was nothing to compare.
    pub fn expected(&self, setup: &Setup) -> Option<Expected> {
        let passed = self.passed.iter().find(|passed| passed.setup == *setup)?;
        let batch = passed.batch.map(|batch| (batch.rows, batch.median_ms));
        Some(Expected { rows: self.rows, ms: passed.median_ms?, batch })
    }
    pub fn chosen(&self) -> Option<&Passed> {
        self.passed.first()
    }
}

/// Every setup for a bundle of these artifacts, in order of preference, and those the settings exclude.
///
/// `threads_of` tells how many threads an engine can use for one inference. Variants that no engine
/// gains from are left out: see [`is_sensible`].
pub fn offered(
    artifacts: &[&Artifact],
    engines: &[EngineName],
    policy: &Policy,
    threads_of: impl Fn(EngineName) -> usize,
) -> (Vec<Setup>, Vec<Refused>) {
    let mut all = Vec::new();
    for engine in engines {
        for artifact in artifacts {
            let most = threads_of(*engine).min(policy.threads).max(1);
            let counts = [1, most];
            for threads in &counts[..if most > 1 { 2 } else { 1 }] {
                let setup = Setup { engine: *engine, precision: artifact.precision, threads: *threads };
                if !all.contains(&setup) {
                    all.push(setup);
                }
            }
        }
    }
    // A variant the bundle has nothing else of is taken as it is.
    let only = |setup: &Setup| artifacts.iter().all(|a| a.precision == setup.precision);
    let (mut kept, mut refused) = (Vec::new(), Vec::new());
    for setup in all {
        let reason = if let Some(pattern) = policy.forbidding(&setup) {
            Some(format!("the settings forbid `{pattern}`"))
        } else if !policy.pins(&setup) {
            Some("the settings pin another".to_owned())
        } else if !is_sensible(&setup) && !only(&setup) && policy.pin.is_empty() {
            Some(format!("{} gains nothing from this variant", setup.engine))
        } else {
            None
        };
        match reason {
            None => kept.push(setup),
            Some(reason) => refused.push(Refused { setup, code: None, reason }),
        }
    }
    let rank = |setup: &Setup| {
        let preferred = policy.prefer.iter().position(|p| p.matches(setup)).unwrap_or(usize::MAX);
        (preferred, setup.engine, precision_rank(setup.precision), setup.threads)
    };
    kept.sort_by_key(rank);
    (kept, refused)
}

/// Measured on x86-64: tract takes twice the time in int8 and up to 300 times in f16. ONNX Runtime
/// emulates f16 there.
pub fn is_sensible(setup: &Setup) -> bool {
    match (setup.engine, setup.precision) {
        (_, Precision::F32) => true,
        (EngineName::Tract, Precision::Int8Qdq) => false,
        (EngineName::Onnxruntime, Precision::Int8Qdq) => true,
        (_, Precision::F16) => cfg!(target_arch = "aarch64"),
    }
}

fn precision_rank(precision: Precision) -> u8 {
    match precision {
        Precision::F32 => 0,
        Precision::F16 => 1,
        Precision::Int8Qdq => 2,
    }
}

/// Which of several setups, in order of preference, by their median times in milliseconds: `keep`, unless
/// another saves more than `margin` of its time; then the fastest. Times that are no numbers lose.
pub fn best(medians: &[f64], keep: usize, margin: f64) -> usize {
    let sound = |at: &usize| medians.get(*at).is_some_and(|ms| ms.is_finite() && *ms >= 0.0);
    let all = || (0..medians.len()).filter(|at| sound(at));
    let Some(first) = Some(keep).filter(sound).or_else(|| all().next()) else { return 0 };
    let fastest = all().min_by(|a, b| medians[*a].total_cmp(&medians[*b])).unwrap_or(first);
    if medians[fastest] < medians[first] * (1.0 - margin) { fastest } else { first }
}

/// Orders what passed by what was measured. `passed` comes in order of preference and is not empty where
/// anything passed; `former` is how the bundle is run until now.
pub fn select(
    key: Key,
    mut passed: Vec<Passed>,
    refused: Vec<Refused>,
    (rounds, rows): (usize, usize),
    former: Option<Setup>,
) -> Selection {
    let medians: Vec<f64> = passed.iter().map(Passed::time_ms).collect();
    let former = former.and_then(|former| passed.iter().position(|p| p.setup == former));
    let preferred = |p: &Passed| key.policy.prefer.iter().any(|pattern| pattern.matches(&p.setup));
    let margin = match former.is_some() || passed.first().is_some_and(preferred) {
        true => GAIN,
        false => TIE,
    };
    if !passed.is_empty() {
        let chosen = passed.remove(best(&medians, former.unwrap_or(0), margin));
        // The rest by speed: who comes next if the chosen one is gone one day.
        passed.sort_by(|a, b| a.time_ms().total_cmp(&b.time_ms()));
        passed.insert(0, chosen);
    }
    Selection { key, passed, refused, rounds, rows }
}

/// Which remembered choices to drop: those beyond `most`, oldest first. `ages` are in seconds.
pub fn outdated<T: Clone>(mut ages: Vec<(T, u64)>, most: usize) -> Vec<T> {
    ages.sort_by_key(|(_, age)| Reverse(*age));
    let excess = ages.len().saturating_sub(most);
    ages.into_iter().take(excess).map(|(which, _)| which).collect()
}

#[cfg(test)]
mod tests;
