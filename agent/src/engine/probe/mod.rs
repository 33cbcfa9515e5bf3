//! Tries a bundle in a confined child process before anything else may trust its model.
//!
//! A hostile model runs with the rights of the process that loads it, so that process is given none:
//! no environment, no descriptors but its input and three pipes, an empty working folder, no file
//! access (Landlock), no sockets, no new processes (seccomp), bounded time and memory (resource limits),
//! and it dies with its parent. The child parses the model, runs every golden sample twice, takes the
//! time and reports; the parent decides. A crash, a hang or a memory blow-up costs the child and becomes
//! a typed [`ProbeFailure`].
//!
//! An engine that is a library is opened by the child, behind walls of its own: it may read system
//! libraries and the processor's description, nothing else, and none of that once it stands. So neither
//! the model nor the library is trusted before the child has come through. The child can also let several
//! engines take turns at one input, to compare their speed. Of an engine pack it opens the library, and lets
//! it compute something.
//!
//! The child is this same program, run again as `probe-worker`. What the kernel cannot enforce is named
//! in the verdict's [`Confinement`](edgefleet_shared::probe::Confinement).

mod attempts;
mod compare;
mod confine;
mod files;
mod judge;
mod look;
mod messages;
mod pack;
mod supervisor;
mod sys;
mod worker;

pub use attempts::{Attempt, AttemptResult, SelfTest};
pub use files::BundleFiles;
pub use look::look;
pub use worker::probe_worker_main;

use super::{
    chooser::{Budget, Times},
    setup::Setup,
};
use edgefleet_shared::{
    bundle::Manifest,
    probe::{ProbeFailure, ProbeVerdict},
};
use serde::{Deserialize, Serialize};
use std::{ffi::OsString, path::PathBuf, time::Duration};

/// The hidden subcommand under which this program becomes the child.
pub const WORKER_COMMAND: &str = "probe-worker";

/// How to run the child.
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// The program that understands [`WORKER_COMMAND`].
    pub exe: PathBuf,
    /// Put before `exe`: `qemu-aarch64` where the kernel cannot start foreign programs by itself.
    pub runner: Vec<OsString>,
    /// Wall clock for everything; also the child's processor time. After it the child is killed.
    pub time_limit: Duration,
    /// Data memory of the child beyond the bundle's `peak_memory_bytes`.
    pub memory_headroom_bytes: u64,
    /// Timed runs, at most this many ...
    pub timed_runs: u32,
    /// ... within this time.
    pub timing_budget: Duration,
    /// How the model is run; `None` is tract with one thread, in the variant it is best at.
    pub setup: Option<Setup>,
    /// Where ONNX Runtime lies, for setups that use it.
    pub library: Option<PathBuf>,
}

impl ProbeOptions {
    /// Loading takes up to 1.3 s and a golden sample 0.25 s for the largest model tried on x86-64; a
    /// small ARM core is some ten times slower and a bundle may hold 64 samples.
    pub const TIME_LIMIT: Duration = Duration::from_secs(60);
    /// Data memory beyond the model's own. `VmData` of an idle child is under 1 MiB (x86-64 glibc); the
    /// rest is room for golden samples, the allocator's slack and the file's bytes, which while loading
    /// lie beside the parsed weights. The limit only stops a blow-up: `peak_memory_bytes` itself is
    /// held against the resident peak, of which the program's own pages are some 20 MiB.
    pub const MEMORY_HEADROOM_BYTES: u64 = 32 << 20;
    /// What an engine library takes for itself: its tables and pools (ONNX Runtime 1.32: 14 MiB).
    pub const LIBRARY_BYTES: u64 = 48 << 20;
    /// And for each thread beyond the first: its stack.
    pub const THREAD_BYTES: u64 = 12 << 20;
    /// Enough for a 95th percentile that is not the maximum (the third largest of 50).
    pub const TIMED_RUNS: u32 = 50;
    pub const TIMING_BUDGET: Duration = Duration::from_secs(3);

    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Self {
            exe: exe.into(),
            runner: Vec::new(),
            time_limit: Self::TIME_LIMIT,
            memory_headroom_bytes: Self::MEMORY_HEADROOM_BYTES,
            timed_runs: Self::TIMED_RUNS,
            timing_budget: Self::TIMING_BUDGET,
            setup: None,
            library: None,
        }
    }

    /// Runs this very program again, also if its file has been replaced meanwhile.
    pub fn this_program() -> Self {
        Self::new("/proc/self/exe")
    }
}

/// Tries `bundle` and blocks until the verdict, at most the time limit and some seconds.
///
/// Never fails: whatever goes wrong is a verdict with `ok: false` and a reason.
pub fn run(bundle: &BundleFiles, options: &ProbeOptions) -> ProbeVerdict {
    supervisor::run(bundle, options)
}

/// What came of several setups in turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// What each took, or why it could not; no times of one whose turn did not come.
    pub times: Vec<Result<Option<Times>, ProbeFailure>>,
    /// Rows of the smaller input.
    pub rows: usize,
    /// Rows of the larger, where there was one.
    pub batch: Option<usize>,
}

/// One that passed [`run`], and what an inference took it there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contestant {
    pub setup: Setup,
    pub alone_ms: f64,
}

/// Lets contestants take turns in one child at the smallest golden sample, two at a time, in the order in
/// which they come. `rows` above 1: at one row of it and at a batch of so many. Setup and library of
/// `options` are not looked at, but for where the library lies.
///
/// # Errors
/// What cost the child, or kept it from starting.
pub fn compare(
    bundle: &BundleFiles,
    manifest: &Manifest,
    contestants: &[Contestant],
    rows: usize,
    budget: Budget,
    options: &ProbeOptions,
) -> Result<Comparison, ProbeFailure> {
    supervisor::compare(bundle, manifest, contestants, rows, budget, options)
}

/// A verdict for a bundle that could not be tried at all.
pub fn untried(bundle: &BundleFiles, reason: &str) -> ProbeVerdict {
    supervisor::unavailable(bundle, reason)
}

/// [`run`] beside the async world. A dropped future lets the child run to its end.
pub async fn run_async(bundle: BundleFiles, options: ProbeOptions) -> ProbeVerdict {
    let (b, o) = (bundle.clone(), options.clone());
    match tokio::task::spawn_blocking(move || run(&b, &o)).await {
        Ok(verdict) => verdict,
        Err(error) => supervisor::unavailable(&bundle, &format!("the probe was cut off: {error}")),
    }
}

/// Starts a child that tries each forbidden thing from behind the walls and tells what happened.
///
/// # Errors
/// One sentence if the child could not be run.
pub fn self_test(attempts: Vec<Attempt>, options: &ProbeOptions) -> Result<SelfTest, String> {
    supervisor::self_test(attempts, options)
}
