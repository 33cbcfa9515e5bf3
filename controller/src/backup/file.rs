//! The backup as a file: private, and under its name only when whole.

use super::BackupError;
use edgefleet_shared::time::Timestamp;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// `edgefleet-backup-20261123T075120Z.efb`
pub fn default_name(now: Timestamp) -> String {
    let seconds = now.to_string();
    let seconds: String =
        seconds.split('.').next().unwrap_or_default().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    format!("edgefleet-backup-{}Z.efb", seconds.trim_end_matches('Z'))
}

/// A backup being written: mode 0600, hidden beside its final place, removed when dropped.
pub struct NewFile {
    temporary: NamedTempFile,
    path: PathBuf,
}

impl NewFile {
    /// # Errors
    /// [`BackupError::Exists`]: no backup is ever overwritten.
    pub fn create(path: &Path) -> Result<Self, BackupError> {
        if path.symlink_metadata().is_ok() {
            return Err(BackupError::Exists { path: path.to_owned() });
        }
        let failed = BackupError::io("create a file for", path);
        let temporary = tempfile::Builder::new().prefix(".edgefleet-backup-").tempfile_in(folder(path));
        Ok(Self { temporary: temporary.map_err(failed)?, path: path.to_owned() })
    }

    /// A handle to write to.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn writer(&self) -> Result<File, BackupError> {
        self.temporary.as_file().try_clone().map_err(BackupError::io("write", &self.path))
    }

    /// A handle at the beginning, to read what was written.
    ///
    /// # Errors
    /// [`BackupError::Io`].
    pub fn reader(&self) -> Result<File, BackupError> {
        self.temporary.reopen().map_err(BackupError::io("read", &self.path))
    }

    /// Puts the file on disk under its name.
    ///
    /// # Errors
    /// [`BackupError::Exists`] if somebody took the name meanwhile; [`BackupError::Io`].
    pub fn finish(self) -> Result<(), BackupError> {
        let Self { temporary, path } = self;
        temporary.as_file().sync_all().map_err(BackupError::io("write", &path))?;
        temporary.persist_noclobber(&path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => BackupError::Exists { path: path.clone() },
            _ => BackupError::io("name", &path)(error.error),
        })?;
        let synced = File::open(folder(&path)).and_then(|folder| folder.sync_all());
        synced.map_err(BackupError::io("write", &path))
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
