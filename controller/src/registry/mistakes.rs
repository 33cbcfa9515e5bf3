//! What is wrong with the files a person wrote: file, line, key and reason, all at once.

use std::{fmt, path::PathBuf};

/// One mistake in a source folder, written ``bundle.toml:14: `limits.batch_max` is 0, not 1 to 65536``.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceMistake {
    pub file: PathBuf,
    /// 1 is the first line; absent if the mistake has no place in the file.
    pub line: Option<usize>,
    /// Dotted path of the key; empty if the whole file is meant.
    pub key: String,
    pub reason: String,
}

impl fmt::Display for SourceMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if self.key.is_empty() {
            write!(f, ": {}", self.reason)
        } else {
            write!(f, ": `{}` {}", self.key, self.reason)
        }
    }
}

/// All mistakes found in one pass, one a line, in the order of files and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<SourceMistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}
impl std::error::Error for Mistakes {}
