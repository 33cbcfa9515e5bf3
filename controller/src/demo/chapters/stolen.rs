//! A stolen controller: what its thief forges is refused by each device.

use crate::demo::{
    DemoError, attack,
    tale::{Tale, numbered},
};

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    let source = numbered(&tale.options.model.join("v2"), &tale.options.dir.join("v4"), 4)?;
    tale.push(&source, "digits@4").await?;
    let forged = "digits@4".parse().map_err(|e| DemoError::Attack { reason: format!("{e}") })?;
    tale.stage.serve.stop().await;
    attack::break_signature(&tale.stage.controller_dir(), &forged).await?;
    tale.stage.reopen().await?;
    tale.console.say("   the controller is back with a forged release in its store");
    let attempts = tale.refused_by_all("digits@4").await?;
    tale.judge_refusals(&attempts, "digits@4", "signature-invalid");
    tale.take_back(&attempts, "digits@4").await
}
