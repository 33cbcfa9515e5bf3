//! Two agents with one identity, as after copying a device's disk (DECISIONS 2).

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    waiting::{PATIENCE, throughout, until},
};
use std::time::Duration;

#[tokio::test]
async fn agents_that_share_an_identity_are_found_out_and_do_not_fight() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 2).await?;
    let (first, other) = (&fleet.agents[0], &fleet.agents[1]);
    let copy = place.join("copy");
    models::copy_folder(&first.data, &copy)?;
    let mut clone = Agent::at(&place, "clone", first.id.clone(), copy, vec![]);
    clone.start().await?;

    let takeovers = async || fleet.controller.api.metric("edgefleet_mqtt_takeovers_total").await;
    until("three takeovers", PATIENCE, async || {
        let found = takeovers().await?;
        ensure!(found >= 3.0, "{found}");
        Ok(())
    })
    .await?;
    until("the finding", PATIENCE, async || {
        let log = fleet.controller.process.log();
        let line = log.lines().find(|line| line.contains("duplicate-identity")).context("not found yet")?;
        ensure!(line.contains(&first.id), "{line}");
        Ok(())
    })
    .await?;

    // One of the two has understood and stays away for at least a minute.
    until("one of them to back off", PATIENCE, async || {
        let found = [first.status().await?, clone.status().await?];
        let noticed = found.iter().any(|status| status["link"]["takeovers"] != 0);
        ensure!(noticed, "{found:?}");
        Ok(())
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
    let before = takeovers().await?;
    throughout("peace", Duration::from_secs(10), async || {
        let now = takeovers().await?;
        ensure!(now <= before + 1.0, "{now} takeovers, {before} before");
        Ok(())
    })
    .await?;

    // Both serve, and the rest of the fleet notices nothing.
    for agent in [first, &clone, other] {
        answers(&agent.base, "digits@1").await?;
    }
    fleet.controller.run(&["device", "ping", &other.id]).await?;
    clone.stop().await?;
    drop(clone);
    fleet.stop().await?;
    place.end()
}
