//! What is stored about captures: small documents beside the blobs.

use super::audited::Row;
use crate::store::Kind;
use edgefleet_shared::{
    capture::{CaptureDocument, CapturePolicy, Reason},
    digest::BlobDigest,
    ids::{BootId, ModelName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Documents [`CaptureRecord`], id [`capture_key`]: by model, then by time.
pub const CAPTURE: Kind = Kind::new("capture");
/// Documents [`CaptureKey`], id = 64 hex digits of the file's digest.
pub const CAPTURE_KEY: Kind = Kind::new("capture-key");
/// Documents [`PolicyRecord`], id = model.
pub const CAPTURE_POLICY: Kind = Kind::new("capture-policy");
/// Documents [`DatasetRecord`], id = name.
pub const DATASET: Kind = Kind::new("dataset");

/// Ids sort by model and then by the device's time.
pub fn capture_key(document: &CaptureDocument, digest: &BlobDigest) -> String {
    format!("{}/{:015}-{}", document.bundle.model, document.at.as_millis(), digest.to_hex())
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureKey {
    pub key: String,
}

/// One capture that arrived.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureRecord {
    /// Identity: SHA-256 of the file.
    pub digest: BlobDigest,
    pub size: u64,
    pub received: Timestamp,
    pub document: CaptureDocument,
    /// What a person said; absent until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelRecord>,
    /// Data sets that name it: it cannot be deleted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub datasets: BTreeSet<String>,
}

impl CaptureRecord {
    pub fn state(&self) -> LabelState {
        match self.label.as_ref().map(|label| &label.label) {
            None => LabelState::Unlabelled,
            Some(None) => LabelState::Skipped,
            Some(Some(_)) => LabelState::Labelled,
        }
    }
    /// Whether the answer was right, if it is labelled and was a class.
    pub fn correct(&self) -> Option<bool> {
        let label = self.label.as_ref()?.label.as_ref()?;
        Some(self.document.predicted.as_ref()?.class == *label)
    }
    pub fn boot(&self) -> BootId {
        self.document.prediction.boot
    }

    /// What an estimate of accuracy sees of it.
    pub fn row(&self) -> Row {
        let prompt = |reason: &Reason| *reason != Reason::Random && !reason.is_late();
        Row {
            audit_share: self.document.audit.map(|audit| audit.share),
            is_hard: self.document.reasons.iter().any(prompt),
            correct: self.correct(),
        }
    }
}

/// A person's word on a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelRecord {
    /// The class; absent if it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    pub by: String,
    pub at: Timestamp,
    pub joined: Joined,
}

/// Where a label is counted; each in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Joined {
    /// Not decided yet: it can still be taken back without a trace.
    Pending,
    /// Sent to the device, which joins it with its own memory of the prediction.
    Device,
    /// The device cannot know the prediction any more: counted here, against the capture's own answer.
    Controller,
    /// Skipped: there is nothing to count.
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelState {
    Unlabelled,
    Labelled,
    Skipped,
}

impl std::str::FromStr for LabelState {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "unlabelled" => Ok(Self::Unlabelled),
            "labelled" => Ok(Self::Labelled),
            "skipped" => Ok(Self::Skipped),
            _ => Err("it is unlabelled, labelled or skipped"),
        }
    }
}

/// What devices keep of one model's requests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyRecord {
    pub model: ModelName,
    pub policy: CapturePolicy,
    pub by: String,
    pub at: Timestamp,
}

pub const DATASET_SCHEMA: u32 = 1;

/// A labelled snapshot. Its manifest is a blob; the digest of that blob is what lineage names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetRecord {
    pub name: String,
    pub digest: BlobDigest,
    /// Of the manifest.
    pub size: u64,
    pub model: ModelName,
    pub created: Timestamp,
    pub by: String,
    pub rows: u64,
    pub classes: BTreeMap<String, u64>,
}

/// The content of a data set, immutable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetManifest {
    pub schema: u32,
    pub name: String,
    pub model: ModelName,
    pub created: Timestamp,
    pub rows: Vec<DatasetRow>,
}

/// One labelled capture. Flat on purpose: each field is a column of every export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetRow {
    /// Digest of the capture's file.
    pub capture: BlobDigest,
    pub label: String,
    pub prediction: String,
    pub device: String,
    pub bundle: String,
    pub at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Separated by spaces.
    pub reasons: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inclusion: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_share: Option<f64>,
}
