//! What models there are, what they take and how they have done.

use super::{ServingState, error::ApiError};
use crate::serving::{
    slots::Active,
    stats::{Timed, Totals},
};
use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
};
use edgefleet_shared::{bundle::TensorSpec, tensor::Datatype};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// `{model}` and perhaps `{version}` of a path, percent-decoded.
pub(super) struct ModelPath {
    pub(super) model: String,
    pub(super) version: Option<u64>,
}

impl<S: Send + Sync> FromRequestParts<S> for ModelPath {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(pairs) = Path::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad(format!("the path cannot be read: {error}")))?;
        let mut path = Self { model: String::new(), version: None };
        for (name, value) in pairs {
            match name.as_str() {
                "model" => path.model = value,
                "version" => {
                    let version = value.parse().map_err(|_| {
                        let value: String = value.chars().take(40).collect();
                        ApiError::bad(format!("version {value:?} is not a number"))
                    })?;
                    path.version = Some(version);
                }
                _ => {}
            }
        }
        Ok(path)
    }
}

/// The activation that answers for a path.
///
/// # Errors
/// 404 for an unknown model or version, 503 if it was unloaded by hand.
pub(super) fn find(state: &ServingState, path: &ModelPath) -> Result<Arc<Active>, ApiError> {
    let model: String = path.model.chars().take(100).collect();
    let Some(active) = state.0.slots.lease(&path.model) else {
        let slots = state.0.slots.list();
        let known: Vec<_> = slots.iter().take(20).map(|served| format!("`{}`", served.slot)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        return Err(ApiError::not_found(format!("model `{model}` is not served here; served: {known}")));
    };
    let counter = active.served.bundle.counter;
    if let Some(version) = path.version.filter(|version| *version != counter) {
        let why = format!("model `{model}` has no version {version} here; version {counter} is active");
        return Err(ApiError::not_found(why));
    }
    if !active.is_available() {
        let why = format!("model `{model}` was unloaded by hand");
        return Err(ApiError::busy(why, Duration::from_secs(10)));
    }
    Ok(active)
}

pub(super) async fn server() -> Json<Value> {
    Json(json!({
        "name": "edgefleet-agent",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": [
            "binary_tensor_data", "classification", "model_repository", "model_configuration", "statistics",
            "parameters",
        ],
    }))
}

pub(super) async fn ready(
    State(state): State<ServingState>,
    path: ModelPath,
) -> Result<StatusCode, ApiError> {
    find(&state, &path).map(|_| StatusCode::OK)
}

pub(super) async fn metadata(
    State(state): State<ServingState>,
    path: ModelPath,
) -> Result<Json<Value>, ApiError> {
    let active = find(&state, &path)?;
    let tensors = |specs: &[TensorSpec]| -> Vec<Value> {
        let each =
            |t: &TensorSpec| json!({"name": t.name, "datatype": t.datatype.as_str(), "shape": t.shape});
        specs.iter().map(each).collect()
    };
    let served = &active.served;
    Ok(Json(json!({
        "name": path.model,
        "versions": [served.bundle.counter.to_string()],
        "platform": "onnx_onnxv1",
        "inputs": tensors(&served.manifest.interface.inputs),
        "outputs": tensors(&served.manifest.interface.outputs),
        "parameters": {
            "bundle": active.bundle_text, "digest": served.digest.to_string(), "attempt": active.attempt_text,
        },
    })))
}

pub(super) async fn config(
    State(state): State<ServingState>,
    path: ModelPath,
) -> Result<Json<Value>, ApiError> {
    let active = find(&state, &path)?;
    let manifest = &active.served.manifest;
    let batched = active.is_batched();
    let tensors = |specs: &[TensorSpec]| -> Vec<Value> {
        specs
            .iter()
            .map(|spec| {
                let dims = if batched { &spec.shape[1..] } else { &spec.shape[..] };
                let kind = match spec.datatype {
                    Datatype::Bytes => "TYPE_STRING".to_owned(),
                    other => format!("TYPE_{other}"),
                };
                let mut tensor = json!({"name": spec.name, "data_type": kind, "dims": dims});
                if dims.is_empty() {
                    // The format wants at least one dimension; a reshape says that there is none.
                    tensor["dims"] = json!([1]);
                    tensor["reshape"] = json!({"shape": []});
                }
                tensor
            })
            .collect()
    };
    Ok(Json(json!({
        "name": path.model,
        "platform": "onnx_onnxv1",
        "backend": "tract",
        "version_policy": {"specific": {"versions": [active.served.bundle.counter]}},
        "max_batch_size": if batched { manifest.limits.batch_max } else { 0 },
        "input": tensors(&manifest.interface.inputs),
        "output": tensors(&manifest.interface.outputs),
        "parameters": {
            "bundle": {"string_value": active.bundle_text},
            "digest": {"string_value": active.served.digest.to_string()},
        },
    })))
}

fn timed(of: Timed) -> Value {
    json!({"count": of.count, "ns": of.ns})
}

fn statistics(active: &Active) -> Value {
    let Totals { rows, executions, last_ms, success, fail, queue, input, infer, output, batches, .. } =
        active.stats.totals();
    let batches: Vec<_> = batches
        .into_iter()
        .map(|(size, batch)| {
            json!({
                "batch_size": size,
                "compute_input": timed(batch.input),
                "compute_infer": timed(batch.infer),
                "compute_output": timed(batch.output),
            })
        })
        .collect();
    json!({
        "name": active.served.slot,
        "version": active.served.bundle.counter.to_string(),
        "last_inference": last_ms,
        "inference_count": rows,
        "execution_count": executions,
        "inference_stats": {
            "success": timed(success),
            "fail": timed(fail),
            "queue": timed(queue),
            "compute_input": timed(input),
            "compute_infer": timed(infer),
            "compute_output": timed(output),
            "cache_hit": timed(Timed::default()),
            "cache_miss": timed(Timed::default()),
        },
        "response_stats": {},
        "batch_stats": batches,
        "memory_usage": [],
    })
}

pub(super) async fn stats(
    State(state): State<ServingState>,
    path: ModelPath,
) -> Result<Json<Value>, ApiError> {
    let active = find(&state, &path)?;
    Ok(Json(json!({"model_stats": [statistics(&active)]})))
}

pub(super) async fn all_stats(State(state): State<ServingState>) -> Json<Value> {
    let each: Vec<_> = state.0.slots.actives().iter().map(|active| statistics(active)).collect();
    Json(json!({"model_stats": each}))
}
