//! A real server on loopback, spoken to byte by byte.

mod captures;
mod errors;
mod joins;
pub(in crate::serving) mod limits;
mod matrix;
mod shadow;
mod swap;
mod together;

use super::*;
use crate::{
    engine::{LoadedModel, RunError, pool::WorkerPool, setup::EngineName},
    monitor::{Moment, Monitor, MonitorClock, MonitorConfig, RecordSink, SinkError},
    serving::slots::{ServedBundle, SlotTable},
};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Interface, Limits, Manifest, ModelCard, Prediction, TensorSpec},
    digest::BundleDigest,
    ids::{AttemptId, BootId, BundleName},
    reported::ClockQuality,
    telemetry::RecordBody,
    tensor::{Datatype, Tensor},
};
use parking_lot::Mutex;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub(in crate::serving) fn pool(threads: usize, queue: usize) -> Arc<WorkerPool> {
    Arc::new(WorkerPool::new(threads, queue).unwrap())
}

/// A model made of a function.
pub(in crate::serving) struct Function<F>(pub(in crate::serving) F);
impl<F: Fn(&[Tensor]) -> Result<Vec<Tensor>, RunError> + Send + Sync> LoadedModel for Function<F> {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        (self.0)(inputs)
    }
}

/// Returns its input `x` as `y`.
pub(in crate::serving) fn echo() -> Arc<dyn LoadedModel> {
    Arc::new(Function(|inputs: &[Tensor]| Ok(inputs.iter().map(|x| x.clone().with_name("y")).collect())))
}

pub(in crate::serving) struct WallClock(Instant);
impl MonitorClock for WallClock {
    fn now(&self) -> Moment {
        let mono_ms = self.0.elapsed().as_millis() as u64;
        Moment { mono_ms, wall: crate::clock::now(), clock: ClockQuality::Plausible }
    }
}

#[derive(Default)]
pub(in crate::serving) struct Kept(pub(in crate::serving) Mutex<Vec<RecordBody>>);
impl RecordSink for Kept {
    fn append(&self, record: RecordBody) -> Result<(), SinkError> {
        self.0.lock().push(record);
        Ok(())
    }
}

pub(in crate::serving) fn spec(name: &str, datatype: Datatype, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.into() }
}

pub(in crate::serving) fn manifest(
    name: &str,
    counter: u64,
    inputs: &[TensorSpec],
    outputs: &[TensorSpec],
) -> Manifest {
    Manifest {
        schema: 1,
        kind: Default::default(),
        engine: None,
        model: ModelCard {
            name: name.parse().unwrap(),
            counter,
            version: "1".into(),
            task: String::new(),
            description: String::new(),
            license: String::new(),
            owner: String::new(),
        },
        artifacts: vec![],
        interface: Interface { inputs: inputs.into(), outputs: outputs.into() },
        prediction: None,
        labels: vec![],
        pipeline: None,
        golden: vec![],
        baseline: None,
        limits: Limits { peak_memory_bytes: 1 << 20, p95_latency_ms: 10.0, batch_max: 8 },
        lineage: BTreeMap::new(),
        compat: Default::default(),
    }
}

pub(in crate::serving) fn bundle(manifest: Manifest, model: Arc<dyn LoadedModel>) -> Arc<ServedBundle> {
    let bundle: BundleName = manifest.name();
    Arc::new(ServedBundle {
        slot: (&bundle.model).into(),
        digest: BundleDigest::of(bundle.to_string().as_bytes()),
        attempt: AttemptId { rollout: "r1".parse().unwrap(), number: bundle.counter as u32 },
        bundle,
        manifest,
        model,
        engine: EngineName::Tract,
        baseline: Default::default(),
    })
}

/// `echo-fp32` and so on: `x` and `y` are `[-1, 2]`.
pub(in crate::serving) fn echo_bundle(datatype: Datatype) -> Arc<ServedBundle> {
    let name = format!("echo-{}", datatype.as_str().to_lowercase());
    bundle(manifest(&name, 1, &[spec("x", datatype, &[-1, 2])], &[spec("y", datatype, &[-1, 2])]), echo())
}

/// Scores are the input, the class is the best of them; four labels.
pub(in crate::serving) fn classifier(counter: u64) -> Arc<ServedBundle> {
    let mut manifest = manifest(
        "digits",
        counter,
        &[spec("image", Datatype::Fp32, &[-1, 4])],
        &[spec("scores", Datatype::Fp32, &[-1, 4])],
    );
    manifest.prediction = Some(Prediction { class: None, scores: Some("scores".into()) });
    manifest.labels = ["zero", "one", "two", "three"].map(String::from).into();
    let model = |inputs: &[Tensor]| Ok(inputs.iter().map(|x| x.clone().with_name("scores")).collect());
    bundle(manifest, Arc::new(Function(model)))
}

/// One that serves nothing, and that nobody can reach.
pub(crate) fn state(config: ServingConfig) -> ServingState {
    let monitor = monitor(Arc::default());
    ServingState::new(config, SlotTable::new(monitor.clone()), pool(1, 1), monitor)
}

fn monitor(kept: Arc<Kept>) -> Arc<Monitor> {
    let config = MonitorConfig::new("dev-1".parse().unwrap(), BootId::from_random([7; 16]));
    Arc::new(Monitor::new(config, Arc::new(WallClock(Instant::now())), kept))
}

pub(in crate::serving) struct Server {
    pub(in crate::serving) address: SocketAddr,
    pub(in crate::serving) metrics: SocketAddr,
    pub(in crate::serving) state: ServingState,
    pub(in crate::serving) monitor: Arc<Monitor>,
    pub(in crate::serving) kept: Arc<Kept>,
    pub(in crate::serving) stop: CancellationToken,
    pub(in crate::serving) tasks: Vec<JoinHandle<()>>,
}

impl Server {
    pub(in crate::serving) async fn start(bundles: Vec<Arc<ServedBundle>>) -> Self {
        Self::with(ServingConfig::default(), pool(4, 256), bundles).await
    }

    pub(in crate::serving) async fn with(
        config: ServingConfig,
        pool: Arc<WorkerPool>,
        bundles: Vec<Arc<ServedBundle>>,
    ) -> Self {
        let kept = Arc::new(Kept::default());
        let monitor = monitor(kept.clone());
        let slots = SlotTable::new(monitor.clone());
        for bundle in bundles {
            slots.activate(bundle);
        }
        let state = ServingState::new(config, slots, pool, monitor.clone());
        let (main, metrics) = (listen().await, listen().await);
        let (address, metrics_address) = (main.local_addr().unwrap(), metrics.local_addr().unwrap());
        let stop = CancellationToken::new();
        let tasks = vec![
            tokio::spawn(serve(vec![main.into()], state.clone(), stop.clone())),
            tokio::spawn(serve_metrics(vec![metrics.into()], state.clone(), stop.clone())),
        ];
        Self { address, metrics: metrics_address, state, monitor, kept, stop, tasks }
    }

    pub(in crate::serving) async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), rest: Vec::new() }
    }
    /// One request on a connection of its own.
    pub(in crate::serving) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Answered {
        self.connect().await.call(method, path, headers, body).await
    }
    pub(in crate::serving) async fn get(&self, path: &str) -> Answered {
        self.call("GET", path, "", b"").await
    }
    pub(in crate::serving) async fn post(&self, path: &str, body: &str) -> Answered {
        self.call("POST", path, "", body.as_bytes()).await
    }
}

async fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

/// One keep-alive connection.
pub(in crate::serving) struct Client {
    pub(in crate::serving) stream: TcpStream,
    rest: Vec<u8>,
}

#[derive(Debug)]
pub(in crate::serving) struct Answered {
    pub(in crate::serving) status: u16,
    pub(in crate::serving) headers: BTreeMap<String, String>,
    pub(in crate::serving) body: Vec<u8>,
}

impl Answered {
    pub(in crate::serving) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
    pub(in crate::serving) fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
    pub(in crate::serving) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
    /// The JSON and the binary data behind it.
    pub(in crate::serving) fn split(&self) -> (Value, &[u8]) {
        let at =
            self.header("inference-header-content-length").map_or(self.body.len(), |n| n.parse().unwrap());
        (serde_json::from_slice(&self.body[..at]).unwrap(), &self.body[at..])
    }
}

impl Client {
    pub(in crate::serving) async fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> Answered {
        let length =
            if method == "GET" { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{length}{headers}\r\n");
        self.stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
        self.answer().await.expect("an answer")
    }

    /// The next answer, `None` if the connection ends without one.
    pub(in crate::serving) async fn answer(&mut self) -> Option<Answered> {
        let end = loop {
            if let Some(end) = self.rest.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8(self.rest.drain(..end + 4).collect()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: BTreeMap<_, _> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        assert!(!headers.contains_key("transfer-encoding"), "tritonclient refuses chunks: {headers:?}");
        let length: usize = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
        while self.rest.len() < length {
            assert!(self.more().await, "the body broke off");
        }
        Some(Answered { status, headers, body: self.rest.drain(..length).collect() })
    }

    async fn more(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut chunk));
        match read.await.expect("the server is silent") {
            Ok(n) if n > 0 => {
                self.rest.extend_from_slice(&chunk[..n]);
                true
            }
            _ => false,
        }
    }
}

/// `{"inputs": [{x}], ...}` for one tensor.
pub(in crate::serving) fn json_infer(
    name: &str,
    datatype: Datatype,
    shape: &[usize],
    data: &Value,
) -> String {
    serde_json::json!({
        "inputs": [{"name": name, "datatype": datatype.as_str(), "shape": shape, "data": data}]
    })
    .to_string()
}

pub(in crate::serving) fn raw(values: &[f32]) -> Bytes {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
