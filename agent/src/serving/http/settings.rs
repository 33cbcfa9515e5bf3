//! Trace and log settings, which clients may ask for; fixed here.

use super::{ApiError, ServingState, body::read_json};
use axum::{Json, body::Body, extract::State, http::HeaderMap};
use serde_json::{Map, Value, json};

const LIMIT: usize = 64 * 1024;

pub(in crate::serving) fn log_settings() -> Value {
    json!({
        "log_file": "",
        "log_info": true,
        "log_warning": true,
        "log_error": true,
        "log_verbose_level": 0,
        "log_format": "default",
    })
}

pub(in crate::serving) fn trace_settings() -> Value {
    json!({
        "trace_level": ["OFF"],
        "trace_rate": "0",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "triton",
    })
}

pub(super) async fn logging() -> Json<Value> {
    Json(log_settings())
}
pub(super) async fn trace() -> Json<Value> {
    Json(trace_settings())
}
pub(super) async fn set_logging(
    State(state): State<ServingState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    unchanged(&state, &headers, body, log_settings()).await
}
pub(super) async fn set_trace(
    State(state): State<ServingState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    unchanged(&state, &headers, body, trace_settings()).await
}

/// A request that asks for what is already so is granted.
async fn unchanged(
    state: &ServingState,
    headers: &HeaderMap,
    body: Body,
    current: Value,
) -> Result<Json<Value>, ApiError> {
    let wanted: Map<String, Value> = read_json(state, headers, body, LIMIT).await?;
    check_unchanged(wanted.iter(), &current)?;
    Ok(Json(current))
}

/// # Errors
/// 501 for a setting that is to be other than `current`.
pub(in crate::serving) fn check_unchanged<'a>(
    mut wanted: impl Iterator<Item = (&'a String, &'a Value)>,
    current: &Value,
) -> Result<(), ApiError> {
    match wanted.find(|(name, value)| !value.is_null() && current.get(name.as_str()) != Some(value)) {
        None => Ok(()),
        Some((name, _)) => {
            let name: String = name.chars().take(100).collect();
            Err(ApiError::unsupported(format!(
                "`{name}` is set by the agent's configuration, not over this API"
            )))
        }
    }
}
