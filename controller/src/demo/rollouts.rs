//! Rollouts by plan: given to the controller, watched until they end, their verdicts told as they come.

use super::{
    DemoError,
    report::{RolloutReport, VerdictReport},
    stage::{Stage, text},
    tale::Tale,
};
use crate::{
    api::{
        rollout_views::{NewRollout, SignedVerdict},
        views::Listing,
    },
    evidence::GateReport,
    rollout::{Because, Bucket, Decision, Mode, Plan, Rollout, StageState, State, VerdictRecord},
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Longest time a rollout of the demo may take to its next event, seconds.
const LIMIT: u64 = 55;
/// How often devices are asked for their counts while evidence is gathered. Windows of five minutes would be
/// in time for a real fleet, not for this one; a label counts once however often it is asked for.
const COUNTS: Duration = Duration::from_secs(2);
/// Longest wait for the last report.
const SETTLED: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);
/// Width of explanations on a terminal.
const WIDTH: usize = 100;

/// A rollout under way, and what has been told of it.
pub(super) struct Watched {
    pub id: String,
    pub bundle: String,
    told: usize,
    stage: Option<(u16, StageState)>,
    counts_asked: Option<Instant>,
}

impl Tale<'_> {
    /// Gives the controller a plan.
    pub(super) async fn roll_out(&mut self, plan: Plan) -> Result<Watched, DemoError> {
        let bundle = plan.rollout.bundle.to_string();
        let stages: Vec<_> = plan.stages.iter().map(|stage| stage.name.clone()).collect();
        let new = NewRollout {
            plan,
            reason: Some("demo".to_owned()),
            confirmed: true,
            dry_run: false,
            start: true,
        };
        let (taken, answer) = self.stage.post("/api/v1/rollouts", &self.stage.token, &new).await?;
        let id = text(&answer["id"]);
        if !taken || id.is_empty() {
            return Err(DemoError::Refused {
                what: format!("the plan for {bundle}"),
                answer: answer.to_string(),
            });
        }
        self.console.say(&format!("   rollout {id} of {bundle}: {}", stages.join(" > ")));
        Ok(Watched { id, bundle, told: 0, stage: None, counts_asked: None })
    }

    /// Tells what happens until `enough` says so.
    ///
    /// # Errors
    /// [`DemoError::Waited`] with the rollout's own explanation if it takes too long.
    pub(super) async fn watch(
        &mut self,
        watched: &mut Watched,
        what: &str,
        enough: impl Fn(&Rollout) -> bool,
    ) -> Result<Rollout, DemoError> {
        let started = Instant::now();
        loop {
            let state = match self.look(watched).await {
                Ok(rollout) if enough(&rollout) => {
                    *self.stage.trial.lock() = None;
                    return Ok(rollout);
                }
                Ok(rollout) => sentences(&rollout),
                // A controller that is just starting again does not answer.
                Err(error @ DemoError::Ask { .. }) => error.to_string(),
                Err(error) => return Err(error),
            };
            if started.elapsed() > Duration::from_secs(LIMIT) {
                return Err(DemoError::Waited { what: what.to_owned(), seconds: LIMIT, state });
            }
            self.console.refresh(&self.stage).await;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Watches to the end and takes it into the report.
    pub(super) async fn watch_to_end(&mut self, watched: &mut Watched) -> Result<Ended, DemoError> {
        let what = format!("the end of the rollout of {}", watched.bundle);
        let rollout = self.watch(watched, &what, |rollout| is_over(&rollout.state)).await?;
        let path = format!("/api/v1/rollouts/{}/verdicts?limit=1000", watched.id);
        let started = Instant::now();
        // The last verdict is signed and logged a moment after the state it is about.
        let verdicts = loop {
            let found: Listing<SignedVerdict> = self.stage.get_as(&path).await?;
            let last = found.items.last().map(|one| one.record.decision);
            if last.is_some_and(ends) {
                break found.items.into_iter().map(|one| one.record).collect::<Vec<_>>();
            }
            if started.elapsed() > Duration::from_secs(LIMIT) {
                let state = format!("the last one is {last:?}");
                return Err(DemoError::Waited { what: "the last verdict".into(), seconds: LIMIT, state });
            }
            tokio::time::sleep(POLL).await;
        };
        self.tell_new(watched, &rollout, &verdicts);
        let state = rollout.state.name().as_str().to_owned();
        self.report.rollouts.push(RolloutReport {
            id: watched.id.clone(),
            bundle: watched.bundle.clone(),
            state: state.clone(),
            verdicts: verdicts.iter().map(reported).collect(),
        });
        Ok(Ended { state, rollout, verdicts })
    }

    /// One look: new verdicts are told, devices asked for their counts, labels sent where they are wanted.
    async fn look(&mut self, watched: &mut Watched) -> Result<Rollout, DemoError> {
        let rollout: Rollout = self.stage.get_as(&format!("/api/v1/rollouts/{}", watched.id)).await?;
        let path = format!("/api/v1/rollouts/{}/verdicts?limit=1000", watched.id);
        let found: Listing<SignedVerdict> = self.stage.get_as(&path).await?;
        let verdicts: Vec<_> = found.items.into_iter().map(|one| one.record).collect();
        self.tell_new(watched, &rollout, &verdicts);
        let at = usize::from(rollout.stage);
        let Some((plan, stage)) = rollout.plan.stages.get(at).zip(rollout.stages.get(at)) else {
            return Ok(rollout);
        };
        let soaking = stage.state == StageState::Soaking;
        if watched.stage != Some((rollout.stage, stage.state)) {
            watched.stage = Some((rollout.stage, stage.state));
            if soaking && plan.mode == Mode::Shadow {
                let devices = stage.counts.get(Bucket::Shadowing);
                self.console.say(&format!(
                    "   {} runs beside the active bundle on {devices} devices; each of their images is labelled once",
                    watched.bundle
                ));
            }
        }
        let labels = (soaking && plan.mode == Mode::Shadow).then(|| watched.bundle.clone());
        *self.stage.trial.lock() = labels;
        let due = watched.counts_asked.is_none_or(|asked| asked.elapsed() >= COUNTS);
        if soaking && due {
            watched.counts_asked = Some(Instant::now());
            self.stage.ask_for_counts().await;
        }
        Ok(rollout)
    }

    fn tell_new(&mut self, watched: &mut Watched, rollout: &Rollout, verdicts: &[VerdictRecord]) {
        for (at, verdict) in verdicts.iter().enumerate().skip(watched.told) {
            let before = at.checked_sub(1).and_then(|before| verdicts.get(before));
            for line in lines(verdict, before, rollout) {
                self.console.say(&line);
            }
        }
        watched.told = watched.told.max(verdicts.len());
    }

    /// The token of somebody else, with this role.
    pub(super) async fn second_person(&mut self, name: &str, role: &str) -> Result<String, DemoError> {
        let args = ["token", "create", name, "--role", role, "--ttl", "1h"];
        let made = self.stage.command(&args).await?;
        let token = text(&made["text"]);
        if token.is_empty() {
            return Err(DemoError::Output { command: args.join(" "), output: made.to_string() });
        }
        Ok(token)
    }

    /// Agrees to what a rollout asks for. Returns whether that was taken, and the answer.
    pub(super) async fn approve(
        &self,
        watched: &Watched,
        token: &str,
        reason: &str,
    ) -> Result<(bool, Value), DemoError> {
        let path = format!("/api/v1/rollouts/{}/approval", watched.id);
        self.stage.post(&path, token, &json!({"agree": true, "reason": reason})).await
    }

    /// Why a rollout stands where it stands, as `rollout explain` has it: what its gates say.
    pub(super) fn explain(&mut self, rollout: &Rollout) {
        let Some(seen) = &rollout.assessment else { return };
        for gate in seen.gates.iter().filter(|gate| gate.observations > 0.0) {
            for line in numbers(gate) {
                self.console.say(&line);
            }
        }
    }
}

/// A rollout at its end.
pub(super) struct Ended {
    pub state: String,
    pub rollout: Rollout,
    pub verdicts: Vec<VerdictRecord>,
}

impl Ended {
    /// The verdict that ended or passed the stage of this name.
    pub(super) fn on(&self, stage: &str, decision: Decision) -> Option<&VerdictRecord> {
        let about = |one: &&VerdictRecord| one.stage.as_ref().is_some_and(|(_, name)| name == stage);
        self.verdicts.iter().filter(about).find(|one| one.decision == decision)
    }

    /// All of it in one line, for a check that did not hold.
    pub(super) fn short(&self) -> String {
        let one = |verdict: &VerdictRecord| {
            let VerdictReport { stage, decision, rule, by, .. } = reported(verdict);
            let who = rule.or_else(|| by.map(|by| name_of(&by).to_owned())).unwrap_or_default();
            format!("{} {decision} ({who})", stage.unwrap_or_default()).trim_start().to_owned()
        };
        let all: Vec<_> = self.verdicts.iter().map(one).collect();
        format!("{}: {}", self.state, all.join(", "))
    }
}

pub(super) fn is_over(state: &State) -> bool {
    match state {
        State::Reverted { .. }
        | State::Aborted
        | State::Completed { .. }
        | State::Superseded { .. }
        | State::Expired
        | State::Paused { .. } => true,
        State::Draft
        | State::PendingApproval
        | State::Ready
        | State::Scheduled { .. }
        | State::Assigning { .. }
        | State::Running
        | State::Reverting => false,
    }
}

/// Whether nothing follows such a verdict by itself.
fn ends(decision: Decision) -> bool {
    use Decision::{Aborted, Completed, Expired, Paused, Reverted, Superseded};
    matches!(decision, Aborted | Completed | Expired | Paused | Reverted | Superseded)
}

/// The text of a unit variant, as it is in JSON.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn reported(verdict: &VerdictRecord) -> VerdictReport {
    let (rule, by, sentence) = match &verdict.because {
        Because::Rule { rule, sentence } => (Some(word(rule)), None, sentence.clone()),
        Because::Person { by, reason } => (None, Some(by.clone()), reason.clone()),
    };
    let stage = verdict.stage.as_ref().map(|(_, name)| name.clone());
    VerdictReport { stage, decision: word(&verdict.decision), rule, by, sentence }
}

/// `admin` of `token:b5qcambjaebi (admin)`.
fn name_of(actor: &str) -> &str {
    actor.split_once('(').map_or(actor, |(_, name)| name.trim_end_matches(')'))
}

/// A verdict as people read it, with what the gates of its stage said.
fn lines(verdict: &VerdictRecord, before: Option<&VerdictRecord>, rollout: &Rollout) -> Vec<String> {
    let VerdictReport { stage, decision, rule, by, sentence } = reported(verdict);
    let stage = stage.unwrap_or_else(|| "-".to_owned());
    let decision = decision.trim_start_matches("stage-").to_uppercase();
    let who = match (rule, by) {
        (Some(rule), _) => format!("rule {rule}"),
        (None, by) => format!("by {}", by.as_deref().map_or("", name_of)),
    };
    // A consequence has the words of its cause, which stand in the line above.
    let known = sentence.is_empty() || before.is_some_and(|before| before.because == verdict.because);
    let words = if known { String::new() } else { format!(": {sentence}") };
    let mut lines = wrapped(&format!("{decision:<12} {stage:<7} {who}{words}"), "   ", 21);
    let decided = matches!(verdict.decision, Decision::StagePassed | Decision::StageInconclusive);
    let gates = verdict.stage.as_ref().and_then(|(at, _)| rollout.plan.stages.get(usize::from(*at)));
    if let (true, Some(stage), Some(seen)) = (decided, gates, &verdict.assessment) {
        for gate in stage.gates.iter().filter_map(|gate| seen.gate(*gate)) {
            lines.extend(wrapped(
                &format!("{}: {}", gate.gate, gate.sentence),
                "                        ",
                2,
            ));
        }
    }
    lines
}

/// A gate's figures, one under the other.
fn numbers(gate: &GateReport) -> Vec<String> {
    let mut lines = wrapped(&format!("{:<10} {}", gate.gate.to_string(), gate.sentence), "      ", 11);
    let mut more = |text: String| lines.extend(wrapped(&text, "                 ", 0));
    if gate.harm_threshold > 0.0 && gate.harm_threshold < 1e299 {
        more(format!(
            "harm E = {:.3e} ({:.3e} without any one device), threshold {:.0}",
            gate.e_harm, gate.e_harm_without_one, gate.harm_threshold
        ));
    }
    if let Some(effect) = &gate.effect {
        more(format!(
            "{}: {:+.3} (95 %: {:+.3} to {:+.3})",
            effect.what, effect.estimate, effect.low, effect.high
        ));
    }
    let worst: Vec<_> = gate
        .worst
        .iter()
        // A slice that holds everything says nothing more than the whole.
        .filter(|slice| slice.bad > 0.0 && slice.of < gate.observations)
        .take(3)
        .map(|slice| format!("`{}` {:.0} of {:.0}", slice.name, slice.bad, slice.of))
        .collect();
    if !worst.is_empty() {
        more(format!("worst: {}", worst.join(", ")));
    }
    if !gate.examples.is_empty() {
        let examples: Vec<_> = gate.examples.iter().take(3).map(ToString::to_string).collect();
        more(format!("seen on {}", examples.join(", ")));
    }
    lines
}

/// `text` in lines that fit a terminal: the first begins at `margin`, the rest `hanging` further in.
pub(super) fn wrapped(text: &str, margin: &str, hanging: usize) -> Vec<String> {
    let mut lines = vec![];
    let mut line = margin.to_owned();
    let mut is_empty = true;
    for word in text.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH + margin.len() {
            lines.push(std::mem::replace(&mut line, format!("{margin}{}", " ".repeat(hanging))));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines
}

fn sentences(rollout: &Rollout) -> String {
    let waiting: Vec<_> = rollout.waiting.iter().map(|one| one.sentence.clone()).collect();
    format!("{}: {}", rollout.state.name().as_str(), waiting.join("; "))
}

impl Stage {
    /// Devices whose slot serves `bundle`, as they say themselves. How an attempt ended is heard a moment before
    /// the report that says what serves now, so this waits a while for the last of them.
    pub(super) async fn serving(&self, bundle: &str) -> Result<usize, DemoError> {
        let started = Instant::now();
        loop {
            let serving = self.serving_now(bundle).await?;
            if serving == self.agents.len() || started.elapsed() > SETTLED {
                return Ok(serving);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn serving_now(&self, bundle: &str) -> Result<usize, DemoError> {
        let devices = self.get("/api/v1/devices?limit=1000").await?;
        let own =
            |agent: &&super::stage::Agent| super::console::slot(&devices, &agent.id)["active"] == *bundle;
        Ok(self.agents.iter().filter(own).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sentences_are_broken_between_words_and_hang() {
        let text = "word ".repeat(40);
        let lines = wrapped(text.trim_end(), "   ", 4);
        assert!(lines.len() == 3 && lines.iter().all(|line| line.chars().count() <= WIDTH + 3), "{lines:?}");
        assert!(lines[0].starts_with("   word") && lines[1].starts_with("       word"));
        assert_eq!(wrapped("short", "  ", 9), ["  short"]);
    }
}
