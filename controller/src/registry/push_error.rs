//! Why a push was refused, with a code for programs.

use super::probe::ProbeError;
use crate::{blobs::BlobError, store::StoreError};
use edgefleet_shared::{
    bundle::ManifestError,
    digest::{BlobDigest, BundleDigest},
    ids::BundleName,
    probe::ProbeVerdict,
    trust::TrustError,
};
use std::io;

/// Why a bundle was not accepted. Nothing was stored but its blobs, which the next push reuses.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("the release of the bundle is not signed as trust {version} demands")]
    Signature { version: u64, source: TrustError },
    #[error("the release is about {what} {found}, but the push about {wanted}")]
    Mismatch { what: &'static str, found: String, wanted: String },
    #[error("the manifest is not usable:{}", list(wrong))]
    Manifest { wrong: Vec<ManifestError> },
    #[error("{name} is below the floor {floor} that the trust document sets")]
    BelowFloor { name: BundleName, floor: u64 },
    #[error("{name} exists already with other content ({existing}); raise `counter` in bundle.toml")]
    CounterTaken { name: BundleName, existing: BundleDigest },
    #[error("{} of the bundle's blobs are not here yet, the first is {}", missing.len(), first(missing))]
    BlobsMissing { missing: Vec<BlobDigest> },
    #[error("blob {digest} has {found} bytes, the manifest says {wanted}")]
    BlobSize { digest: BlobDigest, found: u64, wanted: u64 },
    #[error("the bundle could not be checked, and unchecked bundles are not accepted")]
    CheckUnavailable { source: ProbeError },
    #[error("{problem}")]
    CheckFailed { problem: String, verdict: Option<Box<ProbeVerdict>> },
    #[error("`{by}` may not override a failed check")]
    OverrideForbidden { by: String },
    #[error("overriding a check needs a reason of 1 to 500 characters")]
    OverrideReason,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("could not prepare the bundle for its check")]
    Prepare { source: io::Error },
}

fn list(wrong: &[ManifestError]) -> String {
    wrong.iter().map(|error| format!("\n  {error}")).collect()
}

fn first(missing: &[BlobDigest]) -> String {
    missing.first().map(ToString::to_string).unwrap_or_default()
}

impl PushError {
    /// A word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Signature { .. } => "release-signature",
            Self::Mismatch { .. } => "release-mismatch",
            Self::Manifest { .. } => "manifest-invalid",
            Self::BelowFloor { .. } => "below-floor",
            Self::CounterTaken { .. } => "counter-taken",
            Self::BlobsMissing { .. } => "blobs-missing",
            Self::BlobSize { .. } => "blob-size",
            Self::CheckUnavailable { .. } => "check-unavailable",
            Self::CheckFailed { .. } => "check-failed",
            Self::OverrideForbidden { .. } => "override-forbidden",
            Self::OverrideReason => "override-reason",
            Self::Store(_) => "store",
            Self::Blob(_) => "blob",
            Self::Prepare { .. } => "check-prepare",
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Signature { .. } => Some(
                "sign it with current publisher keys (`edgefleet model sign`); `edgefleet keys show` lists them",
            ),
            Self::Mismatch { .. } => Some("sign the bundle again after building it: `edgefleet model sign`"),
            Self::BlobsMissing { .. } => Some("push again; what has arrived is not sent twice"),
            Self::CheckUnavailable { .. } => {
                Some("install edgefleet-agent beside the controller, or name it with --agent-bin")
            }
            Self::CheckFailed { .. } => Some(
                "every device would refuse it, too; an administrator may push it anyway with --override-checks --reason TEXT",
            ),
            Self::OverrideForbidden { .. } => Some("the role admin may"),
            Self::Manifest { .. }
            | Self::BelowFloor { .. }
            | Self::CounterTaken { .. }
            | Self::BlobSize { .. }
            | Self::OverrideReason
            | Self::Store(_)
            | Self::Blob(_)
            | Self::Prepare { .. } => None,
        }
    }
}
