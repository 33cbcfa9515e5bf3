//! Datatypes of the protocol and of ONNX Runtime, and how texts are laid out in both.

use bytes::Bytes;
use edgefleet_shared::tensor::Datatype;
use ort_sys::ONNXTensorElementDataType as Element;

/// Every datatype has its element type.
const PAIRS: [(Datatype, Element); 14] = [
    (Datatype::Bool, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL),
    (Datatype::Uint8, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8),
    (Datatype::Uint16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16),
    (Datatype::Uint32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32),
    (Datatype::Uint64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64),
    (Datatype::Int8, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8),
    (Datatype::Int16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16),
    (Datatype::Int32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32),
    (Datatype::Int64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
    (Datatype::Fp16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
    (Datatype::Bf16, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16),
    (Datatype::Fp32, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
    (Datatype::Fp64, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE),
    (Datatype::Bytes, Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING),
];

pub(super) fn element_type(datatype: Datatype) -> Element {
    let pair = PAIRS.iter().find(|(known, _)| *known == datatype);
    pair.map_or(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, |(_, element)| *element)
}

/// `None` for what the protocol does not have: complex numbers, 8-bit and 4-bit floats.
pub(super) fn datatype(element: i32) -> Option<Datatype> {
    PAIRS.iter().find(|(_, known)| *known as i32 == element).map(|(datatype, _)| *datatype)
}

/// The bytes where any element type may lie.
pub(super) fn aligned(raw: &[u8]) -> Vec<u64> {
    raw.chunks(8)
        .map(|part| {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            u64::from_ne_bytes(word)
        })
        .collect()
}

/// The elements of a BYTES tensor: each a u32 length and that many bytes. Stops where they are cut off.
pub(super) fn texts(mut raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = raw.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        raw = rest;
        Some(text)
    })
}

/// Texts one after another, each beginning at its offset, as the protocol writes them.
pub(super) fn join_texts(raw: &[u8], starts: &[usize]) -> Result<Bytes, String> {
    let mut joined = Vec::with_capacity(raw.len() + 4 * starts.len());
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(raw.len());
        let text = raw.get(*start..end).ok_or("an output's texts overlap")?;
        let len = u32::try_from(text.len()).map_err(|_| "a text of an output has over 4 GiB")?;
        joined.extend_from_slice(&len.to_le_bytes());
        joined.extend_from_slice(text);
    }
    Ok(Bytes::from(joined))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_survives_the_way_there_and_back() {
        for (known, element) in PAIRS {
            assert_eq!(datatype(element_type(known) as i32), Some(known));
            assert_eq!(element_type(known), element);
        }
        assert_eq!(datatype(Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX64 as i32), None);
        assert_eq!(datatype(9_999), None);
    }

    #[test]
    fn texts_of_any_bytes_survive_and_cut_ones_end() {
        let raw = join_texts(b"ab\0c", &[0, 2, 2]).unwrap();
        let found: Vec<_> = texts(&raw).collect();
        assert_eq!(found, [&b"ab"[..], b"", b"\0c"]);
        assert_eq!(texts(&raw[..5]).count(), 0);
        assert!(join_texts(b"ab", &[2, 1]).is_err() && join_texts(b"ab", &[9]).is_err());
    }

    #[test]
    fn an_aligned_copy_has_the_same_bytes() {
        let raw: Vec<u8> = (0..13).collect();
        let words = aligned(&raw);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(bytes[..13], raw[..]);
    }
}
