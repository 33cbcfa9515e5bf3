//! What can go wrong with fleet state, in the words of the fleet. No engine's own errors leave a home.

use std::path::PathBuf;

use super::document::{Expect, Kind, Revision};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{kind} `{id}` does not exist")]
    NotFound { kind: Kind, id: String },

    /// Somebody else wrote first. `found` is `None` when the document is gone.
    #[error(
        "{kind} `{id}` changed meanwhile: expected {expected}, found {}",
        found.map_or_else(|| "no document".to_owned(), |found| found.to_string())
    )]
    StaleRevision { kind: Kind, id: String, expected: Expect, found: Option<Revision> },

    /// A stored record does not carry the checksum, number or place it was written with.
    #[error("stored {what} is corrupt: {reason}")]
    Corrupt { what: String, reason: String },

    /// The whole store cannot be trusted; nothing was changed on disk.
    #[error(
        "the store in `{}` is damaged: {reason}. It was left as it is; restore the newest backup into an \
         empty data folder with `edgefleet restore`",
        dir.display()
    )]
    Damaged { dir: PathBuf, reason: String },

    #[error("{what} has {size} bytes, more than the {limit} allowed")]
    TooLarge { what: String, size: u64, limit: u64 },

    /// The caller broke a rule of the interface (an empty id, the same document twice in one transaction).
    #[error("{what} is not acceptable: {reason}")]
    Invalid { what: String, reason: String },

    /// Nothing was acknowledged. A write may still turn out to have happened: read before repeating it.
    #[error("the store is not available: {reason}")]
    Unavailable { reason: String },

    #[error(
        "another process is using the store in `{}`; stop it first, or start with another data folder",
        dir.display()
    )]
    Locked { dir: PathBuf },

    /// The document exists and is whole, but this version of the program cannot read its JSON.
    #[error("{kind} `{id}` cannot be read as what it should be")]
    Unreadable { kind: Kind, id: String, source: serde_json::Error },

    #[error("line {line} of the export is not acceptable: {reason}")]
    BadExport { line: u64, reason: String },
}

/// When repeating the same call can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// At once, after reading again.
    Now,
    /// After a while, or after a person freed disk space.
    Later,
    Never,
}

impl StoreError {
    /// Says whether, and when, to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::StaleRevision { .. } => Retry::Now,
            Self::Unavailable { .. } => Retry::Later,
            Self::NotFound { .. }
            | Self::Corrupt { .. }
            | Self::Damaged { .. }
            | Self::TooLarge { .. }
            | Self::Invalid { .. }
            | Self::Locked { .. }
            | Self::Unreadable { .. }
            | Self::BadExport { .. } => Retry::Never,
        }
    }

    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), reason: reason.into() }
    }
}
