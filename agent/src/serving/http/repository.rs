//! The model repository extension. What is installed is the fleet's decision, signed; by hand a
//! model can only be taken out of service and put back.

use super::{ApiError, ServingState, access::check_token, body::read_json, models::ModelPath};
use crate::serving::describe;
use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// These bodies hold a few flags. `file:` overrides are refused, so they need no room.
const LIMIT: usize = 64 * 1024;

#[derive(Deserialize)]
pub(super) struct IndexRequest {
    #[serde(default)]
    ready: bool,
}

pub(super) async fn index(
    State(state): State<ServingState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let IndexRequest { ready } = read_json(&state, &headers, body, LIMIT).await?;
    let actives = state.0.slots.actives();
    let entries = actives.iter().filter(|active| !ready || active.is_available()).map(|active| {
        let (word, reason) = describe::state(active);
        json!({
            "name": active.served.slot,
            "version": active.served.bundle.counter.to_string(),
            "state": word,
            "reason": reason,
        })
    });
    Ok(Json(entries.collect()))
}

#[derive(Deserialize)]
struct Change {
    #[serde(default)]
    parameters: Map<String, Value>,
}

pub(super) async fn load(
    State(state): State<ServingState>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    change(&state, &path, &headers, body, true).await
}

pub(super) async fn unload(
    State(state): State<ServingState>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    change(&state, &path, &headers, body, false).await
}

async fn change(
    state: &ServingState,
    path: &ModelPath,
    headers: &HeaderMap,
    body: Body,
    available: bool,
) -> Result<StatusCode, ApiError> {
    check_token(headers, state.0.config.local_token.as_deref())?;
    let Change { parameters } = read_json(state, headers, body, LIMIT).await?;
    set_available(state, &path.model, parameters.keys().map(String::as_str), available)?;
    Ok(StatusCode::OK)
}

/// Takes a model out of service, or puts it back.
///
/// # Errors
/// 400 for parameters that would change the bundle, 404 if it is not installed.
pub(in crate::serving) fn set_available<'a>(
    state: &ServingState,
    model: &str,
    mut parameters: impl Iterator<Item = &'a str>,
    available: bool,
) -> Result<(), ApiError> {
    if let Some(name) = parameters.find(|name| *name == "config" || name.starts_with("file:")) {
        let name: String = name.chars().take(100).collect();
        return Err(ApiError::bad(format!(
            "`{name}` would replace parts of a signed bundle; release a new version of the model instead"
        )));
    }
    if state.0.slots.set_available(model, available) {
        return Ok(());
    }
    let model: String = model.chars().take(100).collect();
    Err(ApiError::not_found(format!("model `{model}` is not installed here; assign it at the controller")))
}
