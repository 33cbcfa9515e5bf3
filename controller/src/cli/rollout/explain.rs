//! `edgefleet rollout explain`: why it stands where it stands, gate by gate.

use super::{
    path,
    words::{
        Figure, bar, counts, field, fold, gate_verdict, list, long, name, progress, state, telling, time,
        verdict, waiting, who,
    },
};
use crate::{
    api::rollout_views::Explanation,
    cli::{context::Context, failure::Failure},
    evidence::{GateReport, Slice, Verdict},
    rollout::{Rollout, StageState},
};
use clap::Args;
use edgefleet_shared::ids::RolloutId;
use serde::Serialize;

/// Cells of an e-value's bar.
const CELLS: usize = 20;
/// An upper bound that means: none is known.
const UNBOUNDED: f64 = 1e6;

/// Say why a rollout waits or stopped: what is missing, and what each gate has seen
#[derive(Debug, Args)]
#[command(after_help = "An e-value starts at 1 and grows with evidence; at its threshold the gate decides.
Looking at any time makes no false alarm more likely. Bars are logarithmic.")]
pub struct ExplainArgs {
    /// Its id, see `edgefleet rollout list`
    rollout: RolloutId,
}

impl ExplainArgs {
    /// # Errors
    /// [`Failure`].
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let client = context.client()?;
        let path = path(&self.rollout);
        let rollout: Rollout = client.get(&path).await?;
        let explanation: Explanation = client.get(&format!("{path}/explain")).await?;
        let shown = Shown { rollout: &rollout.id, state: state(&rollout.state), explanation: &explanation };
        context.print(&shown, |shown| text(&rollout, shown.explanation))
    }
}

#[derive(Serialize)]
struct Shown<'a> {
    rollout: &'a RolloutId,
    state: String,
    #[serde(flatten)]
    explanation: &'a Explanation,
}

pub(super) fn text(rollout: &Rollout, explanation: &Explanation) -> String {
    let mut parts = vec![head(rollout, explanation)];
    if !explanation.waiting.is_empty() {
        let waits: Vec<_> =
            explanation.waiting.iter().map(|w| format!("{} [{}]", waiting(w), who(w.who))).collect();
        parts.push(format!("WAITS FOR\n{}", list(waits.iter().map(String::as_str))));
    }
    if let Some(assessment) = &explanation.assessment {
        let gates: Vec<_> = telling(assessment).map(gate).collect();
        if !gates.is_empty() {
            parts.push(format!("GATES, together: {}", gate_verdict(assessment.verdict)));
            parts.extend(gates);
        }
    }
    if !explanation.verdicts.is_empty() {
        let decided: Vec<_> =
            explanation.verdicts.iter().map(|v| format!("{} {}", time(v.at), verdict(v))).collect();
        parts.push(format!("DECIDED\n{}", list(decided.iter().map(String::as_str))));
    }
    parts.join("\n\n")
}

fn head(rollout: &Rollout, explanation: &Explanation) -> String {
    let mut lines = vec![
        field("rollout", &format!("{} of {}", rollout.id, rollout.release.bundle)),
        field("state", &format!("{}, since {}", state(&rollout.state), time(rollout.since))),
    ];
    if let Some(stage) = explanation.stages.get(usize::from(rollout.stage)) {
        let number = usize::from(rollout.stage) + 1;
        let all = explanation.stages.len();
        lines.push(field(
            "stage",
            &format!("{} ({number} of {all}), {}", stage.name, name(stage.progress.state)),
        ));
        lines.push(field("devices", &counts(&stage.progress.counts)));
        if let Some(from) = stage.progress.soak_from {
            let mut soak =
                format!("{} from {}, at most {}", long(stage.soak), time(from), long(stage.max_soak));
            if stage.progress.extended.as_secs() > 0 {
                soak += &format!(" and {} more by order", long(stage.progress.extended));
            }
            lines.push(field("soak", &soak));
        }
        if !stage.progress.codes.is_empty() && stage.progress.state != StageState::Waiting {
            let codes: Vec<_> = stage.progress.codes.iter().map(|(code, n)| format!("{n} {code}")).collect();
            lines.push(field("failures", &codes.join(", ")));
        }
    }
    lines.join("\n")
}

fn gate(gate: &GateReport) -> String {
    let mut lines = vec![format!("{}: {}", gate.gate, gate_verdict(gate.verdict))];
    let mut say =
        |word: &str, text: String| lines.push(format!("  {word:<9}{}", fold(&text, 11, super::words::WIDTH)));
    if gate.verdict != Verdict::Powerless {
        for (word, e, without, threshold) in [
            ("harm", gate.e_harm, gate.e_harm_without_one, gate.harm_threshold),
            ("safe", gate.e_safe, gate.e_safe_without_one, gate.safe_threshold),
        ] {
            // 0: the gate has no statistics of that kind.
            if threshold > 0.0 {
                let mut line =
                    format!("{} {} of {}", bar(progress(e, threshold), CELLS), Figure(e), Figure(threshold));
                if e >= threshold && without < threshold {
                    line += &format!(
                        ", but {} without its weightiest device: one device never decides",
                        Figure(without)
                    );
                }
                say(word, line);
            }
        }
    }
    if let Some(effect) = &gate.effect {
        let high = match effect.high >= UNBOUNDED {
            true => "no upper bound yet".to_owned(),
            false => Figure(effect.high).to_string(),
        };
        say(
            "effect",
            format!("{}: {} (95 %: {} to {high})", effect.what, Figure(effect.estimate), Figure(effect.low)),
        );
    }
    if !gate.sentence.is_empty() {
        say("says", gate.sentence.clone());
    }
    if gate.observations > 0.0 {
        say("from", format!("{} observations of {} devices", Figure(gate.observations), gate.devices));
    }
    if !gate.worst.is_empty() {
        say("worst", gate.worst.iter().map(slice).collect::<Vec<_>>().join("; "));
    }
    if !gate.examples.is_empty() {
        let devices: Vec<_> = gate.examples.iter().map(ToString::to_string).collect();
        say("look at", devices.join(", "));
    }
    if let Some(alarm) = &gate.alarm {
        say("ALARM", alarm.clone());
    }
    lines.join("\n")
}

fn slice(slice: &Slice) -> String {
    format!("{} {} of {}", slice.name, Figure(slice.bad), Figure(slice.of))
}
