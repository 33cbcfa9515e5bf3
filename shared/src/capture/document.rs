//! What a device says of one capture.

use super::policy::Reason;
use crate::{
    digest::{BlobDigest, BundleDigest},
    ids::{AttemptId, BundleName, PredictionId, SlotName},
    reported::ClockQuality,
    tensor::Datatype,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

pub const CAPTURE_SCHEMA: u32 = 1;

/// One input that was kept: one row of one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaptureDocument {
    pub schema: u32,
    /// Carries device, boot and the row's own sequence.
    pub prediction: PredictionId,
    pub slot: SlotName,
    pub bundle: BundleName,
    pub digest: BundleDigest,
    pub attempt: AttemptId,
    pub at: Timestamp,
    pub clock: ClockQuality,
    /// Every strategy that chose it, in the order of [`Reason::ALL`].
    pub reasons: Vec<Reason>,
    /// Probability, given all that happened before, that chance or any strategy with quota left kept this
    /// row: 1 where a strategy other than chance did, the audit share otherwise. Absent where only something
    /// known later (disagreement, feedback) asked for it: then it stands for nothing but itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inclusion: Option<f64>,
    /// Present if chance picked it, whatever the strategies did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Audit>,
    /// Absent if the answer is no class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<Predicted>,
    pub inputs: Vec<TensorEntry>,
    pub outputs: Vec<TensorEntry>,
    /// The truth, if the device already knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// The random draw behind an audited row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// Probability of the draw at that moment.
    pub share: f64,
    /// 1, 2, 3 ... within boot and slot: a gap is an audited row that was lost.
    pub sequence: u64,
}

/// The answer as a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    pub index: u32,
    /// Its name in the bundle, or the index where it has none.
    pub class: String,
    /// Absent if the model gives no scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// Distance of the two highest scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// `1 + sum(p ln p) / ln C`: 1 is certain, 0 knows nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
}

/// A tensor of the capture. The bytes of all kept ones follow each other in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorEntry {
    pub name: String,
    pub datatype: Datatype,
    pub shape: Vec<usize>,
    pub kept: Kept,
}

/// What is left of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kept {
    /// All of it: so many bytes as the Open Inference Protocol lays them out.
    Bytes {
        bytes: u64,
    },
    Dropped {
        statistics: Statistics,
    },
    Hashed {
        sha256: BlobDigest,
        bytes: u64,
    },
}

/// Of the finite elements of a numeric tensor; of the elements' lengths where they are texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    pub n: u64,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    pub std: f64,
}
