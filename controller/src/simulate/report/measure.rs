//! Runs the rollouts that the page is about.

use super::stats::{Rate, median};
use crate::{
    evidence::Gate,
    rollout::{Mode, OnFail, Plan, Rule, Share, Span},
    simulate::{Check, Ending, Faults, Outcome, Scenario, Settings, run},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

/// How much is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Rollouts of the harmless candidate.
    pub harmless: u64,
    /// Rollouts of each other candidate.
    pub harmful: u64,
    /// Rollouts of the harmless candidate in a fleet where three of ten devices are dead.
    pub decayed: u64,
    /// Rollouts watched every minute for a month.
    pub peeking: u64,
    pub devices: u32,
    pub seed: u64,
    pub threads: usize,
}

impl Effort {
    /// DECISIONS 27.
    pub fn full() -> Self {
        Self {
            harmless: 10_000,
            harmful: 333,
            decayed: 1_000,
            peeking: 333,
            devices: 2_000,
            seed: 1,
            threads: 2,
        }
    }
    pub fn short() -> Self {
        Self { harmless: 80, harmful: 8, decayed: 8, peeking: 2, threads: 2, ..Self::full() }
    }
}

/// How the rollouts of one candidate ended.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    pub scenario: String,
    pub n: u64,
    /// Failed by a gate's statistics: for a harmless candidate the false aborts.
    pub harm: Rate,
    pub by_gate: BTreeMap<Gate, Rate>,
    /// Failed or paused by a rule without statistics.
    pub by_rule: BTreeMap<Rule, Rate>,
    pub completed: Rate,
    pub inconclusive: Rate,
    pub open: Rate,
    /// Median virtual hours from the draft to the first stop.
    pub hours_to_stop: Option<f64>,
    /// Median share of the fleet that ever had its turn.
    pub reached: Option<f64>,
    /// Replay commands of runs that broke a rule of the checker or never ended.
    pub broken: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    #[serde(skip)]
    pub effort: Effort,
    pub alpha: f64,
    pub rows: Vec<Row>,
    pub decayed: Row,
    pub peeking: Row,
    /// Virtual day of each abort of the harmless candidate under constant watch.
    pub peeking_days: Vec<f64>,
}

impl Measured {
    pub fn row(&self, scenario: Scenario) -> Option<&Row> {
        self.rows.iter().find(|row| row.scenario == scenario.name())
    }
    pub fn broken(&self) -> impl Iterator<Item = &String> {
        self.rows.iter().chain([&self.decayed, &self.peeking]).flat_map(|row| &row.broken)
    }
}

/// The default stages; the last ones hand out faster, since nothing is measured there.
fn plan_of_tables() -> Plan {
    let mut plan = Settings::new(1, 0, Scenario::Good).plan;
    plan.limits.concurrency = Share::Percent(25.0);
    plan.probation = Span::minutes(30);
    plan
}

fn settings(effort: &Effort, scenario: Scenario, seed: u64) -> Settings {
    let mut settings = Settings { plan: plan_of_tables(), ..Settings::new(effort.devices, seed, scenario) };
    if scenario == Scenario::WorseLabels {
        settings.plan = crate::simulate::settings::with_labels(settings.plan);
    }
    settings.check = Check::Sampled(2_000);
    settings
}

/// One canary stage that never passes, looked at every minute for thirty days.
fn peeking(effort: &Effort, seed: u64) -> Settings {
    let mut settings = settings(effort, Scenario::Good, seed);
    let plan = &mut settings.plan;
    plan.stages.retain(|stage| stage.mode == Mode::Active && (!stage.gates.is_empty() || stage.dynamic));
    if let Some(canary) = plan.stages.first_mut() {
        canary.soak = Span::days(30);
        canary.max_soak = Some(Span::days(30));
    }
    // Nothing is ever called safe, so that only harm can end it.
    plan.gates.beta = 1e-200;
    plan.on_inconclusive.then = OnFail::Halt;
    plan.on_inconclusive.unattended = Span::hours(1);
    settings.look_every = Some(60_000);
    settings
}

pub fn measure(
    effort: Effort,
    scenarios: &[Scenario],
    progress: &(dyn Fn(&str, u64, u64) + Sync),
) -> Measured {
    let mut rows = Vec::new();
    for scenario in scenarios.iter().copied() {
        let n = if scenario == Scenario::Good { effort.harmless } else { effort.harmful };
        let outcomes = runs(&effort, n, scenario.name(), progress, |seed| settings(&effort, scenario, seed));
        rows.push(row(scenario.name(), "", &effort, &outcomes));
    }
    let decayed = runs(&effort, effort.decayed, "decayed", progress, |seed| Settings {
        faults: Faults::decayed(),
        ..settings(&effort, Scenario::Good, seed)
    });
    let watched = runs(&effort, effort.peeking, "peeking", progress, |seed| peeking(&effort, seed));
    let peeking_days =
        watched.iter().filter(|o| matches!(o.ending, Ending::Harm(_))).map(|o| o.hours / 24.0).collect();
    Measured {
        effort,
        alpha: plan_of_tables().gates.alpha,
        decayed: row(Scenario::Good.name(), " --faults decayed", &effort, &decayed),
        peeking: row("peeking", "", &effort, &watched),
        rows,
        peeking_days,
    }
}

/// What is kept of one run.
struct Kept {
    seed: u64,
    ending: Ending,
    hours: f64,
    reached: f64,
    broken: bool,
}

impl Kept {
    fn of(seed: u64, devices: u32, outcome: &Outcome) -> Self {
        let stop = outcome.verdicts.iter().find(|verdict| {
            use crate::rollout::Decision::{Paused, Reverting, StageFailed, StageInconclusive};
            matches!(verdict.decision, StageFailed | Paused | Reverting | StageInconclusive)
        });
        let start = outcome.verdicts.first().map(|verdict| verdict.at);
        let hours = match (stop, start) {
            (Some(stop), Some(start)) => stop.at.since(start).as_secs_f64() / 3_600.0,
            _ => outcome.hours,
        };
        let handed: u64 = outcome.stages.iter().map(|stage| stage.handed_out).sum();
        Self {
            seed,
            ending: outcome.ending(),
            hours,
            reached: (handed as f64 / f64::from(devices.max(1))).min(1.0),
            broken: !outcome.broken.is_empty(),
        }
    }
}

/// Runs seeds in several threads; the order of the results is that of the seeds.
fn runs(
    effort: &Effort,
    n: u64,
    name: &str,
    progress: &(dyn Fn(&str, u64, u64) + Sync),
    make: impl Fn(u64) -> Settings + Sync,
) -> Vec<Kept> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut kept = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= n {
                return kept;
            }
            progress(name, number, n);
            let seed = effort.seed.wrapping_add(number);
            kept.push(Kept::of(seed, effort.devices, &run(make(seed))));
        }
    };
    let mut all: Vec<Kept> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..effort.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for thread in threads {
            match thread.join() {
                Ok(kept) => all.extend(kept),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort_by_key(|kept| kept.seed);
    all
}

/// `world`: what the replay command says on top.
fn row(name: &str, world: &str, effort: &Effort, kept: &[Kept]) -> Row {
    let n = kept.len() as u64;
    let count = |wanted: &dyn Fn(&Ending) -> bool| {
        Rate::of(kept.iter().filter(|k| wanted(&k.ending)).count() as u64, n)
    };
    let mut stops: Vec<f64> =
        kept.iter().filter(|k| k.ending != Ending::Completed).map(|k| k.hours).collect();
    let mut reached: Vec<f64> = kept.iter().map(|k| k.reached).collect();
    let mut by_gate = BTreeMap::new();
    for gate in Gate::ALL {
        let rate = count(&|ending| matches!(ending, Ending::Harm(gates) if gates.contains(&gate)));
        if rate.hits > 0 {
            by_gate.insert(gate, rate);
        }
    }
    let mut by_rule = BTreeMap::new();
    for ending in kept.iter().map(|k| &k.ending) {
        if let Ending::Rule(rule) = ending {
            by_rule.entry(*rule).or_insert_with(|| count(&|other| *other == Ending::Rule(*rule)));
        }
    }
    Row {
        scenario: name.to_owned(),
        n,
        harm: count(&|ending| matches!(ending, Ending::Harm(_))),
        by_gate,
        by_rule,
        completed: count(&|ending| *ending == Ending::Completed),
        inconclusive: count(&|ending| *ending == Ending::Inconclusive),
        open: count(&|ending| *ending == Ending::Open),
        hours_to_stop: median(&mut stops),
        reached: median(&mut reached),
        broken: kept
            .iter()
            .filter(|k| k.broken)
            .map(|k| replay(effort.devices, k.seed, name) + world)
            .collect(),
    }
}

/// The command that shows one run again.
pub fn replay(devices: u32, seed: u64, scenario: &str) -> String {
    format!("edgefleet simulate --devices {devices} --seed {seed} --scenario {scenario} --as-measured")
}

/// The settings of one run of the tables.
pub fn as_measured(devices: u32, seed: u64, scenario: Option<Scenario>) -> Settings {
    let effort = Effort { devices, ..Effort::full() };
    match scenario {
        Some(scenario) => settings(&effort, scenario, seed),
        None => peeking(&effort, seed),
    }
}
