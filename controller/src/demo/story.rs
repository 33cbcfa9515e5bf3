//! From the options to the report: the frame around the chapters.

use super::{
    DemoError,
    chapters::Chapter,
    console::Console,
    load::Holdout,
    report::{ChapterReport, Report},
    stage::Stage,
    tale::Tale,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

pub struct DemoOptions {
    /// Folder of the sample model: `v1`, `v2`, `v3`, `holdout`.
    pub model: PathBuf,
    /// Made anew: controller, agents, logs, report.
    pub dir: PathBuf,
    pub agent_bin: PathBuf,
    pub devices: usize,
    /// One chapter, with what it needs; all if none.
    pub chapter: Option<Chapter>,
    /// Waiting times of a real fleet (probation) are divided by this; sample counts never are.
    pub time_scale: u32,
    /// Leave everything running at the end.
    pub keep: bool,
    pub quiet: bool,
}

impl DemoOptions {
    /// A waiting time of a real fleet as the demo takes it: whole seconds, at least one.
    pub(super) fn scaled(&self, real: Duration) -> Duration {
        Duration::from_secs((real.as_secs() / u64::from(self.time_scale.max(1))).max(1))
    }
}

/// Runs the demo. The report says whether every promise held; it is also written to `report.json`.
///
/// # Errors
/// [`DemoError`] if the story could not be told to its end; the report written then says so.
pub async fn run(options: DemoOptions) -> Result<Report, DemoError> {
    let started = Instant::now();
    let mut report = Report { devices: options.devices, time_scale: options.time_scale, ..Report::default() };
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

/// Tells the chapters planned. The report gets each of them, the one that broke off included.
async fn tell(options: &DemoOptions, report: &mut Report, console: &mut Console) -> Result<Stage, DemoError> {
    let mut started = Instant::now();
    let holdout = Arc::new(Holdout::load(&options.model.join("holdout/holdout.json"))?);
    let exe =
        std::env::current_exe().map_err(|source| DemoError::Start { program: "edgefleet".into(), source })?;
    let stage = Stage::open(exe, options.agent_bin.clone(), options.dir.clone()).await?;
    let mut tale = Tale {
        options,
        report,
        console,
        stage,
        holdout,
        released: vec![],
        tried: vec![],
        activation: vec![],
    };
    for chapter in Chapter::plan(options.chapter) {
        tale.console.chapter(chapter.number(), chapter.title());
        let before = tale.report.checks.len();
        let told = chapter.tell(&mut tale).await;
        let held = tale.report.checks.iter().skip(before).all(|check| check.held);
        tale.report.chapters.push(ChapterReport {
            key: chapter.key().to_owned(),
            name: chapter.title().to_owned(),
            passed: told.is_ok() && held,
            seconds: started.elapsed().as_secs_f64(),
        });
        told?;
        started = Instant::now();
    }
    tale.report.check_times();
    Ok(tale.stage)
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
    for chapter in &report.chapters {
        let mark = if chapter.passed { "held  " } else { "BROKEN" };
        console.say(&format!("   {mark}  chapter {}: {:.1} s", chapter.key, chapter.seconds));
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
