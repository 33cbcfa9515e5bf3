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
    /// Share of the time by node of the graph as the engine runs it, heaviest first; [`REST`] stands for all beyond
    /// [`MAX_NODES`]. Of tract alone: other engines do not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<(String, f64)>,
}

/// Nodes that are told apart, and the longest name of one, bytes.
pub const MAX_NODES: usize = 64;
const MAX_NODE_NAME: usize = 96;
pub const REST: &str = "all others";

/// [`Measured::nodes`] from seconds by node: names are what a model's maker wrote, numbers what a child claims.
pub fn node_shares(seconds: impl IntoIterator<Item = (String, f64)>) -> Vec<(String, f64)> {
    let name =
        |text: &str| text.chars().filter(char::is_ascii_graphic).take(MAX_NODE_NAME).collect::<String>();
    let mut sums = BTreeMap::<String, f64>::new();
    for (node, seconds) in seconds.into_iter().filter(|(_, seconds)| seconds.is_finite() && *seconds > 0.0) {
        *sums.entry(if node == REST { node } else { name(&node) }).or_default() += seconds;
    }
    let all: f64 = sums.values().sum();
    let mut shares: Vec<_> = sums.into_iter().map(|(node, seconds)| (node, seconds / all)).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let rest: f64 = shares.drain(shares.len().min(MAX_NODES)..).map(|(_, share)| share).sum();
    if rest > 0.0 {
        shares.push((REST.to_owned(), rest));
    }
    // Four digits: no two runs agree in more.
    shares.into_iter().map(|(node, share)| (node, (1e4 * share).round() / 1e4)).collect()
}

/// Which walls stood around the child. A wall the kernel lacks is named, not passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// `enforced`, `partial` or `unavailable: reason`.
    pub landlock: String,
    pub seccomp: String,
    pub limits: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_whatever_was_measured() {
        let many = (0..200).map(|n| (format!("node\n{n}"), f64::from(n)));
        let odd = [("x".repeat(500), f64::NAN), ("y".into(), -1.0), ("z".into(), f64::INFINITY)];
        let shares = node_shares(many.chain(odd));
        assert_eq!((shares.len(), shares[0].0.as_str(), shares[MAX_NODES].0.as_str()), (65, "node199", REST));
        assert!((shares.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 0.01);
        assert!(shares.is_sorted_by(|a, b| a.1 >= b.1 || b.0 == REST));
        assert!(node_shares([]).is_empty());
    }
}
