//! The shared memory extension: system memory for programs on this machine, CUDA memory not at all.

use super::{ApiError, ServingState, body::read_json};
use crate::serving::listen::Came;
use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use serde::Deserialize;
use serde_json::{Value, json};

const LIMIT: usize = 64 * 1024;

#[derive(Deserialize)]
struct Register {
    key: String,
    #[serde(default)]
    offset: u64,
    byte_size: u64,
}

pub(super) async fn register(
    State(state): State<ServingState>,
    Path(region): Path<String>,
    Extension(came): Extension<Came>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    state.0.regions.allow(&came)?;
    let Register { key, offset, byte_size } = read_json(&state, &headers, body, LIMIT).await?;
    state.0.regions.register(&region, &key, offset, byte_size, came.user())?;
    Ok(StatusCode::OK)
}

pub(super) async fn unregister(
    State(state): State<ServingState>,
    region: Option<Path<String>>,
    Extension(came): Extension<Came>,
) -> Result<StatusCode, ApiError> {
    state.0.regions.allow(&came)?;
    state.0.regions.unregister(region.as_ref().map(|Path(region)| region.as_str()));
    Ok(StatusCode::OK)
}

pub(super) async fn status(
    State(state): State<ServingState>,
    region: Option<Path<String>>,
    Extension(came): Extension<Came>,
) -> Result<Json<Value>, ApiError> {
    state.0.regions.allow(&came)?;
    let regions = state.0.regions.status(region.as_ref().map(|Path(region)| region.as_str()))?;
    let each = regions.iter().map(|region| {
        json!({
            "name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.size,
        })
    });
    Ok(Json(each.collect()))
}

pub(super) async fn no_cuda() -> ApiError {
    ApiError::unsupported("CUDA shared memory is not supported; use system shared memory or send tensors")
}
