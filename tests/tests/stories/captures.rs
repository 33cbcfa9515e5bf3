//! From a request on a device to a labelled data set on a desk, with a kill and an outage in between.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    controller::Controller,
    fleet::Fleet,
    inference::{Holdout, infer},
    place::Place,
    waiting::{PATIENCE, until},
};
use reqwest::Client;
use serde_json::Value;
use std::fs;

/// Asks for images `from..to`; their prediction ids, and how many answers were right.
async fn ask(agent: &Agent<'_>, holdout: &Holdout, from: usize, to: usize) -> Result<(Vec<String>, u32)> {
    let client = Client::new();
    let (mut ids, mut right) = (Vec::new(), 0);
    for (image, truth) in holdout.images[from..to].iter().zip(&holdout.labels[from..to]) {
        let answer = infer(&client, &agent.base, image).await?;
        right += u32::from(answer.label == *truth);
        ids.push(answer.prediction);
    }
    Ok((ids, right))
}

async fn arrived(controller: &Controller<'_>, n: usize) -> Result<Vec<Value>> {
    until(&format!("{n} captures at the controller"), PATIENCE, async || {
        let found = controller.run(&["capture", "list", "--model", "digits"]).await?;
        let found = found.as_array().context("no list")?.clone();
        ensure!(found.len() == n, "{} are there", found.len());
        Ok(found)
    })
    .await
}

#[tokio::test]
async fn captures_survive_kill_and_outage_and_become_a_labelled_data_set() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    let holdout = Holdout::load()?;
    let truth = |n: usize| holdout.labels[n].to_string();
    let (controller, agent) = (&mut fleet.controller, &mut fleet.agents[0]);

    // Every request is an audit row here, so that what arrives can be counted.
    let set = ["capture", "policy", "set", "digits", "--random", "1", "--low-margin", "0.2"];
    let policy = controller.run(&set).await?;
    ensure!(policy["policy"]["random"]["share"] == 1.0, "{policy}");
    let wrong = controller.attempt(&["capture", "policy", "set", "digits", "--random", "0"]).await?;
    wrong.refused(&["never 0"])?;
    agent.until("the policy", |status| status["captures"]["slots"]["digits"].is_object()).await?;
    let (mut ids, mut right) = ask(agent, &holdout, 0, 4).await?;
    let first = arrived(controller, 4).await?;
    for id in &ids {
        let capture = first.iter().find(|one| one["document"]["prediction"] == id.as_str());
        let capture = capture.with_context(|| format!("{id} was not captured"))?;
        let document = &capture["document"];
        ensure!(document["bundle"] == "digits@1", "{capture}");
        ensure!(document["audit"]["share"] == 1.0 && document["inclusion"] == 1.0, "{capture}");
    }
    agent.until("nothing left on its disk", |status| status["captures"]["waiting"] == 0).await?;

    // The controller is down, the device is killed: what was written stays and comes later.
    controller.process.stop().await?;
    let (more, right_offline) = ask(agent, &holdout, 4, 8).await?;
    ids.extend(more);
    agent.until("four on its disk", |status| status["captures"]["waiting"] == 4).await?;
    agent.kill();
    agent.start().await?;
    agent.until("still four", |status| status["captures"]["waiting"] == 4).await?;
    controller.start_again(&["--limits", "none"]).await?;
    controller.sees(&agent.id, true).await?;
    arrived(controller, 8).await?;
    agent.until("nothing left on its disk", |status| status["captures"]["waiting"] == 0).await?;
    let (more, right_after) = ask(agent, &holdout, 8, 9).await?;
    right += right_offline + right_after;
    ids.extend(more);
    ids.extend(ask(agent, &holdout, 9, 10).await?.0);
    let all = arrived(controller, 10).await?;

    // Labels, in the order of the requests; the last one is taken back and skipped.
    let digest = |n: usize| -> Result<String> {
        let one = all.iter().find(|one| one["document"]["prediction"] == ids[n].as_str());
        Ok(one.context("a request was not captured")?["digest"].as_str().context("no digest")?.to_owned())
    };
    for n in 0..10 {
        let digest = digest(n)?;
        controller.run(&["capture", "label", &digest, &truth(n)]).await?;
    }
    let last = digest(9)?;
    controller.run(&["capture", "label", &last, "--undo"]).await?;
    let skipped = controller.run(&["capture", "label", &last, "--skip"]).await?;
    ensure!(skipped["label"]["joined"] == "nowhere", "{skipped}");
    controller.attempt(&["capture", "label", &last, "eleven"]).await?.refused(&["no class"])?;

    // Each label counts in one place: at the device only for what it still remembers.
    until("every label counted somewhere", PATIENCE, async || {
        let found = controller.run(&["capture", "list", "--model", "digits", "--state", "labelled"]).await?;
        for one in found.as_array().context("no list")? {
            let id = one["document"]["prediction"].as_str().unwrap_or_default();
            let wanted = if id == ids[8] { "device" } else { "controller" };
            ensure!(one["label"]["joined"] == wanted, "{id}: {}", one["label"]);
        }
        Ok(())
    })
    .await?;
    controller.run(&["device", "report", &agent.id]).await?;
    agent.all_acknowledged().await?;
    until("the label that the device counted", PATIENCE, async || {
        let seen = controller.api.get("/api/v1/models/digits/bundles/1/telemetry").await?;
        ensure!(seen["labels"]["matched"] == 1 && seen["labels"]["unmatched"] == 0, "{}", seen["labels"]);
        Ok(())
    })
    .await?;
    let audit = controller.run(&["capture", "audit", "digits"]).await?;
    ensure!(audit["labelled"] == 9 && audit["skipped"] == 1 && audit["audited"]["labelled"] == 9, "{audit}");
    // Every row was kept by chance with share 1: the estimate is the plain mean of the nine labels.
    let wanted = f64::from(right) / 9.0;
    let estimate = audit["audited"]["accuracy"].as_f64().unwrap_or(f64::NAN);
    ensure!((estimate - wanted).abs() < 1e-9, "{wanted}: {audit}");

    // The data set, and the same as files.
    let made = controller.run(&["dataset", "create", "first", "--model", "digits"]).await?;
    ensure!(made["rows"] == 9, "{made}");
    controller
        .attempt(&["dataset", "create", "first", "--model", "digits"])
        .await?
        .refused(&["never changes"])?;
    controller.attempt(&["capture", "delete", &digest(0)?, "--yes"]).await?.refused(&["data set `first`"])?;
    controller.run(&["capture", "delete", &last, "--yes"]).await?;
    let dir = place.join("export");
    let exported = controller.run(&["dataset", "export", "first", &dir.to_string_lossy()]).await?;
    ensure!(exported["digest"] == made["digest"] && exported["files"] == 9, "{exported}");
    let table = fs::read_to_string(dir.join("index.csv"))?;
    ensure!(table.lines().count() == 10 && table.starts_with("capture,label,predicted"), "{table}");
    for line in fs::read_to_string(dir.join("index.jsonl"))?.lines() {
        let row: Value = serde_json::from_str(line)?;
        let n = ids.iter().position(|id| row["prediction"] == id.as_str()).context("a stranger")?;
        ensure!(row["label"] == truth(n).as_str(), "{row}");
        let file = fs::read(dir.join(row["files"][0].as_str().context("no file")?))?;
        let pixels: Vec<u8> = holdout.images[n].iter().flat_map(|value| value.to_le_bytes()).collect();
        ensure!(file.starts_with(b"\x93NUMPY") && file.ends_with(&pixels), "{row}");
    }
    let page = controller.api.text("/label").await?;
    ensure!(page.contains("label captures") && page.contains("/label/app.js"), "{page}");
    let view = controller.api.get(&format!("/api/v1/captures/{}/view", digest(0)?)).await?;
    ensure!(view["inputs"][0]["values"].as_array().is_some_and(|all| all.len() == 64), "{view}");
    ensure!(view["classes"].as_array().is_some_and(|all| all.len() == 10), "{view}");

    // The policy ends: nothing more is kept.
    controller.run(&["capture", "policy", "end", "digits"]).await?;
    agent.until("no policy", |status| status["captures"]["slots"] == serde_json::json!({})).await?;
    ask(agent, &holdout, 10, 12).await?;
    agent.until("nothing new", |status| status["captures"]["kept"] == 2).await?;
    fleet.stop().await?;
    place.end()
}
