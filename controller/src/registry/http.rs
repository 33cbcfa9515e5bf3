//! Models and bundles over HTTP. Handlers translate; [`Registry`] decides.

use super::{
    push_error::PushError,
    record::{BundleRecord, ModelSummary},
    service::{Push, PushOutcome, Pusher, Registry},
};
use crate::{
    api::{
        access::Caller,
        extract::{ApiJson, ApiPath},
        problem::{PROBLEM_JSON, Problem, ProblemBody},
    },
    clock,
    fleet::roles::Permission,
};
use axum::{
    Json,
    body::Body,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::manifest::MAX_MANIFEST_BYTES,
    digest::BlobDigest,
    ids::{BundleName, ModelName},
    probe::ProbeVerdict,
    trust::envelope::MAX_ENVELOPE_BYTES,
};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Digests one question may hold: more blobs than a manifest can name.
const MAX_DIGESTS: usize = 1_024;
/// Manifest and release as base64, names and reason around them.
const MAX_PUSH_BYTES: usize = (MAX_MANIFEST_BYTES as usize + MAX_ENVELOPE_BYTES) * 4 / 3 + 16 * 1024;
/// An upload that sends nothing for this long is over.
const UPLOAD_SILENCE: Duration = Duration::from_secs(30);

/// The routes of the registry, for the API's `more`.
pub fn routes(registry: Arc<Registry>) -> OpenApiRouter {
    let uploads = OpenApiRouter::new().routes(routes!(upload_blob)).layer(DefaultBodyLimit::disable());
    let pushes =
        OpenApiRouter::new().routes(routes!(push_bundle)).layer(DefaultBodyLimit::max(MAX_PUSH_BYTES));
    let questions =
        OpenApiRouter::new().routes(routes!(missing_blobs)).layer(DefaultBodyLimit::max(MAX_DIGESTS * 96));
    OpenApiRouter::new()
        .routes(routes!(list_models))
        .routes(routes!(show_model))
        .routes(routes!(show_bundle))
        .merge(uploads)
        .merge(pushes)
        .merge(questions)
        .with_state(registry)
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BlobList {
    /// `sha256:` and 64 hex digits each, at most 1,024.
    #[schema(value_type = Vec<String>)]
    pub digests: Vec<BlobDigest>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct StoredBlob {
    #[schema(value_type = String)]
    pub digest: BlobDigest,
    pub size: u64,
}

/// A bundle whose blobs are here.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PushBody {
    /// Base64 of the manifest's exact bytes.
    pub manifest: String,
    /// Base64 of the signed release's exact bytes.
    pub release: String,
    /// Accept it although a check fails, for this reason; needs the permission `checks:override`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub override_reason: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PushedView {
    pub outcome: PushOutcome,
    pub bundle: BundleRecord,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    pub items: Vec<ModelSummary>,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct BundleView {
    pub bundle: BundleRecord,
    /// The manifest as JSON.
    #[schema(value_type = Object)]
    pub manifest: serde_json::Value,
}

/// A refused check: a problem with the whole verdict beside it.
#[derive(Debug, Serialize, ToSchema)]
struct CheckProblem {
    #[serde(flatten)]
    problem: ProblemBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    verdict: Option<Box<ProbeVerdict>>,
}

/// Which of these blobs have to be uploaded.
#[utoipa::path(post, path = "/api/v1/blobs/missing", tag = "models", security(("bearer" = ["models:write"])),
    request_body = BlobList,
    responses((status = 200, description = "Those that are not here", body = BlobList)))]
async fn missing_blobs(
    State(registry): State<Arc<Registry>>,
    ApiJson(asked): ApiJson<BlobList>,
) -> Result<Json<BlobList>, Problem> {
    if asked.digests.len() > MAX_DIGESTS {
        let detail = format!("{} digests, at most {MAX_DIGESTS} are allowed", asked.digests.len());
        return Err(Problem::bad_request("too-many-digests", detail));
    }
    Ok(Json(BlobList { digests: registry.missing(&asked.digests).await? }))
}

/// Uploads a blob. It appears only if its bytes have this digest; at most 4 GiB.
#[utoipa::path(put, path = "/api/v1/blobs/{digest}", tag = "models", security(("bearer" = ["models:write"])),
    params(("digest" = String, Path, description = "`sha256:` and 64 hex digits")),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 201, description = "Stored", body = StoredBlob)))]
async fn upload_blob(
    State(registry): State<Arc<Registry>>,
    ApiPath(digest): ApiPath<BlobDigest>,
    headers: HeaderMap,
    body: Body,
) -> Result<impl IntoResponse, Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut writer = registry.upload(digest, length).await?;
    let mut stream = body.into_data_stream();
    loop {
        let next = tokio::time::timeout(UPLOAD_SILENCE, stream.next()).await.map_err(|_| {
            let detail = format!("nothing of the blob came for {} s", UPLOAD_SILENCE.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, "upload-timeout", detail)
        })?;
        match next {
            None => break,
            Some(Ok(bytes)) => writer.write(bytes).await?,
            Some(Err(error)) => {
                let detail = format!("the upload was cut off: {error}");
                return Err(Problem::bad_request("upload-cut", detail));
            }
        }
    }
    let stored = writer.finish().await?;
    Ok((StatusCode::CREATED, Json(StoredBlob { digest: stored.digest, size: stored.size })))
}

/// Checks a bundle as a device would and accepts it. The same push again changes nothing.
#[utoipa::path(post, path = "/api/v1/models/{name}/bundles", tag = "models",
    security(("bearer" = ["models:write"])),
    params(("name" = String, Path)),
    request_body = PushBody,
    responses(
        (status = 201, description = "Accepted", body = PushedView),
        (status = 200, description = "It was here already", body = PushedView),
        (status = 422, description = "A check failed", body = CheckProblem, content_type = "application/problem+json")))]
async fn push_bundle(
    State(registry): State<Arc<Registry>>,
    ApiPath(model): ApiPath<ModelName>,
    caller: Caller,
    ApiJson(body): ApiJson<PushBody>,
) -> Result<Response, Problem> {
    let decode = |field: &str, text: &str| {
        let bad = |e| Problem::bad_request("base64-invalid", format!("`{field}` is not base64: {e}"));
        BASE64.decode(text).map(Bytes::from).map_err(bad)
    };
    let push = Push {
        model,
        manifest: decode("manifest", &body.manifest)?,
        release: decode("release", &body.release)?,
        override_reason: body.override_reason,
        by: Pusher {
            name: caller.actor().name().to_owned(),
            may_override: caller.can(Permission::ChecksOverride),
        },
    };
    match registry.push(&push, clock::now()).await {
        Ok(pushed) => {
            let status = match pushed.outcome {
                PushOutcome::Created => StatusCode::CREATED,
                PushOutcome::Unchanged | PushOutcome::Resigned => StatusCode::OK,
            };
            let view = PushedView { outcome: pushed.outcome, bundle: pushed.record };
            Ok((status, Json(view)).into_response())
        }
        Err(PushError::CheckFailed { problem, verdict }) => {
            let error = PushError::CheckFailed { problem, verdict: None };
            Ok(check_failed(&error, verdict))
        }
        Err(error) => Err(error.into()),
    }
}

fn check_failed(error: &PushError, verdict: Option<Box<ProbeVerdict>>) -> Response {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    let problem = ProblemBody {
        kind: format!("urn:edgefleet:problem:{}", error.code()),
        title: error.code().replace('-', " "),
        status: status.as_u16(),
        detail: error.to_string(),
        code: error.code().to_owned(),
        hint: error.hint().map(str::to_owned),
        instance: None,
    };
    let body = serde_json::to_vec(&CheckProblem { problem, verdict }).unwrap_or_default(); // plain data
    (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response()
}

/// All models and their bundles.
#[utoipa::path(get, path = "/api/v1/models", tag = "models", security(("bearer" = ["read"])),
    responses((status = 200, description = "Models by name", body = ModelList)))]
async fn list_models(State(registry): State<Arc<Registry>>) -> Result<Json<ModelList>, Problem> {
    let items = registry.models().await.map_err(PushError::from)?;
    Ok(Json(ModelList { items }))
}

/// One model and its bundles.
#[utoipa::path(get, path = "/api/v1/models/{name}", tag = "models", security(("bearer" = ["read"])),
    params(("name" = String, Path)),
    responses((status = 200, description = "The model", body = ModelSummary)))]
async fn show_model(
    State(registry): State<Arc<Registry>>,
    ApiPath(name): ApiPath<ModelName>,
) -> Result<Json<ModelSummary>, Problem> {
    let found = registry.model(&name).await.map_err(PushError::from)?;
    let unknown = || {
        Problem::not_found("model-unknown", format!("there is no model `{name}`"))
            .hint("`edgefleet model list` shows what there is")
    };
    found.map(Json).ok_or_else(unknown)
}

/// One bundle: its record, checks and manifest.
#[utoipa::path(get, path = "/api/v1/models/{name}/bundles/{counter}", tag = "models",
    security(("bearer" = ["read"])),
    params(("name" = String, Path), ("counter" = u64, Path)),
    responses((status = 200, description = "The bundle", body = BundleView)))]
async fn show_bundle(
    State(registry): State<Arc<Registry>>,
    Path((model, counter)): Path<(String, String)>,
) -> Result<Json<BundleView>, Problem> {
    let name: BundleName = format!("{model}@{counter}")
        .parse()
        .map_err(|e| Problem::bad_request("path-invalid", format!("{e}")))?;
    let found = registry.find(&name).await.map_err(PushError::from)?;
    let bundle = found.ok_or_else(|| {
        Problem::not_found("bundle-unknown", format!("there is no bundle {name}"))
            .hint(format!("`edgefleet model show {}` lists its bundles", name.model))
    })?;
    let manifest = registry.manifest(&bundle).await?;
    let manifest = serde_json::from_slice(&manifest).unwrap_or_default(); // was parsed when it was accepted
    Ok(Json(BundleView { bundle, manifest }))
}

impl From<PushError> for Problem {
    fn from(error: PushError) -> Self {
        let status = match &error {
            PushError::Signature { .. }
            | PushError::BelowFloor { .. }
            | PushError::OverrideForbidden { .. } => StatusCode::FORBIDDEN,
            PushError::Mismatch { .. }
            | PushError::Manifest { .. }
            | PushError::BlobSize { .. }
            | PushError::OverrideReason => StatusCode::BAD_REQUEST,
            PushError::CounterTaken { .. } | PushError::BlobsMissing { .. } => StatusCode::CONFLICT,
            PushError::CheckFailed { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            PushError::CheckUnavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            PushError::Store(source) => match source.retry() {
                crate::store::Retry::Now | crate::store::Retry::Later => StatusCode::SERVICE_UNAVAILABLE,
                crate::store::Retry::Never => return Self::internal(&error),
            },
            PushError::Blob(_) => {
                return match error {
                    PushError::Blob(blob) => blob.into(),
                    other => Self::internal(&other),
                };
            }
            PushError::Prepare { .. } => return Self::internal(&error),
        };
        // The cause of a refusal is part of what the caller has to know.
        let chain: Vec<String> =
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
                .map(ToString::to_string)
                .collect();
        let mut problem = Self::new(status, error.code(), chain.join(": "));
        problem.hint = error.hint().map(str::to_owned);
        problem
    }
}
