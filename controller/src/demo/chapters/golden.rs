//! A bundle whose model does not meet its golden samples: refused at the push, and by each device.

use crate::demo::{
    DemoError,
    tale::{Tale, shortened},
};

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    refused_push(tale).await?;
    let attempts = tale.refused_by_all("digits@3").await?;
    tale.judge_refusals(&attempts, "digits@3", "golden-mismatch");
    tale.take_back(&attempts, "digits@3").await
}

async fn refused_push(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    let built = tale.build(&tale.options.model.join("v3"), "digits@3", true).await?;
    let Tale { stage, report, console, .. } = tale;
    let (pushed, _, errors) = stage.try_command(&["model", "push", &built]).await?;
    let said: Vec<_> = errors.lines().skip_while(|line| !line.starts_with("error:")).collect();
    let named = said.first().is_some_and(|line| line.contains("golden-mismatch"));
    report.push_refused = Some(said.join("\n"));
    report.check("the controller's push check refuses digits@3", !pushed && named, said.join("\n"));
    console.say("   the controller refuses the push:");
    said.iter().for_each(|line| console.say(&format!("      {}", shortened(line))));
    let reason = "demo: show that devices check for themselves";
    stage.command(&["model", "push", &built, "--override-checks", "--reason", reason]).await?;
    let audit = stage.get("/api/v1/audit?limit=1000").await?;
    let audited = audit["items"]
        .as_array()
        .is_some_and(|all| all.iter().any(|entry| entry["note"].as_str().is_some_and(|n| n == reason)));
    report.check("the override is in the audit log with its reason", audited, "");
    console.say("   pushed again with the check overridden (audited)");
    Ok(())
}
