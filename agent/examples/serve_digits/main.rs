//! Serves `models/digits` with the agent's own parts but without a fleet: for clients' developers and
//! for `tests/python/tritonclient_story.py`. With `--measure` it prints what each way to the model costs instead.
//!
//! `cargo run --example serve_digits -- models/digits/v2 127.0.0.1:8000 [--measure]`

mod measure;

use anyhow::{Context, bail};
use edgefleet_agent::{
    clock,
    engine::{Engine, LoadedModel, pool::WorkerPool, setup::EngineName, tract::TractEngine},
    monitor::{Moment, Monitor, MonitorClock, MonitorConfig, RecordSink, SinkError},
    serving::{
        ServedBundle, SlotTable,
        http::{ServingConfig, ServingState, serve},
        listen::SocketFile,
    },
};
use edgefleet_shared::{
    bundle::{Interface, Limits, Manifest, ModelCard, Prediction, TensorSpec},
    digest::BundleDigest,
    ids::{AttemptId, BootId},
    reported::ClockQuality,
    telemetry::RecordBody,
    tensor::Datatype,
};
use measure::{Glance, Subject, measure};
use serde_json::Value;
use std::{net::SocketAddr, path::Path, sync::Arc, time::Instant};
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

fn spec(name: &str, datatype: Datatype, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.into() }
}

fn served(manifest: Manifest, model: Arc<dyn LoadedModel>) -> anyhow::Result<Arc<ServedBundle>> {
    let bundle = manifest.name();
    Ok(Arc::new(ServedBundle {
        slot: (&bundle.model).into(),
        digest: BundleDigest::of(&manifest.to_bytes()),
        attempt: AttemptId { rollout: "by-hand".parse()?, number: 1 },
        bundle,
        manifest,
        model,
        engine: EngineName::Tract,
        baseline: Default::default(),
    }))
}

fn digits(folder: &Path) -> anyhow::Result<Manifest> {
    let source: Value = toml::from_str(&std::fs::read_to_string(folder.join("bundle.toml"))?)?;
    let counter = source["model"]["counter"].as_u64().context("model.counter")?;
    Ok(Manifest {
        schema: 1,
        kind: Default::default(),
        engine: None,
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
    let mut picture = manifest.clone();
    picture.model.name = "picture".parse()?;
    picture.prediction = None;
    picture.interface = Interface {
        inputs: vec![spec("picture", Datatype::Fp32, &[-1, 3, 640, 640])],
        outputs: vec![spec("first", Datatype::Fp32, &[-1, 1])],
    };
    slots.activate(served(manifest, model.clone())?);
    let glance: Arc<dyn LoadedModel> = Arc::new(Glance);
    slots.activate(served(picture, glance.clone())?);
    let serving = ServingConfig { local_token: Some("example".into()), ..Default::default() };
    let pool = Arc::new(WorkerPool::new(2, 256)?);
    let state = ServingState::new(serving, slots, pool, monitor.clone());
    let listener = tokio::net::TcpListener::bind(address.parse::<SocketAddr>()?).await?;
    let address = listener.local_addr()?;
    println!("{address}");
    let socket = std::env::temp_dir().join(format!("serve-digits-{}.sock", std::process::id()));
    let file = SocketFile::listen(&socket, 0o600).await?;
    println!("{}", socket.display());
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    if rest.iter().any(|flag| flag == "--measure") {
        let subjects = [
            Subject { slot: "digits", input: "image", shape: vec![1, 64], model, rounds: (40, 100) },
            Subject {
                slot: "picture",
                input: "picture",
                shape: vec![1, 3, 640, 640],
                model: glance,
                rounds: (10, 20),
            },
        ];
        tokio::task::spawn_blocking(move || {
            for subject in &subjects {
                if let Err(error) = measure(address, &socket, subject) {
                    eprintln!("{}: {error:?}", subject.slot);
                }
            }
            stop.cancel();
        });
    } else {
        tokio::spawn(async move {
            let _ = tokio::signal::ctrl_c().await; // without signals the example runs until killed
            stop.cancel();
        });
    }
    serve(vec![listener.into(), file.into()], state, shutdown).await;
    monitor.flush();
    Ok(())
}
