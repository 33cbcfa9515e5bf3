//! Two agents with one identity, as after copying a device's disk (DECISIONS 2).

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    models,
    mosquitto::Mosquitto,
    place::Place,
    waiting::{PATIENCE, throughout, until},
};
use std::time::Duration;

#[tokio::test]
async fn agents_that_share_an_identity_are_found_out_and_do_not_fight() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 2).await?;
    let clone = clone_of(&place, &fleet.agents[0]).await?;
    until("three takeovers", PATIENCE, async || {
        let found = fleet.controller.api.metric("edgefleet_mqtt_takeovers_total").await?;
        ensure!(found >= 3.0, "{found}");
        Ok(())
    })
    .await?;
    until("the finding", PATIENCE, async || {
        let log = fleet.controller.process.log();
        let line = log.lines().find(|line| line.contains("duplicate-identity")).context("not found yet")?;
        ensure!(line.contains(&fleet.agents[0].id), "{line}");
        Ok(())
    })
    .await?;
    peace(&fleet, clone).await?;
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn agents_that_share_an_identity_do_not_fight_over_mosquitto_either() -> Result<()> {
    const ANY: &str = "127.0.0.1:0";
    let place = Place::new()?;
    let data = place.join("controller");
    let mut controller = Controller::start_with(&place, &data, ANY, ANY, &[]).await?;
    controller.process.stop().await?;
    let mosquitto = Mosquitto::start(&place, &data).await?;
    let url = mosquitto.url();
    let controller =
        Controller::start_with(&place, &data, ANY, ANY, &["--limits", "none", "--broker", &url]).await?;
    let mut fleet = Fleet::join(&place, controller, 2).await?;
    fleet.publish_first(&place).await?;
    let clone = clone_of(&place, &fleet.agents[0]).await?;
    peace(&fleet, clone).await?;
    fleet.stop().await?;
    drop(mosquitto);
    place.end()
}

async fn clone_of<'p>(place: &'p Place, agent: &Agent<'_>) -> Result<Agent<'p>> {
    let copy = place.join("copy");
    models::copy_folder(&agent.data, &copy)?;
    let mut clone = Agent::at(place, "clone", agent.id.clone(), copy, vec![]);
    clone.start().await?;
    Ok(clone)
}

/// One of the two understands and stays away for at least a minute; both serve, and the rest of the fleet
/// notices nothing.
async fn peace(fleet: &Fleet<'_>, mut clone: Agent<'_>) -> Result<()> {
    let (first, other) = (&fleet.agents[0], &fleet.agents[1]);
    let connects = async || {
        let mut sum = 0;
        for agent in [first, &clone] {
            sum += agent.status().await?["link"]["connects"].as_u64().context("no count")?;
        }
        anyhow::Ok(sum)
    };
    until("one of them to back off", PATIENCE, async || {
        for agent in [first, &clone] {
            if agent.status().await?["link"]["takeovers"] != 0 {
                return Ok(());
            }
        }
        anyhow::bail!("{} sessions so far", connects().await?)
    })
    .await?;
    let logs = first.log() + &clone.log();
    let warning =
        logs.lines().find(|line| line.contains("another agent seems to use this device's identity"));
    let pause = warning
        .and_then(|line| line.split("pause_ms=").nth(1))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .context("no back-off was logged")?;
    ensure!(pause >= 60_000, "it comes back after {pause} ms");
    let before = connects().await?;
    ensure!(before <= 6, "{before} sessions before one of them understood");
    throughout("peace", Duration::from_secs(10), async || {
        // The other one may have been about to come back.
        let now = connects().await?;
        ensure!(now <= before + 1, "{now} sessions, {before} before");
        Ok(())
    })
    .await?;
    for agent in [first, &clone, other] {
        answers(&agent.base, "digits@1").await?;
    }
    fleet.controller.run(&["device", "ping", &other.id]).await?;
    clone.stop().await
}
