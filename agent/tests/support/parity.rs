//! Small models with another engine's answers: `models/fixtures/operators.jsonl`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::{Datatype, Tensor},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Line {
    name: String,
    model: String,
    inputs: Vec<Part>,
    outputs: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: String,
}

impl Part {
    fn tensor(self) -> Tensor {
        let raw = STANDARD.decode(self.data).unwrap();
        Tensor::new(self.name, self.datatype, self.shape, raw.into()).unwrap()
    }
}

pub struct Case {
    pub name: String,
    pub model: Vec<u8>,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
}

impl Case {
    /// With the first dimension open, if `batched`.
    pub fn interface(&self, batched: bool) -> Interface {
        let spec = |tensor: &Tensor| {
            let mut shape: Vec<i64> = tensor.shape().iter().map(|dim| *dim as i64).collect();
            if let (true, Some(first)) = (batched, shape.first_mut()) {
                *first = -1;
            }
            TensorSpec { name: tensor.name().into(), datatype: tensor.datatype(), shape }
        };
        Interface {
            inputs: self.inputs.iter().map(spec).collect(),
            outputs: self.outputs.iter().map(spec).collect(),
        }
    }
}

pub fn cases() -> Vec<Case> {
    let path = super::models().join("fixtures/operators.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let case = |line: &str| {
        let line: Line = serde_json::from_str(line).unwrap();
        let tensors = |parts: Vec<Part>| parts.into_iter().map(Part::tensor).collect();
        Case {
            name: line.name,
            model: STANDARD.decode(line.model).unwrap(),
            inputs: tensors(line.inputs),
            outputs: tensors(line.outputs),
        }
    };
    text.lines().map(case).collect()
}
