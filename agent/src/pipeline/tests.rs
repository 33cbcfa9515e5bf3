//! Every operation against what Python computed (`fixtures/recipe.py`), through compiled pipelines.

use super::*;
use edgefleet_shared::tensor::Datatype;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;

const CASES: &str = include_str!("fixtures/references.json");
const BLOB: &[u8] = include_bytes!("fixtures/references.bin");

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    pre: Vec<Json>,
    post: Vec<Json>,
    labels: Vec<String>,
    inputs: BTreeMap<String, Stored>,
    model: Option<BTreeMap<String, Stored>>,
    outputs: BTreeMap<String, Stored>,
    #[serde(default)]
    atol: f64,
    #[serde(default)]
    rtol: f64,
    #[serde(default = "no_bound")]
    mean: f64,
}

fn no_bound() -> f64 {
    f64::INFINITY
}

#[derive(Clone, serde::Deserialize)]
struct Stored {
    datatype: Datatype,
    shape: Vec<usize>,
    at: usize,
    bytes: usize,
}

impl Stored {
    fn tensor(&self, name: &str) -> Tensor {
        let data = bytes::Bytes::from_static(&BLOB[self.at..self.at + self.bytes]);
        Tensor::new(name, self.datatype, self.shape.clone(), data).unwrap()
    }
}

/// The batch is open, as it mostly is.
fn spec(tensor: &Tensor) -> TensorSpec {
    let mut shape: Vec<i64> = tensor.shape().iter().map(|dim| *dim as i64).collect();
    shape[0] = -1;
    TensorSpec { name: tensor.name().into(), datatype: tensor.datatype(), shape }
}

fn tensors(stored: &BTreeMap<String, Stored>) -> Vec<Tensor> {
    stored.iter().map(|(name, stored)| stored.tensor(name)).collect()
}

impl Case {
    /// Clients' outputs as the pipeline gives them. Where the model's answer is not given, it is its input.
    fn run(&self) -> Vec<Tensor> {
        let (inputs, wanted) = (tensors(&self.inputs), tensors(&self.outputs));
        let specs = |tensors: &[Tensor]| tensors.iter().map(spec).collect::<Vec<_>>();
        // What the model takes is what comes of `pre`: tried first with a model of no inputs.
        let section = json!({
            "inputs": serde_json::to_value(specs(&inputs)).unwrap(),
            "outputs": serde_json::to_value(specs(&wanted)).unwrap(),
            "pre": self.pre, "post": self.post,
        });
        let section: PipelineSpec =
            serde_json::from_value(section).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        assert_eq!(section.mistakes(), [], "{}", self.name);
        let model_inputs = if self.pre.is_empty() {
            specs(&inputs)
        } else if self.post.is_empty() {
            specs(&wanted)
        } else {
            // Only letterboxes have both sides: their size is in the step.
            let size = &self.pre[0]["size"];
            let shape = vec![-1, 3, size[0].as_i64().unwrap(), size[1].as_i64().unwrap()];
            vec![TensorSpec { name: inputs[0].name().into(), datatype: Datatype::Uint8, shape }]
        };
        let answer = self.model.as_ref().map(tensors);
        let model_outputs = answer.as_deref().map_or_else(|| model_inputs.clone(), specs);
        let model = Interface { inputs: model_inputs, outputs: model_outputs };
        let pipeline = Pipeline::compile(&section, &model, &self.labels)
            .unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let (prepared, context) = pipeline.prepare(&inputs).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let finished = pipeline.finish(answer.unwrap_or(prepared), &context);
        finished.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    fn mismatch(&self, want: &Tensor, have: &Tensor) -> Option<String> {
        if (want.datatype(), want.shape()) != (have.datatype(), have.shape()) {
            let (d, s) = (have.datatype(), have.shape());
            return Some(format!("{d} {s:?} instead of {} {:?}", want.datatype(), want.shape()));
        }
        let numbers = |tensor: &Tensor| -> Option<Vec<f64>> {
            match import(tensor).unwrap().data {
                value::Data::U8(data) => Some(data.into_iter().map(f64::from).collect()),
                value::Data::I64(data) => Some(data.into_iter().map(|v| v as f64).collect()),
                value::Data::F32(data) => Some(data.into_iter().map(f64::from).collect()),
                value::Data::F64(data) => Some(data),
                value::Data::Text(_) => None,
            }
        };
        let (Some(want_numbers), Some(have_numbers)) = (numbers(want), numbers(have)) else {
            let text = |t: &Tensor| String::from_utf8_lossy(t.data()).into_owned();
            return (want.data() != have.data()).then(|| format!("{} instead of {}", text(have), text(want)));
        };
        let far = |(want, have): (&f64, &f64)| -> f64 {
            if want == have || (want.is_nan() && have.is_nan()) { 0.0 } else { (want - have).abs() }
        };
        let apart: Vec<f64> = want_numbers.iter().zip(&have_numbers).map(far).collect();
        let mean = apart.iter().sum::<f64>() / apart.len() as f64;
        let largest = apart.iter().copied().fold(0.0, f64::max);
        let outside = apart.iter().zip(&want_numbers);
        let outside = outside.filter(|(d, w)| d.is_nan() || **d > self.atol + self.rtol * w.abs()).count();
        (outside > 0 || mean > self.mean)
            .then(|| format!("{outside} of {} outside, largest {largest}, mean {mean}", apart.len()))
    }
}

#[test]
fn every_operation_agrees_with_its_python_reference() {
    let cases: Vec<Case> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 100);
    let mut wrong = Vec::new();
    for case in &cases {
        let found = case.run();
        for want in tensors(&case.outputs) {
            match found.iter().find(|have| have.name() == want.name()) {
                None => wrong.push(format!("{}: `{}` is missing", case.name, want.name())),
                Some(have) => wrong.extend(
                    case.mismatch(&want, have).map(|why| format!("{}: `{}`: {why}", case.name, want.name())),
                ),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

mod behaviour;
