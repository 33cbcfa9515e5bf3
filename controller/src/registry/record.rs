//! What is stored about a bundle: one document, small, beside the blobs it names.

use crate::store::Kind;
use edgefleet_shared::{
    digest::{BundleDigest, EnvelopeDigest},
    ids::{BundleName, ModelName},
    probe::ProbeVerdict,
    time::Timestamp,
    trust::KeyId,
};
use serde::{Deserialize, Serialize};

/// Documents [`BundleRecord`], id [`bundle_id`].
pub const BUNDLE: Kind = Kind::new("bundle");
/// Documents [`SharedBlob`], id = 64 hex digits: what a device may fetch.
pub const BUNDLE_BLOB: Kind = Kind::new("bundle-blob");
pub const RECORD_SCHEMA: u32 = 1;

/// The bundle's name, `digits@1`.
pub fn bundle_id(name: &BundleName) -> String {
    name.to_string()
}

/// A bundle that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BundleRecord {
    pub schema: u32,
    #[schema(value_type = String, example = "digits@1")]
    pub name: BundleName,
    /// Identity: SHA-256 of the manifest.
    #[schema(value_type = String)]
    pub digest: BundleDigest,
    pub manifest_size: u64,
    /// The signed release that devices are pointed to.
    #[schema(value_type = String)]
    pub release: EnvelopeDigest,
    pub release_size: u64,
    #[schema(value_type = Vec<String>)]
    pub signers: Vec<KeyId>,
    /// The author's own version text.
    pub version: String,
    pub task: String,
    pub description: String,
    pub hardware: Vec<String>,
    /// Different blobs and their bytes, manifest and release not counted.
    pub blobs: usize,
    pub size: u64,
    pub checks: Checks,
    pub pushed_by: String,
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// Set if it was accepted although a check failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overridden: Option<Override>,
}

impl BundleRecord {
    /// What a device fetches that has nothing of it yet, bytes.
    pub fn download_bytes(&self) -> u64 {
        self.size.saturating_add(self.manifest_size).saturating_add(self.release_size)
    }
}

/// The outcome of the push-time checks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Checks {
    pub passed: bool,
    /// Why not, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the agent's probe said; absent if it ended without a verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub verdict: Option<ProbeVerdict>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Override {
    pub reason: String,
    pub by: String,
}

/// A blob that some bundle names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedBlob {
    pub size: u64,
}

/// A model with its bundles, newest last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ModelSummary {
    #[schema(value_type = String)]
    pub name: ModelName,
    pub newest: u64,
    pub bundles: Vec<BundleLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BundleLine {
    pub counter: u64,
    pub version: String,
    #[schema(value_type = String)]
    pub digest: BundleDigest,
    pub size: u64,
    pub pushed_by: String,
    #[schema(value_type = String)]
    pub at: Timestamp,
    pub checks_passed: bool,
}

impl From<&BundleRecord> for BundleLine {
    fn from(record: &BundleRecord) -> Self {
        Self {
            counter: record.name.counter,
            version: record.version.clone(),
            digest: record.digest,
            size: record.size,
            pushed_by: record.pushed_by.clone(),
            at: record.at,
            checks_passed: record.checks.passed,
        }
    }
}
