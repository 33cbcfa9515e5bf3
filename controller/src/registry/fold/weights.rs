//! Weights as numbers, and back.

use super::{
    graph::field,
    wire::{Message, NotWire, Value},
};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

const FLOAT: i64 = 1;
const INT32: i64 = 6;
const INT64: i64 = 7;
const BOOL: i64 = 9;
/// Numbers of a constant that conditions are computed with: shapes and flags.
const MAX_INTS: usize = 64;

/// f32 weights.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Floats {
    pub(super) dims: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// `None` if it holds something else than f32, or not as many as its shape says.
pub(super) fn floats(tensor: &Bytes) -> Result<Option<Floats>, NotWire> {
    let tensor = Message::parse(tensor.clone())?;
    let Some(dims) = dims(&tensor, FLOAT)? else { return Ok(None) };
    let mut values = Vec::new();
    if let Some(raw) = tensor.bytes(field::TENSOR_RAW).last() {
        if raw.len() % 4 != 0 {
            return Ok(None);
        }
        let all = raw.chunks_exact(4).filter_map(|chunk| chunk.try_into().ok());
        values.extend(all.map(f32::from_le_bytes));
    } else {
        for value in tensor.all(field::TENSOR_FLOATS) {
            match value {
                Value::Fixed32(bits) => values.push(f32::from_bits(*bits)),
                Value::Bytes(packed) if packed.len() % 4 == 0 => {
                    let mut packed = packed.clone();
                    while packed.has_remaining() {
                        values.push(packed.get_f32_le());
                    }
                }
                _ => return Err(NotWire),
            }
        }
    }
    let wanted = dims.iter().try_fold(1usize, |all, dim| all.checked_mul(*dim));
    Ok((wanted == Some(values.len())).then_some(Floats { dims, values }))
}

/// An f32 `TensorProto`.
pub(super) fn tensor(name: &str, floats: &Floats) -> Bytes {
    let mut message = Message::default();
    floats.dims.iter().for_each(|dim| message.push_int(field::TENSOR_DIMS, *dim as i64));
    message.push_int(field::TENSOR_TYPE, FLOAT);
    message.push_text(field::TENSOR_NAME, name);
    let mut raw = BytesMut::with_capacity(floats.values.len() * 4);
    floats.values.iter().for_each(|value| raw.put_f32_le(*value));
    message.0.push((field::TENSOR_RAW, Value::Bytes(raw.freeze())));
    message.to_bytes()
}

/// A small constant of INT64, INT32 or BOOL: its numbers, and whether it is a scalar. `None` for all else.
pub(super) fn ints(tensor: &Bytes) -> Result<Option<(Vec<i64>, bool)>, NotWire> {
    let tensor = Message::parse(tensor.clone())?;
    let kind = tensor.int(field::TENSOR_TYPE).unwrap_or(0);
    if !matches!(kind, INT64 | INT32 | BOOL) {
        return Ok(None);
    }
    let Some(dims) = dims(&tensor, kind)? else { return Ok(None) };
    let wanted = dims.iter().try_fold(1usize, |all, dim| all.checked_mul(*dim));
    if dims.len() > 1 || wanted.is_none_or(|wanted| wanted > MAX_INTS) {
        return Ok(None);
    }
    let mut values = Vec::new();
    if let Some(raw) = tensor.bytes(field::TENSOR_RAW).last() {
        let mut raw = raw.clone();
        let width = match kind {
            INT64 => 8,
            INT32 => 4,
            _ => 1,
        };
        if raw.len() > MAX_INTS * width || raw.len() % width != 0 {
            return Ok(None);
        }
        while raw.has_remaining() {
            values.push(match kind {
                INT64 => raw.get_i64_le(),
                INT32 => i64::from(raw.get_i32_le()),
                _ => i64::from(raw.get_u8()),
            });
        }
    } else {
        let number = if kind == INT64 { field::TENSOR_INT64S } else { field::TENSOR_INT32S };
        values = tensor.ints(number)?;
    }
    Ok((wanted == Some(values.len())).then_some((values, dims.is_empty())))
}

/// The shape of a tensor of type `kind` whose numbers are in the file.
fn dims(tensor: &Message, kind: i64) -> Result<Option<Vec<usize>>, NotWire> {
    let elsewhere = tensor.all(field::TENSOR_EXTERNAL).next().is_some()
        || tensor.int(field::TENSOR_LOCATION).is_some_and(|at| at != 0);
    if elsewhere || tensor.int(field::TENSOR_TYPE) != Some(kind) {
        return Ok(None);
    }
    let dims = tensor.ints(field::TENSOR_DIMS)?;
    Ok(dims.into_iter().map(|dim| usize::try_from(dim).ok()).collect())
}
