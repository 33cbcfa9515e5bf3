//! HTTP: what people, programs and devices ask of the controller.
//!
//! Handlers translate and nothing more; what happens is in the parts behind them. Another part adds routes by
//! handing an [`OpenApiRouter`] (handlers with `#[utoipa::path]`, own state applied with `with_state`) to
//! [`router`]; its rules come from `security(...)`, see [`access`]. Routes that take uploads put their own
//! `DefaultBodyLimit` layer around themselves; everybody else's bodies end at [`MAX_BODY_BYTES`].

mod abilities;
pub mod access;
pub mod backup;
pub mod commands;
mod device_routes;
mod devices;
pub mod extract;
mod findings;
pub mod freezes;
pub mod https;
mod invites;
pub mod lookout;
pub mod metrics;
pub mod monitor;
pub mod operations;
mod outer;
pub mod peer;
mod people;
pub mod problem;
mod range;
pub mod rollout_views;
pub mod rollouts;
pub mod settings;
mod spec;
mod system;
pub mod take;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod views;

use crate::{blobs::BlobStore, fleet::Fleet, web::Pages};
use access::{Guard, RouteRule, RuleError};
use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{StatusCode, header},
    middleware::{from_fn, from_fn_with_state},
    response::IntoResponse,
    routing::get,
};
use metrics::Metrics;
use problem::Problem;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;

/// Largest body of a route that says nothing else.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// Says why a part cannot do its work, if so.
pub type ReadyCheck = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the API serves.
pub struct ApiParts {
    pub fleet: Arc<Fleet>,
    pub blobs: Arc<dyn BlobStore>,
    pub metrics: Arc<Metrics>,
    /// Asked by `/readyz` after the store.
    pub ready: Vec<ReadyCheck>,
    /// Routes of other parts.
    pub more: Vec<OpenApiRouter>,
    /// For people with a browser; with their own guard, and no part of the OpenAPI document.
    pub pages: Pages,
}

/// The finished API.
pub struct Api {
    /// For [`https::serve`].
    pub router: Router,
    /// The OpenAPI document, as `/openapi.json` gives it.
    pub document: String,
    /// Every route and who may call it.
    pub rules: Vec<RouteRule>,
}

#[derive(Clone)]
struct ApiState {
    fleet: Arc<Fleet>,
    blobs: Arc<dyn BlobStore>,
    metrics: Arc<Metrics>,
    ready: Arc<[ReadyCheck]>,
}

/// Why the API cannot be put together: a mistake in the program, found at start.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Rule(#[from] RuleError),
    #[error("the OpenAPI document cannot be written")]
    Document(#[source] serde_json::Error),
}

/// Puts all routes, their rules and their description together.
///
/// # Errors
/// [`ApiError::Rule`] if a route does not say who may call it.
pub fn router(parts: ApiParts) -> Result<Api, ApiError> {
    let ApiParts { fleet, blobs, metrics, ready, more, pages } = parts;
    let for_metrics = Arc::clone(&fleet);
    metrics.add_source(Box::new(move |text| system::fleet_metrics(&for_metrics, text)));
    let state =
        ApiState { fleet: Arc::clone(&fleet), blobs, metrics: Arc::clone(&metrics), ready: ready.into() };
    let own = OpenApiRouter::<ApiState>::with_openapi(spec::base())
        .merge(system::routes())
        .merge(devices::routes())
        .merge(invites::routes())
        .merge(people::routes())
        .merge(device_routes::routes())
        .with_state(state);
    let all = more.into_iter().fold(own, OpenApiRouter::merge);
    let (router, mut document) = all.split_for_parts();
    spec::finish(&mut document);
    let mut rules = access::rules_of(&document)?;
    let document = document.to_pretty_json().map_err(ApiError::Document)?;
    rules.push(RouteRule {
        method: axum::http::Method::GET,
        path: "/openapi.json".into(),
        access: access::Access::Public,
    });
    let served: Arc<str> = document.as_str().into();
    let router =
        router
            .route(
                "/openapi.json",
                get(move || {
                    let served = Arc::clone(&served);
                    async move {
                        ([(header::CONTENT_TYPE, "application/json")], served.to_string()).into_response()
                    }
                }),
            )
            .route_layer(from_fn_with_state(Arc::new(Guard::new(fleet, &rules)), access::guard))
            .merge(pages.router)
            .fallback(|| async { Problem::not_found("route-unknown", "there is nothing at this address") })
            .method_not_allowed_fallback(|| async {
                Problem::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method-not-allowed",
                    "this address knows other methods",
                )
            })
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .layer(from_fn(move |request, next| outer::around(Arc::clone(&metrics), request, next)));
    rules.extend(pages.rules);
    Ok(Api { router, document, rules })
}
