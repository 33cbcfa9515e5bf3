//! A bundle on disk: its manifest and blobs, opened once, checked, and handed on as descriptors.

use edgefleet_shared::{
    bundle::{BlobRef, Manifest, manifest::MAX_MANIFEST_BYTES},
    digest::{BlobDigest, DigestHasher},
    probe::ProbeFailure,
    reported::RefusalCode,
};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Where a bundle's parts lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFiles {
    pub manifest: PathBuf,
    /// Holds one file per blob, named by the 64 hexadecimal digits of its SHA-256.
    pub blobs: PathBuf,
}

impl BundleFiles {
    /// The layout of a bundle folder: `manifest.json` and `blobs/sha256/<hex>`.
    pub fn in_folder(folder: &Path) -> Self {
        Self { manifest: folder.join("manifest.json"), blobs: folder.join("blobs").join("sha256") }
    }

    /// The manifest's bytes, at most one more than allowed, so that the parser can say so.
    pub(super) fn read_manifest(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        open(&self.manifest)?.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads and checks the manifest.
    ///
    /// # Errors
    /// One line of what is wrong with it.
    pub fn manifest(&self) -> Result<Manifest, String> {
        let unreadable = |e: io::Error| format!("could not read {}: {e}", self.manifest.display());
        let bytes = self.read_manifest().map_err(unreadable)?;
        Manifest::parse(&bytes)
            .map_err(|wrong| wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    /// Checks size and digest of every blob, streaming.
    ///
    /// # Errors
    /// The first blob that is missing, of another size or of another content.
    pub(in crate::engine) fn check(&self, manifest: &Manifest) -> Result<(), ProbeFailure> {
        manifest.blobs().into_iter().try_for_each(|blob| self.open_blob(blob).map(drop))
    }

    /// Opens a blob, checks it through that very descriptor and rewinds it.
    pub(super) fn open_blob(&self, blob: &BlobRef) -> Result<File, ProbeFailure> {
        let path = self.blobs.join(blob.digest.to_hex());
        let unreadable = |error: io::Error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound => RefusalCode::NotFound,
                _ => RefusalCode::StorageFailed,
            };
            failure(code, format!("could not read blob {} of the bundle: {error}", blob.digest))
        };
        let mut file = open(&path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?.len();
        if found != blob.size {
            return Err(failure(
                RefusalCode::SizeMismatch,
                format!("blob {} has {found} bytes, its manifest says {}", blob.digest, blob.size),
            ));
        }
        let mut hasher = DigestHasher::new();
        let mut buffer = vec![0; 256 * 1024];
        let mut left = blob.size;
        while left > 0 {
            let read = file.read(&mut buffer).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            left = left.saturating_sub(read as u64);
        }
        let digest = BlobDigest::from_bytes(hasher.finish());
        if digest != blob.digest {
            return Err(failure(
                RefusalCode::DigestMismatch,
                format!("blob {} is corrupt: its bytes have the digest {digest}", blob.digest),
            ));
        }
        file.rewind().map_err(unreadable)?;
        Ok(file)
    }
}

pub(super) fn failure(code: RefusalCode, message: String) -> ProbeFailure {
    ProbeFailure { code, message, node: None, op: None }
}

/// A regular file, not through a link, and never waiting for a pipe's other end.
fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}
