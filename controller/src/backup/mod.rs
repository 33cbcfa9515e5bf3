//! One file that brings a controller back: everything it knows and every key it holds, under a passphrase.
//!
//! | part | in the backup |
//! |---|---|
//! | fleet state | an export of the store as of one moment |
//! | `ca/`, `keys/`, `trust/`, `admin-token` | every regular file, with its permissions |
//! | blobs | digests and sizes; the bytes only on request |
//! | everything else in the data folder | not included, and named in the [`Summary`] |
//!
//! All of it is encrypted, device data included. The file's format is described where it is written: the
//! envelope in `seal.rs`, the records inside in `content.rs`.
//!
//! The order of capture keeps the parts together: the audit entry, then the store, then files, then blobs.
//! Trust documents and blobs are only ever added before the store speaks of them, so whatever the exported
//! state names is there. The store is copied to disk first and read from there: a slow reader of the backup
//! must not hold up the fleet's writes.
//!
//! A restored controller is behind its devices. [`crate::desired::decide`] meets them at the generation they
//! report, and [`note_restored`] puts the restore into the audit log at the next start. What was revoked after the
//! backup was made is valid again, which only a person can know: the command says so.

mod content;
mod create;
mod error;
mod file;
mod note;
mod passphrase;
mod place;
mod restore;
mod seal;
#[cfg(test)]
mod tests;
mod verify;
mod walk;

pub use create::{BackupParts, Order, offline, write};
pub use error::BackupError;
pub use file::{NewFile, default_name};
pub use note::{RestoredNote, note_restored};
pub use passphrase::{MIN_BYTES as MIN_PASSPHRASE_BYTES, Passphrase, PassphraseError};
pub use restore::{MissingBlob, RestoreOrder, Restored, restore};
pub use seal::{Cost, SealError};
pub use verify::verify;

use edgefleet_shared::{digest::BlobDigest, time::Timestamp};
use serde::Serialize;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub created: Timestamp,
    pub documents: u64,
    pub log_entries: u64,
    /// The newest revision the store had given out.
    pub revision: u64,
    /// Keys, certificates, trust documents.
    pub files: u64,
    pub blobs_listed: u64,
    pub blobs_included: u64,
    /// Of all blobs listed.
    pub blob_bytes: u64,
    /// Of the whole encrypted file.
    pub bytes: u64,
    /// What lies in the data folder and is not in the backup. Known only to whoever makes it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Blobs whose stored bytes no longer have their digest; a restore cannot bring them back. Looked for
    /// only while their bytes are copied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub damaged_blobs: Vec<BlobDigest>,
}
