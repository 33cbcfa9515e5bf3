//! tract's operators with one thing put right: its analysis stays, what it makes of the node is changed.

use super::{
    attributes::{int, text},
    kernel::{Built, Fact, Kernel, building, typed},
};
use std::sync::Arc;
use tract_onnx::{
    model::{OnnxOpRegister, ParsingContext},
    pb::NodeProto,
    tract_core::ops::nn::{Reduce, Reducer},
    tract_hir::internal::*,
};

/// Behind a name with this ending stands tract's own builder; graphs cannot use it.
const OWN: &str = " (tract)";

/// Puts ours before the builders of tract.
pub(super) fn register(register: &mut OnnxOpRegister) {
    for name in ["ReduceMax", "ReduceMin", "LSTM", "GRU", "RNN"] {
        if let Some(own) = register.0.remove(name) {
            register.0.insert(format!("{name}{OWN}"), own);
            register.insert(name, build);
        }
    }
}

fn build(ctx: &ParsingContext, node: &NodeProto) -> Built {
    let own = ctx.framework.op_register.0.get(&format!("{}{OWN}", node.op_type));
    let own = own.with_context(|| format!("{} is not registered", node.op_type))?;
    let (inner, outer) = own(ctx, node)?;
    let how = match node.op_type.as_str() {
        "ReduceMax" | "ReduceMin" => How::Extremes,
        _ => match text(node, "direction", "forward").with_context(|| building(node))? {
            "reverse" => How::Backwards {
                axis: usize::from(int(node, "layout", 0) == 1),
                whole: node.output.first().is_some_and(|name| !name.is_empty()),
            },
            _ => return Ok((inner, outer)),
        },
    };
    Ok((Box::new(Adjusted { inner, how }), outer))
}

#[derive(Clone, Copy, Debug)]
enum How {
    /// tract starts from the largest finite number: the maximum of infinities came out as that.
    Extremes,
    /// tract does not read `direction=reverse` and goes forward: reversed input, and the reverse of the
    /// whole sequence (the first output, if wanted) along `axis`, make it right.
    Backwards { axis: usize, whole: bool },
}

#[derive(Clone, Debug)]
struct Adjusted {
    inner: Box<dyn InferenceOp>,
    how: How,
}

impl PartialEq for Adjusted {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}
impl Eq for Adjusted {}

impl Op for Adjusted {
    fn name(&self) -> StaticName {
        self.inner.name()
    }
    fn as_typed(&self) -> Option<&dyn TypedOp> {
        None
    }
}

impl EvalOp for Adjusted {
    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        // Shapes are computed with integers, where tract is right.
        match self.how {
            How::Extremes if !inputs[0].datum_type().is_float() => self.inner.eval_out_of_plan(inputs),
            How::Extremes | How::Backwards { .. } => Ok(None),
        }
    }
}

impl InferenceOp for Adjusted {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        self.inner.infer_facts(inputs, outputs, observed)
    }
    fn observe_outlets(&self, model: &InferenceModel, node: &InferenceNode) -> TractResult<Vec<OutletId>> {
        self.inner.observe_outlets(model, node)
    }
    fn nboutputs(&self) -> TractResult<usize> {
        self.inner.nboutputs()
    }
    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        match self.how {
            How::Extremes => {
                // tract computes with small constants while it wires: not with what is taken out below.
                let x = mapping[&node.inputs[0]];
                let fact = target.outlet_fact(x)?.clone();
                target.set_outlet_fact(x, fact.without_value())?;
                let first = target.nodes().len();
                let outputs = self.inner.to_typed(source, node, target, mapping)?;
                target.set_outlet_fact(x, fact)?;
                for id in first..target.nodes().len() {
                    let Some(reduce) = target.node(id).op_as::<Reduce>() else { continue };
                    let max = reduce.reducer == Reducer::Max;
                    let kind = target.outlet_fact(id.into())?.datum_type;
                    if (max || reduce.reducer == Reducer::Min) && kind.is_float() {
                        let axes = reduce.axes.clone();
                        target.node_mut(id).op = typed(Arc::new(Extreme { axes, max }), 1);
                    }
                }
                Ok(outputs)
            }
            How::Backwards { axis, whole } => {
                let x = node.inputs[0];
                ensure!(!node.inputs[1..].contains(&x), "{} of its own input is not supported", node.name);
                let flip = || typed(Arc::new(Reverse(axis)), 1);
                let reversed = target.wire_node(format!("{}.x", node.name), flip(), &[mapping[&x]])?[0];
                let mut mapping = mapping.clone();
                mapping.insert(x, reversed);
                let mut outputs = self.inner.to_typed(source, node, target, &mapping)?;
                if whole {
                    outputs[0] = target.wire_node(format!("{}.y", node.name), flip(), &[outputs[0]])?[0];
                }
                Ok(outputs)
            }
        }
    }
    as_op!();
}

/// Largest or smallest element along `axes`, which stay with one place; NaN wins, as in numpy.
#[derive(Debug)]
struct Extreme {
    axes: TVec<usize>,
    max: bool,
}

impl Kernel for Extreme {
    fn name(&self) -> &'static str {
        if self.max { "ReduceMax" } else { "ReduceMin" }
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("takes one input, not {}", inputs.len()) };
        let mut shape = shape.clone();
        for axis in &self.axes {
            let dim = shape.get_mut(*axis).with_context(|| format!("there is no axis {axis}"))?;
            *dim = 1.to_dim();
        }
        Ok(tvec!((*kind, shape)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let kind = inputs[0].datum_type();
        Ok(tvec!(match kind {
            DatumType::F64 => self.reduce(&inputs[0], f64::INFINITY, f64::is_nan)?,
            _ => {
                let input = inputs[0].cast_to::<f32>()?;
                self.reduce(&input, f32::INFINITY, f32::is_nan)?.cast_to_dt(kind)?.into_owned()
            }
        }))
    }
}

impl Extreme {
    fn reduce<T>(&self, input: &Tensor, infinity: T, is_nan: fn(T) -> bool) -> TractResult<Tensor>
    where
        T: Datum + Copy + PartialOrd + std::ops::Neg<Output = T>,
    {
        use tract_ndarray::Axis;
        let mut array = input.to_plain_array_view::<T>()?.to_owned();
        for axis in &self.axes {
            array =
                match self.max {
                    true => array.fold_axis(Axis(*axis), -infinity, |top, x| {
                        if *x > *top || is_nan(*x) { *x } else { *top }
                    }),
                    false => array.fold_axis(Axis(*axis), infinity, |low, x| {
                        if *x < *low || is_nan(*x) { *x } else { *low }
                    }),
                };
            array = array.insert_axis(Axis(*axis));
        }
        Ok(array.as_standard_layout().into_owned().into_tensor())
    }
}

/// The other way round along an axis.
#[derive(Debug)]
struct Reverse(usize);

impl Kernel for Reverse {
    fn name(&self) -> &'static str {
        "Reverse"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("takes one input, not {}", inputs.len()) };
        ensure!(self.0 < shape.len(), "there is no axis {}", self.0);
        ensure!(kind.is_float(), "recurrent operators take floating-point numbers, not {kind:?}");
        Ok(tvec!((*kind, shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        Ok(tvec!(match inputs[0].datum_type() {
            DatumType::F16 => reverse::<f16>(&inputs[0], self.0)?,
            DatumType::F64 => reverse::<f64>(&inputs[0], self.0)?,
            _ => reverse::<f32>(&inputs[0], self.0)?,
        }))
    }
}

fn reverse<T: Datum + Copy>(input: &Tensor, axis: usize) -> TractResult<Tensor> {
    let mut array = input.to_plain_array_view::<T>()?.to_owned();
    array.invert_axis(tract_ndarray::Axis(axis));
    Ok(array.as_standard_layout().into_owned().into_tensor())
}
