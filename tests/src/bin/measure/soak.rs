//! Many requests, every answer judged, while the bundle under them changes again and again: does memory grow?

use super::memory::Pss;
use anyhow::{Context, Result, ensure};
use edgefleet_controller::demo::stage::Stage;
use edgefleet_tests::faults::{KeepAlive, Oracle, source::Source};
use serde_json::{Value, json};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const CONNECTIONS: usize = 8;
/// Which of the committed models is counter N.
fn version(counter: u64) -> u32 {
    if counter % 2 == 1 { 1 } else { 2 }
}

/// `requests` over kept connections and `swaps` switches spread over them.
///
/// # Errors
/// The first answer that is missing or wrong for the bundle it names, and a switch that does not happen.
pub(super) async fn soak(
    controller: &Path,
    agent: &Path,
    dir: &Path,
    requests: u64,
    swaps: u64,
) -> Result<Value> {
    let mut stage = Stage::open(controller.to_owned(), agent.to_owned(), dir.to_owned()).await?;
    let invite = stage.command(&["device", "invite", "--labels", "site=lab"]).await?;
    stage.add_agent(1, invite["code"].as_str().context("no join code")?).await?;
    let key = stage.controller_dir().join("keys/publisher.pk8");
    let mut oracle = Oracle::default();
    for counter in 1..=swaps + 1 {
        let source =
            Source::digits(version(counter))?.write(&dir.join(format!("sources/{counter}")), counter)?;
        let bundle = dir.join(format!("bundles/{counter}"));
        let (source, bundle) = (source.to_string_lossy(), bundle.to_string_lossy());
        stage.command(&["model", "build", &source, "--out", &bundle]).await?;
        stage.command(&["model", "sign", &bundle, "--key", &key.to_string_lossy()]).await?;
        stage.command(&["model", "push", &bundle]).await?;
        let golden = format!("digits/v{}/golden", version(counter));
        oracle = oracle.with(&format!("digits@{counter}"), &golden)?;
    }
    let base = stage.agents[0].base.clone();
    let pid = stage.agents[0].process.pid();
    assign(&stage, 1).await?;
    serves(&base, 1).await?;

    let host = base.trim_start_matches("http://").to_owned();
    let answered = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let load = (0..CONNECTIONS).map(|n| {
        let (host, oracle, answered) = (host.clone(), oracle.clone(), answered.clone());
        tokio::spawn(async move {
            let mut connection = KeepAlive::connect(&host).await?;
            let mut question = n;
            while answered.fetch_add(1, Ordering::Relaxed) < requests {
                oracle.ask(&mut connection, question).await?;
                question += 1;
            }
            anyhow::Ok(())
        })
    });
    let load: Vec<_> = load.collect();
    let mut memory = Vec::new();
    for swap in 1..=swaps {
        let due = requests * swap / (swaps + 1);
        while answered.load(Ordering::Relaxed) < due && !load.iter().any(|task| task.is_finished()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        memory.push(reading(pid, due)?);
        eprintln!("{} s: {due} answered, switching to digits@{}", began.elapsed().as_secs(), swap + 1);
        assign(&stage, swap + 1).await?;
        serves(&base, swap + 1).await?;
    }
    for task in load {
        task.await??;
    }
    memory.push(reading(pid, requests)?);
    let seconds = began.elapsed().as_secs_f64();
    let pss = |at: usize| memory.get(at).and_then(|row| row["pss_bytes"].as_f64()).unwrap_or(0.0);
    // The ring of answers that labels may come for grows until it is full, after some 1.3 million.
    let growth = pss(memory.len() - 1) / pss(memory.len() / 2) - 1.0;
    Ok(json!({
        "requests": requests,
        "failed": 0,
        "swaps": swaps,
        "requests_per_second": requests as f64 / seconds,
        "growth_over_the_second_half": growth,
        "memory": memory,
    }))
}

fn reading(pid: u32, answered: u64) -> Result<Value> {
    let mut row = serde_json::to_value(Pss::read(pid)?)?;
    row["answered"] = answered.into();
    Ok(row)
}

async fn assign(stage: &Stage, counter: u64) -> Result<()> {
    let bundle = format!("digits@{counter}");
    stage.command(&["assign", &bundle, "--select", "site=lab", "--probation", "1s"]).await?;
    Ok(())
}

/// Until the bundle is committed on the device.
async fn serves(base: &str, counter: u64) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let wanted = format!("digits@{counter}");
    let began = Instant::now();
    loop {
        let status: Value = client.get(format!("{base}/v1/status")).send().await?.json().await?;
        let slot = &status["update"]["slots"]["digits"];
        if slot["active"]["bundle"] == wanted.as_str() && slot["phase"] == "committed" {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(120), "{wanted} is not committed: {slot}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
