//! What is open on one HTTP/2 connection: calls, and pieces of answers that are not written yet.
//!
//! A client that opens no window for its answers keeps the connection alive and reads nothing; the socket does not
//! tell. So answers go out in small pieces, and the age of the oldest says whether the client takes any.

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// Bytes of a piece. Two of each answer wait at most, so 64 KiB have to be taken within the time.
const PIECE: usize = 32 << 10;

pub(super) struct Line(Mutex<State>);

struct State {
    calls: usize,
    /// Since when there has been no call.
    rests: Instant,
    next: u64,
    /// Pieces that are not written, by their order, and since when.
    pieces: BTreeMap<u64, Instant>,
}

/// Why a connection is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// It asks for nothing.
    Idle,
    /// It takes no answer.
    Stalled,
}

impl Line {
    pub(super) fn new() -> Arc<Self> {
        let state = State { calls: 0, rests: Instant::now(), next: 0, pieces: BTreeMap::new() };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Counts a call until its answer is handed over.
    pub(super) fn enter(self: &Arc<Self>) -> OpenCall {
        self.0.lock().calls += 1;
        OpenCall(self.clone())
    }

    fn over(&self, now: Instant, idle: Duration, patience: Duration) -> Option<Over> {
        let state = self.0.lock();
        let since = |at: Instant| now.saturating_duration_since(at);
        match state.pieces.first_key_value() {
            Some((_, at)) => (since(*at) >= patience).then_some(Over::Stalled),
            None => (state.calls == 0 && since(state.rests) >= idle).then_some(Over::Idle),
        }
    }

    /// Returns when the connection is not to be kept. `idle` without a call, `patience` with a piece that is not taken.
    pub(super) async fn watch(&self, idle: Duration, patience: Duration) -> Over {
        let every = (idle.min(patience) / 4).max(Duration::from_millis(1));
        loop {
            tokio::time::sleep(every).await;
            if let Some(over) = self.over(Instant::now(), idle, patience) {
                return over;
            }
        }
    }
}

/// One call, to the end of its answer.
pub(super) struct OpenCall(Arc<Line>);

impl OpenCall {
    /// The answer in pieces that are watched.
    pub(super) fn answer(self, body: Body) -> Body {
        Body::new(Pieces { body, rest: Bytes::new(), call: self })
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.calls -= 1;
        state.rests = Instant::now();
    }
}

struct Pieces {
    body: Body,
    /// Of a frame that is larger than a piece.
    rest: Bytes,
    call: OpenCall,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let length = self.rest.len().min(PIECE);
        let bytes = self.rest.split_to(length);
        let line = self.call.0.clone();
        let number = {
            let mut state = line.0.lock();
            let number = state.next;
            state.next += 1;
            state.pieces.insert(number, Instant::now());
            number
        };
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(Piece { bytes, number, line })))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        inner.upper().iter().for_each(|upper| hint.set_upper(upper + rest));
        hint
    }
}

/// Until the connection has written it.
struct Piece {
    bytes: Bytes,
    number: u64,
    line: Arc<Line>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut state = self.line.0.lock();
        state.pieces.remove(&self.number);
        state.rests = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn pieces_are_the_whole_and_count_until_they_are_gone() {
        let line = Line::new();
        let whole: Bytes = (0..PIECE * 5 / 2).map(|at| at as u8).collect();
        let mut body = line.enter().answer(Body::from(whole.clone()));
        assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        let later = Instant::now() + Duration::from_secs(3_600);
        assert_eq!(line.over(later, second, second), None, "a call is open and nothing waits");
        let mut pieces = vec![];
        while let Some(frame) = body.frame().await {
            pieces.push(frame.unwrap().into_data().unwrap());
            assert_eq!(body.is_end_stream(), pieces.len() == 3);
        }
        drop(body);
        assert_eq!(pieces.concat(), whole);
        assert_eq!(line.over(later, second, second), Some(Over::Stalled));
        assert_eq!(line.over(later, second, day), None, "neither idle nor late");
        pieces.truncate(1);
        let slice = pieces.remove(0).slice(3..4);
        assert_eq!(line.over(later, second, second), Some(Over::Stalled), "a byte of it is held");
        drop(slice);
        assert_eq!(line.over(later, second, second), Some(Over::Idle));
        assert_eq!(line.over(later, day, second), None);
    }
}
