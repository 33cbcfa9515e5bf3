//! The controller's copy of the chain: files on disk, the newest version in memory, a signal on change.

use super::{chain::TrustChain, durable};
use bytes::Bytes;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    message::TrustHead,
    trust::{Envelope, Trust, TrustError, envelope::MAX_ENVELOPE_BYTES},
};
use parking_lot::{Mutex, RwLock};
use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::sync::watch;

/// Why the chain could not be read or extended.
#[derive(Debug, thiserror::Error)]
pub enum TrustStoreError {
    #[error("could not {action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("trust document `{}` is not acceptable", path.display())]
    Stored { path: PathBuf, source: TrustError },
    #[error("`{}` begins with version {found}; version 1 must be there, restore it from a backup", dir.display())]
    NoFirst { dir: PathBuf, found: u64 },
    #[error("trust documents {} to {} are missing in `{}`; restore them from a backup", missing.0, missing.1, dir.display())]
    Gap { dir: PathBuf, missing: (u64, u64) },
    #[error("the trust document was refused")]
    Refused { source: TrustError },
    #[error("trust {version} exists already with other content; propose again from the newest one")]
    Taken { version: u64 },
}

/// What became of a document that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    New(u64),
    /// Exactly these bytes were there before.
    Known(u64),
}

/// All versions ever installed. Devices may ask for any of them.
#[derive(Debug)]
pub struct TrustStore {
    dir: PathBuf,
    chain: RwLock<TrustChain>,
    /// Held over check, write and publication: one document at a time.
    gate: Mutex<()>,
    head: watch::Sender<TrustHead>,
}

impl TrustStore {
    /// Reads and checks every version in `dir`; `None` if there is none yet.
    ///
    /// # Errors
    /// [`TrustStoreError`]: a damaged chain is never shortened silently.
    pub fn open(dir: &Path) -> Result<Option<Self>, TrustStoreError> {
        let versions = versions(dir)?;
        let (Some(&first), Some(&last)) = (versions.first(), versions.last()) else { return Ok(None) };
        if first != 1 {
            return Err(TrustStoreError::NoFirst { dir: dir.to_owned(), found: first });
        }
        for pair in versions.windows(2) {
            if pair[1] != pair[0] + 1 {
                let missing = (pair[0] + 1, pair[1] - 1);
                return Err(TrustStoreError::Gap { dir: dir.to_owned(), missing });
            }
        }
        let (path, raw) = load(dir, 1)?;
        let mut chain = TrustChain::start(raw).map_err(|source| TrustStoreError::Stored { path, source })?;
        for version in 2..=last {
            let (path, raw) = load(dir, version)?;
            chain.extend(raw).map_err(|source| TrustStoreError::Stored { path, source })?;
        }
        if chain.current().version != last {
            return Err(TrustStoreError::NoFirst { dir: dir.to_owned(), found: chain.current().version });
        }
        Ok(Some(Self::with(dir, chain)))
    }

    /// Writes the first document.
    ///
    /// # Errors
    /// [`TrustStoreError`]; fails if there is one already.
    pub fn create(dir: &Path, raw: Bytes) -> Result<Self, TrustStoreError> {
        let chain = TrustChain::start(raw.clone()).map_err(|source| TrustStoreError::Refused { source })?;
        durable::private_dir(dir).map_err(|source| failed("create", dir, source))?;
        write(dir, chain.current().version, &raw)?;
        Ok(Self::with(dir, chain))
    }

    fn with(dir: &Path, chain: TrustChain) -> Self {
        let head = watch::Sender::new(chain.head());
        Self { dir: dir.to_owned(), chain: RwLock::new(chain), gate: Mutex::new(()), head }
    }

    /// Checks and keeps version N+1. Durable when this returns; blocks on the disk.
    ///
    /// # Errors
    /// [`TrustStoreError`]; nothing changed then.
    pub fn install(&self, raw: &[u8]) -> Result<Installed, TrustStoreError> {
        let _gate = self.gate.lock();
        let mut chain = self.chain.read().clone();
        if let Some(version) = claimed_version(raw)
            && let Some(known) = chain.version(version)
        {
            return if known == raw {
                Ok(Installed::Known(version))
            } else {
                Err(TrustStoreError::Taken { version })
            };
        }
        let raw = Bytes::copy_from_slice(raw);
        chain.extend(raw.clone()).map_err(|source| TrustStoreError::Refused { source })?;
        let version = chain.current().version;
        write(&self.dir, version, &raw)?;
        let head = chain.head();
        *self.chain.write() = chain;
        self.head.send_replace(head);
        Ok(Installed::New(version))
    }

    /// The newest document.
    pub fn current(&self) -> Trust {
        self.chain.read().current().clone()
    }

    /// The newest document's signed bytes.
    pub fn current_bytes(&self) -> Bytes {
        let chain = self.chain.read();
        chain.version(chain.current().version).cloned().unwrap_or_default()
    }

    /// The signed bytes of a version.
    pub fn version(&self, version: u64) -> Option<Bytes> {
        self.chain.read().version(version).cloned()
    }

    /// Signed documents from `version` to the newest, oldest first.
    pub fn since(&self, version: u64) -> Vec<Bytes> {
        self.chain.read().since(version).to_vec()
    }

    /// Digest of the newest document, the pin that join codes carry.
    pub fn pin(&self) -> EnvelopeDigest {
        self.head().digest
    }

    /// What `trust/head` announces now.
    pub fn head(&self) -> TrustHead {
        self.head.borrow().clone()
    }

    /// Tells when the head moved; holds the present one from the start.
    pub fn subscribe(&self) -> watch::Receiver<TrustHead> {
        self.head.subscribe()
    }
}

/// The version a document claims, unchecked.
fn claimed_version(raw: &[u8]) -> Option<u64> {
    let payload = Envelope::parse(raw).ok()?.payload().ok()?;
    serde_json::from_slice::<Trust>(&payload).ok().map(|trust| trust.version)
}

/// Numbers of the files `N.json`, sorted. Others (a temp file of a cut write) are not ours to judge.
fn versions(dir: &Path) -> Result<Vec<u64>, TrustStoreError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(source) => return Err(failed("read", dir, source)),
    };
    let mut versions = Vec::new();
    for entry in entries {
        let name = entry.map_err(|source| failed("read", dir, source))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::parse::<u64>);
        versions.extend(number.and_then(Result::ok).filter(|n| *n > 0));
    }
    versions.sort_unstable();
    versions.dedup();
    Ok(versions)
}

fn path_of(dir: &Path, version: u64) -> PathBuf {
    dir.join(format!("{version}.json"))
}

fn load(dir: &Path, version: u64) -> Result<(PathBuf, Bytes), TrustStoreError> {
    let path = path_of(dir, version);
    match durable::read(&path, MAX_ENVELOPE_BYTES as u64) {
        Ok(bytes) => Ok((path, bytes.into())),
        Err(source) => Err(failed("read", &path, source)),
    }
}

fn write(dir: &Path, version: u64, raw: &[u8]) -> Result<(), TrustStoreError> {
    let path = path_of(dir, version);
    durable::write_new(&path, raw, 0o644).map_err(|source| failed("write", &path, source))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> TrustStoreError {
    TrustStoreError::Io { action, path: path.to_owned(), source }
}
