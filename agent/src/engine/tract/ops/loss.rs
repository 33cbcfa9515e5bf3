//! NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss: graphs exported with their loss carry them.

use super::{
    attributes::{has, int, text},
    kernel::{Fact, FromNode, Kernel, is_whole, slice, tensor},
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reduction {
    None,
    Sum,
    Mean,
}

/// `-weight[target] * x[target]` for each place, summed up or not; places of `ignored` count nothing.
#[derive(Debug)]
struct Loss {
    reduction: Reduction,
    ignored: Option<i64>,
}

impl Loss {
    fn new(node: &NodeProto) -> TractResult<Self> {
        let reduction = match text(node, "reduction", "mean")? {
            "none" => Reduction::None,
            "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            other => bail!("`reduction` is `{other}`, not none, sum or mean"),
        };
        let ignored = has(node, "ignore_index").then(|| int(node, "ignore_index", 0));
        Ok(Self { reduction, ignored })
    }

    /// The loss's fact.
    fn output(&self, op: &str, inputs: &[Fact]) -> TractResult<Fact> {
        let ([(kind, scores), (asked, targets)] | [(kind, scores), (asked, targets), _]) = inputs else {
            bail!("{op} takes two or three inputs, not {}", inputs.len())
        };
        ensure!(*kind == f32::datum_type(), "{op} of {kind:?} is not supported, only of F32");
        ensure!(is_whole(*asked), "targets of {op} are integers, not {asked:?}");
        let [rows, classes, places @ ..] = &**scores else {
            bail!("{op} needs rows and classes, the input has {} dimensions", scores.len())
        };
        ensure!(
            targets.first() == Some(rows) && targets.get(1..) == Some(places),
            "targets of shape {targets:?} for scores of {scores:?}"
        );
        if let Some((weight, shape)) = inputs.get(2) {
            ensure!(
                *weight == *kind && **shape == [classes.clone()],
                "{shape:?} weights for {classes} classes"
            );
        }
        let shape = if self.reduction == Reduction::None { targets.clone() } else { tvec!() };
        Ok((*kind, shape))
    }

    /// `x`: logarithms of probabilities, `[rows, classes, places...]`.
    fn of(&self, x: &[f32], shape: &[usize], inputs: &[TValue]) -> TractResult<Tensor> {
        let [_, classes, places @ ..] = shape else { bail!("needs rows and classes") };
        let (classes, plane) = (*classes, places.iter().product::<usize>());
        let targets = inputs[1].cast_to::<i64>()?;
        let weights = inputs.get(2).map(|weights| slice::<f32>(weights)).transpose()?;
        let list = slice::<i64>(&targets)?;
        let (mut losses, mut total) = (Vec::with_capacity(list.len()), 0f32);
        for (at, target) in list.iter().enumerate() {
            if self.ignored == Some(*target) {
                losses.push(0.0);
                continue;
            }
            let class = usize::try_from(*target).ok().filter(|class| *class < classes);
            let class = class.with_context(|| format!("target {target} of {classes} classes"))?;
            let weight = weights.map_or(1.0, |weights| weights[class]);
            let (row, place) = (at / plane, at % plane);
            losses.push(-weight * x[(row * classes + class) * plane + place]);
            total += weight;
        }
        match self.reduction {
            Reduction::None => tensor(inputs[1].shape(), losses),
            Reduction::Sum => tensor(&[], vec![losses.iter().sum::<f32>()]),
            Reduction::Mean => tensor(&[], vec![losses.iter().sum::<f32>() / total]),
        }
    }
}

/// Both are made from the same attributes.
macro_rules! made_of_loss {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name(Loss);

        impl FromNode for $name {
            fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
                Loss::new(node).map(Self)
            }
        }
    )*};
}

made_of_loss! {
    NegativeLogLikelihood
    /// The same after a softmax over the classes, whose logarithm is the second output.
    SoftmaxCrossEntropy
}

impl Kernel for NegativeLogLikelihood {
    fn name(&self) -> &'static str {
        "NegativeLogLikelihoodLoss"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        Ok(tvec!(self.0.output(self.name(), inputs)?))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        Ok(tvec!(self.0.of(slice::<f32>(&inputs[0])?, inputs[0].shape(), inputs)?))
    }
}

impl Kernel for SoftmaxCrossEntropy {
    fn name(&self) -> &'static str {
        "SoftmaxCrossEntropyLoss"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let loss = self.0.output(self.name(), inputs)?;
        Ok(tvec!(loss, inputs[0].clone()))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let shape = inputs[0].shape();
        let logs = log_softmax(slice::<f32>(&inputs[0])?, shape)?;
        let loss = self.0.of(&logs, shape, inputs)?;
        Ok(tvec!(loss, tensor(shape, logs)?))
    }
}

/// Over the second dimension, less its maximum so that nothing overflows.
fn log_softmax(x: &[f32], shape: &[usize]) -> TractResult<Vec<f32>> {
    let [_, classes, places @ ..] = shape else { bail!("needs rows and classes") };
    let (classes, plane) = (*classes, places.iter().product::<usize>());
    let mut logs = x.to_vec();
    if classes * plane == 0 {
        return Ok(logs);
    }
    for row in logs.chunks_exact_mut(classes * plane) {
        for place in 0..plane {
            let of = |row: &[f32], class: usize| row[class * plane + place];
            let most = (0..classes).map(|class| of(row, class)).fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = (0..classes).map(|class| (of(row, class) - most).exp()).sum();
            let less = most + sum.ln();
            (0..classes).for_each(|class| row[class * plane + place] -= less);
        }
    }
    Ok(logs)
}
