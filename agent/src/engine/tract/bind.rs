//! Binds the manifest's interface to the graph's inputs and outputs, by name.

use super::{
    NAME, VERSION, tensors,
    words::{mismatch, unsupported},
};
use crate::engine::LoadError;
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::Datatype,
};
use std::collections::HashSet;
use tract_onnx::pb::{self, tensor_proto::DataType};

/// Positions in the graph, in the order of the interface.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<usize>,
}

/// As [`agree`], and tract has the datatypes.
pub(super) fn bind(proto: &pb::ModelProto, interface: &Interface) -> Result<Binding, LoadError> {
    let binding = agree(proto, interface)?;
    for spec in interface.inputs.iter().chain(&interface.outputs) {
        if tensors::engine_type(spec.datatype).is_none() {
            let why = format!("of {}, which engine {NAME} {VERSION} does not have", spec.datatype);
            let mut error = unsupported(&spec.name, "", "");
            error.message = format!("tensor `{}` is {why}", spec.name);
            (error.node, error.op) = (None, None);
            return Err(error);
        }
    }
    Ok(binding)
}

/// Every input of the graph must be in the interface and the other way round; outputs the interface
/// leaves out are not computed.
pub(super) fn agree(proto: &pb::ModelProto, interface: &Interface) -> Result<Binding, LoadError> {
    let Some(graph) = &proto.graph else { return Err(mismatch("the model has no graph".into())) };
    let preset: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<_> = graph.input.iter().filter(|i| !preset.contains(i.name.as_str())).collect();
    let outputs: Vec<_> = graph.output.iter().collect();
    positions("input", &inputs, &interface.inputs)?;
    if let Some(extra) = inputs.iter().find(|i| !interface.inputs.iter().any(|spec| spec.name == i.name)) {
        return Err(unequal("input", &extra.name, &inputs, &interface.inputs));
    }
    let positions = positions("output", &outputs, &interface.outputs)?;
    Ok(Binding {
        inputs: interface.inputs.iter().map(|spec| spec.name.clone()).collect(),
        outputs: positions,
    })
}

/// What a model file says it takes and gives, for one that comes without a manifest.
pub(in crate::engine) fn interface(proto: &pb::ModelProto) -> Result<Interface, LoadError> {
    let Some(graph) = &proto.graph else { return Err(mismatch("the model has no graph".into())) };
    let preset: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|i| !preset.contains(i.name.as_str()));
    Ok(Interface {
        inputs: inputs.map(declared).collect::<Result<_, _>>()?,
        outputs: graph.output.iter().map(declared).collect::<Result<_, _>>()?,
    })
}

fn declared(info: &pb::ValueInfoProto) -> Result<TensorSpec, LoadError> {
    let vague = |what: &str| mismatch(format!("tensor `{}` {what}, so a manifest is needed", info.name));
    let Some(pb::type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Err(vague("is declared without a type, or is no tensor"));
    };
    let told = DataType::try_from(tensor.elem_type).unwrap_or(DataType::Undefined);
    let datatype = datatype(told).ok_or_else(|| vague("has a type that the protocol lacks"))?;
    let shape = tensor.shape.as_ref().ok_or_else(|| vague("is declared without a shape"))?;
    let shape = shape.dim.iter().map(|dim| dimension(dim).unwrap_or(-1)).collect();
    Ok(TensorSpec { name: info.name.clone(), datatype, shape })
}

fn positions(
    side: &str,
    declared: &[&pb::ValueInfoProto],
    specs: &[TensorSpec],
) -> Result<Vec<usize>, LoadError> {
    let mut found = Vec::with_capacity(specs.len());
    for spec in specs {
        let position = declared.iter().position(|info| info.name == spec.name);
        let Some(position) = position else { return Err(unequal(side, &spec.name, declared, specs)) };
        check(side, spec, declared[position])?;
        found.push(position);
    }
    Ok(found)
}

fn unequal(side: &str, culprit: &str, declared: &[&pb::ValueInfoProto], specs: &[TensorSpec]) -> LoadError {
    let model: Vec<&str> = declared.iter().map(|info| info.name.as_str()).collect();
    let manifest: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    mismatch(format!(
        "{side} `{culprit}` is not on both sides: the manifest names the {side}s {manifest:?}, the model {model:?}"
    ))
}

/// Datatype, rank and dimensions, as far as the file declares them.
fn check(side: &str, spec: &TensorSpec, info: &pb::ValueInfoProto) -> Result<(), LoadError> {
    let Some(pb::type_proto::Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        // Outputs may come without a type; inputs may not, and tract says so itself.
        return Ok(());
    };
    let told = DataType::try_from(tensor.elem_type).unwrap_or(DataType::Undefined);
    if told != DataType::Undefined && datatype(told) != Some(spec.datatype) {
        return Err(mismatch(format!(
            "{side} `{}` is {} in the manifest, but {} in the model",
            spec.name,
            spec.datatype,
            told.as_str_name()
        )));
    }
    let Some(shape) = &tensor.shape else { return Ok(()) };
    let dims: Vec<Option<i64>> = shape.dim.iter().map(dimension).collect();
    let agrees = |(spec, dim): (&i64, &Option<i64>)| dim.is_none_or(|dim| dim == *spec);
    if dims.len() != spec.shape.len() || !spec.shape.iter().zip(&dims).all(agrees) {
        let dims: Vec<i64> = dims.iter().map(|dim| dim.unwrap_or(-1)).collect();
        return Err(mismatch(format!(
            "{side} `{}` has shape {:?} in the manifest, but {dims:?} in the model (-1 is variable)",
            spec.name, spec.shape
        )));
    }
    Ok(())
}

/// `None` if the model leaves it open.
fn dimension(dim: &pb::tensor_shape_proto::Dimension) -> Option<i64> {
    match dim.value.as_ref()? {
        pb::tensor_shape_proto::dimension::Value::DimValue(value) => Some(*value).filter(|v| *v >= 0),
        pb::tensor_shape_proto::dimension::Value::DimParam(_) => None,
    }
}

/// The protocol's name of an ONNX element type.
fn datatype(told: DataType) -> Option<Datatype> {
    Some(match told {
        DataType::Bool => Datatype::Bool,
        DataType::Uint8 => Datatype::Uint8,
        DataType::Uint16 => Datatype::Uint16,
        DataType::Uint32 => Datatype::Uint32,
        DataType::Uint64 => Datatype::Uint64,
        DataType::Int8 => Datatype::Int8,
        DataType::Int16 => Datatype::Int16,
        DataType::Int32 => Datatype::Int32,
        DataType::Int64 => Datatype::Int64,
        DataType::Float16 => Datatype::Fp16,
        DataType::Bfloat16 => Datatype::Bf16,
        DataType::Float => Datatype::Fp32,
        DataType::Double => Datatype::Fp64,
        DataType::String => Datatype::Bytes,
        _ => return None,
    })
}
