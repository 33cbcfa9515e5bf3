//! The HTTP side: limits, routes. Every error body is `{"error": text}`.

pub(super) mod access;
pub(super) mod body;
mod feedback;
mod infer;
mod metrics;
pub(super) mod models;
pub(super) mod repository;
pub(super) mod settings;
mod shared_memory;
mod status;
mod triton_metrics;

pub use super::{
    listen::{Listener, serve, serve_metrics},
    state::{ServingConfig, ServingState},
};
pub use status::{Family, Metric, StatusProvider};

use super::error::ApiError;
use axum::{
    Router,
    extract::State,
    middleware,
    routing::{get, post},
};

async fn not_found(uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::not_found(format!("there is nothing at {path}"))
}

async fn method_not_allowed(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed at {path}"))
}

async fn count(
    State(state): State<ServingState>,
    request: axum::extract::Request,
    next: middleware::Next,
) -> axum::response::Response {
    let response = next.run(request).await;
    state.count_response(response.status().as_u16());
    response
}

/// The routes of the main listener.
pub(super) fn router(state: ServingState) -> Router {
    let model = Router::new()
        .route("/", get(models::metadata))
        .route("/ready", get(models::ready))
        .route("/config", get(models::config))
        .route("/stats", get(models::stats))
        .route("/infer", post(infer::infer));
    let system_memory = Router::new()
        .route("/status", get(shared_memory::status))
        .route("/unregister", post(shared_memory::unregister))
        .route("/region/{region}/status", get(shared_memory::status))
        .route("/region/{region}/register", post(shared_memory::register))
        .route("/region/{region}/unregister", post(shared_memory::unregister));
    let cuda_memory = Router::new()
        .route("/status", get(shared_memory::no_cuda))
        .route("/unregister", post(shared_memory::no_cuda))
        .route("/region/{region}/status", get(shared_memory::no_cuda))
        .route("/region/{region}/register", post(shared_memory::no_cuda))
        .route("/region/{region}/unregister", post(shared_memory::no_cuda));
    let v2 = Router::new()
        .route("/", get(models::server))
        .route("/health/live", get(status::live))
        .route("/health/ready", get(status::ready))
        .route("/models/stats", get(models::all_stats))
        .nest("/models/{model}", model.clone())
        .nest("/models/{model}/versions/{version}", model)
        .route("/repository/index", post(repository::index))
        .route("/repository/models/{model}/load", post(repository::load))
        .route("/repository/models/{model}/unload", post(repository::unload))
        .route("/logging", get(settings::logging).post(settings::set_logging))
        .route("/trace/setting", get(settings::trace).post(settings::set_trace))
        .route("/models/{model}/trace/setting", get(settings::trace).post(settings::set_trace))
        .nest("/systemsharedmemory", system_memory)
        .nest("/cudasharedmemory", cuda_memory);
    Router::new()
        .nest("/v2", v2)
        .route("/v1/feedback", post(feedback::feedback))
        .route("/v1/status", get(status::status))
        .route("/healthz", get(status::live))
        .route("/readyz", get(status::ready))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), access::guard))
        .layer(middleware::from_fn_with_state(state.clone(), count))
        .with_state(state)
}

/// The routes of the metrics listener.
pub(super) fn metrics_router(state: ServingState) -> Router {
    Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(status::live))
        .route("/readyz", get(status::ready))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), access::guard))
        .with_state(state)
}

#[cfg(test)]
pub(super) mod tests;
