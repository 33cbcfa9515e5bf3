//! Bad input to the controller over MQTT, from devices with and without a certificate of the fleet.

use anyhow::{Context, Result, ensure};
use edgefleet_shared::topics::{Channel, DEVICE_RULES, Direction, MAX_PAYLOAD_BYTES};
use edgefleet_tests::{
    agent::Agent,
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    session::{Credentials, Session},
    waiting::{PATIENCE, until},
};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use std::time::Duration;

/// Every way a message can be something else than its topic promises.
fn garbage(device: &str, other: &str) -> Vec<(&'static str, Vec<u8>)> {
    let json = |text: String| text.into_bytes();
    vec![
        ("nothing", vec![]),
        ("bytes", vec![0xff; 64]),
        ("half a document", json(format!(r#"{{"schema": 1, "device": "{device}","#))),
        ("another document", json(r#"{"schema": 1}"#.into())),
        ("a list", json("[[[[".repeat(200))),
        ("deep nesting", json(format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)))),
        ("an unknown schema", json(format!(r#"{{"schema": 999, "device": "{device}"}}"#))),
        (
            "another device's name",
            json(format!(
                r#"{{"schema": 1, "id": "a", "device": "{other}", "boot": "{}", "online": false, "reason": "x", "ok": true,
                    "object": {{"trust": 1}}, "block_bytes": 32768, "blocks": [[0, 1]]}}"#,
                "0".repeat(32)
            )),
        ),
        (
            "numbers out of range",
            json(format!(
                r#"{{"schema": 1, "id": "a", "device": "{device}", "generation": -1,
            "object": {{"trust": 1}}, "block_bytes": 4294967296, "blocks": [[0, 1]]}}"#
            )),
        ),
        ("a message as large as allowed", vec![b'{'; MAX_PAYLOAD_BYTES]),
    ]
}

#[tokio::test]
async fn garbage_on_every_topic_of_a_device_is_refused_counted_and_harms_nobody() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    let controller = &fleet.controller;
    let code = controller.invite(1).await?;
    // A real device's certificate in bad hands.
    let bad = Agent::enroll(&place, "bad", &code).await?;
    let good = &fleet.agents[0];
    let credentials = Credentials::of(&bad.data)?;
    let mut session = Session::connect(&credentials).await?;
    let before = refused(&fleet).await?;
    let mut sent = 0;
    for (channel, _) in DEVICE_RULES.into_iter().filter(|(_, way)| *way == Direction::Publish) {
        let topic = channel.of(&bad.id.parse()?);
        for (what, payload) in garbage(&bad.id, &good.id) {
            session.publish(&topic, &payload).await.with_context(|| format!("{what} on {topic}"))?;
            sent += 1;
        }
    }
    until(&format!("{sent} refusals"), PATIENCE, async || {
        let found = refused(&fleet).await? - before;
        ensure!(found >= f64::from(sent), "{found} of {sent}");
        Ok(())
    })
    .await?;
    ensure!(session.is_open(), "the session was ended for bad content");
    let log = controller.process.log();
    for channel in [Channel::Reported, Channel::Presence, Channel::Reply] {
        let refusals = log.lines().filter(|line| line.contains("message.refuse"));
        let named = refusals.filter(|line| line.contains(&format!("channel={channel}"))).count();
        ensure!(named > 0, "no refusal on {channel} is logged");
    }
    ensure!(log.contains("fetch.refuse"), "no refused fetch is logged");
    ensure!(!log.contains("panicked"), "{log}");
    // What it said in another's name changed nothing.
    ensure!(controller.device(&good.id).await?["online"] == true);

    // A packet above the limit ends the session of its sender, and of nobody else.
    let topic = Channel::Telemetry.of(&bad.id.parse()?);
    session.send(&topic, &vec![0; 1 << 20]).await?;
    session.ended(Duration::from_secs(20)).await.context("an oversized packet was taken")?;
    ensure!(good.status().await?["link"]["connects"] == 1, "another device lost its session");

    // What it publishes where it may not leads nowhere. Brokers may end the session for it or not.
    let known = controller.device(&good.id).await?["reported"]["boot"].clone();
    let offline = serde_json::json!({
        "schema": 1, "device": good.id, "boot": known, "online": false, "reason": "forged",
    })
    .to_string();
    let desired = Channel::Desired.of(&good.id.parse()?);
    for (topic, payload) in [
        (Channel::Presence.of(&good.id.parse()?), offline.as_str()),
        (desired, "{}"),
        ("edgefleet/v1/trust/head".to_owned(), "{}"),
    ] {
        let mut session = Session::connect(&credentials).await?;
        // Refusing it is as good as dropping it.
        let _ = session.publish(&topic, payload.as_bytes()).await;
    }
    // What comes after on a topic of its own has come through: so would the others have.
    let before = refused(&fleet).await?;
    let mut session = Session::connect(&credentials).await?;
    session.publish(&Channel::Reply.of(&bad.id.parse()?), b"last").await?;
    until("the last refusal", PATIENCE, async || {
        ensure!(refused(&fleet).await? > before, "not yet");
        Ok(())
    })
    .await?;
    drop(session);
    let device = controller.device(&good.id).await?;
    ensure!(device["online"] == true && device["presence"] != "forged", "{device}");
    let status = good.status().await?;
    ensure!(status["link"]["malformed"] == 0 && status["update"]["refused"].is_null(), "{status}");

    // The same device, run as it should be, is as good as any; and everything goes on.
    let mut healed = bad;
    healed.start().await?;
    controller.sees(&healed.id, true).await?;
    models::publish(&place, controller, &models::digits(2)).await?;
    controller.assign_and_commit("digits@2").await?;
    for agent in [good, &healed] {
        answers(&agent.base, "digits@2").await?;
        controller.run(&["device", "ping", &agent.id]).await?;
    }
    healed.stop().await?;
    drop(healed);
    fleet.stop().await?;
    place.end()
}

/// Refusals of all kinds that the controller has counted.
async fn refused(fleet: &Fleet<'_>) -> Result<f64> {
    let api = &fleet.controller.api;
    let of_messages = api.metric("edgefleet_mqtt_malformed_total").await?;
    let of_telemetry = api.metric("edgefleet_telemetry_refused_total").await?;
    let of_fetches = api.metric("edgefleet_fetch_refused_total").await?;
    Ok(of_messages + of_telemetry + of_fetches)
}

#[tokio::test]
async fn a_certificate_the_fleet_did_not_issue_or_took_back_opens_no_session() -> Result<()> {
    let place = Place::new()?;
    let fleet = Fleet::start(&place, 1).await?;
    let (controller, agent) = (&fleet.controller, &fleet.agents[0]);
    let code = controller.invite(1).await?;
    let removed = Agent::enroll(&place, "removed", &code).await?;
    let mut own = Credentials::of(&removed.data)?;
    drop(Session::connect(&own).await.context("its certificate is good so far")?);

    // Made at home, for the name of a device that exists.
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![agent.id.clone()])?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, agent.id.as_str());
    let certificate = params.self_signed(&key)?;
    let stranger = Credentials {
        device: agent.id.clone(),
        host: own.host.clone(),
        port: own.port,
        ca: own.ca.clone(),
        certificate: certificate.pem().into_bytes(),
        key: key.serialize_pem().into_bytes(),
    };
    ensure!(Session::connect(&stranger).await.is_err(), "a certificate of nobody opened a session");

    // Its own certificate under another's name.
    own.device = agent.id.clone();
    let as_another = Session::connect(&own).await;
    ensure!(as_another.is_err(), "a device came in under another's name");

    own.device = removed.id.clone();
    controller.run(&["device", "remove", &removed.id, "--yes"]).await?;
    ensure!(Session::connect(&own).await.is_err(), "a removed device opened a session");

    ensure!(agent.status().await?["link"]["connects"] == 1, "the real device lost its session");
    controller.run(&["device", "ping", &agent.id]).await?;
    fleet.stop().await?;
    place.end()
}
