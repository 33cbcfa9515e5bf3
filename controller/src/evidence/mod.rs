//! Evidence: whether a bundle may go on, decided so that looking at any time is allowed.
//!
//! Pure: events in, verdicts out; no clock, no I/O, no randomness. Each gate is an **e-process**: it
//! starts at 1, is never negative, and its expected value under the null is at most 1 at every stopping
//! time, so that it ever reaches `1/a` with probability at most `a` (Ville 1939). Looking every minute
//! costs nothing. *Harm* rejects "not worse"; *safe* rejects "worse than the margin"; neither is
//! inconclusive. The state is sums and a few bounded sketches: under 32 KiB whatever the fleet's size.
//!
//! Source of the rules: `research/fleet-control.md` 6.4, changed by DECISIONS 21 to 27.

mod latency;
mod observation;
pub mod power;
mod report;
mod settings;

pub use latency::{BeforeAfter, latency_vote};
pub use observation::{Arm, Disagreement, HardFailure, Observation, Reporting, Vote};
pub use report::{ArmSizes, Assessment, Effect, GateReport, Slice, Verdict};
pub use settings::{
    AccuracySettings, AgreementSettings, DriftSettings, ErrorSettings, Gate, GateSettings, HardSettings,
    LatencySettings, SettingsMistake, TelemetrySettings,
};

use serde::{Deserialize, Serialize};

/// Everything observed about one bundle in one rollout, as sufficient statistics. Runs on across stages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {}

impl Evidence {
    /// Takes one event in: O(log n) in the number of strata kept.
    pub fn observe(&mut self, observation: &Observation, settings: &GateSettings) {
        let _ = (observation, settings);
    }

    /// What the evidence says now. May be called at any time and as often as wanted.
    pub fn assess(&self, settings: &GateSettings, arms: &ArmSizes) -> Assessment {
        let _ = (settings, arms);
        Assessment::of(Vec::new())
    }
}
