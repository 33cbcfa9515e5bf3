//! Real agents whose clock is years off (DECISIONS 3), by Debian's libfaketime.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    controller::Controller,
    inference::answers,
    models,
    place::Place,
    waiting::{PATIENCE, until},
};
use std::{ffi::OsString, path::PathBuf};

#[tokio::test]
async fn devices_whose_clocks_are_years_off_join_and_follow_updates() -> Result<()> {
    let library = library()?;
    let place = Place::new()?;
    let mut controller = Controller::start(&place).await?;
    let cases = [
        ("epoch", "@1970-01-02 00:00:00", "behind-floor"),
        ("late", "-2y", "behind-floor"),
        ("early", "+10y", "far-ahead"),
    ];
    let code = controller.invite(3).await?;
    let mut agents = Vec::new();
    for (name, clock, quality) in cases {
        let env = vec![
            ("LD_PRELOAD".to_owned(), library.clone().into_os_string()),
            ("FAKETIME".to_owned(), OsString::from(clock)),
            // Time spans stay what they are.
            ("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".into()),
        ];
        let mut agent =
            Agent::enroll_with(&place, name, &code, env).await.with_context(|| clock.to_owned())?;
        agent.start().await?;
        controller.sees(&agent.id, true).await.with_context(|| clock.to_owned())?;
        until(&format!("{name} to say what its clock is like"), PATIENCE, async || {
            let device = controller.device(&agent.id).await?;
            ensure!(device["reported"]["clock"] == quality, "{clock}: {}", device["reported"]);
            Ok(())
        })
        .await?;
        agents.push(agent);
    }
    for counter in [1, 2] {
        models::publish(&place, &controller, &models::digits(counter)).await?;
        let bundle = format!("digits@{counter}");
        controller.assign_and_commit(&bundle).await?;
        for agent in &mut agents {
            answers(&agent.base, &bundle).await?;
            // Back after a power cut, by the same clock.
            agent.kill();
            agent.start().await?;
            answers(&agent.base, &bundle).await?;
            controller.sees(&agent.id, true).await?;
        }
    }
    for agent in &mut agents {
        controller.run(&["device", "report", &agent.id]).await?;
        agent.all_acknowledged().await?;
        agent.stop().await?;
    }
    controller.process.stop().await?;
    drop((agents, controller));
    place.end()
}

/// `/usr/lib/<target>/faketime/libfaketimeMT.so.1`
fn library() -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path());
    folders
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|file| file.is_file())
        .context("libfaketime is not installed; run `make setup`")
}
