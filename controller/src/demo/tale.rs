//! What the chapters share: the stage, the report, and the acts that more than one of them needs.

use super::{
    DemoError, DemoOptions,
    console::Console,
    load::Holdout,
    report::{RefusalReport, Report},
    rollouts::is_over,
    stage::{Stage, text},
};
use crate::rollout::Rollout;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// Longest wait for the whole fleet to do one thing, seconds.
pub(super) const FLEET_LIMIT: u64 = 45;
/// Requests every device answers before the story goes on: its share of the images, and enough for a 95th
/// percentile that the next bundle is judged by.
const ENOUGH: u64 = 120;
/// How long a real fleet would try a bundle before it commits; divided by the time scale.
const PROBATION: Duration = Duration::from_secs(600);

/// The story so far.
pub(super) struct Tale<'d> {
    pub options: &'d DemoOptions,
    pub report: &'d mut Report,
    pub console: &'d mut Console,
    pub stage: Stage,
    pub holdout: Arc<Holdout>,
    /// Bundles that every device committed to, in this order.
    pub released: Vec<String>,
    /// Bundles that some devices served for a while, and went back from.
    pub tried: Vec<String>,
    /// Seconds from `assign` to committed, of each device and bundle.
    pub activation: Vec<f64>,
}

impl Tale<'_> {
    /// `model build`, `sign` and `push`, as the quick start shows them.
    pub(super) async fn push(&self, source: &Path, bundle: &str) -> Result<(), DemoError> {
        let built = self.build(source, bundle, false).await?;
        self.stage.command(&["model", "push", &built]).await?;
        Ok(())
    }

    /// `model build` and `sign`; `unchecked` leaves out the build's own check. Returns the bundle's folder.
    pub(super) async fn build(
        &self,
        source: &Path,
        bundle: &str,
        unchecked: bool,
    ) -> Result<String, DemoError> {
        let stage = &self.stage;
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

    /// Assigns `bundle` to everybody and waits until every device committed to it.
    pub(super) async fn assign(&mut self, bundle: &str) -> Result<(), DemoError> {
        let started = Instant::now();
        let rollout = self.start_rollout(bundle).await?;
        let Self { stage, console, .. } = self;
        let mut took: BTreeMap<String, f64> = BTreeMap::new();
        let path = format!("/api/v1/rollouts/{rollout}/attempts?limit=1000");
        let attempts = loop {
            let attempts = stage.get(&path).await?;
            let all = attempts["items"].as_array().cloned().unwrap_or_default();
            for attempt in all.iter().filter(|a| a["state"] == "committed") {
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
        self.activation.extend(took.into_values());
        self.released.push(bundle.to_owned());
        Ok(())
    }

    async fn start_rollout(&self, bundle: &str) -> Result<String, DemoError> {
        let probation = format!("{}s", self.options.scaled(PROBATION).as_secs());
        let args = [
            "assign",
            bundle,
            "--select",
            "site=lab",
            "--yes",
            "--limits",
            "none",
            "--probation",
            &probation,
        ];
        let answer = self.stage.command(&args).await?;
        match text(&answer["id"]) {
            id if id.is_empty() => {
                Err(DemoError::Output { command: args.join(" "), output: answer.to_string() })
            }
            id => Ok(id),
        }
    }

    /// Waits until the load has had [`ENOUGH`] answers of `bundle` from every agent.
    pub(super) async fn enough(&mut self, bundle: &str) -> Result<(), DemoError> {
        let Self { stage, console, .. } = self;
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

    /// Assigns `bundle` and waits until every device has refused it.
    pub(super) async fn refused_by_all(&mut self, bundle: &str) -> Result<Vec<Value>, DemoError> {
        let rollout = self.start_rollout(bundle).await?;
        let Self { stage, console, .. } = self;
        stage
            .wait_for(
                &format!("{bundle} refused by all devices"),
                FLEET_LIMIT,
                async |stage| console.refresh(stage).await,
                async |stage| {
                    let attempts =
                        stage.get(&format!("/api/v1/rollouts/{rollout}/attempts?limit=1000")).await?;
                    let all = attempts["items"].as_array().cloned().unwrap_or_default();
                    let ended = all.iter().filter(|a| has_ended(a)).count();
                    let state = format!("{ended} of {} ended", stage.agents.len());
                    Ok(if ended == stage.agents.len() { Ok(all) } else { Err(state) })
                },
            )
            .await
    }

    /// An assignment that failed stands still until a person decides: until then the devices are still meant
    /// to have the bundle, and the next rollout would take them back to it.
    pub(super) async fn take_back(&mut self, attempts: &[Value], bundle: &str) -> Result<(), DemoError> {
        let rollout = attempts.first().map(|attempt| text(&attempt["rollout"])).unwrap_or_default();
        let order = json!({"order": "abort", "mode": "revert", "reason": "every device refused it"});
        let path = format!("/api/v1/rollouts/{rollout}/orders");
        let (taken, answer) = self.stage.post(&path, &self.stage.token, &order).await?;
        if !taken {
            let what = format!("to take {bundle} back");
            return Err(DemoError::Refused { what, answer: answer.to_string() });
        }
        let Self { stage, console, .. } = self;
        let path = format!("/api/v1/rollouts/{rollout}");
        stage
            .wait_for(
                &format!("{bundle} taken back"),
                FLEET_LIMIT,
                async |stage| console.refresh(stage).await,
                async |stage| {
                    let found: Rollout = stage.get_as(&path).await?;
                    let state = found.state.name().as_str().to_owned();
                    Ok(if is_over(&found.state) { Ok(()) } else { Err(state) })
                },
            )
            .await?;
        console.say("   taken back: every device is meant to serve what it serves");
        Ok(())
    }

    /// Checks that every device refused `bundle`, and for the reason `code`.
    pub(super) fn judge_refusals(&mut self, attempts: &[Value], bundle: &str, code: &str) {
        let Self { options, report, console, .. } = self;
        let devices = options.devices;
        let refused: Vec<_> = attempts
            .iter()
            .filter(|a| a["state"] == "failed" && a["refusal"]["code"] == code)
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
}

/// A copy of a bundle source as release `counter`.
pub(super) fn numbered(source: &Path, target: &Path, counter: u64) -> Result<PathBuf, DemoError> {
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

/// A line that fits a terminal; the report has all of it.
pub(super) fn shortened(line: &str) -> String {
    const WIDTH: usize = 110;
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

/// Whether a device is done with its attempt, well or badly.
fn has_ended(attempt: &Value) -> bool {
    let ends = ["committed", "failed", "timed-out", "lost", "cancelled", "superseded", "removed", "reverted"];
    attempt["state"].as_str().is_some_and(|state| ends.contains(&state))
}
