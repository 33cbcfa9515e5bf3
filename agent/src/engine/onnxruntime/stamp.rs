//! Tells one file from another at the same path, and whether the one there is the one that was opened.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A file as the system numbers it: another file, or another content, has another stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds since 1970, and nanoseconds.
    modified: (i64, i64),
}

impl Stamp {
    /// Of the file at `path`, links followed.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let modified = (meta.mtime(), meta.mtime_nsec());
        Ok(Self { device: meta.dev(), inode: meta.ino(), bytes: meta.len(), modified })
    }
}

/// Without the device's number, which another order of mounting changes: what is written is remembered
/// over restarts.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanos) = self.modified;
        write!(f, "{} bytes of {seconds}.{nanos:09} in {}", self.bytes, self.inode)
    }
}

/// What there is at a library's path, for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing that could be looked at.
    Missing,
    /// A file, opened by this process or not yet.
    Present(Stamp),
    /// This process has opened another file than is there now, and goes on with that: its code cannot be
    /// exchanged while threads of it run. What is there now counts after the next start.
    Replaced(Stamp),
}

impl Standing {
    /// Of the file this process would run.
    pub fn stamp(&self) -> Option<Stamp> {
        match self {
            Self::Missing => None,
            Self::Present(stamp) | Self::Replaced(stamp) => Some(*stamp),
        }
    }
    /// `opened`: by this process from the same path; `now`: what is there.
    pub(super) fn judge(opened: Option<Stamp>, now: Option<Stamp>) -> Self {
        match (opened, now) {
            (None, None) => Self::Missing,
            (None, Some(now)) => Self::Present(now),
            (Some(opened), Some(now)) if opened == now => Self::Present(now),
            (Some(opened), _) => Self::Replaced(opened),
        }
    }
}

/// The file a path leads to. A confined process may open it, but not follow links to it: its caller has done
/// so. Never a bare name, which the linker would look for elsewhere.
pub(super) fn real(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_at_the_same_path_and_the_same_file_changed_have_other_stamps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("library");
        assert!(Stamp::of(&path).is_err());
        fs::write(&path, "one").unwrap();
        let first = Stamp::of(&path).unwrap();
        assert_eq!(Stamp::of(&path).unwrap(), first);
        // As a package manager does it, with the times of the archive.
        let next = folder.path().join("next");
        fs::write(&next, "two").unwrap();
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        fs::File::options().write(true).open(&next).unwrap().set_modified(times).unwrap();
        fs::rename(&next, &path).unwrap();
        let second = Stamp::of(&path).unwrap();
        assert_ne!(second, first);
        assert_ne!(second.to_string(), first.to_string());
        fs::write(&path, "three").unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), second);
    }

    #[test]
    fn what_was_opened_stays_what_this_process_runs() {
        let stamp = |inode| Stamp { device: 1, inode, bytes: 1, modified: (1, 1) };
        let (old, new) = (stamp(1), stamp(2));
        for (opened, now, wanted) in [
            (None, None, Standing::Missing),
            (None, Some(new), Standing::Present(new)),
            (Some(old), Some(old), Standing::Present(old)),
            (Some(old), Some(new), Standing::Replaced(old)),
            (Some(old), None, Standing::Replaced(old)),
        ] {
            assert_eq!(Standing::judge(opened, now), wanted, "{opened:?} {now:?}");
        }
    }
}
