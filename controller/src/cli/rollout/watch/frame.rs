//! What is to be seen of a rollout at one moment, and what changed since the last one. Pure.

use crate::{
    api::rollout_views::Explanation,
    cli::rollout::words,
    evidence::{Gate, GateReport, Verdict},
    rollout::{Bucket, Counts, Mode, Rollout, StageState},
};
use edgefleet_shared::{
    ids::{BundleName, RolloutId},
    time::Timestamp,
};
use serde::Serialize;

/// Everything a view shows; equal frames look the same.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::cli::rollout) struct Frame {
    pub rollout: RolloutId,
    pub bundle: BundleName,
    pub state: String,
    /// In words, with the reason.
    pub saying: String,
    pub stages: Vec<StageFrame>,
    pub gates: Vec<GateFrame>,
    pub waiting: Vec<String>,
    /// The last decision as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    pub over: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::cli::rollout) struct StageFrame {
    pub name: String,
    pub mode: Mode,
    pub state: StageState,
    pub devices: u64,
    /// Those that have what the stage brings.
    pub done: u64,
    pub failed: u64,
    pub counts: Counts,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::cli::rollout) struct GateFrame {
    pub gate: Gate,
    pub verdict: Verdict,
    pub e_harm: f64,
    pub harm_threshold: f64,
    pub e_safe: f64,
    pub safe_threshold: f64,
}

/// A frame with its time, which alone is no change.
#[derive(Serialize)]
pub(super) struct At<'f> {
    pub at: Timestamp,
    #[serde(flatten)]
    pub frame: &'f Frame,
}

impl Frame {
    pub(in crate::cli::rollout) fn of(rollout: &Rollout, explanation: &Explanation) -> Self {
        let stages = explanation.stages.iter().map(|stage| {
            let (done, devices) = stage.done_of();
            let counts = stage.progress.counts.clone();
            let failed = counts.sum(|b| matches!(b, Bucket::Failed | Bucket::TimedOut | Bucket::Lost));
            let (name, mode, state) = (stage.name.clone(), stage.mode, stage.progress.state);
            StageFrame { name, mode, state, devices, done, failed, counts }
        });
        let gates = explanation.assessment.iter().flat_map(words::telling);
        Self {
            rollout: rollout.id.clone(),
            bundle: rollout.release.bundle.clone(),
            state: rollout.state.name().as_str().to_owned(),
            saying: words::state(&rollout.state),
            stages: stages.collect(),
            gates: gates.map(GateFrame::of).collect(),
            waiting: explanation.waiting.iter().map(words::waiting).collect(),
            verdict: explanation.verdicts.last().map(words::verdict),
            over: rollout.is_terminal(),
        }
    }
}

impl GateFrame {
    fn of(gate: &GateReport) -> Self {
        Self {
            gate: gate.gate,
            verdict: gate.verdict,
            e_harm: gate.e_harm,
            harm_threshold: gate.harm_threshold,
            e_safe: gate.e_safe,
            safe_threshold: gate.safe_threshold,
        }
    }

    /// The side that is nearer to its threshold: whether it is harm, and e-value and threshold.
    pub(super) fn leading(&self) -> (bool, f64, f64) {
        let harm = words::progress(self.e_harm, self.harm_threshold);
        let safe = words::progress(self.e_safe, self.safe_threshold);
        match harm > safe || self.safe_threshold <= 0.0 {
            true => (true, self.e_harm, self.harm_threshold),
            false => (false, self.e_safe, self.safe_threshold),
        }
    }

    /// `safe 12.4 of 20`.
    pub(super) fn figures(&self) -> String {
        let (harm, e, threshold) = self.leading();
        if self.verdict == Verdict::Powerless || threshold <= 0.0 {
            return words::gate_verdict(self.verdict).to_owned();
        }
        let side = if harm { "harm" } else { "safe" };
        let of = format!("{side} {} of {}", words::Figure(e), words::Figure(threshold));
        match self.verdict {
            Verdict::Inconclusive | Verdict::NotAsked => of,
            decided => format!("{of}, {}", words::gate_verdict(decided)),
        }
    }
}

/// What is new in `next`, a line each. Waiting is told again only when it is for something else: its numbers
/// change all the time.
pub(in crate::cli::rollout) fn changes(last: Option<&Frame>, next: &Frame) -> Vec<String> {
    let mut lines = Vec::new();
    if last.is_none_or(|last| last.saying != next.saying) {
        lines.push(format!("{} of {} is {}", next.rollout, next.bundle, next.saying));
    }
    for (index, stage) in next.stages.iter().enumerate() {
        let before = last.and_then(|last| last.stages.get(index));
        let quiet = before.is_none() && stage.state == StageState::Waiting;
        if before == Some(stage) || quiet {
            continue;
        }
        let kind = match before.map(|before| before.state) {
            Some(state) if state == stage.state => words::name(state),
            _ => words::name(stage.state).to_uppercase(),
        };
        lines.push(format!("stage {}: {kind}; {}", stage.name, words::counts(&stage.counts)));
    }
    for gate in &next.gates {
        let before = last.and_then(|last| last.gates.iter().find(|before| before.gate == gate.gate));
        if before.is_none_or(|before| before.verdict != gate.verdict) {
            lines.push(format!("gate {}: {}", gate.gate, gate_line(gate)));
        }
    }
    if next.verdict.is_some() && last.is_none_or(|last| last.verdict != next.verdict) {
        lines.extend(next.verdict.iter().map(|verdict| format!("decided: {verdict}")));
    }
    let known: Vec<_> =
        last.iter().flat_map(|last| &last.waiting).map(|text| without_numbers(text)).collect();
    for text in next.waiting.iter().filter(|text| !known.contains(&without_numbers(text))) {
        lines.push(format!("waits: {text}"));
    }
    lines
}

fn gate_line(gate: &GateFrame) -> String {
    match gate.verdict {
        Verdict::Inconclusive | Verdict::NotAsked => {
            format!("{} ({})", words::gate_verdict(gate.verdict), gate.figures())
        }
        Verdict::Pass | Verdict::Fail | Verdict::Powerless => gate.figures(),
    }
}

fn without_numbers(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}
