//! Bundles on disk: `blobs/sha256/<hex>` and `manifests/<hex>.json`, each named by its digest.
//!
//! A file under its final name was verified before it got it; it is hashed again before a test, since
//! flash forgets. Release envelopes are blobs. What no slot names any more is collected.

use crate::{engine::pack, failpoint};
use edgefleet_shared::{
    bundle::{Manifest, ManifestError, manifest::MAX_MANIFEST_BYTES},
    digest::{BlobDigest, BundleDigest, DigestHasher, EnvelopeDigest},
};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Where a probe or the server finds a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFiles {
    pub manifest_path: PathBuf,
    /// Holds one file per blob, named by 64 hexadecimal digits.
    pub blobs_dir: PathBuf,
}

/// Why a bundle's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("could not read or write `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("manifest {digest} is not on disk as it should be")]
    Damaged { digest: BundleDigest },
    #[error("the bundle's file {digest} is missing or damaged")]
    DamagedBlob { digest: BlobDigest },
    #[error("manifest {digest} is not sound: {}", list(mistakes))]
    Manifest { digest: BundleDigest, mistakes: Vec<ManifestError> },
}

fn list(mistakes: &[ManifestError]) -> String {
    mistakes.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[derive(Clone, Debug)]
pub struct BundleStore {
    root: PathBuf,
}

impl BundleStore {
    /// One that another process may own: for reading.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Creates the folders under `root` where they are missing.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn open(root: &Path) -> io::Result<Self> {
        let store = Self::at(root);
        fs::create_dir_all(store.blobs_dir())?;
        fs::create_dir_all(store.manifests_dir())?;
        Ok(store)
    }

    pub fn blobs_dir(&self) -> PathBuf {
        self.root.join("blobs").join("sha256")
    }
    fn manifests_dir(&self) -> PathBuf {
        self.root.join("manifests")
    }
    pub fn blob_path(&self, digest: BlobDigest) -> PathBuf {
        self.blobs_dir().join(digest.to_hex())
    }
    pub fn manifest_path(&self, digest: BundleDigest) -> PathBuf {
        self.manifests_dir().join(format!("{}.json", digest.to_hex()))
    }
    pub fn files(&self, digest: BundleDigest) -> BundleFiles {
        BundleFiles { manifest_path: self.manifest_path(digest), blobs_dir: self.blobs_dir() }
    }

    /// True if the file at `path` has exactly this size and digest. Anything else there is removed,
    /// so that it is fetched anew. Blocks: reads the whole file.
    pub fn has(&self, path: &Path, digest: BlobDigest, size: u64) -> bool {
        let sound = Self::is_sound(path, digest, size);
        if !sound {
            let _ = fs::remove_file(path);
        }
        sound
    }

    /// The same, and whatever is there stays.
    pub fn is_sound(path: &Path, digest: BlobDigest, size: u64) -> bool {
        hash(path, size).is_ok_and(|found| found == Some(digest))
    }

    /// The raw envelope of a release that was fetched before.
    pub fn release(&self, digest: EnvelopeDigest, size: u64) -> Option<Vec<u8>> {
        let path = self.blob_path(digest.into());
        self.has(&path, digest.into(), size).then(|| fs::read(path).ok()).flatten()
    }

    /// Reads and checks a manifest that was fetched before.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn manifest(&self, digest: BundleDigest) -> Result<Manifest, BundleError> {
        let path = self.manifest_path(digest);
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|source| BundleError::Io { path, source })?;
        if BundleDigest::of(&bytes) != digest {
            return Err(BundleError::Damaged { digest });
        }
        Manifest::parse(&bytes).map_err(|mistakes| BundleError::Manifest { digest, mistakes })
    }

    /// Reads a manifest and hashes the model files (or the library) it names once more, right before they are loaded:
    /// what flash has forgotten must not be served. Damaged files are removed. Blocks.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn loadable(&self, digest: BundleDigest) -> Result<Manifest, BundleError> {
        let manifest = self.manifest(digest)?;
        for blob in manifest.loaded_blobs(pack::target()) {
            let path = self.blob_path(blob.digest);
            if !self.has(&path, blob.digest, blob.size) {
                return Err(BundleError::DamagedBlob { digest: blob.digest });
            }
        }
        Ok(manifest)
    }

    /// Bytes free for us on the file system of the store.
    ///
    /// # Errors
    /// As the system reports them.
    pub fn free_bytes(&self) -> io::Result<u64> {
        fs4::available_space(&self.root)
    }

    /// Bytes of `part` files already written for these blobs.
    pub fn started_bytes(&self, digest: BlobDigest) -> u64 {
        fs::metadata(self.blob_path(digest).with_extension("part")).map_or(0, |meta| meta.len())
    }

    /// Removes every file that `kept` does not name, directly or through a manifest.
    ///
    /// A kept manifest that cannot be read keeps all blobs: better full than short.
    ///
    /// # Errors
    /// As the system reports them; what could be removed is.
    pub fn collect(
        &self,
        kept: impl Iterator<Item = (EnvelopeDigest, Option<BundleDigest>)>,
    ) -> io::Result<u64> {
        failpoint::hit("garbage.before");
        let mut blobs = BTreeSet::new();
        let mut manifests = BTreeSet::new();
        let mut unsure = false;
        for (release, digest) in kept {
            blobs.insert(BlobDigest::from(release).to_hex());
            let Some(digest) = digest else { continue };
            manifests.insert(digest.to_hex());
            match self.manifest(digest) {
                Ok(manifest) => blobs.extend(manifest.blobs().iter().map(|blob| blob.digest.to_hex())),
                // Not fetched yet: it cannot have blobs.
                Err(BundleError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(_) => unsure = true,
            }
        }
        let mut freed = sweep(&self.manifests_dir(), &manifests)?;
        if !unsure {
            freed += sweep(&self.blobs_dir(), &blobs)?;
        }
        Ok(freed)
    }
}

/// Removes files whose name up to the first dot is not in `kept`; returns the bytes freed.
fn sweep(folder: &Path, kept: &BTreeSet<String>) -> io::Result<u64> {
    let mut freed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let stem = name.to_str().and_then(|name| name.split('.').next()).unwrap_or_default();
        if !kept.contains(stem) {
            let bytes = entry.metadata().map_or(0, |meta| meta.len());
            match fs::remove_file(entry.path()) {
                Ok(()) => freed += bytes,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            failpoint::hit("garbage.removed");
        }
    }
    Ok(freed)
}

/// Digest of a file of exactly `size` bytes; `None` if it has another size.
fn hash(path: &Path, size: u64) -> io::Result<Option<BlobDigest>> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    let mut hasher = DigestHasher::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(BlobDigest::from_bytes(hasher.finish()))),
            n => hasher.update(&buffer[..n]),
        }
    }
}
