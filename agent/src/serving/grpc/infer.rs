//! `ModelInfer` and `ModelStreamInfer`.

use super::{
    Call, Refused, Reply,
    frame::{self, Messages, Wait},
    status,
};
use crate::{
    monitor::Outcome,
    serving::{
        budget::Share,
        error::ApiError,
        flight::{Answered, Failed, InFlight, bad, run},
        http::body::OFF_THREAD,
        listen::Stopping,
        oip::{
            InferRequest,
            proto::{ProtoRequest, ProtoResponse},
            protobuf::Writer,
            response::deliver,
        },
        slots::Active,
        state::version,
    },
};
use axum::{body::Body, http::StatusCode, response::Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use std::{collections::VecDeque, convert::Infallible, pin::Pin, sync::Arc, time::Instant};

/// Bytes of an id that are told back in an error; a longer one is the error.
const MAX_ID: usize = 1_024;
/// Requests of one stream that are worked on at a time; they are answered in order.
const AT_ONCE: usize = 8;

/// One inference. `is_stream`: as a part of a stream, where the client may ask to be told that this was all.
pub(super) async fn infer(
    call: &Call,
    message: Bytes,
    share: Share,
    is_stream: bool,
) -> Result<Reply, Refused> {
    let started = if is_stream { Instant::now() } else { call.started };
    let size = message.len();
    let read = move || ProtoRequest::read(message).map_err(ApiError::from);
    let request = run(size > OFF_THREAD, read).await?;
    // Of a stream, where nothing else says which request an error is about.
    let id = request.id.get(..MAX_ID.min(request.id.len())).filter(|_| is_stream).map(str::to_owned);
    let refused = |error: ApiError| Refused { error, bundle: None, id: id.clone() };
    let wanted = match request.version.as_str() {
        "" => None,
        text => Some(version(text).map_err(refused)?),
    };
    let active = call.state.find(&request.model, wanted).map_err(refused)?;
    let mut flight = InFlight::new(active.clone(), &call.state, started);
    let bundle = Some(active.bundle_text.clone());
    match answer(call, &mut flight, request, size, share, is_stream).await {
        Ok((chunks, share)) => {
            flight.outcome = Outcome::Ok;
            Ok(Reply { chunks, bundle, share: Some(share) })
        }
        Err((outcome, error)) => {
            flight.outcome = outcome;
            Err(Refused { error, bundle, id })
        }
    }
}

async fn answer(
    call: &Call,
    flight: &mut InFlight,
    request: ProtoRequest,
    size: usize,
    mut share: Share,
    is_stream: bool,
) -> Result<(Vec<Bytes>, Share), Failed> {
    let active: Arc<Active> = flight.active.clone();
    let is_final = is_stream && request.wants_final().map_err(bad)?;
    let (model, came) = (request.model.clone(), call.came.clone());
    let received = Instant::now();
    let is_heavy =
        size > OFF_THREAD && request.has_contents() || call.state.0.regions.largest() > OFF_THREAD as u64;
    let (fitting, state, came_too) = (active.clone(), call.state.clone(), came.clone());
    let fit = move || {
        let manifest = &fitting.served.manifest;
        let mut memory = state.0.regions.lend(&came_too, &mut share);
        let request = request.fit(&manifest.interface, manifest.limits.batch_max, &mut memory)?;
        Ok::<_, ApiError>((request, share))
    };
    let (request, mut share) = run(is_heavy, fit).await.map_err(bad)?;
    flight.spent.input = received.elapsed();
    let InferRequest { id, inputs, outputs: wanted, urgency } = request;
    let Answered { outputs, prediction_id, prediction_count } = flight.compute(inputs, urgency).await?;

    let answered = Instant::now();
    let is_heavy = wanted.iter().any(|output| output.place.is_some())
        && call.state.0.regions.largest() > OFF_THREAD as u64;
    let (writing, state) = (active.clone(), call.state.clone());
    let write = move || {
        let manifest = &writing.served.manifest;
        let mut memory = state.0.regions.lend(&came, &mut share);
        let delivered = deliver(&outputs, &wanted, writing.is_batched(), &manifest.labels, &mut memory)?;
        let response = ProtoResponse {
            model: &model,
            version: &writing.served.bundle.counter.to_string(),
            id: id.as_deref(),
            parameters: writing.parameters(prediction_id, prediction_count),
            is_final,
        };
        let chunks = response.write(&delivered);
        drop(delivered);
        share.become_of(chunks.iter().map(Bytes::len).sum())?;
        Ok::<_, ApiError>((chunks, share))
    };
    let answer = run(is_heavy, write).await.map_err(bad)?;
    flight.spent.output = answered.elapsed();
    Ok(answer)
}

/// Answers requests in the order they came. One that fails is told so in its answer; only a stream that cannot be
/// read any further ends with an error.
pub(super) fn stream(call: Call, body: Body) -> Response {
    let config = &call.state.0.config;
    let messages = Messages::new(body, call.coding, config.body_limit_bytes, config);
    let deadline = call.deadline;
    let stopping = call.head.extensions.get::<Stopping>().cloned();
    let call = Arc::new(call);
    let reading = call.clone();
    let requests = stream::unfold(Some(messages), move |messages| {
        let (call, stopping) = (reading.clone(), stopping.clone());
        async move {
            let mut messages = messages?;
            let mut share = Share::new(&call.state);
            let next = match &stopping {
                None => messages.next(&mut share, Wait::Forever).await,
                Some(Stopping(told)) => tokio::select! {
                    next = messages.next(&mut share, Wait::Forever) => next,
                    () = told.cancelled() => {
                        let why = "the agent is stopping";
                        Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why))
                    }
                },
            };
            match next {
                Ok(Some(message)) => Some((Ok((message, share)), Some(messages))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        }
    });
    let answers = requests
        .map(move |request| {
            let call = call.clone();
            async move {
                let (message, share) = request?;
                Ok::<_, ApiError>(stream_answer(infer(&call, message, share, true).await))
            }
        })
        .buffered(AT_ONCE);
    let frames = Frames { answers: Some(Box::pin(answers)), pieces: VecDeque::new(), deadline };
    let frames = stream::unfold(frames, |mut frames| async move {
        let frame = frames.next().await?;
        Some((Ok::<_, Infallible>(frame), frames))
    });
    frame::answered(Body::new(StreamBody::new(frames)), None)
}

/// `ModelStreamInferResponse`: an error's text and which request it is about, or the response.
fn stream_answer(reply: Result<Reply, Refused>) -> Message {
    let mut head = Writer::new();
    match reply {
        Ok(Reply { mut chunks, share, .. }) => {
            head.head(2, chunks.iter().map(Bytes::len).sum());
            chunks.insert(0, head.finish().into());
            (chunks, share)
        }
        Err(Refused { error, id, .. }) => {
            head.element(1, error.message());
            if let Some(id) = id.filter(|id| !id.is_empty()) {
                head.message(2, |response| {
                    response.text(3, &id);
                });
            }
            (vec![head.finish().into()], None)
        }
    }
}

/// In pieces, and the memory they hold.
type Message = (Vec<Bytes>, Option<Share>);
type Answers = Pin<Box<dyn Stream<Item = Result<Message, ApiError>> + Send>>;

/// The answers of a stream as frames, and the trailers behind them.
struct Frames {
    /// `None` once the trailers are out.
    answers: Option<Answers>,
    pieces: VecDeque<Bytes>,
    deadline: Option<Instant>,
}

impl Frames {
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Some(Frame::data(piece));
        }
        let answers = self.answers.as_mut()?;
        let answer = match self.deadline {
            None => answers.next().await,
            Some(at) => match tokio::time::timeout_at(at.into(), answers.next()).await {
                Ok(answer) => answer,
                Err(_) => Some(Err(status::too_late())),
            },
        };
        let error = match answer.map(|answer| answer.and_then(|(chunks, share)| frame::framed(chunks, share)))
        {
            Some(Ok(pieces)) => {
                self.pieces = pieces;
                return self.pieces.pop_front().map(Frame::data);
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        self.answers = None;
        Some(frame::end(error.as_ref().map_or(Ok(()), Err)))
    }
}
