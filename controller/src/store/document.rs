//! The words of the store: kinds, ids, revisions, documents, pages and log entries.

use std::fmt;

use super::error::StoreError;

/// Largest body of a document or a log entry, in bytes. Larger things are blobs.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Longest id of a document and longest name of a log, in bytes.
pub const MAX_ID_BYTES: usize = 256;
/// Longest name of a kind, in bytes.
pub(crate) const MAX_KIND_BYTES: usize = 32;
/// Most entries one page of a scan or one read of a log returns, whatever was asked for.
pub const MAX_PAGE: usize = 10_000;
/// A page ends early once its bodies add up to this many bytes.
pub const MAX_PAGE_BYTES: usize = 16 << 20;

/// What sort of thing a document is: `device`, `rollout`. The name is part of the stored format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(&'static str);

impl Kind {
    /// `name`: 1 to 32 of `a-z`, `0-9` and `-`.
    ///
    /// # Panics
    /// On any other name; in a `const` that stops the build.
    pub const fn new(name: &'static str) -> Self {
        assert!(is_kind_name(name), "a kind is 1 to 32 of a-z, 0-9 and -");
        Self(name)
    }

    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

pub(crate) const fn is_kind_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_KIND_BYTES {
        return false;
    }
    let mut at = 0;
    while at < bytes.len() {
        if !matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'-') {
            return false;
        }
        at += 1;
    }
    true
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Checks an id of a document or a name of a log: 1 to 256 bytes of UTF-8 without control characters.
///
/// # Errors
/// [`StoreError::Invalid`].
pub fn check_id(what: &str, id: &str) -> Result<(), StoreError> {
    let reason = if id.is_empty() {
        "it is empty".to_owned()
    } else if id.len() > MAX_ID_BYTES {
        format!("it has {} bytes, more than {MAX_ID_BYTES}", id.len())
    } else if id.chars().any(char::is_control) {
        "it contains a control character".to_owned()
    } else {
        return Ok(());
    };
    let shown: String = id.chars().take(64).collect();
    Err(StoreError::invalid(format!("{what} {shown:?}"), reason))
}

/// Names one state of one document. Every transaction gets a higher number than all before it, and the
/// documents it puts carry that number, so no revision is ever used twice, not even after a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "revision {}", self.0)
    }
}

/// What a writer believes about the document it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is none.
    Absent,
    /// It is exactly this one.
    Revision(Revision),
    /// No matter what: the last writer wins.
    Any,
}

impl Expect {
    /// True if a document in the state `found` is what was expected.
    pub fn holds(self, found: Option<Revision>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Revision(revision) => found == Some(revision),
            Self::Any => true,
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("no document"),
            Self::Revision(revision) => revision.fmt(f),
            Self::Any => f.write_str("anything"),
        }
    }
}

/// A stored document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub revision: Revision,
    pub body: Vec<u8>,
}

/// Which documents of a kind to list, in the byte order of their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Only ids that start with this.
    pub prefix: Option<String>,
    /// Only ids greater than this one: the `next` of the page before.
    pub after: Option<String>,
    /// At most this many; 0 and numbers over [`MAX_PAGE`] mean [`MAX_PAGE`].
    pub limit: usize,
}

impl Scan {
    /// Everything of the kind, page by page.
    pub fn all() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    #[must_use]
    pub fn after(mut self, id: impl Into<String>) -> Self {
        self.after = Some(id.into());
        self
    }

    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }
}

/// `0` and everything above the maximum mean the maximum.
pub(crate) fn page_limit(asked: usize) -> usize {
    if asked == 0 { MAX_PAGE } else { asked.min(MAX_PAGE) }
}

/// Part of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// Id and value, in id order.
    pub entries: Vec<(String, T)>,
    /// Where the next page begins ([`Scan::after`]); `None` on the last one.
    pub next: Option<String>,
}

/// One entry of an append-only log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// 1 for the first entry of a log, then without gaps.
    pub seq: u64,
    pub body: Vec<u8>,
}
