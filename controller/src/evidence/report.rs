//! What an assessment says: a verdict per gate with its numbers, and one for the stage.

use super::settings::Gate;
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};

/// Distinct devices compared so far in this rollout, per arm: what says that a gate has no power.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmSizes {
    /// All that run the candidate before the last stage: the hard limits are shares of them.
    pub canaries: u32,
    /// Those of them that have controls to be compared with.
    pub compared: u32,
    pub controls: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Pass,
    Fail,
    Inconclusive,
    /// Too few devices for this gate ever to decide; a person must (DECISIONS 25).
    Powerless,
    /// Reported for information only.
    NotAsked,
}

/// An estimate with a 95 % confidence sequence (valid at every look); for people and plots, not for verdicts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    /// What is estimated, e.g. `rate of first bad windows, canary over control`.
    pub what: String,
    pub estimate: f64,
    pub low: f64,
    /// Saturates at 1e6 where no upper bound is known.
    pub high: f64,
}

/// A stratum (or class) in which the candidate looks worst. Descriptive: not corrected for choosing it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    pub name: String,
    pub bad: f64,
    pub of: f64,
}

/// One gate. All e-values are finite: they saturate at 1e300.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateReport {
    pub gate: Gate,
    pub verdict: Verdict,
    /// Asks for a pause and a person's look; never decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alarm: Option<String>,
    pub e_harm: f64,
    /// A lower bound of `e_harm` without its most influential device; the verdict needs this one too.
    pub e_harm_without_one: f64,
    /// `1 / (alpha * weight)`; 0 when the gate has no statistics of harm.
    pub harm_threshold: f64,
    pub e_safe: f64,
    pub e_safe_without_one: f64,
    /// `1 / beta`; 0 when the gate has no statistics of safety.
    pub safe_threshold: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<Effect>,
    /// Observations that weigh: events, votes, comparisons, labels.
    pub observations: f64,
    /// Devices that contributed, at least (counted exactly up to 16 where only a sketch is kept).
    pub devices: u32,
    /// For people: one or two sentences.
    pub sentence: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub worst: Vec<Slice>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<DeviceId>,
}

/// All gates, and what they say together: any `Fail` fails; every asked gate `Pass` passes; otherwise
/// `Powerless` if some gate is and the rest passed, else `Inconclusive`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assessment {
    pub verdict: Verdict,
    pub gates: Vec<GateReport>,
}

impl Assessment {
    pub fn of(gates: Vec<GateReport>) -> Self {
        let any = |wanted| gates.iter().any(|g: &GateReport| g.verdict == wanted);
        let verdict = match () {
            () if any(Verdict::Fail) => Verdict::Fail,
            () if any(Verdict::Inconclusive) => Verdict::Inconclusive,
            () if any(Verdict::Powerless) => Verdict::Powerless,
            () if any(Verdict::Pass) => Verdict::Pass,
            () => Verdict::NotAsked,
        };
        Self { verdict, gates }
    }

    pub fn gate(&self, gate: Gate) -> Option<&GateReport> {
        self.gates.iter().find(|g| g.gate == gate)
    }

    /// The alarms of all gates, each with its gate.
    pub fn alarms(&self) -> impl Iterator<Item = (Gate, &str)> {
        self.gates.iter().filter_map(|g| g.alarm.as_deref().map(|text| (g.gate, text)))
    }
}
