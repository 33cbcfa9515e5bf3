//! What a plan would do to this fleet: shown before anything is started.
//!
//! Pure: plan, membership and what is known of the fleet in; numbers and sentences out.

use crate::{
    evidence::{
        Gate, GateSettings,
        power::{GatePower, StageForecast},
    },
    rollout::{Arm, FreezePeriod, Membership, Mode, Plan, PlanMistake, Span, Stratum},
    transfer::Limits,
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, SlotName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

/// What is known of the fleet. `None`: not known; the preview then says what it assumed.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetFacts {
    pub now: Timestamp,
    /// Bytes a device fetches for the bundle.
    pub download: u64,
    pub links: Limits,
    /// Selected devices that are connected now.
    pub online: Option<u64>,
    /// Of last week's telemetry of the incumbents: share of device-hours with a bad window ...
    pub bad_rate: Option<f64>,
    /// ... requests per device and hour, which a shadow sees too ...
    pub requests_per_hour: Option<f64>,
    /// ... labelled inputs per device and hour ...
    pub labels_per_hour: Option<f64>,
    /// ... and standard deviation of the logarithm of a device's p95 from one hour to the next.
    pub latency_spread: Option<f64>,
    /// The freeze calendar.
    pub freezes: Vec<FreezePeriod>,
}

/// The whole of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preview {
    pub slot: SlotName,
    pub bundle: BundleName,
    /// What makes the plan unusable, each with its place; the rest is then as far as it goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
    /// What a person should know before agreeing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What was not known and taken for granted, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
    /// Devices the plan reaches.
    pub devices: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<u64>,
    pub canaries: u64,
    pub controls: u64,
    pub strata: Vec<Stratum>,
    pub stages: Vec<StagePreview>,
    /// Chance that a harmless bundle is stopped by statistics, over the whole rollout.
    pub false_alarms: f64,
    /// If every stage passes when its soak ends.
    pub expected: Span,
    /// If every stage needs its longest soak.
    pub longest: Span,
    /// Bytes devices fetch in all, and one of them.
    pub bytes: u64,
    pub bytes_per_device: u64,
}

/// As [`PlanMistake`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistake {
    pub path: String,
    pub problem: String,
}

impl From<&PlanMistake> for Mistake {
    fn from(mistake: &PlanMistake) -> Self {
        Self { path: mistake.path.clone(), problem: mistake.problem.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagePreview {
    pub name: String,
    pub mode: Mode,
    /// Devices that have their turn in it.
    pub devices: u64,
    /// Devices that had it before, or have it then.
    pub reached: u64,
    /// A person has to agree before it begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
    /// A few of them, in the order of their turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<DeviceId>,
    /// From the first hand-out until enough have it for the soak to begin.
    pub delivery: Span,
    pub limited_by: LimitedBy,
    pub soak: Span,
    pub max_soak: Span,
    pub bytes: u64,
    pub gates: Vec<GatePreview>,
}

/// What sets the pace of a stage's hand-outs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitedBy {
    /// Nobody has to wait for another device.
    Nothing,
    Rate,
    Concurrency,
    Bandwidth,
    BytesPerDay,
    Spread,
}

/// What a gate can find in a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatePreview {
    pub gate: Gate,
    /// Can never decide here: a person has to vouch for it.
    pub powerless: bool,
    pub sentence: String,
    /// (size of harm, share of simulated runs in which it was found).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detection: Vec<(f64, f64)>,
    /// Smallest harm found in at least 80 % of runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smallest_found: Option<f64>,
    /// Median hours until a harmless bundle is called safe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours_to_safe: Option<f64>,
}
