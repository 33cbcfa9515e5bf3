//! The verdict of a probe: what happened when a bundle's model was loaded and run in a confined child.
//!
//! `edgefleet-agent probe --output json BUNDLE` prints it; the agent asks for it before it trusts a
//! candidate and the controller before it accepts a push. A bundle folder holds `manifest.json`,
//! `blobs/sha256/<64 hex digits>` and, once signed, `release.json`.

use crate::{digest::BundleDigest, ids::BundleName, reported::RefusalCode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of this document and of the conversation with the child; another one is refused.
pub const PROBE_PROTOCOL: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeVerdict {
    pub protocol: u32,
    pub agent_version: String,
    pub bundle: BundleName,
    pub digest: BundleDigest,
    /// True only if every golden sample passed, twice, within all limits.
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ProbeFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineFacts>,
    /// Every way of running it that passed, as `engine/precision/threads`; the first agents did not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub passed: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<GoldenResult>,
    /// How often the model uses each operator, as `domain.Op` or `Op`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operators: BTreeMap<String, u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    pub confinement: Confinement,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFailure {
    pub code: RefusalCode,
    /// One sentence with names and numbers.
    pub message: String,
    /// The graph node at fault, where one is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFacts {
    pub name: String,
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenResult {
    pub name: String,
    pub passed: bool,
    /// Largest absolute difference over all floating-point outputs.
    pub max_abs_diff: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub load_ms: f64,
    /// Of one inference with a golden input.
    pub p50_ms: f64,
    pub p95_ms: f64,
    /// Peak resident memory of the child, engine included.
    pub peak_memory_bytes: u64,
}

/// Which walls stood around the child. A wall the kernel lacks is named, not passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// `enforced`, `partial` or `unavailable: reason`.
    pub landlock: String,
    pub seccomp: String,
    pub limits: String,
}
