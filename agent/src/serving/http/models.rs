//! What models there are, what they take and how they have done.

use super::{ApiError, ServingState};
use crate::serving::{
    describe::{self, ConfigTensor},
    slots::Active,
    state::version,
    stats::Timed,
};
use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{StatusCode, request::Parts},
};
use edgefleet_shared::{bundle::TensorSpec, tensor::Datatype};
use serde_json::{Map, Value, json};

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
                "version" => path.version = Some(version(&value)?),
                _ => {}
            }
        }
        Ok(path)
    }
}

pub(super) async fn server(State(state): State<ServingState>) -> Json<Value> {
    let extensions = describe::extensions(state.0.config.shared_memory);
    Json(json!({"name": describe::NAME, "version": describe::VERSION, "extensions": extensions}))
}

pub(super) async fn ready(
    State(state): State<ServingState>,
    path: ModelPath,
) -> Result<StatusCode, ApiError> {
    state.find(&path.model, path.version).map(|_| StatusCode::OK)
}

pub(super) async fn metadata(
    State(state): State<ServingState>,
    path: ModelPath,
) -> Result<Json<Value>, ApiError> {
    let active = state.find(&path.model, path.version)?;
    let tensors = |specs: &[TensorSpec]| -> Vec<Value> {
        let each =
            |t: &TensorSpec| json!({"name": t.name, "datatype": t.datatype.as_str(), "shape": t.shape});
        specs.iter().map(each).collect()
    };
    let served = &active.served;
    Ok(Json(json!({
        "name": path.model,
        "versions": [served.bundle.counter.to_string()],
        "platform": describe::platform(&active),
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
    let active = state.find(&path.model, path.version)?;
    let interface = &active.served.manifest.interface;
    let batched = active.is_batched();
    let tensors = |specs: &[TensorSpec]| -> Vec<Value> {
        let each = |tensor: ConfigTensor<'_>| {
            let kind = match tensor.datatype {
                Datatype::Bytes => "TYPE_STRING".to_owned(),
                other => format!("TYPE_{other}"),
            };
            let mut told = json!({"name": tensor.name, "data_type": kind, "dims": tensor.dims});
            if tensor.is_scalar {
                told["reshape"] = json!({"shape": []});
            }
            told
        };
        describe::config_tensors(specs, batched).map(each).collect()
    };
    Ok(Json(json!({
        "name": path.model,
        "platform": describe::platform(&active),
        "backend": describe::backend(&active),
        "version_policy": {"specific": {"versions": [active.served.bundle.counter]}},
        "max_batch_size": describe::max_batch(&active),
        "input": tensors(&interface.inputs),
        "output": tensors(&interface.outputs),
        "parameters": {
            "bundle": {"string_value": active.bundle_text},
            "digest": {"string_value": active.served.digest.to_string()},
        },
    })))
}

fn timed(times: &[(&str, Timed)]) -> Map<String, Value> {
    times.iter().map(|(name, of)| ((*name).to_owned(), json!({"count": of.count, "ns": of.ns}))).collect()
}

fn statistics(active: &Active) -> Value {
    let totals = active.stats.totals();
    let batches = totals.batches.iter().map(|(size, batch)| {
        let mut told = timed(&batch.times());
        told.insert("batch_size".to_owned(), (*size).into());
        Value::Object(told)
    });
    json!({
        "name": active.served.slot,
        "version": active.served.bundle.counter.to_string(),
        "last_inference": totals.last_ms,
        "inference_count": totals.rows,
        "execution_count": totals.executions,
        "inference_stats": timed(&totals.times()),
        "response_stats": {},
        "batch_stats": batches.collect::<Vec<_>>(),
        "memory_usage": [],
    })
}

pub(super) async fn stats(
    State(state): State<ServingState>,
    path: ModelPath,
) -> Result<Json<Value>, ApiError> {
    let active = state.find(&path.model, path.version)?;
    Ok(Json(json!({"model_stats": [statistics(&active)]})))
}

pub(super) async fn all_stats(State(state): State<ServingState>) -> Json<Value> {
    let each: Vec<_> = state.0.slots.actives().iter().map(|active| statistics(active)).collect();
    Json(json!({"model_stats": each}))
}
