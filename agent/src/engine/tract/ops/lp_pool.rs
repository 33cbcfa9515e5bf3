//! LpPool: `(sum of |x|^p over the window)^(1/p)`.

use super::{
    attributes::{int, ints, text, width},
    kernel::{Fact, FromNode, Kernel, slice, tensor},
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

/// Largest stride, dilation, pad or kernel: what a model file may ask for.
const MAX_STEP: i64 = 1 << 16;

#[derive(Clone, Copy, Debug)]
enum Pad {
    Explicit,
    SameUpper,
    SameLower,
    Valid,
}

/// One spatial dimension.
#[derive(Clone, Copy, Debug)]
struct Axis {
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
    after: usize,
}

#[derive(Debug)]
pub(super) struct LpPool {
    p: i32,
    axes: Vec<Axis>,
    pad: Pad,
    ceil: bool,
}

impl FromNode for LpPool {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let p = i32::try_from(int(node, "p", 2)).ok().filter(|p| (1..=64).contains(p));
        let p = p.with_context(|| format!("`p` is {}, not 1 to 64", int(node, "p", 2)))?;
        let kernel = ints(node, "kernel_shape");
        ensure!(!kernel.is_empty() && kernel.len() <= 8, "`kernel_shape` has {} dimensions", kernel.len());
        let pad = match text(node, "auto_pad", "NOTSET")? {
            "NOTSET" => Pad::Explicit,
            "SAME_UPPER" => Pad::SameUpper,
            "SAME_LOWER" => Pad::SameLower,
            "VALID" => Pad::Valid,
            other => bail!("`auto_pad` is `{other}`"),
        };
        let list = |name: &str, count: usize, default: i64| match ints(node, name) {
            [] => Ok(vec![default; count]),
            all if all.len() == count => Ok(all.to_vec()),
            all => Err(format_err!("`{name}` has {} elements, not {count}", all.len())),
        };
        let (strides, dilations) = (list("strides", kernel.len(), 1)?, list("dilations", kernel.len(), 1)?);
        let pads = list("pads", 2 * kernel.len(), 0)?;
        let bound = |pad: i64| {
            let fits = usize::try_from(pad).ok().filter(|_| pad <= MAX_STEP);
            fits.with_context(|| format!("`pads` has {pad}"))
        };
        let axes = (0..kernel.len()).map(|at| {
            Ok(Axis {
                kernel: width("kernel_shape", kernel[at])?,
                stride: width("strides", strides[at])?,
                dilation: width("dilations", dilations[at])?,
                before: bound(pads[at])?,
                after: bound(pads[at + kernel.len()])?,
            })
        });
        Ok(Self { p, axes: axes.collect::<TractResult<_>>()?, pad, ceil: int(node, "ceil_mode", 0) != 0 })
    }
}

impl LpPool {
    /// Elements and leading pad of the output for `size` elements.
    fn sized(&self, axis: Axis, size: usize) -> TractResult<(usize, usize)> {
        let reach = (axis.kernel - 1) * axis.dilation + 1;
        let same = |upper: bool| {
            let out = size.div_ceil(axis.stride);
            let pads = (out.saturating_sub(1) * axis.stride + reach).saturating_sub(size);
            (out, if upper { pads / 2 } else { pads.div_ceil(2) })
        };
        let (before, after) = match self.pad {
            Pad::SameUpper => return Ok(same(true)),
            Pad::SameLower => return Ok(same(false)),
            Pad::Valid => (0, 0),
            Pad::Explicit => (axis.before, axis.after),
        };
        let padded = size + before + after;
        ensure!(padded >= reach, "a window of {reach} over {padded} elements");
        let rest = padded - reach;
        let mut out = if self.ceil { rest.div_ceil(axis.stride) } else { rest / axis.stride } + 1;
        // A window that begins beyond the elements sees only padding.
        if self.ceil && (out - 1) * axis.stride >= size + before {
            out -= 1;
        }
        Ok((out, before))
    }
}

impl Kernel for LpPool {
    fn name(&self) -> &'static str {
        "LpPool"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape)] = inputs else { bail!("LpPool takes one input, not {}", inputs.len()) };
        ensure!(*kind == f32::datum_type(), "LpPool of {kind:?} is not supported, only of F32");
        ensure!(
            shape.len() == self.axes.len() + 2,
            "a window of {} dimensions over an input of {}",
            self.axes.len(),
            shape.len()
        );
        let mut made: TVec<TDim> = shape[..2].into();
        for (axis, size) in self.axes.iter().zip(&shape[2..]) {
            made.push(self.sized(*axis, size.to_usize()?)?.0.to_dim());
        }
        Ok(tvec!((*kind, made)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let x = inputs[0].to_plain_array_view::<f32>()?;
        let mut shape = x.shape().to_vec();
        let mut before = vec![0; self.axes.len()];
        for (at, axis) in self.axes.iter().enumerate() {
            (shape[at + 2], before[at]) = self.sized(*axis, x.shape()[at + 2])?;
        }
        let window: Vec<usize> = self.axes.iter().map(|axis| axis.kernel).collect();
        let sizes = &x.shape()[2..];
        let strides: Vec<usize> =
            (0..sizes.len()).map(|at| sizes[at + 1..].iter().product::<usize>()).collect();
        let (plane, values) = (sizes.iter().product::<usize>(), slice::<f32>(&inputs[0])?);
        let mut out = Vec::with_capacity(shape.iter().product());
        for channel in values.chunks_exact(plane.max(1)) {
            for place in tract_ndarray::indices(&shape[2..]) {
                let mut sum = 0f32;
                'element: for step in tract_ndarray::indices(&*window) {
                    let mut at = 0;
                    for (dim, axis) in self.axes.iter().enumerate() {
                        let from = place[dim] * axis.stride + step[dim] * axis.dilation;
                        match from.checked_sub(before[dim]).filter(|from| *from < sizes[dim]) {
                            Some(from) => at += from * strides[dim],
                            None => continue 'element,
                        }
                    }
                    sum += channel[at].abs().powi(self.p);
                }
                out.push(sum.powf(1.0 / self.p as f32));
            }
        }
        Ok(tvec!(tensor(&shape, out)?))
    }
}
