//! What came of a simulation, and whether that may be.

use super::{
    device::What,
    fleet::Link,
    settings::Check,
    world::{Tally, World},
};
use crate::{
    evidence::{Assessment, Gate, Verdict},
    rollout::{
        Attempt, AttemptState, Because, Bucket, Decision, Rule, State, VerdictRecord, check_together, explain,
    },
};
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    pub state: &'static str,
    /// Virtual time from the draft to the end.
    pub hours: f64,
    pub stages: Vec<StageOutcome>,
    pub verdicts: Vec<VerdictRecord>,
    /// What the gates said last.
    pub assessment: Option<Assessment>,
    /// Sentences about what it waits on, if it is not over.
    pub waiting: Vec<String>,
    /// Virtual devices that run the candidate at the end.
    pub on_candidate: u64,
    /// Bytes of the rollout's document.
    pub document: u64,
    pub tally: Tally,
    /// Broken rules. Empty, or this is a bug.
    pub broken: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageOutcome {
    pub name: String,
    pub state: crate::rollout::StageState,
    pub devices: BTreeMap<Bucket, u64>,
    pub handed_out: u64,
}

/// How a rollout ended, as far as false alarms and detection go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    Completed,
    /// These gates proved harm.
    Harm(Vec<Gate>),
    /// A rule without statistics failed it.
    Rule(Rule),
    /// No verdict within the longest soak.
    Inconclusive,
    Open,
}

impl Outcome {
    pub(super) fn of(mut world: World, idle: bool) -> Self {
        world.examine(idle);
        let rollout = &world.docs.rollout;
        let stages = rollout.plan.stages.iter().zip(&rollout.stages).map(|(plan, stage)| StageOutcome {
            name: plan.name.clone(),
            state: stage.state,
            devices: stage.counts.iter().collect(),
            handed_out: stage.handed_out,
        });
        let now = world.time();
        Self {
            state: rollout.state.name().as_str(),
            hours: now.since(rollout.created).as_secs_f64() / 3_600.0,
            stages: stages.collect(),
            assessment: rollout.assessment.clone(),
            waiting: rollout.waiting.iter().map(|waiting| waiting.sentence.clone()).collect(),
            on_candidate: world.units.iter().filter(|unit| unit.active != 0).count() as u64,
            document: world.docs.size() as u64,
            tally: world.counts.clone(),
            verdicts: world.verdicts,
            broken: world.found,
        }
    }

    /// Harm if any was ever proved, else the first thing that stopped it, else its success.
    pub fn ending(&self) -> Ending {
        let stops = |verdict: &&VerdictRecord| {
            use Decision::{Aborted, Paused, Reverting, StageFailed, StageInconclusive};
            matches!(verdict.decision, StageFailed | Paused | Reverting | Aborted | StageInconclusive)
        };
        let mut first = None;
        for verdict in self.verdicts.iter().filter(stops) {
            match &verdict.because {
                Because::Rule { rule: Rule::Harm, .. } => {
                    let gates = verdict.assessment.as_ref().map_or(&[][..], |seen| &seen.gates);
                    let failed = gates.iter().filter(|report| report.verdict == Verdict::Fail);
                    return Ending::Harm(failed.map(|report| report.gate).collect());
                }
                Because::Rule { rule: Rule::FreezeCalendar | Rule::LineStopped, .. }
                | Because::Person { .. } => {}
                Because::Rule { rule, .. } => first = first.or(Some(*rule)),
            }
        }
        match first {
            Some(Rule::MaxSoak) => Ending::Inconclusive,
            Some(rule) => Ending::Rule(rule),
            None if self.state == "completed" => Ending::Completed,
            None => Ending::Open,
        }
    }
}

impl World {
    /// Looks at the end as nobody inside could.
    fn examine(&mut self, idle: bool) {
        let now = self.time();
        let rollout = &self.docs.rollout;
        let mut broken = Vec::new();
        if !rollout.is_terminal() {
            let waiting = explain::explain(rollout, now);
            if waiting.is_empty() {
                broken
                    .push(format!("it is {} and says nothing about what it waits on", rollout.state.name()));
            }
            if idle && rollout.wake.is_some() {
                broken.push("nothing happens any more though a tick is wanted".to_owned());
            }
        }
        let size = self.docs.size();
        if size > crate::rollout::MAX_DOCUMENT {
            broken.push(format!("its document has {size} bytes"));
        }
        for device in 0..self.fleet.len() {
            let has_turn = self
                .members
                .of_device(device)
                .is_some_and(|member| self.docs.attempt(member).is_some_and(Attempt::is_handed_out));
            let unit = &self.units[device as usize];
            if unit.active != 0 && !has_turn {
                broken.push(format!("{} runs the bundle and never had a turn", self.fleet.id(device)));
            }
        }
        if matches!(rollout.state, State::Reverted { .. }) {
            broken.extend(self.left_behind());
        }
        if self.settings.check != Check::Off && self.members.len() > 0 {
            let label = rollout.plan.group_rule().map(|(label, _)| label);
            let all: Vec<Attempt> = (0..self.members.len())
                .map(|number| match self.docs.attempt(number) {
                    Some(attempt) => attempt.clone(),
                    None => {
                        let member = self.members.member(number, &self.fleet, label);
                        Attempt::new(
                            &rollout.id,
                            &member,
                            self.members.stratum(member.stratum),
                            rollout.created,
                        )
                    }
                })
                .collect();
            broken.extend(check_together(rollout, &all).into_iter().map(|violation| violation.to_string()));
        }
        for what in broken {
            self.find(what);
        }
    }

    /// Devices that a finished revert has forgotten.
    fn left_behind(&self) -> Vec<String> {
        let mut left = Vec::new();
        for member in 0..self.members.len() {
            let Some(attempt) = self.docs.attempt(member) else { continue };
            let device = self.members.place(member).device;
            let theirs = matches!(attempt.state, AttemptState::Superseded { .. } | AttemptState::Removed);
            let wanted = self.wanted[device as usize];
            if wanted.what != What::Incumbent && !theirs {
                left.push(format!(
                    "{} is still to run the bundle after the revert: {:?}",
                    attempt.device, attempt.state
                ));
            }
            let unit = &self.units[device as usize];
            let reached = unit.seen >= wanted.generation;
            if unit.active != 0 && wanted.what == What::Incumbent && reached {
                left.push(format!("{} runs the bundle though it read the order to go back", attempt.device));
            }
            let away = unit.dark || self.fleet.traits(device).link == Link::Never;
            if attempt.state == AttemptState::Reverted && unit.active != 0 && !away {
                left.push(format!("{} runs the bundle and counts as reverted", attempt.device));
            }
        }
        left
    }
}
