//! Golden samples: real inputs with the outputs their author saw.
//!
//! Stored form: u32 little-endian length of a JSON header, the header
//! `{"inputs":[{name,datatype,shape,bytes}],"outputs":[...]}`, then the tensors' raw bytes in that
//! order (the layout of the Open Inference Protocol's binary extension in one file).

use crate::tensor::{Datatype, Tensor, TensorError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Largest header in bytes; it only names tensors.
const MAX_HEADER_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug, PartialEq)]
pub struct GoldenSample {
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
}

/// Why bytes are not a golden sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoldenError {
    #[error("golden sample ends inside its {part}")]
    Truncated { part: &'static str },
    #[error("golden sample header: {reason}")]
    Header { reason: String },
    #[error("golden sample has {extra} bytes too many")]
    Trailing { extra: usize },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

#[derive(Serialize, Deserialize)]
struct Header {
    inputs: Vec<Entry>,
    outputs: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    bytes: usize,
}

impl GoldenSample {
    pub fn to_bytes(&self) -> Vec<u8> {
        let entry = |t: &Tensor| Entry {
            name: t.name().to_owned(),
            datatype: t.datatype(),
            shape: t.shape().to_vec(),
            bytes: t.data().len(),
        };
        let header = Header {
            inputs: self.inputs.iter().map(entry).collect(),
            outputs: self.outputs.iter().map(entry).collect(),
        };
        let json = serde_json::to_vec(&header).unwrap_or_default(); // plain data: cannot fail
        let mut out = (json.len() as u32).to_le_bytes().to_vec();
        out.extend_from_slice(&json);
        for tensor in self.inputs.iter().chain(&self.outputs) {
            out.extend_from_slice(tensor.data());
        }
        out
    }

    /// # Errors
    /// [`GoldenError`] names the part that is wrong.
    pub fn parse(bytes: &Bytes) -> Result<Self, GoldenError> {
        let (len, rest) =
            bytes.split_first_chunk::<4>().ok_or(GoldenError::Truncated { part: "header length" })?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_HEADER_BYTES {
            return Err(GoldenError::Header { reason: format!("{len} bytes, at most {MAX_HEADER_BYTES}") });
        }
        let json = rest.get(..len).ok_or(GoldenError::Truncated { part: "header" })?;
        let header: Header =
            serde_json::from_slice(json).map_err(|e| GoldenError::Header { reason: e.to_string() })?;
        let mut at = 4 + len;
        let mut take = |entry: Entry| -> Result<Tensor, GoldenError> {
            let end = at.checked_add(entry.bytes).filter(|end| *end <= bytes.len());
            let end = end.ok_or(GoldenError::Truncated { part: "tensors" })?;
            let data = bytes.slice(at..end);
            at = end;
            Ok(Tensor::new(entry.name, entry.datatype, entry.shape, data)?)
        };
        let inputs = header.inputs.into_iter().map(&mut take).collect::<Result<_, _>>()?;
        let outputs = header.outputs.into_iter().map(&mut take).collect::<Result<_, _>>()?;
        match bytes.len() - at {
            0 => Ok(Self { inputs, outputs }),
            extra => Err(GoldenError::Trailing { extra }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> GoldenSample {
        let tensor = |name: &str, data: &'static [u8]| {
            Tensor::new(name, Datatype::Uint8, vec![data.len()], Bytes::from_static(data)).unwrap()
        };
        GoldenSample { inputs: vec![tensor("a", b"123")], outputs: vec![tensor("b", b"45")] }
    }

    #[test]
    fn samples_survive_the_round_trip() {
        assert_eq!(GoldenSample::parse(&sample().to_bytes().into()).unwrap(), sample());
    }

    #[test]
    fn every_truncation_and_any_tail_is_refused() {
        let whole = sample().to_bytes();
        for cut in 0..whole.len() {
            assert!(GoldenSample::parse(&Bytes::copy_from_slice(&whole[..cut])).is_err(), "cut at {cut}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(GoldenSample::parse(&longer.into()), Err(GoldenError::Trailing { extra: 1 }));
        let huge = [&u32::MAX.to_le_bytes()[..], &whole[4..]].concat();
        assert!(matches!(GoldenSample::parse(&huge.into()), Err(GoldenError::Header { .. })));
    }
}
