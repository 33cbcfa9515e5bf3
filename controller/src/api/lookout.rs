//! Incidents of drift, and advice, over HTTP.

use super::{
    access::Caller,
    extract::{ApiJson, Pairs},
    operations::Operations,
    problem::Problem,
};
use crate::{
    advice::Precision,
    clock,
    fleet::FleetError,
    lookout::{Filter, IncidentRecord, Marked, ReadingError},
};
use axum::{
    Json,
    extract::{Path, State},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new()
        .routes(routes!(list_incidents))
        .routes(routes!(show_incident))
        .routes(routes!(list_advice))
        .routes(routes!(advice_precision))
        .routes(routes!(show_advice))
        .routes(routes!(mark_advice))
}

/// Whether a piece of advice was useful.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MarkBody {
    pub useful: bool,
    #[serde(default)]
    pub note: String,
}

fn filter(query: &Pairs) -> Result<Filter, Problem> {
    query.only(&["bundle", "device", "state"])?;
    let resolved = match query.one::<String>("state")?.as_deref() {
        None | Some("open") => false,
        Some("all") => true,
        Some(other) => {
            let short: String = other.chars().take(40).collect();
            let detail = format!("`state` is `{short}`; it may be `open` or `all`");
            return Err(Problem::bad_request("query-invalid", detail));
        }
    };
    Ok(Filter { bundle: query.one("bundle")?, device: query.one("device")?, resolved })
}

/// Incidents of drift, the latest first.
#[utoipa::path(get, path = "/api/v1/incidents", tag = "monitoring", security(("bearer" = ["read"])),
    params(("bundle" = Option<String>, Query, description = "Only those of this bundle"),
        ("device" = Option<String>, Query, description = "Only those this device is part of"),
        ("state" = Option<String>, Query, description = "`open` (the default) or `all`")),
    responses((status = 200, description = "Incidents", body = Vec<Object>)))]
async fn list_incidents(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<Vec<IncidentRecord>>, Problem> {
    let found = operations.lookout.incidents(&filter(&query)?).await;
    Ok(Json(found.map_err(FleetError::from)?))
}

#[utoipa::path(get, path = "/api/v1/incidents/{id}", tag = "monitoring", security(("bearer" = ["read"])),
    summary = "One incident", params(("id" = String, Path)),
    responses((status = 200, description = "As it is", body = Object)))]
async fn show_incident(
    State(operations): State<Arc<Operations>>,
    Path(id): Path<String>,
) -> Result<Json<IncidentRecord>, Problem> {
    Ok(Json(operations.lookout.incident(&id).await?))
}

/// What to do about how models are doing, the gravest first.
#[utoipa::path(get, path = "/api/v1/advice", tag = "monitoring", security(("bearer" = ["read"])),
    params(("bundle" = Option<String>, Query, description = "Only about this bundle"),
        ("device" = Option<String>, Query, description = "Only about this device"),
        ("state" = Option<String>, Query, description = "`open` (the default) or `all`")),
    responses((status = 200, description = "Advice", body = Vec<Object>)))]
async fn list_advice(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<Vec<Marked>>, Problem> {
    let found = operations.lookout.advice(&filter(&query)?).await;
    Ok(Json(found.map_err(FleetError::from)?))
}

/// How often people found each rule's advice useful.
#[utoipa::path(get, path = "/api/v1/advice-precision", tag = "monitoring", security(("bearer" = ["read"])),
    responses((status = 200, description = "By rule", body = Vec<Object>)))]
async fn advice_precision(
    State(operations): State<Arc<Operations>>,
) -> Result<Json<Vec<Precision>>, Problem> {
    Ok(Json(operations.lookout.precision().await.map_err(FleetError::from)?))
}

#[utoipa::path(get, path = "/api/v1/advice/{id}", tag = "monitoring", security(("bearer" = ["read"])),
    summary = "One piece of advice", params(("id" = String, Path)),
    responses((status = 200, description = "With its numbers, plots and action", body = Object)))]
async fn show_advice(
    State(operations): State<Arc<Operations>>,
    Path(id): Path<String>,
) -> Result<Json<Marked>, Problem> {
    Ok(Json(operations.lookout.one_advice(&id).await?))
}

/// Says whether a piece of advice was useful. A later word replaces an earlier one.
#[utoipa::path(put, path = "/api/v1/advice/{id}/mark", tag = "monitoring",
    security(("bearer" = ["rollouts:write"])), params(("id" = String, Path)), request_body = MarkBody,
    responses((status = 200, description = "With the mark", body = Object)))]
async fn mark_advice(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    Path(id): Path<String>,
    ApiJson(MarkBody { useful, note }): ApiJson<MarkBody>,
) -> Result<Json<Marked>, Problem> {
    Ok(Json(operations.lookout.mark(&caller.actor(), &id, useful, note, clock::now()).await?))
}

impl From<ReadingError> for Problem {
    fn from(error: ReadingError) -> Self {
        let detail = error.to_string();
        match error {
            ReadingError::NoIncident { .. } => Self::not_found("incident-unknown", detail)
                .hint("see them with `edgefleet incident list --all`"),
            ReadingError::NoAdvice { .. } => {
                Self::not_found("advice-unknown", detail).hint("see it with `edgefleet advice list --all`")
            }
            ReadingError::Note { .. } => Self::bad_request("text-invalid", detail),
            ReadingError::Store(error) => FleetError::from(error).into(),
        }
    }
}
