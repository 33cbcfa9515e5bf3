//! BitShift. tract's takes the amount modulo the word's width, as processors do; ONNX shifts everything out.

use super::{
    attributes::text,
    kernel::{Fact, FromNode, Kernel, zipped},
};
use tract_onnx::{
    model::ParsingContext, pb::NodeProto, tract_core::broadcast::multi_broadcast, tract_hir::internal::*,
};

#[derive(Debug)]
pub(super) struct BitShift {
    left: bool,
}

impl FromNode for BitShift {
    fn from_node(_ctx: &ParsingContext, node: &NodeProto) -> TractResult<Self> {
        match text(node, "direction", "")? {
            "LEFT" => Ok(Self { left: true }),
            "RIGHT" => Ok(Self { left: false }),
            other => bail!("`direction` is `{other}`, not LEFT or RIGHT"),
        }
    }
}

impl Kernel for BitShift {
    fn name(&self) -> &'static str {
        "BitShift"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, x), (other, by)] = inputs else { bail!("BitShift takes two inputs") };
        ensure!(kind == other && kind.is_integer(), "BitShift of {kind:?} by {other:?} is not supported");
        Ok(tvec!((*kind, multi_broadcast(&[x, by])?)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let shift = match inputs[0].datum_type() {
            DatumType::U8 => shift::<u8>,
            DatumType::U16 => shift::<u16>,
            DatumType::U32 => shift::<u32>,
            DatumType::U64 => shift::<u64>,
            DatumType::I8 => shift::<i8>,
            DatumType::I16 => shift::<i16>,
            DatumType::I32 => shift::<i32>,
            DatumType::I64 => shift::<i64>,
            other => bail!("BitShift of {other:?} is not supported"),
        };
        Ok(tvec!(shift(&inputs[0], &inputs[1], self.left)?))
    }
}

trait Word: Datum + Copy {
    fn left(self, by: Self) -> Self;
    fn right(self, by: Self) -> Self;
}

macro_rules! words {
    ($($word:ty)*) => {$(
        impl Word for $word {
            fn left(self, by: Self) -> Self {
                u32::try_from(by).ok().and_then(|by| self.checked_shl(by)).unwrap_or(0)
            }
            fn right(self, by: Self) -> Self {
                // Beyond the width: nothing but the sign is left.
                let gone = (self >> (Self::BITS - 1)) >> 1;
                u32::try_from(by).ok().and_then(|by| self.checked_shr(by)).unwrap_or(gone)
            }
        }
    )*};
}
words!(u8 u16 u32 u64 i8 i16 i32 i64);

fn shift<T: Word>(x: &Tensor, by: &Tensor, left: bool) -> TractResult<Tensor> {
    let way = if left { T::left } else { T::right };
    zipped(x, by, |x: &T, by: &T| way(*x, *by))
}
