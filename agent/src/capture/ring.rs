//! Captures on disk until the controller has them: one file each, named by its number, its worth and its digest.
//!
//! A file appears under its name only when it is whole and synced, so a kill leaves nothing half. Bounded in
//! bytes: the oldest that chance did not pick go first, then the oldest of the audit sample. A full disk costs
//! the capture, nothing else. Not for the request path: every call may wait for the disk.

use crate::store::files;
use edgefleet_shared::{
    capture::{Capture, MAX_CAPTURE_BYTES},
    digest::BlobDigest,
    ids::SlotName,
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// Free disk that captures leave to what matters more.
const RESERVE_BYTES: u64 = 64 << 20;
/// Files, whatever their size: a folder that can still be listed at once.
const MAX_FILES: usize = 20_000;
const SUFFIX: &str = ".efcap";

/// Why a capture is not on disk.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("the disk of `{}` has {available} bytes left, captures leave {RESERVE_BYTES}", path.display())]
    DiskFull { path: PathBuf, available: u64 },
    #[error("a capture of {bytes} bytes is larger than the {limit} that all may take")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("could not write a capture to `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A capture on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub id: BlobDigest,
    pub bytes: u64,
    pub is_audit: bool,
    /// Whose upload rules hold; known once the file was read.
    pub slot: Option<SlotName>,
}

#[derive(Debug)]
pub struct Ring {
    dir: PathBuf,
    limit: u64,
    next: u64,
    files: BTreeMap<u64, Stored>,
    bytes: u64,
    /// Removed for want of room since the start, and of these the audited.
    pub evicted: u64,
    pub evicted_audit: u64,
}

fn file_name(number: u64, stored: &Stored) -> String {
    let worth = if stored.is_audit { 'a' } else { 'h' };
    format!("{number:016x}-{worth}-{}{SUFFIX}", stored.id.to_hex())
}

fn parse_name(name: &str) -> Option<(u64, bool, BlobDigest)> {
    let mut parts = name.strip_suffix(SUFFIX)?.splitn(3, '-');
    let number = u64::from_str_radix(parts.next()?, 16).ok()?;
    let is_audit = match parts.next()? {
        "a" => true,
        "h" => false,
        _ => return None,
    };
    let id = format!("sha256:{}", parts.next()?).parse().ok()?;
    Some((number, is_audit, id))
}

impl Ring {
    /// Takes over what an earlier process left. Strange and unfinished files are removed.
    ///
    /// # Errors
    /// [`RingError::Io`] if the folder cannot be made or listed.
    pub fn open(dir: &Path, limit: u64) -> Result<Self, RingError> {
        let failed = |source| RingError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(failed)?;
        let (mut known, mut bytes) = (BTreeMap::new(), 0);
        for entry in fs::read_dir(dir).map_err(failed)?.flatten() {
            let name = entry.file_name();
            let found = name.to_str().and_then(parse_name).zip(entry.metadata().ok());
            let Some(((number, is_audit, id), metadata)) = found else {
                let _ = fs::remove_file(entry.path()); // a folder stays; nobody else writes here
                continue;
            };
            bytes += metadata.len();
            known.insert(number, Stored { id, bytes: metadata.len(), is_audit, slot: None });
        }
        let next = known.last_key_value().map_or(1, |(number, _)| number.wrapping_add(1));
        let dir = dir.to_owned();
        let mut ring = Self { dir, limit, next, files: known, bytes, evicted: 0, evicted_audit: 0 };
        ring.make_room(0);
        Ok(ring)
    }

    pub fn len(&self) -> usize {
        self.files.len()
    }
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.make_room(0);
    }

    /// Keeps a capture, durably; makes room by removing what is worth least.
    ///
    /// # Errors
    /// [`RingError`]; then it is not there.
    pub fn put(&mut self, file: &[u8], is_audit: bool, slot: &SlotName) -> Result<BlobDigest, RingError> {
        let bytes = file.len() as u64;
        if bytes > self.limit {
            return Err(RingError::TooLarge { bytes, limit: self.limit });
        }
        let failed = |source| RingError::Io { path: self.dir.clone(), source };
        let available = fs4::available_space(&self.dir).map_err(failed)?;
        if available < RESERVE_BYTES.saturating_add(bytes) {
            return Err(RingError::DiskFull { path: self.dir.clone(), available });
        }
        let stored = Stored { id: Capture::id(file), bytes, is_audit, slot: Some(slot.clone()) };
        if let Some((_, same)) = self.files.iter().find(|(_, known)| known.id == stored.id) {
            return Ok(same.id);
        }
        self.make_room(bytes);
        let path = self.dir.join(file_name(self.next, &stored));
        files::replace(&path, file, 0o600).map_err(|source| {
            let _ = fs::remove_file(files::with_suffix(&path, ".tmp"));
            RingError::Io { path, source }
        })?;
        let id = stored.id;
        self.files.insert(self.next, stored);
        self.next = self.next.wrapping_add(1);
        self.bytes += bytes;
        Ok(id)
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes.saturating_add(bytes) > self.limit || self.files.len() >= MAX_FILES {
            let least = self.files.iter().find(|(_, stored)| !stored.is_audit).or(self.files.iter().next());
            let Some((number, is_audit)) = least.map(|(number, stored)| (*number, stored.is_audit)) else {
                return;
            };
            self.evicted += 1;
            self.evicted_audit += u64::from(is_audit);
            self.remove(number);
        }
    }

    /// The next capture to send among those `may` let go: the audit sample first, oldest first.
    pub fn next(&self, may: impl Fn(&Stored) -> bool) -> Option<(u64, Stored)> {
        let mut allowed = self.files.iter().filter(|(_, stored)| may(stored));
        let first = allowed.clone().find(|(_, stored)| stored.is_audit).or_else(|| allowed.next());
        first.map(|(number, stored)| (*number, stored.clone()))
    }

    /// Its bytes, if they are what its name says; a damaged file is removed.
    pub fn read(&mut self, number: u64) -> Option<(Vec<u8>, SlotName)> {
        let stored = self.files.get(&number)?;
        let path = self.dir.join(file_name(number, stored));
        let bytes = files::read_bounded(&path, MAX_CAPTURE_BYTES as u64).ok();
        let whole = bytes.filter(|bytes| Capture::id(bytes) == stored.id);
        let parsed = whole.and_then(|bytes| Some((Capture::parse_document(&bytes).ok()?.slot, bytes)));
        let Some((slot, bytes)) = parsed else {
            tracing::warn!(path = %path.display(), "a damaged capture was removed");
            self.remove(number);
            return None;
        };
        if let Some(stored) = self.files.get_mut(&number) {
            stored.slot = Some(slot.clone());
        }
        Some((bytes, slot))
    }

    /// Forgets a capture. One that cannot be deleted is sent again after the next start, which does no harm.
    pub fn remove(&mut self, number: u64) {
        let Some(stored) = self.files.remove(&number) else { return };
        self.bytes = self.bytes.saturating_sub(stored.bytes);
        if let Err(error) = fs::remove_file(self.dir.join(file_name(number, &stored))) {
            tracing::warn!(%error, "a capture could not be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::capture_file;

    fn slot() -> SlotName {
        "digits".parse().unwrap()
    }

    #[test]
    fn what_was_put_is_there_after_a_kill_and_the_rest_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(dir.path(), 1 << 20).unwrap();
        let file = capture_file(1, true);
        let id = ring.put(&file, true, &slot()).unwrap();
        assert_eq!(ring.put(&file, true, &slot()).unwrap(), id, "the same file is kept once");
        drop(ring); // as after kill -9: nothing is written on the way out
        fs::write(dir.path().join("0000000000000009-a-12.efcap.tmp"), b"half").unwrap();
        fs::write(dir.path().join("strange"), b"?").unwrap();
        let mut ring = Ring::open(dir.path(), 1 << 20).unwrap();
        assert_eq!((ring.len(), fs::read_dir(dir.path()).unwrap().count()), (1, 1));
        let (number, stored) = ring.next(|_| true).unwrap();
        assert_eq!((stored.id, stored.slot), (id, None));
        let (bytes, of) = ring.read(number).unwrap();
        assert_eq!((bytes, of), (file, slot()));
        ring.remove(number);
        assert_eq!((ring.len(), ring.bytes(), fs::read_dir(dir.path()).unwrap().count()), (0, 0, 0));
    }

    #[test]
    fn the_audit_sample_goes_last_and_is_sent_first() {
        let dir = tempfile::tempdir().unwrap();
        let each = capture_file(0, false).len() as u64 + 40; // noise compresses to nearly the same
        let mut ring = Ring::open(dir.path(), each * 4).unwrap();
        let kinds = [true, false, true, false, false, true];
        let ids: Vec<_> = (0..)
            .zip(kinds)
            .map(|(n, audit)| ring.put(&capture_file(n, audit), audit, &slot()).unwrap())
            .collect();
        assert_eq!((ring.evicted, ring.evicted_audit), (2, 0));
        assert!(ring.bytes() <= each * 4);
        let order: Vec<_> = std::iter::from_fn(|| {
            let (number, stored) = ring.next(|_| true)?;
            ring.remove(number);
            Some(stored.id)
        })
        .collect();
        assert_eq!(order, [ids[0], ids[2], ids[5], ids[4]]);
        ring.put(&capture_file(9, true), true, &slot()).unwrap();
        ring.set_limit(10);
        assert_eq!((ring.len(), ring.evicted_audit), (0, 1));
        assert!(matches!(ring.put(&capture_file(9, true), true, &slot()), Err(RingError::TooLarge { .. })));
    }

    #[test]
    fn a_damaged_file_is_removed_and_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(dir.path(), 1 << 20).unwrap();
        ring.put(&capture_file(1, false), false, &slot()).unwrap();
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let (number, _) = ring.next(|_| true).unwrap();
        assert!(ring.read(number).is_none() && ring.is_empty());
    }
}
