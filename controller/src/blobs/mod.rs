//! Bytes named by their SHA-256: model files, manifests, signed envelopes.
//!
//! [`BlobStore`] is the contract, [`local::LocalBlobs`] the home in a folder. A blob appears under its name only
//! when all of it is on disk and has been hashed; nothing is ever changed afterwards.

pub mod local;

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::digest::BlobDigest;

/// Most bytes that one read returns.
pub const MAX_READ_BYTES: u64 = 16 << 20;

/// Why blobs could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("blob {digest} does not exist")]
    NotFound { digest: BlobDigest },

    #[error("bytes {offset} to {} of blob {digest} were asked for, it has {size}", offset.saturating_add(*len))]
    OutOfRange { digest: BlobDigest, offset: u64, len: u64, size: u64 },

    #[error("one read of {len} bytes is more than the {limit} allowed")]
    ReadTooLarge { len: u64, limit: u64 },

    #[error("the upload of blob {digest} has more than the {limit} bytes announced for it")]
    TooLarge { digest: BlobDigest, limit: u64 },

    #[error("the upload should be blob {expected}, but its {size} bytes are {found}")]
    DigestMismatch { expected: BlobDigest, found: BlobDigest, size: u64 },

    /// Nothing of the upload was kept; blobs that were there are untouched.
    #[error("the disk of `{}` is full; free some space and repeat the upload", path.display())]
    DiskFull { path: PathBuf, source: std::io::Error },

    #[error("could not {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}

impl BlobError {
    /// True if repeating can help once a person made room or the disk recovered.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::DiskFull { .. } | Self::Io { .. } => true,
            Self::NotFound { .. }
            | Self::OutOfRange { .. }
            | Self::ReadTooLarge { .. }
            | Self::TooLarge { .. }
            | Self::DigestMismatch { .. } => false,
        }
    }
}

/// A blob in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    pub digest: BlobDigest,
    /// Bytes.
    pub size: u64,
}

/// An upload under way. Dropping it without [`BlobWriter::finish`] leaves nothing behind.
#[async_trait]
pub trait BlobWriter: Send {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] with the first byte over the announced size, [`BlobError::DiskFull`]. After an
    /// error the upload is over: later calls fail too.
    async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError>;

    /// Gives the blob its name, if the bytes are what was announced. On disk when this returns.
    ///
    /// # Errors
    /// [`BlobError::DigestMismatch`], [`BlobError::DiskFull`].
    async fn finish(self: Box<Self>) -> Result<BlobInfo, BlobError>;
}

/// A place for blobs.
#[async_trait]
pub trait BlobStore: Send + Sync {
    async fn has(&self, digest: &BlobDigest) -> Result<bool, BlobError>;

    /// Bytes of a blob.
    ///
    /// # Errors
    /// [`BlobError::NotFound`].
    async fn size(&self, digest: &BlobDigest) -> Result<u64, BlobError>;

    /// Exactly `len` bytes from `offset` on; `len` at most [`MAX_READ_BYTES`]. Not hashed again: whoever
    /// receives a whole blob checks it.
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::OutOfRange`], [`BlobError::ReadTooLarge`].
    async fn read_range(&self, digest: &BlobDigest, offset: u64, len: u64) -> Result<Bytes, BlobError>;

    /// Begins an upload of the blob `expected` with at most `max_bytes` bytes.
    ///
    /// # Errors
    /// [`BlobError::DiskFull`] if it cannot even begin.
    async fn writer(&self, expected: BlobDigest, max_bytes: u64) -> Result<Box<dyn BlobWriter>, BlobError>;

    /// All blobs in the order of their digests.
    async fn list(&self) -> Result<Vec<BlobInfo>, BlobError>;

    /// Removes a blob; false if it was not there.
    async fn remove(&self, digest: &BlobDigest) -> Result<bool, BlobError>;

    /// Removes what uploads left behind that were cut off by the end of an earlier process; says how many.
    /// Uploads of this process are spared.
    async fn sweep(&self) -> Result<usize, BlobError>;

    /// Stores bytes that are already in memory.
    ///
    /// # Errors
    /// As [`Self::writer`] and [`BlobWriter`].
    async fn put(&self, bytes: Bytes) -> Result<BlobInfo, BlobError> {
        let mut writer = self.writer(BlobDigest::of(&bytes), bytes.len() as u64).await?;
        writer.write(bytes).await?;
        writer.finish().await
    }

    /// A whole blob of at most `max_bytes`, which may not exceed [`MAX_READ_BYTES`].
    ///
    /// # Errors
    /// [`BlobError::NotFound`], [`BlobError::ReadTooLarge`].
    async fn read(&self, digest: &BlobDigest, max_bytes: u64) -> Result<Bytes, BlobError> {
        let size = self.size(digest).await?;
        if size > max_bytes {
            return Err(BlobError::ReadTooLarge { len: size, limit: max_bytes });
        }
        self.read_range(digest, 0, size).await
    }
}
