//! Findings over HTTP: what a person has to look at, and that one has.

use super::{access::Caller, extract::Pairs, operations::Operations, problem::Problem, views::Listing};
use crate::{
    clock,
    findings::{Finding, FindingCode, ResolveError},
    fleet::FleetError,
};
use axum::{
    Json,
    extract::{Path, State},
};
use edgefleet_shared::ids::DeviceId;
use std::sync::Arc;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new().routes(routes!(list_findings)).routes(routes!(resolve_finding))
}

/// Everything that is open, by device.
#[utoipa::path(get, path = "/api/v1/findings", tag = "findings", security(("bearer" = ["read"])),
    params(("device" = Option<String>, Query, description = "Only those about this device"),
        ("cursor" = Option<String>, Query), ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<Finding>)))]
async fn list_findings(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<Listing<Finding>>, Problem> {
    query.only(&["device", "cursor", "limit"])?;
    let (after, limit) = query.page::<String>()?;
    let mut items = match query.one::<DeviceId>("device")? {
        Some(device) => operations.findings.of(&device),
        None => operations.findings.list(),
    };
    let key = |finding: &Finding| format!("{}/{}", finding.device, finding.code);
    items.retain(|finding| after.as_ref().is_none_or(|after| key(finding) > *after));
    items.sort_by_key(key);
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| super::extract::cursor(&key(last)));
    Ok(Json(Listing { items, next }))
}

/// Says that a person has dealt with a finding. What it held back goes on.
#[utoipa::path(delete, path = "/api/v1/findings/{device}/{code}", tag = "findings",
    security(("bearer" = ["devices:write"])),
    params(("device" = String, Path), ("code" = FindingCode, Path)),
    responses((status = 200, description = "As it was", body = Finding)))]
async fn resolve_finding(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    Path((device, code)): Path<(String, String)>,
) -> Result<Json<Finding>, Problem> {
    let invalid = |error: String| Problem::bad_request("path-invalid", error);
    let device: DeviceId = device.parse().map_err(|error| invalid(format!("{error}")))?;
    let code: FindingCode = code.parse().map_err(|error| invalid(format!("{error}")))?;
    let finding = operations.findings.resolve(&caller.actor(), &device, code, clock::now()).await?;
    if code == FindingCode::ImpossibleGeneration {
        operations.states.believe(&device).await.map_err(FleetError::from)?;
    }
    operations.driver.order(crate::driver::Order::Devices(vec![device])).await;
    Ok(Json(finding))
}

impl From<ResolveError> for Problem {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::NotOpen { .. } => Self::not_found("finding-unknown", error.to_string())
                .hint("see what is open with `edgefleet finding list`"),
            ResolveError::Store(error) => FleetError::from(error).into(),
        }
    }
}
