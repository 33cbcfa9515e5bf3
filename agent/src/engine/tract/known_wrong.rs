//! What this engine lacks, and what it is known to answer wrongly without an error.
//!
//! Each wrong case was reproduced on tract 0.23.9 against ONNX Runtime; a later tract may shorten this
//! list. Not here because a graph does not show them: BitShift by a run-time amount of at least the
//! word's width, and some int8 QLinearMatMul (where ONNX Runtime fails the same tests). `Attention`, wrong
//! with past keys or a local window, is not built in: tract has it under its feature `transformers`.

use super::{
    NAME, VERSION,
    inspect::{attribute, node_name, operator_name, subgraphs},
    words::unsupported,
};
use crate::engine::LoadError;
use std::collections::HashMap;
use tract_onnx::{Onnx, pb};

/// tract looks operators up by name alone, so an operator of a foreign domain that shares a name with
/// ONNX's would silently be computed as ONNX's. These are the ones it really means.
const ML: [&str; 6] = [
    "ArrayFeatureExtractor",
    "CategoryMapper",
    "LinearClassifier",
    "LinearRegressor",
    "Normalizer",
    "TreeEnsembleClassifier",
];

const MICROSOFT: [&str; 9] = [
    "BiasGelu",
    "FastGelu",
    "GatherBlockQuantized",
    "Gelu",
    "MatMulNBits",
    "QuickGelu",
    "RotaryEmbedding",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

/// Longest chain of single consumers searched behind a Softmax. Exporters put at most a Reshape or
/// Transpose there.
const MAX_CHAIN: usize = 8;

pub(super) fn check(proto: &pb::ModelProto, onnx: &Onnx) -> Result<(), LoadError> {
    proto.graph.iter().try_for_each(|graph| check_graph(graph, onnx))
}

fn check_graph(graph: &pb::GraphProto, onnx: &Onnx) -> Result<(), LoadError> {
    let mut consumers: HashMap<&str, Vec<&pb::NodeProto>> = HashMap::new();
    for node in &graph.node {
        for input in &node.input {
            consumers.entry(input).or_default().push(node);
        }
    }
    for node in &graph.node {
        let (name, op) = (node_name(node), operator_name(node));
        if !has(node, onnx) {
            return Err(unsupported(name, &op, &format!(", which engine {NAME} {VERSION} does not have")));
        }
        if let Some(how) = wrong(node, graph, &consumers) {
            let why = format!(" {how}, which engine {NAME} {VERSION} is known to compute wrongly");
            return Err(unsupported(name, &op, &why));
        }
        subgraphs(node).try_for_each(|subgraph| check_graph(subgraph, onnx))?;
    }
    Ok(())
}

fn has(node: &pb::NodeProto, onnx: &Onnx) -> bool {
    let op = node.op_type.as_str();
    let meant = match node.domain.as_str() {
        "" | "ai.onnx" => true,
        "ai.onnx.ml" => ML.contains(&op),
        "com.microsoft" => MICROSOFT.contains(&op),
        _ => false,
    };
    meant && onnx.op_register.0.contains_key(op)
}

/// How `node` is used in a way that gives wrong answers; completes "uses operator `op` ...".
fn wrong(
    node: &pb::NodeProto,
    graph: &pb::GraphProto,
    consumers: &HashMap<&str, Vec<&pb::NodeProto>>,
) -> Option<String> {
    let text = |name: &str| attribute(node, name).map(|a| String::from_utf8_lossy(&a.s).into_owned());
    let says = |name: &str, value: &str| text(name).is_some_and(|t| t.eq_ignore_ascii_case(value));
    match node.op_type.as_str() {
        // Error 0.2 to 0.3; forward and bidirectional are right.
        "LSTM" | "GRU" | "RNN" if says("direction", "reverse") => Some("with direction=reverse".into()),
        // All outputs become 1.0 once tract folds quantisation into the Softmax.
        "Softmax" | "LogSoftmax" if is_quantised(node, consumers) => {
            Some("between quantisation steps (QDQ)".into())
        }
        // A BRANCH_GTE node is read as a leaf.
        "TreeEnsembleClassifier" => attribute(node, "nodes_modes")?
            .strings
            .iter()
            .any(|mode| mode == b"BRANCH_GTE")
            .then(|| "with nodes_modes BRANCH_GTE".into()),
        "SpaceToDepth" if says("mode", "CRD") => Some("with mode=CRD".into()),
        "AveragePool" => {
            let dilated = attribute(node, "dilations").is_some_and(|a| a.ints.iter().any(|d| *d > 1));
            let ceil = attribute(node, "ceil_mode").is_some_and(|a| a.i != 0);
            (dilated && ceil).then(|| "with dilations and ceil_mode".into())
        }
        "Celu" if has_f16(graph) => Some("in a graph with FP16 values".into()),
        _ => None,
    }
}

/// True if the answer of `softmax` is quantised again, directly or behind a chain of single consumers.
fn is_quantised(softmax: &pb::NodeProto, consumers: &HashMap<&str, Vec<&pb::NodeProto>>) -> bool {
    let mut current = softmax;
    for _ in 0..MAX_CHAIN {
        let next = current.output.first().and_then(|value| consumers.get(value.as_str()));
        let Some(next) = next else { return false };
        if next.iter().any(|node| node.op_type == "QuantizeLinear") {
            return true;
        }
        let [only] = next[..] else { return false };
        current = only;
    }
    false
}

fn has_f16(graph: &pb::GraphProto) -> bool {
    let half = pb::tensor_proto::DataType::Float16 as i32;
    let of = |info: &pb::ValueInfoProto| {
        info.r#type.as_ref().and_then(|t| t.value.as_ref()).is_some_and(|value| {
            let pb::type_proto::Value::TensorType(tensor) = value;
            tensor.elem_type == half
        })
    };
    graph.initializer.iter().any(|t| t.data_type == half)
        || graph.input.iter().chain(&graph.value_info).chain(&graph.output).any(of)
}
