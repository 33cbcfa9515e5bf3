//! The chapters.

use super::{
    DemoError, attack,
    console::{self, Console},
    load::Holdout,
    report::{BundleReport, ChapterReport, Quantiles, RefusalReport, Report, quantile},
    stage::{Stage, text},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Longest wait for the whole fleet to do one thing.
const FLEET_LIMIT: u64 = 45;
/// Requests every device answers before the story goes on: most of the held-out images.
const ENOUGH: u64 = 200;

pub struct DemoOptions {
    /// Folder of the sample model: `v1`, `v2`, `v3`, `holdout`.
    pub model: PathBuf,
    /// Made anew: controller, agents, logs, report.
    pub dir: PathBuf,
    pub agent_bin: PathBuf,
    pub devices: usize,
    /// Leave everything running at the end.
    pub keep: bool,
    pub quiet: bool,
}

/// Runs the demo. The report says whether every promise held; it is also written to `report.json`.
///
/// # Errors
/// [`DemoError`] if the story could not be told to its end; the report written then says so.
pub async fn run(options: DemoOptions) -> Result<Report, DemoError> {
    let started = Instant::now();
    let mut report = Report { devices: options.devices, ..Report::default() };
    let mut console = Console::new(options.quiet);
    if options.dir.exists() {
        std::fs::remove_dir_all(&options.dir)
            .map_err(|source| DemoError::Write { path: options.dir.clone(), source })?;
    }
    let logs = options.dir.join("logs");
    std::fs::create_dir_all(&logs).map_err(|source| DemoError::Write { path: logs, source })?;
    let told = tokio::select! {
        told = tell(&options, &mut report, &mut console) => told,
        _ = tokio::signal::ctrl_c() => Err(DemoError::Interrupted),
    };
    if let Err(error) = &told {
        report.check("the story was told to its end", false, error.to_string());
    }
    report.close(started.elapsed().as_secs_f64());
    let path = options.dir.join("report.json");
    let json = serde_json::to_vec_pretty(&report).unwrap_or_default(); // plain data: cannot fail
    std::fs::write(&path, json).map_err(|source| DemoError::Write { path: path.clone(), source })?;
    let stage = told?;
    summary(&report, &path, &mut console);
    if options.keep {
        keep(stage, &mut console);
    } else {
        close(stage).await;
    }
    Ok(report)
}

struct Chapters {
    done: Vec<ChapterReport>,
    current: Option<(String, Instant)>,
}

impl Chapters {
    fn open(&mut self, console: &mut Console, title: &str) {
        self.close();
        console.chapter(self.done.len() + 1, title);
        self.current = Some((title.to_owned(), Instant::now()));
    }
    fn close(&mut self) {
        if let Some((name, started)) = self.current.take() {
            self.done.push(ChapterReport { name, seconds: started.elapsed().as_secs_f64() });
        }
    }
}

async fn tell(options: &DemoOptions, report: &mut Report, console: &mut Console) -> Result<Stage, DemoError> {
    let mut chapters = Chapters { done: vec![], current: None };
    let holdout = Arc::new(Holdout::load(&options.model.join("holdout/holdout.json"))?);

    chapters.open(console, "A controller, and agents that join by one code");
    let exe =
        std::env::current_exe().map_err(|source| DemoError::Start { program: "edgefleet".into(), source })?;
    let mut stage = Stage::open(exe, options.agent_bin.clone(), options.dir.clone()).await?;
    console.say(&format!("   controller at {} (API) and {} (MQTT over TLS)", stage.url, stage.mqtt));
    let uses = options.devices.to_string();
    let invite =
        stage.command(&["device", "invite", "--labels", "site=lab", "--uses", &uses, "--ttl", "1h"]).await?;
    let code = text(&invite["code"]);
    for number in 1..=options.devices {
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
    report.check("every agent enrolled and is online", online == options.devices, format!("{online}"));
    console.say(&format!("   {online} agents enrolled with their own keys and certificates"));

    let mut activation = Vec::new();
    chapters.open(console, "digits@1: build, check, sign, push, assign");
    push(&stage, &options.model.join("v1"), "digits@1", &[]).await?;
    activation.extend(assign(&stage, console, "digits@1").await?);
    stage.start_load(&holdout);
    enough(&stage, console, "digits@1").await?;
    console.table(&stage).await;

    chapters.open(console, "digits@2 under load");
    push(&stage, &options.model.join("v2"), "digits@2", &[]).await?;
    activation.extend(assign(&stage, console, "digits@2").await?);
    enough(&stage, console, "digits@2").await?;
    console.table(&stage).await;

    chapters.open(console, "digits@3: its golden samples do not match its model");
    refused_push(&stage, &options.model.join("v3"), report, console).await?;
    let attempts = refused_by_all(&stage, console, "digits@3").await?;
    judge_refusals(report, console, &attempts, "digits@3", "golden-mismatch", options.devices);

    chapters.open(console, "digits@4: a stolen controller hands out what no publisher signed");
    let source = numbered(&options.model.join("v2"), &options.dir.join("v4"), 4)?;
    push(&stage, &source, "digits@4", &[]).await?;
    let forged = "digits@4".parse().map_err(|e| DemoError::Attack { reason: format!("{e}") })?;
    stage.serve.stop().await;
    attack::break_signature(&stage.controller_dir(), &forged).await?;
    stage.reopen().await?;
    console.say("   the controller is back with a forged release in its store");
    let attempts = refused_by_all(&stage, console, "digits@4").await?;
    judge_refusals(report, console, &attempts, "digits@4", "signature-invalid", options.devices);

    chapters.open(console, "What the agents counted");
    finish(&mut stage, report, &mut activation).await?;
    chapters.close();
    report.chapters = chapters.done;
    Ok(stage)
}

/// `model build`, `sign` and `push`, as the quick start shows them.
async fn push(stage: &Stage, source: &Path, bundle: &str, extra: &[&str]) -> Result<(), DemoError> {
    let built = build(stage, source, bundle, extra.contains(&"--override-checks")).await?;
    let args = [&["model", "push", built.as_str()], extra].concat();
    stage.command(&args).await?;
    Ok(())
}

async fn build(stage: &Stage, source: &Path, bundle: &str, unchecked: bool) -> Result<String, DemoError> {
    let out = stage.dir.join("bundles").join(bundle);
    let out = out.to_string_lossy().into_owned();
    let source = source.to_string_lossy().into_owned();
    let mut args = vec!["model", "build", &source, "--out", &out];
    if unchecked {
        args.push("--no-probe");
    }
    stage.command(&args).await?;
    let key = stage.controller_dir().join("keys/publisher.pk8");
    stage.command(&["model", "sign", &out, "--key", &key.to_string_lossy()]).await?;
    Ok(out)
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

/// Assigns `bundle` to everybody and waits until every device committed to it.
async fn assign(stage: &Stage, console: &mut Console, bundle: &str) -> Result<Vec<f64>, DemoError> {
    let started = Instant::now();
    let rollout = start_rollout(stage, bundle).await?;
    let mut took: BTreeMap<String, f64> = BTreeMap::new();
    let path = format!("/api/v1/rollouts/{rollout}/attempts?limit=1000");
    let attempts = loop {
        let attempts = stage.get(&path).await?;
        let all = attempts["items"].as_array().cloned().unwrap_or_default();
        for attempt in all.iter().filter(|a| a["attempt"] == "committed") {
            took.entry(text(&attempt["device"])).or_insert_with(|| started.elapsed().as_secs_f64());
        }
        if took.len() == stage.agents.len() {
            break all;
        }
        if started.elapsed() > Duration::from_secs(FLEET_LIMIT) {
            let what = format!("{bundle} active on all devices");
            return Err(DemoError::Waited { what, seconds: FLEET_LIMIT, state: attempts.to_string() });
        }
        console.refresh(stage).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let slowest = took.values().copied().fold(0.0, f64::max);
    console.say(&format!("   {bundle} active on {} devices after {slowest:.1} s", attempts.len()));
    Ok(took.into_values().collect())
}

async fn start_rollout(stage: &Stage, bundle: &str) -> Result<String, DemoError> {
    let args = ["assign", bundle, "--select", "site=lab", "--yes", "--probation", "2s"];
    let answer = stage.command(&args).await?;
    match text(&answer["id"]) {
        id if id.is_empty() => Err(DemoError::Output { command: args.join(" "), output: answer.to_string() }),
        id => Ok(id),
    }
}

/// Waits until the load has had [`ENOUGH`] answers of `bundle` from every agent.
async fn enough(stage: &Stage, console: &mut Console, bundle: &str) -> Result<(), DemoError> {
    stage
        .wait_for(
            &format!("{ENOUGH} answers of {bundle} from every agent"),
            FLEET_LIMIT,
            async |stage| console.refresh(stage).await,
            async |stage| {
                let fewest = stage
                    .agents
                    .iter()
                    .filter_map(|agent| agent.load.as_ref())
                    .map(|load| load.seen.lock().by_bundle.get(bundle).map_or(0, |own| own.requests))
                    .min()
                    .unwrap_or(0);
                Ok(if fewest >= ENOUGH { Ok(()) } else { Err(format!("{fewest} so far")) })
            },
        )
        .await
}

async fn refused_push(
    stage: &Stage,
    source: &Path,
    report: &mut Report,
    console: &mut Console,
) -> Result<(), DemoError> {
    let built = build(stage, source, "digits@3", true).await?;
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

/// Assigns `bundle` and waits until every device has refused it.
async fn refused_by_all(stage: &Stage, console: &mut Console, bundle: &str) -> Result<Vec<Value>, DemoError> {
    let rollout = start_rollout(stage, bundle).await?;
    stage
        .wait_for(
            &format!("{bundle} refused by all devices"),
            FLEET_LIMIT,
            async |stage| console.refresh(stage).await,
            async |stage| {
                let attempts = stage.get(&format!("/api/v1/rollouts/{rollout}/attempts?limit=1000")).await?;
                let all = attempts["items"].as_array().cloned().unwrap_or_default();
                let ended = all.iter().filter(|a| a["attempt"] != "assigned").count();
                let state = format!("{ended} of {} ended", stage.agents.len());
                Ok(if ended == stage.agents.len() { Ok(all) } else { Err(state) })
            },
        )
        .await
}

fn judge_refusals(
    report: &mut Report,
    console: &mut Console,
    attempts: &[Value],
    bundle: &str,
    code: &str,
    devices: usize,
) {
    let refused: Vec<_> = attempts
        .iter()
        .filter(|a| a["attempt"] == "failed" && a["code"] == code)
        .map(|a| RefusalReport {
            device: text(&a["device"]),
            bundle: bundle.to_owned(),
            code: code.to_owned(),
            reason: text(&a["refusal"]["message"]),
        })
        .collect();
    let name = format!("every device refuses {bundle} by itself ({code})");
    report.check(&name, refused.len() == devices, format!("{} of {devices}", refused.len()));
    if let Some(first) = refused.first() {
        console.say(&format!("   {} devices refuse it by themselves:", refused.len()));
        console.say(&format!("      {}", shortened(&first.reason)));
    }
    report.refusals.extend(refused);
}

/// Ends the load and draws the balance.
async fn finish(stage: &mut Stage, report: &mut Report, activation: &mut [f64]) -> Result<(), DemoError> {
    let mut failures = Vec::new();
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    for agent in &mut stage.agents {
        let Some(load) = agent.load.take() else { continue };
        let seen = load.stop().await;
        report.requests += seen.requests;
        report.failed_requests += seen.failed;
        failures.extend(seen.failures);
        for (bundle, own) in seen.by_bundle {
            *answered.entry(bundle).or_default() += own.requests;
        }
    }
    failures.truncate(5);
    report.check(
        "no request failed, two updates and two attacks included",
        report.failed_requests == 0 && report.requests > 0,
        failures.join("; "),
    );
    let strangers: Vec<_> =
        answered.keys().filter(|b| !["digits@1", "digits@2"].contains(&b.as_str())).collect();
    report.check("only digits@1 and digits@2 ever answered", strangers.is_empty(), format!("{answered:?}"));
    let devices = stage.get("/api/v1/devices?limit=1000").await?;
    let on_two = stage
        .agents
        .iter()
        .filter(|agent| console::slot(&devices, &agent.id)["active"] == "digits@2")
        .count();
    report.check("every device still serves digits@2", on_two == stage.agents.len(), format!("{on_two}"));

    // The agents' own counters arrive with their windows; ask them to send what they have.
    let wanted: u64 = answered.values().sum();
    for agent in &stage.agents {
        stage.command(&["device", "report", &agent.id]).await?;
    }
    let totals = stage
        .wait_for(
            "the agents' own counters",
            FLEET_LIMIT,
            async |_| (),
            async |stage| {
                let totals = own_counters(stage).await?;
                let counted: u64 = totals.values().map(|b| b.requests).sum();
                Ok(if counted >= wanted { Ok(totals) } else { Err(format!("{counted} of {wanted}")) })
            },
        )
        .await?;
    let counted: u64 = totals.values().map(|b| b.requests).sum();
    report.check(
        "the agents counted every request exactly once",
        counted == wanted,
        format!("{counted} counted, {wanted} answered"),
    );
    let accuracy = |bundle: &str| totals.get(bundle).and_then(|b| b.accuracy).unwrap_or(0.0);
    let (one, two) = (accuracy("digits@1"), accuracy("digits@2"));
    report.check(
        "digits@2 is more accurate than digits@1",
        two > one && one > 0.5,
        format!("{one:.3} -> {two:.3}"),
    );
    report.accuracy = totals.iter().filter_map(|(name, b)| Some((name.clone(), b.accuracy?))).collect();
    report.bundles = totals;
    let rollouts = stage.get("/api/v1/rollouts").await?;
    for rollout in rollouts["items"].as_array().into_iter().flatten() {
        let attempts = stage.get(&format!("/api/v1/rollouts/{}/attempts", text(&rollout["id"]))).await?;
        let all = attempts["items"].as_array().into_iter().flatten();
        report.bytes_pulled += all.filter_map(|a| a["fetched_bytes"].as_u64()).sum::<u64>();
    }
    report.check("bundles travelled over MQTT", report.bytes_pulled > 0, report.bytes_pulled.to_string());
    activation.sort_by(f64::total_cmp);
    report.activation_seconds = Quantiles { p50: quantile(activation, 0.5), p95: quantile(activation, 0.95) };
    Ok(())
}

/// Requests, labels and accuracy by bundle, summed over the devices' own records.
async fn own_counters(stage: &Stage) -> Result<BTreeMap<String, BundleReport>, DemoError> {
    let mut sum = BTreeMap::new();
    for name in ["digits@1", "digits@2", "digits@3", "digits@4"] {
        let Some((model, counter)) = name.split_once('@') else { continue };
        let path = format!("/api/v1/models/{model}/bundles/{counter}/telemetry");
        let found = stage.get(&path).await?;
        let requests = found["counts"]["requests"].as_u64().unwrap_or(0);
        if requests == 0 {
            continue;
        }
        let bundle = BundleReport {
            requests,
            labels: found["labels"]["matched"].as_u64().unwrap_or(0),
            accuracy: found["accuracy"].as_f64(),
            p50_ms: found["latency_ms"]["p50"].as_f64(),
            p95_ms: found["latency_ms"]["p95"].as_f64(),
        };
        sum.insert(name.to_owned(), bundle);
    }
    Ok(sum)
}

fn summary(report: &Report, path: &Path, console: &mut Console) {
    console.say("\nSummary");
    for check in &report.checks {
        let mark = if check.held { "held  " } else { "BROKEN" };
        let detail = check.detail.lines().next().unwrap_or_default();
        let detail: String = detail.chars().take(90).collect();
        console.say(&format!(
            "   {mark}  {}{}",
            check.name,
            if detail.is_empty() { String::new() } else { format!(": {detail}") }
        ));
    }
    for (bundle, own) in &report.bundles {
        console.say(&format!(
            "   {bundle}: {} requests, {} labels, accuracy {:.1} %, p50 {:.2} ms, p95 {:.2} ms inside the agents",
            own.requests,
            own.labels,
            100.0 * own.accuracy.unwrap_or(0.0),
            own.p50_ms.unwrap_or(0.0),
            own.p95_ms.unwrap_or(0.0)
        ));
    }
    console.say(&format!(
        "   {} requests, {} failed; {} bytes pulled; active after {:.1} s (p50), {:.1} s (p95)",
        report.requests,
        report.failed_requests,
        report.bytes_pulled,
        report.activation_seconds.p50.unwrap_or(0.0),
        report.activation_seconds.p95.unwrap_or(0.0)
    ));
    console.say(&format!("   {:.0} s in all; report in {}", report.seconds, path.display()));
}

/// A line that fits a terminal; the report has all of it.
fn shortened(line: &str) -> String {
    const WIDTH: usize = 110;
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

fn keep(stage: Stage, console: &mut Console) {
    console.say("\nLeft running (--keep):");
    console.say(&format!("   API    {}  token {}", stage.url, stage.token));
    console.say(&format!("   CA     {}", stage.controller_dir().join("ca/ca.pem").display()));
    console.say(&format!("   MQTT   {}", stage.mqtt));
    let mut pids = vec![stage.serve.leave_running()];
    for agent in stage.agents {
        console.say(&format!("   {}  {}  {}", agent.name, agent.id, agent.base));
        pids.push(agent.process.leave_running());
    }
    let pids: Vec<_> = pids.iter().map(ToString::to_string).collect();
    console.say(&format!("   stop with: kill {}", pids.join(" ")));
}

async fn close(mut stage: Stage) {
    let agents = stage.agents.iter_mut().map(|agent| agent.process.stop());
    futures::future::join_all(agents).await;
    stage.serve.stop().await;
}
