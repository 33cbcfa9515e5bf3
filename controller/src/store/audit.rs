//! Who changed what: an append-only log in which every entry carries the hash of the one before it.
//!
//! An entry is written in the same transaction as the change it describes, so there is no change without an
//! entry and no entry without its change. The head of the chain (number and hash of the newest entry) is a
//! document that every audited transaction replaces by compare-and-set. [`verify_chain`] finds an edited,
//! removed, reordered or inserted entry, and with the head also a cut end; whoever can rewrite everything, head
//! included, is only found by a head kept elsewhere (backups carry it).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use edgefleet_shared::digest::{decode_hex, encode_hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Committed, Expect, FleetStore, Kind, LogEntry, Revision, StoreError, Transaction};

/// Name of the log that holds the entries.
pub const AUDIT_LOG: &str = "audit";
const HEAD_KIND: Kind = Kind::new("audit-head");
const HEAD_ID: &str = "head";
/// Separates these hashes from all others and names the version of [`AuditEntry::compute_hash`].
const DOMAIN: &[u8] = b"edgefleet audit entry v1\0";
/// Only writers of another process can get ahead of the gate of [`AuditLog`]; each loss means one of them did.
const MAX_ATTEMPTS: usize = 100;
const VERIFY_PAGE: usize = 1_000;

/// SHA-256 of an entry, written as 64 hex digits. The first entry follows 64 zeros.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct AuditHash([u8; 32]);

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_hex(&self.0))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 64 lowercase hex digits.
#[derive(Debug, thiserror::Error)]
#[error("an audit hash is 64 lowercase hex digits, this has {found} characters or others among them")]
pub struct AuditHashError {
    found: usize,
}

impl FromStr for AuditHash {
    type Err = AuditHashError;

    fn from_str(text: &str) -> Result<Self, AuditHashError> {
        let mut bytes = [0; 32];
        match decode_hex(text, &mut bytes) {
            Some(()) => Ok(Self(bytes)),
            None => Err(AuditHashError { found: text.len() }),
        }
    }
}

impl Serialize for AuditHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AuditHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What the caller says about a change. Times are RFC 3339 and come from the caller's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditDraft {
    pub at: String,
    /// The token, user or program part that asked: `token:ci`, `controller`.
    pub who: String,
    /// `noun.verb`: `device.remove`.
    pub action: String,
    /// What it was done to: `device/d-17`.
    pub subject: String,
    /// State before, as JSON text or short words; never a secret.
    pub before: Option<String>,
    pub after: Option<String>,
    /// Why, in the words of whoever did it.
    pub note: Option<String>,
}

/// One link of the chain, stored as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// 1 for the first.
    pub seq: u64,
    pub at: String,
    pub who: String,
    pub action: String,
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    pub prev_hash: AuditHash,
    pub hash: AuditHash,
}

impl AuditEntry {
    /// The entry that follows `head`.
    pub fn link(head: Head, draft: &AuditDraft) -> Self {
        let AuditDraft { at, who, action, subject, before, after, note } = draft.clone();
        let (seq, prev_hash) = (head.seq + 1, head.hash);
        let hash = AuditHash::default();
        let mut entry = Self { seq, at, who, action, subject, before, after, note, prev_hash, hash };
        entry.hash = entry.compute_hash();
        entry
    }

    /// SHA-256 over the domain, the number (8 bytes, big-endian), every text with a presence byte and its
    /// length (8 bytes, big-endian) before it, and the previous hash: no two entries have the same encoding.
    pub fn compute_hash(&self) -> AuditHash {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(self.seq.to_be_bytes());
        let texts = [&self.at, &self.who, &self.action, &self.subject].map(Some);
        for text in texts.into_iter().chain([&self.before, &self.after, &self.note].map(Option::as_ref)) {
            match text {
                Some(text) => {
                    hash.update([1]);
                    hash.update((text.len() as u64).to_be_bytes());
                    hash.update(text);
                }
                None => hash.update([0]),
            }
        }
        hash.update(self.prev_hash.0);
        AuditHash(hash.finalize().into())
    }

    fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

/// Number and hash of the newest entry; number 0 and zeros before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Head {
    pub seq: u64,
    pub hash: AuditHash,
}

/// Where a chain stops being whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the audit log is broken at entry {seq}: {how}")]
pub struct ChainBreak {
    /// The number that the broken entry has or should have.
    pub seq: u64,
    pub how: Break,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    #[error("entry {found} is in its place")]
    WrongNumber { found: u64 },
    #[error("it follows an entry with another hash")]
    WrongLink,
    #[error("its text does not have the hash it was written with")]
    Edited,
    #[error("the log ends before it, the newest entry had number {head}")]
    Cut { head: u64 },
    #[error("it is newer than the recorded head, number {head}")]
    BeyondHead { head: u64 },
    #[error("it is not the entry that was recorded as the head")]
    OtherHead,
    #[error("it cannot be read: {reason}")]
    Unreadable { reason: String },
}

/// Follows a chain from its first entry; with `head`, also checks that it ends there.
///
/// # Errors
/// The first [`ChainBreak`].
pub fn verify_chain(
    entries: impl IntoIterator<Item = AuditEntry>,
    head: Option<&Head>,
) -> Result<Head, ChainBreak> {
    let mut at = Head::default();
    for entry in entries {
        at = follow(at, &entry, head)?;
    }
    check_end(at, head)
}

fn follow(at: Head, entry: &AuditEntry, head: Option<&Head>) -> Result<Head, ChainBreak> {
    let seq = at.seq + 1;
    let broken = |how| Err(ChainBreak { seq, how });
    if entry.seq != seq {
        return broken(Break::WrongNumber { found: entry.seq });
    }
    if entry.prev_hash != at.hash {
        return broken(Break::WrongLink);
    }
    if entry.compute_hash() != entry.hash {
        return broken(Break::Edited);
    }
    match head {
        Some(head) if seq > head.seq => broken(Break::BeyondHead { head: head.seq }),
        Some(head) if seq == head.seq && entry.hash != head.hash => broken(Break::OtherHead),
        Some(_) | None => Ok(entry.head()),
    }
}

fn check_end(at: Head, head: Option<&Head>) -> Result<Head, ChainBreak> {
    match head {
        Some(head) if at.seq < head.seq => {
            Err(ChainBreak { seq: at.seq + 1, how: Break::Cut { head: head.seq } })
        }
        Some(_) | None => Ok(at),
    }
}

/// Why a stored chain could not be confirmed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broken(#[from] ChainBreak),
}

/// A committed transaction and the entries that describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    pub committed: Committed,
    pub entries: Vec<AuditEntry>,
}

/// The audit log of a store. Share one per process: its gate lets writers queue instead of losing to each other.
pub struct AuditLog {
    store: Arc<dyn FleetStore>,
    gate: tokio::sync::Mutex<()>,
}

impl AuditLog {
    pub fn new(store: Arc<dyn FleetStore>) -> Self {
        Self { store, gate: tokio::sync::Mutex::new(()) }
    }

    /// Commits `transaction` together with one entry per draft. Entries come after the transaction's own
    /// appends in `committed.log_seqs`.
    ///
    /// # Errors
    /// As [`FleetStore::commit`]: a stale expectation of `transaction` itself comes back to the caller.
    pub async fn commit(
        &self,
        transaction: Transaction,
        drafts: &[AuditDraft],
    ) -> Result<Recorded, StoreError> {
        let _gate = self.gate.lock().await;
        let mut attempt = 1;
        loop {
            let (head, revision) = self.stored_head().await?;
            let (staged, entries) = Self::stage(transaction.clone(), head, revision, drafts)?;
            match self.store.commit(staged).await {
                Ok(committed) => return Ok(Recorded { committed, entries }),
                Err(StoreError::StaleRevision { kind: HEAD_KIND, .. }) if attempt < MAX_ATTEMPTS => {
                    attempt += 1
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds the entries and the new head to a transaction. `revision`: of the head document that `head` came
    /// from, `None` before the first entry.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] never happens in practice: entries are plain texts.
    pub fn stage(
        mut transaction: Transaction,
        mut head: Head,
        revision: Option<Revision>,
        drafts: &[AuditDraft],
    ) -> Result<(Transaction, Vec<AuditEntry>), StoreError> {
        let mut entries = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let entry = AuditEntry::link(head, draft);
            let body = serde_json::to_vec(&entry).map_err(|source| StoreError::Unreadable {
                kind: HEAD_KIND,
                id: HEAD_ID.to_owned(),
                source,
            })?;
            transaction = transaction.append(AUDIT_LOG, body);
            head = entry.head();
            entries.push(entry);
        }
        let expect = revision.map_or(Expect::Absent, Expect::Revision);
        Ok((transaction.put_json(HEAD_KIND, HEAD_ID, expect, &head)?, entries))
    }

    /// The newest entry's number and hash, and the revision of the document that says so.
    ///
    /// # Errors
    /// As [`FleetStore::get`].
    pub async fn stored_head(&self) -> Result<(Head, Option<Revision>), StoreError> {
        let Some(document) = self.store.get(HEAD_KIND, HEAD_ID).await? else {
            return Ok((Head::default(), None));
        };
        match serde_json::from_slice(&document.body) {
            Ok(head) => Ok((head, Some(document.revision))),
            Err(source) => Err(StoreError::Unreadable { kind: HEAD_KIND, id: HEAD_ID.to_owned(), source }),
        }
    }

    /// Entries from number `from` (1 is the first) on, at most `limit`. Does not check the chain.
    ///
    /// # Errors
    /// [`VerifyError::Broken`] for an entry that is not one.
    pub async fn read(&self, from: u64, limit: usize) -> Result<Vec<AuditEntry>, VerifyError> {
        let found = self.store.log_read(AUDIT_LOG, from, limit).await?;
        found.iter().map(|entry| parse(entry).map_err(VerifyError::Broken)).collect()
    }

    /// Follows the whole stored chain up to its head, a thousand entries at a time.
    ///
    /// # Errors
    /// The first break, or as [`FleetStore::log_read`].
    pub async fn verify(&self) -> Result<Head, VerifyError> {
        // Log and head change together, so a head read after the log's end can only be as new or newer.
        let end = self.store.log_head(AUDIT_LOG).await?;
        let (head, _) = self.stored_head().await?;
        if end > head.seq {
            return Err(ChainBreak { seq: head.seq + 1, how: Break::BeyondHead { head: head.seq } }.into());
        }
        let mut at = Head::default();
        while at.seq < head.seq {
            let wanted = usize::try_from(head.seq - at.seq).unwrap_or(VERIFY_PAGE).min(VERIFY_PAGE);
            let entries = self.read(at.seq + 1, wanted).await?;
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                at = follow(at, entry, Some(&head))?;
            }
        }
        Ok(check_end(at, Some(&head))?)
    }
}

fn parse(found: &LogEntry) -> Result<AuditEntry, ChainBreak> {
    let unreadable = |reason| ChainBreak { seq: found.seq, how: Break::Unreadable { reason } };
    let entry: AuditEntry =
        serde_json::from_slice(&found.body).map_err(|source| unreadable(source.to_string()))?;
    if entry.seq != found.seq {
        return Err(ChainBreak { seq: found.seq, how: Break::WrongNumber { found: entry.seq } });
    }
    Ok(entry)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
