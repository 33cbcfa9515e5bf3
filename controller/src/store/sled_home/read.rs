//! Reads straight from sled. Blocking; every record is checked on the way out.

use std::fs;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::open::Engine;
use super::record;
use crate::store::document::{MAX_PAGE_BYTES, page_limit};
use crate::store::{Document, Kind, LogEntry, Page, Revision, Scan, StoreError};

pub(super) fn failed(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Corruption { .. } => {
            StoreError::Corrupt { what: "state".to_owned(), reason: error.to_string() }
        }
        other => StoreError::unavailable(format!("the engine failed: {other}")),
    }
}

/// Takes a value apart, naming the record if it is not whole.
pub(super) fn decode<'a>(key: &[u8], value: &'a [u8]) -> Result<(u64, &'a [u8]), StoreError> {
    record::decode(key, value).map_err(|reason| StoreError::Corrupt { what: record::describe(key), reason })
}

pub(super) fn document(engine: &Engine, key: &[u8]) -> Result<Option<Document>, StoreError> {
    let Some(value) = engine.tree.get(key).map_err(failed)? else { return Ok(None) };
    let (revision, body) = decode(key, &value)?;
    Ok(Some(Document { revision: Revision(revision), body: body.to_vec() }))
}

pub(super) fn scan(engine: &Engine, kind: Kind, scan: &Scan) -> Result<Page<Document>, StoreError> {
    let kind_prefix = record::kind_prefix(kind.as_str());
    let mut prefix = kind_prefix.clone();
    prefix.extend_from_slice(scan.prefix.as_deref().unwrap_or_default().as_bytes());
    let start = match &scan.after {
        Some(after) => Bound::Excluded(record::document_key(kind.as_str(), after)).max_with(&prefix),
        None => Bound::Included(prefix.clone()),
    };
    let limit = page_limit(scan.limit);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for pair in engine.tree.range::<Vec<u8>, _>((start, Bound::Unbounded)) {
        let (key, value) = pair.map_err(failed)?;
        if !key.starts_with(&prefix) {
            break;
        }
        if entries.len() == limit || bytes >= MAX_PAGE_BYTES {
            let next = entries.last().map(|(id, _): &(String, Document)| id.clone());
            return Ok(Page { entries, next });
        }
        let (revision, body) = decode(&key, &value)?;
        let id = std::str::from_utf8(&key[kind_prefix.len()..]).map_err(|error| StoreError::Corrupt {
            what: record::describe(&key),
            reason: error.to_string(),
        })?;
        bytes += body.len();
        entries.push((id.to_owned(), Document { revision: Revision(revision), body: body.to_vec() }));
    }
    Ok(Page { entries, next: None })
}

/// A cursor before the prefix must not let the scan start outside it.
trait MaxWith {
    fn max_with(self, prefix: &[u8]) -> Self;
}

impl MaxWith for Bound<Vec<u8>> {
    fn max_with(self, prefix: &[u8]) -> Self {
        match self {
            Self::Excluded(key) if key.as_slice() < prefix => Self::Included(prefix.to_vec()),
            other => other,
        }
    }
}

pub(super) fn log(engine: &Engine, log: &str, from: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    let from = from.max(1);
    let range = record::log_key(log, from)..=record::log_key(log, u64::MAX);
    for (wanted, pair) in (from..).zip(engine.tree.range(range)) {
        if entries.len() == page_limit(limit) || bytes >= MAX_PAGE_BYTES {
            break;
        }
        let (key, value) = pair.map_err(failed)?;
        if *key != record::log_key(log, wanted)[..] {
            let (what, found) = (format!("entry {wanted} of log `{log}`"), record::describe(&key));
            return Err(StoreError::Corrupt { what, reason: format!("{found} is in its place") });
        }
        let (_, body) = decode(&key, &value)?;
        bytes += body.len();
        entries.push(LogEntry { seq: wanted, body: body.to_vec() });
    }
    Ok(entries)
}

pub(super) fn log_head(engine: &Engine, log: &str) -> Result<u64, StoreError> {
    let range = record::log_key(log, 0)..=record::log_key(log, u64::MAX);
    let Some(pair) = engine.tree.range(range).next_back() else { return Ok(0) };
    let (key, _) = pair.map_err(failed)?;
    match record::parse_key(&key) {
        Some(record::Key::Log { seq, .. }) => Ok(seq),
        Some(_) | None => Err(StoreError::Corrupt {
            what: format!("log `{log}`"),
            reason: format!("it ends with a {}", record::describe(&key)),
        }),
    }
}

/// Bytes that the files below `dir` occupy, as `du` counts.
pub(super) fn allocated_bytes(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for file in fs::read_dir(dir)? {
        let file = file?;
        match file.metadata() {
            Ok(found) if found.is_dir() => sum += allocated_bytes(&file.path())?,
            Ok(found) => sum += found.blocks() * 512,
            // sled removes files while this looks.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}
