//! The controller's folder on disk: one owner at a time, secrets readable by that owner only.
//!
//! ```text
//! <data>/controller.lock   held while a controller runs
//! <data>/admin-token       the first administrator's token, 0600
//! <data>/ca/               certificate authority and server identity (see `ca`), keys 0600
//! <data>/store/            fleet state
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Largest of our own small files, in bytes: keys, certificates, tokens.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// Lies in the folder while a restore moves things into it.
pub const UNFINISHED_RESTORE: &str = "restore-unfinished";

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "another controller is using the data folder `{}`; stop it first, or start with another --data",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("a restore into `{}` was cut off, so parts of it are missing", path.display())]
    UnfinishedRestore { path: PathBuf },
    #[error("could not {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` has more than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
}

/// The folder, locked until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the folder (0700) if missing and locks it against other controllers.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] if another process has it; [`DataDirError::UnfinishedRestore`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DataDirError> {
        let path = path.into();
        create_private_dir(&path)?;
        let file = path.join("controller.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&file)
            .map_err(|source| DataDirError::Io { action: "open", path: file.clone(), source })?;
        match lock.try_lock() {
            Ok(()) if path.join(UNFINISHED_RESTORE).exists() => Err(DataDirError::UnfinishedRestore { path }),
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(DataDirError::Io { action: "lock", path: file, source }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn ca(&self) -> PathBuf {
        self.path.join("ca")
    }
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }
    pub fn admin_token(&self) -> PathBuf {
        self.path.join("admin-token")
    }
}

/// Creates `path` with mode 0700 unless it exists.
///
/// # Errors
/// [`DataDirError::Io`].
pub fn create_private_dir(path: &Path) -> Result<(), DataDirError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| DataDirError::Io {
        action: "create",
        path: path.to_owned(),
        source,
    })
}

/// Replaces `path` by `bytes`, readable by the owner only, whole or not at all.
///
/// # Errors
/// [`DataDirError::Io`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    write(path, bytes, 0o600)
}

/// Replaces `path` by `bytes`, readable by everybody, whole or not at all. For what another user's process
/// must read and holds no secret: a revocation list for a broker beside us.
///
/// # Errors
/// [`DataDirError::Io`].
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    write(path, bytes, 0o644)
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DataDirError> {
    let fail = |action| move |source| DataDirError::Io { action, path: path.to_owned(), source };
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    // A left-over with other permissions must not lend them to the new content.
    match fs::remove_file(&part) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(fail("replace")(source)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().create_new(true).write(true).mode(mode).open(&part).map_err(fail("write"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail("write"))?;
    fs::rename(&part, path).map_err(fail("write"))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail("write"))
}

/// Reads one of our small files; `None` if there is none.
///
/// # Errors
/// [`DataDirError::TooLarge`] over 64 KiB, [`DataDirError::Io`].
pub fn read_small(path: &Path) -> Result<Option<Vec<u8>>, DataDirError> {
    let fail = |source| DataDirError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(fail(source)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(DataDirError::TooLarge { path: path.to_owned(), limit: MAX_FILE_BYTES });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_second_controller_on_one_data_folder_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert!(matches!(error, DataDirError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("another controller"), "{error}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn private_files_are_readable_by_their_owner_only_whatever_was_there_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(path.with_extension("part"), b"left over").unwrap();
        fs::write(dir.path().join("secret.part"), b"left over").unwrap();
        fs::set_permissions(dir.path().join("secret.part"), fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_small(&path).unwrap().unwrap(), b"two");
        write_public(&path, b"list").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        fs::write(&path, vec![0; 70_000]).unwrap();
        assert!(matches!(read_small(&path), Err(DataDirError::TooLarge { .. })));
        assert!(read_small(&dir.path().join("none")).unwrap().is_none());
    }
}
