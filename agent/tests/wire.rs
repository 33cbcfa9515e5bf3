//! The stock Python clients against the serving part of the agent, with models that return what they get, in every
//! datatype: the engine has not all of them. `tests/` tells the same story with a whole agent and a real model.

use edgefleet_agent::{
    clock,
    engine::{LoadedModel, RunError, pool::WorkerPool, setup::EngineName},
    monitor::{Moment, Monitor, MonitorClock, MonitorConfig, RecordSink, SinkError},
    serving::{
        ServedBundle, SlotTable,
        http::{ServingConfig, ServingState, serve},
        listen::SocketFile,
    },
};
use edgefleet_shared::{
    bundle::{Interface, Limits, Manifest, ModelCard, TensorSpec},
    digest::BundleDigest,
    ids::{AttemptId, BootId},
    reported::ClockQuality,
    telemetry::RecordBody,
    tensor::{Datatype, Tensor},
};
use std::{path::Path, process::Stdio, sync::Arc, time::Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const PYTHON: &str = "EDGEFLEET_TEST_PYTHON";

struct Echo;
impl LoadedModel for Echo {
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        Ok(inputs.iter().map(|x| x.clone().with_name("y")).collect())
    }
}

struct SinceStart(Instant);
impl MonitorClock for SinceStart {
    fn now(&self) -> Moment {
        let mono_ms = u64::try_from(self.0.elapsed().as_millis()).unwrap();
        Moment { mono_ms, wall: clock::now(), clock: ClockQuality::Plausible }
    }
}

struct Nowhere;
impl RecordSink for Nowhere {
    fn append(&self, _: RecordBody) -> Result<(), SinkError> {
        Ok(())
    }
}

fn echo(name: &str, datatype: Datatype, shape: &[i64]) -> Arc<ServedBundle> {
    let spec = |name: &str| TensorSpec { name: name.into(), datatype, shape: shape.into() };
    let manifest = Manifest {
        schema: 1,
        kind: Default::default(),
        engine: None,
        model: ModelCard {
            name: name.parse().unwrap(),
            counter: 1,
            version: "1".into(),
            task: String::new(),
            description: String::new(),
            license: String::new(),
            owner: String::new(),
        },
        artifacts: vec![],
        interface: Interface { inputs: vec![spec("x")], outputs: vec![spec("y")] },
        prediction: None,
        labels: vec![],
        pipeline: None,
        golden: vec![],
        baseline: None,
        limits: Limits { peak_memory_bytes: 1 << 20, p95_latency_ms: 10.0, batch_max: 8 },
        lineage: Default::default(),
        compat: Default::default(),
    };
    let bundle = manifest.name();
    Arc::new(ServedBundle {
        slot: (&bundle.model).into(),
        digest: BundleDigest::of(name.as_bytes()),
        attempt: AttemptId { rollout: "r1".parse().unwrap(), number: 1 },
        bundle,
        manifest,
        model: Arc::new(Echo),
        engine: EngineName::Tract,
        baseline: Default::default(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stock_client_gets_every_datatype_back() {
    let python = std::env::var_os(PYTHON).unwrap_or_else(|| {
        panic!("{PYTHON} names no interpreter with tritonclient; run `make setup` (`make test` does)")
    });
    let monitor = MonitorConfig::new("dev-1".parse().unwrap(), BootId::from_random([7; 16]));
    let monitor = Arc::new(Monitor::new(monitor, Arc::new(SinceStart(Instant::now())), Arc::new(Nowhere)));
    let slots = SlotTable::new(monitor.clone());
    use Datatype::*;
    for datatype in
        [Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64, Bytes]
    {
        let name = format!("echo-{}", datatype.as_str().to_lowercase());
        slots.activate(echo(&name, datatype, &[-1, 2]));
    }
    slots.activate(echo("echo-large", Fp32, &[-1, 1 << 20]));
    let pool = Arc::new(WorkerPool::new(2, 256).unwrap());
    let state = ServingState::new(ServingConfig::default(), slots, pool, monitor);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (http_at, grpc_at) = (http.local_addr().unwrap(), grpc.local_addr().unwrap());
    let file = SocketFile::listen(&socket, 0o600).await.unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(vec![http.into(), grpc.into(), file.into()], state, stop.clone()));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/python/wire_story.py");
    let told = tokio::process::Command::new(python)
        .arg(script)
        .args(["echo", "--http", &http_at.to_string(), "--grpc", &grpc_at.to_string(), "--socket"])
        .arg(&socket)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("no_proxy", "*")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{text}");
    stop.cancel();
    serving.await.unwrap();
    assert!(!socket.exists(), "the socket file is removed at the end");
}
