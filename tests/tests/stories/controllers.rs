//! What happens to the controller itself.

use anyhow::{Result, ensure};
use edgefleet_tests::{
    binaries, cli,
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    process::Process,
    proxy::Proxy,
    waiting::{PATIENCE, until},
};
use std::time::Duration;

#[tokio::test]
async fn a_second_controller_on_the_same_folder_is_refused_and_the_first_goes_on() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    let data = &fleet.controller.data;
    let mut command = Controller::serve_command(data, "127.0.0.1:0", "127.0.0.1:0", &[])?;
    let mut second = Process::start(&place, "second", &mut command)?;
    let status = second.ended(Duration::from_secs(20)).await?;
    let log = second.log();
    ensure!(status.code() == Some(1), "{status}: {log}");
    ensure!(log.contains("another controller is using") && log.contains(&*data.to_string_lossy()), "{log}");
    // Its addresses still lead to the first one.
    fleet.controller.run(&["device", "ping", &fleet.agents[0].id]).await?;
    answers(&fleet.agents[0].base, "digits@1").await?;
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn a_push_that_lost_its_controller_is_completed_by_pushing_again() -> Result<()> {
    const PADDING: usize = 12 << 20;
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    let source = models::copy_as(&place, &models::digits(2), 2)?;
    models::pad(&source, PADDING, 1)?;
    let built = models::build(&place, &fleet.controller, &source, false).await?;

    // A slow line, so that the kill falls into the upload.
    let line = Proxy::start(([127, 0, 0, 1], 0).into(), fleet.controller.https.parse()?).await?;
    line.throttle(4 << 20);
    let url = format!("https://{}", line.address);
    let data = fleet.controller.data.to_string_lossy().into_owned();
    let args = ["model", "push", &built, "--server", &url, "--data", &data];
    let program = binaries::edgefleet()?;
    let push = cli::run(&program, args, &[]);
    let kill = async {
        until("the middle of the upload", PATIENCE, async || {
            ensure!(line.bytes_to_target() > 4 << 20, "{} bytes", line.bytes_to_target());
            Ok(())
        })
        .await?;
        fleet.controller.process.kill();
        anyhow::Ok(())
    };
    let (cut, killed) = tokio::join!(push, kill);
    killed?;
    cut?.refused(&["https://"])?;
    ensure!(line.bytes_to_target() < PADDING as u64, "the kill came after the upload");

    fleet.controller.start_again(&["--limits", "none"]).await?;
    let models = fleet.controller.run(&["model", "show", "digits"]).await?;
    ensure!(
        models["bundles"].as_array().is_some_and(|all| all.len() == 1),
        "half a bundle is listed: {models}"
    );
    let pushed = fleet.controller.run(&["model", "push", &built]).await?;
    ensure!(pushed["outcome"] == "created", "{pushed}");
    fleet.controller.sees(&fleet.agents[0].id, true).await?;
    fleet.controller.assign_and_commit("digits@2").await?;
    answers(&fleet.agents[0].base, "digits@2").await?;
    fleet.stop().await?;
    place.end()
}
