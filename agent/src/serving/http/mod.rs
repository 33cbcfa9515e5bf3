//! The HTTP side: listeners, limits, routes. Every error body is `{"error": text}`.

mod access;
mod body;
mod error;
mod feedback;
mod infer;
mod metrics;
mod models;
mod repository;
mod server;
mod settings;
mod status;

pub use server::{serve, serve_metrics};
pub use status::{Metric, StatusProvider};

use super::slots::SlotTable;
use crate::{engine::pool::WorkerPool, monitor::Monitor};
use axum::{
    Router,
    extract::State,
    middleware,
    routing::{get, post},
};
use error::ApiError;
use parking_lot::RwLock;
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Limits and names of the listeners. All sizes in bytes.
#[derive(Clone, Debug)]
pub struct ServingConfig {
    /// Largest request body, compressed or not.
    pub body_limit_bytes: usize,
    /// Largest sum of all bodies being read or answered at one time; beyond it 503.
    pub body_budget_bytes: usize,
    /// Open connections for each listener; one more is answered 503 and closed.
    pub max_connections: usize,
    /// For a complete request head; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Longest pause within a body.
    pub body_pause: Duration,
    /// Longest time for a whole body.
    pub body_timeout: Duration,
    /// At shutdown, for requests in flight.
    pub drain_timeout: Duration,
    /// Host names clients may use besides loopback and the address they connected to.
    pub host_names: Vec<String>,
    /// Bearer token of repository load and unload; absent, both are refused.
    pub local_token: Option<String>,
}

impl Default for ServingConfig {
    fn default() -> Self {
        Self {
            body_limit_bytes: 64 << 20,
            body_budget_bytes: 256 << 20,
            max_connections: 512,
            header_timeout: Duration::from_secs(30),
            body_pause: Duration::from_secs(10),
            body_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(5),
            host_names: Vec::new(),
            local_token: None,
        }
    }
}

/// What all requests share. Clones share one state.
#[derive(Clone)]
pub struct ServingState(Arc<Shared>);

struct Shared {
    config: ServingConfig,
    slots: SlotTable,
    pool: Arc<WorkerPool>,
    monitor: Arc<Monitor>,
    providers: RwLock<Vec<Arc<dyn StatusProvider>>>,
    ready: AtomicBool,
    stopping: AtomicBool,
    started: Instant,
    body_bytes: AtomicUsize,
    connections: AtomicUsize,
    /// Answers by status code; the codes are ours, so their number is bounded.
    responses: RwLock<BTreeMap<u16, AtomicU64>>,
    refused_connections: AtomicU64,
}

impl ServingState {
    pub fn new(
        config: ServingConfig,
        slots: SlotTable,
        pool: Arc<WorkerPool>,
        monitor: Arc<Monitor>,
    ) -> Self {
        Self(Arc::new(Shared {
            config,
            slots,
            pool,
            monitor,
            providers: RwLock::default(),
            ready: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            body_bytes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            responses: RwLock::default(),
            refused_connections: AtomicU64::new(0),
        }))
    }

    /// Adds a part to `GET /v1/status` and `/metrics`.
    pub fn add_status(&self, provider: Arc<dyn StatusProvider>) {
        self.0.providers.write().push(provider);
    }

    /// What health probes are told; `true` from the start. Set it to `false` while slots are restored.
    pub fn set_ready(&self, ready: bool) {
        self.0.ready.store(ready, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire) && !self.0.stopping.load(Ordering::Acquire)
    }

    pub fn slots(&self) -> &SlotTable {
        &self.0.slots
    }

    fn count_response(&self, status: u16) {
        if let Some(count) = self.0.responses.read().get(&status) {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.0.responses.write().entry(status).or_default().fetch_add(1, Ordering::Relaxed);
    }
}

/// The address a connection came in on.
#[derive(Clone, Copy, Debug)]
struct LocalAddress(IpAddr);

async fn not_found(uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::not_found(format!("there is nothing at {path}"))
}

async fn method_not_allowed(method: axum::http::Method, uri: axum::http::Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed at {path}"))
}

async fn count(
    State(state): State<ServingState>,
    request: axum::extract::Request,
    next: middleware::Next,
) -> axum::response::Response {
    let response = next.run(request).await;
    state.count_response(response.status().as_u16());
    response
}

/// The routes of the main listener.
fn router(state: ServingState) -> Router {
    let model = Router::new()
        .route("/", get(models::metadata))
        .route("/ready", get(models::ready))
        .route("/config", get(models::config))
        .route("/stats", get(models::stats))
        .route("/infer", post(infer::infer));
    let shared_memory = Router::new()
        .route("/status", get(settings::no_shared_memory))
        .route("/unregister", post(settings::no_shared_memory))
        .route("/region/{region}/status", get(settings::no_shared_memory))
        .route("/region/{region}/register", post(settings::no_shared_memory))
        .route("/region/{region}/unregister", post(settings::no_shared_memory));
    let v2 = Router::new()
        .route("/", get(models::server))
        .route("/health/live", get(status::live))
        .route("/health/ready", get(status::ready))
        .route("/models/stats", get(models::all_stats))
        .nest("/models/{model}", model.clone())
        .nest("/models/{model}/versions/{version}", model)
        .route("/repository/index", post(repository::index))
        .route("/repository/models/{model}/load", post(repository::load))
        .route("/repository/models/{model}/unload", post(repository::unload))
        .route("/logging", get(settings::logging).post(settings::set_logging))
        .route("/trace/setting", get(settings::trace).post(settings::set_trace))
        .route("/models/{model}/trace/setting", get(settings::trace).post(settings::set_trace))
        .nest("/systemsharedmemory", shared_memory.clone())
        .nest("/cudasharedmemory", shared_memory);
    Router::new()
        .nest("/v2", v2)
        .route("/v1/feedback", post(feedback::feedback))
        .route("/v1/status", get(status::status))
        .route("/healthz", get(status::live))
        .route("/readyz", get(status::ready))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), access::guard))
        .layer(middleware::from_fn_with_state(state.clone(), count))
        .with_state(state)
}

/// The routes of the metrics listener.
fn metrics_router(state: ServingState) -> Router {
    Router::new()
        .route("/metrics", get(metrics::metrics))
        .route("/healthz", get(status::live))
        .route("/readyz", get(status::ready))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), access::guard))
        .with_state(state)
}

#[cfg(test)]
mod tests;
