//! Tensors as bytes: the datatypes and binary layout of the Open Inference Protocol.
//!
//! Source: Open Inference Protocol v2, "Tensor Data Types" and the binary tensor data extension:
//! little endian, row-major, no padding; BOOL is one byte; BYTES elements are a u32 length and
//! that many bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Element type by its protocol name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl Datatype {
    /// Bytes of one element; `None` for BYTES, whose elements carry their own length.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }
}
impl std::fmt::Display for Datatype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why bytes are not the tensor they claim to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    #[error("tensor `{name}` of shape {shape:?} and {datatype} needs {wanted} bytes, but {found} came")]
    WrongLength { name: String, datatype: Datatype, shape: Vec<usize>, wanted: usize, found: usize },
    #[error("tensor `{name}`: shape {shape:?} has more elements than a machine can address")]
    ShapeOverflow { name: String, shape: Vec<usize> },
    #[error("tensor `{name}`: element {element} is cut off after {found} bytes")]
    TruncatedBytes { name: String, element: usize, found: usize },
}

/// A named tensor: raw little-endian bytes beside their type and shape.
///
/// Built only through [`Tensor::new`], so length, type and shape always agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Bytes,
}

/// Product of the dimensions, `None` on overflow. An empty shape is a scalar: 1.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))
}

impl Tensor {
    /// # Errors
    /// [`TensorError`] if the bytes are not exactly what type and shape need.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: Vec<usize>,
        data: Bytes,
    ) -> Result<Self, TensorError> {
        let name = name.into();
        let Some(count) = element_count(&shape) else {
            return Err(TensorError::ShapeOverflow { name, shape });
        };
        match datatype.size() {
            Some(size) => match count.checked_mul(size) {
                None => return Err(TensorError::ShapeOverflow { name, shape }),
                Some(wanted) if wanted != data.len() => {
                    return Err(TensorError::WrongLength {
                        name,
                        datatype,
                        shape,
                        wanted,
                        found: data.len(),
                    });
                }
                Some(_) => {}
            },
            None => {
                let mut rest = &data[..];
                for element in 0..count {
                    let cut = |found| TensorError::TruncatedBytes { name: name.clone(), element, found };
                    let (len, tail) = rest.split_first_chunk::<4>().ok_or_else(|| cut(rest.len()))?;
                    let len = u32::from_le_bytes(*len) as usize;
                    rest = tail.get(len..).ok_or_else(|| cut(tail.len()))?;
                }
                if !rest.is_empty() {
                    let wanted = data.len() - rest.len();
                    return Err(TensorError::WrongLength {
                        name,
                        datatype,
                        shape,
                        wanted,
                        found: data.len(),
                    });
                }
            }
        }
        Ok(Self { name, datatype, shape, data })
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    pub fn data(&self) -> &Bytes {
        &self.data
    }
    /// Number of elements; cannot overflow, [`Tensor::new`] checked it.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_type_and_shape_must_agree() {
        let new = |datatype, shape: &[usize], len| {
            Tensor::new("x", datatype, shape.to_vec(), Bytes::from(vec![0; len])).is_ok()
        };
        assert!(new(Datatype::Fp32, &[2, 3], 24));
        assert!(!new(Datatype::Fp32, &[2, 3], 23));
        assert!(new(Datatype::Fp32, &[0, 3], 0));
        assert!(new(Datatype::Int64, &[], 8));
        assert!(!new(Datatype::Fp64, &[usize::MAX, 2], 8));
        assert!(!new(Datatype::Fp64, &[usize::MAX / 4], 8));
    }

    #[test]
    fn bytes_elements_carry_their_length() {
        let new = |count: usize, raw: &[u8]| {
            Tensor::new("x", Datatype::Bytes, vec![count], Bytes::copy_from_slice(raw))
        };
        assert!(new(2, b"\x01\0\0\0a\x02\0\0\0bc").is_ok());
        assert!(matches!(new(1, b"\x05\0\0\0a"), Err(TensorError::TruncatedBytes { element: 0, .. })));
        assert!(matches!(new(1, b"\xff\xff\xff\xffa"), Err(TensorError::TruncatedBytes { .. })));
        assert!(matches!(new(1, b"\x01\0\0\0abc"), Err(TensorError::WrongLength { wanted: 5, .. })));
    }
}
