//! Reads a backup as a restore would, and writes nothing.

use super::{
    BackupError, Passphrase, Summary,
    create::MAX_FILE_BYTES,
    restore::is_acceptable,
    walk::{Visitor, small, unpacked, walk},
};
use crate::{
    blobs::BlobInfo,
    store::{ExportSummary, export::read_export},
};
use std::io::{self, Read};

/// Decrypts all of it and checks the store's export line by line. Blocks for as long as that takes.
///
/// # Errors
/// [`BackupError`]: this file could not be restored.
pub fn verify(from: impl Read, passphrase: &Passphrase) -> Result<Summary, BackupError> {
    Ok(walk(from, passphrase, &mut Checks)?.summary)
}

struct Checks;

impl Visitor for Checks {
    fn store(
        &mut self,
        raw_bytes: u64,
        summary: &ExportSummary,
        body: &mut dyn Read,
    ) -> Result<(), BackupError> {
        let unpacked = unpacked(raw_bytes, body).map_err(BackupError::reading)?;
        let found = read_export(unpacked, |_| Ok(()))?;
        if found != *summary {
            return Err(BackupError::Content { reason: "the store's export is not the one promised".into() });
        }
        Ok(())
    }

    fn file(&mut self, path: &str, _: u32, body: &mut dyn Read) -> Result<(), BackupError> {
        if !is_acceptable(path) {
            return Err(BackupError::Content { reason: format!("it has a file {path:?}") });
        }
        small(body, MAX_FILE_BYTES).map(|_| ())
    }

    fn blob(&mut self, _: BlobInfo, body: &mut dyn Read) -> Result<(), BackupError> {
        io::copy(body, &mut io::sink()).map(|_| ()).map_err(BackupError::reading)
    }
}
