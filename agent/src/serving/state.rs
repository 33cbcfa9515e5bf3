//! What all requests share, whichever way they come.

use super::{
    cache::Cache,
    error::ApiError,
    http::StatusProvider,
    shm::Regions,
    slots::{Active, SlotTable},
};
use crate::{capture::Captures, engine::pool::WorkerPool, monitor::Monitor};
use parking_lot::RwLock;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Limits and names of the listeners. All sizes in bytes.
#[derive(Clone, Debug)]
pub struct ServingConfig {
    /// Largest request body, compressed or not.
    pub body_limit_bytes: usize,
    /// Largest sum of all bodies being read or answered at one time, and of what HTTP/2 connections may send ahead of
    /// their readers; beyond it 503.
    pub body_budget_bytes: usize,
    /// Open connections for each listener; one more is answered 503 and closed.
    pub max_connections: usize,
    /// For a complete request head; also how long an idle connection is kept.
    pub header_timeout: Duration,
    /// Longest pause within a body.
    pub body_pause: Duration,
    /// Longest time for a whole body.
    pub body_timeout: Duration,
    /// Longest time without a byte that a client takes of its answer; then its connection is closed.
    pub write_timeout: Duration,
    /// An HTTP/2 connection without a call is closed after it; HTTP/1 has `header_timeout`.
    pub idle_timeout: Duration,
    /// At shutdown, for requests in flight.
    pub drain_timeout: Duration,
    /// Host names clients may use besides loopback and the address they connected to.
    pub host_names: Vec<String>,
    /// Bearer token of repository load and unload; absent, both are refused.
    pub local_token: Option<String>,
    /// Bearer token that every request from another machine must carry; absent, none need one.
    pub remote_token: Option<String>,
    /// Whether programs on this machine may register shared memory.
    pub shared_memory: bool,
    /// Most rows of requests that run together; 1 runs each alone.
    pub batch_rows: usize,
    /// Longest time that the first of them waits for others.
    pub batch_delay: Duration,
    /// Answers remembered for inputs that come again; 0 remembers none.
    pub cache_bytes: usize,
    /// Whether counts are also shown under the names of Triton's metrics.
    pub triton_metrics: bool,
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
            write_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(300),
            drain_timeout: Duration::from_secs(5),
            host_names: Vec::new(),
            local_token: None,
            remote_token: None,
            shared_memory: true,
            batch_rows: 1,
            batch_delay: Duration::ZERO,
            cache_bytes: 0,
            triton_metrics: false,
        }
    }
}

/// What all requests share. Clones share one state.
#[derive(Clone)]
pub struct ServingState(pub(super) Arc<Shared>);

pub(super) struct Shared {
    pub(super) config: ServingConfig,
    pub(super) slots: SlotTable,
    pub(super) pool: Arc<WorkerPool>,
    pub(super) monitor: Arc<Monitor>,
    /// Inputs kept for labelling; without it none are.
    pub(super) captures: OnceLock<Captures>,
    pub(super) providers: RwLock<Vec<Arc<dyn StatusProvider>>>,
    pub(super) regions: Regions,
    pub(super) cache: Option<Cache>,
    pub(super) ready: AtomicBool,
    pub(super) stopping: AtomicBool,
    pub(super) started: Instant,
    pub(super) body_bytes: AtomicUsize,
    /// Of all HTTP/2 connections.
    pub(super) window_bytes: AtomicUsize,
    pub(super) connections: AtomicUsize,
    /// Answers by status code; the codes are ours, so their number is bounded.
    pub(super) responses: RwLock<BTreeMap<u16, AtomicU64>>,
    pub(super) refused_connections: AtomicU64,
}

impl ServingState {
    pub fn new(
        config: ServingConfig,
        slots: SlotTable,
        pool: Arc<WorkerPool>,
        monitor: Arc<Monitor>,
    ) -> Self {
        let regions = Regions::new(config.shared_memory);
        let cache = Cache::new(config.cache_bytes);
        Self(Arc::new(Shared {
            config,
            regions,
            cache,
            slots,
            pool,
            monitor,
            captures: OnceLock::new(),
            providers: RwLock::default(),
            ready: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            body_bytes: AtomicUsize::new(0),
            window_bytes: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            responses: RwLock::default(),
            refused_connections: AtomicU64::new(0),
        }))
    }

    /// Adds a part to `GET /v1/status` and `/metrics`.
    pub fn add_status(&self, provider: Arc<dyn StatusProvider>) {
        self.0.providers.write().push(provider);
    }

    /// Lets requests be captured from now on. Set once.
    pub fn set_captures(&self, captures: Captures) {
        self.0.captures.set(captures).ok(); // a second one would change nothing
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

    pub(super) fn count_response(&self, status: u16) {
        if let Some(count) = self.0.responses.read().get(&status) {
            count.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.0.responses.write().entry(status).or_default().fetch_add(1, Ordering::Relaxed);
    }

    /// The activation that answers for a model, `version` being its counter if one is asked for.
    ///
    /// # Errors
    /// 404 for an unknown model or version, 503 if it was unloaded by hand.
    pub(super) fn find(&self, model: &str, version: Option<u64>) -> Result<Arc<Active>, ApiError> {
        let shown: String = model.chars().take(100).collect();
        let Some(active) = self.0.slots.lease(model) else {
            let slots = self.0.slots.list();
            let known: Vec<_> = slots.iter().take(20).map(|served| format!("`{}`", served.slot)).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            let why = format!("model `{shown}` is not served here; served: {known}");
            return Err(ApiError::not_found(why));
        };
        let counter = active.served.bundle.counter;
        if let Some(version) = version.filter(|version| *version != counter) {
            let why = format!("model `{shown}` has no version {version} here; version {counter} is active");
            return Err(ApiError::not_found(why));
        }
        if !active.is_available() {
            let why = format!("model `{shown}` was unloaded by hand");
            return Err(ApiError::busy(why, Duration::from_secs(10)));
        }
        Ok(active)
    }
}

/// A version as clients write it: the bundle's counter in digits.
///
/// # Errors
/// 400 for anything else.
pub(super) fn version(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        let text: String = text.chars().take(40).collect();
        ApiError::bad(format!("version {text:?} is not a number"))
    })
}
