//! What happens to a request's tensors before the model and to its answer after: steps that travel with the
//! bundle, so that a device computes what the training code computed.
//!
//! A [`Pipeline`] is compiled once per bundle from the manifest and the model's interface; running it is a
//! pure function (but for the [`StreamState`] a caller may keep). Every size is bounded before anything is
//! allocated, every mistake is a typed error. `docs/pipelines.md` says what each operation computes, and
//! against which reference it is tested.

pub mod appearance;
mod classify;
mod compile;
mod debounce;
mod detect;
mod error;
mod image;
mod kind;
mod numeric;
mod signal;
mod step;
mod table;
mod template;
mod value;

pub use debounce::StreamState;
pub use error::{CompileError, Fault, PipelineError, refusing_op};
pub(crate) use image::gray;

use appearance::Appearance;
use compile::Program;
use edgefleet_shared::{
    bundle::{Interface, Manifest, PipelineSpec, TensorSpec, pipeline::Side},
    tensor::Tensor,
};
use image::Placement;
use std::sync::Arc;
use step::Around;
use value::{Value, export, import};

/// The steps of one bundle. Shared by all requests.
pub struct Pipeline {
    pre: Program,
    post: Program,
    external: Interface,
}

/// What `finish` needs to know of the request: where its images lie in the model's input.
#[derive(Clone, Debug, Default)]
pub struct Context {
    placements: Vec<(String, Arc<[Placement]>)>,
    /// What decoded pictures look like.
    pub pictures: Vec<Pictures>,
}

/// How the pictures look that one step decoded, one a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Pictures {
    /// Counted from 1.
    pub step: usize,
    pub appearances: Vec<Appearance>,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pre, post) = (self.pre.steps.len(), self.post.steps.len());
        f.debug_struct("Pipeline").field("pre", &pre).field("post", &post).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// The pipeline of a bundle; `None` if clients send what the model takes.
    ///
    /// # Errors
    /// [`CompileError`] names the step that does not fit.
    pub fn of(manifest: &Manifest) -> Result<Option<Self>, CompileError> {
        let spec = manifest.pipeline.as_ref();
        spec.map(|spec| Self::compile(spec, &manifest.interface, &manifest.labels)).transpose()
    }

    /// `model`: what the engine takes and gives. `labels`: names of classes where a step has none of its own.
    ///
    /// # Errors
    /// [`CompileError`] names the step that does not fit.
    pub fn compile(spec: &PipelineSpec, model: &Interface, labels: &[String]) -> Result<Self, CompileError> {
        if let Some((field, reason)) = spec.mistakes().into_iter().next() {
            return Err(CompileError::Value { field, reason });
        }
        let pre = compile::program(Side::Pre, &spec.inputs, &spec.pre, &model.inputs, labels, &[])?;
        let post =
            compile::program(Side::Post, &model.outputs, &spec.post, &spec.outputs, labels, &pre.placed)?;
        let external = Interface { inputs: spec.inputs.clone(), outputs: spec.outputs.clone() };
        Ok(Self { pre, post, external })
    }

    /// What clients send and get.
    pub fn external(&self) -> &Interface {
        &self.external
    }

    /// From a request's tensors, matched by name, to the model's, in the order of its interface.
    ///
    /// # Errors
    /// [`PipelineError::Input`] or [`PipelineError::Pre`]: the client's mistake.
    pub fn prepare(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Context), PipelineError> {
        if let Some(extra) = inputs.iter().find(|t| !self.pre.inputs.iter().any(|spec| spec.name == t.name()))
        {
            let known: Vec<&str> = self.pre.inputs.iter().map(|spec| spec.name.as_str()).collect();
            let reason = format!("input `{}` is unknown; there are {}", extra.name(), known.join(", "));
            return Err(PipelineError::Input(reason));
        }
        let mut context = Context::default();
        let mut stream = StreamState::default();
        let tensors = self.pre.run(inputs, &[], &mut stream, &mut context)?;
        Ok((tensors, context))
    }

    /// From the model's answer to the clients', without any memory of earlier ones.
    ///
    /// # Errors
    /// [`PipelineError::Output`] or [`PipelineError::Post`]: nothing the client can mend.
    pub fn finish(&self, outputs: Vec<Tensor>, context: &Context) -> Result<Vec<Tensor>, PipelineError> {
        self.finish_stream(outputs, context, &mut StreamState::default())
    }

    /// The same for one of a stream of requests, whose memory the caller keeps. After an error the memory
    /// may or may not hold the answer.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn finish_stream(
        &self,
        outputs: Vec<Tensor>,
        context: &Context,
        stream: &mut StreamState,
    ) -> Result<Vec<Tensor>, PipelineError> {
        self.post.run(&outputs, &context.placements, stream, &mut Context::default())
    }
}

/// A place is filled with a tensor as it came, or with what a step made.
#[derive(Clone)]
enum Place {
    Raw(Tensor),
    Made(Value),
}

impl Program {
    fn run(
        &self,
        tensors: &[Tensor],
        placements: &[(String, Arc<[Placement]>)],
        stream: &mut StreamState,
        context: &mut Context,
    ) -> Result<Vec<Tensor>, PipelineError> {
        let mut places: Vec<Option<Place>> = vec![None; self.places];
        for (place, spec) in places.iter_mut().zip(&self.inputs) {
            *place = Some(Place::Raw(self.receive(spec, tensors)?));
        }
        let mut around = Around { placements, stream };
        for (index, step) in self.steps.iter().enumerate() {
            let fault = |fault| match self.side {
                Side::Pre => PipelineError::Pre { step: index + 1, op: step.op, fault },
                Side::Post => PipelineError::Post { step: index + 1, op: step.op, fault },
            };
            let mut inputs = Vec::with_capacity(step.reads.len());
            for (place, last) in &step.reads {
                let slot = places.get_mut(*place);
                let filled = slot.and_then(|slot| if *last { slot.take() } else { slot.clone() });
                inputs.push(match filled {
                    Some(Place::Made(value)) => value,
                    Some(Place::Raw(tensor)) => Value::Array(import(&tensor).map_err(fault)?),
                    None => return Err(fault(Fault::shape("reads a tensor that is gone"))),
                });
            }
            let written = step.run.run(inputs, &mut around).map_err(fault)?;
            let appearances = written.first().and_then(|written| step.run.appearances(written));
            context.pictures.extend(appearances.map(|appearances| Pictures { step: index + 1, appearances }));
            for (place, value) in step.writes.iter().zip(written) {
                if let Some(slot) = places.get_mut(*place) {
                    *slot = Some(Place::Made(value));
                }
            }
        }
        let ended = |spec: &TensorSpec, why: String| {
            let said = format!("pipeline `{}` ends with `{}`: {why}", self.side, spec.name);
            match self.side {
                Side::Pre => PipelineError::Input(said),
                Side::Post => PipelineError::Output(said),
            }
        };
        let mut done = Vec::with_capacity(self.outputs.len());
        for (place, spec) in &self.outputs {
            done.push(match places.get(*place).and_then(Option::as_ref) {
                Some(Place::Raw(tensor)) => tensor.clone().with_name(&spec.name),
                Some(Place::Made(Value::Array(array))) => {
                    if let Some(placements) = &array.placements {
                        context.placements.push((spec.name.clone(), placements.clone()));
                    }
                    if !fits(&array.shape, spec) {
                        return Err(ended(spec, format!("shape {:?}, not {:?}", array.shape, spec.shape)));
                    }
                    export(&spec.name, array).map_err(|fault| ended(spec, fault.to_string()))?
                }
                Some(Place::Made(Value::Images(_))) | None => return Err(ended(spec, "no tensor".into())),
            });
        }
        Ok(done)
    }

    /// The one tensor of this name, if it is what was declared.
    fn receive(&self, spec: &TensorSpec, tensors: &[Tensor]) -> Result<Tensor, PipelineError> {
        let (what, wrong): (_, fn(String) -> PipelineError) = match self.side {
            Side::Pre => ("input", PipelineError::Input),
            Side::Post => ("the model's output", PipelineError::Output),
        };
        let mut named = tensors.iter().filter(|tensor| tensor.name() == spec.name);
        let Some(tensor) = named.next() else {
            return Err(wrong(format!("{what} `{}` is missing", spec.name)));
        };
        if named.next().is_some() {
            return Err(wrong(format!("{what} `{}` came twice", spec.name)));
        }
        if tensor.datatype() != spec.datatype || !fits(tensor.shape(), spec) {
            return Err(wrong(format!(
                "{what} `{}` is {} {:?}, not {} {:?}",
                spec.name,
                tensor.datatype(),
                tensor.shape(),
                spec.datatype,
                spec.shape
            )));
        }
        Ok(tensor.clone())
    }
}

fn fits(shape: &[usize], spec: &TensorSpec) -> bool {
    let mut pairs = shape.iter().zip(&spec.shape);
    shape.len() == spec.shape.len()
        && pairs.all(|(have, want)| *want == -1 || usize::try_from(*want) == Ok(*have))
}

#[cfg(test)]
mod tests;
