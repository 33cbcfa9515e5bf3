//! What the outside tells the evidence: one value per event, in order of arrival.
//!
//! Whoever makes these keeps three promises that the statistics rest on:
//! - **once**: a device joins, leaves, has its first bad window and casts its latency vote at most once
//!   per arm and bundle; a window is told once (its boot and sequence number are the idempotence key);
//! - **blind**: whether and when something is told does not depend on the arm;
//! - **fixed**: thresholds (what a bad window is) were set before the first event.

use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which side of the comparison a device is on. Controls keep the incumbent until the stage decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    Canary,
    Control,
}

/// How one canary device's change of latency compares with that of its controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vote {
    /// The canary got slower than the median of its controls, by more than the factor.
    Slower,
    NotSlower,
    /// Exactly equal, or one side has no usable figures: dropped.
    Tie,
}

/// Failures that need no statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HardFailure {
    /// A signature or rollback check refused the bundle: alarm, never a verdict (DECISIONS 12).
    Refused,
    /// The device went back by itself: crash, health, latency or memory during probation.
    RolledBack,
    /// Online before activation, silent ever since.
    Lost,
}

/// Shadow comparisons of one class (of the incumbent's answer) in one device window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    pub n: u64,
    pub disagree: u64,
}

/// Devices that were expected to report and those that did; each device counted once per bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reporting {
    pub expected: u32,
    pub received: u32,
}

/// One event. Counts above a bound are scaled down, never refused: at most 300 observations of a
/// device and window weigh (DECISIONS 26).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Observation {
    /// A device enters the risk set: a canary when it activated, its controls at the same moment.
    Joined {
        arm: Arm,
        /// The stage whose canaries are compared. Those of an earlier one that are still at risk are the
        /// healthier ones, so each has a risk set of its own.
        cohort: u16,
        stratum: String,
        site: String,
    },
    /// A device leaves without a bad window: removed, superseded, changed arm.
    Left {
        arm: Arm,
        cohort: u16,
        stratum: String,
        site: String,
    },
    /// The first bad window of a device since it joined; it leaves the risk set by this.
    /// `hour`: hours since the epoch of the window's start; bad windows of one site and hour are one outage.
    FirstBad {
        device: DeviceId,
        arm: Arm,
        cohort: u16,
        stratum: String,
        site: String,
        hour: u64,
    },
    /// A device-hour is over (at least one inference in it). `bad`: its windows held a bad one.
    DeviceHour {
        device: DeviceId,
        arm: Arm,
        bad: bool,
    },
    /// The one vote of a canary device, see [`latency_vote`](super::latency_vote).
    Latency {
        device: DeviceId,
        stratum: String,
        vote: Vote,
    },
    /// One canary window: `n` results, `x` of them above the frozen threshold. Raises an alarm only.
    Exceeded {
        device: DeviceId,
        n: u64,
        x: u64,
    },
    /// One device window of shadow comparisons: `disagree` of `n` differed from the incumbent.
    Shadow {
        device: DeviceId,
        stratum: String,
        n: u64,
        disagree: u64,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        classes: BTreeMap<String, Disagreement>,
    },
    /// One device window of labelled inputs that both bundles answered.
    Labels {
        device: DeviceId,
        stratum: String,
        source: String,
        both_right: u64,
        both_wrong: u64,
        /// The candidate is right, the incumbent wrong.
        wins: u64,
        /// The incumbent is right, the candidate wrong.
        losses: u64,
    },
    /// A group of devices whose time to report is over, both arms at once.
    Telemetry {
        canary: Reporting,
        control: Reporting,
    },
    /// Classes (or bins) that one device answered in one window.
    Drift {
        device: DeviceId,
        arm: Arm,
        classes: BTreeMap<String, u64>,
    },
    Hard {
        device: DeviceId,
        failure: HardFailure,
    },
}
