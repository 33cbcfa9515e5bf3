//! The passphrase of a backup: never printed, never stored.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Shorter ones are not taken for a new backup. Old files are opened with whatever they were made with.
pub const MIN_BYTES: usize = 12;
const MAX_BYTES: usize = 1_024;

/// Why a passphrase cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    #[error(
        "the passphrase has {found} bytes; a backup holds every key of the fleet and needs {MIN_BYTES} or more"
    )]
    TooShort { found: usize },
    #[error("the passphrase has more than {MAX_BYTES} bytes")]
    TooLong,
    #[error("the passphrase is empty")]
    Empty,
    #[error("could not read the passphrase from `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// Text that a person chose.
#[derive(Clone)]
pub struct Passphrase(String);

impl Passphrase {
    /// Takes any text of 1 to 1,024 bytes, without line ends behind it (files and prompts add them).
    ///
    /// # Errors
    /// [`PassphraseError::Empty`], [`PassphraseError::TooLong`].
    pub fn new(text: impl Into<String>) -> Result<Self, PassphraseError> {
        let mut text = text.into();
        text.truncate(text.trim_end_matches(['\r', '\n']).len());
        match text.len() {
            0 => Err(PassphraseError::Empty),
            found if found > MAX_BYTES => Err(PassphraseError::TooLong),
            _ => Ok(Self(text)),
        }
    }

    /// The first line's worth of a file: all of it but the line end.
    ///
    /// # Errors
    /// [`PassphraseError`].
    pub fn from_file(path: &Path) -> Result<Self, PassphraseError> {
        let failed = |source| PassphraseError::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_BYTES as u64 + 3).read_to_string(&mut text).map_err(failed)?;
        Self::new(text)
    }

    /// Refuses what is too easy to guess for a new backup.
    ///
    /// # Errors
    /// [`PassphraseError::TooShort`].
    pub fn check_new(&self) -> Result<(), PassphraseError> {
        match self.0.len() {
            found if found < MIN_BYTES => Err(PassphraseError::TooShort { found }),
            _ => Ok(()),
        }
    }

    /// The text itself, for a controller that makes the backup.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_do_not_count_and_short_ones_are_refused_for_new_backups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("phrase");
        std::fs::write(&path, "correct horse\r\n").unwrap();
        let phrase = Passphrase::from_file(&path).unwrap();
        assert_eq!(phrase, Passphrase::new("correct horse").unwrap());
        assert_eq!(format!("{phrase:?}"), "Passphrase(..)");
        phrase.check_new().unwrap();
        let short = Passphrase::new("short").unwrap().check_new();
        assert!(matches!(short, Err(PassphraseError::TooShort { found: 5 })));
        assert!(matches!(Passphrase::new("\n"), Err(PassphraseError::Empty)));
        std::fs::write(&path, "x".repeat(5_000)).unwrap();
        assert!(matches!(Passphrase::from_file(&path), Err(PassphraseError::TooLong)));
        assert!(matches!(Passphrase::from_file(dir.path()), Err(PassphraseError::Read { .. })));
    }
}
