//! One form for all operators of ours: a pure function from tensors to tensors.
//!
//! tract wants an operator three times: as rules over partly known shapes, as a typed node, and as code.
//! A [`Kernel`] says what comes out of which inputs and computes it; [`Ours`] makes the rest of it.

use super::super::inspect::node_name;
use std::{fmt::Debug, sync::Arc};
use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_core::broadcast::multi_broadcast,
    tract_hir::{infer::ShapeFactoid, internal::*},
};

/// Type and shape of a value.
pub(super) type Fact = (DatumType, TVec<TDim>);
/// What a builder gives to tract: the operator and the outer values it closes over.
pub(super) type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// A function without state; runs on many threads at once.
pub(super) trait Kernel: Debug + Send + Sync + 'static {
    fn name(&self) -> &'static str;
    /// Types and shapes of all outputs the operator can have.
    ///
    /// # Errors
    /// Inputs the operator cannot take; becomes the reason why the model is refused.
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>>;
    /// All outputs, as [`Kernel::outputs`] promised them for the inputs' types and shapes.
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>>;
}

/// A kernel that is made from a node's attributes.
pub(super) trait FromNode: Kernel + Sized {
    /// # Errors
    /// Attributes that contradict each other or the operator's definition.
    fn from_node(ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self>;
}

/// `with` of each two elements, after both tensors were stretched to the shape that they have in common.
///
/// # Errors
/// Shapes that do not go together, and tensors of another type than `T`.
pub(super) fn zipped<T: Datum>(x: &Tensor, y: &Tensor, with: impl Fn(&T, &T) -> T) -> TractResult<Tensor> {
    let (x, y) = (x.to_plain_array_view::<T>()?, y.to_plain_array_view::<T>()?);
    let shape = multi_broadcast(&[x.shape(), y.shape()])?;
    let (Some(x), Some(y)) = (x.broadcast(&*shape), y.broadcast(&*shape)) else {
        bail!("shapes {:?} and {:?} do not go together", x.shape(), y.shape())
    };
    Ok(tract_ndarray::Zip::from(x).and(y).map_collect(with).into_tensor())
}

/// The builder to register for `K`; its errors name the node even where tract's would not.
pub(super) fn build<K: FromNode>(ctx: &ParsingContext, node: &NodeProto) -> Built {
    let kernel = K::from_node(ctx, node).with_context(|| building(node))?;
    Ok((wrap(Arc::new(kernel), node), vec![]))
}

/// The words in which tract introduces a node, see `words::culprit`.
pub(super) fn building(node: &NodeProto) -> String {
    format!("Building node {} ({})", node_name(node), node.op_type)
}

/// Gives `kernel` the inputs and outputs that `node` names.
pub(super) fn wrap(kernel: Arc<dyn Kernel>, node: &NodeProto) -> Box<dyn InferenceOp> {
    let named = |names: &[String]| -> TVec<usize> {
        names.iter().enumerate().filter(|(_, name)| !name.is_empty()).map(|(at, _)| at).collect()
    };
    expand(Ours { kernel, inputs: named(&node.input).len(), wanted: named(&node.output) })
}

/// `kernel` as a node of a typed model, with its first `outputs` outputs.
pub(super) fn typed(kernel: Arc<dyn Kernel>, outputs: usize) -> Box<dyn TypedOp> {
    Box::new(Ours { kernel, inputs: 0, wanted: (0..outputs).collect() })
}

/// A kernel as a node of tract.
#[derive(Clone, Debug)]
struct Ours {
    kernel: Arc<dyn Kernel>,
    /// How many the graph gives; asked for while shapes are analysed.
    inputs: usize,
    /// Outputs that the graph has a name for.
    wanted: TVec<usize>,
}

impl PartialEq for Ours {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel) && self.wanted == other.wanted
    }
}
impl Eq for Ours {}

impl Ours {
    fn made(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let all = self.kernel.outputs(inputs)?;
        let slot = |at: &usize| all.get(*at).cloned();
        let made: Option<TVec<Fact>> = self.wanted.iter().map(slot).collect();
        made.with_context(|| format!("{} has {} outputs, not more", self.kernel.name(), all.len()))
    }
}

impl Op for Ours {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }
    fn as_typed(&self) -> Option<&dyn TypedOp> {
        Some(self)
    }
}

impl EvalOp for Ours {
    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut made: TVec<Option<Tensor>> = self.kernel.eval(&inputs)?.into_iter().map(Some).collect();
        let take = |at: &usize| made.get_mut(*at).and_then(Option::take).map(IntoTValue::into_tvalue);
        let wanted: Option<TVec<TValue>> = self.wanted.iter().map(take).collect();
        wanted.with_context(|| format!("{} made fewer outputs than it promised", self.kernel.name()))
    }
    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        EvalOp::eval(self, &EvalContext::out_of_plan(), inputs).map(Some)
    }
}

impl TypedOp for Ours {
    fn as_op(&self) -> &dyn Op {
        self
    }
    fn as_op_mut(&mut self) -> &mut dyn Op {
        self
    }
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let inputs: Vec<Fact> = inputs.iter().map(|f| (f.datum_type, f.shape.to_tvec())).collect();
        Ok(self.made(&inputs)?.into_iter().map(|(kind, shape)| kind.fact(&*shape)).collect())
    }
}

impl Expansion for Ours {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }
    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.wanted.len())
    }
    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, self.inputs)?;
        check_output_arity(outputs, self.wanted.len())?;
        s.given_all(inputs.iter().map(|input| &input.datum_type), move |s, kinds| {
            s.given_all(inputs.iter().map(|input| &input.shape), move |s, shapes| {
                let facts: Vec<Fact> = kinds.iter().copied().zip(shapes).collect();
                for (output, (kind, shape)) in outputs.iter().zip(self.made(&facts)?) {
                    s.equals(&output.datum_type, kind)?;
                    s.equals(&output.shape, ShapeFactoid::from(shape))?;
                }
                Ok(())
            })
        })
    }
}

/// The elements of a tensor that must be of type `T`.
pub(super) fn slice<T: Datum>(tensor: &Tensor) -> TractResult<&[T]> {
    tensor.try_as_plain_ram()?.as_slice::<T>()
}

/// A tensor out of its elements; `values` must be as many as `shape` has places.
pub(super) fn tensor<T: Datum>(shape: &[usize], values: Vec<T>) -> TractResult<Tensor> {
    Ok(tract_ndarray::ArrayD::from_shape_vec(shape, values)?.into_tensor())
}

/// Whether a value holds integers; where a graph computes shapes tract has its own type for them.
pub(super) fn is_whole(kind: DatumType) -> bool {
    kind.is_integer() || kind == TDim::datum_type()
}

/// Rows and columns of an input that is a matrix or one row; more dimensions make more columns.
pub(super) fn matrix(shape: &[TDim]) -> TractResult<(TDim, TDim)> {
    match shape {
        [] => bail!("needs an input with a dimension, not a scalar"),
        [columns] => Ok((1.to_dim(), columns.clone())),
        [rows, rest @ ..] => Ok((rows.clone(), rest.iter().product())),
    }
}

/// [`matrix`] of a shape that is known.
pub(super) fn rows_and_columns(shape: &[usize]) -> TractResult<(usize, usize)> {
    match shape {
        [] => bail!("needs an input with a dimension, not a scalar"),
        [columns] => Ok((1, *columns)),
        [rows, rest @ ..] => Ok((*rows, rest.iter().product())),
    }
}
