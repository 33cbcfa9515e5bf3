//! What supervisor and child say to each other: one JSON request on stdin, JSON lines on stdout.

use super::{
    Comparison,
    attempts::{Attempt, AttemptResult},
};
use crate::engine::setup::EngineName;
use edgefleet_shared::{
    bundle::{Interface, PipelineSpec},
    lint::ModelTraits,
    probe::{Confinement, EngineFacts, GoldenResult, Measured, ProbeFailure},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, os::fd::RawFd, path::PathBuf};

/// Largest request and largest answer in bytes; both name at most some hundred things.
pub(super) const MAX_MESSAGE_BYTES: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) protocol: u32,
    pub(super) bounds: Bounds,
    /// An engine library to open before the task.
    pub(super) library: Option<PathBuf>,
    /// Threads may be started, by the engine.
    pub(super) threaded: bool,
    pub(super) task: Task,
}

/// Resource limits of the child.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Bounds {
    pub(super) data_bytes: u64,
    pub(super) cpu_seconds: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) enum Task {
    Test(Test),
    Compare(Compare),
    /// Open the library of the request and let it compute something.
    Open,
    Attempt(Vec<Attempt>),
    Look(Look),
}

/// A model file to look into and to load, without running it.
#[derive(Serialize, Deserialize)]
pub(super) struct Look {
    pub(super) engine: EngineName,
    pub(super) model: Input,
    /// `None`: as the file declares it.
    pub(super) interface: Option<Interface>,
}

/// What was found in a model file before any engine had it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) traits: Option<ModelTraits>,
    pub(super) unusable: Option<ProbeFailure>,
    /// What tract lacks or computes wrongly, by operator.
    pub(super) problems: BTreeMap<String, String>,
}

/// How loading went.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Loaded {
    pub(super) refusal: Option<ProbeFailure>,
    pub(super) load_ms: f64,
}

/// How a model is run. The variant is in the file.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Engine {
    pub(super) name: EngineName,
    pub(super) threads: usize,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Compare {
    /// In the order in which they are looked at.
    pub(super) contestants: Vec<Contestant>,
    pub(super) interface: Interface,
    pub(super) pipeline: Option<PipelineSpec>,
    pub(super) labels: Vec<String>,
    pub(super) golden: GoldenInput,
    /// Rows of a batch to measure besides one of the sample; 1 measures the sample as it is.
    pub(super) rows: usize,
    pub(super) warm_up: usize,
    pub(super) most: usize,
    pub(super) budget_ms: u64,
    /// For everything, loading included.
    pub(super) wall_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Contestant {
    pub(super) engine: Engine,
    pub(super) model: Input,
    /// What one run took when it was tried alone, with a golden sample.
    pub(super) alone_us: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Test {
    pub(super) engine: Engine,
    pub(super) model: Input,
    pub(super) interface: Interface,
    /// Golden samples are recorded outside of it.
    pub(super) pipeline: Option<PipelineSpec>,
    pub(super) labels: Vec<String>,
    pub(super) golden: Vec<GoldenInput>,
    pub(super) timed_runs: u32,
    pub(super) timing_budget_ms: u64,
}

/// An inherited descriptor at its start, and how many bytes it holds.
#[derive(Serialize, Deserialize)]
pub(super) struct Input {
    pub(super) fd: RawFd,
    pub(super) size: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct GoldenInput {
    pub(super) name: String,
    pub(super) blob: Input,
    pub(super) rtol: f64,
    pub(super) atol: f64,
}

/// In this order; `Doing` lets the supervisor say where a child died.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Event {
    Ready { protocol: u32, engine: EngineFacts, confinement: Confinement },
    Doing(String),
    Attempted(AttemptResult),
    Compared(Comparison),
    Seen(Box<Seen>),
    Loaded(Loaded),
    Done(Outcome),
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) failure: Option<ProbeFailure>,
    pub(super) golden: Vec<GoldenResult>,
    pub(super) operators: BTreeMap<String, u32>,
    pub(super) measured: Option<Measured>,
}
