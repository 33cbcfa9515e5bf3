//! `POST /v1/feedback`: what the truth was.

use super::{ApiError, ServingState, body::read_json};
use crate::monitor::{LabelSource, labels::SourceName};
use axum::{Json, body::Body, extract::State, http::HeaderMap};
use edgefleet_shared::ids::PredictionId;
use serde::Deserialize;
use serde_json::{Value, json};

const LIMIT: usize = 4 << 20;
/// Labels in one request.
const MAX_LABELS: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Feedback {
    prediction_id: Option<String>,
    label: Option<Truth>,
    row: Option<u64>,
    source: Option<String>,
    labels: Option<Vec<OneLabel>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneLabel {
    prediction_id: String,
    label: Truth,
    row: Option<u64>,
}

/// A class name, or its index as a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Truth {
    Index(u32),
    Name(String),
}

impl Truth {
    fn into_text(self) -> String {
        match self {
            Self::Index(index) => index.to_string(),
            Self::Name(name) => name,
        }
    }
}

pub(super) async fn feedback(
    State(state): State<ServingState>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let sent: Feedback = read_json(&state, &headers, body, LIMIT).await?;
    let source = match sent.source {
        None => LabelSource::Local,
        Some(name) => {
            LabelSource::Named(name.parse::<SourceName>().map_err(|e| ApiError::bad(e.to_string()))?)
        }
    };
    let labels = match (sent.prediction_id, sent.label, sent.labels) {
        (Some(prediction_id), Some(label), None) => vec![OneLabel { prediction_id, label, row: sent.row }],
        (None, None, Some(labels)) if sent.row.is_none() => labels,
        _ => {
            let why = "feedback is {\"prediction_id\", \"label\", \"row\"?, \"source\"?} \
                       or {\"labels\": [...], \"source\"?}";
            return Err(ApiError::bad(why));
        }
    };
    if labels.len() > MAX_LABELS {
        let found = labels.len();
        return Err(ApiError::bad(format!("feedback has {found} labels, {MAX_LABELS} are allowed at once")));
    }
    let mut parsed: Vec<(PredictionId, u64, String)> = Vec::with_capacity(labels.len());
    for (index, one) in labels.into_iter().enumerate() {
        let id = one.prediction_id.parse().map_err(|e| ApiError::bad(format!("label {index}: {e}")))?;
        parsed.push((id, one.row.unwrap_or(0), one.label.into_text()));
    }
    let each = parsed.iter().map(|(id, row, label)| (id, *row, label.as_str()));
    let summary = state.0.monitor.join(&source, each);
    if let Some(captures) = state.0.captures.get() {
        parsed.iter().for_each(|(id, row, label)| captures.labelled(id, *row, label));
    }
    Ok(Json(json!({
        "matched": summary.matched,
        "correct": summary.correct,
        "unmatched": summary.unmatched,
        "compared": summary.compared,
    })))
}
