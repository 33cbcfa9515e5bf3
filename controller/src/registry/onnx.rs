//! A look at an ONNX file, just enough to describe it: interface, operators, opsets. Runs nothing.
//!
//! Own minimal messages (source: `onnx/onnx.proto`, IR 3 to 13): weights are skipped, not copied, and
//! nothing in the file is trusted. Whether a model *works* is for the probe to say.

use bytes::Bytes;
use edgefleet_shared::tensor::Datatype;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Largest file that is looked at: protocol buffers end at 2 GiB.
pub const MAX_ONNX_BYTES: u64 = 2 << 30;
const MAX_TENSORS: usize = 64;
const MAX_NODES: usize = 1_000_000;
const MAX_DIMS: usize = 8;

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    /// `GraphProto`, left encoded until the head is known to be sound.
    #[prost(bytes = "bytes", optional, tag = "7")]
    graph: Option<Bytes>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetId>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetId {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    node: Vec<Bytes>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorName>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(string, tag = "7")]
    domain: String,
}

/// A tensor of which only the name is read.
#[derive(Clone, PartialEq, Message)]
struct TensorName {
    #[prost(string, tag = "8")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    sequence: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "5")]
    map: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "8")]
    sparse: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "9")]
    optional: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    elem_type: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<ShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct ShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
struct Dim {
    #[prost(int64, optional, tag = "1")]
    value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    param: Option<String>,
}

/// What an ONNX file says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxSummary {
    pub ir_version: i64,
    pub producer: String,
    pub graph: String,
    /// Version by domain; the empty domain is ONNX's own.
    pub opsets: BTreeMap<String, i64>,
    pub inputs: Vec<OnnxTensor>,
    pub outputs: Vec<OnnxTensor>,
    /// Uses by operator, `domain.Op` or `Op`.
    pub operators: BTreeMap<String, u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct OnnxTensor {
    pub name: String,
    pub datatype: Datatype,
    /// -1 is open. A tensor without a shape gets none.
    pub shape: Vec<i64>,
    /// Names the model gives to its open dimensions, by index.
    pub open: Vec<(usize, String)>,
    pub shape_known: bool,
}

/// Why a file cannot be described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    #[error("not an ONNX model: {reason}")]
    NotOnnx { reason: String },
    #[error("{side} `{name}`: {reason}")]
    Tensor { side: &'static str, name: String, reason: String },
    #[error("the model has {found} {what}, at most {limit} are read")]
    TooMany { what: &'static str, found: usize, limit: usize },
}

/// Describes the model in `bytes`.
///
/// # Errors
/// [`OnnxError`]; all tensors whose type cannot be served are named at once.
pub fn inspect(bytes: Bytes) -> Result<OnnxSummary, Vec<OnnxError>> {
    let not_onnx = |reason: String| vec![OnnxError::NotOnnx { reason }];
    let model = ModelProto::decode(bytes).map_err(|e| not_onnx(e.to_string()))?;
    let Some(graph) = model.graph.filter(|_| model.ir_version > 0) else {
        return Err(not_onnx("it has no graph or no IR version".to_owned()));
    };
    let graph = GraphProto::decode(graph).map_err(|e| not_onnx(format!("its graph: {e}")))?;
    let mut wrong = Vec::new();
    let mut count = |what, found, limit| {
        if found > limit {
            wrong.push(OnnxError::TooMany { what, found, limit });
        }
    };
    count("nodes", graph.node.len(), MAX_NODES);
    // Before IR 4 every weight was listed among the inputs, too.
    let weights: BTreeSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs: Vec<_> = graph.input.iter().filter(|value| !weights.contains(value.name.as_str())).collect();
    let outputs: Vec<_> = graph.output.iter().collect();
    count("inputs", inputs.len(), MAX_TENSORS);
    count("outputs", outputs.len(), MAX_TENSORS);
    if !wrong.is_empty() {
        return Err(wrong);
    }
    if outputs.is_empty() {
        return Err(not_onnx("its graph has no output".to_owned()));
    }
    let mut tensors = |side, values: Vec<&ValueInfo>| -> Vec<OnnxTensor> {
        values.into_iter().filter_map(|value| tensor(side, value).map_err(|e| wrong.push(e)).ok()).collect()
    };
    let (inputs, outputs) = (tensors("input", inputs), tensors("output", outputs));
    let mut operators = BTreeMap::new();
    for node in graph.node {
        let node = NodeProto::decode(node).map_err(|e| not_onnx(format!("a node: {e}")))?;
        let name = if node.domain.is_empty() || node.domain == "ai.onnx" {
            node.op_type
        } else {
            format!("{}.{}", node.domain, node.op_type)
        };
        *operators.entry(name).or_insert(0) += 1;
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let opsets = model.opset_import.into_iter().take(MAX_TENSORS).map(|set| (set.domain, set.version));
    Ok(OnnxSummary {
        ir_version: model.ir_version,
        producer: model.producer_name,
        graph: graph.name,
        opsets: opsets.collect(),
        inputs,
        outputs,
        operators,
    })
}

fn tensor(side: &'static str, value: &ValueInfo) -> Result<OnnxTensor, OnnxError> {
    let no = |reason: String| OnnxError::Tensor { side, name: value.name.clone(), reason };
    let kind = value.kind.as_ref().ok_or_else(|| no("has no type".to_owned()))?;
    let Some(tensor) = &kind.tensor else {
        let found = [
            ("a sequence", kind.sequence.is_some()),
            ("a map", kind.map.is_some()),
            ("a sparse tensor", kind.sparse.is_some()),
            ("an optional", kind.optional.is_some()),
        ];
        let found = found.iter().find(|(_, is)| *is).map_or("of an unknown kind", |(name, _)| name);
        return Err(no(format!("is {found}; only tensors can be served")));
    };
    let datatype = datatype(tensor.elem_type)
        .map_err(|name| no(format!("holds {name}, which the Open Inference Protocol cannot carry")))?;
    let dims = tensor.shape.as_ref().map(|shape| &shape.dim[..]);
    let shape_known = dims.is_some();
    let dims = dims.unwrap_or_default();
    if dims.len() > MAX_DIMS {
        return Err(no(format!("has {} dimensions, at most {MAX_DIMS} are allowed", dims.len())));
    }
    let mut shape = Vec::new();
    let mut open = Vec::new();
    for (index, dim) in dims.iter().enumerate() {
        match dim.value {
            Some(size) if (0..=1 << 31).contains(&size) => shape.push(size),
            Some(-1) | None => {
                shape.push(-1);
                open.push((index, dim.param.clone().unwrap_or_default()));
            }
            Some(size) => return Err(no(format!("has a dimension of {size}"))),
        }
    }
    Ok(OnnxTensor { name: value.name.clone(), datatype, shape, open, shape_known })
}

/// Source: `TensorProto.DataType` of `onnx.proto`.
fn datatype(elem_type: i32) -> Result<Datatype, String> {
    Ok(match elem_type {
        1 => Datatype::Fp32,
        2 => Datatype::Uint8,
        3 => Datatype::Int8,
        4 => Datatype::Uint16,
        5 => Datatype::Int16,
        6 => Datatype::Int32,
        7 => Datatype::Int64,
        8 => Datatype::Bytes,
        9 => Datatype::Bool,
        10 => Datatype::Fp16,
        11 => Datatype::Fp64,
        12 => Datatype::Uint32,
        13 => Datatype::Uint64,
        16 => Datatype::Bf16,
        14 => return Err("complex64".to_owned()),
        15 => return Err("complex128".to_owned()),
        17..=20 => return Err("8-bit floats".to_owned()),
        21 | 22 => return Err("4-bit integers".to_owned()),
        23 => return Err("4-bit floats".to_owned()),
        other => return Err(format!("elements of the unknown type {other}")),
    })
}

#[cfg(test)]
#[path = "onnx_tests.rs"]
mod tests;
