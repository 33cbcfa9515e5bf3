//! Serves `models/digits` with the agent's own parts but without a fleet: for clients' developers and
//! for `tests/python/tritonclient_story.py`. With `--measure` it prints what HTTP costs instead.
//!
//! `cargo run --example serve_digits -- models/digits/v2 127.0.0.1:8000 [--measure]`

use anyhow::{Context, bail};
use bytes::Bytes;
use edgefleet_agent::{
    clock,
    engine::{Engine, LoadedModel, pool::WorkerPool, tract::TractEngine},
    monitor::{Moment, Monitor, MonitorClock, MonitorConfig, RecordSink, SinkError},
    serving::{
        ServedBundle, SlotTable,
        http::{ServingConfig, ServingState, serve},
    },
};
use edgefleet_shared::{
    bundle::{Interface, Limits, Manifest, ModelCard, Prediction, TensorSpec},
    digest::BundleDigest,
    ids::{AttemptId, BootId},
    reported::ClockQuality,
    telemetry::RecordBody,
    tensor::{Datatype, Tensor},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

struct SinceStart(Instant);
impl MonitorClock for SinceStart {
    fn now(&self) -> Moment {
        let mono_ms = u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX);
        Moment { mono_ms, wall: clock::now(), clock: ClockQuality::Plausible }
    }
}

/// Windows and labels go to stderr, one JSON line each.
struct Printed;
impl RecordSink for Printed {
    fn append(&self, record: RecordBody) -> Result<(), SinkError> {
        let line = serde_json::to_string(&record).map_err(|e| SinkError { reason: e.to_string() })?;
        eprintln!("{line}");
        Ok(())
    }
}

fn digits(folder: &Path) -> anyhow::Result<Manifest> {
    let source: Value = toml::from_str(&std::fs::read_to_string(folder.join("bundle.toml"))?)?;
    let counter = source["model"]["counter"].as_u64().context("model.counter")?;
    let spec =
        |name: &str, datatype, shape: &[i64]| TensorSpec { name: name.into(), datatype, shape: shape.into() };
    Ok(Manifest {
        schema: 1,
        model: ModelCard {
            name: "digits".parse()?,
            counter,
            version: format!("{counter}.0.0"),
            task: "classification".into(),
            description: String::new(),
            license: String::new(),
            owner: String::new(),
        },
        artifacts: vec![],
        interface: Interface {
            inputs: vec![spec("image", Datatype::Fp32, &[-1, 64])],
            outputs: vec![
                spec("probabilities", Datatype::Fp32, &[-1, 10]),
                spec("label", Datatype::Int64, &[-1]),
            ],
        },
        prediction: Some(Prediction { class: Some("label".into()), scores: Some("probabilities".into()) }),
        labels: std::fs::read_to_string(folder.join("labels.txt"))?.lines().map(str::to_owned).collect(),
        pipeline: None,
        golden: vec![],
        baseline: None,
        limits: Limits { peak_memory_bytes: 64 << 20, p95_latency_ms: 50.0, batch_max: 512 },
        lineage: Default::default(),
        compat: Default::default(),
    })
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, address, rest @ ..] = arguments.as_slice() else {
        bail!("usage: serve_digits FOLDER ADDRESS [--measure]");
    };
    let folder = Path::new(folder);
    let manifest = digits(folder)?;
    let model = TractEngine::new().load(&folder.join("model.onnx"), &manifest.interface)?;
    let model: Arc<dyn LoadedModel> = Arc::from(model);
    let config = MonitorConfig::new("example".parse()?, BootId::from_random([1; 16]));
    let monitor = Arc::new(Monitor::new(config, Arc::new(SinceStart(Instant::now())), Arc::new(Printed)));
    let slots = SlotTable::new(monitor.clone());
    let bundle = manifest.name();
    slots.activate(Arc::new(ServedBundle {
        slot: (&bundle.model).into(),
        digest: BundleDigest::of(&manifest.to_bytes()),
        attempt: AttemptId { rollout: "by-hand".parse()?, number: 1 },
        bundle,
        manifest,
        model: model.clone(),
    }));
    let serving = ServingConfig { local_token: Some("example".into()), ..Default::default() };
    let pool = Arc::new(WorkerPool::new(2, 256)?);
    let state = ServingState::new(serving, slots, pool, monitor.clone());
    let listener = tokio::net::TcpListener::bind(address.parse::<SocketAddr>()?).await?;
    let address = listener.local_addr()?;
    println!("{address}");
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    if rest.iter().any(|flag| flag == "--measure") {
        tokio::task::spawn_blocking(move || {
            let done = measure(address, model.as_ref());
            stop.cancel();
            done
        });
    } else {
        tokio::spawn(async move {
            let _ = tokio::signal::ctrl_c().await; // without signals the example runs until killed
            stop.cancel();
        });
    }
    serve(vec![listener], state, shutdown).await;
    monitor.flush();
    Ok(())
}

/// Alternates blocks of direct runs and HTTP requests with the same image; prints medians in us.
fn measure(address: SocketAddr, model: &dyn LoadedModel) -> anyhow::Result<()> {
    let raw = Bytes::from(vec![0u8; 256]);
    let image = Tensor::new("image", Datatype::Fp32, vec![1, 64], raw.clone())?;
    let json = json!({
        "parameters": {"binary_data_output": true},
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "parameters": {"binary_data_size": 256}}],
    })
    .to_string();
    let head = format!(
        "POST /v2/models/digits/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         inference-header-content-length: {}\r\n\r\n",
        json.len() + raw.len(),
        json.len()
    );
    let request = [head.as_bytes(), json.as_bytes(), &raw].concat();
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut ask = || -> anyhow::Result<Duration> {
        let began = Instant::now();
        stream.write_all(&request)?;
        let n = stream.read(&mut buffer)?; // small answers are one write
        let took = began.elapsed();
        anyhow::ensure!(
            buffer[..n].starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&buffer[..n])
        );
        Ok(took)
    };
    let (mut direct, mut http) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        for _ in 0..100 {
            let began = Instant::now();
            model.run(std::slice::from_ref(&image))?;
            direct.push(began.elapsed());
        }
        for _ in 0..100 {
            http.push(ask()?);
        }
    }
    let at = |times: &mut Vec<Duration>, q: usize| {
        times.sort_unstable();
        times[times.len() * q / 100].as_micros()
    };
    println!("direct p50 {} us, p95 {} us", at(&mut direct, 50), at(&mut direct, 95));
    println!("http   p50 {} us, p95 {} us", at(&mut http, 50), at(&mut http, 95));
    println!("added  p50 {} us", at(&mut http, 50).saturating_sub(at(&mut direct, 50)));
    Ok(())
}
