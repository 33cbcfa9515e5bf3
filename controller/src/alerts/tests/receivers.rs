//! What the tests share: receivers, a clock, and a queue to try.

use crate::{
    alerts::{AlertEvent, AlertKind, AlertSettings, Alerts, Channel, Secret, Severity, Wants, Way, Webhook},
    clock::Clock,
    store::{
        FleetStore,
        sled_home::{SledConfig, SledStore},
    },
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use edgefleet_shared::time::Timestamp;
use parking_lot::Mutex;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(super) const SECRET: &[u8] = b"a secret of 20 bytes";

/// A clock that tests move.
#[derive(Clone)]
pub(super) struct Hand(Arc<Mutex<Timestamp>>);

impl Hand {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Timestamp::from_secs(1_800_000_000))))
    }
    pub(super) fn now(&self) -> Timestamp {
        *self.0.lock()
    }
    pub(super) fn set(&self, at: Timestamp) {
        *self.0.lock() = at;
    }
    pub(super) fn forward(&self, by: Duration) {
        let mut now = self.0.lock();
        *now = *now + by;
    }
    pub(super) fn clock(&self) -> Clock {
        let own = self.clone();
        Arc::new(move || own.now())
    }
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Arrived {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

/// An HTTP server that answers what it was told to, then 204.
#[derive(Clone)]
pub(super) struct Receiver {
    pub(super) url: String,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    answers: Arc<Mutex<VecDeque<Response>>>,
}

impl Receiver {
    pub(super) async fn start(answers: Vec<Response>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let own = Self { url, arrived: Arc::default(), answers: Arc::new(Mutex::new(answers.into())) };
        let app = Router::new().fallback(take).with_state(own.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        own
    }
    pub(super) fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().clone()
    }
}

async fn take(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    receiver.arrived.lock().push(Arrived { headers, body });
    receiver.answers.lock().pop_front().unwrap_or_else(|| StatusCode::NO_CONTENT.into_response())
}

/// A TLS server called `localhost` and the certificate it is known by, PEM.
pub(super) fn tls() -> (TlsAcceptor, Vec<u8>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem().into_bytes())
}

pub(super) async fn store(dir: &Path) -> Arc<dyn FleetStore> {
    Arc::new(SledStore::open(SledConfig::new(dir.join("store"))).await.unwrap().0)
}

pub(super) fn hook(name: &str, url: &str, wants: Wants) -> Channel {
    let secret = Secret::new(SECRET);
    let way = Way::Webhook(Webhook { url: url.parse().unwrap(), secret, ca: None });
    Channel { name: name.parse().unwrap(), wants, digest: Duration::ZERO, way }
}

pub(super) async fn open(store: &Arc<dyn FleetStore>, channels: Vec<Channel>, hand: &Hand) -> Alerts {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Alerts::open(store.clone(), AlertSettings { channels }, hand.clock()).await.unwrap()
}

pub(super) fn event(hand: &Hand, occurrence: &str) -> AlertEvent {
    let (kind, severity) = (AlertKind::IncidentOpened, Severity::Critical);
    AlertEvent::new(kind, severity, hand.now(), occurrence, "Inputs of digits drift", "Blurred at 3 sites")
        .device(&"dev-1".parse().unwrap())
        .numbers([("js".to_owned(), 0.42.into())].into_iter().collect())
}
