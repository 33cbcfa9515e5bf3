//! Tensors of the protocol to tensors of tract and back: one copy each way, no unsafe cast.

use bytes::Bytes;
use edgefleet_shared::{
    bundle::TensorSpec,
    tensor::{Datatype, Tensor},
};
use tract_onnx::prelude::{DatumType, IntoTensor, Tensor as Plain, TractResult, tract_ndarray};

// Both sides hold elements in the machine's order; the protocol's is little endian.
const _: () = assert!(cfg!(target_endian = "little"), "big-endian machines need a byte swap here");

/// tract's type for a datatype; `None` for BF16, which it cannot take. BYTES are texts.
pub(super) fn engine_type(datatype: Datatype) -> Option<DatumType> {
    Some(match datatype {
        Datatype::Bool => DatumType::Bool,
        Datatype::Uint8 => DatumType::U8,
        Datatype::Uint16 => DatumType::U16,
        Datatype::Uint32 => DatumType::U32,
        Datatype::Uint64 => DatumType::U64,
        Datatype::Int8 => DatumType::I8,
        Datatype::Int16 => DatumType::I16,
        Datatype::Int32 => DatumType::I32,
        Datatype::Int64 => DatumType::I64,
        Datatype::Fp16 => DatumType::F16,
        Datatype::Fp32 => DatumType::F32,
        Datatype::Fp64 => DatumType::F64,
        Datatype::Bytes => DatumType::String,
        Datatype::Bf16 => return None,
    })
}

/// The datatype an output of `kind` is given out as.
pub(super) fn protocol_type(kind: DatumType) -> Option<Datatype> {
    Some(match kind.unquantized() {
        DatumType::Bool => Datatype::Bool,
        DatumType::U8 => Datatype::Uint8,
        DatumType::U16 => Datatype::Uint16,
        DatumType::U32 => Datatype::Uint32,
        DatumType::U64 => Datatype::Uint64,
        DatumType::I8 => Datatype::Int8,
        DatumType::I16 => Datatype::Int16,
        DatumType::I32 => Datatype::Int32,
        // tract computes shapes and sizes, which ONNX has as INT64, in a type of its own.
        DatumType::I64 | DatumType::TDim => Datatype::Int64,
        DatumType::F16 => Datatype::Fp16,
        DatumType::F32 => Datatype::Fp32,
        DatumType::F64 => Datatype::Fp64,
        DatumType::String => Datatype::Bytes,
        _ => return None,
    })
}

/// `data` must be `shape` elements of `kind`; `kind` is none but those of [`engine_type`], and BOOL
/// bytes must be 0 or 1 ([`request::accept`](crate::engine::request::accept)).
///
/// # Errors
/// BYTES that are no UTF-8 ([`bad_text`]).
pub(super) fn to_engine(kind: DatumType, shape: &[usize], data: &[u8]) -> TractResult<Plain> {
    if kind == DatumType::String {
        let texts = elements(data).map(|raw| Ok(std::str::from_utf8(raw)?.to_owned()));
        let texts: Vec<String> = texts.collect::<TractResult<_>>()?;
        return Ok(tract_ndarray::ArrayD::from_shape_vec(shape, texts)?.into_tensor());
    }
    let mut plain = Plain::zero_dt(kind, shape)?;
    plain.as_bytes_mut().copy_from_slice(data);
    Ok(plain)
}

/// Index of the first of BYTES elements that is no UTF-8: ONNX has texts, not bytes.
pub(super) fn bad_text(data: &[u8]) -> Option<usize> {
    elements(data).position(|raw| std::str::from_utf8(raw).is_err())
}

/// The elements of BYTES data, which its tensor has checked.
fn elements(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk::<4>()?;
        let (element, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        data = rest;
        Some(element)
    })
}

/// The raw bytes of an output, checked against its place in the interface.
pub(super) fn from_engine(spec: &TensorSpec, plain: &Plain) -> Result<(Vec<usize>, Bytes), String> {
    let shape = plain.shape();
    let fits = shape.len() == spec.shape.len()
        && shape
            .iter()
            .zip(&spec.shape)
            .all(|(have, want)| *want < 0 || u64::try_from(*want) == Ok(*have as u64));
    if protocol_type(plain.datum_type()) != Some(spec.datatype) || !fits {
        return Err(format!(
            "output `{}` came out as {:?} {shape:?}, the interface says {} {:?}",
            spec.name,
            plain.datum_type(),
            spec.datatype,
            spec.shape
        ));
    }
    let plain = if plain.datum_type() == DatumType::TDim {
        plain.cast_to::<i64>().map_err(|e| format!("output `{}`: {e:#}", spec.name))?
    } else {
        std::borrow::Cow::Borrowed(plain)
    };
    if plain.datum_type() == DatumType::String {
        return Ok((shape.to_vec(), texts(&plain).map_err(|e| format!("output `{}`: {e:#}", spec.name))?));
    }
    if !plain.is_plain_ram() {
        return Err(format!("output `{}` is not held as plain numbers", spec.name));
    }
    Ok((shape.to_vec(), Bytes::copy_from_slice(plain.as_bytes())))
}

fn texts(plain: &Plain) -> TractResult<Bytes> {
    let texts = plain.try_as_plain_ram()?;
    let texts = texts.as_slice::<String>()?;
    let mut raw = Vec::with_capacity(texts.iter().map(|text| text.len() + 4).sum());
    for text in texts {
        raw.extend_from_slice(&u32::try_from(text.len())?.to_le_bytes());
        raw.extend_from_slice(text.as_bytes());
    }
    Ok(raw.into())
}

/// Rows `[row, row + 1)` of a tensor whose first dimension is `rows`.
pub(super) fn row(tensor: &Tensor, row: usize, rows: usize) -> Bytes {
    if tensor.datatype() == Datatype::Bytes {
        let each = tensor.len() / rows;
        let end =
            |count: usize| -> usize { elements(tensor.data()).take(count).map(|raw| raw.len() + 4).sum() };
        return tensor.data().slice(end(row * each)..end((row + 1) * each));
    }
    let size = tensor.data().len() / rows;
    tensor.data().slice(row * size..(row + 1) * size)
}
