//! The export format: what `edgefleet backup` stores and `edgefleet restore` reads. Version 1.
//!
//! JSON lines, each ended by `\n`, at most 2 MiB long:
//!
//! ```text
//! {"format":"edgefleet-store","version":1}
//! {"doc":{"kind":"device","id":"d-1","revision":7,"body":"<base64>"}}
//! {"log":{"name":"audit","seq":1,"revision":7,"body":"<base64>"}}
//! {"end":{"documents":1,"log_entries":1,"revision":7,"sha256":"<64 hex digits>"}}
//! ```
//!
//! `revision` of the last line is the newest the store had given out. `sha256` covers every byte before the
//! last line, so a cut, a changed byte and a joined file are noticed. Documents come in (kind, id) order, log
//! entries in (name, seq) order with seq from 1 without gaps; nothing may follow the last line.

use std::io::{BufRead, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edgefleet_shared::digest::encode_hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::document::{MAX_BODY_BYTES, check_id, is_kind_name};
use super::error::StoreError;

const FORMAT: &str = "edgefleet-store";
const VERSION: u32 = 1;
/// A body of 1 MiB is 1.4 MiB in base64; the rest is ids.
const MAX_LINE_BYTES: u64 = 2 << 20;

/// What an export holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportSummary {
    pub documents: u64,
    pub log_entries: u64,
    /// The newest revision the exported store had given out.
    pub revision: u64,
    /// Hex SHA-256 of all lines but the last.
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DocLine {
    kind: String,
    id: String,
    revision: u64,
    body: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLine {
    name: String,
    seq: u64,
    revision: u64,
    body: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Doc(DocLine),
    Log(LogLine),
    End(ExportSummary),
}

/// One item of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Document { kind: String, id: String, revision: u64, body: Vec<u8> },
    LogEntry { name: String, seq: u64, revision: u64, body: Vec<u8> },
}

/// Writes an export line by line.
pub(crate) struct ExportWriter<W: Write> {
    out: W,
    hash: Sha256,
    documents: u64,
    log_entries: u64,
}

impl<W: Write> ExportWriter<W> {
    pub(crate) fn begin(out: W) -> Result<Self, StoreError> {
        let mut writer = Self { out, hash: Sha256::new(), documents: 0, log_entries: 0 };
        writer.line(&Header { format: FORMAT.to_owned(), version: VERSION })?;
        Ok(writer)
    }

    pub(crate) fn item(&mut self, item: Item) -> Result<(), StoreError> {
        match item {
            Item::Document { kind, id, revision, body } => {
                self.documents += 1;
                self.line(&Line::Doc(DocLine { kind, id, revision, body: STANDARD.encode(body) }))
            }
            Item::LogEntry { name, seq, revision, body } => {
                self.log_entries += 1;
                self.line(&Line::Log(LogLine { name, seq, revision, body: STANDARD.encode(body) }))
            }
        }
    }

    /// `revision`: the newest one given out.
    pub(crate) fn finish(mut self, revision: u64) -> Result<ExportSummary, StoreError> {
        let sha256 = encode_hex(&std::mem::take(&mut self.hash).finalize());
        let summary =
            ExportSummary { documents: self.documents, log_entries: self.log_entries, revision, sha256 };
        self.line(&Line::End(summary.clone()))?;
        self.out.flush().map_err(write_failed)?;
        Ok(summary)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<(), StoreError> {
        let mut line = serde_json::to_vec(value)
            .map_err(|source| StoreError::unavailable(format!("could not write an export line: {source}")))?;
        line.push(b'\n');
        self.hash.update(&line);
        self.out.write_all(&line).map_err(write_failed)
    }
}

fn write_failed(source: std::io::Error) -> StoreError {
    StoreError::unavailable(format!("could not write the export: {source}"))
}

/// Reads an export, hands every item to `take` and checks order, sizes, counts and the hash on the way.
/// `take` sees items before the end is known to be right: call it twice, the first time to check only.
pub(crate) fn read_export(
    from: impl Read,
    mut take: impl FnMut(Item) -> Result<(), StoreError>,
) -> Result<ExportSummary, StoreError> {
    let mut lines = Lines { from: std::io::BufReader::new(from), number: 0, text: Vec::new() };
    let mut hash = Sha256::new();
    if !lines.next()? {
        return Err(lines.bad("the file is empty"));
    }
    let header: Header = lines.parse()?;
    if header.format != FORMAT || header.version != VERSION {
        let found = format!("`{}` version {}", header.format, header.version);
        return Err(lines.bad(format!("it is {found}, this program reads `{FORMAT}` version {VERSION}")));
    }
    hash.update(&lines.text);
    let mut order = Order::default();
    loop {
        if !lines.next()? {
            return Err(lines.bad("the file ends here, without its last line: it was cut off"));
        }
        match lines.parse()? {
            Line::Doc(doc) => {
                let body = lines.body(&doc.body)?;
                order.document(&doc).map_err(|reason| lines.bad(reason))?;
                take(Item::Document { kind: doc.kind, id: doc.id, revision: doc.revision, body })?;
            }
            Line::Log(log) => {
                let body = lines.body(&log.body)?;
                order.log_entry(&log).map_err(|reason| lines.bad(reason))?;
                take(Item::LogEntry { name: log.name, seq: log.seq, revision: log.revision, body })?;
            }
            Line::End(end) => {
                let sha256 = encode_hex(&hash.finalize());
                if end.sha256 != sha256 {
                    return Err(lines.bad(format!("the SHA-256 is {sha256}, the file says {}", end.sha256)));
                }
                order.end(&end).map_err(|reason| lines.bad(reason))?;
                if lines.next()? {
                    return Err(lines.bad("something follows the last line"));
                }
                return Ok(end);
            }
        }
        hash.update(&lines.text);
    }
}

struct Lines<R> {
    from: R,
    number: u64,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line with its `\n`; false at the end.
    fn next(&mut self) -> Result<bool, StoreError> {
        self.text.clear();
        self.number += 1;
        let read = (&mut self.from)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut self.text)
            .map_err(|source| StoreError::unavailable(format!("could not read the export: {source}")))?;
        if read == 0 {
            return Ok(false);
        }
        if self.text.last() != Some(&b'\n') {
            let cut = (read as u64) < MAX_LINE_BYTES;
            return Err(self.bad(if cut { "it is cut off" } else { "it is longer than 2 MiB" }));
        }
        Ok(true)
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, StoreError> {
        serde_json::from_slice(&self.text).map_err(|source| self.bad(source.to_string()))
    }

    fn body(&self, text: &str) -> Result<Vec<u8>, StoreError> {
        let body = STANDARD.decode(text).map_err(|source| self.bad(source.to_string()))?;
        if body.len() > MAX_BODY_BYTES {
            return Err(self.bad(format!("a body of {} bytes, more than {MAX_BODY_BYTES}", body.len())));
        }
        Ok(body)
    }

    fn bad(&self, reason: impl Into<String>) -> StoreError {
        StoreError::BadExport { line: self.number, reason: reason.into() }
    }
}

/// What was seen so far, to refuse repeats, gaps and wrong totals.
#[derive(Default)]
struct Order {
    documents: u64,
    log_entries: u64,
    newest: u64,
    last_document: Option<(String, String)>,
    last_log: Option<(String, u64)>,
}

impl Order {
    fn document(&mut self, doc: &DocLine) -> Result<(), String> {
        if !is_kind_name(&doc.kind) {
            return Err(format!("`{}` is not the name of a kind", doc.kind));
        }
        check_id(&doc.kind, &doc.id).map_err(|error| error.to_string())?;
        self.see(doc.revision)?;
        let key = (doc.kind.clone(), doc.id.clone());
        if self.last_log.is_some() || self.last_document.as_ref().is_some_and(|last| *last >= key) {
            return Err(format!("{} `{}` is out of order", doc.kind, doc.id));
        }
        self.last_document = Some(key);
        self.documents += 1;
        Ok(())
    }

    fn log_entry(&mut self, entry: &LogLine) -> Result<(), String> {
        check_id("log", &entry.name).map_err(|error| error.to_string())?;
        self.see(entry.revision)?;
        let wanted = match &self.last_log {
            Some((name, seq)) if *name == entry.name => seq + 1,
            Some((name, _)) if *name > entry.name => {
                return Err(format!("log `{}` is out of order", entry.name));
            }
            Some(_) | None => 1,
        };
        if entry.seq != wanted {
            return Err(format!("log `{}` has entry {} where {wanted} should be", entry.name, entry.seq));
        }
        self.last_log = Some((entry.name.clone(), entry.seq));
        self.log_entries += 1;
        Ok(())
    }

    fn see(&mut self, revision: u64) -> Result<(), String> {
        self.newest = self.newest.max(revision);
        if revision == 0 { Err("revision 0 is never given out".to_owned()) } else { Ok(()) }
    }

    fn end(&self, end: &ExportSummary) -> Result<(), String> {
        if (end.documents, end.log_entries) != (self.documents, self.log_entries) {
            return Err(format!(
                "it promises {} documents and {} log entries, the file has {} and {}",
                end.documents, end.log_entries, self.documents, self.log_entries
            ));
        }
        if end.revision < self.newest {
            return Err(format!(
                "revision {} is older than the {} of a line before",
                end.revision, self.newest
            ));
        }
        Ok(())
    }
}
