//! ONNX Runtime as a signed engine pack: rolled out, tried, used, replaced and taken back like a bundle.

use anyhow::{Context, Result, ensure};
use edgefleet_tests::{
    agent::Agent,
    binaries::repository,
    cli,
    controller::Controller,
    fleet::Fleet,
    inference::{Holdout, answers, infer},
    models,
    place::Place,
    plans,
    waiting::{PATIENCE, until},
};
use serde_json::Value;
use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const SLOT: &str = "engine/onnxruntime";
const PAUSE: Duration = Duration::from_millis(25);
/// A pack is probed, and then every bundle with it.
const LONG: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_pack_brings_an_engine_that_serves_survives_broken_successors_and_is_replaced() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = digits_on_tract(&place).await?;
    let load = Load::start(&fleet.agents[0].base)?;

    // A model that tract refuses is refused by the device as long as there is nothing else.
    let controller = &fleet.controller;
    let source = only_for_onnxruntime(&place, 7).await?;
    let built = models::build(&place, controller, &source, false).await?;
    models::push(controller, &built, Some("story: no engine at the controller")).await?.ok()?;
    let refused = failed(&place, controller, "digits@7").await?;
    ensure!(refused["refusal"]["code"] == "unsupported-operator", "{refused}");

    publish_pack(&place, controller, 1).await?;
    let slotless = ["assign", "onnxruntime@1", "--select", "", "--slot", "digits", "--yes"];
    controller.attempt(&slotless).await?.refused(&["engine/onnxruntime"])?;
    controller.assign_and_commit("onnxruntime@1").await?;
    let first = on_onnxruntime(&fleet.agents[0]).await?;
    reported(controller, &fleet.agents[0], "onnxruntime@1").await?;
    load.stop().await?;

    controller.assign_and_commit("digits@7").await?;
    answers(&fleet.agents[0].base, "digits@7").await?;
    plan(&place, controller, &plans::assign("digits@6", "", 1)).await?;
    until("digits@6 again", LONG, async || answers(&fleet.agents[0].base, "digits@6").await).await?;

    // What is broken is refused at the push, and by the device where somebody signed and forced it.
    let load = Load::start(&fleet.agents[0].base)?;
    for (counter, body, words) in [
        (2, vec![0x2a; 100_000], "no shared library"),
        (3, crashes_when_opened(&place)?, "while opening the engine's library"),
        (4, claims_another_version(&place).await?, "the library says that it is"),
    ] {
        let source = pack(&place, counter).await?;
        let bundle = format!("onnxruntime@{counter}");
        if counter == 4 {
            let toml = source.join("bundle.toml");
            let text = fs::read_to_string(&toml)?.replace("version = \"1.", "version = \"9.");
            fs::write(toml, text)?;
        }
        fs::write(library_of(&source)?, body)?;
        let built = models::build(&place, controller, &source, false).await?;
        models::push(controller, &built, None).await?.refused(&[words])?;
        models::push(controller, &built, Some("story: devices check for themselves")).await?.ok()?;
        let refused = failed(&place, controller, &bundle).await?;
        let said = refused["refusal"]["message"].as_str().unwrap_or_default();
        ensure!(said.contains(words), "{refused}");
        reported(controller, &fleet.agents[0], "onnxruntime@1").await?;
    }
    ensure!(on_onnxruntime(&fleet.agents[0]).await? == first, "the first pack still runs it");

    // The next sound one, another file, is opened beside the first in the same process.
    let source = pack(&place, 5).await?;
    let library = library_of(&source)?;
    let mut body = fs::read(&library)?;
    body.extend(b"more bytes, the same code");
    fs::write(library, body)?;
    let built = models::build(&place, controller, &source, true).await?;
    models::push(controller, &built, None).await?.ok()?;
    plan(&place, controller, &plans::assign("onnxruntime@5", "", 1)).await?;
    until("the second library", LONG, async || {
        let now = on_onnxruntime(&fleet.agents[0]).await?;
        ensure!(now != first, "{now}");
        Ok(())
    })
    .await?;
    reported(controller, &fleet.agents[0], "onnxruntime@5").await?;
    load.stop().await?;

    // A start finds it on the disk, without asking anybody.
    fleet.agents[0].stop().await?;
    fleet.agents[0].start().await?;
    answers(&fleet.agents[0].base, "digits@6").await?;
    let now = on_onnxruntime(&fleet.agents[0]).await?;
    ensure!(now != first, "{now}");

    // A withdrawal takes the engine away for good, but not from under what runs on nothing else.
    let controller = &fleet.controller;
    let source = place.join("withdrawal");
    fs::create_dir(&source)?;
    fs::write(source.join("bundle.toml"), WITHDRAWAL)?;
    let built = models::build(&place, controller, &source, true).await?;
    models::push(controller, &built, None).await?.ok()?;
    plan(&place, controller, &plans::assign("digits@7", "", 1)).await?;
    until("digits@7", LONG, async || answers(&fleet.agents[0].base, "digits@7").await).await?;
    let refused = failed(&place, controller, "onnxruntime@6").await?;
    let said = refused["refusal"]["message"].as_str().unwrap_or_default();
    ensure!(said.contains("digits@7 in slot `digits` runs on nothing else"), "{refused}");
    plan(&place, controller, &plans::assign("digits@6", "", 1)).await?;
    until("digits@6 again", LONG, async || answers(&fleet.agents[0].base, "digits@6").await).await?;
    let rollout = plan(&place, controller, &plans::assign("onnxruntime@6", "", 1)).await?;
    let attempts = controller.ended(&rollout).await?;
    ensure!(attempts.iter().all(|one| one["state"] == "committed"), "{attempts:?}");
    on_tract(&fleet.agents[0]).await?;
    answers(&fleet.agents[0].base, "digits@6").await?;
    fleet.stop().await?;
    place.end()
}

const WITHDRAWAL: &str = "schema = 1
kind = \"engine\"
[model]
name = \"onnxruntime\"
counter = 6
version = \"none\"
[engine]
api = 0
";

#[tokio::test]
async fn taking_a_pack_back_returns_to_tract_without_losing_a_request() -> Result<()> {
    let place = Place::new()?;
    let fleet = digits_on_tract(&place).await?;
    let (controller, agent) = (&fleet.controller, &fleet.agents[0]);
    let load = Load::start(&agent.base)?;
    publish_pack(&place, controller, 1).await?;
    let mut wanted = plans::assign("onnxruntime@1", "", 1);
    wanted["plan"]["stages"][0]["soak"] = 3_600.into();
    let rollout = plan(&place, controller, &wanted).await?;
    on_onnxruntime(agent).await?;
    controller.run(&["rollout", "revert", &rollout, "--reason", "a story goes back"]).await?;
    on_tract(agent).await?;
    until("the device to say so", PATIENCE, async || {
        let device = controller.device(&agent.id).await?;
        ensure!(!device.to_string().contains("onnxruntime 1."), "{device}");
        Ok(())
    })
    .await?;
    load.stop().await?;
    fleet.stop().await?;
    place.end()
}

#[tokio::test]
async fn going_back_takes_no_engine_from_under_a_bundle_that_runs_on_nothing_else() -> Result<()> {
    let place = Place::new()?;
    let mut fleet = digits_on_tract(&place).await?;
    let controller = &fleet.controller;
    let source = only_for_onnxruntime(&place, 7).await?;
    let built = models::build(&place, controller, &source, false).await?;
    models::push(controller, &built, Some("story: no engine at the controller")).await?.ok()?;
    publish_pack(&place, controller, 1).await?;
    let mut wanted = plans::assign("onnxruntime@1", "", 1);
    wanted["plan"]["stages"][0]["soak"] = 3_600.into();
    let rollout = plan(&place, controller, &wanted).await?;
    on_onnxruntime(&fleet.agents[0]).await?;
    plan(&place, controller, &plans::assign("digits@7", "", 1)).await?;
    until("digits@7", LONG, async || answers(&fleet.agents[0].base, "digits@7").await).await?;

    // To none: the pack stays, the device says why, and a restart changes nothing.
    controller.run(&["rollout", "revert", &rollout, "--reason", "a story goes back"]).await?;
    stays(controller, &fleet.agents[0], "onnxruntime@1").await?;
    fleet.agents[0].stop().await?;
    fleet.agents[0].start().await?;
    answers(&fleet.agents[0].base, "digits@7").await?;
    stays(controller, &fleet.agents[0], "onnxruntime@1").await?;
    // Commands beside the agent find it.
    let agent = &fleet.agents[0];
    let version = cli::run(
        &edgefleet_tests::binaries::agent()?,
        ["version", "--data"].map(OsString::from).into_iter().chain([agent.data.clone().into()]),
        &[],
    )
    .await?
    .ok()?
    .out;
    ensure!(version.contains("(engine pack)"), "{version}");
    let (request, model) = (place.join("request.json"), repository("models/digits/v1/model.onnx"));
    fs::write(&request, edgefleet_tests::inference::request(&Holdout::load()?.images[0]).to_string())?;
    let args = ["infer".into(), model.into(), "--input".into(), request.into(), "--engine".into()];
    let args = args.into_iter().chain(["onnxruntime".into(), "--data".into(), agent.data.clone().into()]);
    let args: Vec<OsString> = args.collect();
    let answer = cli::run(&edgefleet_tests::binaries::agent()?, args, &[]).await?.ok()?.json()?;
    ensure!(answer["parameters"]["engine"] == "onnxruntime/f32/1", "{answer}");

    // Once nothing needs it, it goes by itself.
    plan(&place, controller, &plans::assign("digits@6", "", 1)).await?;
    until("digits@6 again", LONG, async || answers(&agent.base, "digits@6").await).await?;
    on_tract(agent).await?;
    until("the slot to be gone", PATIENCE, async || {
        let device = controller.device(&agent.id).await?;
        ensure!(device["slots"][SLOT].is_null(), "{device}");
        Ok(())
    })
    .await?;
    fleet.stop().await?;
    place.end()
}

/// Waits until the controller shows that the pack stays, and why.
async fn stays(controller: &Controller<'_>, agent: &Agent<'_>, bundle: &str) -> Result<()> {
    until("the pack to stay", PATIENCE, async || {
        let shown = controller.table(&["device", "show", &agent.id]).await?;
        for words in [&format!("{SLOT}: serves {bundle}"), "digits@7 in slot `digits` runs on nothing else"] {
            ensure!(shown.contains(words), "{shown}");
        }
        ensure!(shown.contains("runs on onnxruntime/f32/1"), "{shown}");
        let status = agent.status().await?;
        ensure!(status["engines"]["library_from"] == "pack", "{status}");
        Ok(())
    })
    .await
}

/// One device that prefers ONNX Runtime, has none, and serves `digits@6`.
async fn digits_on_tract(place: &Place) -> Result<Fleet<'_>> {
    let controller = Controller::start(place).await?;
    let code = controller.invite(1).await?;
    let prefer = vec![("EDGEFLEET_AGENT_ENGINE_PREFER".to_owned(), OsString::from("onnxruntime"))];
    let mut agent = Agent::enroll_with(place, "agent-1", &code, prefer).await?;
    agent.start().await?;
    controller.sees(&agent.id, true).await?;
    models::publish(place, &controller, &models::digits(6)).await?;
    controller.assign_and_commit("digits@6").await?;
    let status = agent.status().await?;
    ensure!(
        status["engines"]["library_from"].is_null(),
        "this machine has an ONNX Runtime of its own, which is not what this story is about: {}",
        status["engines"]
    );
    Ok(Fleet { controller, agents: vec![agent] })
}

fn python() -> Result<PathBuf> {
    const PYTHON: &str = "EDGEFLEET_TEST_PYTHON";
    let path = std::env::var_os(PYTHON).with_context(|| {
        format!("{PYTHON} names no interpreter with onnxruntime; run `make setup` (`make test` does)")
    })?;
    Ok(path.into())
}

/// The source of `onnxruntime@counter`, made by the recipe from the installed wheel.
async fn pack(place: &Place, counter: u64) -> Result<PathBuf> {
    let recipe = repository("engines/onnxruntime/recipe.py");
    let out = place.join(&format!("pack-{counter}"));
    let counter = counter.to_string();
    let args = [recipe.as_os_str(), out.as_os_str(), OsStr::new("--installed")];
    let args = args.into_iter().chain([OsStr::new("--counter"), OsStr::new(&counter)]);
    cli::run(&python()?, args, &[("PYTHONDONTWRITEBYTECODE", OsStr::new("1"))]).await?.ok()?;
    Ok(out)
}

/// The one library of a source.
fn library_of(source: &Path) -> Result<PathBuf> {
    let mut folders = fs::read_dir(source)?.flatten().filter(|entry| entry.path().is_dir());
    Ok(folders.next().context("no library")?.path().join("libonnxruntime.so"))
}

async fn publish_pack(place: &Place, controller: &Controller<'_>, counter: u64) -> Result<()> {
    let source = pack(place, counter).await?;
    let built = models::build(place, controller, &source, true).await?;
    models::push(controller, &built, None).await?.ok()?;
    Ok(())
}

/// `digits` as a model of one operator that tract lacks, with what ONNX Runtime answers as golden samples.
async fn only_for_onnxruntime(place: &Place, counter: u64) -> Result<PathBuf> {
    const GOLDEN: &str = "
import json, pathlib, sys
import numpy, onnxruntime
source = pathlib.Path(sys.argv[1])
session = onnxruntime.InferenceSession(source / 'model.onnx')
for path in (source / 'golden').glob('*.json'):
    sample = json.loads(path.read_text())
    image = sample['inputs'][0]
    found = session.run(None, {'image': numpy.array(image['data'], numpy.float32).reshape(image['shape'])})
    sample['outputs'] = [
        {'name': name, 'datatype': kind, 'shape': list(one.shape), 'data': one.flatten().tolist()}
        for name, kind, one in zip(('probabilities', 'label'), ('FP32', 'INT64'), found)
    ]
    path.write_text(json.dumps(sample))
";
    let source = models::copy_as(place, &models::digits(1), counter)?;
    fs::copy(repository("models/fixtures/unsupported-op.onnx"), source.join("model.onnx"))?;
    let args = [OsStr::new("-c"), OsStr::new(GOLDEN), source.as_os_str()];
    cli::run(&python()?, args, &[]).await?.ok()?;
    Ok(source)
}

/// A library that aborts as soon as it is opened.
fn crashes_when_opened(place: &Place) -> Result<Vec<u8>> {
    let (code, library) = (place.join("aborts.c"), place.join("aborts.so"));
    fs::write(&code, "#include <stdlib.h>\n__attribute__((constructor)) static void c(void) { abort(); }\n")?;
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status()?;
    ensure!(done.success(), "cc: {done}");
    Ok(fs::read(library)?)
}

/// The real library; its manifest will say something else of it.
async fn claims_another_version(place: &Place) -> Result<Vec<u8>> {
    Ok(fs::read(library_of(&pack(place, 4).await?)?)?)
}

/// Starts a plan by the command line; the rollout's id.
async fn plan(place: &Place, controller: &Controller<'_>, request: &Value) -> Result<String> {
    let bundle = request["plan"]["rollout"]["bundle"].as_str().context("a plan names a bundle")?;
    let file = place.join(&format!("{bundle}.json"));
    fs::write(&file, serde_json::to_vec_pretty(&request["plan"])?)?;
    let file = file.to_string_lossy();
    let started = controller.run(&["rollout", "start", &file, "--yes", "--reason", "a story"]).await?;
    let id = [&started["id"], &started["rollout"]["id"]].into_iter().find_map(|id| id.as_str());
    Ok(id.with_context(|| format!("no id: {started}"))?.to_owned())
}

/// Rolls a bundle out that the one device refuses; its attempt.
async fn failed(place: &Place, controller: &Controller<'_>, bundle: &str) -> Result<Value> {
    let rollout = plan(place, controller, &plans::assign(bundle, "", 1)).await?;
    let mut attempts = controller.ended(&rollout).await?;
    let attempt = attempts.pop().context("no attempt")?;
    ensure!(attempt["state"] == "failed", "{attempt}");
    Ok(attempt)
}

/// Waits until the pack's library runs the digits; the path of that library.
async fn on_onnxruntime(agent: &Agent<'_>) -> Result<String> {
    let status = until("onnxruntime to run the digits", LONG, async || {
        let status = agent.status().await?;
        let engines = &status["engines"];
        let slot = &engines["slots"]["digits"];
        ensure!(engines["library_from"] == "pack" && slot["current"] == true, "{engines}");
        ensure!(slot["setup"].as_str().is_some_and(|setup| setup.starts_with("onnxruntime/")), "{slot}");
        Ok(slot["library"].clone())
    })
    .await?;
    Ok(status.as_str().context("no library")?.to_owned())
}

/// Waits until there is no library and tract runs the digits.
async fn on_tract(agent: &Agent<'_>) -> Result<()> {
    agent
        .until("tract again", |status| {
            let engines = &status["engines"];
            let setup = engines["slots"]["digits"]["setup"].as_str();
            engines["library"].is_null() && setup.is_some_and(|setup| setup.starts_with("tract/"))
        })
        .await?;
    Ok(())
}

/// Waits until the controller knows of this pack on the device, and of its engine.
async fn reported(controller: &Controller<'_>, agent: &Agent<'_>, bundle: &str) -> Result<()> {
    until(&format!("the report of {bundle}"), PATIENCE, async || {
        let device = controller.device(&agent.id).await?;
        let shown = controller.table(&["device", "show", &agent.id]).await?;
        ensure!(shown.contains(&format!("{SLOT}: serves {bundle}")), "{shown}");
        ensure!(device.to_string().contains("onnxruntime 1."), "{device}");
        Ok(())
    })
    .await
}

/// Somebody who asks all the time and accepts no failure.
struct Load {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<u64>>,
}

impl Load {
    fn start(base: &str) -> Result<Self> {
        let (stop, base, holdout) = (Arc::<AtomicBool>::default(), base.to_owned(), Holdout::load()?);
        let told = stop.clone();
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut ticks = tokio::time::interval(PAUSE);
            let mut asked = 0;
            while !told.load(Ordering::Relaxed) {
                ticks.tick().await;
                let image = &holdout.images[asked as usize % holdout.images.len()];
                let answer = infer(&client, &base, image).await?;
                ensure!(answer.bundle == "digits@6", "{answer:?}");
                asked += 1;
            }
            Ok(asked)
        });
        Ok(Self { stop, task })
    }

    async fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let asked = self.task.await?.context("a request failed")?;
        ensure!(asked > 20, "only {asked} requests");
        Ok(())
    }
}
