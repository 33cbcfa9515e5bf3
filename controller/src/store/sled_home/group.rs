//! Several transactions checked against what is stored and against each other, gathered into one sled batch.

use std::collections::HashMap;

use super::open::Engine;
use super::read;
use super::record::{self, Totals};
use crate::store::{Change, Committed, Revision, StoreError, Transaction};

/// Transactions on their way into one batch. Each sees the ones staged before it.
pub(super) struct Group<'a> {
    engine: &'a Engine,
    pub(super) totals: Totals,
    /// Newest number of each log, as far as known.
    pub(super) heads: HashMap<String, u64>,
    /// Revision of every record that the group touched; `None` once deleted.
    touched: HashMap<Vec<u8>, Option<u64>>,
    batch: sled::Batch,
}

impl<'a> Group<'a> {
    pub(super) fn new(engine: &'a Engine, totals: Totals, heads: HashMap<String, u64>) -> Self {
        Self { engine, totals, heads, touched: HashMap::new(), batch: sled::Batch::default() }
    }

    /// Adds one transaction, or nothing of it.
    ///
    /// # Errors
    /// As [`FleetStore::commit`](crate::store::FleetStore::commit).
    pub(super) fn stage(&mut self, transaction: Transaction) -> Result<Committed, StoreError> {
        // Everything that can fail comes first.
        let mut before = Vec::with_capacity(transaction.operations.len());
        for operation in &transaction.operations {
            let key = record::document_key(operation.kind.as_str(), &operation.id);
            let found = self.revision_of(&key)?;
            if !operation.expect.holds(found.map(Revision)) {
                return Err(StoreError::StaleRevision {
                    kind: operation.kind,
                    id: operation.id.clone(),
                    expected: operation.expect,
                    found: found.map(Revision),
                });
            }
            before.push((key, found));
        }
        for append in &transaction.appends {
            if !self.heads.contains_key(&append.log) {
                let head = read::log_head(self.engine, &append.log)?;
                self.heads.insert(append.log.clone(), head);
            }
        }

        self.totals.revision += 1;
        let revision = self.totals.revision;
        for (operation, (key, found)) in transaction.operations.into_iter().zip(before) {
            match operation.change {
                Change::Check => {}
                Change::Put(body) => {
                    self.forget(&key, found);
                    self.put(key, revision, &body);
                }
                Change::Delete => {
                    self.forget(&key, found);
                    self.batch.remove(key.as_slice());
                    self.touched.insert(key, None);
                }
            }
        }
        let mut log_seqs = Vec::with_capacity(transaction.appends.len());
        for append in transaction.appends {
            let seq = self.heads.get(&append.log).copied().unwrap_or(0) + 1;
            self.put(record::log_key(&append.log, seq), revision, &append.body);
            self.heads.insert(append.log, seq);
            log_seqs.push(seq);
        }
        Ok(Committed { revision: Revision(revision), log_seqs })
    }

    /// The batch, totals included, and what holds once it is applied.
    pub(super) fn finish(mut self) -> (sled::Batch, Totals, HashMap<String, u64>) {
        self.batch.insert(record::TOTALS_KEY, self.totals.encode());
        (self.batch, self.totals, self.heads)
    }

    fn revision_of(&self, key: &[u8]) -> Result<Option<u64>, StoreError> {
        if let Some(found) = self.touched.get(key) {
            return Ok(*found);
        }
        match self.engine.tree.get(key).map_err(read::failed)? {
            Some(value) => Ok(Some(read::decode(key, &value)?.0)),
            None => Ok(None),
        }
    }

    fn forget(&mut self, key: &[u8], found: Option<u64>) {
        if let Some(old) = found {
            self.totals.remove(key, old);
        }
    }

    fn put(&mut self, key: Vec<u8>, revision: u64, body: &[u8]) {
        self.totals.add(&key, revision);
        self.batch.insert(key.as_slice(), record::encode(&key, revision, body));
        self.touched.insert(key, Some(revision));
    }
}
