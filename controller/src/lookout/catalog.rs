//! What the lookout asks about bundles themselves.

use crate::{blobs::BlobStore, registry::Registry};
use async_trait::async_trait;
use edgefleet_shared::{
    bundle::{Baseline, Manifest, baseline::MAX_BASELINE_BYTES},
    ids::BundleName,
    probe::ProbeVerdict,
};
use std::sync::Arc;

/// What a bundle brings to be compared with.
#[derive(Clone, Debug)]
pub enum Known {
    Baseline(Arc<Baseline>),
    /// The bundle ships none, or one that this program cannot read: nobody can say what is usual for it.
    Nothing,
}

impl Known {
    pub fn baseline(&self) -> Option<&Arc<Baseline>> {
        match self {
            Self::Baseline(baseline) => Some(baseline),
            Self::Nothing => None,
        }
    }
}

/// Knows bundles.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// `None` if there is no such bundle, or it cannot be read now.
    async fn manifest(&self, bundle: &BundleName) -> Option<Manifest>;
    /// `None` if it cannot be read now.
    async fn baseline(&self, bundle: &BundleName) -> Option<Known>;
    /// What the check said when it was pushed; `None` if nobody knows.
    async fn verdict(&self, _bundle: &BundleName) -> Option<ProbeVerdict> {
        None
    }
}

/// The registry's bundles.
pub struct Registered {
    pub registry: Arc<Registry>,
    pub blobs: Arc<dyn BlobStore>,
}

#[async_trait]
impl Catalog for Registered {
    async fn manifest(&self, bundle: &BundleName) -> Option<Manifest> {
        let failed = |error: &dyn std::error::Error| tracing::error!(%bundle, %error, "lookout.manifest");
        let record = self.registry.find(bundle).await.map_err(|error| failed(&error)).ok()??;
        let bytes = self.registry.manifest(&record).await.map_err(|error| failed(&error)).ok()?;
        Manifest::parse(&bytes).ok()
    }

    async fn verdict(&self, bundle: &BundleName) -> Option<ProbeVerdict> {
        let found = self.registry.find(bundle).await;
        found.map_err(|error| tracing::error!(%bundle, %error, "lookout.verdict")).ok()??.checks.verdict
    }

    async fn baseline(&self, bundle: &BundleName) -> Option<Known> {
        let Some(blob) = self.manifest(bundle).await?.baseline else { return Some(Known::Nothing) };
        let bytes = self.blobs.read(&blob.digest, MAX_BASELINE_BYTES).await;
        let bytes = bytes.map_err(|error| tracing::error!(%bundle, %error, "lookout.baseline")).ok()?;
        match Baseline::parse(&bytes) {
            Ok(baseline) => Some(Known::Baseline(Arc::new(baseline))),
            Err(error) => {
                tracing::warn!(%bundle, %error, "lookout.baseline: the bundle is not watched for drift");
                Some(Known::Nothing)
            }
        }
    }
}
