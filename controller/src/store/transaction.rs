//! A set of changes that happens as a whole or not at all.

use std::collections::BTreeSet;

use serde::Serialize;

use super::document::{Expect, Kind, MAX_BODY_BYTES, Revision, check_id};
use super::error::StoreError;

/// Most operations in one transaction.
pub const MAX_OPERATIONS: usize = 4_096;
/// Most bytes of bodies in one transaction.
pub const MAX_TRANSACTION_BYTES: usize = 8 << 20;

/// What happens to one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Put(Vec<u8>),
    /// Deleting what is not there is fine unless the expectation says otherwise.
    Delete,
    /// Changes nothing: the transaction only succeeds if the expectation holds.
    Check,
}

/// A change to one document and what its writer believes about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    pub kind: Kind,
    pub id: String,
    pub expect: Expect,
    pub change: Change,
}

/// An entry to add at the end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    pub log: String,
    pub body: Vec<u8>,
}

/// Changes to documents and additions to logs, built in a chain and handed to
/// [`FleetStore::commit`](super::FleetStore::commit).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    pub operations: Vec<Operation>,
    pub appends: Vec<Append>,
}

/// What a transaction became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Of every document it put.
    pub revision: Revision,
    /// Of every append, in the order they were given.
    pub log_seqs: Vec<u64>,
}

impl Transaction {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn put(self, kind: Kind, id: impl Into<String>, expect: Expect, body: impl Into<Vec<u8>>) -> Self {
        self.operation(kind, id, expect, Change::Put(body.into()))
    }

    /// Puts `value` as JSON.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if `value` has no JSON form (a map with keys that are not strings).
    pub fn put_json<T: Serialize + ?Sized>(
        self,
        kind: Kind,
        id: impl Into<String>,
        expect: Expect,
        value: &T,
    ) -> Result<Self, StoreError> {
        let id = id.into();
        match serde_json::to_vec(value) {
            Ok(body) => Ok(self.put(kind, id, expect, body)),
            Err(source) => Err(StoreError::Unreadable { kind, id, source }),
        }
    }

    #[must_use]
    pub fn delete(self, kind: Kind, id: impl Into<String>, expect: Expect) -> Self {
        self.operation(kind, id, expect, Change::Delete)
    }

    /// Makes the transaction depend on a document that it does not change.
    #[must_use]
    pub fn check(self, kind: Kind, id: impl Into<String>, expect: Expect) -> Self {
        self.operation(kind, id, expect, Change::Check)
    }

    #[must_use]
    pub fn append(mut self, log: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        self.appends.push(Append { log: log.into(), body: body.into() });
        self
    }

    fn operation(mut self, kind: Kind, id: impl Into<String>, expect: Expect, change: Change) -> Self {
        self.operations.push(Operation { kind, id: id.into(), expect, change });
        self
    }

    /// Bytes of all bodies.
    pub fn body_bytes(&self) -> usize {
        let puts = self.operations.iter().map(|operation| match &operation.change {
            Change::Put(body) => body.len(),
            Change::Delete | Change::Check => 0,
        });
        puts.chain(self.appends.iter().map(|append| append.body.len())).sum()
    }

    /// Checks everything that needs no stored state. Every home calls it first.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`]; [`StoreError::Invalid`] for bad ids, an empty transaction or a document
    /// named twice.
    pub fn check_form(&self) -> Result<(), StoreError> {
        let count = self.operations.len() + self.appends.len();
        if count == 0 {
            return Err(StoreError::invalid("a transaction", "it changes nothing"));
        }
        if count > MAX_OPERATIONS {
            let reason = format!("it has {count} operations, more than {MAX_OPERATIONS}");
            return Err(StoreError::invalid("a transaction", reason));
        }
        let mut seen = BTreeSet::new();
        for operation in &self.operations {
            check_id(operation.kind.as_str(), &operation.id)?;
            if let Change::Put(body) = &operation.change {
                check_body(|| format!("{} `{}`", operation.kind, operation.id), body)?;
            }
            if !seen.insert((operation.kind, operation.id.as_str())) {
                let what = format!("{} `{}`", operation.kind, operation.id);
                return Err(StoreError::invalid(what, "one transaction names it twice"));
            }
        }
        for append in &self.appends {
            check_id("log", &append.log)?;
            check_body(|| format!("an entry of log `{}`", append.log), &append.body)?;
        }
        let size = self.body_bytes();
        if size > MAX_TRANSACTION_BYTES {
            let (size, limit) = (size as u64, MAX_TRANSACTION_BYTES as u64);
            return Err(StoreError::TooLarge { what: "a transaction".to_owned(), size, limit });
        }
        Ok(())
    }
}

fn check_body(what: impl FnOnce() -> String, body: &[u8]) -> Result<(), StoreError> {
    if body.len() <= MAX_BODY_BYTES {
        return Ok(());
    }
    Err(StoreError::TooLarge { what: what(), size: body.len() as u64, limit: MAX_BODY_BYTES as u64 })
}
