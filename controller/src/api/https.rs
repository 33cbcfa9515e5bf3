//! The HTTPS listener: our own accept loop, so that a slow handshake, a flood of connections or a client that
//! never sends its request costs a bounded amount and nobody else's time.

use super::peer::Peer;
use crate::{
    broker::{descriptor_limit, tls::ClockTime},
    clock::Clock,
    fleet::{
        ca::{Ca, Identity},
        certificate::DeviceCertificate,
    },
};
use arc_swap::ArcSwap;
use axum::{Router, body::Body, extract::Request};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
};
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// How much the listener gives to clients.
#[derive(Clone, Debug)]
pub struct HttpsLimits {
    /// Open connections in all; a quarter of the process's descriptors at most, the broker needs the rest.
    pub connections: usize,
    /// Of one address; a site behind one address shares it.
    pub connections_per_address: usize,
    pub handshake: Duration,
    /// For the head of a request, the wait for the next one included.
    pub head: Duration,
    /// For requests under way once shutdown began.
    pub drain: Duration,
}

impl Default for HttpsLimits {
    fn default() -> Self {
        Self {
            connections: 2_000,
            connections_per_address: 500,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            drain: Duration::from_secs(4),
        }
    }
}

/// Largest request head, bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;
const MAX_STREAMS: u32 = 64;

/// Why the port's TLS settings do not work.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    #[error("the authority's certificate cannot verify clients")]
    Authority(#[source] rustls::Error),
    #[error("client certificates cannot be verified")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error("the server certificate and key cannot be used")]
    Certificate(#[from] rustls::Error),
}

/// TLS 1.2 and 1.3; a client certificate is asked for, with our authority as the only hint, and not required.
/// One that is shown must be ours and in date. No session is resumed: each connection proves itself anew.
///
/// # Errors
/// [`HttpsError`].
pub fn server_config(identity: &Identity, ca: &Ca, clock: Clock) -> Result<ServerConfig, HttpsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).map_err(HttpsError::Authority)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock)))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Serves until `shutdown` is done, then lets requests under way finish for [`HttpsLimits::drain`].
///
/// `tls`: a stored value is used from the next handshake on.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    router: Router,
    limits: HttpsLimits,
    shutdown: impl Future<Output = ()> + Send,
) {
    let connections =
        descriptor_limit().map_or(limits.connections, |all| limits.connections.min(all / 4)).max(1);
    let places = Arc::new(Semaphore::new(connections));
    let addresses = Arc::new(Addresses::default());
    let graceful = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = %error, "a connection could not be accepted");
                if out_of_descriptors(&error) {
                    // It fails at once again until something closes.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(%address, connections, "all HTTPS connections are in use; one was refused");
            continue;
        };
        let Some(seat) = addresses.enter(address.ip(), limits.connections_per_address) else {
            tracing::warn!(%address, "an address has all the HTTPS connections it may have");
            continue;
        };
        let connection = Connection {
            router: router.clone(),
            tls: TlsAcceptor::from(tls.load_full()),
            limits: limits.clone(),
            address,
            _place: place,
            _seat: seat,
        };
        tokio::spawn(connection.run(socket, graceful.watcher()));
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(seconds = limits.drain.as_secs(), "requests under way were cut off");
    }
}

struct Connection {
    router: Router,
    tls: TlsAcceptor,
    limits: HttpsLimits,
    address: SocketAddr,
    _place: OwnedSemaphorePermit,
    _seat: Seat,
}

impl Connection {
    async fn run(self, socket: TcpStream, watcher: hyper_util::server::graceful::Watcher) {
        let _ = socket.set_nodelay(true); // only costs speed if it fails
        let handshake = tokio::time::timeout(self.limits.handshake, self.tls.accept(socket)).await;
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                return tracing::debug!(address = %self.address, error = %error, "no TLS session");
            }
            Err(_) => return tracing::debug!(address = %self.address, "the TLS handshake took too long"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.and_then(|der| match DeviceCertificate::parse(der) {
            Ok(certificate) => Some(Arc::new(certificate)),
            Err(error) => {
                tracing::warn!(address = %self.address, error = %error, "a client certificate names no device");
                None
            }
        });
        let peer = Peer { address: self.address, certificate };
        let router = self.router.clone();
        let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
            let mut request: Request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            router.clone().oneshot(request)
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD_BYTES as u32)
            .max_concurrent_streams(MAX_STREAMS)
            .keep_alive_interval(self.limits.head)
            .keep_alive_timeout(self.limits.handshake);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection.into_owned()).await {
            tracing::debug!(address = %self.address, error = %error, "a connection ended badly");
        }
    }
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Open connections by address.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

struct Seat {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    fn enter(self: &Arc<Self>, address: IpAddr, limit: usize) -> Option<Seat> {
        let mut open = self.0.lock();
        let count = open.entry(address).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Seat { addresses: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.addresses.0.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}
