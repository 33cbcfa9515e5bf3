//! The trust chain over HTTP: look at it, fetch any version, install the next.

use super::{
    summary::{TrustSummary, keys_on_controller, summarize},
    trust_store::{Installed, TrustStore, TrustStoreError},
};
use crate::{
    api::{
        access::Caller,
        extract::{ApiJson, ApiPath},
        problem::Problem,
    },
    clock,
    store::{
        Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use axum::{
    Json,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    response::IntoResponse,
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::{digest::EnvelopeDigest, trust::envelope::MAX_ENVELOPE_BYTES};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// What the trust routes need.
pub struct TrustApi {
    pub trust: Arc<TrustStore>,
    pub audit: Arc<AuditLog>,
    /// The data folder, to tell which private keys lie in it.
    pub data: PathBuf,
}

/// The routes of the trust chain, for the API's `more`.
pub fn routes(api: Arc<TrustApi>) -> OpenApiRouter {
    let limit = DefaultBodyLimit::max(MAX_ENVELOPE_BYTES * 4 / 3 + 1_024);
    OpenApiRouter::new()
        .routes(routes!(show_trust))
        .routes(routes!(trust_version))
        .merge(OpenApiRouter::new().routes(routes!(install_trust)).layer(limit))
        .with_state(api)
}

/// A signed trust document.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TrustDocument {
    /// Base64 of the envelope's exact bytes.
    pub envelope: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TrustInstalled {
    pub version: u64,
    /// False if exactly this document was there before.
    pub new: bool,
}

/// Who may sign what, until when, and where private keys lie.
#[utoipa::path(get, path = "/api/v1/trust", tag = "system", security(("bearer" = ["read"])),
    responses((status = 200, description = "The newest version", body = TrustSummary)))]
async fn show_trust(State(api): State<Arc<TrustApi>>) -> Json<TrustSummary> {
    let raw = api.trust.current_bytes();
    let here = keys_on_controller(&api.data);
    Json(summarize(&api.trust.current(), EnvelopeDigest::of(&raw), &here, clock::now()))
}

/// One version, exactly as it was signed.
#[utoipa::path(get, path = "/api/v1/trust/{version}", tag = "system", security(("bearer" = ["read"])),
    params(("version" = u64, Path)),
    responses((status = 200, description = "A signed envelope", content_type = "application/json", body = Object)))]
async fn trust_version(
    State(api): State<Arc<TrustApi>>,
    ApiPath(version): ApiPath<u64>,
) -> Result<impl IntoResponse, Problem> {
    let raw = api.trust.version(version).ok_or_else(|| {
        let newest = api.trust.current().version;
        Problem::not_found("trust-unknown", format!("there is no trust {version}, the newest is {newest}"))
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], raw))
}

/// Installs the next version if enough keys of the present and of the next one signed it.
#[utoipa::path(post, path = "/api/v1/trust", tag = "system", security(("bearer" = ["system:write"])),
    request_body = TrustDocument,
    responses((status = 201, description = "Installed", body = TrustInstalled),
        (status = 200, description = "It was there", body = TrustInstalled)))]
async fn install_trust(
    State(api): State<Arc<TrustApi>>,
    caller: Caller,
    ApiJson(body): ApiJson<TrustDocument>,
) -> Result<impl IntoResponse, Problem> {
    let raw = BASE64
        .decode(&body.envelope)
        .map_err(|e| Problem::bad_request("base64-invalid", format!("`envelope` is not base64: {e}")))?;
    let before = api.trust.head();
    let store = Arc::clone(&api.trust);
    let installed = tokio::task::spawn_blocking(move || store.install(&raw)).await;
    let installed = installed.map_err(|e| Problem::internal(&e))??;
    let (version, new) = match installed {
        Installed::New(version) => (version, true),
        Installed::Known(version) => (version, false),
    };
    if new {
        let draft = AuditDraft {
            at: clock::now().to_string(),
            who: caller.actor().name().to_owned(),
            action: "trust.install".to_owned(),
            subject: format!("trust/{version}"),
            before: Some(format!("{} {}", before.version, before.digest)),
            after: Some(format!("{version} {}", api.trust.pin())),
            note: None,
        };
        // Trust lives in files of its own, so this is the one change whose entry follows it.
        api.audit.commit(Transaction::new(), &[draft]).await.map_err(|e| Problem::internal(&e))?;
    }
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(TrustInstalled { version, new })))
}

impl From<TrustStoreError> for Problem {
    fn from(error: TrustStoreError) -> Self {
        match &error {
            TrustStoreError::Refused { source } => {
                Self::new(StatusCode::FORBIDDEN, "trust-refused", format!("{error}: {source}"))
                    .hint("collect more signatures with `edgefleet trust sign` and merge them")
            }
            TrustStoreError::Taken { .. } => {
                Self::new(StatusCode::CONFLICT, "trust-taken", error.to_string())
            }
            TrustStoreError::Io { .. }
            | TrustStoreError::Stored { .. }
            | TrustStoreError::NoFirst { .. }
            | TrustStoreError::Gap { .. } => Self::internal(&error),
        }
    }
}
