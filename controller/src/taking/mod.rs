//! Advice taken: gathers what a plan needs, carries its steps out with the services that exist, remembers what was done.
//!
//! [`crate::advice::take`] decides (pure). One take at a time. Every step is idempotent by an id that comes from the
//! advice (the rule's name, the rollout's id, the bundle's digest), and the record is written after them: a crash in
//! between leaves work that the next take finds done.

mod carry;
mod error;
mod gather;
#[cfg(test)]
mod tests;

pub use carry::Consent;
pub use error::TakeError;
pub use gather::Prepared;

use crate::{
    advice::{RuleId, take::Step},
    blobs::BlobStore,
    captures::Captures,
    fleet::Fleet,
    ingest::Monitoring,
    lookout::Reading,
    registry::Registry,
    rollouts::Rollouts,
    settings::SettingsRules,
    store::{FleetStore, Repository, audit::AuditLog},
};
use edgefleet_shared::{bundle::BlobRef, digest::BlobDigest, ids::BundleName, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::Mutex;

pub use crate::lookout::TAKEN;

/// What was done about one piece of advice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakenRecord {
    pub advice: String,
    pub rule: RuleId,
    pub bundle: BundleName,
    pub by: String,
    pub at: Timestamp,
    pub steps: Vec<TakenStep>,
}

/// A step and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakenStep {
    #[serde(flatten)]
    pub step: Step,
    pub outcome: Outcome,
    /// Id of what was made: a rule's name, a rollout, a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
    /// Of a bundle: the blob that is its manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<BlobRef>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Of a dry run.
    WouldBeDone,
    Done,
    /// There is nothing that the controller does: a person looks or changes something.
    ForPeople,
}

/// What a bundle made from advice consists of, as `GET /api/v1/advice/{id}/file` gives it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleFile {
    pub advice: String,
    pub bundle: BundleName,
    /// The manifest's exact bytes, not signed.
    pub manifest: String,
    pub blobs: Vec<BlobRef>,
}

pub struct TakingParts {
    pub store: Arc<dyn FleetStore>,
    pub audit: Arc<AuditLog>,
    pub lookout: Reading,
    pub rollouts: Rollouts,
    pub settings: SettingsRules,
    pub captures: Arc<Captures>,
    pub registry: Arc<Registry>,
    pub blobs: Arc<dyn BlobStore>,
    pub monitoring: Monitoring,
    pub fleet: Arc<Fleet>,
}

/// Takes advice. One per controller.
pub struct Taking {
    parts: TakingParts,
    taken: Repository<TakenRecord>,
    gate: Mutex<()>,
}

impl Taking {
    pub fn new(parts: TakingParts) -> Self {
        Self { taken: Repository::new(parts.store.clone(), TAKEN), parts, gate: Mutex::default() }
    }

    /// What was done about it so far.
    ///
    /// # Errors
    /// [`TakeError`].
    pub async fn taken(&self, advice: &str) -> Result<Option<TakenRecord>, TakeError> {
        Ok(self.taken.find_json(advice).await?.map(|found| found.value))
    }

    pub fn blobs(&self) -> &Arc<dyn BlobStore> {
        &self.parts.blobs
    }

    /// The bundle that taking it made.
    ///
    /// # Errors
    /// [`TakeError::NotTaken`], [`TakeError::NoBundle`].
    pub async fn file(&self, advice: &str) -> Result<BundleFile, TakeError> {
        let advice = self.parts.lookout.one_advice(advice).await?.record.id;
        let not_taken = || TakeError::NotTaken { advice: advice.clone() };
        let record = self.taken(&advice).await?.ok_or_else(not_taken)?;
        let none = || TakeError::NoBundle { advice: advice.clone() };
        let (name, blob) = record.steps.iter().find_map(TakenStep::bundle).ok_or_else(none)?;
        let bytes = self.parts.blobs.read(&blob.digest, blob.size).await?;
        let manifest = gather::parse(&bytes).ok_or_else(none)?;
        let blobs = manifest.blobs().into_iter().cloned().collect();
        let manifest = String::from_utf8(bytes.to_vec()).map_err(|_| none())?;
        Ok(BundleFile { advice, bundle: name.clone(), manifest, blobs })
    }

    /// One blob of that bundle.
    ///
    /// # Errors
    /// [`TakeError::NoBlob`] if the bundle does not name it.
    pub async fn blob(&self, advice: &str, digest: &BlobDigest) -> Result<BlobRef, TakeError> {
        let file = self.file(advice).await?;
        let found = file.blobs.into_iter().find(|blob| blob.digest == *digest);
        found.ok_or(TakeError::NoBlob { bundle: file.bundle, digest: *digest })
    }
}

impl TakenStep {
    fn bundle(&self) -> Option<(&BundleName, &BlobRef)> {
        match &self.step.doing {
            crate::advice::take::Doing::MakeBundle { bundle, .. } => Some((bundle, self.manifest.as_ref()?)),
            _ => None,
        }
    }
}
