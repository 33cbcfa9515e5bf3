//! The accept loop: bounded connections, time limits against slow senders, orderly stop.
//!
//! Every listener takes HTTP/1 and, told by its first bytes, HTTP/2 for gRPC; so one socket file serves both, and so
//! does every port.

mod authority;
mod line;
mod peer;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

pub(super) use peer::{Came, User};
pub use socket::{SocketError, SocketFile};
pub use tls::{TlsError, acceptor};

use super::{
    budget::Window,
    error::ApiError,
    grpc,
    http::{metrics_router, router},
    state::ServingState,
};
use axum::{Router, body::Body, http::StatusCode, response::IntoResponse};
use futures::FutureExt;
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use line::{Line, Over};
use std::{convert::Infallible, io, panic::AssertUnwindSafe, sync::atomic::Ordering, time::Duration};
use stream::{Io, Protocol, Stream};
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::Semaphore, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Header fields of one request.
const MAX_HEADERS: usize = 64;
/// Bytes of a request head, and the piece in which bodies are read.
const BUFFER: usize = 256 * 1024;
/// Streams of one HTTP/2 connection at a time; more wait at the client.
const STREAMS: u32 = 64;
/// Bytes of one frame of HTTP/2.
const FRAME: u32 = 64 << 10;
/// Bytes of a request head over HTTP/2, unpacked.
const HEAD_LIST: u32 = 16 << 10;
/// An idle HTTP/2 connection is asked whether it lives, and given that long to say so.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 41\r\n\r\n{\"error\":\"too many connections are open\"}\n";

/// Where connections come in.
pub struct Listener(Kind);

enum Kind {
    Tcp(TcpListener, Option<TlsAcceptor>),
    Unix(SocketFile),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self(Kind::Tcp(listener, None))
    }
}

impl From<SocketFile> for Listener {
    fn from(socket: SocketFile) -> Self {
        Self(Kind::Unix(socket))
    }
}

/// A connection before any handshake.
struct Accepted {
    io: Io,
    came: Came,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// The same, over TLS.
    pub fn with_tls(listener: TcpListener, acceptor: TlsAcceptor) -> Self {
        Self(Kind::Tcp(listener, Some(acceptor)))
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.0 {
            Kind::Tcp(listener, tls) => {
                let (stream, peer) = listener.accept().await?;
                let _ = stream.set_nodelay(true); // only costs latency if it fails
                let came = Came::by_tcp(stream.local_addr()?, peer);
                Ok(Accepted { io: Io::Tcp(stream), came, tls: tls.clone() })
            }
            Kind::Unix(socket) => {
                let stream = socket.accept().await?;
                let came = Came::by_file(&stream);
                Ok(Accepted { io: Io::Unix(stream), came, tls: None })
            }
        }
    }
}

/// Told to requests that last, so that they end when the agent does.
#[derive(Clone)]
pub(super) struct Stopping(pub(super) CancellationToken);

/// What answers on a listener.
#[derive(Clone)]
struct Service {
    routes: Router,
    has_grpc: bool,
    state: ServingState,
    shutdown: CancellationToken,
}

/// Answers the Open Inference Protocol on every listener until `shutdown`, then stops accepting and
/// gives requests in flight `drain_timeout`. Returns when the last connection is closed.
pub async fn serve(listeners: Vec<Listener>, state: ServingState, shutdown: CancellationToken) {
    let routes = router(state.clone());
    let stopping = {
        let (state, shutdown) = (state.clone(), shutdown.clone());
        async move {
            shutdown.cancelled().await;
            state.0.stopping.store(true, Ordering::Release);
        }
    };
    let service = Service { routes, has_grpc: true, state, shutdown };
    tokio::join!(stopping, serve_all(listeners, service));
}

/// `/metrics`, `/healthz` and `/readyz` on listeners of their own.
pub async fn serve_metrics(listeners: Vec<Listener>, state: ServingState, shutdown: CancellationToken) {
    let routes = metrics_router(state.clone());
    serve_all(listeners, Service { routes, has_grpc: false, state, shutdown }).await;
}

async fn serve_all(listeners: Vec<Listener>, service: Service) {
    let accepting = listeners.into_iter().map(|listener| accept(listener, service.clone()));
    futures::future::join_all(accepting).await;
}

async fn accept(listener: Listener, service: Service) {
    let config = &service.state.0.config;
    let room = std::sync::Arc::new(Semaphore::new(config.max_connections));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = open.join_next() => continue, // forget finished connections as they end
            () = service.shutdown.cancelled() => break,
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: the connection stays in the queue, so wait a moment.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match room.clone().try_acquire_owned() {
            Ok(place) => {
                let connection = connection(accepted, service.clone());
                open.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(_) => {
                service.state.0.refused_connections.fetch_add(1, Ordering::Relaxed);
                refuse(accepted);
            }
        }
    }
    drop(listener);
    let drained = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(config.drain_timeout, drained).await.is_err() {
        tracing::warn!(connections = open.len(), "connections did not end in time and are cut");
        open.shutdown().await;
    }
}

/// One short answer without reading anything; if the socket does not take it at once, so be it. Behind TLS the
/// connection is only closed: an answer would cost the handshake.
fn refuse(Accepted { mut io, tls, .. }: Accepted) {
    if tls.is_some() {
        return;
    }
    tokio::spawn(async move {
        let answer = async {
            io.write_all(FULL).await?;
            io.shutdown().await
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), answer).await; // nobody is left to tell
    });
}

async fn connection(accepted: Accepted, service: Service) {
    struct Open(ServingState);
    impl Drop for Open {
        fn drop(&mut self) {
            self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
    service.state.0.connections.fetch_add(1, Ordering::Relaxed);
    let open = Open(service.state.clone());
    let config = &open.0.0.config;
    let (patience, write_timeout) = (config.header_timeout, config.write_timeout);
    let Accepted { io, came, tls } = accepted;
    let begin = async {
        let io = tls::handshake(io, tls, patience).await?;
        Stream::tell(io, patience, write_timeout).await
    };
    let begun = tokio::select! {
        begun = begin => begun,
        () = service.shutdown.cancelled() => None, // it has asked for nothing yet
    };
    let Some((stream, protocol)) = begun else { return };
    let line = (protocol == Protocol::Http2).then(Line::new);
    let window = line.as_ref().map(|_| Window::open(&open.0));
    if let Some(None) = window {
        open.0.0.refused_connections.fetch_add(1, Ordering::Relaxed);
        return; // bodies hold all memory there is
    }
    let window = window.flatten();
    let shutdown = service.shutdown.clone();
    let calls = line.clone();
    let answering = service_fn(move |request: Request<Incoming>| {
        let call = calls.as_ref().map(Line::enter);
        let answer = answer(service.clone(), came.clone(), request.map(Body::new));
        let answer = AssertUnwindSafe(answer).catch_unwind();
        async move {
            let answer = answer.await.unwrap_or_else(|_| {
                tracing::error!("a request handler panicked");
                let why = "the request broke the agent's handler";
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, why).into_response()
            });
            Ok::<_, Infallible>(match call {
                Some(call) => answer.map(|body| call.answer(body)),
                None => answer,
            })
        }
    });
    // Over HTTP/1 the socket and the time for the next head say as much.
    let watching = async || match &line {
        Some(line) => line.watch(config.idle_timeout, write_timeout).await,
        None => std::future::pending().await,
    };
    let stream = TokioIo::new(stream);
    /// Both kinds of connection end in the same way.
    macro_rules! until_shutdown {
        ($serving:expr) => {{
            let serving = $serving;
            tokio::pin!(serving);
            let over = tokio::select! {
                ended = &mut serving => Ok(ended),
                over = watching() => Err(over),
                () = shutdown.cancelled() => Err(Over::Idle),
            };
            match over {
                Ok(ended) => ended,
                Err(Over::Stalled) => return tracing::debug!("a client takes no answer and is cut off"),
                Err(Over::Idle) => {
                    serving.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = serving => ended,
                        _ = watching() => return, // it does not go
                    }
                }
            }
        }};
    }
    let ended = match protocol {
        Protocol::Http1 => until_shutdown!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(patience)
                .max_headers(MAX_HEADERS)
                .max_buf_size(BUFFER)
                .serve_connection(stream, answering)
        ),
        Protocol::Http2 => until_shutdown!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS)
                .initial_stream_window_size(window.as_ref().map(Window::bytes))
                .initial_connection_window_size(window.as_ref().map(Window::bytes))
                .max_frame_size(FRAME)
                .max_header_list_size(HEAD_LIST)
                .keep_alive_interval(PING)
                .keep_alive_timeout(PONG)
                .serve_connection(stream, answering)
        ),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}

async fn answer(service: Service, came: Came, mut request: Request<Body>) -> axum::response::Response {
    request.extensions_mut().insert(came.clone());
    if service.has_grpc && grpc::is_meant(&request) {
        request.extensions_mut().insert(Stopping(service.shutdown));
        return grpc::answer(service.state, came, request).await;
    }
    match service.routes.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
