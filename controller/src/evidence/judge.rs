//! From numbers to verdicts, one rule for all statistical gates.

use super::mixture::e_value;
use super::report::{ArmSizes, GateReport, Verdict};
use super::settings::{Gate, GateSettings};

/// ln E, its leave-one-out bound, and the devices that speak on this side (at least).
#[derive(Debug, Clone, Copy)]
pub(super) struct Side {
    pub(super) ln_e: f64,
    pub(super) ln_without_one: f64,
    pub(super) devices: u32,
}

impl Side {
    pub(super) fn new((ln_e, ln_without_one): (f64, f64), devices: u32) -> Self {
        Self { ln_e, ln_without_one: ln_without_one.min(ln_e), devices }
    }

    /// Beyond the threshold, also without the most influential device, and with enough devices (DECISIONS 26).
    pub(super) fn proves(&self, threshold: f64, min_devices: u32) -> bool {
        self.devices >= min_devices && self.ln_e >= threshold.ln() && self.ln_without_one >= threshold.ln()
    }
}

/// What a gate has found, before the plan's say.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) harm: Side,
    /// Harm counts only together with this (drift: a large enough effect).
    pub(super) matters: bool,
    pub(super) safe: Side,
    /// `true`: proven safe. Its `Side` is for show.
    pub(super) is_safe: bool,
}

impl Found {
    /// Harm first; then too few devices; then safety. Evidence of harm counts whatever the fleet's size.
    fn verdict(&self, gate: Gate, settings: &GateSettings, arms: &ArmSizes) -> Verdict {
        let small = arms.compared < settings.canaries_needed(gate) || arms.controls < settings.min_controls;
        if !settings.decides(gate) {
            Verdict::NotAsked
        } else if self.harms(gate, settings) {
            Verdict::Fail
        } else if gate.is_device_level() && small {
            Verdict::Powerless
        } else if self.is_safe {
            Verdict::Pass
        } else {
            Verdict::Inconclusive
        }
    }

    fn harms(&self, gate: Gate, settings: &GateSettings) -> bool {
        self.matters && self.harm.proves(settings.harm_threshold(gate), settings.min_devices)
    }

    /// The report without its words; the gate adds those.
    pub(super) fn report(&self, gate: Gate, settings: &GateSettings, arms: &ArmSizes) -> GateReport {
        GateReport {
            gate,
            verdict: self.verdict(gate, settings, arms),
            alarm: None,
            e_harm: e_value(self.harm.ln_e),
            e_harm_without_one: e_value(self.harm.ln_without_one),
            harm_threshold: settings.harm_threshold(gate),
            e_safe: e_value(self.safe.ln_e),
            e_safe_without_one: e_value(self.safe.ln_without_one),
            safe_threshold: settings.safe_threshold(),
            effect: None,
            observations: 0.0,
            devices: 0,
            sentence: String::new(),
            worst: Vec::new(),
            examples: Vec::new(),
        }
    }
}

/// The end of every sentence: what the verdict is and why not another.
pub(super) fn closing(report: &GateReport, settings: &GateSettings, arms: &ArmSizes) -> String {
    match report.verdict {
        Verdict::Fail => format!(
            "Harm is proven: E = {} (needs {}), and {} without any one device.",
            show(report.e_harm),
            show(report.harm_threshold),
            show(report.e_harm_without_one)
        ),
        Verdict::Pass => "Safe.".to_owned(),
        Verdict::Inconclusive => {
            let pair = |e: f64, without_one: f64, threshold: f64| {
                format!(
                    "E = {} of {}, {} without any one device",
                    show(e),
                    show(threshold),
                    show(without_one)
                )
            };
            let harm = pair(report.e_harm, report.e_harm_without_one, report.harm_threshold);
            match report.safe_threshold > 0.0 {
                true => {
                    let safe = pair(report.e_safe, report.e_safe_without_one, report.safe_threshold);
                    format!("Not decided. Harm: {harm}. Safe: {safe}.")
                }
                false => format!("Not decided. Harm: {harm}."),
            }
        }
        Verdict::Powerless => format!(
            "Powerless: {} canaries and {} controls are compared, at least {} and {} are needed; a person must decide.",
            arms.compared,
            arms.controls,
            settings.canaries_needed(report.gate),
            settings.min_controls
        ),
        Verdict::NotAsked => "For information only; it has no say here.".to_owned(),
    }
}

/// An e-value for people: two digits below 10, whole above, powers of ten beyond a million.
pub(super) fn show(e: f64) -> String {
    match e {
        e if e >= 1e6 => format!("{e:.0e}"),
        e if e >= 10.0 => format!("{e:.0}"),
        e => format!("{e:.2}"),
    }
}
