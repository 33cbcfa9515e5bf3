//! `POST /v2/models/{model}/infer`: body in, tensors through the pool, body out, all of it counted.

use super::{
    ServingState,
    body::{Coding, OFF_THREAD, Share, coding_of, coding_wanted, linger, read, unpack},
    error::ApiError,
    models::{ModelPath, find},
};
use crate::{
    engine::{
        RunError,
        pool::{Answer, PoolError},
    },
    monitor::{Class, ErrorCode, Observation, Outcome},
    serving::{
        oip::{InferRequest, InferResponse, OipError, Part, response::ResponseParameters},
        shadow::{ActiveAnswer, Mirror},
        slots::Active,
        stats::Spent,
    },
};
use axum::{
    body::{Body, HttpBody},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use edgefleet_shared::tensor::Tensor;
use hyper::body::{Frame, SizeHint};
use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

const HEADER_LENGTH: &str = "inference-header-content-length";
/// Which bundle answered; also on errors.
const BUNDLE: &str = "x-edgefleet-bundle";
/// Responses up to this size are joined into one chunk: one write is cheaper than a short copy.
const JOIN_BELOW: usize = 64 * 1024;

/// One request in the counts, whatever becomes of it: a client that goes away drops it early.
struct InFlight {
    active: Arc<Active>,
    state: ServingState,
    started: Instant,
    rows: u64,
    outcome: Outcome,
    spent: Spent,
    classes: Vec<Class>,
}

impl InFlight {
    fn new(active: Arc<Active>, state: &ServingState, started: Instant) -> Self {
        active.stats.enter();
        Self {
            active,
            state: state.clone(),
            started,
            rows: 0,
            outcome: Outcome::Failed(ErrorCode::Cancelled),
            spent: Spent::default(),
            classes: Vec::new(),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.spent.total = self.started.elapsed();
        let now = self.state.0.monitor.now();
        self.active.stats.leave();
        self.active.stats.record(self.rows, self.outcome, self.spent, now.wall.as_millis());
        let seen = Observation {
            rows: self.rows,
            outcome: self.outcome,
            queue: self.spent.queue,
            infer: self.spent.infer,
            total: self.spent.total,
            classes: &self.classes,
        };
        self.active.recorder.record(&seen, now.mono_ms);
    }
}

pub(super) async fn infer(
    State(state): State<ServingState>,
    path: ModelPath,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let started = Instant::now();
    let active = match find(&state, &path) {
        Ok(active) => active,
        Err(refusal) => {
            linger(body);
            return refusal.into_response();
        }
    };
    let mut flight = InFlight::new(active.clone(), &state, started);
    let mut response = match answer(&state, &mut flight, &path, &headers, body).await {
        Ok(response) => {
            flight.outcome = Outcome::Ok;
            response
        }
        Err((outcome, error)) => {
            flight.outcome = outcome;
            error.into_response()
        }
    };
    drop(flight);
    if let Ok(bundle) = HeaderValue::from_str(&active.bundle_text) {
        response.headers_mut().insert(BUNDLE, bundle);
    }
    response
}

type Failed = (Outcome, ApiError);

/// The client's mistake.
fn bad(error: impl Into<ApiError>) -> Failed {
    let error = error.into();
    let ours = error.status == StatusCode::INTERNAL_SERVER_ERROR;
    let outcome = match error.status {
        StatusCode::SERVICE_UNAVAILABLE => Outcome::Rejected,
        _ => Outcome::Failed(if ours { ErrorCode::Engine } else { ErrorCode::BadInput }),
    };
    (outcome, error)
}

fn not_run(error: PoolError) -> Failed {
    match error {
        PoolError::QueueFull { retry_after, .. } => {
            (Outcome::Rejected, ApiError::busy(error.to_string(), retry_after))
        }
        PoolError::Stopped => {
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
            (Outcome::Failed(ErrorCode::Stopped), error)
        }
        PoolError::Run(RunError::BadInput(message)) => bad(ApiError::bad(message)),
        PoolError::Run(RunError::Engine(message)) => {
            (Outcome::Failed(ErrorCode::Engine), ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
        }
    }
}

async fn answer(
    state: &ServingState,
    flight: &mut InFlight,
    path: &ModelPath,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let limit = state.0.config.body_limit_bytes;
    let active = flight.active.clone();
    let head = header_length(headers).and_then(|length| Ok((length, coding_of(headers)?)));
    let (header_length, coding) = match head {
        Ok(head) => head,
        Err(refusal) => {
            linger(body);
            return Err(bad(refusal));
        }
    };
    let mut share = Share::new(state);
    let raw = read(&mut share, headers, body, limit).await.map_err(bad)?;
    let received = Instant::now();
    let is_heavy = coding != Coding::Identity && raw.len() > OFF_THREAD / 16
        || header_length.unwrap_or(raw.len()) > OFF_THREAD;
    let parsing = active.clone();
    let parse = move || {
        let raw = unpack(&mut share, raw, coding, limit)?;
        let manifest = &parsing.served.manifest;
        let request =
            InferRequest::parse(raw, header_length, &manifest.interface, manifest.limits.batch_max)?;
        Ok::<_, ApiError>((request, share))
    };
    let (request, _share) = run(is_heavy, parse).await.map_err(bad)?;
    flight.rows = rows(&active, &request.inputs);
    flight.spent.input = received.elapsed();

    let InferRequest { id, inputs, outputs: wanted } = request;
    let model = active.served.model.clone();
    let mirror = active.shadow().and_then(|shadow| shadow.admit(&inputs, flight.rows));
    let Answer { outputs, queue, infer } = state.0.pool.run(model, inputs).await.map_err(not_run)?;
    (flight.spent.queue, flight.spent.infer) = (queue, infer);

    let answered = Instant::now();
    if let Some(reader) = &active.classes {
        flight.classes = reader.read(&outputs);
    }
    let shadow = mirror.as_ref().map(Mirror::recorder);
    let prediction = state.0.monitor.remember(&active.recorder, &flight.classes, shadow);
    if let Some(mirror) = mirror {
        let answer = match &active.classes {
            Some(_) if !flight.classes.is_empty() => ActiveAnswer::Classes(flight.classes.clone()),
            _ => ActiveAnswer::Numbers(outputs.clone()),
        };
        let sequence = prediction.as_ref().map(|id| id.sequence);
        mirror.offer(sequence, answer, state.0.monitor.now().mono_ms);
    }
    let count = prediction.is_some().then_some(flight.classes.len());
    let coding = coding_wanted(headers);
    let json: usize = outputs
        .iter()
        .filter(|tensor| wanted.iter().any(|w| !w.binary && w.name == tensor.name()))
        .map(|tensor| tensor.data().len())
        .sum();
    let total: usize = outputs.iter().map(|tensor| tensor.data().len()).sum();
    let is_heavy = json > OFF_THREAD / 4 || coding != Coding::Identity && total > OFF_THREAD / 4;
    let model_name = path.model.clone();
    let writing = active.clone();
    let write = move || {
        let served = &writing.served;
        let response = InferResponse {
            model_name: &model_name,
            model_version: served.bundle.counter.to_string(),
            id: id.as_deref(),
            parameters: ResponseParameters {
                bundle: &writing.bundle_text,
                attempt: &writing.attempt_text,
                prediction_id: prediction.map(|id| id.to_string()),
                prediction_count: count,
            },
        };
        let part = response.write(&outputs, &wanted, writing.is_batched(), &served.manifest.labels)?;
        respond(part, coding)
    };
    let response = run(is_heavy, write).await.map_err(bad)?;
    flight.spent.output = answered.elapsed();
    Ok(response)
}

/// Heavy work goes to a thread of its own, so that it does not hold up other connections.
async fn run<T: Send + 'static>(
    is_heavy: bool,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !is_heavy {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the request could not be handled: {error}"),
        )),
    }
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, ApiError> {
    if !headers.contains_key(header::CONTENT_LENGTH) && !headers.contains_key(header::TRANSFER_ENCODING) {
        let why = "an inference request has a body: send Content-Length or chunks";
        return Err(ApiError::new(StatusCode::LENGTH_REQUIRED, why));
    }
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let value = value.to_str().unwrap_or("?").trim();
    match value.parse() {
        Ok(length) if value.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(length)),
        _ => {
            Err(ApiError::bad(format!("Inference-Header-Content-Length is {value:?}, not a count of bytes")))
        }
    }
}

/// Inputs in the request: the first dimension of a batched model.
fn rows(active: &Active, inputs: &[Tensor]) -> u64 {
    let batched = active.served.manifest.interface.inputs.iter().find(|spec| spec.shape.first() == Some(&-1));
    let tensor = batched.and_then(|spec| inputs.iter().find(|tensor| tensor.name() == spec.name));
    tensor.and_then(|tensor| tensor.shape().first()).map_or(1, |rows| *rows as u64)
}

fn respond(part: Part, coding: Coding) -> Result<Response, ApiError> {
    let Part { mut chunks, header_length } = part;
    let failed = |error: std::io::Error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the response cannot be compressed: {error}"),
        )
    };
    let level = flate2::Compression::fast();
    let encoded = match coding {
        Coding::Identity => None,
        Coding::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(Vec::new(), level);
            chunks.iter().try_for_each(|chunk| writer.write_all(chunk)).map_err(failed)?;
            Some(("gzip", writer.finish().map_err(failed)?))
        }
        Coding::Deflate => {
            let mut writer = flate2::write::ZlibEncoder::new(Vec::new(), level);
            chunks.iter().try_for_each(|chunk| writer.write_all(chunk)).map_err(failed)?;
            Some(("deflate", writer.finish().map_err(failed)?))
        }
    };
    let encoding = encoded.map(|(name, body)| {
        chunks = vec![Bytes::from(body)];
        name
    });
    let total: usize = chunks.iter().map(Bytes::len).sum();
    let body = if chunks.len() == 1 {
        Body::from(chunks.remove(0))
    } else if total <= JOIN_BELOW {
        let mut joined = BytesMut::with_capacity(total);
        chunks.iter().for_each(|chunk| joined.extend_from_slice(chunk));
        Body::from(joined.freeze())
    } else {
        Body::new(Chunks { left: total as u64, chunks: chunks.into() })
    };
    let mut response = Response::new(body);
    let kind = if header_length.is_some() { "application/octet-stream" } else { "application/json" };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(length) = header_length {
        response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    }
    if let Some(name) = encoding {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    Ok(response)
}

/// Chunks of known length: the client refuses `Transfer-Encoding`, and tensors are not copied.
struct Chunks {
    chunks: VecDeque<Bytes>,
    left: u64,
}

impl HttpBody for Chunks {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let chunk = self.chunks.pop_front();
        self.left -= chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

impl From<OipError> for Failed {
    fn from(error: OipError) -> Self {
        bad(error)
    }
}
