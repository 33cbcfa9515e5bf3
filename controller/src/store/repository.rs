//! Documents of one kind as values of one type, stored as JSON.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Document, Expect, FleetStore, Kind, Page, Revision, Scan, StoreError, Transaction};

/// How often [`Repository::update`] reads again after losing to another writer. Each loss means that somebody
/// else got ahead, so this only ends when more than this many writers queue up for one document.
const MAX_ATTEMPTS: usize = 100;

/// A value and the revision it was read or written at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    pub revision: Revision,
    pub value: T,
}

/// The documents of one kind, read and written as `T`. Cheap to clone.
pub struct Repository<T> {
    store: Arc<dyn FleetStore>,
    kind: Kind,
    holds: PhantomData<fn() -> T>,
}

impl<T> Clone for Repository<T> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), kind: self.kind, holds: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned + Send> Repository<T> {
    pub fn new(store: Arc<dyn FleetStore>, kind: Kind) -> Self {
        Self { store, kind, holds: PhantomData }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The document, or `None`.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if its JSON is not a `T`, and whatever the store says.
    pub async fn find_json(&self, id: &str) -> Result<Option<Versioned<T>>, StoreError> {
        let found = self.store.get(self.kind, id).await?;
        found.map(|document| self.parse(id, &document)).transpose()
    }

    /// The document.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], and as [`Self::find_json`].
    pub async fn get_json(&self, id: &str) -> Result<Versioned<T>, StoreError> {
        let found = self.find_json(id).await?;
        found.ok_or_else(|| StoreError::NotFound { kind: self.kind, id: id.to_owned() })
    }

    /// Writes one document on its own.
    ///
    /// # Errors
    /// [`StoreError::StaleRevision`] if `expect` does not hold.
    pub async fn put_json(&self, id: &str, expect: Expect, value: &T) -> Result<Revision, StoreError> {
        let transaction = self.stage(Transaction::new(), id, expect, value)?;
        Ok(self.store.commit(transaction).await?.revision)
    }

    /// Adds a put of this kind to a larger transaction.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] if `value` has no JSON form.
    pub fn stage(
        &self,
        transaction: Transaction,
        id: &str,
        expect: Expect,
        value: &T,
    ) -> Result<Transaction, StoreError> {
        transaction.put_json(self.kind, id, expect, value)
    }

    /// Deletes one document on its own.
    ///
    /// # Errors
    /// [`StoreError::StaleRevision`] if `expect` does not hold.
    pub async fn delete(&self, id: &str, expect: Expect) -> Result<(), StoreError> {
        self.store.commit(Transaction::new().delete(self.kind, id, expect)).await.map(|_| ())
    }

    /// Reads, changes and writes back; reads again when another writer was faster, at most 100 times, so
    /// `change` may run more than once.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::StaleRevision`] when all attempts were lost.
    pub async fn update(
        &self,
        id: &str,
        mut change: impl FnMut(T) -> T + Send,
    ) -> Result<Versioned<T>, StoreError> {
        self.try_update(id, |value| Ok::<T, StoreError>(change(value))).await
    }

    /// [`Self::update`] with a change that may refuse; its refusal ends the update and nothing is written.
    ///
    /// # Errors
    /// The refusal, or as [`Self::update`].
    pub async fn try_update<E: From<StoreError>>(
        &self,
        id: &str,
        mut change: impl FnMut(T) -> Result<T, E> + Send,
    ) -> Result<Versioned<T>, E> {
        let mut attempt = 1;
        loop {
            let Versioned { revision, value } = self.get_json(id).await?;
            let value = change(value)?;
            match self.put_json(id, Expect::Revision(revision), &value).await {
                Ok(revision) => return Ok(Versioned { revision, value }),
                Err(StoreError::StaleRevision { .. }) if attempt < MAX_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// One page of values in id order.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`] for the first document that is not a `T`.
    pub async fn list(&self, scan: Scan) -> Result<Page<Versioned<T>>, StoreError> {
        let page = self.store.scan(self.kind, scan).await?;
        let mut entries = Vec::with_capacity(page.entries.len());
        for (id, document) in page.entries {
            let value = self.parse(&id, &document)?;
            entries.push((id, value));
        }
        Ok(Page { entries, next: page.next })
    }

    /// All values whose id starts with `prefix` (empty: all), read page by page.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn list_all(&self, prefix: &str) -> Result<Vec<(String, Versioned<T>)>, StoreError> {
        let mut all = Vec::new();
        let mut scan = Scan::all().prefix(prefix);
        loop {
            let page = self.list(scan.clone()).await?;
            all.extend(page.entries);
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return Ok(all),
            }
        }
    }

    fn parse(&self, id: &str, document: &Document) -> Result<Versioned<T>, StoreError> {
        match serde_json::from_slice(&document.body) {
            Ok(value) => Ok(Versioned { revision: document.revision, value }),
            Err(source) => Err(StoreError::Unreadable { kind: self.kind, id: id.to_owned(), source }),
        }
    }
}
