//! The accept loop: bounded connections, time limits against slow senders, orderly stop.

use super::{LocalAddress, ServingState, error::ApiError, metrics_router, router};
use axum::{Router, body::Body, http::StatusCode, response::IntoResponse};
use futures::FutureExt;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, panic::AssertUnwindSafe, sync::atomic::Ordering, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Header fields of one request.
const MAX_HEADERS: usize = 64;
/// Bytes of a request head, and the piece in which bodies are read.
const BUFFER: usize = 256 * 1024;
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 41\r\n\r\n{\"error\":\"too many connections are open\"}\n";

/// Answers the Open Inference Protocol on every listener until `shutdown`, then stops accepting and
/// gives requests in flight `drain_timeout`. Returns when the last connection is closed.
pub async fn serve(listeners: Vec<TcpListener>, state: ServingState, shutdown: CancellationToken) {
    let routes = router(state.clone());
    let stopping = {
        let (state, shutdown) = (state.clone(), shutdown.clone());
        async move {
            shutdown.cancelled().await;
            state.0.stopping.store(true, Ordering::Release);
        }
    };
    tokio::join!(stopping, serve_all(listeners, routes, state, shutdown));
}

/// `/metrics`, `/healthz` and `/readyz` on listeners of their own.
pub async fn serve_metrics(listeners: Vec<TcpListener>, state: ServingState, shutdown: CancellationToken) {
    serve_all(listeners, metrics_router(state.clone()), state, shutdown).await;
}

async fn serve_all(
    listeners: Vec<TcpListener>,
    routes: Router,
    state: ServingState,
    shutdown: CancellationToken,
) {
    let accepting = listeners
        .into_iter()
        .map(|listener| accept(listener, routes.clone(), state.clone(), shutdown.clone()));
    futures::future::join_all(accepting).await;
}

async fn accept(listener: TcpListener, routes: Router, state: ServingState, shutdown: CancellationToken) {
    let room = std::sync::Arc::new(Semaphore::new(state.0.config.max_connections));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue, // forget finished connections as they end
            () = shutdown.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory: the connection stays in the queue, so wait a moment.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match room.clone().try_acquire_owned() {
            Ok(place) => {
                let connection = connection(stream, routes.clone(), state.clone(), shutdown.clone());
                open.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(_) => {
                state.0.refused_connections.fetch_add(1, Ordering::Relaxed);
                refuse(stream);
            }
        }
    }
    drop(listener);
    let drained = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(state.0.config.drain_timeout, drained).await.is_err() {
        tracing::warn!(connections = open.len(), "connections did not end in time and are cut");
        open.shutdown().await;
    }
}

/// One short answer without reading anything; if the socket does not take it at once, so be it.
fn refuse(stream: TcpStream) {
    tokio::spawn(async move {
        let mut stream = stream;
        let answer = async {
            stream.write_all(FULL).await?;
            stream.shutdown().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), answer).await; // nobody is left to tell
    });
}

async fn connection(stream: TcpStream, routes: Router, state: ServingState, shutdown: CancellationToken) {
    struct Open(ServingState);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
    state.0.connections.fetch_add(1, Ordering::Relaxed);
    let open = Open(state);
    let _ = stream.set_nodelay(true); // only costs latency if it fails
    let local = stream.local_addr().ok().map(|address| LocalAddress(address.ip()));
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(local) = local {
            request.extensions_mut().insert(local);
        }
        let answer = AssertUnwindSafe(routes.clone().oneshot(request)).catch_unwind();
        async move {
            Ok::<_, Infallible>(match answer.await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => {
                    tracing::error!("a request handler panicked");
                    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the request broke the agent's handler")
                        .into_response()
                }
            })
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(open.0.0.config.header_timeout)
        .max_headers(MAX_HEADERS)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}
