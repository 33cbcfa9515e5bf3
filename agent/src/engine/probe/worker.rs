//! The child: puts up its walls, then loads the model, runs the golden samples and takes the time.

use super::{
    compare::compare,
    confine,
    files::failure,
    messages::{
        Engine, Event, GoldenInput, Input, Loaded, Look, MAX_MESSAGE_BYTES, Outcome, Request, Seen, Task,
        Test,
    },
    sys,
};
use crate::engine::{
    Engine as _, LoadError, LoadedModel, RunError, golden, is_out_of_memory,
    onnxruntime::{self, OnnxRuntime},
    piped,
    setup::EngineName,
    tract::{self, Inspection, TractEngine},
};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{GoldenSample, Interface},
    probe::{EngineFacts, GoldenResult, Measured, PROBE_PROTOCOL, ProbeFailure, node_shares},
    reported::RefusalCode,
    tensor::Tensor,
};
use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::RawFd, unix::fs::FileExt},
    process::ExitCode,
    time::{Duration, Instant},
};

/// Runs in which the time of each node is taken.
const NODE_RUNS: f64 = 10.0;

/// Body of the hidden subcommand `probe-worker`. Reads a request from stdin, writes events to stdout.
///
/// Must be called before this process starts a thread: the walls bind the calling thread and what it
/// starts later.
pub fn probe_worker_main() -> ExitCode {
    match work() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "{reason}"); // nobody left to tell
            ExitCode::FAILURE
        }
    }
}

fn work() -> Result<(), String> {
    let mut text = Vec::new();
    std::io::stdin()
        .take(MAX_MESSAGE_BYTES)
        .read_to_end(&mut text)
        .map_err(|e| format!("could not read the request: {e}"))?;
    let request: Request =
        serde_json::from_slice(&text).map_err(|e| format!("the request is not understood: {e}"))?;
    if request.protocol != PROBE_PROTOCOL {
        return Err(format!("the request speaks protocol {}, not {PROBE_PROTOCOL}", request.protocol));
    }
    sys::close_all_but(&descriptors(&request.task));
    // What needs files is done now: afterwards none can be opened.
    let status = File::open("/proc/self/status").ok();
    let tract = TractEngine::new();
    tract.warm_up();
    let (library, no_threads, confinement) = match &request.library {
        None => (None, None, confine::confine(request.bounds)),
        Some(path) => {
            doing("opening the engine's library").map_err(|failure| failure.message)?;
            let outer = confine::for_library(request.bounds, path, request.threaded);
            let library = OnnxRuntime::open(path, 1).map_err(LoadError::from);
            let library = library.and_then(|library| library.warm_up().map(|()| library));
            let no_threads = outer.no_threads.clone();
            (Some(library), no_threads, confine::close(outer))
        }
    };
    let engines = Opened { tract, library, no_threads };
    let engine = match &request.task {
        Task::Test(Test { engine: Engine { name: EngineName::Onnxruntime, .. }, .. })
        | Task::Look(Look { engine: EngineName::Onnxruntime, .. })
        | Task::Open => engines.library_facts(),
        _ => EngineFacts { name: engines.tract.name().into(), version: engines.tract.version().into() },
    };
    say(&Event::Ready { protocol: PROBE_PROTOCOL, engine, confinement })?;
    match request.task {
        Task::Attempt(attempts) => {
            for attempt in attempts {
                say(&Event::Attempted(attempt.perform()))?;
            }
            Ok(())
        }
        Task::Test(test) => {
            let mut outcome = Outcome::default();
            if let Err(failure) = run(&engines, &test, status.as_ref(), &mut outcome) {
                outcome.failure = Some(failure);
            }
            say(&Event::Done(outcome))
        }
        Task::Open => say(&Event::Done(Outcome { failure: engines.fault(), ..Outcome::default() })),
        Task::Compare(task) => match compare(&engines, &task) {
            Ok(comparison) => say(&Event::Compared(comparison)),
            Err(failure) => say(&Event::Done(Outcome { failure: Some(failure), ..Outcome::default() })),
        },
        Task::Look(task) => look(&engines, &task),
    }
}

fn descriptors(task: &Task) -> Vec<RawFd> {
    match task {
        Task::Test(test) => test.golden.iter().map(|g| g.blob.fd).chain([test.model.fd]).collect(),
        Task::Compare(task) => {
            task.contestants.iter().map(|one| one.model.fd).chain([task.golden.blob.fd]).collect()
        }
        Task::Open | Task::Attempt(_) => vec![],
        Task::Look(task) => vec![task.model.fd],
    }
}

/// The engines of this process.
pub(super) struct Opened {
    tract: TractEngine,
    /// `None` if no library was asked for.
    library: Option<Result<OnnxRuntime, LoadError>>,
    /// Why it can start none here, although some are wanted.
    no_threads: Option<String>,
}

impl Opened {
    fn library_facts(&self) -> EngineFacts {
        let version = match &self.library {
            Some(Ok(library)) => library.version(),
            Some(Err(_)) | None => "unknown",
        };
        EngineFacts { name: onnxruntime::NAME.into(), version: version.into() }
    }

    /// Why the library of an engine pack is of no use.
    fn fault(&self) -> Option<ProbeFailure> {
        match &self.library {
            Some(Ok(_)) => None,
            // It is the pack's own fault, not that of the device.
            Some(Err(error)) if error.code == RefusalCode::ProbeUnavailable => {
                Some(failure(RefusalCode::ModelInvalid, error.message.clone()))
            }
            Some(Err(error)) => Some(refused(error.clone())),
            None => Some(failure(RefusalCode::ProbeUnavailable, "no engine library was named".into())),
        }
    }

    pub(super) fn load(
        &self,
        engine: Engine,
        model: Vec<u8>,
        interface: &Interface,
    ) -> Result<(Box<dyn LoadedModel>, Inspection), ProbeFailure> {
        match (engine.name, &self.library) {
            (EngineName::Tract, _) => {
                let (model, seen) = self.tract.load_bytes(model, interface).map_err(refused)?;
                Ok((Box::new(model), seen))
            }
            (EngineName::Onnxruntime, Some(Ok(library))) => {
                if let Some(reason) = self.no_threads.as_ref().filter(|_| engine.threads > 1) {
                    let text = format!("threads cannot be allowed without processes: {reason}");
                    return Err(failure(RefusalCode::ProbeUnavailable, text));
                }
                let library = library.with_threads(engine.threads);
                let (model, seen) = library.load_bytes(model, interface).map_err(refused)?;
                Ok((Box::new(model), seen))
            }
            (EngineName::Onnxruntime, Some(Err(error))) => Err(refused(error.clone())),
            (EngineName::Onnxruntime, None) => {
                Err(failure(RefusalCode::ProbeUnavailable, "no engine library was named".into()))
            }
        }
    }
}

fn say(event: &Event) -> Result<(), String> {
    let mut line = serde_json::to_vec(event).map_err(|e| format!("could not write an event: {e}"))?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).map_err(|e| format!("could not write an event: {e}"))
}

pub(super) fn doing(what: impl Into<String>) -> Result<(), ProbeFailure> {
    say(&Event::Doing(what.into())).map_err(|e| failure(RefusalCode::ProbeCrashed, e))
}

/// Says what is in the file before the engine has it: the engine may cost this process.
fn look(engines: &Opened, task: &Look) -> Result<(), String> {
    let unusable = |failure| Seen { unusable: Some(failure), ..Seen::default() };
    let model = match read(&task.model, "the model") {
        Ok(model) => model,
        Err(failure) => return say(&Event::Seen(Box::new(unusable(failure)))),
    };
    let (seen, interface) = match engines.tract.look(&model, task.interface.as_ref()) {
        Ok(tract::Seen { traits, problems, interface }) => {
            let (interface, unusable) = match interface {
                Ok(interface) => (Some(interface), None),
                Err(error) => (None, Some(refused(error))),
            };
            (Seen { traits: Some(traits), problems, unusable }, interface)
        }
        Err(error) => (unusable(refused(error)), None),
    };
    say(&Event::Seen(Box::new(seen)))?;
    let Some(interface) = interface else { return Ok(()) };
    doing(format!("loading the model with {}", task.engine)).map_err(|failure| failure.message)?;
    let started = Instant::now();
    let loaded = engines.load(Engine { name: task.engine, threads: 1 }, model, &interface);
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    say(&Event::Loaded(Loaded { refusal: loaded.err(), load_ms }))
}

fn run(
    engines: &Opened,
    test: &Test,
    status: Option<&File>,
    outcome: &mut Outcome,
) -> Result<(), ProbeFailure> {
    doing("loading the model")?;
    let bytes = read(&test.model, "the model")?;
    let started = Instant::now();
    let (model, inspection) = engines.load(test.engine, bytes, &test.interface)?;
    let model =
        piped::around(model, test.pipeline.as_ref(), &test.interface, &test.labels).map_err(refused)?;
    let load = started.elapsed();
    outcome.operators = inspection.operators;
    let mut smallest: Option<Vec<Tensor>> = None;
    for golden in &test.golden {
        doing(format!("running golden sample `{}`", golden.name))?;
        let sample = sample(golden)?;
        outcome.golden.push(twice(&*model, golden, &sample)?);
        let weight = |inputs: &[Tensor]| inputs.iter().map(|t| t.data().len()).sum::<usize>();
        if smallest.as_ref().is_none_or(|least| weight(&sample.inputs) < weight(least)) {
            smallest = Some(sample.inputs);
        }
    }
    if let Some(bad) = outcome.golden.iter().find(|result| !result.passed) {
        let why = bad.mismatch.as_deref().unwrap_or_default();
        let text = format!("golden sample `{}`: {why}", bad.name);
        return Err(failure(RefusalCode::GoldenMismatch, text));
    }
    doing("taking the time")?;
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_millis(test.timing_budget_ms);
    while let Some(inputs) = smallest.as_deref()
        && (times.is_empty() || (times.len() < test.timed_runs as usize && Instant::now() < end))
    {
        let started = Instant::now();
        model.run(inputs).map_err(|e| broke("taking the time", &e))?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_unstable_by(f64::total_cmp);
    let p50_ms = percentile(&times, 50);
    // Within the same budget once more.
    let runs = (test.timing_budget_ms as f64 / p50_ms.max(1e-3)).clamp(1.0, NODE_RUNS) as usize;
    doing("taking the time of each node")?;
    let nodes = smallest.as_deref().and_then(|inputs| model.node_times(inputs, runs));
    outcome.measured = Some(Measured {
        load_ms: load.as_secs_f64() * 1e3,
        p50_ms,
        p95_ms: percentile(&times, 95),
        peak_memory_bytes: status.and_then(peak_memory).unwrap_or(0),
        nodes: node_shares(nodes.unwrap_or_default()),
    });
    Ok(())
}

/// The worse of two runs: a model that remembers its first run differs in the second.
fn twice(
    model: &dyn LoadedModel,
    golden: &GoldenInput,
    sample: &GoldenSample,
) -> Result<GoldenResult, ProbeFailure> {
    let once = || -> Result<GoldenResult, ProbeFailure> {
        let found =
            model.run(&sample.inputs).map_err(|e| broke(&format!("golden sample `{}`", golden.name), &e))?;
        Ok(golden::compare(&golden.name, &sample.outputs, &found, golden.rtol, golden.atol))
    };
    let first = once()?;
    let mut second = once()?;
    if !first.passed {
        return Ok(first);
    }
    second.mismatch = second.mismatch.map(|why| format!("{why}, in the second run only"));
    second.max_abs_diff = second.max_abs_diff.max(first.max_abs_diff);
    Ok(second)
}

pub(super) fn sample(golden: &GoldenInput) -> Result<GoldenSample, ProbeFailure> {
    let bytes = Bytes::from(read(&golden.blob, &golden.name)?);
    GoldenSample::parse(&bytes).map_err(|e| {
        let text = format!("golden sample `{}` cannot be read: {e}", golden.name);
        failure(RefusalCode::ManifestInvalid, text)
    })
}

pub(super) fn read(input: &Input, what: &str) -> Result<Vec<u8>, ProbeFailure> {
    let unreadable = |e: std::io::Error| {
        failure(RefusalCode::ProbeUnavailable, format!("the child could not read {what}: {e}"))
    };
    let mut bytes = Vec::new();
    let size = usize::try_from(input.size).unwrap_or(usize::MAX);
    bytes.try_reserve_exact(size).map_err(|_| {
        let text = format!("{what} of {size} bytes does not fit into the memory the bundle allows");
        failure(RefusalCode::OverMemory, text)
    })?;
    let file = sys::adopt(input.fd).map_err(unreadable)?;
    file.take(input.size).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

pub(super) fn refused(error: LoadError) -> ProbeFailure {
    ProbeFailure { code: error.code, message: error.message, node: error.node, op: error.op }
}

fn broke(what: &str, error: &RunError) -> ProbeFailure {
    let words = error.to_string();
    let code = match error {
        RunError::BadInput(_) => RefusalCode::InterfaceMismatch,
        RunError::Engine(_) if is_out_of_memory(&words) => RefusalCode::OverMemory,
        RunError::Engine(_) => RefusalCode::ModelInvalid,
    };
    failure(code, format!("{what}: {words}"))
}

/// Nearest rank. `sorted` in ascending order; 0 for none.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// `VmHWM`, which unlike `ru_maxrss` starts at zero with the program.
fn peak_memory(status: &File) -> Option<u64> {
    let mut text = [0; 4096];
    let len = status.read_at(&mut text, 0).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!((percentile(&times, 50), percentile(&times, 95)), (25.0, 48.0));
        assert_eq!((percentile(&[7.0], 95), percentile(&[], 50)), (7.0, 0.0));
    }

    #[test]
    fn the_peak_is_read_from_the_open_status_file() {
        let status = File::open("/proc/self/status").unwrap();
        assert!(peak_memory(&status).unwrap() > 1 << 20);
    }
}
