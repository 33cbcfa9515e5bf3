//! Why something about captures was not done.

use crate::{api::problem::Problem, blobs::BlobError, fleet::FleetError, store::StoreError};
use axum::http::StatusCode;
use edgefleet_shared::{
    capture::CaptureError,
    digest::BlobDigest,
    ids::{DeviceId, ModelName},
};

#[derive(Debug, thiserror::Error)]
pub enum CapturesError {
    #[error("the body should be capture {wanted}, but its bytes are {found}")]
    Digest { wanted: BlobDigest, found: BlobDigest },
    #[error("capture {digest} cannot be read")]
    Unreadable { digest: BlobDigest, source: CaptureError },
    #[error("capture {digest} is of device {of}, and {device} sent it")]
    Foreign { digest: BlobDigest, of: DeviceId, device: DeviceId },
    #[error("device {device} sent {bytes} bytes of captures today, {limit} are taken")]
    Quota { device: DeviceId, bytes: u64, limit: u64, retry_secs: u64 },
    #[error("captures take {bytes} bytes of the {limit} they may, and all are labelled or in a data set")]
    Full { bytes: u64, limit: u64 },
    #[error("there is no capture {digest}")]
    Unknown { digest: BlobDigest },
    #[error("capture {digest} is part of data set `{dataset}`")]
    Held { digest: BlobDigest, dataset: String },
    #[error("{label:?} is no class of `{bundle}`")]
    NoClass { label: String, bundle: String },
    #[error("capture {digest} has no label to take back")]
    NotLabelled { digest: BlobDigest },
    #[error("model `{model}` has no capture policy")]
    NoPolicy { model: ModelName },
    #[error("there is no data set `{name}`")]
    NoDataset { name: String },
    #[error("there is a data set `{name}` already; its content never changes")]
    DatasetExists { name: String },
    #[error(
        "{name:?} is no name of a data set: 1 to 63 of a-z, 0-9, `-`, `_` and `.`, beginning with one of a-z, 0-9"
    )]
    DatasetName { name: String },
    #[error("nothing labelled fits: a data set needs at least one row")]
    NothingLabelled,
    #[error("{found} labelled captures fit, a data set has at most {limit}")]
    TooManyRows { found: usize, limit: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("a part of the controller was cut off while it read a capture")]
    CutOff,
}

impl From<CapturesError> for Problem {
    fn from(error: CapturesError) -> Self {
        use CapturesError as E;
        let chain = match &error {
            E::Unreadable { source, .. } => format!("{error}: {source}"),
            other => other.to_string(),
        };
        let unprocessable = |code| Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, chain.clone());
        match error {
            E::Digest { .. } => unprocessable("capture-digest"),
            E::Unreadable { .. } => unprocessable("capture-unreadable"),
            E::Foreign { .. } => unprocessable("capture-foreign"),
            E::Quota { retry_secs, .. } => Self {
                retry_after_secs: Some(retry_secs),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "capture-quota", chain)
            },
            E::Full { .. } => Self {
                retry_after_secs: Some(3_600),
                ..Self::new(StatusCode::INSUFFICIENT_STORAGE, "captures-full", chain)
            },
            E::Unknown { .. } => Self::not_found("capture-unknown", chain),
            E::Held { .. } => Self::new(StatusCode::CONFLICT, "capture-held", chain),
            E::NoClass { .. } => unprocessable("class-unknown"),
            E::NotLabelled { .. } => Self::new(StatusCode::CONFLICT, "capture-not-labelled", chain),
            E::NoPolicy { .. } => Self::not_found("capture-policy-unknown", chain)
                .hint("give it one with `edgefleet capture policy set MODEL`"),
            E::NoDataset { .. } => Self::not_found("dataset-unknown", chain),
            E::DatasetExists { .. } => Self::new(StatusCode::CONFLICT, "dataset-exists", chain),
            E::DatasetName { .. } => Self::bad_request("dataset-name", chain),
            E::NothingLabelled => unprocessable("dataset-empty"),
            E::TooManyRows { .. } => unprocessable("dataset-too-large"),
            E::Store(error) => FleetError::from(error).into(),
            E::Blob(error) => error.into(),
            E::CutOff => Self::internal(&E::CutOff),
        }
    }
}
