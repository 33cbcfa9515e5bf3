//! Tokens, the audit log, and who is asking.

use super::{
    ApiState,
    access::Caller,
    extract::{ApiJson, ApiPath, Pairs, cursor},
    problem::Problem,
    views::{AuditView, Listing, NewTokenView, TokenRequest, TokenView},
};
use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::IntoResponse,
};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list_tokens, create_token))
        .routes(routes!(revoke_token))
        .routes(routes!(whoami))
        .routes(routes!(list_audit))
}

/// The caller's own token.
#[utoipa::path(get, path = "/api/v1/whoami", tag = "people", security(("bearer" = ["read"])),
    responses((status = 200, description = "The token that was sent", body = TokenView)))]
async fn whoami(caller: Caller) -> Json<TokenView> {
    Json(caller.0.into())
}

/// Tokens, without their texts, which nobody has.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "people", security(("bearer" = ["tokens:write"])),
    params(("cursor" = Option<String>, Query), ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<TokenView>)))]
async fn list_tokens(
    State(state): State<ApiState>,
    query: Pairs,
) -> Result<Json<Listing<TokenView>>, Problem> {
    query.only(&["cursor", "limit"])?;
    let (after, limit) = query.page::<String>()?;
    let page = state.fleet.list_tokens(after.as_deref(), limit);
    let items = page.items.into_iter().map(TokenView::from).collect();
    Ok(Json(Listing { items, next: page.next.map(|id| cursor(&id)) }))
}

/// Makes a token. Its text is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "people", security(("bearer" = ["tokens:write"])),
    request_body = TokenRequest,
    responses((status = 201, description = "Made", body = NewTokenView)))]
async fn create_token(
    State(state): State<ApiState>,
    caller: Caller,
    ApiJson(asked): ApiJson<TokenRequest>,
) -> Result<impl IntoResponse, Problem> {
    let created = state.fleet.create_token(&caller.actor(), &asked.name, asked.role, asked.expires).await?;
    let view = NewTokenView { text: created.text.reveal().to_owned(), token: created.token.into() };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], Json(view)))
}

/// Ends a token at once.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "people", security(("bearer" = ["tokens:write"])),
    params(("id" = String, Path)),
    responses((status = 200, description = "Revoked", body = TokenView)))]
async fn revoke_token(
    State(state): State<ApiState>,
    caller: Caller,
    ApiPath(id): ApiPath<String>,
) -> Result<Json<TokenView>, Problem> {
    Ok(Json(state.fleet.revoke_token(&caller.actor(), &id).await?.into()))
}

/// Who changed what, oldest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "people", security(("bearer" = ["audit:read"])),
    params(("cursor" = Option<String>, Query), ("limit" = Option<usize>, Query, description = "1 to 1,000"),
        ("from" = Option<u64>, Query, description = "Number of the first entry wanted; 1 is the first of all")),
    responses((status = 200, description = "One page", body = Listing<AuditView>)))]
async fn list_audit(
    State(state): State<ApiState>,
    query: Pairs,
) -> Result<Json<Listing<AuditView>>, Problem> {
    query.only(&["cursor", "limit", "from"])?;
    let (after, limit) = query.page::<u64>()?;
    let from = match after {
        Some(after) => after.saturating_add(1),
        None => query.one::<u64>("from")?.unwrap_or(1),
    };
    let page = state.fleet.audit_entries(from, limit).await?;
    let items = page.items.into_iter().map(AuditView::from).collect();
    Ok(Json(Listing { items, next: page.next.map(|seq| cursor(&seq)) }))
}
