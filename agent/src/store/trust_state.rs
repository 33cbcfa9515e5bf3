//! Where a device keeps what it must remember of trust.
//!
//! `<dir>/trust.a|b` hold the [`DeviceTrust`]; `<dir>/chain/NNN.json` every trust document that led
//! there, as its raw signed envelope, the pinned one first. If both state files are unreadable or
//! gone, the chain is walked again from its start, a fresh nonce is drawn, and only a desired state
//! that answers it is accepted: a power cut must not switch replay protection off.

use super::{
    durable::{DurableSlots, Loaded, SaveError},
    files::sync_folder,
};
use crate::failpoint;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    digest::encode_hex,
    trust::{DeviceTrust, TrustError, envelope::MAX_ENVELOPE_BYTES},
};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// Why there is no trust to start from.
#[derive(Debug, thiserror::Error)]
pub enum TrustStoreError {
    #[error("could not read or write trust under `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("no trust document lies under `{}`; enrol this device again", path.display())]
    NoChain { path: PathBuf },
    #[error("trust document `{}` is not usable; enrol this device again", path.display())]
    Chain { path: PathBuf, source: TrustError },
    #[error("trust state could not be saved")]
    Save(#[from] SaveError),
}

/// The trust state with its home. Every change is durable before the method returns.
#[derive(Debug)]
pub struct TrustStore {
    dir: PathBuf,
    slots: DurableSlots<DeviceTrust>,
    trust: DeviceTrust,
    /// Why the former state was lost, if it was.
    lost: Option<String>,
}

impl TrustStore {
    /// At enrolment: starts from the document that came with the join code. Replaces what was there.
    ///
    /// # Errors
    /// [`TrustStoreError`]; nothing is written if the document does not match `pin`.
    pub fn create(dir: &Path, raw: &[u8], pin: EnvelopeDigest) -> Result<Self, TrustStoreError> {
        let io = |source| TrustStoreError::Io { path: dir.to_owned(), source };
        let trust = DeviceTrust::pinned(raw, pin)
            .map_err(|source| TrustStoreError::Chain { path: dir.to_owned(), source })?;
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
        let (mut slots, _) = DurableSlots::open(dir, "trust").map_err(io)?;
        write_chain(dir, trust.trust.version, raw).map_err(io)?;
        slots.save(&trust)?;
        Ok(Self { dir: dir.to_owned(), slots, trust, lost: None })
    }

    /// At every start. `random` becomes the nonce if the state was lost.
    ///
    /// # Errors
    /// [`TrustStoreError`] if the chain is unusable too: then only a new enrolment helps.
    pub fn open(dir: &Path, random: [u8; 16]) -> Result<Self, TrustStoreError> {
        let io = |source| TrustStoreError::Io { path: dir.to_owned(), source };
        let (mut slots, loaded) = DurableSlots::open(dir, "trust").map_err(io)?;
        let reason = match loaded {
            Loaded::Value(trust) => return Ok(Self { dir: dir.to_owned(), slots, trust, lost: None }),
            Loaded::Absent => "both state files are missing".to_owned(),
            Loaded::Lost(reason) => reason,
        };
        let mut trust = walk_chain(dir)?;
        trust.nonce = Some(encode_hex(&random));
        slots.save(&trust)?;
        Ok(Self { dir: dir.to_owned(), slots, trust, lost: Some(reason) })
    }

    pub fn trust(&self) -> &DeviceTrust {
        &self.trust
    }
    /// Why the state was lost at this start; `None` if it was not.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Makes `next` the state, durably.
    ///
    /// # Errors
    /// [`SaveError`]; the former state stays in force.
    pub fn set(&mut self, next: DeviceTrust) -> Result<(), SaveError> {
        if next != self.trust {
            self.slots.save(&next)?;
            self.trust = next;
        }
        Ok(())
    }

    /// Accepts and stores the next trust document.
    ///
    /// # Errors
    /// `Ok(Err(_))` if it is refused, [`TrustStoreError`] if it cannot be stored; the state is
    /// unchanged in both cases.
    pub fn advance(&mut self, raw: &[u8]) -> Result<Result<(), TrustError>, TrustStoreError> {
        let mut next = self.trust.clone();
        if let Err(refused) = next.advance(raw) {
            return Ok(Err(refused));
        }
        // First the chain: a state without the documents that led to it could not be rebuilt.
        write_chain(&self.dir, next.trust.version, raw)
            .map_err(|source| TrustStoreError::Io { path: self.dir.clone(), source })?;
        failpoint::hit("trust.chain-written");
        self.set(next)?;
        Ok(Ok(()))
    }
}

fn chain_path(dir: &Path, version: u64) -> PathBuf {
    dir.join("chain").join(format!("{version:020}.json"))
}

fn write_chain(dir: &Path, version: u64, raw: &[u8]) -> io::Result<()> {
    let folder = dir.join("chain");
    fs::create_dir_all(&folder)?;
    let temp = folder.join("new.tmp");
    let mut file = File::create(&temp)?;
    file.write_all(raw)?;
    file.sync_all()?;
    fs::rename(&temp, chain_path(dir, version))?;
    sync_folder(&folder)?;
    sync_folder(dir)
}

fn walk_chain(dir: &Path) -> Result<DeviceTrust, TrustStoreError> {
    let folder = dir.join("chain");
    let io = |source| TrustStoreError::Io { path: folder.clone(), source };
    let none = || TrustStoreError::NoChain { path: folder.clone() };
    let entries = match fs::read_dir(&folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(none()),
        other => other.map_err(io)?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    let mut paths = paths.into_iter();
    let first = paths.next().ok_or_else(none)?;
    let read = |path: &Path| -> Result<Vec<u8>, TrustStoreError> {
        let mut raw = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_ENVELOPE_BYTES as u64 + 1).read_to_end(&mut raw))
            .map_err(|source| TrustStoreError::Io { path: path.to_owned(), source })?;
        Ok(raw)
    };
    let raw = read(&first)?;
    // Its pin was checked before it was stored; its own signatures are checked again here.
    let mut trust = DeviceTrust::pinned(&raw, EnvelopeDigest::of(&raw))
        .map_err(|source| TrustStoreError::Chain { path: first, source })?;
    for path in paths {
        let raw = read(&path)?;
        trust.advance(&raw).map_err(|source| TrustStoreError::Chain { path, source })?;
    }
    Ok(trust)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::testing::Signers;

    #[test]
    fn trust_survives_restarts_and_the_chain_is_kept() {
        let signers = Signers::new();
        let dir = tempfile::tempdir().unwrap();
        let raw = signers.trust(1);
        let mut store = TrustStore::create(dir.path(), &raw, EnvelopeDigest::of(&raw)).unwrap();
        store.advance(&signers.trust(2)).unwrap().unwrap();
        store.advance(&signers.trust(3)).unwrap().unwrap();
        assert!(store.advance(&signers.trust(2)).unwrap().is_err());
        let before = store.trust().clone();
        drop(store);
        let store = TrustStore::open(dir.path(), [7; 16]).unwrap();
        assert_eq!((store.trust(), store.lost()), (&before, None));
    }

    #[test]
    fn a_lost_state_starts_from_the_stored_chain_and_asks_with_a_nonce() {
        for damage in ["removed", "torn"] {
            let signers = Signers::new();
            let dir = tempfile::tempdir().unwrap();
            let raw = signers.trust(1);
            let mut store = TrustStore::create(dir.path(), &raw, EnvelopeDigest::of(&raw)).unwrap();
            store.advance(&signers.trust(2)).unwrap().unwrap();
            drop(store);
            for side in ["trust.a", "trust.b"] {
                let path = dir.path().join(side);
                match damage {
                    "removed" => fs::remove_file(&path).unwrap(),
                    _ => fs::write(&path, b"EFD1").unwrap(),
                }
            }
            let store = TrustStore::open(dir.path(), [7; 16]).unwrap();
            assert!(store.lost().is_some());
            assert_eq!(store.trust().trust.version, 2, "not from the pin again");
            assert_eq!(store.trust().nonce, Some("07".repeat(16)));
            // The nonce stays the same over restarts, else an answer could never arrive.
            let again = TrustStore::open(dir.path(), [8; 16]).unwrap();
            assert_eq!(again.trust().nonce, Some("07".repeat(16)));
        }
    }

    #[test]
    fn a_wrong_pin_writes_nothing_and_a_lost_chain_says_enrol_again() {
        let signers = Signers::new();
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("trust");
        let wrong = TrustStore::create(&home, &signers.trust(1), EnvelopeDigest::of(b"x"));
        assert!(matches!(wrong, Err(TrustStoreError::Chain { source: TrustError::TrustPin, .. })));
        assert!(!home.exists());
        assert!(matches!(TrustStore::open(&home, [0; 16]), Err(TrustStoreError::NoChain { .. })));
    }
}
