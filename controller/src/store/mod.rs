//! Durable fleet state: small documents with revisions, and append-only logs, changed together or not at all.
//!
//! [`FleetStore`] is the contract, [`sled_home::SledStore`] the home inside the controller; another home must
//! pass the same behavioural suite (`suite.rs`). [`Repository`] reads and writes typed JSON documents,
//! [`audit`] keeps the hash-chained record of who changed what. Stored bodies carry no clock of the store:
//! times come from the caller. Trust state never lives here.

pub mod announced;
pub mod audit;
mod document;
mod error;
pub mod export;
mod repository;
pub mod sled_home;
#[cfg(test)]
mod suite;
mod transaction;

use std::io::{Read, Write};

use async_trait::async_trait;

pub use document::{
    Document, Expect, Kind, LogEntry, MAX_BODY_BYTES, MAX_ID_BYTES, MAX_PAGE, MAX_PAGE_BYTES, Page, Revision,
    Scan, check_id,
};
pub use error::{Retry, StoreError};
pub use export::ExportSummary;
pub use repository::{Repository, Versioned};
pub use transaction::{
    Append, Change, Committed, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Operation, Transaction,
};

/// Whether the store can do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// Reads work, writes are refused until the reason is gone (a full disk).
    ReadOnly {
        reason: String,
    },
    Down {
        reason: String,
    },
}

/// Durable fleet state. A write names the revision it read: the slower of two writers loses loudly.
///
/// - A transaction that returned `Ok` survives a kill and a power cut; one that returned an error, or was cut
///   off, happened as a whole or not at all.
/// - Dropping the future of `commit` does not take the transaction back.
/// - A read may see a transaction whose writer has not been told yet. Whatever is committed after such a read
///   becomes durable no earlier than what was read; an effect outside the store must follow an own commit.
#[async_trait]
pub trait FleetStore: Send + Sync {
    /// One document, or `None`.
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<Document>, StoreError>;

    /// Documents of one kind in the byte order of their ids. Not a snapshot: writes between two pages show.
    async fn scan(&self, kind: Kind, scan: Scan) -> Result<Page<Document>, StoreError>;

    /// All changes and appends of `transaction`, or none. Returns once it is durable.
    ///
    /// # Errors
    /// [`StoreError::StaleRevision`] if one expectation does not hold, [`StoreError::TooLarge`],
    /// [`StoreError::Invalid`], [`StoreError::Unavailable`].
    async fn commit(&self, transaction: Transaction) -> Result<Committed, StoreError>;

    /// Entries of a log from `from` (1 is the first) on, at most `limit`; an unknown log is empty.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a number is missing in between.
    async fn log_read(&self, log: &str, from: u64, limit: usize) -> Result<Vec<LogEntry>, StoreError>;

    /// The number of the newest entry of a log, 0 if it has none.
    async fn log_head(&self, log: &str) -> Result<u64, StoreError>;

    /// Never fails: a broken store says so here.
    async fn health(&self) -> Health;

    /// Bytes of disk that the store occupies now.
    async fn size_on_disk(&self) -> Result<u64, StoreError>;

    /// Writes all documents and logs, as of one moment, in the format of [`export`]. Commits wait meanwhile.
    async fn export(&self, out: Box<dyn Write + Send>) -> Result<ExportSummary, StoreError>;

    /// Reads an export into this **empty** store, revisions included. The whole input is checked before
    /// anything is written, and a kill in between leaves an empty store.
    ///
    /// # Errors
    /// [`StoreError::BadExport`]; [`StoreError::Invalid`] if the store is not empty.
    async fn import(&self, from: Box<dyn Read + Send>) -> Result<ExportSummary, StoreError>;

    /// Returns when everything committed before is on disk.
    async fn flush(&self) -> Result<(), StoreError>;

    /// Flushes and lets go of the files. Later calls fail with [`StoreError::Unavailable`].
    async fn close(&self) -> Result<(), StoreError>;
}
