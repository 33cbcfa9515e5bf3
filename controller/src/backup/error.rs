//! What can go wrong with backups, and what to do about it.

use super::{passphrase::PassphraseError, seal::SealError};
use crate::{blobs::BlobError, fleet::data_dir::DataDirError, store::StoreError};
use std::{io, path::PathBuf};

/// Why a backup was not made or not restored. Nothing is left behind under the final name then.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    #[error("the backup cannot be opened")]
    Sealed(#[source] SealError),
    /// It decrypts, but holds what this program does not understand.
    #[error("the content of the backup is not acceptable: {reason}")]
    Content { reason: String },
    #[error("`{}` holds no controller's state", path.display())]
    NoController { path: PathBuf },
    #[error(
        "`{}` is not empty, it has {}; restoring never mixes with what is there", dir.display(), found.join(", ")
    )]
    NotEmpty { dir: PathBuf, found: Vec<String> },
    #[error("`{}` is not a folder", path.display())]
    NotFolder { path: PathBuf },
    #[error("`{}` exists already", path.display())]
    Exists { path: PathBuf },
    #[error("`{}` has {found} bytes, more than the {limit} that a key or certificate may have", path.display())]
    FileTooLarge { path: PathBuf, found: u64, limit: u64 },
    #[error("could not {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("could not write the backup")]
    Write(#[source] io::Error),
    #[error("another backup is being made; try again when it is done")]
    Busy,
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("could not ask the controller at {url}")]
    Ask { url: String, source: reqwest::Error },
    #[error("the controller at {url} refused: {detail}")]
    Refused { url: String, detail: String },
    #[error("{what} is needed to ask the controller at {url}")]
    Missing { what: &'static str, url: String },
    #[error("a part of the program ended unexpectedly: {reason}")]
    Task { reason: String },
}

impl BackupError {
    /// What a person can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Sealed(SealError::WrongPassphrase) => {
                Some("each backup has the passphrase it was made with; the file itself is fine so far")
            }
            Self::Sealed(
                SealError::HeaderDamaged
                | SealError::Damaged { .. }
                | SealError::CutOff { .. }
                | SealError::Trailing,
            ) => Some("copy the file again, or use an older backup; nothing was restored"),
            Self::NotEmpty { .. } => Some("name another folder with --data, or move the old one aside first"),
            Self::NoController { .. } => Some("name the data folder with --data"),
            Self::Exists { .. } => Some("name another file with --out"),
            Self::DataDir(DataDirError::InUse { .. }) => {
                Some("stop the controller first: a restore needs a folder that nobody uses")
            }
            Self::DataDir(DataDirError::UnfinishedRestore { .. }) => {
                Some("empty the folder and restore again")
            }
            Self::Missing { .. } => {
                Some("name the data folder of the controller with --data, or give --token-file and --ca")
            }
            _ => None,
        }
    }

    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> BackupError {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Errors of reading through the envelope: its own, or those of the records inside.
    pub(super) fn reading(error: io::Error) -> Self {
        match error.downcast::<SealError>() {
            Ok(sealed) => Self::Sealed(sealed),
            Err(error) => Self::Content { reason: error.to_string() },
        }
    }
}

impl From<tokio::task::JoinError> for BackupError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::Task { reason: error.to_string() }
    }
}
