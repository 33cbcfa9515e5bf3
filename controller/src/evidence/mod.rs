//! Evidence: whether a bundle may go on, decided so that looking at any time is allowed.
//!
//! Pure: events in, verdicts out; no clock, no I/O, no randomness. Each gate is an **e-process**: it
//! starts at 1, is never negative, and its expected value under the null is at most 1 at every stopping
//! time, so that it ever reaches `1/a` with probability at most `a` (Ville 1939). Looking every minute
//! costs nothing. *Harm* rejects "not worse"; *safe* rejects "worse than the margin"; neither is
//! inconclusive. The state is sums and a few bounded sketches: under 32 KiB whatever the fleet's size.
//!
//! Source of the rules: `research/fleet-control.md` 6.4, changed by DECISIONS 21 to 27.

mod accuracy;
mod bounded;
mod drift;
mod errors;
mod gates;
mod hard;
pub mod interval;
mod judge;
mod latency;
mod logrank;
mod mixture;
mod observation;
pub mod power;
pub(crate) mod random;
mod report;
mod settings;
mod shadow;
pub(crate) mod special;
mod telemetry;

#[cfg(test)]
mod tests;

pub use drift::{ln_dirichlet_multinomial, population_stability};
pub use latency::{BeforeAfter, latency_vote};
pub use mixture::E_MAX;
pub use observation::{Arm, Disagreement, HardFailure, Observation, Reporting, Vote};
pub use report::{ArmSizes, Assessment, Effect, GateReport, Slice, Verdict};
pub use settings::{
    AccuracySettings, AgreementSettings, DriftSettings, ErrorSettings, Gate, GateSettings, HardSettings,
    LatencySettings, SettingsMistake, TelemetrySettings,
};

use errors::Place;
use serde::{Deserialize, Serialize};

/// Everything observed about one bundle in one rollout, as sufficient statistics.
///
/// It runs on across the stages of the same bundle and is never restarted: a restart would be a second
/// chance to fail and would have to pay a share of `alpha`. Another bundle, metric or threshold needs new
/// evidence. Order of arrival matters for errors and drift only; the other gates are sums.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    errors: errors::Errors,
    latency: latency::Latency,
    shadow: shadow::Shadow,
    accuracy: accuracy::Accuracy,
    telemetry: telemetry::Telemetry,
    drift: drift::Drift,
    hard: hard::Hard,
}

impl Evidence {
    /// Takes one event in. O(log n) in the risk sets kept (at most 256), linear in the classes of the event.
    pub fn observe(&mut self, observation: &Observation, settings: &GateSettings) {
        let limit = settings.per_window;
        match observation {
            Observation::Joined { arm, cohort, stratum, site } => {
                self.errors.join(*arm, Place { cohort: *cohort, stratum, site });
            }
            Observation::Left { arm, cohort, stratum, site } => {
                // Nobody at risk there: a repeated report, nothing to take out.
                let _ = self.errors.leave(*arm, Place { cohort: *cohort, stratum, site });
            }
            Observation::FirstBad { device, arm, cohort, stratum, site, hour } => {
                let place = Place { cohort: *cohort, stratum, site };
                self.errors.first_bad(device, *arm, place, *hour, settings.errors.margin);
            }
            Observation::DeviceHour { device, arm, bad } => self.errors.device_hour(device, *arm, *bad),
            Observation::Latency { device, stratum, vote } => self.latency.vote(device, stratum, *vote),
            Observation::Exceeded { device: _, n, x } => self.latency.exceeded(*n, *x, limit),
            Observation::Shadow { device, stratum, n, disagree, classes } => {
                self.shadow.add(device, stratum, (*n, *disagree), classes, limit);
            }
            Observation::Labels { device, stratum, source, both_right, both_wrong, wins, losses } => {
                let labels = accuracy::Labelled {
                    both_right: *both_right,
                    both_wrong: *both_wrong,
                    wins: *wins,
                    losses: *losses,
                };
                if settings.accuracy.sources.contains(source) {
                    self.accuracy.add(device, stratum, labels, limit);
                } else {
                    self.accuracy.ignored = self.accuracy.ignored.saturating_add(labels.n());
                }
            }
            Observation::Telemetry { canary, control } => {
                self.telemetry.add(*canary, *control, settings.telemetry.margin);
            }
            Observation::Drift { device, arm, classes } => self.drift.add(device, *arm, classes, limit),
            Observation::Hard { device, failure } => self.hard.add(device, *failure),
        }
    }

    /// What the evidence says now, over all gates the plan uses. May be called at any time and as often as
    /// wanted: that is what the e-values are for. `arms` counts the devices compared **so far in this
    /// rollout**, so that a last stage without controls keeps what the stages before it have proven.
    pub fn assess(&self, settings: &GateSettings, arms: &ArmSizes) -> Assessment {
        Assessment::of(settings.used().into_iter().map(|gate| self.report(gate, settings, arms)).collect())
    }
}
