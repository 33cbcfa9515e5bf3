//! What a model file is made of, and which of its nodes tract cannot be given: for a person who has yet to
//! bundle it. Reads a file that passed [`inspect`]; everything told is cut to a bounded size.

use super::{
    TractEngine, bind,
    inspect::{self, operator_name, subgraphs},
    known_wrong::{self, Problem},
};
use crate::engine::{LoadError, tract::excerpt};
use edgefleet_shared::{
    bundle::Interface,
    lint::{MAX_OPERATORS, ModelTraits, Quantised, TensorLook},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
};
use tract_onnx::pb::{self, tensor_proto::DataType};

/// Operator sets that tract says it is tested with; others are tried.
pub(in crate::engine) const OPSETS: (i64, i64) = (9, 18);

const MAX_TENSORS: usize = 64;
const MAX_NAME: usize = 128;

/// A file looked into.
pub(in crate::engine) struct Seen {
    pub(in crate::engine) traits: ModelTraits,
    /// By operator, what tract lacks or computes wrongly.
    pub(in crate::engine) problems: BTreeMap<String, String>,
    /// What it is to be loaded with; an error holds for every engine.
    pub(in crate::engine) interface: Result<Interface, LoadError>,
}

impl TractEngine {
    /// Looks into a file without preparing it. `interface`: of its manifest; without one, what it declares.
    ///
    /// # Errors
    /// [`LoadError`] if no engine here is given such a file.
    pub(in crate::engine) fn look(
        &self,
        model: &[u8],
        interface: Option<&Interface>,
    ) -> Result<Seen, LoadError> {
        let proto = inspect::decode(model)?;
        let inspection = inspect::inspect(&proto)?;
        let mut traits = traits(&proto);
        let operators = inspection.operators.into_iter().take(MAX_OPERATORS);
        traits.operators = operators.map(|(name, count)| (cut(&name), count)).collect();
        let mut problems = BTreeMap::new();
        let Ok(()) = known_wrong::each::<Infallible>(&proto, &self.onnx, &mut |node, problem| {
            let words = match problem {
                Problem::Lacking => "is not there".to_owned(),
                Problem::Wrong(how) => format!("is known to be wrong {how}"),
            };
            if problems.len() < MAX_OPERATORS {
                problems.insert(cut(&operator_name(node)), words);
            }
            Ok(())
        });
        let interface = match interface {
            Some(interface) => bind::agree(&proto, interface).map(|_| interface.clone()),
            None => bind::interface(&proto),
        };
        Ok(Seen { traits, problems, interface })
    }
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect()
}

fn traits(proto: &pb::ModelProto) -> ModelTraits {
    let opset = |set: &pb::OperatorSetIdProto| {
        let domain = if set.domain == "ai.onnx" { String::new() } else { cut(&set.domain) };
        (domain, set.version)
    };
    let mut found = ModelTraits {
        ir_version: proto.ir_version,
        opsets: proto.opset_import.iter().take(MAX_TENSORS).map(opset).collect(),
        ..ModelTraits::default()
    };
    let Some(graph) = &proto.graph else { return found };
    let preset: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|info| !preset.contains(info.name.as_str()));
    found.inputs = inputs.take(MAX_TENSORS).map(tensor).collect();
    found.outputs = graph.output.iter().take(MAX_TENSORS).map(tensor).collect();
    let mut quantised = Quantised::default();
    visit(graph, &mut found, &mut quantised);
    found.quantised = Some(quantised).filter(|quantised| *quantised != Quantised::default());
    found
}

/// [`inspect`] has bounded depth and nodes.
fn visit(graph: &pb::GraphProto, found: &mut ModelTraits, quantised: &mut Quantised) {
    let mut weights: HashMap<&str, i32> = HashMap::new();
    for weight in &graph.initializer {
        weights.insert(&weight.name, weight.data_type);
        count(weight, &weight.name, found);
    }
    let consumers = known_wrong::consumers(graph);
    for node in &graph.node {
        found.nodes += 1;
        let constants = node.attribute.iter().flat_map(|a| a.t.iter().chain(&a.tensors));
        constants.for_each(|tensor| count(tensor, &node.name, found));
        let type_of = |at: usize| {
            let name = node.input.get(at).filter(|name| !name.is_empty())?;
            weights.get(name.as_str()).map(|kind| type_name(*kind))
        };
        match node.op_type.as_str() {
            "QuantizeLinear" => {
                let made = type_of(2).unwrap_or_else(|| "UINT8".to_owned());
                *quantised.activations.entry(made).or_default() += 1;
            }
            "DequantizeLinear" => {
                if let Some(held) = type_of(0) {
                    *quantised.weights.entry(held).or_default() += 1;
                }
            }
            "Softmax" | "LogSoftmax" if known_wrong::is_quantised(node, &consumers) => quantised.softmax += 1,
            op if op.starts_with("QLinear") || matches!(op, "QGemm" | "ConvInteger" | "MatMulInteger") => {
                quantised.integer_operators += 1;
            }
            _ => {}
        }
        subgraphs(node).for_each(|subgraph| visit(subgraph, found, quantised));
    }
}

/// Adds what a weight takes in memory.
fn count(tensor: &pb::TensorProto, name: &str, found: &mut ModelTraits) {
    let width = match DataType::try_from(tensor.data_type).unwrap_or(DataType::Undefined) {
        DataType::Double | DataType::Int64 | DataType::Uint64 => 8,
        DataType::Float16 | DataType::Bfloat16 | DataType::Int16 | DataType::Uint16 => 2,
        DataType::Int8 | DataType::Uint8 | DataType::Bool => 1,
        _ => 4,
    };
    // No dimension is negative and the product was checked.
    let elements = tensor.dims.iter().fold(1u64, |all, dim| all.saturating_mul(dim.unsigned_abs()));
    let held = elements.saturating_mul(width);
    found.weight_bytes = found.weight_bytes.saturating_add(held);
    if found.largest_weight.as_ref().is_none_or(|(_, most)| held > *most) {
        found.largest_weight = Some((cut(name), held));
    }
}

fn tensor(info: &pb::ValueInfoProto) -> TensorLook {
    let told = info.r#type.as_ref().and_then(|kind| kind.value.as_ref());
    let (datatype, shape) = match told {
        Some(pb::type_proto::Value::TensorType(tensor)) => {
            let dims = |shape: &pb::TensorShapeProto| shape.dim.iter().take(16).map(size).collect();
            (type_name(tensor.elem_type), tensor.shape.as_ref().map(dims))
        }
        None => ("UNDEFINED".to_owned(), None),
    };
    TensorLook { name: cut(&info.name), datatype, shape }
}

fn size(dim: &pb::tensor_shape_proto::Dimension) -> i64 {
    match dim.value {
        Some(pb::tensor_shape_proto::dimension::Value::DimValue(size)) if size >= 0 => size,
        _ => -1,
    }
}

fn type_name(kind: i32) -> String {
    let known = DataType::try_from(kind).map(|kind| kind.as_str_name().to_owned());
    excerpt(&known.unwrap_or_else(|_| format!("TYPE{kind}")))
}
