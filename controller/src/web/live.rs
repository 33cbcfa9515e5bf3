//! One stream of small notices: which kinds of documents changed. Pages fetch themselves again when one is theirs.

use super::{Table, Web, guard::Visitor};
use crate::{
    api::problem::Problem,
    fleet::roles::Permission,
    store::announced::{Listening, Notice},
    web::answer::PageError,
};
use axum::{
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt as _, stream};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::OwnedSemaphorePermit;

/// Streams at a time.
pub(super) const MOST: usize = 512;
/// A line now and then keeps what lies in between from closing the connection.
const ALIVE: Duration = Duration::from_secs(20);
/// When browsers try again, milliseconds.
const RETRY: Duration = Duration::from_secs(3);

pub(super) fn routes(table: Table) -> Table {
    table.get("/events", Permission::Read, events)
}

async fn events(
    State(web): State<Arc<Web>>,
    visitor: Visitor,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    let place = web.streams.clone().try_acquire_owned().map_err(|_| {
        let detail = format!("{MOST} pages are live already");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "streams-full", detail)
    })?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let listening = web.changes.listen(last);
    let stream = notices(web, visitor.caller.0.id, listening, place);
    let sse = Sse::new(stream).keep_alive(KeepAlive::new().interval(ALIVE));
    Ok(([(header::CACHE_CONTROL, "no-store"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")], sse)
        .into_response())
}

/// Ends when the controller stops, when the token does, and when the reader is too slow: then it comes back with the
/// number of what it saw last.
fn notices(
    web: Arc<Web>,
    token: String,
    listening: Listening,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let Listening { missed, is_cut, next } = listening;
    // The first line tells when to come back; after a gap that cannot be filled everything may have changed.
    let begin = Event::default().retry(RETRY).event("begin").data(if is_cut { "all" } else { "new" });
    let missed = stream::iter(missed.into_iter().map(|notice| event(&notice)));
    let coming = stream::unfold((web, next, token, place), |(web, mut next, token, place)| async move {
        let notice = tokio::select! {
            notice = next.recv() => notice.ok()?,
            () = web.stop.cancelled() => return None,
        };
        web.operations.fleet.usable_token(&token)?;
        Some((event(&notice), (web, next, token, place)))
    });
    stream::iter([begin]).chain(missed).chain(coming).map(Ok)
}

fn event(notice: &Notice) -> Event {
    let kinds: Vec<_> = notice.kinds.iter().copied().collect();
    Event::default().id(notice.number.to_string()).data(kinds.join(" "))
}
