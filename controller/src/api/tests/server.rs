//! A listening controller and clients for it.

use crate::{
    api::{
        self, ApiParts,
        access::RouteRule,
        https::{self, HttpsLimits},
        metrics::Metrics,
    },
    blobs::{BlobStore, local::LocalBlobs},
    fleet::{
        roles::Role,
        testing::{TestDevice, TestFleet, actor},
    },
};
use arc_swap::ArcSwap;
use edgefleet_shared::enroll::Enrolled;
use reqwest::{Client, Method, Response, StatusCode};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
};
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

pub(super) struct TestServer {
    pub(super) test: TestFleet,
    pub(super) address: SocketAddr,
    pub(super) rules: Vec<RouteRule>,
    pub(super) document: String,
    pub(super) blobs: Arc<dyn BlobStore>,
    pub(super) tls: Arc<ArcSwap<ServerConfig>>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl TestServer {
    pub(super) async fn start() -> Self {
        Self::with(HttpsLimits::default()).await
    }

    pub(super) async fn with(limits: HttpsLimits) -> Self {
        let test = TestFleet::new().await;
        let blobs: Arc<dyn BlobStore> =
            Arc::new(LocalBlobs::open(test.dir.path().join("blobs")).await.unwrap().0);
        let api = api::router(ApiParts {
            fleet: Arc::clone(&test.fleet),
            blobs: Arc::clone(&blobs),
            metrics: Arc::new(Metrics::default()),
            ready: vec![],
            more: vec![],
            pages: crate::web::Pages::default(),
        })
        .unwrap();
        let ca = test.fleet.ca();
        let config = https::server_config(&ca.server(), ca, test.clock.clock()).unwrap();
        let tls = Arc::new(ArcSwap::from_pointee(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(https::serve(listener, Arc::clone(&tls), api.router, limits, shutdown));
        let (rules, document) = (api.rules, api.document);
        Self { test, address, rules, document, blobs, tls, stop: Some(stop), serving }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.address.port())
    }

    /// Ends the listener and waits until it is gone.
    pub(super) async fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        (&mut self.serving).await.unwrap();
    }

    pub(super) fn tls_client(&self, identity: Option<Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.test.fleet.ca().certificate().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key).unwrap(),
        }
    }

    pub(super) fn client(&self, identity: Option<Identity>) -> Client {
        Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(self.tls_client(identity))
            .resolve("localhost", self.address)
            .build()
            .unwrap()
    }

    /// A client without anything, a new token of `role`.
    pub(super) async fn token(&self, role: Role) -> String {
        let created = self.test.fleet.create_token(&actor(), role.as_str(), role, None).await.unwrap();
        created.text.reveal().to_owned()
    }

    /// Sends JSON with a token of `role`.
    pub(super) async fn call(&self, role: Role, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request =
            self.client(None).request(method, self.url(path)).bearer_auth(self.token(role).await);
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::of(request.send().await.unwrap()).await
    }
}

/// A client certificate with its key.
pub(super) struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Identity {
    pub(super) fn of(device: &TestDevice, enrolled: &Enrolled) -> Self {
        Self {
            chain: vec![CertificateDer::from_pem_slice(enrolled.certificate.as_bytes()).unwrap()],
            key: PrivatePkcs8KeyDer::from(device.key.serialize_der()).into(),
        }
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: reqwest::header::HeaderMap,
    pub(super) json: Value,
}

impl Answer {
    /// Reads the answer; one that is an error must be a whole problem.
    pub(super) async fn of(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        let answer = Self { status, headers, json };
        if status.is_client_error() || status.is_server_error() {
            answer.assert_problem();
        }
        answer
    }

    fn assert_problem(&self) {
        let (json, code) = (&self.json, self.code());
        assert_eq!(self.headers["content-type"], "application/problem+json", "{json}");
        assert_eq!(json["type"], format!("urn:edgefleet:problem:{code}"));
        assert_eq!(json["status"], self.status.as_u16());
        let id = self.headers["x-request-id"].to_str().unwrap();
        assert_eq!(json["instance"], format!("urn:edgefleet:request:{id}"));
        assert!(json["title"].is_string() && json["detail"].is_string(), "{json}");
    }

    pub(super) fn code(&self) -> &str {
        self.json["code"].as_str().unwrap_or("")
    }
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}
