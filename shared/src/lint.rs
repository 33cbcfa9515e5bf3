//! What `edgefleet-agent lint --output json MODEL` says of a model file: what it is made of, and what each
//! engine that is here makes of it. Nothing is run; the file is read and loaded behind the walls of a probe.

use crate::{
    bundle::Precision,
    probe::{Confinement, ProbeFailure},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of [`ModelLook`]; another one is refused.
pub const LINT_SCHEMA: u32 = 1;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelLook {
    pub schema: u32,
    pub agent_version: String,
    /// Absent if the file is not even ONNX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traits: Option<ModelTraits>,
    /// Why no engine of any device is given the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<ProbeFailure>,
    pub engines: Vec<EngineLook>,
    pub confinement: Confinement,
}

/// What one engine makes of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineLook {
    pub name: String,
    pub version: String,
    /// First and last version of ONNX's operator set it is tested with, where it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opsets: Option<(i64, i64)>,
    /// Variants that are worth while on it, on this processor.
    pub gains: Vec<Precision>,
    /// Operators it lacks or computes wrongly as the model uses them, and how. An engine that only says so
    /// while it loads is heard in `refusal`, about the first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub problems: BTreeMap<String, String>,
    /// Why it does not load the file; absent: it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<ProbeFailure>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
}

/// What the file is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelTraits {
    pub ir_version: i64,
    /// Version by domain; the empty domain is ONNX's own.
    pub opsets: BTreeMap<String, i64>,
    /// Of all graphs.
    pub nodes: u64,
    /// Uses by operator, `domain.Op` or `Op`; at most [`MAX_OPERATORS`].
    pub operators: BTreeMap<String, u32>,
    pub inputs: Vec<TensorLook>,
    pub outputs: Vec<TensorLook>,
    /// Bytes of all weights and constants.
    pub weight_bytes: u64,
    /// Name and bytes of the largest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub largest_weight: Option<(String, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantised: Option<Quantised>,
}

/// Different operators that are listed; real models have some dozens.
pub const MAX_OPERATORS: usize = 256;

/// An input or output as the file declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorLook {
    pub name: String,
    /// ONNX's word: `FLOAT`, `DOUBLE`, ...
    pub datatype: String,
    /// -1 is open. Absent: the file does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<i64>>,
}

/// How a model is quantised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantised {
    /// QuantizeLinear by the type it makes (`UINT8`, `INT8`, ...).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub activations: BTreeMap<String, u32>,
    /// Weights behind a DequantizeLinear by their type; biases (`INT32`) too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, u32>,
    /// Operators that compute on integers themselves (QLinearConv, MatMulInteger, ...).
    #[serde(default)]
    pub integer_operators: u32,
    /// Softmax between quantisation steps.
    #[serde(default)]
    pub softmax: u32,
}
