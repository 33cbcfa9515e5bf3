//! A controller starts, and agents join it by one code.

use crate::demo::{
    DemoError,
    stage::text,
    tale::{FLEET_LIMIT, Tale},
};

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    let devices = tale.options.devices;
    let stage = &mut tale.stage;
    tale.console.say(&format!("   controller at {} (API) and {} (MQTT over TLS)", stage.url, stage.mqtt));
    let uses = devices.to_string();
    let invite =
        stage.command(&["device", "invite", "--labels", "site=lab", "--uses", &uses, "--ttl", "1h"]).await?;
    let code = text(&invite["code"]);
    for number in 1..=devices {
        stage.add_agent(number, &code).await?;
    }
    let online = stage
        .wait_for(
            "all agents online",
            FLEET_LIMIT,
            async |_| (),
            async |stage| {
                let devices = stage.get("/api/v1/devices?limit=1000").await?;
                let all = devices["items"].as_array().cloned().unwrap_or_default();
                let online = all.iter().filter(|d| d["online"] == true).count();
                Ok(if online == stage.agents.len() { Ok(online) } else { Err(format!("{online} online")) })
            },
        )
        .await?;
    tale.report.check("every agent enrolled and is online", online == devices, format!("{online}"));
    tale.console.say(&format!("   {online} agents enrolled with their own keys and certificates"));
    Ok(())
}
