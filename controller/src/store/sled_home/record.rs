//! Keys and values as sled stores them, format version 1. Pure.
//!
//! ```text
//! key    document  d kind 00 id
//!        log       l name 00 seq(8, big-endian)
//!        totals    m
//! value  01 revision(8, little-endian) crc32(4, little-endian) body
//! totals body: documents(8) log_entries(8) fingerprint(8) importing(1), all little-endian
//! ```
//!
//! The CRC covers key, revision and body, so a value under the wrong key is noticed too. The totals are
//! rewritten with every batch. Their fingerprint is the sum of a hash of (key, revision) over all records:
//! opening compares it with what is there, so a record that vanished, came back or is an older copy is found,
//! which sled itself was seen to let pass.

use sha2::{Digest, Sha256};

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 1 + 8 + 4;
const TOTALS_BODY_BYTES: usize = 8 + 8 + 8 + 1;

pub(super) const TOTALS_KEY: &[u8] = b"m";
/// First byte of every document's key.
pub(super) const DOCUMENT: u8 = b'd';
/// First byte of every log entry's key.
pub(super) const LOG: u8 = b'l';

pub(super) fn kind_prefix(kind: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(kind.len() + 2);
    key.push(DOCUMENT);
    key.extend_from_slice(kind.as_bytes());
    key.push(0);
    key
}

pub(super) fn document_key(kind: &str, id: &str) -> Vec<u8> {
    let mut key = kind_prefix(kind);
    key.extend_from_slice(id.as_bytes());
    key
}

pub(super) fn log_prefix(log: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(log.len() + 10);
    key.push(LOG);
    key.extend_from_slice(log.as_bytes());
    key.push(0);
    key
}

pub(super) fn log_key(log: &str, seq: u64) -> Vec<u8> {
    let mut key = log_prefix(log);
    key.extend_from_slice(&seq.to_be_bytes());
    key
}

/// A key taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key<'a> {
    Document { kind: &'a str, id: &'a str },
    Log { name: &'a str, seq: u64 },
    Totals,
}

/// `None` for a key that this format never writes.
pub(super) fn parse_key(key: &[u8]) -> Option<Key<'_>> {
    if key == TOTALS_KEY {
        return Some(Key::Totals);
    }
    let (first, rest) = key.split_first()?;
    let zero = rest.iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&rest[..zero]).ok()?;
    let tail = &rest[zero + 1..];
    match *first {
        DOCUMENT => Some(Key::Document { kind: name, id: std::str::from_utf8(tail).ok()? }),
        LOG => Some(Key::Log { name, seq: u64::from_be_bytes(tail.try_into().ok()?) }),
        _ => None,
    }
}

/// Names a key for a person.
pub(super) fn describe(key: &[u8]) -> String {
    match parse_key(key) {
        Some(Key::Document { kind, id }) => format!("{kind} `{id}`"),
        Some(Key::Log { name, seq }) => format!("entry {seq} of log `{name}`"),
        Some(Key::Totals) => "totals".to_owned(),
        None => format!("record with the unknown key {key:02x?}"),
    }
}

pub(super) fn encode(key: &[u8], revision: u64, body: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + body.len());
    value.push(FORMAT);
    value.extend_from_slice(&revision.to_le_bytes());
    value.extend_from_slice(&checksum(key, revision, body).to_le_bytes());
    value.extend_from_slice(body);
    value
}

/// Takes a value apart into revision and body.
///
/// # Errors
/// Why it is not what was written under `key`.
pub(super) fn decode<'a>(key: &[u8], value: &'a [u8]) -> Result<(u64, &'a [u8]), String> {
    let Some((header, body)) = value.split_at_checked(HEADER_BYTES) else {
        return Err(format!("it has {} bytes, fewer than its header's {HEADER_BYTES}", value.len()));
    };
    if header[0] != FORMAT {
        return Err(format!("it has format version {}, this program knows {FORMAT}", header[0]));
    }
    let revision = u64_at(header, 1).ok_or("its revision is cut off")?;
    let mut stored = [0; 4];
    stored.copy_from_slice(&header[9..13]);
    let (stored, computed) = (u32::from_le_bytes(stored), checksum(key, revision, body));
    if stored != computed {
        return Err(format!("its checksum is {computed:08x}, it was written with {stored:08x}"));
    }
    Ok((revision, body))
}

fn checksum(key: &[u8], revision: u64, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&(key.len() as u64).to_le_bytes());
    crc.update(key);
    crc.update(&revision.to_le_bytes());
    crc.update(body);
    crc.finalize()
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What the store says about itself; changes with every batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Totals {
    /// The newest revision given out.
    pub(super) revision: u64,
    pub(super) documents: u64,
    pub(super) log_entries: u64,
    /// Wrapping sum of [`trace`] over all documents and log entries.
    pub(super) fingerprint: u64,
    /// An import is under way; what is there is not complete.
    pub(super) importing: bool,
}

impl Totals {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(TOTALS_BODY_BYTES);
        for number in [self.documents, self.log_entries, self.fingerprint] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body.push(u8::from(self.importing));
        encode(TOTALS_KEY, self.revision, &body)
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self, String> {
        let (revision, body) = decode(TOTALS_KEY, value)?;
        if body.len() != TOTALS_BODY_BYTES {
            return Err(format!("it has {} bytes instead of {TOTALS_BODY_BYTES}", body.len()));
        }
        let number = |at| u64_at(body, at).unwrap_or_default();
        Ok(Self {
            revision,
            documents: number(0),
            log_entries: number(8),
            fingerprint: number(16),
            importing: body[24] != 0,
        })
    }

    pub(super) fn add(&mut self, key: &[u8], revision: u64) {
        *self.count(key) += 1;
        self.fingerprint = self.fingerprint.wrapping_add(trace(key, revision));
    }

    pub(super) fn remove(&mut self, key: &[u8], revision: u64) {
        let count = self.count(key);
        *count = count.saturating_sub(1);
        self.fingerprint = self.fingerprint.wrapping_sub(trace(key, revision));
    }

    fn count(&mut self, key: &[u8]) -> &mut u64 {
        if key.first() == Some(&LOG) { &mut self.log_entries } else { &mut self.documents }
    }
}

fn trace(key: &[u8], revision: u64) -> u64 {
    let digest = Sha256::new().chain_update(revision.to_le_bytes()).chain_update(key).finalize();
    u64_at(&digest, 0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_only_accepted_under_its_own_key_and_unchanged() {
        let key = document_key("device", "d-1");
        let value = encode(&key, 7, b"body");
        assert_eq!(decode(&key, &value), Ok((7, &b"body"[..])));
        assert!(decode(&document_key("device", "d-2"), &value).is_err());
        for at in 0..value.len() {
            let mut wrong = value.clone();
            wrong[at] ^= 0x40;
            assert!(decode(&key, &wrong).is_err(), "byte {at}");
        }
        for cut in 0..value.len() {
            assert!(decode(&key, &value[..cut]).is_err(), "cut to {cut}");
        }
    }

    #[test]
    fn keys_sort_by_kind_then_id_and_by_log_then_number() {
        let keys = [
            document_key("a", "z"),
            document_key("a-b", "a"),
            document_key("b", "a"),
            log_key("x", 255),
            log_key("x", 256),
            TOTALS_KEY.to_vec(),
        ];
        assert!(keys.is_sorted());
        assert_eq!(parse_key(&keys[1]), Some(Key::Document { kind: "a-b", id: "a" }));
        assert_eq!(parse_key(&keys[4]), Some(Key::Log { name: "x", seq: 256 }));
        assert_eq!(parse_key(b"x\0"), None);
    }

    #[test]
    fn totals_survive_encoding_and_notice_an_older_copy() {
        let key = document_key("device", "d-1");
        let mut totals = Totals { revision: 9, importing: true, ..Totals::default() };
        totals.add(&key, 8);
        assert_eq!(Totals::decode(&totals.encode()), Ok(totals));
        let mut older = Totals { revision: 9, importing: true, ..Totals::default() };
        older.add(&key, 5);
        assert_ne!(older.fingerprint, totals.fingerprint);
        totals.remove(&key, 8);
        assert_eq!((totals.documents, totals.fingerprint), (0, 0));
    }
}
