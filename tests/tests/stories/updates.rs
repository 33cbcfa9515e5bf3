//! What an update promises, with real processes.

use anyhow::{Result, ensure};
use edgefleet_tests::{
    binaries::repository,
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    waiting::{PATIENCE, until},
};

mod alone {
    use super::*;
    use anyhow::Context;
    use edgefleet_tests::inference::{Holdout, infer};
    use std::{
        collections::BTreeMap,
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    const CONNECTIONS: usize = 4;
    const PAUSE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn an_update_under_load_loses_no_request() -> Result<()> {
        let place = Place::new()?;
        let fleet = Fleet::start(&place, 1).await?;
        models::publish(&place, &fleet.controller, &models::digits(2)).await?;
        let holdout = Arc::new(Holdout::load()?);
        let counts: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let load: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                let (holdout, counts, stop) = (holdout.clone(), counts.clone(), stop.clone());
                let base = fleet.agents[0].base.clone();
                tokio::spawn(async move {
                    let client = reqwest::Client::new();
                    let mut ticks = tokio::time::interval(PAUSE);
                    for at in (0..holdout.images.len()).cycle().skip(number) {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        ticks.tick().await;
                        let answer = infer(&client, &base, &holdout.images[at]).await?;
                        *counts
                            .lock()
                            .map_err(|_| anyhow::anyhow!("poisoned"))?
                            .entry(answer.bundle)
                            .or_default() += 1;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let answered = |bundle: &str, least: u64| {
            let bundle = bundle.to_owned();
            let counts = counts.clone();
            async move {
                until(&format!("{least} answers of {bundle}"), PATIENCE, async || {
                    let counts = counts.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
                    let count = counts.get(&bundle).copied().context("none yet")?;
                    ensure!(count >= least, "{count}");
                    Ok(())
                })
                .await
            }
        };
        answered("digits@1", 100).await?;
        fleet.controller.assign_and_commit("digits@2").await?;
        answered("digits@2", 100).await?;
        fleet.controller.assign_and_commit("digits@1").await?; // and back
        stop.store(true, Ordering::Relaxed);
        for one in load {
            one.await?.context("a request failed")?;
        }
        let counts = counts.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.clone();
        ensure!(counts.keys().eq(["digits@1", "digits@2"]), "{counts:?}");
        fleet.stop().await?;
        place.end()
    }
}

#[tokio::test]
async fn a_bundle_that_contradicts_its_golden_samples_is_refused_at_the_push_and_by_the_device() -> Result<()>
{
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    let (controller, agent) = (&fleet.controller, &fleet.agents[0]);
    models::publish(&place, controller, &models::digits(2)).await?;
    controller.assign_and_commit("digits@2").await?;

    let built = models::build(&place, controller, &models::digits(3), false).await?;
    models::push(controller, &built, None).await?.refused(&["golden", "--override-checks"])?;
    models::push(controller, &built, Some("story: devices check for themselves")).await?.ok()?;
    let audit = controller.table(&["audit", "list"]).await?;
    ensure!(audit.contains("story: devices check for themselves"), "{audit}");

    let rollout = controller.assign("digits@3").await?;
    let attempts = controller.ended(&rollout).await?;
    ensure!(attempts[0]["refusal"]["code"] == "golden-mismatch", "{attempts:?}");
    answers(&agent.base, "digits@2").await?;
    until("the device's own report of it", PATIENCE, async || {
        let shown = controller.table(&["device", "show", &agent.id]).await?;
        ensure!(shown.contains("serves digits@2, preflight-failed"), "{shown}");
        ensure!(shown.contains("golden-mismatch: "), "{shown}");
        Ok(())
    })
    .await?;
    let shown = controller.table(&["rollout", "show", &rollout]).await?;
    ensure!(shown.contains("golden-mismatch"), "{shown}");
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn files_that_are_no_usable_model_are_refused_by_name() -> Result<()> {
    let place = Place::new()?;
    let mut controller = Controller::start(&place).await?;
    for (counter, fixture, words) in [
        (11, "unsupported-op.onnx", &["volume", "Det"][..]),
        (12, "wrong-shape.onnx", &["project"][..]),
        (13, "corrupt.onnx", &["ONNX"][..]),
        (14, "not-onnx.onnx", &["ONNX"][..]),
        (15, "out-of-memory.onnx", &["memory"][..]),
    ] {
        let source = models::copy_as(&place, &models::digits(1), counter)?;
        std::fs::copy(repository("models/fixtures").join(fixture), source.join("model.onnx"))?;
        let built = models::build(&place, &controller, &source, false).await;
        let refused = match built {
            // What cannot even be read is refused where it is built.
            Err(error) => format!("{error:#}"),
            Ok(built) => models::push(&controller, &built, None).await?.refused(&[])?,
        };
        for word in words {
            ensure!(refused.contains(word), "{fixture}: `{word}` is not named: {refused}");
        }
    }
    let list = controller.run(&["model", "list"]).await?;
    ensure!(list["items"].as_array().is_some_and(Vec::is_empty), "{list}");
    // And everything still works.
    models::publish(&place, &controller, &models::digits(1)).await?;
    controller.process.stop().await?;
    drop(controller);
    place.end()
}

#[tokio::test]
async fn a_device_that_was_away_takes_what_it_was_given_when_it_comes_back() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    models::publish(&place, &fleet.controller, &models::digits(2)).await?;
    let id = fleet.agents[0].id.clone();
    fleet.agents[0].kill();
    fleet.controller.sees(&id, false).await?;
    let rollout = fleet.controller.assign("digits@2").await?;
    fleet.agents[0].start().await?;
    let attempts = fleet.controller.ended(&rollout).await?;
    ensure!(attempts[0]["state"] == "committed", "{attempts:?}");
    answers(&fleet.agents[0].base, "digits@2").await?;
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn an_agent_serves_from_its_disk_without_its_controller_and_tells_it_all_later() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    fleet.controller.process.kill();
    let agent = &mut fleet.agents[0];
    agent.kill();
    agent.start().await?;
    for _ in 0..5 {
        answers(&agent.base, "digits@1").await?;
    }
    agent.stop().await?;
    agent.start().await?;
    answers(&agent.base, "digits@1").await?;
    let status = agent.status().await?;
    ensure!(status["link"]["connected"] == false && status["outbox"]["records"] != 0, "{status}");
    fleet.controller.start_again(&[]).await?;
    let agent = &fleet.agents[0];
    fleet.controller.sees(&agent.id, true).await?;
    fleet.controller.run(&["device", "report", &agent.id]).await?;
    until("what was counted without a controller", PATIENCE, async || {
        let shown = fleet.controller.run(&["device", "show", &agent.id]).await?;
        let counted = shown["telemetry"]["bundles"][0]["counts"]["requests"].as_u64().unwrap_or_default();
        // What the killed process had not yet written down may be missing: nobody promised it.
        ensure!((6..=7).contains(&counted), "{counted} requests counted: {shown}");
        Ok(())
    })
    .await?;
    fleet.stop().await?;
    place.end()
}
