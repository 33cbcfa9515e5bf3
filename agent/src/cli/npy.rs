//! Reads an array that NumPy saved. Pure.
//!
//! Source: NumPy's "NPY format" (numpy.lib.format), versions 1 to 3.

use crate::monitor::profile::number;
use bytes::Bytes;
use edgefleet_shared::tensor::{Datatype, Tensor, element_count};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longest description; NumPy's own are some 120 bytes.
const MAX_HEADER: usize = 1 << 16;

/// The tensor `name` out of the bytes of a `.npy` file.
///
/// # Errors
/// One sentence on what cannot be read: not NumPy's, another byte order, columns first, no number.
pub(super) fn tensor(name: &str, file: &Bytes) -> Result<Tensor, String> {
    let Header { descr, shape, data } = header(file)?;
    let datatype = datatype(descr).ok_or_else(|| format!("its type `{descr}` is not supported"))?;
    Tensor::new(name, datatype, shape, data).map_err(|e| e.to_string())
}

/// What an array says of itself, and its bytes.
struct Header<'a> {
    descr: &'a str,
    shape: Vec<usize>,
    data: Bytes,
}

fn header(file: &Bytes) -> Result<Header<'_>, String> {
    let rest = file.strip_prefix(MAGIC).ok_or("it does not begin like a file of NumPy")?;
    let (major, rest) = (rest.first().copied().unwrap_or(0), rest.get(2..).unwrap_or_default());
    let (length, width) = match (major, rest) {
        (1, [a, b, ..]) => (u32::from(u16::from_le_bytes([*a, *b])), 2),
        (2 | 3, [a, b, c, d, ..]) => (u32::from_le_bytes([*a, *b, *c, *d]), 4),
        _ => return Err(format!("its format version {major} is not known, or it is cut off")),
    };
    let length = length as usize;
    let start = MAGIC.len() + 2 + width;
    let header = file.get(start..start.saturating_add(length)).filter(|header| header.len() <= MAX_HEADER);
    let header = header.ok_or("its description is cut off or too long")?;
    let header = std::str::from_utf8(header).map_err(|_| "its description is no text")?;
    let after = |key: &str| {
        let (_, rest) = header.split_once(&format!("'{key}':"))?;
        Some(rest.trim_start())
    };
    let missing = |key: &str| format!("its description has no `{key}`");
    let descr = after("descr").ok_or_else(|| missing("descr"))?;
    let descr = descr.strip_prefix('\'').and_then(|rest| rest.split('\'').next()).unwrap_or_default();
    if !after("fortran_order").ok_or_else(|| missing("fortran_order"))?.starts_with("False") {
        return Err("it lies columns first; save it with `numpy.ascontiguousarray`".into());
    }
    let shape = after("shape").ok_or_else(|| missing("shape"))?;
    let shape =
        shape.strip_prefix('(').and_then(|rest| rest.split(')').next()).ok_or_else(|| missing("shape"))?;
    let shape: Vec<usize> = shape
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty())
        .map(|dim| dim.parse().map_err(|_| format!("its shape ({shape}) is no list of numbers")))
        .collect::<Result<_, _>>()?;
    Ok(Header { descr, shape, data: file.slice(start + length..) })
}

/// Numbers, or texts of a fixed length.
pub(super) enum Array {
    Numbers(Tensor),
    /// `width`: of one, in bytes, or where they are `wide` in code points of four.
    Texts {
        shape: Vec<usize>,
        data: Bytes,
        width: usize,
        wide: bool,
    },
}

pub(super) enum Element {
    Number(f64),
    Text(Vec<u8>),
}

/// An array of numbers or of texts (`S`, `U`).
///
/// # Errors
/// As [`tensor`].
pub(super) fn array(file: &Bytes) -> Result<Array, String> {
    let Header { descr, shape, data } = header(file)?;
    let wide = descr.starts_with("<U");
    let length = descr.strip_prefix("<U").or_else(|| descr.strip_prefix("|S"));
    let Some(length) = length.and_then(|length| length.parse::<usize>().ok()) else {
        return tensor("array", file).map(Array::Numbers);
    };
    let width = if wide { length.saturating_mul(4) } else { length };
    let count = element_count(&shape).and_then(|count| count.checked_mul(width));
    match count {
        Some(bytes) if bytes == data.len() && width > 0 => Ok(Array::Texts { shape, data, width, wide }),
        _ => Err(format!("its {} bytes are not the texts its description says", data.len())),
    }
}

impl Array {
    pub(super) fn shape(&self) -> &[usize] {
        match self {
            Self::Numbers(tensor) => tensor.shape(),
            Self::Texts { shape, .. } => shape,
        }
    }
    pub(super) fn len(&self) -> usize {
        self.shape().iter().product()
    }
    pub(super) fn get(&self, index: usize) -> Element {
        match self {
            Self::Numbers(tensor) => Element::Number(number(tensor, index)),
            Self::Texts { data, width, wide, .. } => {
                let raw = data.get(index * width..(index + 1) * width).unwrap_or_default();
                Element::Text(if *wide {
                    text_of(raw)
                } else {
                    raw.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
                })
            }
        }
    }
}

/// UTF-32 to UTF-8, up to the zeros at the end.
fn text_of(raw: &[u8]) -> Vec<u8> {
    let points = raw.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four));
    let text: String =
        points.take_while(|point| *point != 0).map(|p| char::from_u32(p).unwrap_or('\u{fffd}')).collect();
    text.into_bytes()
}

fn datatype(descr: &str) -> Option<Datatype> {
    Some(match descr {
        "|b1" => Datatype::Bool,
        "|u1" => Datatype::Uint8,
        "<u2" => Datatype::Uint16,
        "<u4" => Datatype::Uint32,
        "<u8" => Datatype::Uint64,
        "|i1" => Datatype::Int8,
        "<i2" => Datatype::Int16,
        "<i4" => Datatype::Int32,
        "<i8" => Datatype::Int64,
        "<f2" => Datatype::Fp16,
        "<f4" => Datatype::Fp32,
        "<f8" => Datatype::Fp64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(version: u8, header: &str, data: &[u8]) -> Bytes {
        let length = u32::try_from(header.len()).unwrap().to_le_bytes();
        let length = if version == 1 { &length[..2] } else { &length[..] };
        Bytes::from([MAGIC, &[version, 0], length, header.as_bytes(), data].concat())
    }

    #[test]
    fn arrays_of_numpy_become_tensors_and_others_a_reason() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }   \n";
        let data: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        for version in [1, 2, 3] {
            let tensor = tensor("x", &file(version, header, &data)).unwrap();
            assert_eq!((tensor.shape(), tensor.datatype()), (&[1usize, 2][..], Datatype::Fp32));
            assert_eq!(tensor.data()[..], data[..]);
        }
        let scalar = "{'descr': '|u1', 'fortran_order': False, 'shape': (), }";
        assert_eq!(tensor("x", &file(1, scalar, &[7])).unwrap().shape().len(), 0);
        for (header, data, word) in [
            (header.replace("<f4", ">f4"), &data[..], ">f4"),
            (header.replace("False", "True"), &data[..], "columns"),
            (header.replace("(1, 2)", "(1, x)"), &data[..], "numbers"),
            (header.to_owned(), &data[..7], "bytes"),
            ("{}".to_owned(), &data[..], "descr"),
        ] {
            let why = tensor("x", &file(1, &header, data)).unwrap_err();
            assert!(why.contains(word), "{why}");
        }
        assert!(tensor("x", &Bytes::from_static(b"PK")).is_err());
    }

    #[test]
    fn arrays_of_texts_are_read_in_both_of_numpys_forms() {
        for (descr, data) in [
            ("|S3", b"red\0\0\0ab\0".to_vec()),
            ("<U3", { "red\0\0\0ab\0".chars().flat_map(|c| (c as u32).to_le_bytes()).collect() }),
        ] {
            let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (3,), }}");
            let array = array(&file(1, &header, &data)).unwrap();
            let texts: Vec<_> = (0..3)
                .map(|n| match array.get(n) {
                    Element::Text(text) => String::from_utf8(text).unwrap(),
                    Element::Number(_) => panic!("a text"),
                })
                .collect();
            assert_eq!(texts, ["red", "", "ab"]);
        }
        let header = "{'descr': '<U9', 'fortran_order': False, 'shape': (3,), }";
        assert!(array(&file(1, header, &[0; 8])).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_tensor_or_a_reason(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from([MAGIC, &[1, 0], &data].concat());
            let _ = tensor("x", &bytes);
            let _ = tensor("x", &Bytes::from(data));
        }
    }
}
