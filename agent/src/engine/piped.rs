//! A model with the steps its bundle puts around it: to everybody outside, one model whose tensors are those
//! clients send and get.

use super::{
    LoadError, LoadedModel, RunError,
    aside::{self, Aside, Steps},
    panic_text,
};
use crate::pipeline::{Pipeline, PipelineError};
use edgefleet_shared::{
    bundle::{Interface, PipelineSpec},
    reported::RefusalCode,
    tensor::Tensor,
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};

struct PipedModel {
    model: Box<dyn LoadedModel>,
    pipeline: Pipeline,
}

/// Puts the steps of a bundle around its loaded model; without a pipeline it stays as it is. `interface` is
/// the model's own, `labels` are the bundle's.
///
/// # Errors
/// [`LoadError`] names the step that does not fit the model.
pub fn around(
    model: Box<dyn LoadedModel>,
    spec: Option<&PipelineSpec>,
    interface: &Interface,
    labels: &[String],
) -> Result<Box<dyn LoadedModel>, LoadError> {
    let Some(spec) = spec else { return Ok(model) };
    let pipeline = Pipeline::compile(spec, interface, labels).map_err(|e| LoadError {
        code: RefusalCode::InterfaceMismatch,
        message: e.to_string(),
        node: None,
        op: None,
    })?;
    Ok(Box::new(PipedModel { model, pipeline }))
}

impl LoadedModel for PipedModel {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let started = Instant::now();
        let (tensors, mut context) = guarded(|| self.pipeline.prepare(inputs))?;
        let pre = started.elapsed();
        let outputs = self.model.run(&tensors).map_err(|error| match error {
            // The client never saw this tensor; what it sent was accepted.
            RunError::BadInput(why) => RunError::BadInput(format!("after the pipeline's first half: {why}")),
            engine @ RunError::Engine(_) => engine,
        })?;
        drop(tensors);
        let answered = Instant::now();
        let done = guarded(|| self.pipeline.finish(outputs, &context))?;
        let steps = Some(Steps { pre, post: answered.elapsed() });
        aside::leave(Aside { steps, pictures: std::mem::take(&mut context.pictures) });
        Ok(done)
    }

    fn node_times(&self, inputs: &[Tensor], runs: usize) -> Option<Vec<(String, f64)>> {
        let (tensors, _) = guarded(|| self.pipeline.prepare(inputs)).ok()?;
        self.model.node_times(&tensors, runs)
    }
}

/// Picture decoders are other people's code that reads what strangers send.
fn guarded<T>(work: impl FnOnce() -> Result<T, PipelineError>) -> Result<T, RunError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if error.is_clients() => Err(RunError::BadInput(error.to_string())),
        Ok(Err(error)) => Err(RunError::Engine(error.to_string())),
        Err(panic) => Err(RunError::Engine(format!("the pipeline panicked: {}", panic_text(&*panic)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::{bundle::TensorSpec, tensor::Datatype};

    /// Gives back what it got.
    struct Echo;
    impl LoadedModel for Echo {
        fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
            Ok(inputs.to_vec())
        }
    }

    fn floats(name: &str, values: &[f32]) -> Tensor {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(name, Datatype::Fp32, vec![1, values.len()], raw.into()).unwrap()
    }

    fn piped(pre: &str, post: &str) -> Result<Box<dyn LoadedModel>, LoadError> {
        let spec = |name: &str, datatype| TensorSpec { name: name.into(), datatype, shape: vec![-1, 2] };
        let model = spec("y", Datatype::Fp32);
        let interface = Interface { inputs: vec![model.clone()], outputs: vec![model] };
        let section = format!(
            r#"{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": [-1, 2]}}],
                 "outputs": [{{"name": "y", "datatype": "FP32", "shape": [-1, 2]}}],
                 "pre": [{pre}], "post": [{post}]}}"#
        );
        let section: PipelineSpec = serde_json::from_str(&section).unwrap();
        around(Box::new(Echo), Some(&section), &interface, &[])
    }

    #[test]
    fn clients_tensors_go_in_and_come_out() {
        let model = piped(r#"{"op": "scale", "mul": 2, "to": "y"}"#, r#"{"op": "scale", "add": 1}"#).unwrap();
        assert_eq!(model.run(&[floats("x", &[1.0, 2.0])]).unwrap(), [floats("y", &[3.0, 5.0])]);
    }

    #[test]
    fn whose_mistake_it_is_stays_known() {
        let model = piped(
            r#"{"op": "cast", "datatype": "INT64"}, {"op": "category_map", "values": [1, 2]},
               {"op": "cast", "datatype": "FP32", "to": "y"}"#,
            r#"{"op": "top_k", "k": 2, "indices": "i"}"#,
        )
        .unwrap();
        assert_eq!(model.run(&[floats("x", &[1.0, 2.0])]).unwrap(), [floats("y", &[1.0, 0.0])]);
        assert!(matches!(model.run(&[floats("x", &[1.0, 7.0])]), Err(RunError::BadInput(_))));
        assert!(matches!(model.run(&[floats("y", &[1.0, 2.0])]), Err(RunError::BadInput(_))));
        let sums =
            piped(r#"{"op": "scale", "to": "y"}"#, r#"{"op": "top_k", "k": 2, "indices": "i"}"#).unwrap();
        assert!(matches!(sums.run(&[floats("x", &[f32::NAN, 0.0])]), Err(RunError::Engine(_))));
    }

    #[test]
    fn steps_that_do_not_fit_the_model_are_refused_when_it_is_loaded() {
        let refused = piped(r#"{"op": "cast", "datatype": "INT8", "to": "y"}"#, "").err().unwrap();
        assert_eq!(refused.code, RefusalCode::InterfaceMismatch);
        assert!(refused.message.contains("`y` is INT8 [-1, 2], not FP32 [-1, 2]"), "{}", refused.message);
    }
}
