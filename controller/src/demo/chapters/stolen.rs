//! A stolen controller: what its thief forges is refused by each device.

use crate::demo::{DemoError, attack, tale::Tale};
use std::path::{Path, PathBuf};

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
    Ok(())
}

/// A copy of a bundle source as release `counter`.
fn numbered(source: &Path, target: &Path, counter: u64) -> Result<PathBuf, DemoError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DemoError::Write { path, source }
    };
    let copy = |from: &Path, to: &Path| std::fs::copy(from, to).map(drop).map_err(failed(to));
    std::fs::create_dir_all(target.join("golden")).map_err(failed(target))?;
    for folder in ["", "golden"] {
        for entry in std::fs::read_dir(source.join(folder)).map_err(failed(source))?.flatten() {
            if entry.path().is_file() {
                copy(&entry.path(), &target.join(folder).join(entry.file_name()))?;
            }
        }
    }
    let file = target.join("bundle.toml");
    let toml = std::fs::read_to_string(&file).map_err(failed(&file))?;
    let toml: Vec<String> = toml
        .lines()
        .map(|line| match line.trim_start().starts_with("counter") {
            true => format!("counter = {counter}"),
            false => line.to_owned(),
        })
        .collect();
    std::fs::write(&file, toml.join("\n")).map_err(failed(&file))?;
    Ok(target.to_owned())
}
