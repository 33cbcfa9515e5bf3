//! Who is trusted changes by ceremony, and devices follow.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    waiting::{PATIENCE, until},
};
use serde_json::Value;

#[tokio::test]
async fn a_publisher_added_by_ceremony_is_believed_by_every_device() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    let controller = &fleet.controller;
    let keys = place.join("new-keys").to_string_lossy().into_owned();
    let made =
        controller.run(&["keys", "new-trust", "--offline", "--out", &keys, "--publisher", "ci"]).await?;
    let key = made["publishers"][0]["file"].as_str().context("no publisher")?.to_owned();

    // Signed by a stranger, so far.
    let out = place.join("digits-2").to_string_lossy().into_owned();
    controller.run(&["model", "build", &models::digits(2).to_string_lossy(), "--out", &out]).await?;
    controller.run(&["model", "sign", &out, "--key", &key]).await?;
    let refused = controller.attempt(&["model", "push", &out]).await?;
    refused.refused(&["signature", "edgefleet keys show"])?;

    // Propose, sign, merge.
    let request = place.join("trust-2.request").to_string_lossy().into_owned();
    let public = key.replace(".pk8", ".pub");
    controller.attempt(&["trust", "propose", "--add-publisher", &public, "--out", &request]).await?.ok()?;
    controller.attempt(&["trust", "merge", &request]).await?.refused(&["merge again"])?;
    let own = controller.data.join("keys/trust.pk8");
    let signed = controller.run(&["trust", "sign", &request, "--key", &own.to_string_lossy()]).await?;
    ensure!(signed["signatures"] == 1, "{signed}");
    let merged = controller.run(&["trust", "merge", &request]).await?;
    ensure!(merged["version"] == 2 && merged["installed"] == true, "{merged}");
    let agent = &fleet.agents[0];
    agent.until("trust 2", |status| status["update"]["trust_version"] == 2).await?;

    // Now it counts, on the device as well.
    let pushed = controller.run(&["model", "push", &out]).await?;
    ensure!(pushed["bundle"]["signers"].as_array().is_some_and(|all| all.len() == 1), "{pushed}");
    controller.assign_and_commit("digits@2").await?;
    answers(&agent.base, "digits@2").await?;
    until("the controller to know", PATIENCE, async || {
        let device = controller.device(&agent.id).await?;
        ensure!(device["reported"]["trust_version"] == 2, "{device}");
        Ok(())
    })
    .await?;
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn a_controller_without_publisher_and_trust_keys_serves_what_they_signed_elsewhere() -> Result<()> {
    let place = Place::new()?;
    let safe = place.join("safe");
    let data = place.join("controller");
    let args = ["keys", "new-trust", "--offline", "--out", &safe.to_string_lossy(), "--publisher", "ann"];
    let made = run_alone(&args).await?;
    models::copy_folder(&safe.join("server"), &data)?;
    let controller =
        Controller::start_with(&place, &data, "127.0.0.1:0", "127.0.0.1:0", &["--limits", "none"]).await?;
    let shown = controller.run(&["keys", "show"]).await?;
    for role in shown["roles"].as_array().context("no roles")? {
        let here =
            role["keys"].as_array().is_some_and(|keys| keys.iter().any(|k| k["on_controller"] == true));
        ensure!(here == (role["role"] == "controller"), "{shown}");
    }
    let out = place.join("digits-1").to_string_lossy().into_owned();
    controller.run(&["model", "build", &models::digits(1).to_string_lossy(), "--out", &out]).await?;
    controller.attempt(&["model", "sign", &out]).await?.refused(&["publisher.pk8"])?;
    let key = made["publishers"][0]["file"].as_str().context("no publisher")?;
    controller.run(&["model", "sign", &out, "--key", key]).await?;
    controller.run(&["model", "push", &out]).await?;
    let fleet = Fleet::join(&place, controller, 1).await?;
    fleet.controller.assign_and_commit("digits@1").await?;
    answers(&fleet.agents[0].base, "digits@1").await?;
    fleet.stop().await?;
    place.end()
}

/// A command that needs no controller.
async fn run_alone(args: &[&str]) -> Result<Value> {
    let args = args.iter().copied().chain(["--output", "json"]);
    edgefleet_tests::cli::run(&edgefleet_tests::binaries::edgefleet()?, args, &[]).await?.ok()?.json()
}
