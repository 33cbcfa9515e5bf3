//! Window version 1: one device x one bundle x a few minutes.

use super::sketch::Sketch;
use crate::{
    digest::BundleDigest,
    ids::{AttemptId, BundleName, SlotName},
    reported::ClockQuality,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Distinct keys a map of a window may hold; the rest is counted under `other`.
pub const MAX_KEYS: usize = 128;
/// Sizes of passes that are told apart, by powers of two.
pub const MAX_POWERS: usize = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Shadow,
}

/// Cut at every change of bundle, attempt or role, so that a window speaks of one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub slot: SlotName,
    pub bundle: BundleName,
    pub digest: BundleDigest,
    pub role: Role,
    pub attempt: AttemptId,
    /// Milliseconds since the agent's start: honest even if the wall clock is not.
    pub mono_start_ms: u64,
    pub mono_end_ms: u64,
    pub wall_start: Timestamp,
    pub wall_end: Timestamp,
    pub clock: ClockQuality,
    pub counts: Counts,
    pub latency: Latency,
    /// Predictions by class name, `other` beyond [`MAX_KEYS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, u64>,
    /// Milliseconds since the agent's start of the first failed request, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_bad_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exceed: Vec<Exceed>,
    /// In windows of [`Role::Shadow`]: how its answers compare with the active bundle's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// In windows of [`Role::Primary`]: how the device did at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceHealth>,
}

/// What the agent's process takes and how hot it is around it. What a system does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceHealth {
    /// Memory of the agent: its share of what it shares, and all that it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pss_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_kib: Option<u64>,
    /// Time on processors since the agent's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Of one processor, over the last minute; 200 is two of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// The hottest zone, degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temp_c: Option<i32>,
    /// Whether a processor is kept below the speed it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowed: Option<bool>,
    /// Of the disk that holds the agent's data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_mib: Option<u64>,
}

/// Answers of active and candidate to the same inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Agreement {
    /// Inputs both answered.
    pub n: u64,
    /// Of these, inputs whose class differs, or whose numbers differ by more than the tolerance.
    pub disagree: u64,
    /// Inputs the active bundle answered and the candidate failed; not part of `n`.
    pub errors: u64,
    /// By the active bundle's class, `other` beyond [`MAX_KEYS`]; empty where outputs have no classes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, ClassAgreement>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassAgreement {
    pub n: u64,
    pub disagree: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub requests: u64,
    /// Inputs answered; a request of batch 8 has 8.
    pub rows: u64,
    pub ok: u64,
    /// Failed requests by error code.
    pub errors: BTreeMap<String, u64>,
    /// Turned away because the queue was full; not part of `requests`.
    pub rejected: u64,
}

/// Where the time of successful requests went: all of it to 1 %, its parts to 3 %
/// ([`Sketch::record_coarse_us`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    pub queue: Sketch,
    /// The whole of the model: its own steps before and after are part of it.
    pub infer: Sketch,
    /// Of `infer`, the bundle's steps before and after the network; empty without a pipeline.
    #[serde(skip_serializing_if = "Sketch::is_empty")]
    pub pre: Sketch,
    #[serde(skip_serializing_if = "Sketch::is_empty")]
    pub post: Sketch,
    pub total: Sketch,
    /// Passes through the model by their rows: entry i counts those of 2^i to 2^(i+1) - 1. Empty if each row ran
    /// alone; at most [`MAX_POWERS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<u64>,
}

/// How often a metric went beyond a threshold the controller asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exceed {
    pub id: String,
    pub n: u64,
    pub x: u64,
}

/// Labels joined to predictions, counted in the bucket in which the prediction was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelCounts {
    pub slot: SlotName,
    pub bundle: BundleName,
    pub digest: BundleDigest,
    pub attempt: AttemptId,
    /// Start of the five-minute bucket of the predictions.
    pub bucket: Timestamp,
    /// Who said so: `local` (unauthenticated, on the device) or `controller`.
    pub source: String,
    pub matched: u64,
    pub correct: u64,
    /// (truth, predicted, count), at most [`MAX_KEYS`] entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<(String, String, u64)>,
    /// Labels that found no prediction, by reason (`expired`, `foreign`, `duplicate`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unmatched: BTreeMap<String, u64>,
    /// Present if a candidate answered every prediction counted here as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versus: Option<Versus>,
}

/// Who was right about labelled inputs that both bundles answered; the four sum to `matched`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versus {
    /// The candidate.
    pub bundle: BundleName,
    pub digest: BundleDigest,
    pub attempt: AttemptId,
    /// Candidate right, active wrong.
    pub wins: u64,
    /// Candidate wrong, active right.
    pub losses: u64,
    pub both_right: u64,
    pub both_wrong: u64,
}
