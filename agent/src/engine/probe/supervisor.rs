//! The parent's side: checks the bundle, starts the child, bounds it, hears it out.

use super::{
    Comparison, Contestant, ProbeOptions, WORKER_COMMAND,
    attempts::{Attempt, SelfTest},
    confine,
    files::{BundleFiles, failure},
    judge::{Ended, Exit, Judgement, judge, judge_comparison},
    messages::{
        self, Bounds, Compare, Engine, Event, GoldenInput, Input, MAX_MESSAGE_BYTES, Request, Task, Test,
    },
    pack, sys,
};
use crate::engine::{
    choose_artifact,
    chooser::Budget,
    setup::{EngineName, Setup, artifact},
};
use edgefleet_shared::{
    bundle::{BlobRef, GoldenRef, Manifest, ManifestError},
    ids::BundleName,
    probe::{PROBE_PROTOCOL, ProbeFailure, ProbeVerdict},
    reported::RefusalCode,
};
use std::{
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Kept of the child's stderr: the words of a panic or an abort come first.
const MAX_STDERR_BYTES: u64 = 16 * 1024;
/// A child that has closed its stdout has this long to end.
const LINGER: Duration = Duration::from_secs(2);

pub(super) fn run(bundle: &BundleFiles, options: &ProbeOptions) -> ProbeVerdict {
    let bytes = match bundle.read_manifest() {
        Ok(bytes) => bytes,
        Err(error) => {
            let text = format!("could not read {}: {error}", bundle.manifest.display());
            return verdict(&[], None, lost(failure(RefusalCode::ManifestInvalid, text)));
        }
    };
    let manifest = match Manifest::parse(&bytes) {
        Ok(manifest) => manifest,
        Err(wrong) => return verdict(&bytes, None, lost(unparsable(&wrong))),
    };
    let judgement = match &manifest.engine {
        Some(card) => pack::test(bundle, &manifest, card, options),
        None => test(bundle, &manifest, options),
    };
    let judgement = judgement.unwrap_or_else(lost);
    let mut verdict = verdict(&bytes, Some(&manifest), judgement);
    let setup = options.setup.or_else(|| {
        let precision = choose_artifact(&manifest.artifacts)?.precision;
        Some(Setup { engine: EngineName::Tract, precision, threads: 1 })
    });
    verdict.passed.extend(setup.filter(|_| verdict.ok).map(|setup| setup.to_string()));
    verdict
}

/// A verdict for a probe that could not take place.
pub(super) fn unavailable(bundle: &BundleFiles, reason: &str) -> ProbeVerdict {
    let bytes = bundle.read_manifest().unwrap_or_default();
    let manifest = Manifest::parse(&bytes).ok();
    let judgement = lost(failure(RefusalCode::ProbeUnavailable, reason.into()));
    verdict(&bytes, manifest.as_ref(), judgement)
}

fn lost(failure: ProbeFailure) -> Judgement {
    Judgement { failure: Some(failure), ..Judgement::default() }
}

fn unparsable(wrong: &[ManifestError]) -> ProbeFailure {
    let code = match wrong {
        [ManifestError::UnknownSchema { .. }] => RefusalCode::UnknownSchema,
        _ => RefusalCode::ManifestInvalid,
    };
    let all: Vec<String> = wrong.iter().map(ToString::to_string).collect();
    failure(code, all.join("; "))
}

fn verdict(manifest_bytes: &[u8], manifest: Option<&Manifest>, judgement: Judgement) -> ProbeVerdict {
    ProbeVerdict {
        protocol: PROBE_PROTOCOL,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        bundle: manifest.map_or_else(nameless, Manifest::name),
        digest: Manifest::digest_of(manifest_bytes),
        ok: judgement.failure.is_none(),
        failure: judgement.failure,
        engine: judgement.engine,
        passed: vec![],
        golden: judgement.golden,
        operators: judgement.operators,
        measured: judgement.measured,
        confinement: judgement.confinement.unwrap_or_else(|| confine::none("no child was confined")),
    }
}

/// Stands in for the name of a bundle whose manifest cannot be read.
#[allow(clippy::expect_used)] // a constant, and a test parses it
fn nameless() -> BundleName {
    "unreadable@1".parse().expect("a valid name")
}

/// Blobs of a bundle, opened and checked, as the child inherits them.
struct Opened<'a> {
    bundle: &'a BundleFiles,
    files: Vec<File>,
}

impl Opened<'_> {
    fn input(&mut self, blob: &BlobRef) -> Result<Input, ProbeFailure> {
        let file = self.bundle.open_blob(blob)?;
        let fd = file.as_raw_fd();
        self.files.push(file);
        Ok(Input { fd, size: blob.size })
    }
    fn golden(&mut self, golden: &GoldenRef) -> Result<GoldenInput, ProbeFailure> {
        let blob = self.input(&golden.blob)?;
        Ok(GoldenInput { name: golden.name.clone(), blob, rtol: golden.rtol, atol: golden.atol })
    }
}

fn no_artifact(manifest: &Manifest) -> ProbeFailure {
    let targets: Vec<&str> = manifest.artifacts.iter().flat_map(|a| &a.targets).map(String::as_str).collect();
    let arch = std::env::consts::ARCH;
    failure(RefusalCode::NoArtifact, format!("no artifact is meant for {arch}, only for {targets:?}"))
}

/// What a child may allocate for running `setup`.
fn room(manifest: &Manifest, setup: Option<&Setup>, options: &ProbeOptions) -> u64 {
    let model = manifest.limits.peak_memory_bytes.saturating_add(options.memory_headroom_bytes);
    let threads = setup.map_or(1, |setup| setup.threads);
    let stacks = ProbeOptions::THREAD_BYTES.saturating_mul(threads.saturating_sub(1) as u64);
    let library = match setup.map(|setup| setup.engine) {
        Some(EngineName::Onnxruntime) => ProbeOptions::LIBRARY_BYTES,
        Some(EngineName::Tract) | None => 0,
    };
    model.saturating_add(stacks).saturating_add(library)
}

fn test(
    bundle: &BundleFiles,
    manifest: &Manifest,
    options: &ProbeOptions,
) -> Result<Judgement, ProbeFailure> {
    let found = match &options.setup {
        Some(setup) => artifact(&manifest.artifacts, setup.precision),
        None => choose_artifact(&manifest.artifacts),
    };
    let artifact = found.ok_or_else(|| no_artifact(manifest))?;
    bundle.check(manifest)?;
    let mut opened = Opened { bundle, files: Vec::new() };
    let model = opened.input(&artifact.blob)?;
    let golden = manifest.golden.iter().map(|golden| opened.golden(golden));
    let engine = options.setup.map_or(EngineName::Tract, |setup| setup.engine);
    let threads = options.setup.map_or(1, |setup| setup.threads);
    let task = Task::Test(Test {
        golden: golden.collect::<Result<_, ProbeFailure>>()?,
        engine: Engine { name: engine, threads },
        model,
        interface: manifest.interface.clone(),
        pipeline: manifest.pipeline.clone(),
        labels: manifest.labels.clone(),
        timed_runs: options.timed_runs,
        timing_budget_ms: millis(options.timing_budget),
    });
    let needs = Needs {
        data_bytes: room(manifest, options.setup.as_ref(), options),
        library: library(&[engine], options)?,
        threaded: threads > 1,
    };
    let ended = spawn(task, needs, &opened.files, options)
        .map_err(|reason| failure(RefusalCode::ProbeUnavailable, reason))?;
    Ok(judge(&ended, &manifest.limits, manifest.golden.len()))
}

/// Share of a child's time that a comparison may take before it ends by itself.
const WALL_SHARE: (u32, u32) = (3, 4);
/// A batch is measured only if one run of it takes less than this share of that.
const BATCH_SHARE: u32 = 8;

/// Rows of a batch that there is time for, by what one run of the slowest took.
fn affordable(rows: usize, slowest: Duration, wall: Duration) -> usize {
    let batch = slowest.saturating_mul(u32::try_from(rows).unwrap_or(u32::MAX));
    if batch <= wall / BATCH_SHARE { rows.max(1) } else { 1 }
}

pub(super) fn compare(
    bundle: &BundleFiles,
    manifest: &Manifest,
    setups: &[Contestant],
    rows: usize,
    budget: Budget,
    options: &ProbeOptions,
) -> Result<Comparison, ProbeFailure> {
    let mut opened = Opened { bundle, files: Vec::new() };
    let mut contestants = Vec::with_capacity(setups.len());
    let mut slowest = Duration::ZERO;
    for Contestant { setup, alone_ms } in setups {
        let artifact = artifact(&manifest.artifacts, setup.precision).ok_or_else(|| no_artifact(manifest))?;
        let engine = Engine { name: setup.engine, threads: setup.threads };
        let alone = Duration::try_from_secs_f64(alone_ms / 1e3).unwrap_or(options.time_limit);
        slowest = slowest.max(alone);
        let model = opened.input(&artifact.blob)?;
        contestants.push(messages::Contestant { engine, model, alone_us: micros(alone) });
    }
    let Some(smallest) = manifest.golden.iter().min_by_key(|golden| golden.blob.size) else {
        let text = "the bundle has no golden sample to compare engines with".to_owned();
        return Err(failure(RefusalCode::ManifestInvalid, text));
    };
    let wall = options.time_limit * WALL_SHARE.0 / WALL_SHARE.1;
    let rows = affordable(rows, slowest, wall);
    let task = Task::Compare(Compare {
        contestants,
        interface: manifest.interface.clone(),
        pipeline: manifest.pipeline.clone(),
        labels: manifest.labels.clone(),
        golden: opened.golden(smallest)?,
        rows,
        warm_up: budget.warm_up,
        most: budget.most,
        budget_ms: millis(budget.time),
        wall_ms: millis(wall),
    });
    let engines: Vec<EngineName> = setups.iter().map(|one| one.setup.engine).collect();
    let needs = Needs {
        data_bytes: room_for_two(manifest, setups, rows, options),
        library: library(&engines, options)?,
        threaded: setups.iter().any(|one| one.setup.threads > 1),
    };
    let ended = spawn(task, needs, &opened.files, options)
        .map_err(|reason| failure(RefusalCode::ProbeUnavailable, reason))?;
    judge_comparison(&ended, setups.len())
}

/// What a child may allocate for the two that need most, and for a batch of one of them: what a manifest
/// declares is for a single row.
fn room_for_two(manifest: &Manifest, setups: &[Contestant], rows: usize, options: &ProbeOptions) -> u64 {
    /// A blow-up is stopped, however large the batch.
    const MOST_ROWS: usize = 8;
    let mut rooms: Vec<u64> = setups.iter().map(|one| room(manifest, Some(&one.setup), options)).collect();
    rooms.sort_unstable_by(|a, b| b.cmp(a));
    let more = rows.saturating_sub(1).min(MOST_ROWS) as u64;
    let batch = manifest.limits.peak_memory_bytes.saturating_mul(more);
    rooms.into_iter().take(2).fold(batch, u64::saturating_add)
}

/// The library that `engines` need, if any does.
pub(super) fn library(
    engines: &[EngineName],
    options: &ProbeOptions,
) -> Result<Option<PathBuf>, ProbeFailure> {
    if !engines.contains(&EngineName::Onnxruntime) {
        return Ok(None);
    }
    match &options.library {
        // By its real path: the child's working folder is another one.
        Some(path) => std::fs::canonicalize(path).map(Some).map_err(|e| {
            let text = format!("`{}` cannot be opened as a library: {e}", path.display());
            failure(RefusalCode::ProbeUnavailable, text)
        }),
        None => {
            let text = "there is no libonnxruntime on this device".to_owned();
            Err(failure(RefusalCode::ProbeUnavailable, text))
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn self_test(attempts: Vec<Attempt>, options: &ProbeOptions) -> Result<SelfTest, String> {
    let needs = Needs {
        data_bytes: options.memory_headroom_bytes + ProbeOptions::LIBRARY_BYTES,
        library: options.library.clone(),
        threaded: options.setup.is_some_and(|setup| setup.threads > 1),
    };
    let ended = spawn(Task::Attempt(attempts), needs, &[], options)?;
    let mut confinement = None;
    let mut results = Vec::new();
    for line in ended.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Event::Ready { confinement: walls, .. }) => confinement = Some(walls),
            Ok(Event::Attempted(result)) => results.push(result),
            Ok(_) => {}
            Err(error) => return Err(format!("the child wrote what nobody understands: {error}")),
        }
    }
    match confinement {
        Some(confinement) => Ok(SelfTest { confinement, attempts: results }),
        None => Err(format!("the child did not start ({:?}): {}", ended.exit, ended.stderr)),
    }
}

/// What the child must be given besides its task.
pub(super) struct Needs {
    pub(super) data_bytes: u64,
    pub(super) library: Option<PathBuf>,
    pub(super) threaded: bool,
}

/// Runs the child to its end, whatever it does.
pub(super) fn spawn(
    task: Task,
    needs: Needs,
    files: &[File],
    options: &ProbeOptions,
) -> Result<Ended, String> {
    let Needs { data_bytes, library, threaded } = needs;
    let cpu_seconds = options.time_limit.as_secs().saturating_add(2); // the wall clock comes first
    // Threads use the processor side by side.
    let cpu_seconds = if threaded { cpu_seconds.saturating_mul(64) } else { cpu_seconds };
    let bounds = Bounds { data_bytes, cpu_seconds };
    let request = serde_json::to_vec(&Request { protocol: PROBE_PROTOCOL, bounds, library, threaded, task })
        .map_err(|e| format!("could not write the probe's request: {e}"))?;
    let folder = tempfile::Builder::new()
        .prefix("edgefleet-probe-")
        .tempdir()
        .map_err(|e| format!("could not make a working folder for the probe: {e}"))?;
    let mut command = command(options)?;
    command
        .arg(WORKER_COMMAND)
        .env_clear()
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    sys::inherit(&mut command, fds);
    let child = command.spawn().map_err(|e| format!("could not start {}: {e}", options.exe.display()))?;
    hear_out(Running(child), request, options.time_limit)
}

fn command(options: &ProbeOptions) -> Result<Command, String> {
    let Some((runner, arguments)) = options.runner.split_first() else {
        return Ok(Command::new(&options.exe));
    };
    // To the runner, /proc/self/exe would be itself.
    let exe = std::fs::canonicalize(&options.exe)
        .map_err(|e| format!("could not find {}: {e}", options.exe.display()))?;
    let mut command = Command::new(runner);
    command.args(arguments).arg(exe);
    Ok(command)
}

/// A child that does not outlive its supervisor, however that one returns.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that it has been waited for: then its number may be another's.
        if sys::has_ended(self.0.id()).is_ok() {
            sys::kill_group(self.0.id());
            let _ = self.0.wait(); // it is dead; only its entry is left to remove
        }
    }
}

fn hear_out(mut child: Running, request: Vec<u8>, time_limit: Duration) -> Result<Ended, String> {
    let deadline = Instant::now() + time_limit;
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.0.stdin.take(), child.0.stdout.take(), child.0.stderr.take())
    else {
        return Err("the probe's pipes are missing".into());
    };
    let pipe = |name: &str, work: Box<dyn FnOnce() + Send>| {
        thread::Builder::new().name(name.into()).spawn(work).map_err(|e| format!("no thread: {e}"))
    };
    // A child that died early closes the pipe; its exit tells more than this error would.
    pipe("probe-stdin", Box::new(move || drop(stdin.write_all(&request))))?;
    let (said, heard) = mpsc::channel();
    pipe("probe-stdout", Box::new(move || drop(said.send(take(stdout, MAX_MESSAGE_BYTES, false)))))?;
    let (complained, complaints) = mpsc::channel();
    pipe("probe-stderr", Box::new(move || drop(complained.send(take(stderr, MAX_STDERR_BYTES, true)))))?;

    let first = heard.recv_timeout(time_limit);
    let patience = match first {
        Ok(_) => deadline.min(Instant::now() + LINGER),
        Err(_) => Instant::now(),
    };
    let ended = ends_before(&child.0, patience);
    // Also after a good end: it may have left processes behind where the kernel could not forbid it.
    sys::kill_group(child.0.id());
    let status = child.0.wait().map_err(|e| format!("could not wait for the probe: {e}"))?;
    let exit = if ended { exit(status) } else { Exit::TimedOut };
    // The pipes are closed now that the whole group is gone.
    let stdout = first.or_else(|_| heard.recv_timeout(LINGER)).unwrap_or_default();
    let stderr = complaints.recv_timeout(LINGER).unwrap_or_default();
    Ok(Ended { exit, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned(), time_limit })
}

/// At most `limit` bytes. `drain`: reads on so that the writer does not block; otherwise the pipe closes.
fn take(mut pipe: impl Read, limit: u64, drain: bool) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = pipe.by_ref().take(limit).read_to_end(&mut kept); // what came until an error is what there is
    if drain {
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    }
    kept
}

/// Asks every 2 ms: only between the close of stdout and the end of the process, usually once.
fn ends_before(child: &Child, deadline: Instant) -> bool {
    loop {
        if sys::has_ended(child.id()).unwrap_or(false) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn exit(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_measured_only_where_there_is_time() {
        let wall = Duration::from_secs(45);
        for (rows, slowest_ms, wanted) in [(8, 10, 8), (8, 700, 8), (8, 704, 1), (1, 60_000, 1), (0, 1, 1)] {
            assert_eq!(affordable(rows, Duration::from_millis(slowest_ms), wall), wanted, "{slowest_ms}");
        }
    }

    #[test]
    fn the_stand_in_name_is_a_valid_one() {
        assert_eq!(nameless().to_string(), "unreadable@1");
    }
}
