//! The settings of the gates: what a plan asks, with the defaults of `research/fleet-control.md` 6.3 and 6.4.

use super::mixture::ln_sign;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    Hard,
    Errors,
    Latency,
    Agreement,
    Drift,
    Telemetry,
    Accuracy,
}

impl Gate {
    pub const ALL: [Self; 7] = [
        Self::Hard,
        Self::Errors,
        Self::Latency,
        Self::Agreement,
        Self::Drift,
        Self::Telemetry,
        Self::Accuracy,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Errors => "errors",
            Self::Latency => "latency",
            Self::Agreement => "agreement",
            Self::Drift => "drift",
            Self::Telemetry => "telemetry",
            Self::Accuracy => "accuracy",
        }
    }

    /// Compares canaries with controls device by device, so it needs enough of both (DECISIONS 25).
    pub fn is_device_level(self) -> bool {
        match self {
            Self::Errors | Self::Latency | Self::Drift | Self::Telemetry => true,
            Self::Hard | Self::Agreement | Self::Accuracy => false,
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The settings of one stage. `planned` and everything but `gates` are the same in all stages of a
/// rollout: evidence runs on across stages, and a threshold that moved would void it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// What this stage asks.
    pub gates: BTreeSet<Gate>,
    /// What any stage of the plan asks; these share `alpha`. Empty: the same as `gates`.
    pub planned: BTreeSet<Gate>,
    /// Chance, per rollout, that a harmless bundle is failed by statistics.
    pub alpha: f64,
    /// Chance, per required gate, that a bundle worse than its margin is called safe.
    pub beta: f64,
    /// No statistical verdict rests on fewer devices.
    pub min_devices: u32,
    /// Fewer canaries or controls than these: device-level gates are powerless.
    pub min_canaries: u32,
    pub min_controls: u32,
    /// At most so many observations of one device and window weigh.
    pub per_window: u32,
    pub hard: HardSettings,
    pub errors: ErrorSettings,
    pub latency: LatencySettings,
    pub agreement: AgreementSettings,
    pub drift: DriftSettings,
    pub telemetry: TelemetrySettings,
    pub accuracy: AccuracySettings,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            gates: [Gate::Hard, Gate::Errors, Gate::Latency, Gate::Drift, Gate::Telemetry].into(),
            planned: BTreeSet::new(),
            alpha: 0.01,
            beta: 0.05,
            min_devices: 3,
            min_canaries: 10,
            min_controls: 20,
            per_window: 300,
            hard: HardSettings::default(),
            errors: ErrorSettings::default(),
            latency: LatencySettings::default(),
            agreement: AgreementSettings::default(),
            drift: DriftSettings::default(),
            telemetry: TelemetrySettings::default(),
            accuracy: AccuracySettings::default(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HardSettings {
    /// Devices that went back by themselves, or were lost, at which the stage fails ...
    pub failures: u32,
    /// ... once they are also more than this share of the canaries.
    pub share: f64,
}

impl Default for HardSettings {
    fn default() -> Self {
        Self { failures: 2, share: 0.02 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ErrorSettings {
    /// A ratio of rates up to this is no harm.
    pub margin: f64,
    /// Share of bad device-hours below which a candidate is safe whatever the controls do.
    pub max_bad_rate: f64,
    pub harm_weight: f64,
}

impl Default for ErrorSettings {
    fn default() -> Self {
        Self { margin: 1.25, max_bad_rate: 0.02, harm_weight: 0.3 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatencySettings {
    /// A device counts as slower when its p95 grew by more than this times the median of its controls.
    pub factor: f64,
    /// Alarm: share of results expected above the frozen p95, times `alarm_margin`.
    pub exceed_share: f64,
    pub alarm_margin: f64,
    pub harm_weight: f64,
}

impl Default for LatencySettings {
    fn default() -> Self {
        Self { factor: 1.1, exceed_share: 0.05, alarm_margin: 1.5, harm_weight: 0.2 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgreementSettings {
    /// Share of results that must equal the incumbent's.
    pub floor: f64,
    /// Also look at each class by itself.
    pub per_class: bool,
    /// The floor of a single class: lower, since a class has its own hard cases.
    pub class_floor: f64,
    pub harm_weight: f64,
}

impl Default for AgreementSettings {
    fn default() -> Self {
        Self { floor: 0.98, per_class: true, class_floor: 0.9, harm_weight: 0.2 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DriftSettings {
    pub psi_warn: f64,
    pub psi_fail: f64,
    /// Answers of each arm before the gate may pass.
    pub min_samples: u32,
    pub harm_weight: f64,
}

impl Default for DriftSettings {
    fn default() -> Self {
        Self { psi_warn: 0.1, psi_fail: 0.25, min_samples: 500, harm_weight: 0.2 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySettings {
    /// A ratio of silent shares up to this is no harm.
    pub margin: f64,
    /// Share of the expected canaries that must have reported for a pass.
    pub min_coverage: f64,
    pub harm_weight: f64,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { margin: 1.25, min_coverage: 0.9, harm_weight: 0.1 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccuracySettings {
    /// Accuracy (as a share) that the candidate may lose and still be called safe.
    pub max_drop: f64,
    /// Sources of labels that count; others are ignored (DECISIONS 13).
    pub sources: BTreeSet<String>,
    pub harm_weight: f64,
}

impl Default for AccuracySettings {
    fn default() -> Self {
        Self { max_drop: 0.02, sources: ["controller".to_owned()].into(), harm_weight: 0.3 }
    }
}

/// One mistake in the settings, naming the field, what it is and what it may be.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingsMistake {
    pub field: &'static str,
    pub found: String,
    pub wanted: &'static str,
}

impl fmt::Display for SettingsMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}; it must be {}", self.field, self.found, self.wanted)
    }
}

impl std::error::Error for SettingsMistake {}

/// Twice what the smallest share of `alpha` above 1e-300 asks for.
const MOST_NEEDED: u32 = 2_048;

impl GateSettings {
    /// Every gate that shares `alpha`: planned or asked.
    pub fn used(&self) -> BTreeSet<Gate> {
        self.planned.union(&self.gates).copied().collect()
    }

    fn uses(&self, gate: Gate) -> bool {
        self.planned.contains(&gate) || self.gates.contains(&gate)
    }

    /// Whether the gate decides in this stage. With accuracy in the plan, agreement only informs
    /// (DECISIONS 24): a better model must be allowed to disagree.
    pub fn decides(&self, gate: Gate) -> bool {
        self.gates.contains(&gate) && !(gate == Gate::Agreement && self.uses(Gate::Accuracy))
    }

    fn raw_weight(&self, gate: Gate) -> f64 {
        match gate {
            Gate::Hard => 0.0,
            Gate::Errors => self.errors.harm_weight,
            Gate::Latency => self.latency.harm_weight,
            Gate::Agreement => self.agreement.harm_weight,
            Gate::Drift => self.drift.harm_weight,
            Gate::Telemetry => self.telemetry.harm_weight,
            Gate::Accuracy => self.accuracy.harm_weight,
        }
    }

    /// The gate's share of `alpha`: raw weights of the gates used, divided by their sum, so that the
    /// shares sum to 1 and Ville's inequality with a union bound keeps all false aborts below `alpha`.
    /// 0 for a gate that is not used or only informs.
    pub fn weight(&self, gate: Gate) -> f64 {
        let labelled = self.uses(Gate::Accuracy);
        let counts = |g: Gate| self.uses(g) && !(g == Gate::Agreement && labelled);
        if !counts(gate) {
            return 0.0;
        }
        let sum: f64 = Gate::ALL.into_iter().filter(|g| counts(*g)).map(|g| self.raw_weight(g)).sum();
        if sum > 0.0 { self.raw_weight(gate) / sum } else { 0.0 }
    }

    /// `1 / (alpha * weight)`, at most 1e300.
    pub fn harm_threshold(&self, gate: Gate) -> f64 {
        let share = self.alpha * self.weight(gate);
        if share > 1e-300 { 1.0 / share } else { 1e300 }
    }

    /// Canaries below which the gate is powerless: `min_canaries`, and for the sign test of latency as many as
    /// it takes to prove harm without any one of them if all got slower (13 with the default plan).
    pub fn canaries_needed(&self, gate: Gate) -> u32 {
        let enough = |n: &u32| ln_sign(f64::from(n - 1), 0.0) >= self.harm_threshold(gate).ln();
        match gate {
            Gate::Latency => (1..=MOST_NEEDED).find(enough).unwrap_or(MOST_NEEDED).max(self.min_canaries),
            _ => self.min_canaries,
        }
    }

    pub fn safe_threshold(&self) -> f64 {
        if self.beta > 1e-300 { 1.0 / self.beta } else { 1e300 }
    }

    /// Visits every field before giving up, so that one look shows all mistakes.
    ///
    /// # Errors
    /// All mistakes found, in the order of the fields.
    pub fn validate(&self) -> Result<(), Vec<SettingsMistake>> {
        let mut wrong = Vec::new();
        let mut check = |ok: bool, field: &'static str, found: String, wanted: &'static str| {
            if !ok {
                wrong.push(SettingsMistake { field, found, wanted });
            }
        };
        let open = |x: f64, low: f64, high: f64| x > low && x < high;
        check(
            self.gates.is_empty() || self.gates.iter().any(|gate| self.decides(*gate)),
            "gates",
            "`agreement` alone, which only informs while `accuracy` is planned".into(),
            "empty or hold a gate that decides",
        );
        check(open(self.alpha, 0.0, 0.5), "alpha", self.alpha.to_string(), "above 0 and below 0.5");
        check(open(self.beta, 0.0, 0.5), "beta", self.beta.to_string(), "above 0 and below 0.5");
        check(
            (3..=1000).contains(&self.min_devices),
            "min_devices",
            self.min_devices.to_string(),
            "between 3 and 1000",
        );
        check(self.min_canaries >= 3, "min_canaries", self.min_canaries.to_string(), "at least 3");
        check(self.min_controls >= 3, "min_controls", self.min_controls.to_string(), "at least 3");
        check(
            (1..=300).contains(&self.per_window),
            "per_window",
            self.per_window.to_string(),
            "between 1 and 300",
        );
        check(self.hard.failures >= 1, "hard.failures", self.hard.failures.to_string(), "at least 1");
        let share = self.hard.share;
        check((0.0..1.0).contains(&share), "hard.share", share.to_string(), "at least 0 and below 1");
        let margin = "at least 1 and at most 10";
        for (field, value) in
            [("errors.margin", self.errors.margin), ("telemetry.margin", self.telemetry.margin)]
        {
            check((1.0..=10.0).contains(&value), field, value.to_string(), margin);
        }
        check(
            open(self.errors.max_bad_rate, 0.0, 0.5),
            "errors.max_bad_rate",
            self.errors.max_bad_rate.to_string(),
            "above 0 and below 0.5",
        );
        check(
            (1.0..=10.0).contains(&self.latency.factor),
            "latency.factor",
            self.latency.factor.to_string(),
            margin,
        );
        check(
            open(self.latency.exceed_share, 0.0, 0.5),
            "latency.exceed_share",
            self.latency.exceed_share.to_string(),
            "above 0 and below 0.5",
        );
        check(
            (1.0..=10.0).contains(&self.latency.alarm_margin),
            "latency.alarm_margin",
            self.latency.alarm_margin.to_string(),
            margin,
        );
        for (field, value) in
            [("agreement.floor", self.agreement.floor), ("agreement.class_floor", self.agreement.class_floor)]
        {
            check(open(value, 0.5, 1.0), field, value.to_string(), "above 0.5 and below 1");
        }
        check(
            open(self.drift.psi_warn, 0.0, 10.0),
            "drift.psi_warn",
            self.drift.psi_warn.to_string(),
            "above 0",
        );
        check(
            self.drift.psi_fail >= self.drift.psi_warn && self.drift.psi_fail < 10.0,
            "drift.psi_fail",
            self.drift.psi_fail.to_string(),
            "at least `drift.psi_warn` and below 10",
        );
        check(
            self.drift.min_samples >= 1,
            "drift.min_samples",
            self.drift.min_samples.to_string(),
            "at least 1",
        );
        check(
            self.telemetry.min_coverage > 0.0 && self.telemetry.min_coverage <= 1.0,
            "telemetry.min_coverage",
            self.telemetry.min_coverage.to_string(),
            "above 0 and at most 1",
        );
        check(
            open(self.accuracy.max_drop, 0.0, 0.5),
            "accuracy.max_drop",
            self.accuracy.max_drop.to_string(),
            "above 0 and below 0.5",
        );
        if self.used().contains(&Gate::Accuracy) {
            let some = !self.accuracy.sources.is_empty();
            check(some, "accuracy.sources", "empty".into(), "at least one source of labels");
        }
        for (field, gate) in [
            ("errors.harm_weight", Gate::Errors),
            ("latency.harm_weight", Gate::Latency),
            ("agreement.harm_weight", Gate::Agreement),
            ("drift.harm_weight", Gate::Drift),
            ("telemetry.harm_weight", Gate::Telemetry),
            ("accuracy.harm_weight", Gate::Accuracy),
        ] {
            let weight = self.raw_weight(gate);
            check(weight > 0.0 && weight <= 1.0, field, weight.to_string(), "above 0 and at most 1");
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}
