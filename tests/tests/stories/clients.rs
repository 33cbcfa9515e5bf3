//! Programs that know nothing of Edgefleet talk to an agent.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    binaries::repository,
    cli,
    fleet::Fleet,
    inference::{Holdout, request},
    models,
    place::Place,
    waiting::{PATIENCE, until},
};
use serde_json::Value;
use std::{ffi::OsStr, path::Path};

const PYTHON: &str = "EDGEFLEET_TEST_PYTHON";

#[tokio::test]
async fn the_stock_python_client_gets_what_the_protocol_promises() -> Result<()> {
    let python = std::env::var_os(PYTHON).with_context(|| {
        format!("{PYTHON} names no interpreter with tritonclient; run `make setup` (`make test` does)")
    })?;
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    models::publish(&place, &fleet.controller, &models::digits(2)).await?;
    fleet.controller.assign_and_commit("digits@2").await?;
    let script = repository("tests/python/tritonclient_story.py");
    let holdout = repository("models/digits/holdout/holdout.json");
    let url = fleet.agents[0].base.trim_start_matches("http://");
    let args = [
        script.as_os_str(),
        OsStr::new("--url"),
        OsStr::new(url),
        OsStr::new("--holdout"),
        holdout.as_os_str(),
        OsStr::new("--expect-bundle"),
        OsStr::new("digits@2"),
    ];
    let told = cli::run(Path::new(&python), args, &[]).await?;
    let summary: Value = told.json().with_context(|| told.err.clone())?;
    let failed: Vec<_> =
        summary["checks"].as_array().into_iter().flatten().filter(|check| check["ok"] != true).collect();
    ensure!(told.code == Some(0) && failed.is_empty(), "{failed:?}\n{}", told.err);
    ensure!(summary["accuracy"].as_f64().is_some_and(|accuracy| accuracy > 0.9), "{summary}");
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn the_stock_grpc_clients_get_the_same_from_a_whole_agent() -> Result<()> {
    const TOKEN: &str = "0123456789abcdef";
    let python = std::env::var_os(PYTHON).with_context(|| {
        format!("{PYTHON} names no interpreter with tritonclient; run `make setup` (`make test` does)")
    })?;
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    models::publish(&place, &fleet.controller, &models::digits(2)).await?;
    fleet.controller.assign_and_commit("digits@2").await?;
    // Once more, with a socket file and a token for loading and unloading.
    let socket = place.join("agent.sock");
    let agent = &mut fleet.agents[0];
    agent.stop().await?;
    agent.env.push(("EDGEFLEET_AGENT_SERVING_SOCKET".into(), socket.clone().into()));
    agent.env.push(("EDGEFLEET_AGENT_HTTP_LOCAL_TOKEN".into(), TOKEN.into()));
    agent.start().await?;
    let script = repository("tests/python/wire_story.py");
    let holdout = repository("models/digits/holdout/holdout.json");
    let args = [
        script.as_os_str(),
        OsStr::new("digits"),
        OsStr::new("--http"),
        OsStr::new(agent.base.trim_start_matches("http://")),
        OsStr::new("--grpc"),
        OsStr::new(&agent.grpc),
        OsStr::new("--socket"),
        socket.as_os_str(),
        OsStr::new("--holdout"),
        holdout.as_os_str(),
        OsStr::new("--bundle"),
        OsStr::new("digits@2"),
        OsStr::new("--token"),
        OsStr::new(TOKEN),
    ];
    let told = cli::run(Path::new(&python), args, &[]).await?;
    ensure!(told.code == Some(0), "{}", told.err);
    // HTTP over the same file.
    let path = socket.display().to_string();
    let ready = ["--unix-socket", &path, "--fail-with-body", "http://device/v2/models/digits/ready"];
    curl(&ready).await?;
    fleet.stop().await?;
    ensure!(!socket.exists(), "the socket file is removed at the end");
    place.end()
}

#[tokio::test]
async fn plain_curl_gets_an_answer_and_can_tell_the_truth_afterwards() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    let agent = &fleet.agents[0];
    let holdout = Holdout::load()?;
    let body = request(&holdout.images[0]).to_string();
    let url = format!("{}/v2/models/digits/infer", agent.base);
    let answer = curl(&["--fail-with-body", &url, "--json", &body]).await?.json()?;
    ensure!(answer["model_name"] == "digits" && answer["parameters"]["bundle"] == "digits@1", "{answer}");
    let truth = serde_json::json!({
        "prediction_id": answer["parameters"]["prediction_id"],
        "label": holdout.labels[0].to_string(),
    });
    let url = format!("{}/v1/feedback", agent.base);
    curl(&["--fail-with-body", &url, "--json", &truth.to_string()]).await?;
    let metrics = curl(&["--fail-with-body", &format!("{}/metrics", agent.metrics)]).await?.out;
    ensure!(metrics.lines().any(|line| line.starts_with("edgefleet_")), "{metrics}");
    fleet.controller.run(&["device", "report", &agent.id]).await?;
    until("the truth in the controller's counts", PATIENCE, async || {
        let shown = fleet.controller.run(&["device", "show", &agent.id]).await?;
        ensure!(shown["telemetry"]["bundles"][0]["labels"]["matched"] == 1, "{shown}");
        Ok(())
    })
    .await?;
    fleet.stop().await?;
    place.end()
}

async fn curl(args: &[&str]) -> Result<cli::Done> {
    cli::run(Path::new("curl"), ["--silent", "--show-error", "--noproxy", "*"].iter().chain(args), &[])
        .await?
        .ok()
}
