//! Pulling blobs by blocks over MQTT: requests upward, block frames downward.
//!
//! A request names ranges of missing blocks; each block comes back in a frame of its own: magic
//! `EFB1`, u32 little-endian header length, JSON header, payload. The device verifies, writes and
//! asks again at its own pace, so a power cut costs at most what was not yet synced.

use crate::{
    digest::BlobDigest,
    ids::{DeviceId, MessageId},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub const TRANSFER_SCHEMA: u32 = 1;
pub const DEFAULT_BLOCK_BYTES: u32 = 32 * 1024;
pub const MIN_BLOCK_BYTES: u32 = 4 * 1024;
pub const MAX_BLOCK_BYTES: u32 = 128 * 1024;
/// Blocks one request may ask for: bounds what a hostile device makes the controller send.
pub const MAX_BLOCKS_PER_REQUEST: u64 = 64;
const MAGIC: &[u8; 4] = b"EFB1";
const MAX_HEADER_BYTES: usize = 4 * 1024;

/// What can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FetchObject {
    Blob(BlobDigest),
    /// A version of the trust document, as its signed envelope.
    Trust(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    pub schema: u32,
    pub id: MessageId,
    pub device: DeviceId,
    pub object: FetchObject,
    pub block_bytes: u32,
    /// Half-open ranges of block indexes.
    pub blocks: Vec<(u64, u64)>,
}

/// Why a fetch request is refused unread.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("fetch request is not valid JSON of the expected form: {reason}")]
    Malformed { reason: String },
    #[error("fetch schema {found} is not understood")]
    UnknownSchema { found: u32 },
    #[error("blocks of {found} bytes were asked for, {MIN_BLOCK_BYTES} to {MAX_BLOCK_BYTES} are allowed")]
    BlockSize { found: u32 },
    #[error("{found} blocks were asked for at once, 1 to {MAX_BLOCKS_PER_REQUEST} are allowed")]
    TooMany { found: u64 },
}

impl FetchRequest {
    /// # Errors
    /// [`FetchError`]; sizes and counts are within bounds afterwards.
    pub fn parse(bytes: &[u8]) -> Result<Self, FetchError> {
        let request: Self =
            serde_json::from_slice(bytes).map_err(|e| FetchError::Malformed { reason: e.to_string() })?;
        if request.schema != TRANSFER_SCHEMA {
            return Err(FetchError::UnknownSchema { found: request.schema });
        }
        if !(MIN_BLOCK_BYTES..=MAX_BLOCK_BYTES).contains(&request.block_bytes) {
            return Err(FetchError::BlockSize { found: request.block_bytes });
        }
        let count =
            request.blocks.iter().try_fold(0u64, |sum, (from, to)| sum.checked_add(to.checked_sub(*from)?));
        match count {
            Some(1..=MAX_BLOCKS_PER_REQUEST) => Ok(request),
            other => Err(FetchError::TooMany { found: other.unwrap_or(u64::MAX) }),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockHeader {
    pub schema: u32,
    /// Echo of the request.
    pub id: MessageId,
    pub object: FetchObject,
    #[serde(flatten)]
    pub answer: BlockAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum BlockAnswer {
    /// The frame's payload is this block.
    Block {
        index: u64,
        block_bytes: u32,
        total_bytes: u64,
    },
    /// Over budget: ask again after this many milliseconds.
    Later {
        retry_after_ms: u64,
    },
    NotFound,
    Refused {
        reason: String,
    },
}

/// Why a frame on `blocks` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("block frame ends inside its {part}")]
    Truncated { part: &'static str },
    #[error("block frame does not start with EFB1")]
    Magic,
    #[error("block frame header: {reason}")]
    Header { reason: String },
    #[error("block {index} has {found} bytes instead of {wanted}")]
    WrongLength { index: u64, found: usize, wanted: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockFrame {
    pub header: BlockHeader,
    /// Empty unless the answer is a block.
    pub payload: Bytes,
}

impl BlockFrame {
    pub fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(&self.header).unwrap_or_default(); // plain data: cannot fail
        let mut out = Vec::with_capacity(8 + json.len() + self.payload.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(json.len() as u32).to_le_bytes());
        out.extend_from_slice(&json);
        out.extend_from_slice(&self.payload);
        out
    }

    /// # Errors
    /// [`FrameError`]; a block's payload has exactly the length its header implies afterwards.
    pub fn parse(bytes: &Bytes) -> Result<Self, FrameError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(FrameError::Magic)?;
        let (len, rest) =
            rest.split_first_chunk::<4>().ok_or(FrameError::Truncated { part: "header length" })?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_HEADER_BYTES {
            return Err(FrameError::Header { reason: format!("{len} bytes, at most {MAX_HEADER_BYTES}") });
        }
        let json = rest.get(..len).ok_or(FrameError::Truncated { part: "header" })?;
        let header: BlockHeader =
            serde_json::from_slice(json).map_err(|e| FrameError::Header { reason: e.to_string() })?;
        let payload = bytes.slice(8 + len..);
        let wanted = match &header.answer {
            BlockAnswer::Block { index, block_bytes, total_bytes } => {
                block_length(*index, *block_bytes, *total_bytes)
            }
            _ => 0,
        };
        let index = if let BlockAnswer::Block { index, .. } = header.answer { index } else { 0 };
        if payload.len() as u64 != wanted {
            return Err(FrameError::WrongLength { index, found: payload.len(), wanted });
        }
        Ok(Self { header, payload })
    }
}

/// Bytes of block `index` of an object of `total` bytes; 0 beyond its end.
pub fn block_length(index: u64, block_bytes: u32, total: u64) -> u64 {
    let start = index.saturating_mul(u64::from(block_bytes));
    total.saturating_sub(start).min(u64::from(block_bytes))
}

/// How many blocks an object of `total` bytes has.
pub fn block_count(block_bytes: u32, total: u64) -> u64 {
    total.div_ceil(u64::from(block_bytes.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(index: u64, total: u64, len: usize) -> BlockFrame {
        BlockFrame {
            header: BlockHeader {
                schema: TRANSFER_SCHEMA,
                id: "r1".parse().unwrap(),
                object: FetchObject::Blob(BlobDigest::of(b"x")),
                answer: BlockAnswer::Block { index, block_bytes: 4096, total_bytes: total },
            },
            payload: vec![7; len].into(),
        }
    }

    #[test]
    fn frames_survive_the_round_trip_and_every_truncation_is_refused() {
        let whole = frame(1, 5000, 904).to_bytes();
        assert_eq!(BlockFrame::parse(&whole.clone().into()).unwrap(), frame(1, 5000, 904));
        for cut in 0..whole.len() {
            assert!(BlockFrame::parse(&Bytes::copy_from_slice(&whole[..cut])).is_err(), "cut at {cut}");
        }
        assert!(BlockFrame::parse(&frame(1, 5000, 905).to_bytes().into()).is_err());
        assert!(BlockFrame::parse(&frame(9, 5000, 4096).to_bytes().into()).is_err());
        assert!(BlockFrame::parse(&frame(u64::MAX, u64::MAX, 1).to_bytes().into()).is_err());
    }

    #[test]
    fn a_request_cannot_ask_for_the_moon() {
        let ask = |block_bytes: u32, blocks: &str| {
            let object = r#"{"trust":1}"#;
            FetchRequest::parse(
                format!(
                    r#"{{"schema":1,"id":"a","device":"d","object":{object},"block_bytes":{block_bytes},"blocks":{blocks}}}"#
                )
                .as_bytes(),
            )
        };
        assert!(ask(4096, "[[0,64]]").is_ok());
        assert!(matches!(ask(4096, "[[0,65]]"), Err(FetchError::TooMany { found: 65 })));
        assert!(ask(4096, "[[5,4]]").is_err());
        assert!(ask(4096, "[]").is_err());
        assert!(ask(4096, "[[0,18446744073709551615],[0,9]]").is_err());
        assert!(ask(0, "[[0,1]]").is_err());
        assert!(ask(1 << 20, "[[0,1]]").is_err());
    }
}
