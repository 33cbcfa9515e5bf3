//! What this engine lacks, and what it is known to answer wrongly without an error.
//!
//! Each wrong case was reproduced on tract 0.23.9 against ONNX Runtime; a later tract may shorten this
//! list. What could be computed rightly instead is in `ops`. `Attention`, wrong with past keys or a local
//! window, is not built in: tract has it under its feature `transformers`.

use super::{
    NAME, VERSION,
    inspect::{attribute, node_name, operator_name, subgraphs},
    ops,
    words::unsupported,
};
use crate::engine::LoadError;
use std::collections::HashMap;
use tract_onnx::{Onnx, pb};

/// tract looks operators up by name alone, so an operator of a foreign domain that shares a name with
/// ONNX's would silently be computed as ONNX's. These are the ones it really means.
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

/// A node that this engine cannot be given.
pub(super) enum Problem {
    Lacking,
    /// How it is used; completes "operator `op` ...".
    Wrong(String),
}

impl Problem {
    /// Completes "operator `op`", with the comma or space that comes first.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Lacking => format!(", which engine {NAME} {VERSION} does not have"),
            Self::Wrong(how) => {
                format!(" {how}, which engine {NAME} {VERSION} is known to compute wrongly")
            }
        }
    }
}

/// Refuses the first node of the model that has a problem.
pub(super) fn check(proto: &pb::ModelProto, onnx: &Onnx) -> Result<(), LoadError> {
    each(proto, onnx, &mut |node, problem| {
        Err(unsupported(node_name(node), &operator_name(node), &problem.words()))
    })
}

/// Tells every node that has a problem, until `tell` has enough.
pub(super) fn each<E>(
    proto: &pb::ModelProto,
    onnx: &Onnx,
    tell: &mut impl FnMut(&pb::NodeProto, Problem) -> Result<(), E>,
) -> Result<(), E> {
    proto.graph.iter().try_for_each(|graph| check_graph(graph, onnx, tell))
}

/// Who reads which value of a graph.
pub(super) type Consumers<'a> = HashMap<&'a str, Vec<&'a pb::NodeProto>>;

pub(super) fn consumers(graph: &pb::GraphProto) -> Consumers<'_> {
    let mut consumers = Consumers::new();
    for node in &graph.node {
        for input in &node.input {
            consumers.entry(input).or_default().push(node);
        }
    }
    consumers
}

fn check_graph<E>(
    graph: &pb::GraphProto,
    onnx: &Onnx,
    tell: &mut impl FnMut(&pb::NodeProto, Problem) -> Result<(), E>,
) -> Result<(), E> {
    let consumers = consumers(graph);
    for node in &graph.node {
        if !has(node, onnx) {
            tell(node, Problem::Lacking)?;
        } else if let Some(how) = wrong(node, graph, &consumers) {
            tell(node, Problem::Wrong(how))?;
        }
        subgraphs(node).try_for_each(|subgraph| check_graph(subgraph, onnx, tell))?;
    }
    Ok(())
}

fn has(node: &pb::NodeProto, onnx: &Onnx) -> bool {
    let op = node.op_type.as_str();
    let meant = match node.domain.as_str() {
        "" | "ai.onnx" => true,
        "ai.onnx.ml" => ops::ML.contains(&op),
        "com.microsoft" => MICROSOFT.contains(&op),
        _ => false,
    };
    // Names with a space are tract's own builders that ours stand before.
    meant && !op.contains(' ') && onnx.op_register.0.contains_key(op)
}

/// How `node` is used in a way that gives wrong answers; completes "uses operator `op` ...".
fn wrong(node: &pb::NodeProto, graph: &pb::GraphProto, consumers: &Consumers<'_>) -> Option<String> {
    let text = |name: &str| attribute(node, name).map(|a| String::from_utf8_lossy(&a.s).into_owned());
    let says = |name: &str, value: &str| text(name).is_some_and(|t| t.eq_ignore_ascii_case(value));
    match node.op_type.as_str() {
        // Its dictionaries become a matrix, which only the outside can make sense of.
        "ZipMap" if node.output.iter().any(|output| consumers.contains_key(output.as_str())) => {
            Some("in front of another node".into())
        }
        // The attribute is not read.
        "Swish" if attribute(node, "alpha").is_some_and(|a| a.f != 1.0) => {
            Some("with another alpha than 1".into())
        }
        // All outputs become 1.0 once tract folds quantisation into the Softmax.
        "Softmax" | "LogSoftmax" if is_quantised(node, consumers) => {
            Some("between quantisation steps (QDQ)".into())
        }
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
pub(super) fn is_quantised(softmax: &pb::NodeProto, consumers: &Consumers<'_>) -> bool {
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
