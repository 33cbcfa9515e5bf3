//! `POST /v2/models/{model}/infer`: body in, tensors through the pool, body out, all of it counted.

use super::{
    ApiError, ServingState,
    body::{Coding, OFF_THREAD, coding_of, coding_wanted, linger, read, unpack},
    models::ModelPath,
};
use crate::{
    monitor::Outcome,
    serving::{
        budget::Share,
        flight::{Answered, Failed, InFlight, bad, run},
        listen::Came,
        oip::{InferRequest, InferResponse, Part, json::MOST_PER_BYTE, response::deliver},
    },
};
use axum::{
    Extension,
    body::{Body, HttpBody},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Write,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

const HEADER_LENGTH: &str = "inference-header-content-length";
/// Which bundle answered; also on errors.
const BUNDLE: &str = "x-edgefleet-bundle";
/// Responses up to this size are joined into one chunk: one write is cheaper than a short copy.
const JOIN_BELOW: usize = 64 * 1024;

pub(super) async fn infer(
    State(state): State<ServingState>,
    path: ModelPath,
    Extension(came): Extension<Came>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let started = Instant::now();
    let active = match state.find(&path.model, path.version) {
        Ok(active) => active,
        Err(refusal) => {
            linger(body);
            return refusal.into_response();
        }
    };
    let mut flight = InFlight::new(active.clone(), &state, started);
    let mut response = match answer(&state, &mut flight, &path, came, &headers, body).await {
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

async fn answer(
    state: &ServingState,
    flight: &mut InFlight,
    path: &ModelPath,
    came: Came,
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
    // A few packed bytes may be many.
    let is_heavy = coding != Coding::Identity
        || header_length.unwrap_or(raw.len()) > OFF_THREAD
        || state.0.regions.largest() > OFF_THREAD as u64;
    let (parsing, regions, came_too) = (active.clone(), state.clone(), came.clone());
    let parse = move || {
        let raw = unpack(&mut share, raw, coding, limit)?;
        let manifest = &parsing.served.manifest;
        let mut memory = regions.0.regions.lend(&came_too, &mut share);
        let (interface, batch_max) = (&manifest.interface, manifest.limits.batch_max);
        let request = InferRequest::parse(raw, header_length, interface, batch_max, &mut memory)?;
        Ok::<_, ApiError>((request, share))
    };
    let (request, mut share) = run(is_heavy, parse).await.map_err(bad)?;
    flight.spent.input = received.elapsed();

    let InferRequest { id, inputs, outputs: wanted, urgency } = request;
    let Answered { outputs, prediction_id, prediction_count } = flight.compute(inputs, urgency).await?;

    let answered = Instant::now();
    let coding = coding_wanted(headers);
    let json: usize = outputs
        .iter()
        .filter(|tensor| wanted.iter().any(|w| !w.binary && w.name == tensor.name()))
        .map(|tensor| tensor.data().len())
        .sum();
    let total: usize = outputs.iter().map(|tensor| tensor.data().len()).sum();
    // Inputs are gone; what is written may be longer than what was computed.
    share.become_of(total.saturating_add(json.saturating_mul(MOST_PER_BYTE))).map_err(bad)?;
    let is_heavy = json > OFF_THREAD / 4 || coding != Coding::Identity && total > OFF_THREAD / 4;
    let model_name = path.model.clone();
    let (writing, regions) = (active.clone(), state.clone());
    let write = move || {
        let served = &writing.served;
        let response = InferResponse {
            model_name: &model_name,
            model_version: served.bundle.counter.to_string(),
            id: id.as_deref(),
            parameters: writing.parameters(prediction_id, prediction_count),
        };
        let mut memory = regions.0.regions.lend(&came, &mut share);
        let labels = &served.manifest.labels;
        let delivered = deliver(&outputs, &wanted, writing.is_batched(), labels, &mut memory)?;
        let part = response.write(&delivered)?;
        drop(delivered);
        respond(part, coding, share)
    };
    let response = run(is_heavy, write).await.map_err(bad)?;
    flight.spent.output = answered.elapsed();
    Ok(response)
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

/// The share stays with the body until the last byte is written.
fn respond(part: Part, coding: Coding, mut share: Share) -> Result<Response, ApiError> {
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
    if chunks.len() > 1 && total <= JOIN_BELOW {
        let mut joined = BytesMut::with_capacity(total);
        chunks.iter().for_each(|chunk| joined.extend_from_slice(chunk));
        chunks = vec![joined.freeze()];
    }
    share.become_of(total)?;
    let mut chunks = share.hold(chunks);
    let body = match chunks.len() {
        1 => Body::from(chunks.remove(0)),
        _ => Body::new(Chunks { left: total as u64, chunks: chunks.into() }),
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
