//! A controller comes back from its backup, older than its fleet (DECISIONS 19).

use anyhow::{Result, ensure};
use edgefleet_tests::{
    binaries, cli,
    controller::{Controller, PASSPHRASE},
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
};
use std::ffi::OsStr;

#[tokio::test]
async fn a_restored_controller_reaches_devices_that_have_moved_on() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 2).await?;
    models::publish(&place, &fleet.controller, &models::digits(2)).await?;
    let file = place.join("fleet.backup");
    let said = fleet.controller.run(&["backup", "--out", &file.to_string_lossy()]).await?;
    ensure!(said["by"] == "controller", "a running controller makes its own backup: {said}");

    // The fleet moves on by two generations that the backup knows nothing of.
    fleet.controller.assign_and_commit("digits@2").await?;
    fleet.controller.assign_and_commit("digits@1").await?;
    let before = generation(&fleet.controller, &fleet.agents[0].id).await?;
    fleet.controller.process.stop().await?;

    let data = place.join("restored");
    let blobs = fleet.controller.data.join("blobs");
    let args = [
        OsStr::new("restore"),
        file.as_os_str(),
        OsStr::new("--data"),
        data.as_os_str(),
        OsStr::new("--blobs"),
        blobs.as_os_str(),
    ];
    let wrong = [("EDGEFLEET_BACKUP_PASSPHRASE", OsStr::new("a long passphrase, but another one"))];
    cli::run(&binaries::edgefleet()?, args, &wrong).await?.refused(&["passphrase"])?;
    let right = [("EDGEFLEET_BACKUP_PASSPHRASE", OsStr::new(PASSPHRASE))];
    cli::run(&binaries::edgefleet()?, args, &right).await?.ok()?;

    let (https, mqtt) = (fleet.controller.https.clone(), fleet.controller.mqtt.clone());
    fleet.controller = Controller::start_with(&place, &data, &https, &mqtt, &["--limits", "none"]).await?;
    ensure!(fleet.controller.process.log().contains("restored from a backup"));
    for agent in &fleet.agents {
        fleet.controller.sees(&agent.id, true).await?;
    }
    fleet.controller.assign_and_commit("digits@2").await?;
    for agent in &fleet.agents {
        answers(&agent.base, "digits@2").await?;
        let after = generation(&fleet.controller, &agent.id).await?;
        ensure!(after > before, "generation {after} after the restore, {before} before");
    }
    fleet.stop().await?;
    place.end()
}

async fn generation(controller: &Controller<'_>, device: &str) -> Result<u64> {
    let device = controller.device(device).await?;
    Ok(device["reported"]["generation"].as_u64().unwrap_or_default())
}
