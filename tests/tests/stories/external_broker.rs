//! The same protocol over Debian's Mosquitto.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    models,
    mosquitto::Mosquitto,
    place::Place,
    session::{Credentials, Session},
    waiting::{PATIENCE, until},
};
use std::time::{Duration, Instant};

const ANY: &str = "127.0.0.1:0";

#[tokio::test]
async fn the_whole_story_passes_over_mosquitto() -> Result<()> {
    let place = Place::new()?;
    let data = place.join("controller");
    // The first start makes the authority that Mosquitto's configuration names.
    let mut controller = Controller::start_with(&place, &data, ANY, ANY, &[]).await?;
    controller.process.stop().await?;
    let mosquitto = Mosquitto::start(&place, &data).await?;
    let (url, reload) = (mosquitto.url(), mosquitto.reload());
    let more = ["--limits", "none", "--broker", &url, "--broker-reload", &reload];
    let controller = Controller::start_with(&place, &data, ANY, ANY, &more).await?;
    ensure!(controller.mqtt == format!("localhost:{}", mosquitto.port), "{}", controller.mqtt);

    let mut fleet = Fleet::join(&place, controller, 2).await?;
    fleet.publish_first(&place).await?;
    models::publish(&place, &fleet.controller, &models::digits(2)).await?;
    fleet.controller.assign_and_commit("digits@2").await?;
    for agent in &fleet.agents {
        answers(&agent.base, "digits@2").await?;
        fleet.controller.run(&["device", "ping", &agent.id]).await?;
        fleet.controller.run(&["device", "report", &agent.id]).await?;
        agent.all_acknowledged().await?;
        until("its telemetry", PATIENCE, async || {
            let path = format!("/api/v1/devices/{}/telemetry", agent.id);
            let found = fleet.controller.api.get(&path).await?;
            let bundles = found["bundles"].as_array().context("no bundles")?;
            ensure!(
                bundles.len() == 2 && bundles.iter().all(|one| one["counts"]["requests"] == 1),
                "{found}"
            );
            Ok(())
        })
        .await?;
    }

    // A power cut is noticed through the last will.
    let id = fleet.agents[1].id.clone();
    fleet.agents[1].kill();
    fleet.controller.sees(&id, false).await?;
    fleet.agents[1].start().await?;
    fleet.controller.sees(&id, true).await?;

    // A removed device is out within 5 s and stays out, whatever it tries.
    let removed = &fleet.agents[0];
    let credentials = Credentials::of(&removed.data)?;
    let started = Instant::now();
    let said = fleet.controller.run(&["device", "remove", &removed.id, "--yes"]).await?;
    ensure!(said["session_ended"] == true, "{said}");
    removed.until("no session", |status| status["link"]["connected"] == false).await?;
    ensure!(started.elapsed() < Duration::from_secs(5), "its session lived on for {:?}", started.elapsed());
    for attempt in 1..=3 {
        ensure!(Session::connect(&credentials).await.is_err(), "attempt {attempt} was let in");
    }
    ensure!(removed.status().await?["link"]["connected"] == false);
    answers(&removed.base, "digits@2").await?; // what it has, it serves
    fleet.controller.run(&["device", "ping", &id]).await?; // the other one noticed nothing
    fleet.stop().await?;
    drop(mosquitto);
    place.end()
}
