//! Measures what the budgets of ARCHITECTURE promise, on real processes: sizes, memory, start-up.
//!
//! `measure footprint --agent-bin FILE`, `measure connections --devices N`, `measure soak --requests N` and `measure
//! ingest --devices N`. Prints JSON; run it on an idle machine with exactly one agent on it (`make bench`).

mod clients;
mod ingest;
mod memory;
mod soak;
mod telemetry;

use anyhow::{Context, bail};
use edgefleet_controller::demo::{load::Holdout, stage::Stage};
use memory::{Pss, median};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Settling time before memory is read, and readings taken a second apart (DECISIONS 28).
const SETTLE: Duration = Duration::from_secs(30);
const READINGS: usize = 10;
const INFERENCES: usize = 1_000;
const STARTS: usize = 7;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| {
        args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).map(String::as_str)
    };
    let here = std::env::current_exe()?.parent().context("this program has no folder")?.to_owned();
    let agent = flag("--agent-bin").map_or_else(|| here.join("edgefleet-agent"), PathBuf::from);
    let controller = here.join("edgefleet");
    let dir = std::path::absolute(flag("--dir").unwrap_or("target/measure"))?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir)?;
    }
    std::fs::create_dir_all(dir.join("logs"))?;
    let result = match args.first().map(String::as_str) {
        Some("footprint") => footprint(&controller, &agent, &dir).await?,
        Some("connections") => {
            let devices = flag("--devices").unwrap_or("1000").parse()?;
            connections(&controller, &agent, &dir, devices).await?
        }
        Some("soak") => {
            let requests = flag("--requests").unwrap_or("3000000").parse()?;
            let swaps = flag("--swaps").unwrap_or("10").parse()?;
            soak::soak(&controller, &agent, &dir, requests, swaps).await?
        }
        Some("ingest") => {
            let devices = flag("--devices").unwrap_or("200").parse()?;
            let hours = flag("--hours").unwrap_or("12").parse()?;
            ingest::ingest(&controller, &agent, &dir, devices, hours).await?
        }
        _ => bail!(
            "usage: measure footprint [--agent-bin FILE] | connections [--devices N] | soak [--requests N] [--swaps N] \
             | ingest [--devices N] [--hours N] [--dir DIR]"
        ),
    };
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}

/// One agent, connected, digits loaded, 1,000 inferences done: size, memory, start to first answer.
async fn footprint(controller: &Path, agent: &Path, dir: &Path) -> anyhow::Result<Value> {
    let mut stage = Stage::open(controller.to_owned(), agent.to_owned(), dir.to_owned()).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = Pss::settled(stage.serve.pid()).await?;
    let invite = stage.command(&["device", "invite", "--labels", "site=lab"]).await?;
    stage.add_agent(1, invite["code"].as_str().context("no join code")?).await?;
    let bundle = dir.join("bundle");
    let bundle = bundle.to_string_lossy();
    stage.command(&["model", "build", "models/digits/v2", "--out", &bundle]).await?;
    let key = stage.controller_dir().join("keys/publisher.pk8");
    stage.command(&["model", "sign", &bundle, "--key", &key.to_string_lossy()]).await?;
    stage.command(&["model", "push", &bundle]).await?;
    stage.command(&["assign", "digits@2", "--select", "site=lab", "--probation", "1s"]).await?;
    let holdout = Holdout::load(Path::new("models/digits/holdout/holdout.json"))?;
    let client = reqwest::Client::builder().no_proxy().build()?;
    let base = stage.agents[0].base.clone();
    let started = Instant::now();
    while !answers(&client, &base, &holdout.images[0]).await {
        if started.elapsed() > Duration::from_secs(60) {
            bail!("the agent did not serve digits within 60 s");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for image in holdout.images.iter().cycle().take(INFERENCES) {
        if !answers(&client, &base, image).await {
            bail!("an inference failed");
        }
    }
    tokio::time::sleep(SETTLE).await;
    let serving = Pss::settled(stage.agents[0].process.pid()).await?;

    stage.agents[0].process.stop().await;
    let data = dir.join("agents/demo-01");
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        starts.push(start_to_answer(agent, &data, &client, &holdout.images[0]).await?);
    }
    Ok(json!({
        "agent_bytes": std::fs::metadata(agent)?.len(),
        "agent_pss": serving,
        "agent_start_to_first_inference_ms": { "median": median(&starts), "all": starts },
        "controller_bytes": std::fs::metadata(controller)?.len(),
        "controller_pss_idle": idle,
    }))
}

/// From exec to the first right answer over HTTP, milliseconds.
async fn start_to_answer(
    agent: &Path,
    data: &Path,
    client: &reqwest::Client,
    image: &[f32],
) -> anyhow::Result<f64> {
    // A port nobody has: the agent cannot be asked where it listens before it answers.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let started = Instant::now();
    let mut child = Command::new(agent)
        .arg("run")
        .arg("--data")
        .arg(data)
        .env("EDGEFLEET_AGENT_HTTP_LISTEN", format!("127.0.0.1:{port}"))
        .env("EDGEFLEET_AGENT_GRPC_LISTEN", "127.0.0.1:0")
        .env("EDGEFLEET_AGENT_METRICS_LISTEN", "127.0.0.1:0")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let base = format!("http://127.0.0.1:{port}");
    let answered = loop {
        if answers(client, &base, image).await {
            break Ok(started.elapsed().as_secs_f64() * 1e3);
        }
        if started.elapsed() > Duration::from_secs(20) {
            break Err(anyhow::anyhow!("the agent did not answer within 20 s"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    child.wait()?;
    answered
}

async fn answers(client: &reqwest::Client, base: &str, image: &[f32]) -> bool {
    let body = json!({"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image}]});
    let sent = client.post(format!("{base}/v2/models/digits/infer")).json(&body).send().await;
    match sent {
        Ok(response) if response.status().is_success() => response.bytes().await.is_ok(),
        _ => false,
    }
}

/// Memory of the controller before and after `devices` have connected over mTLS and reported.
async fn connections(controller: &Path, agent: &Path, dir: &Path, devices: usize) -> anyhow::Result<Value> {
    let stage = Stage::open(controller.to_owned(), agent.to_owned(), dir.to_owned()).await?;
    tokio::time::sleep(SETTLE).await;
    let idle = Pss::settled(stage.serve.pid()).await?;
    let uses = devices.to_string();
    let invite =
        stage.command(&["device", "invite", "--labels", "site=lab", "--uses", &uses, "--ttl", "2h"]).await?;
    let code = invite["code"].as_str().context("no join code")?;
    let enrolling = Instant::now();
    let identities = clients::enrol(code, devices).await?;
    let enrol_seconds = enrolling.elapsed().as_secs_f64();
    let connecting = Instant::now();
    let clients = clients::connect(&identities).await?;
    let connect_seconds = connecting.elapsed().as_secs_f64();
    let started = Instant::now();
    loop {
        let text = stage.get_text("/metrics").await?;
        let connected = text.lines().find_map(|line| line.strip_prefix("edgefleet_mqtt_connections "));
        if connected.and_then(|n| n.trim().parse::<usize>().ok()) == Some(devices) {
            break;
        }
        if started.elapsed() > Duration::from_secs(60) {
            bail!("only {connected:?} of {devices} devices stayed connected");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(SETTLE).await;
    let loaded = Pss::settled(stage.serve.pid()).await?;
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", stage.serve.pid()))?.count();
    drop(clients);
    let per_thousand = (loaded.pss_bytes.saturating_sub(idle.pss_bytes)) as f64 * 1e3 / devices as f64;
    Ok(json!({
        "devices": devices,
        "controller_pss_idle": idle,
        "controller_pss_connected": loaded,
        "controller_pss_bytes_per_1000_devices": per_thousand,
        "controller_descriptors": descriptors,
        "enrolments_per_second": devices as f64 / enrol_seconds,
        "connects_per_second": devices as f64 / connect_seconds,
    }))
}
