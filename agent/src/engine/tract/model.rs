//! A loaded model: checks a request, finds its plan, runs it from a fresh state.

use super::{
    Inspection, NAME, VERSION,
    bind::Binding,
    plans::{Dims, Plan, PlanCache, Template},
    tensors,
    words::{self, excerpt},
};
use crate::engine::{LoadError, LoadedModel, RunError, panic_text, request};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    tensor::{Datatype, Tensor},
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Instant,
};
use tract_onnx::{prelude::*, tract_hir::infer::Factoid};

/// A model in memory, shared by all workers.
pub struct TractModel {
    inputs: Vec<Bound>,
    outputs: Vec<TensorSpec>,
    plans: PlanCache,
    rows: Rows,
}

/// An input with its place in tract's list.
struct Bound {
    spec: TensorSpec,
    position: usize,
    kind: DatumType,
}

/// How a batch is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// Some input or output has no variable first dimension: only as a whole.
    Whole,
    /// As a whole; row by row if the model cannot be planned for that batch.
    WholeOrSingle,
    /// Row by row through the plan of batch 1, which is faster for convolutions.
    Single,
}

impl TractModel {
    /// Binds names and prepares the plan of batch 1, so that the first request is quick.
    pub(super) fn prepare(
        mut model: InferenceModel,
        interface: &Interface,
        binding: &Binding,
        inspection: &Inspection,
    ) -> Result<Self, LoadError> {
        let engine = |e: TractError| words::load_error(&format!("{e:#}"));
        let all = model.output_outlets().map_err(engine)?.to_vec();
        let wanted: Option<Vec<_>> = binding.outputs.iter().map(|at| all.get(*at).copied()).collect();
        let wanted = wanted.ok_or_else(|| words::invalid("the model lost an output while parsing".into()))?;
        model.select_output_outlets(&wanted).map_err(engine)?;
        let sources = model.input_outlets().map_err(engine)?;
        let sources: Vec<String> =
            sources.iter().map(|outlet| model.node(outlet.node).name.clone()).collect();
        let mut inputs = Vec::new();
        for (name, spec) in binding.inputs.iter().zip(&interface.inputs) {
            let position = sources.iter().position(|source| source == name);
            let kind = tensors::engine_type(spec.datatype);
            let (Some(position), Some(kind)) = (position, kind) else {
                return Err(words::mismatch(format!("input `{name}` is not among the model's {sources:?}")));
            };
            inputs.push(Bound { spec: spec.clone(), position, kind });
        }
        let batched = |spec: &TensorSpec| spec.shape.first() == Some(&-1);
        let rows = match inputs.iter().map(|b| &b.spec).chain(&interface.outputs).all(batched) {
            false => Rows::Whole,
            true if inspection.convolutional => Rows::Single,
            true => Rows::WholeOrSingle,
        };
        let open = |specs: usize| inputs.iter().flat_map(move |b| b.spec.shape.iter().skip(specs));
        let variable = open(0).any(|dim| *dim < 0);
        let only_batch_varies = open(1).all(|dim| *dim >= 0);
        let single: Dims = open(0).map(|dim| usize::try_from(*dim).unwrap_or(1)).collect();
        let weight_bytes = weight_bytes(&model);
        let template = Template {
            model,
            inputs: inputs.iter().map(|b| (b.position, b.kind, b.spec.shape.len())).collect(),
        };
        let first = match template.plan(&single) {
            Ok(plan) => Some(plan),
            Err(words) if only_batch_varies => return Err(words::load_error(&words)),
            // 1 for an open dimension is a guess that a model may rightly refuse.
            Err(_) => None,
        };
        if let Some(plan) = &first {
            check_outputs(plan, &interface.outputs)?;
        }
        let plans = PlanCache::new(variable.then_some(template), weight_bytes);
        if let Some(plan) = first {
            plans.insert(single, plan);
        }
        Ok(Self { inputs, outputs: interface.outputs.clone(), plans, rows })
    }

    fn run_whole(&self, plan: &Plan, inputs: &[&Tensor]) -> Result<Vec<(Vec<usize>, Bytes)>, RunError> {
        let pieces = inputs.iter().map(|t| (t.shape(), &t.data()[..]));
        self.run_plan(plan, pieces)
    }

    fn run_rows(
        &self,
        plan: &Plan,
        inputs: &[&Tensor],
        rows: usize,
    ) -> Result<Vec<(Vec<usize>, Bytes)>, RunError> {
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|t| single_row(t.shape())).collect();
        let mut joined: Vec<(Vec<usize>, Vec<u8>)> = Vec::new();
        for row in 0..rows {
            let pieces: Vec<Bytes> = inputs.iter().map(|t| tensors::row(t, row, rows)).collect();
            let answer =
                self.run_plan(plan, shapes.iter().zip(&pieces).map(|(shape, data)| (&shape[..], &data[..])))?;
            if joined.is_empty() {
                joined =
                    answer.iter().map(|(s, d)| (s.clone(), Vec::with_capacity(d.len() * rows))).collect();
            }
            for ((shape, all), (row_shape, data)) in joined.iter_mut().zip(&answer) {
                if shape != row_shape || shape.first() != Some(&1) {
                    return Err(failed(&format!("row {row} has shape {row_shape:?}, row 0 {shape:?}")));
                }
                all.extend_from_slice(data);
            }
        }
        Ok(joined
            .into_iter()
            .map(|(mut shape, data)| {
                shape[0] = rows;
                (shape, Bytes::from(data))
            })
            .collect())
    }

    fn values<'a>(&self, pieces: impl Iterator<Item = (&'a [usize], &'a [u8])>) -> TractResult<TVec<TValue>> {
        let mut values: Vec<Option<TValue>> = self.inputs.iter().map(|_| None).collect();
        for (bound, (shape, data)) in self.inputs.iter().zip(pieces) {
            values[bound.position] = Some(tensors::to_engine(bound.kind, shape, data)?.into_tvalue());
        }
        Ok(values.into_iter().flatten().collect())
    }

    fn run_plan<'a>(
        &self,
        plan: &Plan,
        pieces: impl Iterator<Item = (&'a [usize], &'a [u8])>,
    ) -> Result<Vec<(Vec<usize>, Bytes)>, RunError> {
        let run = || -> TractResult<TVec<TValue>> {
            // `run` makes a fresh state: recurrent operators keep theirs between calls.
            plan.run(self.values(pieces)?)
        };
        let outputs = match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(outputs)) => outputs,
            Ok(Err(error)) => return Err(failed(&format!("{error:#}"))),
            Err(panic) => return Err(failed(&format!("it panicked: {}", panic_text(&*panic)))),
        };
        if outputs.len() != self.outputs.len() {
            return Err(failed(&format!("{} outputs came, not {}", outputs.len(), self.outputs.len())));
        }
        let each = self.outputs.iter().zip(&outputs);
        each.map(|(spec, plain)| tensors::from_engine(spec, plain).map_err(|words| failed(&words))).collect()
    }
}

impl LoadedModel for TractModel {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        let (inputs, batch) = request::accept(self.inputs.iter().map(|bound| &bound.spec), inputs)?;
        inputs.iter().try_for_each(|tensor| check_texts(tensor))?;
        let dims: Dims = inputs.iter().flat_map(|t| t.shape().iter().copied()).collect();
        let by_row = |rows: usize| -> Result<_, RunError> {
            let single: Dims = inputs.iter().flat_map(|t| single_row(t.shape())).collect();
            let plan = self.plans.get(&single).map_err(|words| failed(&words))?;
            self.run_rows(&plan, &inputs, rows)
        };
        let answers = match (self.rows, batch) {
            (Rows::Single, Some(rows)) if rows > 1 => by_row(rows)?,
            (how, batch) => match (self.plans.get(&dims), how, batch) {
                (Ok(plan), _, _) => self.run_whole(&plan, &inputs)?,
                (Err(_), Rows::WholeOrSingle, Some(rows)) if rows > 1 => by_row(rows)?,
                (Err(words), _, _) => return Err(failed(&words)),
            },
        };
        let named = self.outputs.iter().zip(answers).map(|(spec, (shape, data))| {
            Tensor::new(spec.name.clone(), spec.datatype, shape, data).map_err(|e| failed(&e.to_string()))
        });
        named.collect()
    }

    /// Of one row, as it is run by itself.
    fn node_times(&self, inputs: &[Tensor], runs: usize) -> Option<Vec<(String, f64)>> {
        let (inputs, batch) = request::accept(self.inputs.iter().map(|bound| &bound.spec), inputs).ok()?;
        let batch = batch.filter(|rows| *rows > 1 && self.rows != Rows::Whole);
        let row = |tensor: &&Tensor| match batch {
            Some(rows) => (single_row(tensor.shape()), tensors::row(tensor, 0, rows)),
            None => (tensor.shape().to_vec(), tensor.data().clone()),
        };
        let pieces: Vec<(Vec<usize>, Bytes)> = inputs.iter().map(row).collect();
        let dims: Dims = pieces.iter().flat_map(|(shape, _)| shape.iter().copied()).collect();
        let plan = self.plans.get(&dims).ok()?;
        let mut seconds = vec![0.0; plan.model().nodes.len()];
        let mut work = || -> TractResult<()> {
            for _ in 0..runs {
                let values = self.values(pieces.iter().map(|(shape, data)| (&shape[..], &data[..])))?;
                plan.spawn()?.run_plan_with_eval(values, |context, state, node, inputs| {
                    let started = Instant::now();
                    let outputs = tract_onnx::tract_core::plan::eval(context, state, node, inputs);
                    if let Some(sum) = seconds.get_mut(node.id) {
                        *sum += started.elapsed().as_secs_f64();
                    }
                    outputs
                })?;
            }
            Ok(())
        };
        catch_unwind(AssertUnwindSafe(&mut work)).ok()?.ok()?;
        Some(plan.model().nodes.iter().map(|node| node.name.clone()).zip(seconds).collect())
    }
}

fn failed(words: &str) -> RunError {
    RunError::Engine(format!("engine {NAME} {VERSION} failed: {}", excerpt(words)))
}

/// The same shape with one row.
fn single_row(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(first) = shape.first_mut() {
        *first = 1;
    }
    shape
}

/// ONNX has texts, not bytes.
fn check_texts(tensor: &Tensor) -> Result<(), RunError> {
    match tensor.datatype() {
        Datatype::Bytes => tensors::bad_text(tensor.data()).map_or(Ok(()), |at| {
            let name = tensor.name();
            Err(RunError::BadInput(format!(
                "input `{name}`: element {at} is not UTF-8; engine {NAME} takes texts"
            )))
        }),
        _ => Ok(()),
    }
}

/// Compares what the plan will give out with the interface, as far as tract knows it beforehand.
fn check_outputs(plan: &Plan, specs: &[TensorSpec]) -> Result<(), LoadError> {
    for (outlet, spec) in plan.model().outputs.iter().zip(specs) {
        let Ok(fact) = plan.model().outlet_fact(*outlet) else { continue };
        let rank = fact.shape.rank();
        if tensors::protocol_type(fact.datum_type) != Some(spec.datatype) || rank != spec.shape.len() {
            return Err(words::mismatch(format!(
                "output `{}` is {} {:?} in the manifest, but the engine makes it {:?} with {rank} dimensions",
                spec.name, spec.datatype, spec.shape, fact.datum_type
            )));
        }
    }
    Ok(())
}

fn weight_bytes(model: &InferenceModel) -> usize {
    let facts = model.nodes.iter().flat_map(|node| &node.outputs);
    facts
        .filter_map(|output| output.fact.value.concretize())
        .map(|value| value.len().saturating_mul(value.datum_type().size_of()))
        .fold(0, usize::saturating_add)
}
