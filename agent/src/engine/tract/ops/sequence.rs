//! ReverseSequence: turns the first so many steps of each sequence of a batch round, as exporters of
//! bidirectional recurrent networks write it.

use super::{
    attributes::{index, int},
    kernel::{Fact, FromNode, Kernel, is_whole, slice, tensor},
};
use tract_onnx::{model::ParsingContext, pb::NodeProto, tract_hir::internal::*};

#[derive(Debug)]
pub(super) struct ReverseSequence {
    /// The first two dimensions are batch and time, or time and batch.
    batch_first: bool,
}

impl FromNode for ReverseSequence {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        let batch = index("batch_axis", int(node, "batch_axis", 1), 2)?;
        let time = index("time_axis", int(node, "time_axis", 0), 2)?;
        ensure!(batch != time, "`batch_axis` and `time_axis` are both {batch}");
        Ok(Self { batch_first: batch == 0 })
    }
}

impl Kernel for ReverseSequence {
    fn name(&self) -> &'static str {
        "ReverseSequence"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, shape), (lengths, list)] = inputs else {
            bail!("ReverseSequence takes two inputs, not {}", inputs.len())
        };
        ensure!(shape.len() >= 2, "needs batch and time, the input has {} dimensions", shape.len());
        let batch = &shape[usize::from(!self.batch_first)];
        ensure!(is_whole(*lengths) && **list == [batch.clone()], "{list:?} lengths for {batch} sequences");
        Ok(tvec!((*kind, shape.clone())))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let reverse = match inputs[0].datum_type() {
            DatumType::F32 => Self::reverse::<f32>,
            DatumType::F64 => Self::reverse::<f64>,
            DatumType::F16 => Self::reverse::<f16>,
            DatumType::I64 => Self::reverse::<i64>,
            DatumType::I32 => Self::reverse::<i32>,
            DatumType::I8 => Self::reverse::<i8>,
            DatumType::U8 => Self::reverse::<u8>,
            DatumType::Bool => Self::reverse::<bool>,
            DatumType::String => Self::reverse::<String>,
            other => bail!("ReverseSequence of {other:?} is not supported"),
        };
        Ok(tvec!(reverse(self, &inputs[0], &inputs[1])?))
    }
}

impl ReverseSequence {
    fn reverse<T: Datum + Clone>(&self, x: &Tensor, lengths: &Tensor) -> TractResult<Tensor> {
        let [first, second, rest @ ..] = x.shape() else { bail!("needs batch and time") };
        let (first, second, width) = (*first, *second, rest.iter().product::<usize>());
        let steps = if self.batch_first { second } else { first };
        let lengths = lengths.cast_to::<i64>()?;
        let lengths: Vec<usize> = slice::<i64>(&lengths)?
            .iter()
            .map(|length| index("sequence_lens", *length, steps + 1))
            .collect::<TractResult<_>>()?;
        let values = slice::<T>(x)?;
        let mut out = Vec::with_capacity(values.len());
        for one in 0..first {
            for two in 0..second {
                let (sequence, step) = if self.batch_first { (one, two) } else { (two, one) };
                let length = lengths[sequence];
                let from = if step < length { length - 1 - step } else { step };
                let at = if self.batch_first { one * second + from } else { from * second + two };
                out.extend_from_slice(&values[at * width..(at + 1) * width]);
            }
        }
        tensor(x.shape(), out)
    }
}
