//! Small ONNX files made in the test itself.

use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension::Value as Dim},
    type_proto,
};

/// A value with its type; -1 is a symbolic dimension.
pub fn value(name: &str, kind: DataType, shape: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| Dimension {
        value: Some(if *d < 0 { Dim::DimParam("batch".into()) } else { Dim::DimValue(*d) }),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: kind as i32, shape: Some(shape) };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    NodeProto {
        op_type: op.into(),
        name: format!("my_{}", op.to_lowercase()),
        input: text(inputs),
        output: text(outputs),
        ..Default::default()
    }
}

pub fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

pub fn text(name: &str, value: &str) -> AttributeProto {
    attribute(name, AttributeType::String, |a| a.s = value.as_bytes().to_vec())
}
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    attribute(name, AttributeType::Ints, |a| a.ints = values.to_vec())
}
pub fn float(name: &str, value: f32) -> AttributeProto {
    attribute(name, AttributeType::Float, |a| a.f = value)
}
pub fn floats(name: &str, values: &[f32]) -> AttributeProto {
    attribute(name, AttributeType::Floats, |a| a.floats = values.to_vec())
}
pub fn int(name: &str, value: i64) -> AttributeProto {
    attribute(name, AttributeType::Int, |a| a.i = value)
}
pub fn strings(name: &str, values: &[&str]) -> AttributeProto {
    attribute(name, AttributeType::Strings, |a| {
        a.strings = values.iter().map(|v| v.as_bytes().to_vec()).collect();
    })
}
pub fn graph(name: &str, graph: GraphProto) -> AttributeProto {
    attribute(name, AttributeType::Graph, |a| a.g = Some(graph))
}

fn attribute(name: &str, kind: AttributeType, set: impl FnOnce(&mut AttributeProto)) -> AttributeProto {
    let mut attribute = AttributeProto { name: name.into(), ..Default::default() };
    attribute.r#type = kind as i32;
    set(&mut attribute);
    attribute
}

pub fn weights(name: &str, shape: &[i64], values: impl IntoIterator<Item = f32>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: shape.to_vec(),
        data_type: DataType::Float as i32,
        float_data: values.into_iter().collect(),
        ..Default::default()
    }
}

pub fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..Default::default()
    }
}

pub fn bytes(graph: GraphProto) -> Vec<u8> {
    model(graph).encode_to_vec()
}

/// One node between one input `x` and one output `y`, both FP32 `[batch, 4]`.
pub fn around(node: NodeProto) -> GraphProto {
    GraphProto {
        name: "test".into(),
        node: vec![node],
        input: vec![value("x", DataType::Float, &[-1, 4])],
        output: vec![value("y", DataType::Float, &[-1, 4])],
        ..Default::default()
    }
}
