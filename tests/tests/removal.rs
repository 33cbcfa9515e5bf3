//! A device is removed: its session ends at once, and it comes in nowhere any more.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::faults::{Oracle, Stage, source::Source, until};
use std::{fs, time::Duration, time::Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_device_is_out_at_once_and_stays_out() -> Result<()> {
    let stage = Stage::open().await?;
    stage.publish(Source::digits(1)?, 1).await?;
    let oracle = Oracle::default().with("digits@1", "digits/v1/golden")?;
    let mut device = stage.enrol("removed").await?;
    device.start().await?;
    stage.committed(&stage.assign(1, 0).await?, &device).await?;

    let identity =
        ["key.pem", "certificate.pem"].map(|name| fs::read(device.data.join("identity").join(name)));
    let [key, certificate] = identity;
    let ca = reqwest::Certificate::from_pem(&fs::read(stage.data().join("ca/ca.pem"))?)?;
    let own = reqwest::Client::builder()
        .tls_certs_only([ca])
        .identity(reqwest::Identity::from_pem(&[key?, certificate?].concat())?)
        .no_proxy()
        .build()?;
    let model = stage.get("/api/v1/models/digits/bundles/1").await?;
    let digest = model["bundle"]["digest"].as_str().or(model["digest"].as_str()).context("no digest")?;
    let url = format!("https://{}/api/v1/device/blobs/{digest}", stage.https);
    let before = own.get(&url).send().await?.status();
    ensure!(before == 200, "the device's own route answered {before}");

    let started = Instant::now();
    let path = format!("/api/v1/devices/{}", device.id);
    let removed = stage.call(reqwest::Method::DELETE, &path, None).await?;
    let answered = started.elapsed();
    ensure!(removed["session_ended"] == true, "{removed}");
    let trouble = until("the end of the session", async || {
        let status = device.status().await?;
        let link = &status["link"];
        Ok(if link["connected"] == false { Ok(link.clone()) } else { Err(link.to_string()) })
    })
    .await?;
    let noticed = started.elapsed();
    println!(
        "removal answered after {} ms, the device's session was over after {} ms",
        answered.as_millis(),
        noticed.as_millis()
    );
    ensure!(answered < Duration::from_secs(1), "the session took {answered:?} to end");
    ensure!(noticed < Duration::from_secs(1), "the device noticed after {noticed:?}");

    let refused = until("a refused connect", async || {
        let status = device.status().await?;
        let link = &status["link"];
        let told = link["trouble"].as_str().is_some_and(|why| why.contains("does not accept this device"));
        Ok(if told { Ok(link.clone()) } else { Err(link.to_string()) })
    })
    .await?;
    ensure!(refused["connects"] == trouble["connects"], "it got in again: {refused}");
    // The route refuses on new connections and on those it had.
    for attempt in ["the connection it had", "a new connection"] {
        let status = own.get(&url).send().await.map(|answer| answer.status().as_u16());
        ensure!(matches!(status, Ok(401 | 403)), "{attempt}: {status:?}");
    }
    // What it has, it keeps serving: a removed device is not a bricked one.
    ensure!(device.examine(&oracle).await? == "digits@1");
    device.kill();
    device.start().await?;
    ensure!(device.examine(&oracle).await? == "digits@1");
    let again = until("a refused connect after a restart", async || {
        let status = device.status().await?;
        let link = &status["link"];
        let told = link["trouble"].as_str().is_some_and(|why| why.contains("does not accept this device"));
        Ok(if told { Ok(link.clone()) } else { Err(link.to_string()) })
    })
    .await?;
    ensure!(again["connects"] == 0, "{again}");
    Ok(())
}
