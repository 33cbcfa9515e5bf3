//! Blobs in a folder.
//!
//! ```text
//! <dir>/sha256/ab/abcdef…   a blob: all 64 hex digits, below the first two
//! <dir>/uploads/            uploads under way; what an earlier process left here is swept when opening
//! ```
//!
//! An upload is hashed while it is written, then fsynced, renamed and its folder fsynced. The store lock of the
//! controller's data folder keeps a second process out, so sweeping when opening cannot hit a live upload.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::digest::{BlobDigest, DigestHasher};
use tempfile::NamedTempFile;
use tokio::task::spawn_blocking;

use super::{BlobError, BlobInfo, BlobStore, BlobWriter, MAX_READ_BYTES};

const ALGORITHM: &str = "sha256";
const UPLOADS: &str = "uploads";

/// Blobs in a folder of this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LocalBlobs {
    dir: Arc<Path>,
    /// Names of this process's uploads start with this, so that a later sweep spares them.
    mine: Arc<str>,
}

impl LocalBlobs {
    /// Opens or creates the folder and sweeps what uploads of an earlier process left; says how many.
    ///
    /// # Errors
    /// [`BlobError::Io`], [`BlobError::DiskFull`].
    pub async fn open(dir: impl Into<PathBuf>) -> Result<(Self, usize), BlobError> {
        let dir = dir.into();
        // Unlike a process id, never the same after a restart in a container.
        let mine = format!("{:016x}-", rand::random::<u64>());
        let blobs = Self { dir: dir.into(), mine: mine.into() };
        let this = blobs.clone();
        let swept = off_thread(&blobs.dir, move || {
            for folder in [ALGORITHM, UPLOADS] {
                let path = this.dir.join(folder);
                fs::create_dir_all(&path).map_err(failed("create", &path))?;
            }
            sync_dir(&this.dir)?;
            this.sweep_blocking()
        })
        .await?;
        Ok((blobs, swept))
    }

    fn path(&self, digest: &BlobDigest) -> PathBuf {
        let hex = digest.to_hex();
        self.dir.join(ALGORITHM).join(&hex[..2]).join(&hex)
    }

    fn uploads(&self) -> PathBuf {
        self.dir.join(UPLOADS)
    }

    fn open_blob(&self, digest: &BlobDigest) -> Result<(File, u64), BlobError> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(|error| not_found_or(error, digest, "open", &path))?;
        let found = file.metadata().map_err(failed("measure", &path))?;
        if !found.is_file() {
            return Err(BlobError::NotFound { digest: *digest });
        }
        Ok((file, found.len()))
    }

    fn read_blocking(&self, digest: &BlobDigest, offset: u64, len: u64) -> Result<Bytes, BlobError> {
        if len > MAX_READ_BYTES {
            return Err(BlobError::ReadTooLarge { len, limit: MAX_READ_BYTES });
        }
        let (file, size) = self.open_blob(digest)?;
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(BlobError::OutOfRange { digest: *digest, offset, len, size });
        }
        // At most MAX_READ_BYTES, checked above.
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, offset).map_err(failed("read", &self.path(digest)))?;
        Ok(bytes.into())
    }

    fn list_blocking(&self) -> Result<Vec<BlobInfo>, BlobError> {
        let mut blobs = Vec::new();
        let root = self.dir.join(ALGORITHM);
        for folder in entries(&root)? {
            if !folder.is_dir() {
                continue;
            }
            for path in entries(&folder)? {
                // Whatever else lies here was put by a person; it is not ours to judge.
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Ok(digest) = format!("{ALGORITHM}:{name}").parse::<BlobDigest>() else { continue };
                if path != self.path(&digest) {
                    continue;
                }
                match fs::metadata(&path) {
                    Ok(found) if found.is_file() => blobs.push(BlobInfo { digest, size: found.len() }),
                    Ok(_) => {}
                    // Removed since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed("measure", &path)(error)),
                }
            }
        }
        blobs.sort_by_key(|blob| blob.digest);
        Ok(blobs)
    }

    fn remove_blocking(&self, digest: &BlobDigest) -> Result<bool, BlobError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("remove", &path)(error)),
        }
        sync_dir(path.parent().unwrap_or(&self.dir))?;
        Ok(true)
    }

    fn sweep_blocking(&self) -> Result<usize, BlobError> {
        let mut swept = 0;
        for path in entries(&self.uploads())? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !name.starts_with(&*self.mine) && path.is_file() {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// Runs `work` on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let this = self.clone();
        off_thread(&self.dir, move || work(&this)).await
    }
}

#[async_trait]
impl BlobStore for LocalBlobs {
    async fn has(&self, digest: &BlobDigest) -> Result<bool, BlobError> {
        match self.size(digest).await {
            Ok(_) => Ok(true),
            Err(BlobError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn size(&self, digest: &BlobDigest) -> Result<u64, BlobError> {
        let digest = *digest;
        self.blocking(move |blobs| Ok(blobs.open_blob(&digest)?.1)).await
    }

    async fn read_range(&self, digest: &BlobDigest, offset: u64, len: u64) -> Result<Bytes, BlobError> {
        let digest = *digest;
        self.blocking(move |blobs| blobs.read_blocking(&digest, offset, len)).await
    }

    async fn writer(&self, expected: BlobDigest, max_bytes: u64) -> Result<Box<dyn BlobWriter>, BlobError> {
        let file = self
            .blocking(|blobs| {
                let uploads = blobs.uploads();
                let created = tempfile::Builder::new().prefix(&*blobs.mine).tempfile_in(&uploads);
                created.map_err(failed("create a file in", &uploads))
            })
            .await?;
        let upload = Upload { file, hasher: DigestHasher::new(), written: 0 };
        Ok(Box::new(LocalWriter { blobs: self.clone(), expected, max_bytes, upload: Some(upload) }))
    }

    async fn list(&self) -> Result<Vec<BlobInfo>, BlobError> {
        self.blocking(Self::list_blocking).await
    }

    async fn remove(&self, digest: &BlobDigest) -> Result<bool, BlobError> {
        let digest = *digest;
        self.blocking(move |blobs| blobs.remove_blocking(&digest)).await
    }

    async fn sweep(&self) -> Result<usize, BlobError> {
        self.blocking(Self::sweep_blocking).await
    }
}

/// What was received so far. The file removes itself when dropped.
struct Upload {
    file: NamedTempFile,
    hasher: DigestHasher,
    written: u64,
}

struct LocalWriter {
    blobs: LocalBlobs,
    expected: BlobDigest,
    max_bytes: u64,
    /// Gone after an error, and with it the file.
    upload: Option<Upload>,
}

impl LocalWriter {
    fn take(&mut self) -> Result<Upload, BlobError> {
        let over = || io::Error::other("the upload already failed or was cut off");
        self.upload.take().ok_or_else(|| failed("go on with an upload in", &self.blobs.uploads())(over()))
    }
}

#[async_trait]
impl BlobWriter for LocalWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        let mut upload = self.take()?;
        let limit = self.max_bytes;
        if upload.written.checked_add(bytes.len() as u64).is_none_or(|size| size > limit) {
            return Err(BlobError::TooLarge { digest: self.expected, limit });
        }
        let written = self.blobs.blocking(move |_| {
            upload.hasher.update(&bytes);
            upload.file.write_all(&bytes).map_err(failed("write", upload.file.path()))?;
            upload.written += bytes.len() as u64;
            Ok(upload)
        });
        self.upload = Some(written.await?);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<BlobInfo, BlobError> {
        let upload = self.take()?;
        let expected = self.expected;
        self.blobs.blocking(move |blobs| upload.name(blobs, expected)).await
    }
}

impl Upload {
    fn name(self, blobs: &LocalBlobs, expected: BlobDigest) -> Result<BlobInfo, BlobError> {
        let Self { file, hasher, written: size } = self;
        let found = BlobDigest::from_bytes(hasher.finish());
        if found != expected {
            return Err(BlobError::DigestMismatch { expected, found, size });
        }
        file.as_file().sync_all().map_err(failed("write", file.path()))?;
        let path = blobs.path(&expected);
        let folder = path.parent().unwrap_or(&blobs.dir).to_owned();
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        // Replaces a copy that is there: should that one have rotted on disk, this heals it.
        file.persist(&path).map_err(|error| failed("name", &path)(error.error))?;
        sync_dir(&folder)?;
        sync_dir(&blobs.dir.join(ALGORITHM))?;
        Ok(BlobInfo { digest: expected, size })
    }
}

async fn off_thread<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    spawn_blocking(work).await.map_err(|error| failed("work in", dir)(io::Error::other(error)))?
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BlobError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::DiskFull { path, source },
        _ => BlobError::Io { action, path, source },
    }
}

fn not_found_or(error: io::Error, digest: &BlobDigest, action: &'static str, path: &Path) -> BlobError {
    match error.kind() {
        io::ErrorKind::NotFound => BlobError::NotFound { digest: *digest },
        _ => failed(action, path)(error),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, BlobError> {
    let listing = fs::read_dir(dir).map_err(failed("list", dir))?;
    listing.map(|entry| entry.map(|entry| entry.path()).map_err(failed("list", dir))).collect()
}

fn sync_dir(dir: &Path) -> Result<(), BlobError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(failed("sync", dir))
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
