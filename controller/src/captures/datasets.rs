//! Labelled snapshots: what is in one never changes, and its digest is what a bundle's lineage names.

use super::{
    error::CapturesError,
    record::{
        CaptureRecord, DATASET, DATASET_SCHEMA, DatasetManifest, DatasetRecord, DatasetRow, LabelState,
    },
    service::{Captures, Wanted, draft},
};
use crate::{
    blobs::MAX_READ_BYTES,
    fleet::Actor,
    store::{Expect, Repository, Transaction},
};
use bytes::Bytes;
use edgefleet_shared::{ids::ModelName, time::Timestamp};
use std::collections::BTreeMap;

/// Rows of one data set: its manifest stays readable in one go.
pub const MAX_ROWS: usize = 20_000;

fn is_name(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&name.len()) && name.starts_with(first) && name.chars().all(inner)
}

fn row(record: &CaptureRecord) -> Option<DatasetRow> {
    let document = &record.document;
    let reasons: Vec<_> = document.reasons.iter().map(|reason| reason.as_str()).collect();
    Some(DatasetRow {
        capture: record.digest,
        label: record.label.as_ref()?.label.clone()?,
        prediction: document.prediction.to_string(),
        device: document.prediction.device.to_string(),
        bundle: document.bundle.to_string(),
        at: document.at,
        predicted: document.predicted.as_ref().map(|predicted| predicted.class.clone()),
        confidence: document.predicted.as_ref().and_then(|predicted| predicted.confidence),
        reasons: reasons.join(" "),
        inclusion: document.inclusion,
        audit_share: document.audit.map(|audit| audit.share),
    })
}

impl Captures {
    fn datasets(&self) -> Repository<DatasetRecord> {
        Repository::new(self.store().clone(), DATASET)
    }

    /// Makes a snapshot of the labelled captures of `model` that fit.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn create_dataset(
        &self,
        actor: &Actor,
        name: &str,
        model: &ModelName,
        wanted: Wanted,
        now: Timestamp,
    ) -> Result<DatasetRecord, CapturesError> {
        if !is_name(name) {
            return Err(CapturesError::DatasetName { name: name.chars().take(80).collect() });
        }
        let exists = || CapturesError::DatasetExists { name: name.to_owned() };
        if self.datasets().find_json(name).await?.is_some() {
            return Err(exists());
        }
        let _still = self.hold_still().await;
        let wanted = Wanted { model: Some(model.clone()), state: Some(LabelState::Labelled), ..wanted };
        let (mut keys, mut found) = (Vec::new(), 0usize);
        self.each(&wanted, |key, _| {
            found += 1;
            if found <= MAX_ROWS {
                keys.push(key);
            }
            Ok::<(), CapturesError>(())
        })
        .await?;
        match found {
            0 => return Err(CapturesError::NothingLabelled),
            found if found > MAX_ROWS => return Err(CapturesError::TooManyRows { found, limit: MAX_ROWS }),
            _ => {}
        }
        // Held before the data set exists: a kill in between holds a few captures for nothing, and the same
        // command again finishes the work.
        let mut rows = Vec::with_capacity(keys.len());
        for key in &keys {
            let hold = |mut record: CaptureRecord| {
                record.datasets.insert(name.to_owned());
                record
            };
            // As it is when it is held: a label may have changed meanwhile.
            rows.extend(row(&self.records().update(key, hold).await?.value));
        }
        let mut classes: BTreeMap<String, u64> = BTreeMap::new();
        rows.iter().for_each(|row| *classes.entry(row.label.clone()).or_default() += 1);
        let manifest = DatasetManifest {
            schema: DATASET_SCHEMA,
            name: name.to_owned(),
            model: model.clone(),
            created: now,
            rows,
        };
        let bytes = serde_json::to_vec(&manifest).unwrap_or_default(); // plain data: cannot fail
        let stored = self.blobs().put(Bytes::from(bytes)).await?;
        let record = DatasetRecord {
            name: name.to_owned(),
            digest: stored.digest,
            size: stored.size,
            model: model.clone(),
            created: now,
            by: actor.name().to_owned(),
            rows: manifest.rows.len() as u64,
            classes,
        };
        let transaction = self.datasets().stage(Transaction::new(), name, Expect::Absent, &record)?;
        let after = format!("{} rows, {}", record.rows, record.digest);
        let draft = draft(actor, "dataset.create", &format!("dataset/{name}"), None, Some(after), now);
        match self.audit_log().commit(transaction, &[draft]).await {
            Ok(_) => Ok(record),
            Err(crate::store::StoreError::StaleRevision { kind: DATASET, .. }) => Err(exists()),
            Err(error) => Err(error.into()),
        }
    }

    /// # Errors
    /// [`CapturesError`].
    pub async fn list_datasets(&self) -> Result<Vec<DatasetRecord>, CapturesError> {
        Ok(self.datasets().list_all("").await?.into_iter().map(|(_, found)| found.value).collect())
    }

    /// # Errors
    /// [`CapturesError::NoDataset`].
    pub async fn dataset(&self, name: &str) -> Result<DatasetRecord, CapturesError> {
        let none = || CapturesError::NoDataset { name: name.chars().take(80).collect() };
        if !is_name(name) {
            return Err(none());
        }
        Ok(self.datasets().find_json(name).await?.ok_or_else(none)?.value)
    }

    /// The manifest's exact bytes: their digest is the data set's.
    ///
    /// # Errors
    /// [`CapturesError`].
    pub async fn dataset_manifest(&self, name: &str) -> Result<Bytes, CapturesError> {
        let record = self.dataset(name).await?;
        Ok(self.blobs().read(&record.digest, MAX_READ_BYTES).await?)
    }
}
