//! Tensors as operations see them: few element types, images apart, bounded in size.

use super::{error::Fault, image::Image, image::Placement};
use bytes::Bytes;
use edgefleet_shared::tensor::{Datatype, Tensor};
use std::sync::Arc;

/// Most bytes one value may take: forty megapixels in colour.
pub(super) const MAX_VALUE_BYTES: usize = 128 << 20;

/// One tensor between two steps.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Decoded images, which may differ in size.
    Images(Vec<Image>),
    Array(Array),
}

/// Elements of a type, row-major.
#[derive(Clone, Debug)]
pub(super) struct Array {
    /// What clients and models call the elements; [`Data`] holds them in the type it is computed in.
    pub datatype: Datatype,
    pub shape: Vec<usize>,
    pub data: Data,
    /// Where the rows come from, if they are images.
    pub placements: Option<Arc<[Placement]>>,
}

#[derive(Clone, Debug)]
pub(super) enum Data {
    U8(Vec<u8>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Text(Vec<Bytes>),
}

/// How elements of a datatype are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    U8,
    I64,
    F32,
    F64,
    Text,
}

pub(super) fn held(datatype: Datatype) -> Held {
    match datatype {
        Datatype::Bool | Datatype::Uint8 => Held::U8,
        Datatype::Uint16
        | Datatype::Uint32
        | Datatype::Uint64
        | Datatype::Int8
        | Datatype::Int16
        | Datatype::Int32
        | Datatype::Int64 => Held::I64,
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 => Held::F32,
        Datatype::Fp64 => Held::F64,
        Datatype::Bytes => Held::Text,
    }
}

/// Number of elements of `shape`, if that many of `size` bytes may be allocated. A dimension of 0 excuses no
/// huge other one: work is done and memory taken along single dimensions, too.
pub(super) fn room(shape: &[usize], size: usize) -> Result<usize, Fault> {
    let count = shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim));
    let bytes = shape.iter().try_fold(size, |n, dim| n.checked_mul((*dim).max(1)));
    match (count, bytes) {
        (Some(count), Some(bytes)) if bytes <= MAX_VALUE_BYTES => Ok(count),
        _ => Err(Fault::TooLarge {
            what: "bytes of the result",
            found: bytes.map_or(u64::MAX, |b| b as u64),
            limit: MAX_VALUE_BYTES as u64,
        }),
    }
}

impl Array {
    pub(super) fn floats(shape: Vec<usize>, data: Vec<f32>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { datatype: Datatype::Fp32, shape, data: Data::F32(data), placements: None }
    }
    pub(super) fn longs(shape: Vec<usize>, data: Vec<i64>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { datatype: Datatype::Int64, shape, data: Data::I64(data), placements: None }
    }
    pub(super) fn texts(shape: Vec<usize>, data: Vec<Bytes>) -> Self {
        debug_assert_eq!(shape.iter().product::<usize>(), data.len());
        Self { datatype: Datatype::Bytes, shape, data: Data::Text(data), placements: None }
    }
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements before, along and after an axis: index `(outer * along + i) * inner + inside`.
    pub(super) fn around(&self, axis: i64) -> Result<(usize, usize, usize), Fault> {
        let axis = axis_of(axis, self.shape.len()).map_err(Fault::Shape)?;
        let product = |dims: &[usize]| dims.iter().product();
        Ok((product(&self.shape[..axis]), self.shape[axis], product(&self.shape[axis + 1..])))
    }

    /// As FP32, whatever number it was; without a copy if it is already.
    pub(super) fn into_f32(self) -> Result<(Vec<usize>, Vec<f32>), Fault> {
        let data = match self.data {
            Data::F32(data) => data,
            Data::U8(data) => {
                room(&self.shape, 4)?;
                data.into_iter().map(f32::from).collect()
            }
            Data::I64(data) => {
                room(&self.shape, 4)?;
                data.into_iter().map(|v| v as f32).collect()
            }
            Data::F64(data) => data.into_iter().map(|v| v as f32).collect(),
            Data::Text(_) => return Err(Fault::value("holds text, not numbers")),
        };
        Ok((self.shape, data))
    }

    /// As indexes; only of integers.
    pub(super) fn into_i64(self) -> Result<(Vec<usize>, Vec<i64>), Fault> {
        let data = match self.data {
            Data::I64(data) => data,
            Data::U8(data) => {
                room(&self.shape, 8)?;
                data.into_iter().map(i64::from).collect()
            }
            Data::F32(_) | Data::F64(_) | Data::Text(_) => {
                return Err(Fault::value(format!("holds {}, not integers", self.datatype)));
            }
        };
        Ok((self.shape, data))
    }
}

/// Counts a negative axis from the end.
pub(super) fn axis_of(axis: i64, rank: usize) -> Result<usize, String> {
    let from_start = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(from_start)
        .ok()
        .filter(|axis| *axis < rank)
        .ok_or_else(|| format!("axis {axis} of a tensor with {rank} dimensions"))
}

/// Reads a tensor's bytes.
pub(super) fn import(tensor: &Tensor) -> Result<Array, Fault> {
    let (datatype, raw) = (tensor.datatype(), tensor.data());
    let size = match held(datatype) {
        Held::U8 => 1,
        Held::F32 => 4,
        Held::I64 | Held::F64 => 8,
        Held::Text => size_of::<Bytes>(),
    };
    let count = room(tensor.shape(), size)?;
    fn each<const N: usize, T>(raw: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
        raw.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
    }
    let data = match datatype {
        Datatype::Bool | Datatype::Uint8 => Data::U8(raw.to_vec()),
        Datatype::Int8 => Data::I64(raw.iter().map(|b| i64::from(b.cast_signed())).collect()),
        Datatype::Int16 => Data::I64(each(raw, |b| i16::from_le_bytes(b).into())),
        Datatype::Int32 => Data::I64(each(raw, |b| i32::from_le_bytes(b).into())),
        Datatype::Int64 => Data::I64(each(raw, i64::from_le_bytes)),
        Datatype::Uint16 => Data::I64(each(raw, |b| u16::from_le_bytes(b).into())),
        Datatype::Uint32 => Data::I64(each(raw, |b| u32::from_le_bytes(b).into())),
        Datatype::Uint64 => {
            let signed = each(raw, u64::from_le_bytes).into_iter().map(i64::try_from);
            let signed = signed.collect::<Result<_, _>>();
            Data::I64(signed.map_err(|_| Fault::value(format!("holds an integer above {}", i64::MAX)))?)
        }
        Datatype::Fp16 => Data::F32(each(raw, |b| half::f16::from_le_bytes(b).to_f32())),
        Datatype::Bf16 => Data::F32(each(raw, |b| half::bf16::from_le_bytes(b).to_f32())),
        Datatype::Fp32 => Data::F32(each(raw, f32::from_le_bytes)),
        Datatype::Fp64 => Data::F64(each(raw, f64::from_le_bytes)),
        Datatype::Bytes => {
            let mut at = 0;
            let mut texts = Vec::with_capacity(count);
            while let Some((len, rest)) = raw.get(at..).and_then(|rest| rest.split_first_chunk::<4>()) {
                let len = (u32::from_le_bytes(*len) as usize).min(rest.len());
                texts.push(raw.slice(at + 4..at + 4 + len));
                at += 4 + len;
            }
            Data::Text(texts)
        }
    };
    Ok(Array { datatype, shape: tensor.shape().to_vec(), data, placements: None })
}

/// The tensor clients and models get.
pub(super) fn export(name: &str, array: &Array) -> Result<Tensor, Fault> {
    fn flat<const N: usize, T: Copy>(data: &[T], write: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        data.iter().flat_map(|v| write(*v)).collect()
    }
    let wide = |e: std::num::TryFromIntError| {
        Fault::value(format!("`{name}` holds an integer that is no {}: {e}", array.datatype))
    };
    /// Integers that must fit.
    fn narrow<const N: usize, T: TryFrom<i64, Error = std::num::TryFromIntError>>(
        data: &[i64],
        write: impl Fn(T) -> [u8; N],
    ) -> Result<Vec<u8>, std::num::TryFromIntError> {
        let mut raw = Vec::with_capacity(data.len() * N);
        for value in data {
            raw.extend(write(T::try_from(*value)?));
        }
        Ok(raw)
    }
    let raw = match (&array.data, array.datatype) {
        (Data::U8(data), _) => data.clone(),
        (Data::F64(data), _) => flat(data, f64::to_le_bytes),
        (Data::F32(data), Datatype::Fp16) => flat(data, |v| half::f16::from_f32(v).to_le_bytes()),
        (Data::F32(data), Datatype::Bf16) => flat(data, |v| half::bf16::from_f32(v).to_le_bytes()),
        (Data::F32(data), _) => flat(data, f32::to_le_bytes),
        (Data::I64(data), Datatype::Int8) => narrow(data, i8::to_le_bytes).map_err(wide)?,
        (Data::I64(data), Datatype::Int16) => narrow(data, i16::to_le_bytes).map_err(wide)?,
        (Data::I64(data), Datatype::Int32) => narrow(data, i32::to_le_bytes).map_err(wide)?,
        (Data::I64(data), Datatype::Uint16) => narrow(data, u16::to_le_bytes).map_err(wide)?,
        (Data::I64(data), Datatype::Uint32) => narrow(data, u32::to_le_bytes).map_err(wide)?,
        (Data::I64(data), Datatype::Uint64) => narrow(data, u64::to_le_bytes).map_err(wide)?,
        (Data::I64(data), _) => flat(data, i64::to_le_bytes),
        (Data::Text(texts), _) => {
            let mut raw = Vec::with_capacity(texts.iter().map(|text| text.len() + 4).sum());
            for text in texts {
                let len = u32::try_from(text.len()).map_err(wide)?;
                raw.extend_from_slice(&len.to_le_bytes());
                raw.extend_from_slice(text);
            }
            raw
        }
    };
    Tensor::new(name, array.datatype, array.shape.clone(), raw.into())
        .map_err(|e| Fault::Shape(e.to_string()))
}
