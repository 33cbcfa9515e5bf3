//! Extensions that clients ask about: trace and log settings (fixed here), shared memory (absent).

use super::{ServingState, body::read_json, error::ApiError};
use axum::{Json, body::Body, extract::State, http::HeaderMap};
use serde_json::{Map, Value, json};

const LIMIT: usize = 64 * 1024;

fn log_settings() -> Value {
    json!({
        "log_file": "",
        "log_info": true,
        "log_warning": true,
        "log_error": true,
        "log_verbose_level": 0,
        "log_format": "default",
    })
}

fn trace_settings() -> Value {
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
    match wanted.iter().find(|(name, value)| !value.is_null() && current.get(name.as_str()) != Some(value)) {
        None => Ok(Json(current)),
        Some((name, _)) => {
            let name: String = name.chars().take(100).collect();
            Err(ApiError::unsupported(format!(
                "`{name}` is set by the agent's configuration, not over this API"
            )))
        }
    }
}

pub(super) async fn no_shared_memory() -> ApiError {
    ApiError::unsupported("shared memory is not supported; send tensors as binary data")
}
