//! The way of a first release to every device, and the load that runs from now on.

use crate::demo::{DemoError, tale::Tale};

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    tale.push(&tale.options.model.join("v1"), "digits@1").await?;
    tale.assign("digits@1").await?;
    tale.stage.start_load(&tale.holdout);
    tale.enough("digits@1").await?;
    tale.console.table(&tale.stage).await;
    Ok(())
}
