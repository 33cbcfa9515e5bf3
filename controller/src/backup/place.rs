//! How a restored data folder appears: as a whole, or not at all.
//!
//! Everything is put together in a folder beside the target, which then takes the target's name by one rename.
//! Where that cannot be (the target is a mount point, as in a container, or its parent belongs to somebody
//! else) the folder is made inside the target and its entries are moved one by one, under the data folder's lock
//! and behind the file [`UNFINISHED_RESTORE`], with which no controller starts.

use super::BackupError;
use crate::fleet::data_dir::{DataDir, UNFINISHED_RESTORE, create_private_dir};
use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
};
use tempfile::TempDir;

const PREFIX: &str = ".edgefleet-restore-";
/// What a fresh file system has.
const HARMLESS: &str = "lost+found";
const MAX_NAMED: usize = 8;

/// Where a restore goes, and the folder where it is put together.
pub(super) struct Target {
    dir: PathBuf,
    staging: TempDir,
    inside: bool,
}

impl Target {
    /// Checks that `data` is missing or empty and makes the folder to work in.
    ///
    /// # Errors
    /// [`BackupError::NotEmpty`], [`BackupError::NotFolder`], [`BackupError::Io`].
    pub(super) fn prepare(data: &Path) -> Result<Self, BackupError> {
        let exists = match fs::metadata(data) {
            Ok(found) if found.is_dir() => true,
            Ok(_) => return Err(BackupError::NotFolder { path: data.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(BackupError::io("look at", data)(error)),
        };
        let resolve = |path: &Path| path.canonicalize().map_err(BackupError::io("resolve", path));
        let dir = if exists {
            resolve(data)?
        } else {
            let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            create_private_dir(parent)?;
            let name = data.file_name().ok_or(BackupError::NotFolder { path: data.to_owned() })?;
            resolve(parent)?.join(name)
        };
        let mut inside = false;
        if exists {
            let found = entries(&dir)?;
            inside = found.iter().any(|name| name == HARMLESS);
            let mut found: Vec<_> = found.into_iter().filter(|name| name != HARMLESS).collect();
            if !found.is_empty() {
                let more = found.len().saturating_sub(MAX_NAMED);
                found.truncate(MAX_NAMED);
                found.extend((more > 0).then(|| format!("{more} more")));
                return Err(BackupError::NotEmpty { dir: data.to_owned(), found });
            }
        }
        let private = Permissions::from_mode(0o700);
        let make = |parent: &Path| {
            tempfile::Builder::new().prefix(PREFIX).permissions(private.clone()).tempdir_in(parent)
        };
        let parent = dir.parent().map(Path::to_owned);
        // A mount point shows by its device number; a parent that is not ours by the failure.
        let mounted = exists && parent.as_deref().is_none_or(|parent| device(parent) != device(&dir));
        let beside = parent.filter(|_| !inside && !mounted).and_then(|parent| make(&parent).ok());
        if let Some(staging) = beside {
            return Ok(Self { dir, staging, inside: false });
        }
        if !exists {
            create_private_dir(&dir)?;
        }
        let staging = make(&dir).map_err(BackupError::io("create a folder in", &dir))?;
        Ok(Self { dir, staging, inside: true })
    }

    /// The folder to fill.
    pub(super) fn staging(&self) -> &Path {
        self.staging.path()
    }

    /// Puts everything on disk and then in place. The owner of a target that existed stays its owner.
    ///
    /// # Errors
    /// [`BackupError::NotEmpty`] if the target was used meanwhile; [`BackupError::Io`].
    pub(super) fn put_in_place(self) -> Result<(), BackupError> {
        let Self { dir, staging, inside } = self;
        let owner = fs::metadata(&dir).ok().map(|found| (found.uid(), found.gid()));
        let ours = fs::metadata(staging.path()).ok().map(|found| (found.uid(), found.gid()));
        let owner = owner.filter(|owner| Some(*owner) != ours);
        settle(staging.path(), owner)?;
        if inside {
            return move_entries(&dir, &staging, owner);
        }
        fs::rename(staging.path(), &dir).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => {
                let found = entries(&dir).unwrap_or_default();
                BackupError::NotEmpty { dir: dir.clone(), found }
            }
            _ => BackupError::io("name", &dir)(error),
        })?;
        let _ = staging.keep(); // there is nothing under that name any more
        sync(dir.parent().unwrap_or(&dir))
    }
}

fn move_entries(dir: &Path, staging: &TempDir, owner: Option<(u32, u32)>) -> Result<(), BackupError> {
    let lock = DataDir::open(dir)?;
    give(&lock.path().join("controller.lock"), owner)?;
    let marker = dir.join(UNFINISHED_RESTORE);
    fs::write(&marker, b"").map_err(BackupError::io("write", &marker))?;
    sync(dir)?;
    for name in entries(staging.path())? {
        let to = dir.join(&name);
        fs::rename(staging.path().join(&name), &to).map_err(BackupError::io("name", &to))?;
    }
    sync(dir)?;
    fs::remove_file(&marker).map_err(BackupError::io("remove", &marker))?;
    sync(dir)
}

/// Fsyncs every folder and file below `dir`, and gives them to `owner`.
fn settle(dir: &Path, owner: Option<(u32, u32)>) -> Result<(), BackupError> {
    for name in entries(dir)? {
        let path = dir.join(name);
        let kind = fs::symlink_metadata(&path).map_err(BackupError::io("look at", &path))?;
        if kind.is_dir() {
            settle(&path, owner)?;
        } else {
            sync(&path)?;
            give(&path, owner)?;
        }
    }
    give(dir, owner)?;
    sync(dir)
}

fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<(), BackupError> {
    let Some((user, group)) = owner else { return Ok(()) };
    lchown(path, Some(user), Some(group)).map_err(BackupError::io("change the owner of", path))
}

fn sync(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(BackupError::io("write", path))
}

fn device(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.dev())
}

fn entries(dir: &Path) -> Result<Vec<String>, BackupError> {
    let failed = || BackupError::io("list", dir);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        names.push(entry.map_err(failed())?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
impl Target {
    /// As if the target were a mount point.
    pub(super) fn prepare_inside(dir: &Path) -> Self {
        let staging = tempfile::Builder::new().prefix(PREFIX).tempdir_in(dir).unwrap();
        Self { dir: dir.to_owned(), staging, inside: true }
    }
}
