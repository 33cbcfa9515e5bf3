//! Bundles for stories: sources made from `models/`, and their way to the controller by command line.

use crate::{binaries::repository, cli::Done, controller::Controller, place::Place};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The committed source of `digits@N`, for each folder `v*` there is.
pub fn digits(counter: u64) -> PathBuf {
    repository(&format!("models/digits/v{counter}"))
}

/// A copy of a source as release `counter`, to change.
///
/// # Errors
/// If it cannot be written.
pub fn copy_as(place: &Place, source: &Path, counter: u64) -> Result<PathBuf> {
    let target = place.join(&format!("source-{counter}"));
    copy_folder(source, &target)?;
    let file = target.join("bundle.toml");
    let toml: String = fs::read_to_string(&file)?
        .lines()
        .map(|line| match line.trim_start().starts_with("counter") {
            true => format!("counter = {counter}\n"),
            false => format!("{line}\n"),
        })
        .collect();
    fs::write(&file, toml)?;
    Ok(target)
}

/// # Errors
/// If something cannot be read or written.
pub fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_folder(&entry.path(), &target)?,
            false => drop(fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// Makes the ONNX file of a source `bytes` longer with the same answers: appends a `ModelProto` that has
/// only a `doc_string` (`models/fixtures/README.md`, "Padding"). `seed` makes files differ.
///
/// # Errors
/// If it cannot be written.
pub fn pad(source: &Path, bytes: usize, seed: u64) -> Result<()> {
    let path = source.join("model.onnx");
    let mut model = fs::read(&path)?;
    model.push(0x32);
    let mut left = bytes;
    while left >= 0x80 {
        model.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    model.push(left as u8);
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    model.extend((0..bytes).map(|_| {
        // A plain congruential generator: only has to look random to a compressor.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b' ' + ((state >> 33) % 95) as u8
    }));
    fs::write(&path, model)?;
    Ok(())
}

/// `model build` and `model sign` with the controller's own publisher key; the bundle folder.
///
/// # Errors
/// If one of them fails.
pub async fn build(place: &Place, controller: &Controller<'_>, source: &Path, probe: bool) -> Result<String> {
    let name = source.file_name().context("a source has a name")?.to_string_lossy();
    let out = place.join("bundles").join(name.as_ref()).to_string_lossy().into_owned();
    let source = source.to_string_lossy();
    let mut args = vec!["model", "build", &source, "--out", &out];
    if !probe {
        args.push("--no-probe");
    }
    controller.run(&args).await?;
    controller.run(&["model", "sign", &out]).await?;
    Ok(out)
}

/// Builds, signs and pushes.
///
/// # Errors
/// If one step fails.
pub async fn publish(place: &Place, controller: &Controller<'_>, source: &Path) -> Result<()> {
    let built = build(place, controller, source, false).await?;
    let pushed = controller.run(&["model", "push", &built]).await?;
    ensure!(pushed["outcome"] == "created", "{pushed}");
    Ok(())
}

/// Pushes what was built, whatever comes of it; `reason` overrides the checks.
///
/// # Errors
/// If it cannot be run.
pub async fn push(controller: &Controller<'_>, built: &str, reason: Option<&str>) -> Result<Done> {
    let mut args = vec!["model", "push", built];
    if let Some(reason) = reason {
        args.extend(["--override-checks", "--reason", reason]);
    }
    controller.attempt(&args).await
}
