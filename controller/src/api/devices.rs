//! Devices over HTTP, for people.

use super::{
    ApiState,
    access::Caller,
    extract::{ApiJson, ApiPath, Pairs, cursor, etag, if_match},
    problem::Problem,
    views::{DeviceChange, DeviceView, Listing, RemovedDevice},
};
use crate::fleet::{
    devices::{DevicePatch, DeviceQuery, DeviceState},
    index::Known,
};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::IntoResponse,
};
use edgefleet_shared::ids::DeviceId;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_devices))
        .routes(routes!(show_device, change_device, remove_device))
        .routes(routes!(approve_device))
        .routes(routes!(deny_device))
}

fn shown(known: &Known) -> impl IntoResponse + use<> {
    ([(header::ETAG, etag(known.revision))], Json(DeviceView::full(known)))
}

/// Devices in the order of their ids, without their reports. Repeated `selector`s are a union.
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices", security(("bearer" = ["read"])),
    params(
        ("selector" = Option<Vec<String>>, Query, explode, example = json!(["site=plant-7,arch in (arm64)"]),
            description = "Kubernetes label-selector grammar over labels, facts, `id`, `name`, `state`, `online`"),
        ("state" = Option<DeviceState>, Query, description = "Absent: all but removed ones"),
        ("cursor" = Option<String>, Query), ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<DeviceView>)))]
async fn list_devices(
    State(state): State<ApiState>,
    query: Pairs,
) -> Result<Json<Listing<DeviceView>>, Problem> {
    query.only(&["selector", "state", "cursor", "limit"])?;
    let (after, limit) = query.page::<DeviceId>()?;
    let wanted = query.one::<String>("state")?;
    let wanted = wanted.map(|text| {
        let json = serde_json::Value::String(text);
        serde_json::from_value::<DeviceState>(json)
            .map_err(|error| Problem::bad_request("query-invalid", format!("parameter `state`: {error}")))
    });
    let query = DeviceQuery { selectors: query.all("selector")?, state: wanted.transpose()?, after, limit };
    let page = state.fleet.list_devices(&query);
    let items = page.items.iter().map(DeviceView::brief).collect();
    Ok(Json(Listing { items, next: page.next.map(|id| cursor(&id)) }))
}

/// One device with its last report.
#[utoipa::path(get, path = "/api/v1/devices/{id}", tag = "devices", security(("bearer" = ["read"])),
    params(("id" = String, Path)),
    responses((status = 200, description = "The device", body = DeviceView,
        headers(("etag" = String, description = "For `If-Match`")))))]
async fn show_device(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<DeviceId>,
) -> Result<impl IntoResponse, Problem> {
    Ok(shown(&state.fleet.device(&id)?))
}

/// Changes name and labels. With `If-Match` only if nobody changed the device meanwhile.
#[utoipa::path(patch, path = "/api/v1/devices/{id}", tag = "devices", security(("bearer" = ["devices:write"])),
    params(("id" = String, Path), ("if-match" = Option<String>, Header, description = "The ETag last seen")),
    request_body = DeviceChange,
    responses((status = 200, description = "As it is now", body = DeviceView,
        headers(("etag" = String, description = "For `If-Match`")))))]
async fn change_device(
    State(state): State<ApiState>,
    caller: Caller,
    ApiPath(id): ApiPath<DeviceId>,
    headers: HeaderMap,
    ApiJson(change): ApiJson<DeviceChange>,
) -> Result<impl IntoResponse, Problem> {
    let patch = DevicePatch { name: change.name, labels: change.labels };
    let known = state.fleet.patch_device(&caller.actor(), &id, &patch, if_match(&headers)?).await?;
    Ok(shown(&known))
}

/// Takes a device out of the fleet for good: session ended, certificates revoked, id never used again.
#[utoipa::path(delete, path = "/api/v1/devices/{id}", tag = "devices", security(("bearer" = ["devices:remove"])),
    params(("id" = String, Path), ("if-match" = Option<String>, Header, description = "The ETag last seen")),
    responses((status = 200, description = "Removed", body = RemovedDevice)))]
async fn remove_device(
    State(state): State<ApiState>,
    caller: Caller,
    ApiPath(id): ApiPath<DeviceId>,
    headers: HeaderMap,
) -> Result<Json<RemovedDevice>, Problem> {
    let removal = state.fleet.remove_device(&caller.actor(), &id, if_match(&headers)?).await?;
    let device = DeviceView::full(&removal.device);
    Ok(Json(RemovedDevice { device, session_ended: removal.session_ended }))
}

/// Lets a pending device in, or a known one use its new key.
#[utoipa::path(post, path = "/api/v1/devices/{id}/approve", tag = "devices",
    security(("bearer" = ["devices:approve"])), params(("id" = String, Path)),
    responses((status = 200, description = "Approved", body = DeviceView)))]
async fn approve_device(
    State(state): State<ApiState>,
    caller: Caller,
    ApiPath(id): ApiPath<DeviceId>,
) -> Result<impl IntoResponse, Problem> {
    Ok(shown(&state.fleet.approve_device(&caller.actor(), &id).await?))
}

/// Refuses a pending device for good, or a known one its new key.
#[utoipa::path(post, path = "/api/v1/devices/{id}/deny", tag = "devices",
    security(("bearer" = ["devices:approve"])), params(("id" = String, Path)),
    responses((status = 200, description = "Denied", body = DeviceView)))]
async fn deny_device(
    State(state): State<ApiState>,
    caller: Caller,
    ApiPath(id): ApiPath<DeviceId>,
) -> Result<impl IntoResponse, Problem> {
    Ok(shown(&state.fleet.deny_device(&caller.actor(), &id).await?))
}
