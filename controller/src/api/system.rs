//! Health, metrics, version.

use super::{
    ApiState,
    metrics::{MetricKind, MetricsText},
    problem::Problem,
    views::{StatusView, VersionView},
};
use crate::{fleet::Fleet, store::Health};
use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
};
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .routes(routes!(version))
}

/// The process runs and answers.
#[utoipa::path(get, path = "/healthz", tag = "system", security(()),
    responses((status = 200, description = "Alive", body = StatusView)))]
async fn healthz() -> Json<StatusView> {
    Json(StatusView { status: "ok".into() })
}

/// The controller can do its work. The reason why not is in the log and in `/metrics`, not here.
#[utoipa::path(get, path = "/readyz", tag = "system", security(()),
    responses((status = 200, description = "Ready", body = StatusView)))]
async fn readyz(State(state): State<ApiState>) -> Result<Json<StatusView>, Problem> {
    let mut reasons = Vec::new();
    match state.fleet.store().health().await {
        Health::Ready => {}
        Health::ReadOnly { reason } | Health::Down { reason } => reasons.push(reason),
    }
    reasons.extend(state.ready.iter().filter_map(|check| check().err()));
    if reasons.is_empty() {
        return Ok(Json(StatusView { status: "ready".into() }));
    }
    tracing::warn!(reasons = reasons.join("; "), "not ready");
    Err(Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "not-ready",
        "the controller cannot do all its work now",
    ))
}

/// Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "system", security(("bearer" = ["read"])),
    responses((status = 200, description = "Metrics", content_type = "text/plain", body = String)))]
async fn metrics(State(state): State<ApiState>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render())
}

/// What is running.
#[utoipa::path(get, path = "/api/v1/version", tag = "system", security(()),
    responses((status = 200, description = "Version", body = VersionView)))]
async fn version() -> Json<VersionView> {
    Json(VersionView { version: env!("CARGO_PKG_VERSION").into(), api: "v1".into() })
}

/// The fleet's own families.
pub(super) fn fleet_metrics(fleet: &Fleet, text: &mut MetricsText) {
    let counts = fleet.counts();
    let name = "edgefleet_devices";
    text.family(name, MetricKind::Gauge, "Devices by state.");
    for (state, count) in [
        ("pending", counts.pending),
        ("enrolled", counts.enrolled),
        ("denied", counts.denied),
        ("removed", counts.removed),
    ] {
        text.sample(name, &[("state", state)], count);
    }
    text.single("edgefleet_devices_online", MetricKind::Gauge, "Devices online now.", counts.online);
    let counters = fleet.counters();
    let name = "edgefleet_enrolments_total";
    text.family(name, MetricKind::Counter, "Answers to enrolment and renewal since the start.");
    for (outcome, count) in [
        ("enrolled", counters.enrolled),
        ("pending", counters.pending),
        ("refused", counters.refused),
        ("renewed", counters.renewed),
    ] {
        text.sample(name, &[("outcome", outcome)], count);
    }
}
