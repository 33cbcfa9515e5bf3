//! Invites over HTTP.

use super::{
    ApiState,
    access::Caller,
    extract::{ApiJson, ApiPath, Pairs, cursor},
    problem::Problem,
    views::{InviteRequest, InviteView, Listing, NewInviteView},
};
use crate::fleet::invites::NewInvite;
use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use edgefleet_shared::ids::InviteId;
use std::time::Duration;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_invites, create_invite))
        .routes(routes!(show_invite, revoke_invite))
}

/// Invites, without their secrets, which nobody has.
#[utoipa::path(get, path = "/api/v1/invites", tag = "invites", security(("bearer" = ["read"])),
    params(("cursor" = Option<String>, Query), ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<InviteView>)))]
async fn list_invites(
    State(state): State<ApiState>,
    query: Pairs,
) -> Result<Json<Listing<InviteView>>, Problem> {
    query.only(&["cursor", "limit"])?;
    let (after, limit) = query.page::<String>()?;
    let page = state.fleet.invites(after.as_deref(), limit).await?;
    let now = state.fleet.now();
    let items = page.items.into_iter().map(|invite| InviteView::of(invite, now)).collect();
    Ok(Json(Listing { items, next: page.next.map(|id| cursor(&id)) }))
}

/// Makes an invite and its join code. The code is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/invites", tag = "invites", security(("bearer" = ["invites:write"])),
    request_body = InviteRequest,
    responses((status = 201, description = "Made", body = NewInviteView)))]
async fn create_invite(
    State(state): State<ApiState>,
    caller: Caller,
    ApiJson(asked): ApiJson<InviteRequest>,
) -> Result<impl IntoResponse, Problem> {
    let InviteRequest { labels, uses, ttl_secs, approval } = asked;
    let new = NewInvite { labels, uses, ttl: Duration::from_secs(ttl_secs), approval };
    let created = state.fleet.create_invite(&caller.actor(), new).await?;
    let invite = InviteView::of(created.invite, state.fleet.now());
    let view = NewInviteView { invite, code: created.code.to_string() };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(view)))
}

/// One invite.
#[utoipa::path(get, path = "/api/v1/invites/{id}", tag = "invites", security(("bearer" = ["read"])),
    params(("id" = String, Path)),
    responses((status = 200, description = "The invite", body = InviteView)))]
async fn show_invite(
    State(state): State<ApiState>,
    ApiPath(id): ApiPath<InviteId>,
) -> Result<Json<InviteView>, Problem> {
    Ok(Json(InviteView::of(state.fleet.invite(&id).await?, state.fleet.now())))
}

/// Ends an invite. Devices that came with it stay.
#[utoipa::path(delete, path = "/api/v1/invites/{id}", tag = "invites", security(("bearer" = ["invites:write"])),
    params(("id" = String, Path)),
    responses((status = 200, description = "Revoked", body = InviteView)))]
async fn revoke_invite(
    State(state): State<ApiState>,
    caller: Caller,
    ApiPath(id): ApiPath<InviteId>,
) -> Result<Json<InviteView>, Problem> {
    let invite = state.fleet.revoke_invite(&caller.actor(), &id).await?;
    Ok(Json(InviteView::of(invite, state.fleet.now())))
}
