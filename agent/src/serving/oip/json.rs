//! Tensor data in JSON: flat or nested exactly as the shape, read in one pass without recursion.
//!
//! JSON has no NaN and no infinity, so neither is taken nor written: such values travel in binary.

use super::{Memory, OipError};
use edgefleet_shared::tensor::{Datatype, Tensor, element_count};
use std::{borrow::Cow, io::Write, str::FromStr};

/// Dimensions a tensor may have; the manifest allows as many.
pub const MAX_RANK: usize = 8;

/// Reads `text`, which is one valid JSON value, as the raw bytes of a tensor.
///
/// # Errors
/// [`OipError::Bad`] names the tensor and the element; [`OipError::Busy`] if there is no room for what it decodes to.
pub fn parse_data(
    name: &str,
    datatype: Datatype,
    shape: &[usize],
    text: &str,
    memory: &mut dyn Memory,
) -> Result<Vec<u8>, OipError> {
    let bad = |what: String| OipError::Bad(format!("tensor `{name}`: {what}"));
    if matches!(datatype, Datatype::Fp16 | Datatype::Bf16) {
        return Err(bad(format!("{datatype} has no form in JSON; send it as binary data")));
    }
    let wanted = element_count(shape)
        .ok_or_else(|| bad(format!("shape {shape:?} has more elements than a machine can address")))?;
    // Each element but the first costs at least two characters: nothing is allocated on a promise.
    if wanted > text.len() / 2 + 1 {
        let found = text.len();
        return Err(bad(format!(
            "shape {shape:?} needs {wanted} elements, the data has only {found} characters"
        )));
    }
    // Two characters may become eight bytes; a text gets its length in front.
    let decoded = match datatype.size() {
        Some(size) => wanted.saturating_mul(size),
        None => wanted.saturating_mul(4).saturating_add(text.len()),
    };
    memory.charge(decoded)?;
    let mut out = Vec::with_capacity(decoded);
    let mut open: Vec<usize> = Vec::new(); // elements seen in each open array
    let (mut count, mut deepest, mut ragged) = (0usize, 0usize, false);
    for token in (Scan { text: text.as_bytes(), at: 0 }) {
        match token {
            b"[" => {
                if let Some(seen) = open.last_mut() {
                    *seen += 1;
                }
                if open.len() >= shape.len().max(1) {
                    return Err(bad(format!("data is nested deeper than the shape {shape:?}")));
                }
                open.push(0);
                deepest = deepest.max(open.len());
            }
            b"]" => {
                let seen = open.pop().unwrap_or_default();
                ragged |= shape.get(open.len()).is_some_and(|dim| *dim != seen);
            }
            value => {
                if let Some(seen) = open.last_mut() {
                    *seen += 1;
                }
                if count == wanted {
                    return Err(bad(format!("data has more than the {wanted} elements of shape {shape:?}")));
                }
                // A value above the innermost level is fine only in flat data.
                ragged |= open.len() != shape.len();
                push(datatype, value, &mut out).map_err(|why| bad(format!("element {count}: {why}")))?;
                count += 1;
            }
        }
    }
    if deepest > 1 && ragged && wanted > 0 {
        return Err(bad(format!("the nesting of data does not follow the shape {shape:?}")));
    }
    if count != wanted {
        return Err(bad(format!("shape {shape:?} needs {wanted} elements, data has {count}")));
    }
    Ok(out)
}

/// Tokens of a JSON value: brackets and scalars, as slices of the text.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Scan<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r' | b',')) {
            self.at += 1;
        }
        let start = self.at;
        match self.text.get(start)? {
            b'[' | b']' => self.at += 1,
            b'"' => {
                self.at += 1;
                while let Some(byte) = self.text.get(self.at) {
                    self.at += if *byte == b'\\' { 2 } else { 1 };
                    if *byte == b'"' {
                        break;
                    }
                }
                self.at = self.at.min(self.text.len());
            }
            _ => {
                let ends = |byte: &u8| matches!(byte, b',' | b'[' | b']' | b' ' | b'\t' | b'\n' | b'\r');
                let rest = &self.text[start..];
                self.at += rest.iter().position(ends).unwrap_or(rest.len()).max(1);
            }
        }
        Some(&self.text[start..self.at])
    }
}

fn push(datatype: Datatype, token: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    fn shown(token: &[u8]) -> Cow<'_, str> {
        let cut = &token[..token.len().min(40)];
        String::from_utf8_lossy(cut)
    }
    fn text(token: &[u8]) -> &str {
        std::str::from_utf8(token).unwrap_or("")
    }
    fn integer<T: FromStr>(datatype: Datatype, token: &[u8]) -> Result<T, String> {
        text(token).parse().map_err(|_| {
            let digits = token.strip_prefix(b"-").unwrap_or(token);
            if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
                format!("{} does not fit {datatype}", shown(token))
            } else {
                format!("{} is no integer, as {datatype} needs", shown(token))
            }
        })
    }
    /// Rust reads `inf` and `NaN` too, but a JSON value cannot be one of them.
    fn float<T: FromStr>(datatype: Datatype, token: &[u8], finite: fn(&T) -> bool) -> Result<T, String> {
        if !matches!(token.first(), Some(b'-' | b'0'..=b'9')) {
            return Err(format!("{} is no number, as {datatype} needs", shown(token)));
        }
        let value: T = text(token).parse().map_err(|_| format!("{} is no number", shown(token)))?;
        if finite(&value) { Ok(value) } else { Err(format!("{} does not fit {datatype}", shown(token))) }
    }
    match datatype {
        Datatype::Bool => match token {
            b"true" => out.push(1),
            b"false" => out.push(0),
            _ => return Err(format!("{} is neither true nor false", shown(token))),
        },
        Datatype::Uint8 => out.extend(integer::<u8>(datatype, token)?.to_le_bytes()),
        Datatype::Uint16 => out.extend(integer::<u16>(datatype, token)?.to_le_bytes()),
        Datatype::Uint32 => out.extend(integer::<u32>(datatype, token)?.to_le_bytes()),
        Datatype::Uint64 => out.extend(integer::<u64>(datatype, token)?.to_le_bytes()),
        Datatype::Int8 => out.extend(integer::<i8>(datatype, token)?.to_le_bytes()),
        Datatype::Int16 => out.extend(integer::<i16>(datatype, token)?.to_le_bytes()),
        Datatype::Int32 => out.extend(integer::<i32>(datatype, token)?.to_le_bytes()),
        Datatype::Int64 => out.extend(integer::<i64>(datatype, token)?.to_le_bytes()),
        Datatype::Fp32 => out.extend(float::<f32>(datatype, token, |v| v.is_finite())?.to_le_bytes()),
        Datatype::Fp64 => out.extend(float::<f64>(datatype, token, |v| v.is_finite())?.to_le_bytes()),
        Datatype::Bytes => {
            if token.first() != Some(&b'"') {
                return Err(format!("{} is no string, as BYTES needs", shown(token)));
            }
            let value: Cow<'_, str> =
                serde_json::from_slice::<String>(token).map_err(|e| e.to_string())?.into();
            let len = u32::try_from(value.len()).map_err(|_| "is longer than 4 GiB".to_owned())?;
            out.extend(len.to_le_bytes());
            out.extend(value.as_bytes());
        }
        Datatype::Fp16 | Datatype::Bf16 => return Err(format!("{datatype} has no form in JSON")),
    }
    Ok(())
}

/// Most bytes of JSON that one byte of a tensor becomes: `false,` for one of BOOL, an escape for one of BYTES.
pub const MOST_PER_BYTE: usize = 6;

/// Writes the elements of a tensor as a flat JSON array.
///
/// # Errors
/// [`OipError::Bad`] if an element has no form in JSON: 16-bit floats, NaN, infinities, BYTES that
/// are not UTF-8. The client asked for JSON and can ask for binary data instead.
pub fn write_data(tensor: &Tensor, out: &mut Vec<u8>) -> Result<(), OipError> {
    let name = tensor.name();
    let datatype = tensor.datatype();
    let no = |element: usize, what: &str| {
        OipError::Bad(format!(
            "output `{name}` element {element} {what}, which JSON cannot hold; ask for binary data"
        ))
    };
    let raw = &tensor.data()[..];
    fn each<const N: usize>(
        raw: &[u8],
        out: &mut Vec<u8>,
        mut write: impl FnMut(&mut Vec<u8>, [u8; N]) -> Result<(), usize>,
    ) -> Result<(), usize> {
        for (index, chunk) in raw.as_chunks::<N>().0.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write(out, *chunk).map_err(|_| index)?;
        }
        Ok(())
    }
    macro_rules! integers {
        ($kind:ty) => {
            each(raw, out, |out, bytes| {
                let _ = write!(out, "{}", <$kind>::from_le_bytes(bytes)); // a Vec takes everything
                Ok(())
            })
        };
    }
    macro_rules! floats {
        ($kind:ty) => {
            each(raw, out, |out, bytes| {
                let value = <$kind>::from_le_bytes(bytes);
                // Debug writes the shortest text that reads back the same, with an exponent if long.
                let _ = write!(out, "{value:?}");
                if value.is_finite() { Ok(()) } else { Err(0) }
            })
        };
    }
    out.push(b'[');
    let written = match datatype {
        Datatype::Bool => each::<1>(raw, out, |out, [byte]| {
            out.extend_from_slice(if byte == 0 { b"false" } else { b"true" });
            Ok(())
        }),
        Datatype::Uint8 => integers!(u8),
        Datatype::Uint16 => integers!(u16),
        Datatype::Uint32 => integers!(u32),
        Datatype::Uint64 => integers!(u64),
        Datatype::Int8 => integers!(i8),
        Datatype::Int16 => integers!(i16),
        Datatype::Int32 => integers!(i32),
        Datatype::Int64 => integers!(i64),
        Datatype::Fp32 => floats!(f32),
        Datatype::Fp64 => floats!(f64),
        Datatype::Fp16 | Datatype::Bf16 => return Err(no(0, &format!("is {datatype}"))),
        Datatype::Bytes => {
            let mut rest = raw;
            let mut index = 0;
            while let Some((len, tail)) = rest.split_first_chunk::<4>() {
                let (element, tail) =
                    tail.split_at_checked(u32::from_le_bytes(*len) as usize).unwrap_or((tail, &[]));
                let text = std::str::from_utf8(element).map_err(|_| no(index, "is not UTF-8"))?;
                if index > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, text).map_err(|_| no(index, "cannot be written"))?;
                rest = tail;
                index += 1;
            }
            Ok(())
        }
    };
    written.map_err(|index| no(index, "is NaN or infinite"))?;
    out.push(b']');
    Ok(())
}
