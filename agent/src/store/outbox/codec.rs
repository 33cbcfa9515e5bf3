//! How a record lies on disk: CRC-32 (little endian) of the rest, then its JSON. sled can return
//! pages that were damaged without a word, so every record vouches for itself.

use edgefleet_shared::telemetry::Record;

/// Largest record on disk, bytes: what one telemetry message can carry uncompressed, with room.
pub(super) const MAX_RECORD_BYTES: usize = 512 * 1024;

/// Key of a record: its place in the queue, so that the tree's order is the queue's.
pub(super) fn key(position: u64) -> [u8; 8] {
    position.to_be_bytes()
}

pub(super) fn encode(record: &Record) -> Vec<u8> {
    let mut out = vec![0; 4];
    // Plain data: writing to memory cannot fail.
    serde_json::to_writer(&mut out, record).ok();
    let crc = crc32fast::hash(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

/// `None` if the bytes are not what was written.
pub(super) fn decode(bytes: &[u8]) -> Option<Record> {
    let (crc, json) = bytes.split_first_chunk::<4>()?;
    (crc32fast::hash(json) == u32::from_le_bytes(*crc)).then(|| serde_json::from_slice(json).ok())?
}
