//! Local response normalisation over channels. tract's own visits the window anew for every element in no
//! order a cache likes: half the time of inception_v1 was spent there.

use super::{
    attributes::{MAX_WIDTH, float, index, int},
    kernel::{Fact, FromNode, Kernel, slice, tensor},
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// `y = x / (bias + alpha / size * sum(x^2 over the window))^beta`.
#[derive(Debug)]
pub(super) struct Lrn {
    alpha: f32,
    beta: f32,
    bias: f32,
    size: usize,
}

impl FromNode for Lrn {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let size = index("size", int(node, "size", 0), MAX_WIDTH)?;
        ensure!(size > 0, "`size` is missing or 0");
        let (alpha, beta) = (float(node, "alpha", 0.0001), float(node, "beta", 0.75));
        Ok(Self { alpha, beta, bias: float(node, "bias", 1.0), size })
    }
}

impl Kernel for Lrn {
    fn name(&self) -> &'static str {
        "LRN"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("LRN takes one input, not {}", inputs.len()) };
        ensure!(*kind == f32::datum_type(), "LRN of {kind:?} is not supported, only of F32");
        ensure!(shape.len() >= 2, "LRN needs a channel dimension, the input has {} dimensions", shape.len());
        Ok(tvec!((*kind, shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let shape = inputs[0].shape();
        let x = slice::<f32>(&inputs[0])?;
        let [_, channels, rest @ ..] = shape else { bail!("LRN needs a channel dimension") };
        let (channels, plane) = (*channels, rest.iter().product::<usize>());
        let mut y = Vec::with_capacity(x.len());
        let mut sums = vec![0f32; plane];
        let (before, after) = ((self.size - 1) / 2, self.size / 2);
        if channels * plane > 0 {
            for image in x.chunks_exact(channels * plane) {
                let of = |channel: usize| &image[channel * plane..(channel + 1) * plane];
                for channel in 0..channels {
                    sums.fill(0.0);
                    for other in channel.saturating_sub(before)..(channel + after + 1).min(channels) {
                        sums.iter_mut().zip(of(other)).for_each(|(sum, x)| *sum += x * x);
                    }
                    self.divide(of(channel), &sums, &mut y);
                }
            }
        }
        Ok(tvec!(tensor(shape, y)?))
    }
}

impl Lrn {
    fn divide(&self, x: &[f32], sums: &[f32], y: &mut Vec<f32>) {
        let share = self.alpha / self.size as f32;
        let base = |sum: &f32| self.bias + share * sum;
        let pairs = x.iter().zip(sums);
        // The exponents of published networks, without a general power.
        if self.beta == 0.75 {
            y.extend(pairs.map(|(x, sum)| {
                let root = base(sum).sqrt();
                x / (root * root.sqrt())
            }));
        } else if self.beta == 0.5 {
            y.extend(pairs.map(|(x, sum)| x / base(sum).sqrt()));
        } else {
            y.extend(pairs.map(|(x, sum)| x / base(sum).powf(self.beta)));
        }
    }
}
