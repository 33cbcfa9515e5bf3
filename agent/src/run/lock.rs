//! One agent per data directory.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A killed agent may leave a child between its fork and its exec, which still has the lock: the next one
/// waits that long before it believes that somebody works here.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

/// Held as long as an agent works on the directory; the system lets go of it with the process.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

/// Why the data directory cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another agent (process {holder}) works on `{}`", data.display())]
    Held { data: PathBuf, holder: String },
    #[error("could not use `{}` as the data directory", data.display())]
    Io { data: PathBuf, source: io::Error },
}

impl DataLock {
    /// Creates the directory (0700) if it is missing and takes it.
    ///
    /// # Errors
    /// [`LockError`].
    pub(crate) fn take(data: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { data: data.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(data.join("lock"))
            .map_err(failed)?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if since.elapsed() < PATIENCE => std::thread::sleep(LOOK),
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.take(20).read_to_string(&mut holder).ok(); // only for the message
                    return Err(LockError::Held { data: data.to_owned(), holder: holder.trim().to_owned() });
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_and_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("agent");
        let first = DataLock::take(&data).unwrap();
        let refused = DataLock::take(&data).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        DataLock::take(&data).unwrap();
    }
}
