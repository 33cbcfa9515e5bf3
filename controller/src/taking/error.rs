//! Why advice was not taken.

use crate::{
    blobs::BlobError, captures::CapturesError, ingest::MonitorError, lookout::ReadingError,
    rollouts::StartError, settings::RuleError, store::StoreError,
};
use edgefleet_shared::{
    digest::BlobDigest,
    ids::{BundleName, IdError},
};

#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error(transparent)]
    Reading(#[from] ReadingError),
    #[error("advice `{advice}` is over: what it says is no longer so")]
    Over { advice: String },
    #[error("taking advice `{advice}` makes {bundle}, which needs a publisher")]
    PublisherNeeded { advice: String, bundle: BundleName },
    #[error("advice `{advice}` was not taken yet")]
    NotTaken { advice: String },
    #[error("taking advice `{advice}` made no bundle")]
    NoBundle { advice: String },
    #[error("{bundle} has no blob {digest}")]
    NoBlob { bundle: BundleName, digest: BlobDigest },
    #[error("there is no bundle {bundle}")]
    UnknownBundle { bundle: BundleName },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error(transparent)]
    Captures(#[from] CapturesError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not name a rollout after advice `{advice}`")]
    Id { advice: String, source: IdError },
}
