//! Measures engines side by side on this device: all contestants take turns at the same input, so that
//! whatever else the device does meets all of them.

use super::{
    Engines, LoadError, LoadedModel, RunError,
    chooser::{Budget, Rounds},
    golden,
    setup::{EngineName, Setup},
    subject::Subject,
};
use edgefleet_shared::{reported::RefusalCode, tensor::Tensor};
use serde::Serialize;
use std::time::Instant;

/// One contestant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As it is called in the rows: the engine's name, or one of its own for a second copy.
    pub label: String,
    pub setup: Setup,
}

impl Entry {
    pub fn new(setup: Setup) -> Self {
        Self { label: setup.engine.to_string(), setup }
    }
}

/// What came of one contestant at one batch size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub model: String,
    pub threads: usize,
    pub batch: usize,
    pub engine: String,
    pub variant: &'static str,
    pub rounds: usize,
    /// Times of one run of the whole batch, in milliseconds.
    pub min_ms: f64,
    pub median_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    /// Rows a second at the median, one run at a time.
    pub rows_per_second: f64,
    pub load_ms: f64,
    /// Growth of this process's resident memory from before loading until after the first run.
    pub memory_bytes: u64,
    /// Against the first contestant that answered: largest absolute difference over all floating-point
    /// outputs.
    pub max_abs_diff: f64,
    /// Outputs that are not floating-point are equal, those that are lie within rtol 1e-3 and atol 1e-4.
    pub agrees: bool,
    #[serde(skip)]
    pub times_ms: Vec<f64>,
}

/// A contestant that could not take part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Absent {
    pub model: String,
    pub threads: usize,
    pub batch: usize,
    pub engine: String,
    pub variant: &'static str,
    pub reason: String,
}

/// One contest.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Contest {
    pub rows: Vec<Row>,
    pub absent: Vec<Absent>,
}

struct Loaded {
    entry: Entry,
    model: Box<dyn LoadedModel>,
    load_ms: f64,
    memory_bytes: u64,
    answer: Vec<Tensor>,
}

/// Lets `entries` take turns at a batch of `rows`. Blocks for the budget and the loading.
///
/// # Errors
/// [`RunError`] if the input itself cannot be made into that batch; what a contestant cannot do is in
/// the result.
pub fn contest(
    subject: &Subject,
    engines: &Engines,
    entries: &[Entry],
    rows: usize,
    budget: Budget,
) -> Result<Contest, RunError> {
    let mut done = Contest::default();
    let absent = |entry: &Entry, reason: String| Absent {
        model: subject.name.clone(),
        threads: entry.setup.threads,
        batch: rows,
        engine: entry.label.clone(),
        variant: super::setup::precision_name(entry.setup.precision),
        reason,
    };
    let Some(input) = subject.batch(rows)? else {
        let reason = "the model takes no batch of that size";
        done.absent.extend(entries.iter().map(|entry| absent(entry, reason.into())));
        return Ok(done);
    };
    let mut loaded: Vec<Loaded> = Vec::new();
    for entry in entries {
        match load(subject, engines, entry, &input) {
            Ok(ready) => loaded.push(ready),
            Err(reason) => done.absent.push(absent(entry, reason)),
        }
    }
    let mut rounds = Rounds::new(loaded.len(), budget);
    let mut failed: Vec<Option<String>> = loaded.iter().map(|_| None).collect();
    while let Some(who) = rounds.whose_turn() {
        let started = Instant::now();
        match loaded[who].model.run(&input) {
            Ok(_) => rounds.record(who, started.elapsed()),
            Err(error) => {
                failed[who] = Some(error.to_string());
                rounds.drop_out(who);
            }
        }
    }
    let reference = loaded.first().map(|first| first.answer.clone()).unwrap_or_default();
    for ((ready, times), failed) in loaded.iter().zip(rounds.times()).zip(failed) {
        match failed {
            Some(reason) => done.absent.push(absent(&ready.entry, reason)),
            None => done.rows.push(row(subject, ready, times, rows, &reference)),
        }
    }
    Ok(done)
}

fn load(subject: &Subject, engines: &Engines, entry: &Entry, input: &[Tensor]) -> Result<Loaded, String> {
    let file = subject.file(entry.setup.precision).ok_or("there is no such variant for this machine")?;
    let said = |e: LoadError| e.message;
    // Opened before the clock starts: that happens once in the life of an agent.
    let engine = engines.engine(entry.setup).map_err(said)?;
    let before = resident_bytes();
    let started = Instant::now();
    let model = subject.load(&*engine, file).map_err(said)?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let answer = model.run(input).map_err(|e| e.to_string())?;
    let memory_bytes = resident_bytes().saturating_sub(before);
    Ok(Loaded { entry: entry.clone(), model, load_ms, memory_bytes, answer })
}

fn row(subject: &Subject, ready: &Loaded, times: &[f64], batch: usize, reference: &[Tensor]) -> Row {
    let mut sorted = times.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let compared = golden::compare("", reference, &ready.answer, 1e-3, 1e-4);
    let median_ms = super::chooser::median(times);
    Row {
        model: subject.name.clone(),
        threads: ready.entry.setup.threads,
        batch,
        engine: ready.entry.label.clone(),
        variant: super::setup::precision_name(ready.entry.setup.precision),
        rounds: times.len(),
        min_ms: sorted.first().copied().unwrap_or(f64::INFINITY),
        median_ms,
        p90_ms: percentile(&sorted, 90),
        p99_ms: percentile(&sorted, 99),
        rows_per_second: batch as f64 * 1e3 / median_ms,
        load_ms: ready.load_ms,
        memory_bytes: ready.memory_bytes,
        max_abs_diff: compared.max_abs_diff,
        agrees: compared.passed,
        times_ms: times.to_vec(),
    }
}

/// Nearest rank of times in ascending order.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::INFINITY)
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Median of the per-round ratios of two contestants' times: noise that lasts longer than a round hits
/// both. Infinite if they share no round.
pub fn ratio(times: &[f64], against: &[f64]) -> f64 {
    let ratios: Vec<f64> = times.iter().zip(against).map(|(time, other)| time / other).collect();
    super::chooser::median(&ratios)
}

/// A setup in f32, or what else the subject has, that is best to start with.
///
/// # Errors
/// No artifact is meant for this machine.
pub fn first_setup(subject: &Subject) -> Result<Setup, LoadError> {
    let artifact = super::choose_artifact(&subject.artifacts).ok_or_else(|| LoadError {
        code: RefusalCode::NoArtifact,
        message: format!("`{}` has no artifact for {}", subject.name, std::env::consts::ARCH),
        node: None,
        op: None,
    })?;
    Ok(Setup { engine: EngineName::Tract, precision: artifact.precision, threads: 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        assert_eq!(ratio(&[2.0, 20.0, 4.0], &[1.0, 10.0, 4.0]), 2.0);
        assert!(ratio(&[], &[1.0]).is_infinite());
        assert_eq!((percentile(&[1.0, 2.0], 50), percentile(&[], 99)), (1.0, f64::INFINITY));
    }
}
