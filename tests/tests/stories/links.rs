//! The line between device and controller fails while something travels.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    controller::Controller,
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    proxy::Proxy,
    waiting::{PATIENCE, until},
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// A model just below what goes over HTTPS by default: 8 MiB, 256 blocks.
const BY_MQTT: u64 = 8 * MIB - 64 * KIB;
const BY_HTTPS: u64 = 12 * MIB;
/// What one cut may cost: unsynced and in flight.
const PER_CUT: u64 = MIB;
/// Trust document, release, manifest, and what TLS and HTTP put around them.
const AROUND: u64 = 128 * KIB;

#[tokio::test]
async fn a_transfer_over_mqtt_that_is_cut_goes_on_where_it_was() -> Result<()> {
    const CUTS: [u64; 3] = [2 * MIB, 4 * MIB, 6 * MIB];
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    publish_big(&place, &fleet.controller, BY_MQTT).await?;

    // The device keeps its address; the proxy takes it, the controller moves behind. The device starts anew,
    // so that it has not yet learnt to wait.
    fleet.agents[0].stop().await?;
    let front = fleet.controller.mqtt.parse()?;
    fleet.controller.process.stop().await?;
    fleet.controller.mqtt = "127.0.0.1:0".into();
    fleet.controller.start_again(&["--limits", "none"]).await?;
    let line = Proxy::start(front, fleet.controller.mqtt.parse()?).await?;
    line.throttle(2 * MIB);
    fleet.agents[0].start().await?;
    let agent = &fleet.agents[0];
    fleet.controller.sees(&agent.id, true).await?;
    let sent_before = sent(&fleet.controller).await?;

    let rollout = fleet.controller.assign("digits@2").await?;
    for cut in CUTS {
        on_the_device(agent, cut).await?;
        line.cut();
        answers(&agent.base, "digits@1").await?;
    }
    let attempts = fleet.controller.ended(&rollout).await?;
    ensure!(attempts[0]["state"] == "committed", "{attempts:?}");
    answers(&agent.base, "digits@2").await?;

    let sent = sent(&fleet.controller).await? - sent_before;
    let size = size(&fleet.controller).await?;
    let allowed = size + CUTS.len() as u64 * PER_CUT + AROUND;
    println!("{sent} bytes sent for {size} over {} cuts, {allowed} allowed", CUTS.len());
    ensure!((size..=allowed).contains(&sent), "{sent} bytes sent for {size}, {allowed} allowed");
    ensure!(line.connections() > CUTS.len() as u64, "only {} connections", line.connections());
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn a_big_blob_comes_over_https_and_goes_on_over_mqtt_when_that_is_cut() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    publish_big(&place, &fleet.controller, BY_HTTPS).await?;
    let front = fleet.controller.https.parse()?;
    fleet.controller.process.stop().await?;
    fleet.controller.https = "127.0.0.1:0".into();
    fleet.controller.start_again(&["--limits", "none"]).await?;
    let line = Proxy::start(front, fleet.controller.https.parse()?).await?;
    line.throttle(4 * MIB);
    let agent = &fleet.agents[0];
    fleet.controller.sees(&agent.id, true).await?;
    let sent_before = sent(&fleet.controller).await?;

    let rollout = fleet.controller.assign("digits@2").await?;
    on_the_device(agent, 5 * MIB).await?;
    line.refuse(true);
    line.cut();
    let attempts = fleet.controller.ended(&rollout).await?;
    ensure!(attempts[0]["state"] == "committed", "{attempts:?}");
    answers(&agent.base, "digits@2").await?;

    let (https, mqtt) = (line.bytes_from_target(), sent(&fleet.controller).await? - sent_before);
    let size = size(&fleet.controller).await?;
    let allowed = size + PER_CUT + AROUND + size / 100;
    println!("{https} bytes over HTTPS and {mqtt} over MQTT for {size}, {allowed} allowed");
    ensure!(https >= 5 * MIB && mqtt >= MIB, "{https} over HTTPS, {mqtt} over MQTT");
    ensure!((size..=allowed).contains(&(https + mqtt)), "{https} + {mqtt} bytes for {size}");
    fleet.stop().await?;
    place.end()
}

/// `digits@2` with the same answers and a model of `bytes`.
async fn publish_big(place: &Place, controller: &Controller<'_>, bytes: u64) -> Result<()> {
    let source = models::copy_as(place, &models::digits(2), 2)?;
    let model = std::fs::metadata(source.join("model.onnx"))?.len();
    models::pad(&source, usize::try_from(bytes - model)?, 7)?;
    models::publish(place, controller, &source).await
}

async fn on_the_device(agent: &Agent<'_>, bytes: u64) -> Result<()> {
    until(&format!("{bytes} bytes on the device"), PATIENCE, async || {
        let slot = &agent.status().await?["update"]["slots"]["digits"];
        let done = slot["progress"]["done_bytes"].as_u64().context("no progress")?;
        ensure!(done >= bytes, "{slot}");
        Ok(())
    })
    .await
}

/// Blob bytes sent over MQTT, all devices together.
async fn sent(controller: &Controller<'_>) -> Result<u64> {
    Ok(controller.api.metric("edgefleet_transfer_bytes_total").await? as u64)
}

/// Bytes of all blobs of `digits@2`.
async fn size(controller: &Controller<'_>) -> Result<u64> {
    let bundle = controller.run(&["model", "show", "digits@2"]).await?;
    bundle["bundle"]["size"].as_u64().with_context(|| format!("no size: {bundle}"))
}
