//! The line between device and controller fails while something travels.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    fleet::Fleet,
    inference::answers,
    models,
    place::Place,
    proxy::Proxy,
    waiting::{PATIENCE, until},
};

const MIB: u64 = 1 << 20;
const PADDING: u64 = 8 * MIB;
/// The transfer is cut when this much has been written.
const CUTS: [u64; 3] = [2 * MIB, 4 * MIB, 6 * MIB];

#[tokio::test]
async fn a_transfer_that_is_cut_goes_on_where_it_was() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = Fleet::start(&place, 1).await?;
    let source = models::copy_as(&place, &models::digits(2), 2)?;
    models::pad(&source, usize::try_from(PADDING)?, 7)?;
    models::publish(&place, &fleet.controller, &source).await?;

    // The device keeps its address; the proxy takes it, the controller moves behind.
    let front = fleet.controller.mqtt.parse()?;
    fleet.controller.process.stop().await?;
    fleet.controller.mqtt = "127.0.0.1:0".into();
    fleet.controller.start_again(&["--limits", "none"]).await?;
    let line = Proxy::start(front, fleet.controller.mqtt.parse()?).await?;
    line.throttle(2 * MIB);
    let agent = &fleet.agents[0];
    fleet.controller.sees(&agent.id, true).await?;
    let sent_before = fleet.controller.api.metric("edgefleet_transfer_bytes_total").await?;

    let rollout = fleet.controller.assign("digits@2").await?;
    for cut in CUTS {
        until(&format!("{cut} bytes on the device"), PATIENCE, async || {
            let slot = &agent.status().await?["update"]["slots"]["digits"];
            let done = slot["progress"]["done_bytes"].as_u64().context("no progress")?;
            ensure!(done >= cut, "{slot}");
            Ok(())
        })
        .await?;
        line.cut();
        answers(&agent.base, "digits@1").await?;
    }
    let attempts = fleet.controller.ended(&rollout).await?;
    ensure!(attempts[0]["attempt"] == "committed", "{attempts:?}");
    answers(&agent.base, "digits@2").await?;

    let sent = fleet.controller.api.metric("edgefleet_transfer_bytes_total").await? - sent_before;
    let bundle = fleet.controller.run(&["model", "show", "digits@2"]).await?;
    let size = bundle["size"].as_f64().context("no size")?;
    // Trust, release envelope and manifest are small.
    let again = sent - size - 64.0 * 1024.0;
    let allowed = CUTS.len() as f64 * MIB as f64;
    ensure!(
        sent >= size && again <= allowed,
        "{sent} bytes sent for {size}: {again} again, {allowed} allowed"
    );
    ensure!(line.connections() > CUTS.len() as u64, "only {} connections", line.connections());
    println!("{again} bytes asked again over {} cuts", CUTS.len());
    fleet.stop().await?;
    place.end()
}
