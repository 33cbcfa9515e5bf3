//! How many canaries, and for how long: by the power of the gates that will judge them.

use crate::evidence::{
    Gate, GateSettings,
    power::{StageForecast, forecast},
};

#[derive(Clone, Debug, PartialEq)]
pub struct CanarySize {
    pub canaries: u32,
    pub controls: u32,
    pub hours: f64,
    /// Smallest multiple of the present rate of bad hours found in 80 % of such stages; `None`: none up to five.
    pub smallest_found: Option<f64>,
}

/// Sizes that are tried, the smallest first.
const SIZES: [u32; 3] = [20, 50, 100];
const HOURS: f64 = 72.0;

/// The smallest canary stage in a fleet of so many devices that finds errors of five times the rate in most cases, or
/// the largest that fits. `None` below 13 + 20 devices, where gates that compare devices have no power (DECISIONS 25).
pub fn canary_size(fleet: u32, bad_rate: f64) -> Option<CanarySize> {
    let gates = [Gate::Hard, Gate::Errors, Gate::Latency].into();
    let settings = GateSettings { gates, ..GateSettings::default() };
    let least = settings.canaries_needed(Gate::Latency);
    let mut best = None;
    for wanted in SIZES {
        let canaries = wanted.min(fleet / 3).max(least);
        let controls = (3 * canaries).min(fleet.saturating_sub(canaries) / 2);
        if canaries + controls > fleet || controls < settings.min_controls {
            break;
        }
        let stage = StageForecast {
            canaries,
            controls,
            hours: HOURS,
            bad_rate: bad_rate.clamp(0.001, 0.5),
            shadow_per_hour: 0.0,
            labels_per_hour: 0.0,
            latency_spread: 0.1,
        };
        let power = forecast(&stage, &settings, 7);
        let smallest_found =
            power.iter().find(|power| power.gate == Gate::Errors).and_then(|power| power.smallest_found);
        let enough = smallest_found.is_some();
        best = Some(CanarySize { canaries, controls, hours: HOURS, smallest_found });
        if enough || canaries < wanted {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_fleet_gets_none_and_a_large_one_what_finds_something() {
        assert_eq!(canary_size(10, 0.01), None);
        let found = canary_size(5_000, 0.02).unwrap();
        assert!(found.canaries >= 20 && found.controls >= 20 && found.smallest_found.is_some(), "{found:?}");
    }
}
