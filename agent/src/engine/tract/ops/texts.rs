//! StringConcat: joins texts, element by element.

use super::kernel::{Fact, FromNode, Kernel, zipped};
use tract_onnx::{
    model::ParsingContext, pb::NodeProto, tract_core::broadcast::multi_broadcast, tract_hir::internal::*,
};

#[derive(Debug)]
pub(super) struct StringConcat;

impl FromNode for StringConcat {
    fn from_node(_ctx: &ParsingContext, _node: &NodeProto) -> TractResult<Self> {
        Ok(Self)
    }
}

impl Kernel for StringConcat {
    fn name(&self) -> &'static str {
        "StringConcat"
    }
    fn outputs(&self, inputs: &[Fact]) -> TractResult<TVec<Fact>> {
        let [(kind, x), (other, y)] = inputs else { bail!("StringConcat takes two inputs") };
        ensure!(*kind == String::datum_type() && other == kind, "StringConcat of {kind:?} and {other:?}");
        Ok(tvec!((*kind, multi_broadcast(&[x, y])?)))
    }
    fn eval(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        Ok(tvec!(zipped(&inputs[0], &inputs[1], |x: &String, y: &String| format!("{x}{y}"))?))
    }
}
