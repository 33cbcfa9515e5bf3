//! What can be done about a finding with one click or command.

use edgefleet_shared::{
    bundle::baseline::Calibration,
    ids::{BundleName, ChannelId, DeviceId},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which captures a labelling queue shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabelFilter {
    pub cohort: Option<String>,
    pub devices: Vec<DeviceId>,
    /// Capture strategies; empty: all.
    pub strategies: Vec<String>,
    /// Predicted classes; empty: all.
    pub classes: Vec<String>,
    /// How many to label.
    pub count: u64,
}

/// A threshold for one class, with what it is expected to give.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProposedThreshold {
    pub class: String,
    pub threshold: f64,
    pub precision: f64,
    pub recall: f64,
    /// At the threshold of now.
    pub precision_now: f64,
    pub recall_now: f64,
    /// Labelled answers it rests on.
    pub n: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Action {
    /// Look at it: captures and trends of these channels.
    InspectDevice {
        device: DeviceId,
        channels: Vec<ChannelId>,
    },
    InspectDevices {
        devices: Vec<DeviceId>,
        of: usize,
    },
    OpenLabelling {
        filter: LabelFilter,
    },
    ProposeThresholds {
        thresholds: Vec<ProposedThreshold>,
    },
    /// A bundle of the same model with another calibration: no model is downloaded.
    PushCalibration {
        calibration: Calibration,
        ece_before: f64,
        ece_after: f64,
    },
    /// A new baseline of the cohort from so many rows seen now.
    ProposeBaseline {
        cohort: String,
        rows: u64,
    },
    /// Baselines of their own for these hours (UTC; of the day, or of the week from Monday).
    SeasonalBaselines {
        cohort: String,
        weekly: bool,
        hours: Vec<u32>,
    },
    RollBack {
        from: BundleName,
        to: Option<BundleName>,
        changed: Vec<String>,
    },
    /// Compare what happens before and after the model in these bundles.
    CompareSteps {
        bundle: BundleName,
        with: Option<BundleName>,
    },
    StartCanary {
        bundle: BundleName,
        canaries: u32,
        controls: u32,
        hours: f64,
    },
    RaiseAuditRate {
        from: f64,
        to: f64,
    },
    ShowFault {
        fault: String,
        suggestion: String,
    },
    EnableImputation {
        channels: Vec<ChannelId>,
    },
    /// Capture this slice on purpose.
    TargetCaptures {
        cohort: String,
        count: u64,
    },
    /// Weigh several answers, or none where bundles disagree; label these inputs first.
    LabelDisagreements {
        candidate: BundleName,
        count: u64,
    },
    RelieveQueue {
        batch_delay_us: Option<u64>,
        workers: Option<u32>,
        expected_p95_ms: f64,
    },
    LowerDuty {
        devices: Vec<DeviceId>,
        to_share: f64,
    },
    /// A smaller input, another variant: measured medians in microseconds by setup.
    LighterModel {
        nodes: Vec<(String, f64)>,
        setups: BTreeMap<String, f64>,
    },
    PreferVariant {
        hardware: String,
        variant: String,
        medians_us: BTreeMap<String, f64>,
    },
    EnableCache {
        saved_share: f64,
        saved_ms_per_day: f64,
    },
    CheaperInput {
        pre_ms: f64,
        infer_ms: f64,
    },
    ChangeQuota {
        strategy: String,
        from_per_day: u64,
        to_per_day: u64,
        expected_labels_per_day: f64,
    },
    DistrustEstimator {
        estimator: String,
    },
    ListStragglers {
        by_reason: BTreeMap<String, u64>,
        examples: Vec<DeviceId>,
    },
}
