//! A blob on its way to disk: written in order, synced at intervals, resumed after a power cut.
//!
//! `<name>.part` holds the bytes, `<name>.note` a growing list of synced lengths, each with its CRC.
//! The bytes are synced before the note that counts them, so a noted length can be believed after a
//! power cut; what lies behind it is cut off at the next start. A hasher sees every byte once, on
//! its way in or when the prefix is read again. Writes go to the page cache at once, so that nothing of
//! a transfer that was given up lands in the file later; only syncs leave the task.

use crate::{failpoint, store::files::sync_folder};
use edgefleet_shared::{
    digest::{BlobDigest, DigestHasher},
    reported::RefusalCode,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tokio::task::spawn_blocking;

/// Unsynced bytes at most. Together with [`WINDOW_BYTES`](super::transfer::WINDOW_BYTES) in flight
/// this is what a kill can cost: 1 MiB.
pub const SYNC_BYTES: u64 = 512 * 1024;
const NOTE: usize = 12;

/// Why a blob is not on disk.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    #[error("no space left for {digest} ({size} bytes); its part was removed")]
    DiskFull { digest: BlobDigest, size: u64 },
    #[error("could not write {digest} to `{}`", path.display())]
    Io { digest: BlobDigest, path: PathBuf, source: io::Error },
    #[error("content of {wanted} has digest {found}; it was removed")]
    DigestMismatch { wanted: BlobDigest, found: BlobDigest },
    #[error("{digest} has {size} bytes, more than that came")]
    TooLong { digest: BlobDigest, size: u64 },
}

impl PartError {
    pub fn code(&self) -> RefusalCode {
        match self {
            Self::DiskFull { .. } => RefusalCode::DiskFull,
            Self::Io { .. } => RefusalCode::StorageFailed,
            Self::DigestMismatch { .. } => RefusalCode::DigestMismatch,
            Self::TooLong { .. } => RefusalCode::SizeMismatch,
        }
    }
}

#[derive(Debug)]
pub struct PartFile {
    digest: BlobDigest,
    size: u64,
    target: PathBuf,
    part: PathBuf,
    note: PathBuf,
    file: File,
    hasher: Hasher,
    len: u64,
    synced: u64,
}

struct Hasher(DigestHasher);
impl std::fmt::Debug for Hasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hasher")
    }
}

impl PartFile {
    /// Opens or resumes the blob that shall become `target`, whose folder exists.
    ///
    /// # Errors
    /// [`PartError::Io`] or [`PartError::DiskFull`].
    pub async fn open(target: &Path, digest: BlobDigest, size: u64) -> Result<Self, PartError> {
        let path = target.to_owned();
        let opened = spawn_blocking(move || Self::open_now(&path, digest, size)).await;
        opened.unwrap_or_else(|e| {
            Err(PartError::Io { digest, path: target.to_owned(), source: io::Error::other(e) })
        })
    }

    fn open_now(target: &Path, digest: BlobDigest, size: u64) -> Result<Self, PartError> {
        let (part, note) = (target.with_extension("part"), target.with_extension("note"));
        let io = |source| full_or(source, digest, size, &part);
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&part).map_err(io)?;
        let there = file.metadata().map_err(io)?.len().min(size);
        // A sector that cannot be read means starting over, not giving up.
        let (hasher, len) = hash_prefix(&mut file, noted_len(&note, there)).unwrap_or_default();
        if len == 0 {
            let _ = fs::remove_file(&note); // it counts bytes that are not there
        }
        file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len))).map_err(io)?;
        let target = target.to_owned();
        Ok(Self { digest, size, target, part, note, file, hasher: Hasher(hasher), len, synced: len })
    }

    /// Contiguous bytes written so far.
    pub fn len(&self) -> u64 {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the next bytes; syncs when [`SYNC_BYTES`] have gathered.
    ///
    /// # Errors
    /// [`PartError`]; if the disk is full, the part is gone.
    pub async fn append(&mut self, bytes: &[u8]) -> Result<(), PartError> {
        if self.len + bytes.len() as u64 > self.size {
            return Err(PartError::TooLong { digest: self.digest, size: self.size });
        }
        self.hasher.0.update(bytes);
        let written = self.file.write_all(bytes);
        self.check(written)?;
        self.len += bytes.len() as u64;
        if self.len - self.synced >= SYNC_BYTES {
            self.sync().await?;
        }
        Ok(())
    }

    /// Makes what was written survive a power cut, and notes how much that is.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn sync(&mut self) -> Result<(), PartError> {
        if self.len == self.synced {
            return Ok(());
        }
        let (note, len) = (self.note.clone(), self.len);
        let synced = self.file.try_clone();
        let file = self.check(synced)?;
        let noted = spawn_blocking(move || {
            file.sync_data()?;
            failpoint::hit("part.synced");
            append_note(&note, len)?;
            failpoint::hit("part.noted");
            Ok(())
        })
        .await;
        self.check(noted.unwrap_or_else(|e| Err(io::Error::other(e))))?;
        self.synced = self.len;
        Ok(())
    }

    /// Verifies the whole and gives it its final name, durably.
    ///
    /// # Errors
    /// [`PartError::DigestMismatch`] removes it.
    pub async fn finish(mut self) -> Result<(), PartError> {
        let found = BlobDigest::from_bytes(std::mem::take(&mut self.hasher.0).finish());
        if found != self.digest || self.len != self.size {
            self.remove();
            return Err(PartError::DigestMismatch { wanted: self.digest, found });
        }
        let (part, target, note) = (self.part.clone(), self.target.clone(), self.note.clone());
        let cloned = self.file.try_clone();
        let file = self.check(cloned)?;
        let moved = spawn_blocking(move || {
            file.sync_all()?;
            failpoint::hit("part.verified");
            fs::rename(&part, &target)?;
            failpoint::hit("part.renamed");
            let _ = fs::remove_file(&note);
            target.parent().map_or(Ok(()), sync_folder)
        })
        .await;
        self.check(moved.unwrap_or_else(|e| Err(io::Error::other(e))))
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.part);
        let _ = fs::remove_file(&self.note);
    }

    /// A full disk costs the part: telemetry and the serving bundle need the room more.
    fn check<T>(&self, result: io::Result<T>) -> Result<T, PartError> {
        result.map_err(|e| {
            let error = full_or(e, self.digest, self.size, &self.part);
            if matches!(error, PartError::DiskFull { .. }) {
                self.remove();
            }
            error
        })
    }
}

/// Hashes the first `len` bytes and leaves the file behind them.
fn hash_prefix(file: &mut File, len: u64) -> io::Result<(DigestHasher, u64)> {
    let mut hasher = DigestHasher::new();
    let mut left = len;
    let mut buffer = vec![0; 128 * 1024];
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact(&mut buffer[..want])?;
        hasher.update(&buffer[..want]);
        left -= want as u64;
    }
    Ok((hasher, len))
}

fn full_or(source: io::Error, digest: BlobDigest, size: u64, path: &Path) -> PartError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PartError::DiskFull { digest, size },
        _ => PartError::Io { digest, path: path.to_owned(), source },
    }
}

fn append_note(path: &Path, len: u64) -> io::Result<()> {
    let mut record = len.to_le_bytes().to_vec();
    record.extend_from_slice(&crc32fast::hash(&record).to_le_bytes());
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(&record)?;
    file.sync_data()
}

/// The longest noted length that the file has; 0 without one. A torn tail costs one interval.
fn noted_len(path: &Path, there: u64) -> u64 {
    let Ok(bytes) = fs::read(path) else { return 0 };
    bytes
        .chunks_exact(NOTE)
        .filter_map(|record| {
            let (len, crc) = record.split_first_chunk::<8>()?;
            (crc32fast::hash(len).to_le_bytes() == *crc).then(|| u64::from_le_bytes(*len))
        })
        .filter(|len| *len <= there)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 64 * 1024;

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
    }

    #[tokio::test]
    async fn a_cut_costs_at_most_one_sync_interval() {
        let data = content(3 * SYNC_BYTES as usize + 1_000);
        let digest = BlobDigest::of(&data);
        for written in [0, 1, 7, 8, 9, 20, data.len() / CHUNK] {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("blob");
            let mut part = PartFile::open(&target, digest, data.len() as u64).await.unwrap();
            for chunk in data.chunks(CHUNK).take(written) {
                part.append(chunk).await.unwrap();
            }
            let had = part.len();
            drop(part); // no sync: as after kill -9
            let mut part = PartFile::open(&target, digest, data.len() as u64).await.unwrap();
            assert!(part.len() <= had && had - part.len() < SYNC_BYTES, "{had} became {}", part.len());
            let rest = part.len() as usize;
            part.append(&data[rest..]).await.unwrap();
            part.finish().await.unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), data);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "part and note are gone");
        }
    }

    #[tokio::test]
    async fn every_torn_note_still_tells_a_synced_length() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("blob");
        let data = content(2 * SYNC_BYTES as usize);
        let digest = BlobDigest::of(&data);
        let mut part = PartFile::open(&target, digest, data.len() as u64).await.unwrap();
        part.append(&data[..SYNC_BYTES as usize]).await.unwrap();
        part.append(&data[SYNC_BYTES as usize..]).await.unwrap();
        let note = target.with_extension("note");
        let whole = std::fs::read(&note).unwrap();
        assert_eq!(whole.len(), 2 * NOTE);
        for cut in 0..whole.len() {
            std::fs::write(&note, &whole[..cut]).unwrap();
            assert_eq!(noted_len(&note, u64::MAX), if cut < NOTE { 0 } else { SYNC_BYTES }, "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn zeros_behind_the_note_are_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("blob");
        let data = content(SYNC_BYTES as usize + 5_000);
        let digest = BlobDigest::of(&data);
        let mut part = PartFile::open(&target, digest, data.len() as u64).await.unwrap();
        part.append(&data[..SYNC_BYTES as usize]).await.unwrap();
        drop(part);
        // What a file system may show after a power cut: length grown, content not written.
        let path = target.with_extension("part");
        let mut damaged = std::fs::read(&path).unwrap();
        damaged.extend_from_slice(&[0; 4_000]);
        std::fs::write(&path, &damaged).unwrap();
        let mut part = PartFile::open(&target, digest, data.len() as u64).await.unwrap();
        assert_eq!(part.len(), SYNC_BYTES);
        part.append(&data[SYNC_BYTES as usize..]).await.unwrap();
        part.finish().await.unwrap();
    }

    #[tokio::test]
    async fn wrong_content_is_removed_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("blob");
        let mut part = PartFile::open(&target, BlobDigest::of(b"right"), 5).await.unwrap();
        assert!(matches!(part.append(b"longer").await, Err(PartError::TooLong { .. })));
        part.append(b"wrong").await.unwrap();
        assert!(matches!(part.finish().await, Err(PartError::DigestMismatch { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
