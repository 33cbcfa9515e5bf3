//! What `edgefleet model lint` and `model build` say of models, with the agent's engines behind them.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    binaries::{self, repository},
    cli::{self, Done},
    place::Place,
};
use serde_json::Value;
use std::path::PathBuf;

async fn model(args: &[&str]) -> Result<Done> {
    let mut all = vec!["model"];
    all.extend(args);
    cli::run(&binaries::edgefleet()?, all, &[]).await
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// Codes of the findings about each file.
fn codes(models: &Value) -> Result<Vec<Vec<String>>> {
    let code = |finding: &Value| finding["code"].as_str().unwrap_or_default().to_owned();
    let of = |model: &Value| model["findings"].as_array().map(|all| all.iter().map(code).collect());
    models.as_array().context("a list")?.iter().map(|model| of(model).context("findings")).collect()
}

#[tokio::test]
async fn what_is_wrong_with_a_model_is_said_before_it_is_built() -> Result<()> {
    let said = model(&["lint", &text(repository("models/fixtures/lint.onnx")), "--output", "json"]).await?;
    let said = said.ok()?.json()?;
    let found = codes(&said["models"])?.remove(0);
    for code in [
        "engine-refuses",
        "engine-unasked",
        "opset",
        "float64-input",
        "open-shape",
        "int8-activations",
        "int8-weights",
        "softmax-quantised",
    ] {
        ensure!(found.iter().any(|one| one == code), "{code} is not among {found:?}");
    }
    let table = model(&["lint", &text(repository("models/fixtures/lint.onnx"))]).await?.ok()?.out;
    ensure!(table.contains("Softmax") && table.contains("WRONG"), "{table}");

    let lacking = model(&["lint", &text(repository("models/fixtures/unsupported-op.onnx"))]).await?.ok()?.out;
    ensure!(lacking.contains("Det") && lacking.contains("lacks it"), "{lacking}");
    // No device could run this one.
    let hopeless = model(&["lint", &text(repository("models/fixtures/corrupt.onnx"))]).await?;
    hopeless.refused(&["no device could run"])?;
    // Both variants, and who gains.
    let both =
        model(&["lint", &text(repository("models/exercise/v1")), "--output", "json"]).await?.ok()?.json()?;
    let found = codes(&both["models"])?;
    ensure!(found.len() == 2 && found[1].iter().any(|code| code == "int8-falls-back"), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_folder_that_is_not_ready_is_looked_at_all_the_same() -> Result<()> {
    let place = Place::new()?;
    let folder = place.join("begun");
    std::fs::create_dir_all(&folder)?;
    std::fs::copy(repository("models/digits/v1/model.onnx"), folder.join("model.onnx"))?;
    std::fs::write(folder.join("bundle.toml"), "schema = 1\n")?;
    let said = model(&["lint", &text(folder)]).await?.ok()?.out;
    ensure!(
        said.contains("NOT READY TO BE BUILT") && said.contains("golden") && said.contains("Gemm"),
        "{said}"
    );
    Ok(())
}

/// The agent behind a script that writes down what it is asked, and where.
fn counting_agent(place: &Place) -> Result<(String, PathBuf)> {
    use std::os::unix::fs::PermissionsExt as _;
    let (script, asked) = (place.join("agent"), place.join("asked"));
    let agent = text(binaries::agent()?);
    let said = format!("#!/bin/sh\necho \"$1\" >> '{}'\nexec '{agent}' \"$@\"\n", asked.display());
    std::fs::write(&script, said)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok((text(script), asked))
}

fn probes(asked: &std::path::Path) -> Result<usize> {
    Ok(std::fs::read_to_string(asked)?.lines().filter(|line| *line == "probe").count())
}

#[tokio::test]
async fn a_bundle_holds_the_folded_model_only_where_golden_samples_prove_it() -> Result<()> {
    let place = Place::new()?;
    let source = place.join("folding");
    edgefleet_tests::models::copy_folder(&repository("models/fixtures/folding"), &source)?;
    let (source, out) = (text(source), text(place.join("out")));
    let (agent, asked) = counting_agent(&place)?;
    let build =
        ["build", source.as_str(), "--out", out.as_str(), "--agent-bin", agent.as_str(), "--output", "json"];
    let built = model(&build).await?.ok()?.json()?;
    // Original and folded; what is built was one of them. Lint looks by itself.
    ensure!(probes(&asked)? == 2, "{:?}", std::fs::read_to_string(&asked));
    let fold = &built["fold"];
    ensure!(fold["kept"] == true && built["verdict"]["ok"] == true, "{built}");
    let done = fold["done"].as_array().context("done")?;
    ensure!(done.len() == 12, "{fold}");
    ensure!(fold["bytes_after"].as_u64() < fold["bytes_before"].as_u64(), "{fold}");
    let operators = &built["verdict"]["operators"];
    ensure!(operators["If"].is_null() && operators["BatchNormalization"] == 1, "{operators}");
    // The same source, the same digest; the original on request.
    let again = model(&build).await?.ok()?.json()?;
    ensure!(again["digest"] == built["digest"], "{again}");
    ensure!(probes(&asked)? == 4, "{:?}", std::fs::read_to_string(&asked));
    let plain = model(&[&build[..], &["--no-fold"]].concat()).await?.ok()?.json()?;
    ensure!(probes(&asked)? == 5, "{:?}", std::fs::read_to_string(&asked));
    ensure!(plain["fold"].is_null() && plain["digest"] != built["digest"], "{plain}");
    ensure!(plain["verdict"]["operators"]["BatchNormalization"] == 6, "{plain}");

    // Tolerances so tight that rounding shows: the original stays, and passes or not as before.
    let toml = std::path::Path::new(&source).join("bundle.toml");
    let tight = std::fs::read_to_string(&toml)?
        .replace("rtol = 1e-4", "rtol = 0.0")
        .replace("atol = 1e-5", "atol = 0.0");
    std::fs::write(&toml, tight)?;
    let kept = model(&build).await?.json()?;
    ensure!(kept["fold"]["kept"] == false && kept["verdict"]["operators"]["If"] != Value::Null, "{kept}");
    ensure!(kept["verdict"]["digest"] == kept["digest"] && probes(&asked)? == 7, "{kept}");
    Ok(())
}

#[tokio::test]
async fn models_without_anything_to_fold_are_built_byte_for_byte() -> Result<()> {
    let place = Place::new()?;
    for name in ["digits/v1", "exercise/v1"] {
        let (source, out) = (text(repository(&format!("models/{name}"))), text(place.join("out")));
        let build = ["build", source.as_str(), "--out", out.as_str(), "--output", "json"];
        let built = model(&build).await?.ok()?.json()?;
        let plain = model(&[&build[..], &["--no-fold"]].concat()).await?.ok()?.json()?;
        ensure!(built["fold"].is_null() && built["digest"] == plain["digest"], "{built}");
    }
    Ok(())
}
