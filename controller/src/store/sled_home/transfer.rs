//! Export and import of a whole sled home.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::mem;
use std::path::Path;

use super::open::Engine;
use super::read;
use super::record::{self, Key, Totals};
use crate::store::export::{ExportWriter, Item, read_export};
use crate::store::{ExportSummary, StoreError};

/// Records are written in batches of about this many bytes.
const BATCH_BYTES: usize = 4 << 20;

/// `revision`: the newest one given out. Nobody may write meanwhile.
pub(super) fn export(
    engine: &Engine,
    revision: u64,
    out: Box<dyn Write + Send>,
) -> Result<ExportSummary, StoreError> {
    let mut writer = ExportWriter::begin(io::BufWriter::new(out))?;
    for pair in engine.tree.iter() {
        let (key, value) = pair.map_err(read::failed)?;
        let item = match record::parse_key(&key) {
            Some(Key::Document { kind, id }) => {
                let (revision, body) = read::decode(&key, &value)?;
                Item::Document { kind: kind.to_owned(), id: id.to_owned(), revision, body: body.to_vec() }
            }
            Some(Key::Log { name, seq }) => {
                let (revision, body) = read::decode(&key, &value)?;
                Item::LogEntry { name: name.to_owned(), seq, revision, body: body.to_vec() }
            }
            Some(Key::Totals) => continue,
            None => {
                let (what, reason) = (record::describe(&key), "it is not of this format".to_owned());
                return Err(StoreError::Corrupt { what, reason });
            }
        };
        writer.item(item)?;
    }
    writer.finish(revision)
}

/// Copies an export into an unnamed file in `dir` and checks it from beginning to end.
pub(super) fn spool(dir: &Path, mut from: impl Read) -> Result<File, StoreError> {
    let trouble = |error: io::Error| StoreError::unavailable(format!("could not copy the export: {error}"));
    let mut file = tempfile::tempfile_in(dir).map_err(trouble)?;
    io::copy(&mut from, &mut file).map_err(trouble)?;
    file.seek(SeekFrom::Start(0)).map_err(trouble)?;
    read_export(&file, |_| Ok(()))?;
    Ok(file)
}

/// Writes a checked export into an empty engine. Until the last batch the totals say that it is not complete.
pub(super) fn import(engine: &Engine, spool: &mut File) -> Result<(Totals, ExportSummary), StoreError> {
    let rewound = spool.seek(SeekFrom::Start(0));
    rewound.map_err(|error| StoreError::unavailable(format!("could not read the copy again: {error}")))?;
    let unfinished = Totals { importing: true, ..Totals::default() };
    let mut totals = unfinished;
    let mut batch = sled::Batch::default();
    batch.insert(record::TOTALS_KEY, unfinished.encode());
    let mut bytes = 0;
    engine.tree.apply_batch(mem::take(&mut batch)).map_err(read::failed)?;
    engine.sync().map_err(read::failed)?;
    let summary = read_export(&*spool, |item| {
        let (key, revision, body) = match item {
            Item::Document { kind, id, revision, body } => (record::document_key(&kind, &id), revision, body),
            Item::LogEntry { name, seq, revision, body } => (record::log_key(&name, seq), revision, body),
        };
        totals.add(&key, revision);
        bytes += key.len() + body.len();
        batch.insert(key.as_slice(), record::encode(&key, revision, &body));
        if bytes >= BATCH_BYTES {
            bytes = 0;
            engine.tree.apply_batch(mem::take(&mut batch)).map_err(read::failed)?;
        }
        Ok(())
    })?;
    engine.tree.apply_batch(batch).map_err(read::failed)?;
    engine.sync().map_err(read::failed)?;
    totals = Totals { revision: summary.revision, importing: false, ..totals };
    engine.tree.insert(record::TOTALS_KEY, totals.encode()).map_err(read::failed)?;
    engine.sync().map_err(read::failed)?;
    Ok((totals, summary))
}
