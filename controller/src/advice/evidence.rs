//! What rules look at. Every part may be missing; a rule without its part is silent.

use super::finding::Scope;
use crate::{
    drift::Incident,
    estimate::{Estimator, EstimatorScore, Trust},
};
use edgefleet_shared::{
    bundle::Baseline,
    ids::{BundleName, ChannelId, DeviceId},
    telemetry::ProfileContent,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// About one bundle in its primary role, at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    pub bundle: Option<BundleName>,
    pub baseline: Option<Arc<Baseline>>,
    /// The bundle as a whole, its cohorts, its devices (those with something to say are enough).
    pub slices: Vec<Slice>,
    /// Open drift incidents; `None`: drift was not looked at.
    pub incidents: Option<Vec<Incident>>,
    pub release: Option<Release>,
    /// Hourly drift scores of a cohort's channel against the baseline, the longest there are.
    pub scores: Vec<ScoreSeries>,
    pub estimators: BTreeMap<Estimator, EstimatorScore>,
    pub shadow: Option<Shadow>,
    pub engines: Vec<EngineMedians>,
    pub nodes: Option<NodeTimes>,
    pub versions: Option<Versions>,
    /// Share of answers that is captured at random for audits, if any.
    pub audit_rate: Option<f64>,
    /// Score below which an answer is not given, by class; `*` for all others.
    pub thresholds: BTreeMap<String, f64>,
}

/// One scope's sums. `now`: the last profiles added up (three hours); `usual`: last week of the same scope.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    pub scope: Scope,
    pub devices: u32,
    pub now: Option<ProfileContent>,
    pub usual: Option<ProfileContent>,
    /// Answers by class, now.
    pub classes: BTreeMap<String, u64>,
    pub audited: Option<Audited>,
    pub audited_before: Option<Audited>,
    /// Labelled answers with their confidence, newest last; at most 20,000 are looked at.
    pub labels: Vec<ScoredLabel>,
    /// (truth, predicted, weight).
    pub confusion: Vec<(String, String, f64)>,
    pub latency: Option<LatencyParts>,
    pub latency_usual: Option<LatencyParts>,
    pub health: Option<Health>,
    pub health_usual: Option<Health>,
    pub repeats: Option<Repeats>,
    pub captures: Vec<CaptureCounts>,
}

impl Slice {
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            devices: 0,
            now: None,
            usual: None,
            classes: BTreeMap::new(),
            audited: None,
            audited_before: None,
            labels: Vec::new(),
            confusion: Vec::new(),
            latency: None,
            latency_usual: None,
            health: None,
            health_usual: None,
            repeats: None,
            captures: Vec::new(),
        }
    }
}

/// Accuracy by labels that were drawn with known probability, with its interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Audited {
    pub accuracy: f64,
    pub low: f64,
    pub high: f64,
    /// Labels, and what they are worth if all had the same weight (Kish).
    pub labels: u64,
    pub effective: f64,
}

impl Audited {
    /// Standard deviation: from the interval, which need not be symmetric.
    pub fn deviation(&self) -> f64 {
        ((self.high - self.low) / 3.92).max(0.0)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredLabel {
    /// As the model says it, before calibration; 0 to 1.
    pub confidence: f64,
    pub predicted: String,
    pub correct: bool,
    /// One over its inclusion probability.
    pub weight: f64,
}

/// Milliseconds per request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyParts {
    pub n: u64,
    pub queue_mean: f64,
    pub pre_mean: f64,
    pub infer_mean: f64,
    pub post_mean: f64,
    pub infer_p50: f64,
    pub total_p95: f64,
    /// Requests a second, and threads that answer them.
    pub rate: f64,
    pub workers: u32,
    /// Largest batch the bundle takes; 1: it cannot batch.
    pub max_batch: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    pub hours: f64,
    pub temperature_max: Option<f64>,
    /// Share of the time the processor was throttled.
    pub throttled: f64,
    pub cpu_share: f64,
}

/// Inputs and how many of them were different ones (HyperLogLog or exact).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeats {
    pub inputs: u64,
    pub distinct: u64,
    /// Most of the inputs came to devices that remember answers.
    pub cache_enabled: bool,
    /// The hours it was counted over.
    pub hours: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CaptureCounts {
    pub strategy: String,
    pub seen: u64,
    /// Wanted by the strategy: taken or turned away by the quota.
    pub taken: u64,
    pub dropped: u64,
    pub quota_per_day: u64,
    pub days: u32,
    /// Share of captures that gets labelled.
    pub labelled_share: f64,
    /// All other counts are of one device in the mean of so many.
    pub devices: u32,
}

/// When the bundle came, and what it changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// When it became active, by cohort (the median device).
    pub activated: BTreeMap<String, Timestamp>,
    pub previous: Option<BundleName>,
    /// Fields of the manifest that differ from the previous bundle's.
    pub changed: Vec<String>,
    /// Whether steps before or after the model are among them.
    pub steps_changed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ScoreSeries {
    pub cohort: String,
    pub channel: ChannelId,
    pub scores: Vec<(Timestamp, f64)>,
}

/// A candidate beside the active bundle, on the same inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shadow {
    pub candidate: BundleName,
    pub since: Timestamp,
    pub devices: u32,
    pub compared: u64,
    pub disagree: u64,
    /// Labelled inputs both answered.
    pub wins: u64,
    pub losses: u64,
    pub both_right: u64,
    pub both_wrong: u64,
    /// Median inference time, candidate over active, on the same devices.
    pub cost: Option<f64>,
    /// The fleet it would go to, and its share of bad device-hours.
    pub fleet: u32,
    pub bad_rate: f64,
}

/// Medians the chooser measured on one kind of hardware, microseconds by setup: `tract/f32`, `onnxruntime/int8`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineMedians {
    pub hardware: String,
    pub devices: u32,
    pub medians_us: BTreeMap<String, f64>,
}

/// Share of compute by node of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeTimes {
    pub nodes: BTreeMap<String, f64>,
    pub setups_us: BTreeMap<String, f64>,
    /// Milliseconds of one inference.
    pub infer_ms: f64,
}

/// Devices that should run the bundle by now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// When it was assigned to the last of them.
    pub assigned: Timestamp,
    pub wanted: u64,
    pub behind: BTreeMap<String, u64>,
    pub examples: Vec<DeviceId>,
}

impl Evidence {
    pub(super) fn bundle_scope(&self) -> Option<Scope> {
        self.bundle.clone().map(|bundle| Scope::Bundle { bundle })
    }
    pub(super) fn cohorts(&self) -> impl Iterator<Item = (&str, &Slice)> {
        self.slices.iter().filter_map(|slice| match &slice.scope {
            Scope::Cohort { cohort, .. } => Some((cohort.as_str(), slice)),
            Scope::Bundle { .. } | Scope::Device { .. } => None,
        })
    }
    pub(super) fn slice(&self, scope: &Scope) -> Option<&Slice> {
        self.slices.iter().find(|slice| slice.scope == *scope)
    }
    pub(super) fn trusts(&self, which: Estimator) -> bool {
        self.estimators.get(&which).is_none_or(|score| score.trust != Trust::Untrusted)
    }
}
