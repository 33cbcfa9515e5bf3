//! What the README's quick start shows, command by command.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    binaries::{self, repository},
    cli,
    controller::Controller,
    inference::answers,
    place::Place,
    waiting::{PATIENCE, until},
};
use std::ffi::OsStr;

#[tokio::test]
async fn a_model_travels_from_a_laptop_to_a_device_by_hand() -> Result<()> {
    let place = Place::new()?;
    let mut controller = Controller::start(&place).await?;

    // A device comes in.
    let args = ["device", "invite", "--labels", "site=lab", "--uses", "1", "--ttl", "24h"];
    let invite = controller.run(&args).await?;
    let code = invite["code"].as_str().context("no code")?;
    let mut agent = Agent::enroll(&place, "cam-7", code).await?;
    agent.start().await?;
    controller.sees(&agent.id, true).await?;
    let invites = controller.run(&["device", "invites"]).await?;
    ensure!(invites[0]["state"] == "used-up", "{invites}");

    // A folder to edit, from nothing but an ONNX file.
    let onnx = repository("models/digits/v1/model.onnx");
    let begun = place.join("begun");
    let begun_text = begun.to_string_lossy();
    let args = ["model", "init", &onnx.to_string_lossy(), "--out", &begun_text, "--name", "digits"];
    let said = controller.run(&args).await?;
    ensure!(said["name"] == "digits" && said["inputs"][0]["name"] == "image", "{said}");
    let toml = std::fs::read_to_string(begun.join("bundle.toml"))?;
    ensure!(toml.contains("\"image\"") && toml.contains("probabilities"), "{toml}");

    // The sample has its manifest already.
    let out = place.join("digits-1");
    let out = out.to_string_lossy();
    let source = repository("models/digits/v1");
    let built = controller.run(&["model", "build", &source.to_string_lossy(), "--out", &out]).await?;
    ensure!(built["bundle"] == "digits@1" && built["verdict"]["ok"] == true, "{built}");
    controller
        .attempt(&["model", "push", &out])
        .await?
        .refused(&["is not signed", "edgefleet model sign"])?;
    let signed = controller.run(&["model", "sign", &out]).await?;
    ensure!(signed["manifest"] == built["digest"], "{signed}");
    let pushed = controller.run(&["model", "push", &out]).await?;
    ensure!(pushed["outcome"] == "created" && pushed["uploaded"] == pushed["blobs"], "{pushed}");
    let again = controller.run(&["model", "push", &out]).await?;
    ensure!(again["outcome"] == "unchanged" && again["uploaded"] == 0, "{again}");
    ensure!(controller.table(&["model", "list"]).await?.contains("digits"));
    let shown = controller.table(&["model", "show", "digits@1"]).await?;
    ensure!(shown.contains("golden") && shown.contains("sha256:"), "{shown}");
    let keys = controller.table(&["keys", "show"]).await?;
    ensure!(keys.contains("publisher") && keys.contains("on the controller"), "{keys}");

    // To the device, and an answer.
    let dry = controller.run(&["assign", "digits@1", "--select", "site=lab", "--dry-run"]).await?;
    ensure!(dry.to_string().contains(&agent.id), "{dry}");
    controller.assign_and_commit("digits@1").await?;
    answers(&agent.base, "digits@1").await?;
    let status = agent_command(&agent, &["status"]).await?;
    ensure!(status.contains("digits: digits@1,") && status.contains("(committed)"), "{status}");
    ensure!(status.contains("https://") && status.contains(": connected"), "{status}");
    until("the device's own report of it", PATIENCE, async || {
        let shown = controller.table(&["device", "show", &agent.id]).await?;
        ensure!(shown.contains("slot       digits: serves digits@1, committed"), "{shown}");
        Ok(())
    })
    .await?;
    until("the end of the rollout", PATIENCE, async || {
        let rollouts = controller.table(&["rollout", "list"]).await?;
        ensure!(rollouts.contains("completed") && rollouts.contains("1 of 1"), "{rollouts}");
        Ok(())
    })
    .await?;

    // What it counted comes back.
    controller.run(&["device", "report", &agent.id]).await?;
    agent.all_acknowledged().await?;
    until("the telemetry", PATIENCE, async || {
        let seen = controller.table(&["device", "show", &agent.id]).await?;
        ensure!(seen.contains("served     digits@1: 1 requests, 0 failed"), "{seen}");
        Ok(())
    })
    .await?;
    let bundle = controller.table(&["model", "telemetry", "digits@1"]).await?;
    ensure!(bundle.contains("requests   1 (1 rows), 0 failed"), "{bundle}");

    // Labels and names are the controller's.
    controller.run(&["device", "label", &agent.id, "site=plant-7", "line=3"]).await?;
    controller.run(&["device", "rename", &agent.id, "press-3"]).await?;
    let list = controller.table(&["device", "list", "--select", "site=plant-7, line in (3)"]).await?;
    ensure!(list.contains("press-3") && list.contains("online"), "{list}");
    let none = controller.run(&["device", "list", "--select", "site=lab"]).await?;
    ensure!(none.as_array().is_some_and(Vec::is_empty), "{none}");
    ensure!(controller.run(&["device", "ping", &agent.id]).await?["device"] == agent.id.as_str());

    // And it leaves: its session ends, what it serves goes on serving.
    let careful = controller.attempt(&["device", "remove", &agent.id]).await?;
    ensure!(careful.code == Some(2) && careful.err.contains("--yes"), "{careful:?}");
    let removed = controller.run(&["device", "remove", &agent.id, "--yes"]).await?;
    ensure!(removed["session_ended"] == true, "{removed}");
    agent.until("no session", |status| status["link"]["connected"] == false).await?;
    agent.stop().await?;
    agent.start().await?;
    answers(&agent.base, "digits@1").await?;
    until("the refusal in its log", PATIENCE, async || {
        ensure!(agent.log().contains("not connected"), "{}", agent.log());
        Ok(())
    })
    .await?;
    ensure!(agent.status().await?["link"]["connects"] == 0, "a removed device was let in");
    ensure!(controller.device(&agent.id).await?["state"] == "removed");
    let audit = controller.table(&["audit", "list"]).await?;
    for action in ["invite.create", "bundle.push", "rollout.create", "device.update", "device.remove"] {
        ensure!(audit.contains(action), "`{action}` is not audited:\n{audit}");
    }
    agent.stop().await?;
    controller.process.stop().await?;
    drop((agent, controller));
    place.end()
}

async fn agent_command(agent: &Agent<'_>, args: &[&str]) -> Result<String> {
    let all = args.iter().map(OsStr::new).chain([OsStr::new("--data"), agent.data.as_os_str()]);
    Ok(cli::run(&binaries::agent()?, all, &[]).await?.ok()?.out)
}
