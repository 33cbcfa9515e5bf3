//! A capture for eyes: numbers as JSON, compressed pictures as they are. Pure.

use super::record::CaptureRecord;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::{
    capture::Capture,
    tensor::{Datatype, Tensor},
};
use serde_json::{Value, json};

/// Numbers of one tensor that are shown; pictures of about 400 x 400 in colour.
const MAX_NUMBERS: usize = 500_000;
/// Texts of one tensor, and characters of each.
const MAX_TEXTS: usize = 64;
const MAX_CHARACTERS: usize = 2_000;

/// What the labelling page needs of one capture.
pub fn view(record: &CaptureRecord, capture: &Capture, classes: &[String]) -> Value {
    json!({
        "capture": record,
        "classes": classes,
        "inputs": capture.inputs.iter().map(shown).collect::<Vec<_>>(),
        "outputs": capture.outputs.iter().map(shown).collect::<Vec<_>>(),
    })
}

fn shown(tensor: &Tensor) -> Value {
    let head = json!({
        "name": tensor.name(), "datatype": tensor.datatype().as_str(), "shape": tensor.shape(),
    });
    let mut shown = head;
    match tensor.datatype() {
        Datatype::Bytes => {
            let texts: Vec<_> = texts(tensor).take(MAX_TEXTS).collect();
            match texts.as_slice() {
                [only] if picture_kind(only).is_some() => {
                    shown["mime"] = json!(picture_kind(only).map(|(mime, _)| mime));
                    shown["base64"] = json!(BASE64.encode(only));
                }
                several => {
                    let text = |raw: &&[u8]| {
                        String::from_utf8_lossy(raw).chars().take(MAX_CHARACTERS).collect::<String>()
                    };
                    shown["texts"] = json!(several.iter().map(text).collect::<Vec<_>>());
                }
            }
        }
        _ => {
            shown["truncated"] = json!(tensor.len() > MAX_NUMBERS);
            shown["values"] = json!(numbers(tensor, MAX_NUMBERS));
        }
    }
    shown
}

/// The elements of a BYTES tensor.
pub fn texts(tensor: &Tensor) -> impl Iterator<Item = &[u8]> {
    let mut rest = &tensor.data()[..];
    std::iter::from_fn(move || {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let (text, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        rest = tail;
        Some(text)
    })
}

/// MIME type and ending of a compressed picture, by its first bytes.
pub fn picture_kind(file: &[u8]) -> Option<(&'static str, &'static str)> {
    match file {
        [0xff, 0xd8, 0xff, ..] => Some(("image/jpeg", "jpg")),
        [0x89, b'P', b'N', b'G', ..] => Some(("image/png", "png")),
        _ => None,
    }
}

fn numbers(tensor: &Tensor, limit: usize) -> Vec<f64> {
    fn each<const N: usize>(raw: &[u8], limit: usize, read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        raw.as_chunks::<N>().0.iter().take(limit).map(|chunk| read(*chunk)).collect()
    }
    let raw = tensor.data();
    match tensor.datatype() {
        Datatype::Bool | Datatype::Uint8 => each(raw, limit, |b| f64::from(u8::from_le_bytes(b))),
        Datatype::Uint16 => each(raw, limit, |b| f64::from(u16::from_le_bytes(b))),
        Datatype::Uint32 => each(raw, limit, |b| f64::from(u32::from_le_bytes(b))),
        Datatype::Uint64 => each(raw, limit, |b| u64::from_le_bytes(b) as f64),
        Datatype::Int8 => each(raw, limit, |b| f64::from(i8::from_le_bytes(b))),
        Datatype::Int16 => each(raw, limit, |b| f64::from(i16::from_le_bytes(b))),
        Datatype::Int32 => each(raw, limit, |b| f64::from(i32::from_le_bytes(b))),
        Datatype::Int64 => each(raw, limit, |b| i64::from_le_bytes(b) as f64),
        Datatype::Fp16 => each(raw, limit, |b| half::f16::from_le_bytes(b).to_f64()),
        Datatype::Bf16 => each(raw, limit, |b| half::bf16::from_le_bytes(b).to_f64()),
        Datatype::Fp32 => each(raw, limit, |b| f64::from(f32::from_le_bytes(b))),
        Datatype::Fp64 => each(raw, limit, f64::from_le_bytes),
        Datatype::Bytes => vec![],
    }
}
