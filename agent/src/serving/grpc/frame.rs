//! Messages on a stream of HTTP/2: one byte that says whether it is packed, four of length, the message.

use super::{Reply, status};
use crate::serving::{
    budget::Share,
    error::ApiError,
    flight::run,
    http::body::{Coding, unpack},
    state::ServingConfig,
};
use axum::{
    body::{Body, BodyDataStream, HttpBody},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use hyper::body::Frame;
use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

pub(super) const KIND: HeaderValue = HeaderValue::from_static("application/grpc");
/// Before each message.
const HEAD: usize = 5;
/// Believed of an announced length ahead of the bytes.
const AHEAD: usize = 1 << 20;
/// Messages up to this size are joined into one piece: one write is cheaper than a short copy.
const JOIN_BELOW: usize = 64 * 1024;

/// How long the next message may keep the reader waiting; within a message the limits of all bodies hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Impatient,
    /// A stream of calls may rest between two of them for as long as its connection lives.
    Forever,
}

/// The messages of one call, read one at a time.
pub(super) struct Messages {
    stream: BodyDataStream,
    /// What came and was not taken.
    rest: Bytes,
    coding: Coding,
    limit: usize,
    pause: Duration,
    whole: Duration,
}

impl Messages {
    pub(super) fn new(body: Body, coding: Coding, limit: usize, config: &ServingConfig) -> Self {
        let stream = body.into_data_stream();
        let (pause, whole) = (config.body_pause, config.body_timeout);
        Self { stream, rest: Bytes::new(), coding, limit, pause, whole }
    }

    /// The next message, unpacked; `None` at the end.
    ///
    /// # Errors
    /// 413 above the limit, before anything is allocated; 408 if it comes too slowly, 503 beyond the budget, 400 if it
    /// breaks off.
    pub(super) async fn next(&mut self, share: &mut Share, wait: Wait) -> Result<Option<Bytes>, ApiError> {
        let begin = (wait == Wait::Impatient).then(|| Instant::now() + self.pause);
        if self.rest.is_empty() {
            match self.chunk(share, begin).await? {
                Some(chunk) => self.rest = chunk,
                None => return Ok(None),
            }
        }
        let deadline = Instant::now() + self.whole;
        let head = self.take(HEAD, share, deadline).await?;
        let (packed, length) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
        if length > self.limit {
            let limit = self.limit;
            let why = format!("the message has {length} bytes, {limit} bytes are allowed");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let message = self.take(length, share, deadline).await?;
        match (packed, self.coding) {
            (0, _) => Ok(Some(message)),
            (1, Coding::Gzip | Coding::Deflate) => {
                let state = share.state.clone();
                let mut own = std::mem::replace(share, Share::new(&state));
                let (coding, limit) = (self.coding, self.limit);
                // A few packed bytes may be many: not on the threads that serve the network.
                let unpacking =
                    move || unpack(&mut own, message, coding, limit).map(|message| (message, own));
                let (message, own) = run(true, unpacking).await?;
                *share = own;
                Ok(Some(message))
            }
            _ => Err(ApiError::bad("a message says it is packed, but the call does not say how")),
        }
    }

    async fn chunk(&mut self, share: &mut Share, by: Option<Instant>) -> Result<Option<Bytes>, ApiError> {
        loop {
            let next = match by {
                None => self.stream.next().await,
                Some(by) => match tokio::time::timeout_at(by.into(), self.stream.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        let why = "the message stopped coming";
                        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, why));
                    }
                },
            };
            match next {
                None => return Ok(None),
                Some(Err(error)) => return Err(ApiError::bad(format!("the call broke off: {error}"))),
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    share.grow(chunk.len())?;
                    return Ok(Some(chunk));
                }
            }
        }
    }

    /// Exactly `wanted` bytes; a slice of what came if they came together.
    async fn take(&mut self, wanted: usize, share: &mut Share, deadline: Instant) -> Result<Bytes, ApiError> {
        if self.rest.len() >= wanted {
            return Ok(self.rest.split_to(wanted));
        }
        let mut whole = BytesMut::new();
        while whole.len() + self.rest.len() < wanted {
            if !self.rest.is_empty() {
                if whole.is_empty() {
                    whole.reserve(wanted.min(AHEAD).max(self.rest.len()));
                }
                whole.extend_from_slice(&std::mem::take(&mut self.rest));
            }
            let by = deadline.min(Instant::now() + self.pause);
            self.rest = match self.chunk(share, Some(by)).await? {
                Some(chunk) => chunk,
                None => {
                    let found = whole.len();
                    return Err(ApiError::bad(format!(
                        "the message breaks off after {found} of {wanted} bytes"
                    )));
                }
            };
        }
        let missing = self.rest.split_to(wanted - whole.len());
        if whole.is_empty() {
            return Ok(missing);
        }
        whole.extend_from_slice(&missing);
        Ok(whole.freeze())
    }
}

/// A message in pieces as it is sent: its head in front, small ones in one piece. They keep the share until they are
/// written.
pub(super) fn framed(mut chunks: Vec<Bytes>, share: Option<Share>) -> Result<VecDeque<Bytes>, ApiError> {
    let length: usize = chunks.iter().map(Bytes::len).sum();
    let Ok(announced) = u32::try_from(length) else {
        let why = format!("the answer has {length} bytes, more than a message of gRPC can");
        return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why));
    };
    let joined = if length <= JOIN_BELOW { chunks.len() } else { chunks.len().min(1) };
    let mut first = BytesMut::with_capacity(HEAD + chunks[..joined].iter().map(Bytes::len).sum::<usize>());
    first.extend_from_slice(&[0]);
    first.extend_from_slice(&announced.to_be_bytes());
    chunks.drain(..joined).for_each(|chunk| first.extend_from_slice(&chunk));
    chunks.insert(0, first.freeze());
    Ok(match share {
        Some(share) => share.hold(chunks).into(),
        None => chunks.into(),
    })
}

/// The head of an answer whose messages come in its body.
pub(super) fn answered(body: Body, bundle: Option<&str>) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, KIND);
    if let Some(bundle) = bundle.and_then(|bundle| HeaderValue::from_str(bundle).ok()) {
        response.headers_mut().insert(super::BUNDLE, bundle);
    }
    response
}

/// One message and the end.
pub(super) fn respond(Reply { chunks, bundle, share }: Reply) -> Response {
    let bundle = bundle.as_deref();
    match framed(chunks, share) {
        Ok(pieces) => answered(Body::new(Whole { pieces, is_ended: false }), bundle),
        Err(error) => status::refusal(&error, bundle),
    }
}

/// The trailers that end a call.
pub(super) fn end(outcome: Result<(), &ApiError>) -> Frame<Bytes> {
    let mut trailers = HeaderMap::new();
    status::fill(&mut trailers, outcome);
    Frame::trailers(trailers)
}

struct Whole {
    pieces: VecDeque<Bytes>,
    is_ended: bool,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(match self.pieces.pop_front() {
            Some(piece) => Some(Ok(Frame::data(piece))),
            None if self.is_ended => None,
            None => {
                self.is_ended = true;
                Some(Ok(end(Ok(()))))
            }
        })
    }
}
