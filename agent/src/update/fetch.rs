//! Brings the parts of one bundle to disk: release, manifest, blobs. What is there is not fetched.

use super::{
    bundles::{BundleError, BundleStore},
    https::{self, RangeSource, prefers_https},
    machine::Bundle,
    transfer::{Blocks, TransferError, Watch},
};
pub(super) use crate::causes::one_line as chain;
use crate::engine::pack;
use edgefleet_shared::{
    bundle::{Kind, Manifest, manifest::MAX_MANIFEST_BYTES},
    desired::{Assigned, Settings},
    digest::BlobDigest,
    reported::RefusalCode,
    trust::envelope::MAX_ENVELOPE_BYTES,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

/// Why a step of an update failed; becomes a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub code: RefusalCode,
    pub message: String,
}
impl Problem {
    pub(super) fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
impl From<TransferError> for Problem {
    fn from(error: TransferError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}
impl From<BundleError> for Problem {
    fn from(error: BundleError) -> Self {
        let code = match error {
            BundleError::Io { .. } => RefusalCode::StorageFailed,
            BundleError::Damaged { .. } | BundleError::DamagedBlob { .. } => RefusalCode::DigestMismatch,
            BundleError::Manifest { .. } => RefusalCode::ManifestInvalid,
        };
        Self::new(code, chain(&error))
    }
}

pub(super) struct Fetcher {
    pub store: BundleStore,
    pub blocks: Arc<Blocks>,
    pub https: Option<Arc<dyn RangeSource>>,
    pub hardware: String,
    /// Free space that a download must leave, bytes.
    pub reserve_bytes: u64,
    /// Two slots may want one blob: it has one part file, so only one fetches.
    locks: Mutex<HashMap<BlobDigest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Fetcher {
    pub(super) fn new(
        store: BundleStore,
        blocks: Arc<Blocks>,
        https: Option<Arc<dyn RangeSource>>,
        hardware: String,
        reserve_bytes: u64,
    ) -> Self {
        Self { store, blocks, https, hardware, reserve_bytes, locks: Mutex::default() }
    }

    /// The raw release envelope. Unchecked but for its digest.
    pub(super) async fn release(&self, assigned: &Assigned, watch: &dyn Watch) -> Result<Vec<u8>, Problem> {
        let size = assigned.release_size;
        if size == 0 || size > MAX_ENVELOPE_BYTES as u64 {
            let message = format!("a release of {size} bytes was assigned, {MAX_ENVELOPE_BYTES} are allowed");
            return Err(Problem::new(RefusalCode::DocumentMalformed, message));
        }
        if let Some(raw) = self.store.release(assigned.release, size) {
            return Ok(raw);
        }
        let digest = assigned.release.into();
        self.fetch(digest, size, self.store.blob_path(digest), None, watch).await?;
        let missing =
            || Problem::new(RefusalCode::StorageFailed, format!("release {digest} cannot be read back"));
        self.store.release(assigned.release, size).ok_or_else(missing)
    }

    /// The manifest that the release names, fetched and checked against it.
    pub(super) async fn manifest(&self, bundle: &Bundle, watch: &dyn Watch) -> Result<Manifest, Problem> {
        let (digest, size) = (BlobDigest::from(bundle.digest), bundle.length);
        if size == 0 || size > MAX_MANIFEST_BYTES {
            let message = format!("the manifest has {size} bytes, {MAX_MANIFEST_BYTES} are allowed");
            return Err(Problem::new(RefusalCode::ManifestInvalid, message));
        }
        let path = self.store.manifest_path(bundle.digest);
        if !self.on_disk(path.clone(), digest, size).await {
            self.fetch(digest, size, path, None, watch).await?;
        }
        let manifest = self.store.manifest(bundle.digest)?;
        if manifest.name() != bundle.name {
            let message =
                format!("the manifest is of `{}`, the release of `{}`", manifest.name(), bundle.name);
            return Err(Problem::new(RefusalCode::ReleaseMismatch, message));
        }
        let classes = &manifest.compat.hardware;
        if !classes.is_empty() && !classes.contains(&self.hardware) {
            let message = format!("made for {}, this device is `{}`", classes.join(", "), self.hardware);
            return Err(Problem::new(RefusalCode::WrongHardware, message));
        }
        if manifest.kind == Kind::Engine {
            pack::own_library(&manifest).map_err(|e| Problem::new(e.code, e.message))?;
        }
        Ok(manifest)
    }

    /// Every blob of the bundle that this device needs, verified. Blobs already here are hashed again, not fetched.
    pub(super) async fn blobs(
        &self,
        bundle: &Bundle,
        settings: &Settings,
        meter: &Meter,
    ) -> Result<(), Problem> {
        let manifest = self.store.manifest(bundle.digest)?;
        let blobs = manifest.blobs_for(pack::target());
        let total: u64 = blobs.iter().map(|blob| blob.size).fold(0, u64::saturating_add);
        let mut missing = Vec::new();
        let mut done = 0;
        for blob in &blobs {
            if self.on_disk(self.store.blob_path(blob.digest), blob.digest, blob.size).await {
                done += blob.size;
            } else {
                missing.push(*blob);
            }
        }
        let need = missing.iter().fold(0u64, |sum, blob| {
            sum.saturating_add(blob.size.saturating_sub(self.store.started_bytes(blob.digest)))
        });
        if need > 0 {
            let free = self
                .store
                .free_bytes()
                .map_err(|e| Problem::new(RefusalCode::StorageFailed, e.to_string()))?;
            if free < need.saturating_add(self.reserve_bytes) {
                let reserve = self.reserve_bytes;
                let message =
                    format!("{need} bytes to fetch and {reserve} to spare do not fit into {free} free");
                return Err(Problem::new(RefusalCode::DiskFull, message));
            }
        }
        for blob in missing {
            let watch = Offset { meter, base: done, total };
            let path = self.store.blob_path(blob.digest);
            self.fetch(blob.digest, blob.size, path, Some(settings), &watch).await?;
            done += blob.size;
        }
        (meter.progress)(total, total);
        Ok(())
    }

    async fn on_disk(&self, path: PathBuf, digest: BlobDigest, size: u64) -> bool {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.has(&path, digest, size)).await.unwrap_or(false)
    }

    /// `settings` are given for what may go over HTTPS.
    pub(super) async fn fetch(
        &self,
        digest: BlobDigest,
        size: u64,
        path: PathBuf,
        settings: Option<&Settings>,
        watch: &dyn Watch,
    ) -> Result<(), Problem> {
        let lock = self.lock(digest);
        let _held = lock.lock().await;
        if path.exists() && self.on_disk(path.clone(), digest, size).await {
            return Ok(()); // another slot fetched it meanwhile
        }
        if let (Some(source), Some(settings)) = (&self.https, settings)
            && prefers_https(settings.transport, size, settings.https_above_bytes)
        {
            match https::blob(source.as_ref(), digest, size, &path, watch).await {
                Ok(()) => return Ok(()),
                Err(e @ TransferError::Part(_)) => return Err(e.into()),
                Err(e) => tracing::info!(%digest, reason = chain(&e), "https failed, going on over mqtt"),
            }
        }
        self.over_mqtt(digest, size, &path, watch).await
    }

    async fn over_mqtt(
        &self,
        digest: BlobDigest,
        size: u64,
        path: &Path,
        watch: &dyn Watch,
    ) -> Result<(), Problem> {
        Ok(self.blocks.blob(digest, size, path, watch).await?)
    }

    fn lock(&self, digest: BlobDigest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock();
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(&digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(digest, Arc::downgrade(&lock));
        lock
    }
}

/// Counts one job's bytes and tells about them.
pub(super) struct Meter {
    /// (done, total) bytes.
    pub progress: Box<dyn Fn(u64, u64) + Send + Sync>,
    pub received: std::sync::atomic::AtomicU64,
}

impl Watch for Meter {
    fn written(&self, _len: u64) {}
    fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A blob's place among all bytes of its bundle.
struct Offset<'a> {
    meter: &'a Meter,
    base: u64,
    total: u64,
}
impl Watch for Offset<'_> {
    fn written(&self, len: u64) {
        (self.meter.progress)(self.base + len, self.total);
    }
    fn received(&self, bytes: u64) {
        self.meter.received(bytes);
    }
}
