//! Reads a node's attributes; a missing list is an empty one, as ONNX has it.

use super::super::inspect::attribute;
use tract_onnx::{model::ParsingContext, pb::NodeProto, prelude::*, tract_hir::internal::*};

/// Largest number of classes, targets or categories: what a model may make of one row.
pub(super) const MAX_WIDTH: usize = 1 << 16;

pub(super) fn floats<'a>(node: &'a NodeProto, name: &str) -> &'a [f32] {
    attribute(node, name).map_or(&[], |a| &a.floats)
}

pub(super) fn ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |a| &a.ints)
}

pub(super) fn strings<'a>(node: &'a NodeProto, name: &str) -> TractResult<Vec<&'a str>> {
    let raw = attribute(node, name).map_or(&[][..], |a| &a.strings);
    let text = |(at, bytes): (usize, &'a Vec<u8>)| {
        std::str::from_utf8(bytes).map_err(|_| format_err!("`{name}` element {at} is not UTF-8"))
    };
    raw.iter().enumerate().map(text).collect()
}

pub(super) fn has(node: &NodeProto, name: &str) -> bool {
    attribute(node, name).is_some()
}

pub(super) fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |a| a.i)
}

pub(super) fn float(node: &NodeProto, name: &str, default: f32) -> f32 {
    attribute(node, name).map_or(default, |a| a.f)
}

pub(super) fn text<'a>(node: &'a NodeProto, name: &str, default: &'a str) -> TractResult<&'a str> {
    match attribute(node, name) {
        Some(a) => std::str::from_utf8(&a.s).map_err(|_| format_err!("`{name}` is not UTF-8")),
        None => Ok(default),
    }
}

pub(super) fn tensor(ctx: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<Option<Tensor>> {
    match attribute(node, name).and_then(|a| a.t.as_ref()) {
        Some(proto) => ctx.load_tensor(proto).with_context(|| format!("attribute `{name}`")).map(Some),
        None => Ok(None),
    }
}

/// A list of numbers given as floats or, in later versions, as the tensor `NAME_as_tensor`; and whether
/// it came in double precision.
pub(super) fn numbers(ctx: &ParsingContext, node: &NodeProto, name: &str) -> TractResult<(Vec<f64>, bool)> {
    match tensor(ctx, node, &format!("{name}_as_tensor"))? {
        Some(tensor) => {
            let double = tensor.datum_type() == f64::datum_type();
            Ok((super::kernel::slice::<f64>(tensor.cast_to::<f64>()?.as_ref())?.to_vec(), double))
        }
        None => Ok((floats(node, name).iter().copied().map(f64::from).collect(), false)),
    }
}

/// Refuses lists that belong together but differ in length.
pub(super) fn same_length(lists: &[(&str, usize)]) -> TractResult<usize> {
    let Some((first, length)) = lists.first() else { return Ok(0) };
    for (name, other) in lists {
        ensure!(other == length, "`{first}` has {length} elements, but `{name}` {other}");
    }
    Ok(*length)
}

/// A count out of the file, at least 1 and at most [`MAX_WIDTH`].
pub(super) fn width(name: &str, count: i64) -> TractResult<usize> {
    let width = usize::try_from(count).ok().filter(|c| (1..=MAX_WIDTH).contains(c));
    width.with_context(|| format!("`{name}` is {count}, not 1 to {MAX_WIDTH}"))
}

/// An index out of the file, below `end`.
pub(super) fn index(name: &str, value: i64, end: usize) -> TractResult<usize> {
    let at = usize::try_from(value).ok().filter(|at| *at < end);
    at.with_context(|| format!("`{name}` has the index {value}, of {end}"))
}
