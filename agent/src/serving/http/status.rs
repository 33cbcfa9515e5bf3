//! Health, and `GET /v1/status` for people and scripts on the device.

use super::{ApiError, ServingState};
use crate::monitor::ErrorCode;
use axum::{Json, extract::State, http::StatusCode};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, sync::atomic::Ordering};

/// One part of the agent that has something to tell: the update machine, the link.
pub trait StatusProvider: Send + Sync {
    /// Key in the document.
    fn name(&self) -> &'static str;
    /// Must not block: called on a thread that serves requests.
    fn status(&self) -> Value;
    /// For `/metrics`; must not block either. The names of one provider are its own.
    fn metrics(&self) -> Vec<Metric> {
        vec![]
    }
    /// The same for numbers that come once for each of several things.
    fn labelled(&self) -> Vec<Family> {
        vec![]
    }
}

/// One number without labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// `edgefleet_<noun>_<unit>[_total]`; a counter ends in `_total`.
    pub name: &'static str,
    pub help: &'static str,
    pub value: f64,
}

/// One name with a number for each of several things; values of labels come from settings, so they are few.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// As of [`Metric`].
    pub name: &'static str,
    pub help: &'static str,
    /// Labels and value.
    pub lines: Vec<(Vec<(&'static str, String)>, f64)>,
}

pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

pub(super) async fn ready(State(state): State<ServingState>) -> Result<StatusCode, ApiError> {
    if state.is_ready() {
        return Ok(StatusCode::OK);
    }
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is starting or stopping"))
}

pub(super) async fn status(State(state): State<ServingState>) -> Json<Value> {
    let mut slots = Map::new();
    for active in state.0.slots.actives() {
        let totals = active.stats.totals();
        let errors: BTreeMap<_, _> = ErrorCode::ALL
            .iter()
            .map(|code| code.as_str())
            .zip(totals.errors)
            .filter(|(_, n)| *n > 0)
            .collect();
        let ms = |q: f64| totals.total_us.quantile_us(q).map(|us| us / 1_000.0);
        let shadow = active.shadow().map(|shadow| {
            let (answered, failed) = shadow.answered();
            json!({
                "bundle": shadow.served.bundle,
                "digest": shadow.served.digest,
                "attempt": shadow.served.attempt.to_string(),
                "mirrored": shadow.mirrored(),
                "answered": answered,
                "failed": failed,
                "shed": shadow.shed(),
                "shedding": shadow.shedding(),
            })
        });
        slots.insert(
            active.served.slot.to_string(),
            json!({
                "bundle": active.bundle_text,
                "digest": active.served.digest,
                "attempt": active.attempt_text,
                "available": active.is_available(),
                "ok": totals.success.count,
                "rows": totals.rows,
                "errors": errors,
                "rejected": totals.rejected,
                "in_flight": active.stats.in_flight(),
                "total_ms": {"p50": ms(0.5), "p95": ms(0.95)},
                "shadow": shadow,
            }),
        );
    }
    let mut status = json!({
        "agent": env!("CARGO_PKG_VERSION"),
        "ready": state.is_ready(),
        "uptime_secs": state.0.started.elapsed().as_secs(),
        "connections": state.0.connections.load(Ordering::Relaxed),
        "records_waiting": state.0.monitor.waiting(),
        "slots": slots,
    });
    let providers = state.0.providers.read().clone();
    for provider in providers {
        status[provider.name()] = provider.status();
    }
    Json(status)
}
