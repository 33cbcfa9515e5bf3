//! A better release replaces the first one while requests go on.

use crate::demo::{DemoError, tale::Tale};

pub(super) async fn tell(tale: &mut Tale<'_>) -> Result<(), DemoError> {
    tale.push(&tale.options.model.join("v2"), "digits@2").await?;
    tale.assign("digits@2").await?;
    tale.enough("digits@2").await?;
    tale.console.table(&tale.stage).await;
    Ok(())
}
