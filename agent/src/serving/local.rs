//! Inference for parts of this program, without a socket: the same slots, limits, queue, counts, monitor and shadow as
//! for clients of HTTP and gRPC.

use super::{
    budget::Share,
    error::ApiError,
    flight::{Answered, Failed, InFlight, bad, run},
    http::body::OFF_THREAD,
    oip::{InferRequest, InferResponse, compact::Compact, json::MOST_PER_BYTE, response::deliver},
    state::ServingState,
};
use crate::monitor::Outcome;
use axum::http::StatusCode;
use bytes::Bytes;
use std::time::{Duration, Instant};

/// How bytes become tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// An inference request of the protocol in JSON.
    Json(Bytes),
    /// The only input of the model, whole: as HTTP takes it behind a header length of 0.
    Raw(Bytes),
}

impl Body {
    pub fn len(&self) -> usize {
        match self {
            Self::Json(bytes) | Self::Raw(bytes) => bytes.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How an answer is written; always one line of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A response of the protocol.
    Response,
    /// Class, confidence and outputs by name.
    Compact,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// No room now, or the model was unloaded by hand: worth another try.
    #[error("{message}")]
    Busy { message: String, retry_after: Duration },
    /// The slot has no bundle yet, or no more.
    #[error("{0}")]
    NotServed(String),
    /// This input will never be answered.
    #[error("{0}")]
    Failed(String),
}

impl From<ApiError> for AskError {
    fn from(error: ApiError) -> Self {
        let message = error.message().to_owned();
        match (error.status, error.retry_after()) {
            (StatusCode::SERVICE_UNAVAILABLE, Some(retry_after)) => Self::Busy { message, retry_after },
            (StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE, _) => Self::NotServed(message),
            _ => Self::Failed(message),
        }
    }
}

/// Memory for an input of this program, out of what all requests may hold.
pub struct Room(Share);

impl Room {
    /// To be asked before `bytes` are read, or kept.
    ///
    /// # Errors
    /// [`AskError::Busy`] if there is none.
    pub fn of(state: &ServingState, bytes: usize) -> Result<Self, AskError> {
        let mut share = Share::new(state);
        share.grow(bytes)?;
        Ok(Self(share))
    }

    /// What was read; it keeps the room until nobody holds any of it.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        self.0.hold(vec![bytes]).swap_remove(0)
    }
}

/// Asks the model of `slot`; `body` has its [`Room`] already, and the answer brings its own. `id` names the input in the answer unless the request has an id of its own.
///
/// # Errors
/// [`AskError`]; what failed is counted as it is for clients.
pub async fn ask(
    state: &ServingState,
    slot: &str,
    body: Body,
    id: Option<String>,
    form: Form,
) -> Result<Bytes, AskError> {
    let started = Instant::now();
    let active = state.find(slot, None)?;
    let mut flight = InFlight::new(active, state, started);
    match answer(state, &mut flight, slot, (body, id), form).await {
        Ok(json) => {
            flight.outcome = Outcome::Ok;
            Ok(json)
        }
        Err((outcome, error)) => {
            flight.outcome = outcome;
            Err(error.into())
        }
    }
}

async fn answer(
    state: &ServingState,
    flight: &mut InFlight,
    slot: &str,
    (body, given_id): (Body, Option<String>),
    form: Form,
) -> Result<Bytes, Failed> {
    let (limit, found) = (state.0.config.body_limit_bytes, body.len());
    if found > limit {
        let why = format!("the input has {found} bytes, at most {limit} are allowed");
        return Err(bad(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, why)));
    }
    let mut share = Share::new(state);
    let (active, received) = (flight.active.clone(), Instant::now());
    let parsing = active.clone();
    let parse = move || {
        let (bytes, header_length) = match body {
            Body::Json(bytes) => (bytes, None),
            Body::Raw(bytes) => (bytes, Some(0)),
        };
        let manifest = &parsing.served.manifest;
        let (interface, batch_max) = (&manifest.interface, manifest.limits.batch_max);
        let request = InferRequest::parse(bytes, header_length, interface, batch_max, &mut share)?;
        Ok::<_, ApiError>((request, share))
    };
    let (request, mut share) = run(found > OFF_THREAD, parse).await.map_err(bad)?;
    flight.spent.input = received.elapsed();

    let InferRequest { id, inputs, outputs: mut wanted, urgency } = request;
    wanted.iter_mut().for_each(|output| output.binary = false); // one line of JSON has no place for it
    let id = id.or(given_id);
    let Answered { outputs, prediction_id, prediction_count } = flight.compute(inputs, urgency).await?;

    let answered = Instant::now();
    let total: usize = outputs.iter().map(|tensor| tensor.data().len()).sum();
    share.become_of(total.saturating_mul(MOST_PER_BYTE)).map_err(bad)?;
    let (writing, slot) = (active, slot.to_owned());
    let write = move || {
        let served = &writing.served;
        let delivered =
            deliver(&outputs, &wanted, writing.is_batched(), &served.manifest.labels, &mut share)?;
        let json = match form {
            Form::Response => {
                let response = InferResponse {
                    model_name: &slot,
                    model_version: served.bundle.counter.to_string(),
                    id: id.as_deref(),
                    parameters: writing.parameters(prediction_id, prediction_count),
                };
                response.write(&delivered)?.chunks.swap_remove(0) // nothing is binary: it is the only one
            }
            Form::Compact => {
                let classes = writing.classes.as_ref().map(|reader| reader.read(&outputs));
                let compact = Compact {
                    slot: &slot,
                    bundle: &writing.bundle_text,
                    id: id.as_deref(),
                    prediction_id: prediction_id.as_deref(),
                };
                let labels = &served.manifest.labels;
                compact.write(&classes.unwrap_or_default(), labels, &delivered)?.into()
            }
        };
        share.become_of(json.len())?;
        Ok(share.hold(vec![json]).swap_remove(0))
    };
    let json = run(total > OFF_THREAD / 4, write).await.map_err(bad)?;
    flight.spent.output = answered.elapsed();
    Ok(json)
}
