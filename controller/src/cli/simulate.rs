//! `edgefleet simulate`: rollouts in virtual time, without a controller.

use super::{
    context::{Context, Output},
    failure::Failure,
    plan_file, table,
};
use crate::{
    rollout::Because,
    simulate::{
        self, Check, Ending, Faults, Outcome, Scenario, Settings,
        report::{Effort, as_measured, measure, page},
    },
};
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

pub(super) const EXAMPLES: &str = "Examples:
  edgefleet simulate --devices 1000000 --seed 7
  edgefleet simulate --devices 2000 --scenario errors-5 --runs 20
  edgefleet simulate --plan rollout.yaml --scenario slower-1.5 --output json
  edgefleet simulate --report docs/evidence.md
  edgefleet simulate --monitoring docs/monitoring.md";

/// Above this, devices that nobody compares only report how it ended, unless `--chatty` asks for all of it.
const LARGE: u32 = 20_000;
/// Larger fleets than this do not fit their numbers.
const MOST_DEVICES: i64 = 5_000_000;

/// Try a plan on virtual devices: a seeded, replayable rollout in virtual time
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Virtual devices
    #[arg(long, value_name = "N", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=MOST_DEVICES))]
    devices: u32,
    /// The same seed gives the same rollout
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// What is wrong with the candidate: good, errors-1.5, slower-3, worse-class, crashing, silent ...; or `mixture`:
    /// any plan, faults and people, from the seed
    #[arg(long, value_name = "NAME", default_value = "good")]
    scenario: String,
    /// What is wrong with the world: none, usual, decayed, harsh
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    faults: FaultsArg,
    /// A plan (YAML, TOML or JSON) instead of the default one
    #[arg(long, value_name = "FILE", conflicts_with = "as_measured")]
    plan: Option<PathBuf>,
    /// Rollouts, with this seed and the following ones
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    runs: u64,
    /// Look with the invariant checker at about one in so many steps; 1: at all of them
    #[arg(long, value_name = "N")]
    check: Option<u64>,
    /// Every device reports every phase, and every canary sends its windows, however large the fleet
    #[arg(long)]
    chatty: bool,
    /// The settings of the tables in docs/evidence.md; `--scenario peeking` is among them
    #[arg(long)]
    as_measured: bool,
    /// Measure false aborts and detection of every gate and write the page with its plots
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plan", "as_measured"])]
    report: Option<PathBuf>,
    /// Replay real data, clean and shifted, through drift and advice, and write the page with its plots
    #[arg(long, value_name = "FILE", conflicts_with_all = ["plan", "as_measured", "report"])]
    monitoring: Option<PathBuf>,
    /// With --monitoring: rows of models/monitoring/recipe.py
    #[arg(long, value_name = "FILE", default_value = "models/monitoring/rows.json", requires = "monitoring")]
    rows: PathBuf,
    /// With --report: rollouts of the harmless candidate; a fleet with many dead devices gets a tenth of
    /// them, each other candidate a thirtieth
    #[arg(long, value_name = "N", default_value_t = 300, requires = "report")]
    rollouts: u64,
    /// With --report and --monitoring: threads
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FaultsArg {
    None,
    /// An ordinary fleet: what the tables are measured on
    #[default]
    Usual,
    /// The same, but three of ten devices are switched off for good
    Decayed,
    /// Ten times too many of all kinds
    Harsh,
}

/// What a run cost this machine.
#[derive(Debug, serde::Serialize)]
struct Cost {
    wall_seconds: f64,
    events_per_second: f64,
    /// Most memory the process ever had, bytes; absent where the system does not tell.
    peak_memory: Option<u64>,
}

impl SimulateArgs {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        if let Some(path) = &self.report {
            return self.write_report(path);
        }
        if let Some(path) = &self.monitoring {
            return self.write_monitoring(path);
        }
        let mut broken = Vec::new();
        for number in 0..self.runs {
            let seed = self.seed.wrapping_add(number);
            let settings = self.settings(seed)?;
            let begun = Instant::now();
            let outcome = simulate::run(settings);
            let wall_seconds = begun.elapsed().as_secs_f64();
            let cost = Cost {
                wall_seconds,
                events_per_second: outcome.tally.events as f64 / wall_seconds.max(1e-9),
                peak_memory: peak_memory(),
            };
            self.print(context.output, seed, &outcome, &cost)?;
            if !outcome.broken.is_empty() {
                eprintln!("replay: {}", self.replay(seed));
                broken.extend(outcome.broken.into_iter().map(|what| format!("seed {seed}: {what}")));
            }
        }
        match broken.first() {
            None => Ok(()),
            Some(first) => {
                let mut failure = Failure::new(format!("{} rules were broken", broken.len()));
                failure.causes = vec![first.clone()];
                Err(failure
                    .hint("this is a bug of the rollout core; the replay command shows it again")
                    .into())
            }
        }
    }

    fn settings(&self, seed: u64) -> Result<Settings, Failure> {
        let scenario = self.scenario.parse::<Scenario>();
        let mut settings = match (&scenario, self.as_measured) {
            (Ok(scenario), true) => as_measured(self.devices, seed, Some(*scenario)),
            (Err(_), true) if self.scenario == "peeking" => as_measured(self.devices, seed, None),
            (Err(_), false) if self.scenario == "mixture" => simulate::mixture(self.devices, seed),
            (Ok(scenario), false) if self.devices > LARGE && !self.chatty => {
                Settings::large(self.devices, seed, *scenario)
            }
            (Ok(scenario), false) => Settings::new(self.devices, seed, *scenario),
            (Err(unknown), _) => return Err(Failure::usage(unknown.to_string())),
        };
        if let Some(path) = &self.plan {
            settings.plan = plan_file::read(path)?;
        } else if scenario == Ok(Scenario::WorseLabels) && !self.as_measured {
            settings.plan = simulate::settings::with_labels(settings.plan);
        }
        match self.faults {
            FaultsArg::Usual => {}
            FaultsArg::None => settings.faults = Faults::none(),
            FaultsArg::Decayed => settings.faults = Faults::decayed(),
            FaultsArg::Harsh => settings.faults = Faults::harsh(),
        }
        match self.check {
            None => {}
            Some(0 | 1) => settings.check = Check::EveryStep,
            Some(n) => settings.check = Check::Sampled(n),
        }
        Ok(settings)
    }

    fn replay(&self, seed: u64) -> String {
        let mut command = format!(
            "edgefleet simulate --devices {} --seed {seed} --scenario {}",
            self.devices, self.scenario
        );
        if let Some(plan) = &self.plan {
            command.push_str(&format!(" --plan {}", plan.display()));
        }
        for (flag, set) in [("--chatty", self.chatty), ("--as-measured", self.as_measured)] {
            if set {
                command.push_str(&format!(" {flag}"));
            }
        }
        match self.faults {
            FaultsArg::Usual => {}
            FaultsArg::None => command.push_str(" --faults none"),
            FaultsArg::Decayed => command.push_str(" --faults decayed"),
            FaultsArg::Harsh => command.push_str(" --faults harsh"),
        }
        if let Some(check) = self.check {
            command.push_str(&format!(" --check {check}"));
        }
        command
    }

    fn print(&self, output: Output, seed: u64, outcome: &Outcome, cost: &Cost) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if output != Output::Table {
            let document = serde_json::json!({
                "devices": self.devices, "seed": seed, "scenario": self.scenario, "ending": outcome.ending(),
                "outcome": outcome, "cost": cost, "replay": self.replay(seed),
            });
            writeln!(out, "{document}")?;
            return Ok(());
        }
        if self.runs > 1 {
            writeln!(
                out,
                "seed {seed}: {}, {:.0} h, {} on the candidate{}",
                ending(&outcome.ending()),
                outcome.hours,
                outcome.on_candidate,
                if outcome.broken.is_empty() { "" } else { ", BROKEN" }
            )?;
        } else {
            write!(out, "{}", text(seed, outcome, cost))?;
        }
        for what in &outcome.broken {
            writeln!(out, "broken: {what}")?;
        }
        Ok(())
    }

    fn write_monitoring(&self, path: &Path) -> anyhow::Result<()> {
        use crate::replay::{Effort, measure, page::page, rows};
        let text = std::fs::read_to_string(&self.rows)
            .with_context(|| format!("could not read rows `{}`", self.rows.display()))?;
        let effort = Effort { seed: self.seed, ..Effort::FULL };
        let begun = Instant::now();
        let measured = measure(&rows::parse(&text)?, effort, self.threads, &|name| {
            eprintln!("{} s: {name}", begun.elapsed().as_secs());
        });
        let folder = path.file_stem().map_or("plots".into(), |stem| stem.to_string_lossy().into_owned());
        let (text, files) = page(&measured, effort, &folder);
        let beside = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(beside.join(&folder))?;
        std::fs::write(path, text)?;
        for file in files {
            std::fs::write(beside.join(&file.path), file.text)?;
        }
        Ok(())
    }

    fn write_report(&self, path: &Path) -> anyhow::Result<()> {
        let effort = Effort {
            harmless: self.rollouts,
            harmful: (self.rollouts / 30).max(1),
            decayed: (self.rollouts / 10).max(1),
            peeking: (self.rollouts / 30).max(1),
            devices: self.devices,
            seed: self.seed,
            threads: self.threads.clamp(1, 64),
        };
        let begun = Instant::now();
        let told = AtomicU64::new(0);
        let measured = measure(effort, &Scenario::ALL, &|name, number, n| {
            let secs = begun.elapsed().as_secs();
            // A line when a candidate's turn comes, and every ten seconds.
            if number == 0 || secs >= told.load(Ordering::Relaxed) + 10 {
                told.store(secs, Ordering::Relaxed);
                eprintln!("{secs} s: {name}, {number} of {n}");
            }
        });
        let folder = path.file_stem().map_or("plots".into(), |stem| stem.to_string_lossy().into_owned());
        let (text, files) = page(&measured, &folder);
        let beside = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(beside.join(&folder))?;
        std::fs::write(path, text)?;
        for file in files {
            std::fs::write(beside.join(&file.path), file.text)?;
        }
        let broken: Vec<_> = measured.broken().collect();
        for replay in &broken {
            eprintln!("replay: {replay}");
        }
        if broken.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("{} rollouts broke a rule or never ended", broken.len())).into())
    }
}

fn ending(ending: &Ending) -> String {
    match ending {
        Ending::Completed => "completed".to_owned(),
        Ending::Harm(gates) => {
            let gates: Vec<_> = gates.iter().map(ToString::to_string).collect();
            format!("harm proved by {}", gates.join(", "))
        }
        Ending::Rule(rule) => format!("stopped by rule {rule:?}"),
        Ending::Inconclusive => "inconclusive".to_owned(),
        Ending::Open => "open".to_owned(),
    }
}

fn text(seed: u64, outcome: &Outcome, cost: &Cost) -> String {
    let mut text = format!(
        "{}: {} after {:.1} virtual hours (seed {seed})\n\n",
        outcome.state,
        ending(&outcome.ending()),
        outcome.hours
    );
    let rows = outcome.stages.iter().map(|stage| {
        let devices: Vec<_> =
            stage.devices.iter().map(|(bucket, n)| format!("{n} {}", bucket.as_str())).collect();
        vec![stage.name.clone(), format!("{:?}", stage.state).to_lowercase(), devices.join(", ")]
    });
    text.push_str(&table::of(&["STAGE", "STATE", "DEVICES"], rows));
    text.push_str("\n\n");
    for verdict in &outcome.verdicts {
        let stage = verdict.stage.as_ref().map_or("rollout", |(_, name)| name.as_str());
        let why = match &verdict.because {
            Because::Rule { sentence, .. } => sentence.clone(),
            Because::Person { by, reason } => format!("{by}: {reason}"),
        };
        text.push_str(&format!("{} {stage}: {:?}: {why}\n", verdict.at, verdict.decision));
    }
    if let Some(seen) = &outcome.assessment {
        let rows = seen.gates.iter().map(|gate| {
            let number = |e: f64| if e >= 1e4 { format!("{e:.1e}") } else { format!("{e:.2}") };
            vec![
                gate.gate.to_string(),
                format!("{:?}", gate.verdict).to_lowercase(),
                number(gate.e_harm),
                number(gate.e_safe),
                gate.sentence.clone(),
            ]
        });
        text.push('\n');
        text.push_str(&table::of(&["GATE", "VERDICT", "E HARM", "E SAFE", "SAYS"], rows));
        text.push('\n');
    }
    for sentence in &outcome.waiting {
        text.push_str(&format!("waits: {sentence}\n"));
    }
    let tally = &outcome.tally;
    let memory = cost
        .peak_memory
        .map_or("unknown".to_owned(), |bytes| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)));
    text.push_str(&format!(
        "\n{:.2} s, {} events ({:.0} per second), {} messages, {} ticks, document {} bytes, peak memory {memory}\n",
        cost.wall_seconds, tally.events, cost.events_per_second, tally.messages, tally.ticks, outcome.document
    ));
    text
}

/// `VmHWM` of this process.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let fields: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(':')).collect();
    let kib: u64 = fields.get("VmHWM")?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1_024)
}
