//! Power: what a stage of this size can find, by simulation, before it starts.

use super::settings::GateSettings;
use serde::{Deserialize, Serialize};

/// What one stage will have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageForecast {
    pub canaries: u32,
    pub controls: u32,
    pub hours: f64,
    /// Bad device-hours of the incumbent, as a share (last week's telemetry).
    pub bad_rate: f64,
    /// Shadow comparisons per device and hour that weigh; 0 without shadow.
    pub shadow_per_hour: f64,
    /// Labelled inputs per device and hour; 0 without labels.
    pub labels_per_hour: f64,
    /// Spread (standard deviation of the logarithm) of a device's after/before ratio of p95.
    pub latency_spread: f64,
}

/// How often harm of a given size is found within the stage, and what is never found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GatePower {
    pub gate: super::Gate,
    /// (size of harm, share of simulated runs that failed); sizes 1.5, 2, 3, 5.
    pub detection: Vec<(f64, f64)>,
    /// Share of harmless runs that failed.
    pub false_aborts: f64,
    /// Smallest simulated harm found in at least 80 % of runs.
    pub smallest_found: Option<f64>,
    /// Median hours until a harmless candidate is called safe; `None`: not within the stage.
    pub hours_to_safe: Option<f64>,
    pub powerless: bool,
    pub sentence: String,
}

/// Simulates the stage; the same seed gives the same figures.
pub fn forecast(stage: &StageForecast, settings: &GateSettings, seed: u64) -> Vec<GatePower> {
    let _ = (stage, settings, seed);
    Vec::new()
}
