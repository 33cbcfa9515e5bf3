//! Advice taken, over HTTP.

use super::{
    access::Caller,
    device_routes,
    extract::{ApiJson, Pairs},
    operations::Operations,
    problem::Problem,
    rollouts::preview_of,
};
use crate::{
    advice::{
        Finding, RuleId,
        take::{Doing, Step},
    },
    clock,
    driver::Order,
    fleet::{Actor, FleetError, roles::Permission},
    ingest::MonitorError,
    rollouts::preview::Preview,
    taking::{BundleFile, Consent, Outcome, Prepared, TakeError, TakenRecord, TakenStep},
};
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use edgefleet_shared::{digest::BlobDigest, ids::BundleName, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new().routes(routes!(take_advice)).routes(routes!(advice_file))
}

/// How to take it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TakeBody {
    /// Only say what would happen.
    pub dry_run: bool,
    /// Needed where a rollout reaches more than 10 devices: the caller has seen the number.
    pub confirmed: bool,
}

/// What taking a piece of advice did, or would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TakeAnswer {
    /// `would`: a dry run. `taken`: done now. `already`: done before, nothing was done now.
    #[schema(example = "would")]
    pub outcome: String,
    pub advice: String,
    #[schema(value_type = String, example = "A14")]
    pub rule: RuleId,
    #[schema(value_type = String)]
    pub bundle: BundleName,
    /// The finding in one sentence.
    pub what: String,
    /// Each with `step`, `text`, `outcome`, and as far as there are any `links`, `commands`, `made`.
    #[schema(value_type = Vec<Object>)]
    pub steps: Vec<TakenStep>,
    /// Who took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// Of a dry run: what its rollouts would do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub previews: Vec<Preview>,
}

/// Does what a piece of advice says, or says what would be done. Once: a second time says what was done.
#[utoipa::path(post, path = "/api/v1/advice/{id}/take", tag = "monitoring",
    security(("bearer" = ["rollouts:write"])), params(("id" = String, Path)), request_body = TakeBody,
    responses((status = 200, description = "The steps", body = TakeAnswer)))]
async fn take_advice(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    Path(id): Path<String>,
    ApiJson(TakeBody { dry_run, confirmed }): ApiJson<TakeBody>,
) -> Result<Json<TakeAnswer>, Problem> {
    let (actor, now) = (caller.actor(), clock::now());
    let consent = Consent { confirmed, publisher: caller.can(Permission::ModelsWrite) };
    let answer = match dry_run {
        true => look(&operations, &id, &actor, consent, now).await?,
        false => carry_out(&operations, &id, &actor, consent, now).await?,
    };
    Ok(Json(answer))
}

/// Does it, once.
///
/// # Errors
/// As the API tells them.
pub(crate) async fn carry_out(
    operations: &Operations,
    id: &str,
    actor: &Actor,
    consent: Consent,
    now: Timestamp,
) -> Result<TakeAnswer, Problem> {
    let (finding, record, new) = operations.taking.take(id, actor, consent, now).await?;
    if new {
        operations.driver.order(Order::SettingsChanged).await;
    }
    Ok(taken(&finding, record, new))
}

/// What taking it would do, or did.
///
/// # Errors
/// As the API tells them.
pub(crate) async fn look(
    operations: &Operations,
    id: &str,
    actor: &Actor,
    consent: Consent,
    now: Timestamp,
) -> Result<TakeAnswer, Problem> {
    let Prepared { finding, state, steps, taken: earlier } = operations.taking.prepare(id, now).await?;
    if let Some(record) = earlier {
        return Ok(taken(&finding, record, false));
    }
    let mut previews = Vec::new();
    for step in &steps {
        if let Some(request) = operations.taking.request(step, &finding, &state, consent).await? {
            previews.push(preview_of(operations, &request, actor.name(), now).await?);
        }
    }
    let planned = |step: Step| TakenStep {
        outcome: match &step.doing {
            Doing::Look | Doing::ByHand { .. } => Outcome::ForPeople,
            _ => Outcome::WouldBeDone,
        },
        step,
        made: None,
        manifest: None,
    };
    Ok(TakeAnswer {
        outcome: "would".to_owned(),
        advice: state.advice,
        rule: finding.rule,
        bundle: finding.scope.bundle().clone(),
        what: finding.text.what,
        steps: steps.into_iter().map(planned).collect(),
        by: None,
        at: None,
        previews,
    })
}

fn taken(finding: &Finding, record: TakenRecord, new: bool) -> TakeAnswer {
    let TakenRecord { advice, rule, bundle, by, at, steps } = record;
    TakeAnswer {
        outcome: if new { "taken" } else { "already" }.to_owned(),
        advice,
        rule,
        bundle,
        what: finding.text.what.clone(),
        steps,
        by: Some(by),
        at: Some(at),
        previews: vec![],
    }
}

/// The bundle that taking a piece of advice made, unsigned; with `blob` the bytes of one of its blobs.
#[utoipa::path(get, path = "/api/v1/advice/{id}/file", tag = "monitoring",
    security(("bearer" = ["models:write"])),
    params(("id" = String, Path), ("blob" = Option<String>, Query, description = "`sha256:` and 64 hex digits")),
    responses((status = 200, description = "Manifest and list of blobs, or one blob", body = Object)))]
async fn advice_file(
    State(operations): State<Arc<Operations>>,
    Path(id): Path<String>,
    query: Pairs,
) -> Result<Response, Problem> {
    query.only(&["blob"])?;
    let Some(digest) = query.one::<BlobDigest>("blob")? else {
        let file: BundleFile = operations.taking.file(&id).await?;
        let name = format!("attachment; filename=\"{}-{}.json\"", file.bundle.model, file.bundle.counter);
        let name = HeaderValue::from_str(&name).unwrap_or(HeaderValue::from_static("attachment"));
        return Ok(([(header::CONTENT_DISPOSITION, name)], Json(file)).into_response());
    };
    let blob = operations.taking.blob(&id, &digest).await?;
    let body = device_routes::stream(Arc::clone(operations.taking.blobs()), digest, 0, blob.size);
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(blob.size)),
        (header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment")),
    ];
    Ok((headers, body).into_response())
}

impl From<TakeError> for Problem {
    fn from(error: TakeError) -> Self {
        let detail = error.to_string();
        match error {
            TakeError::Reading(error) => error.into(),
            TakeError::Over { .. } => Self::new(StatusCode::CONFLICT, "advice-over", detail)
                .hint("see what is advised now with `edgefleet advice list`"),
            TakeError::PublisherNeeded { .. } => {
                Self::new(StatusCode::FORBIDDEN, "permission-denied", detail)
                    .hint("a publisher takes it; look at it with `--dry-run`")
            }
            TakeError::NotTaken { ref advice } => {
                Self::new(StatusCode::CONFLICT, "advice-not-taken", detail.clone())
                    .hint(format!("take it with `edgefleet advice take {advice}`"))
            }
            TakeError::NoBundle { .. } => Self::not_found("advice-no-bundle", detail),
            TakeError::NoBlob { .. } => Self::not_found("blob-unknown", detail),
            TakeError::UnknownBundle { .. } => Self::not_found("bundle-unknown", detail)
                .hint("see what there is with `edgefleet model list`"),
            TakeError::Start(error) => error.into(),
            TakeError::Rule(error) => error.into(),
            TakeError::Captures(error) => error.into(),
            TakeError::Blob(error) => error.into(),
            TakeError::Monitor(MonitorError::Store(error)) | TakeError::Store(error) => {
                FleetError::from(error).into()
            }
            TakeError::Monitor(_) | TakeError::Id { .. } => Self::internal(&error),
        }
    }
}
