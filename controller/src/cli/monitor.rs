//! `edgefleet monitor`: how bundles do by cohort, what their inputs are like, and what is chosen about it.

use super::{context::Context, failure::Failure, table};
use crate::{
    api::{
        monitor::{ChannelView, CohortLabels, DeviceMonitorView, MonitorView, ProfileView},
        telemetry::LatencyView,
    },
    clock,
    ingest::{Cohort, MonitorSettings, Retention},
    registry::record::ModelSummary,
};
use clap::{Args, Subcommand};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, ModelName},
    telemetry::Role,
    time::Timestamp,
};
use std::str::FromStr;

#[derive(Debug, Subcommand)]
pub enum MonitorCommand {
    Show(ShowArgs),
    Device(DeviceArgs),
    Cohorts(CohortsArgs),
    Retention(RetentionArgs),
}

/// How a bundle does: counts, latency, labels, inputs, estimated accuracy
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet monitor show digits                      the newest bundle, the last day, every device
  edgefleet monitor show digits@2 --since 7d --cohort site=berlin")]
pub struct ShowArgs {
    /// MODEL@COUNTER, or MODEL for its newest bundle
    bundle: Named,
    /// Only this cohort
    #[arg(long)]
    cohort: Option<Cohort>,
    /// From when on: a length of time such as `24h` or `7d`, or a time [default: 24h]
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Until when [default: now]
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Length of one line of the series, such as `1h` [default: about 40 lines]
    #[arg(long, value_name = "TIME")]
    step: Option<humantime::Duration>,
    /// What it answered beside the active bundle, unseen by clients
    #[arg(long)]
    shadow: bool,
}

/// What one device's inputs are like lately, beside what they are like usually
#[derive(Debug, Args)]
pub struct DeviceArgs {
    device: DeviceId,
    /// MODEL@COUNTER, or MODEL for its newest bundle
    bundle: Named,
}

/// Look at parts of the fleet apart, by labels
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet monitor cohorts                            what is chosen
  edgefleet monitor cohorts digits --by site,board     one cohort for each pair of values, 32 at most
  edgefleet monitor cohorts digits --by ''             one cohort again")]
pub struct CohortsArgs {
    model: Option<ModelName>,
    /// Up to three keys of labels, separated by commas
    #[arg(long, value_name = "LABELS", requires = "model")]
    by: Option<String>,
}

/// For how long what was counted is kept
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// Days for which five minutes stay apart; then they become hours
    #[arg(long, value_name = "DAYS")]
    five_minutes: Option<u32>,
    /// Days for which hours stay apart; then they become days
    #[arg(long, value_name = "DAYS")]
    hours: Option<u32>,
    /// Days for which days are kept
    #[arg(long, value_name = "DAYS")]
    days: Option<u32>,
}

/// A bundle, or a model whose newest is meant.
#[derive(Clone, Debug)]
enum Named {
    Bundle(BundleName),
    Newest(ModelName),
}

impl FromStr for Named {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.contains('@') {
            true => text.parse().map(Self::Bundle).map_err(|error| format!("{error}")),
            false => text.parse().map(Self::Newest).map_err(|error| format!("{error}")),
        }
    }
}

impl Named {
    async fn bundle(self, context: &Context) -> Result<BundleName, Failure> {
        match self {
            Self::Bundle(bundle) => Ok(bundle),
            Self::Newest(model) => {
                let found: ModelSummary = context.client()?.get(&format!("/api/v1/models/{model}")).await?;
                Ok(BundleName { model, counter: found.newest })
            }
        }
    }
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug)]
struct Moment(Timestamp);

impl FromStr for Moment {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ago) = humantime::parse_duration(text) {
            return Ok(Self(clock::now() - ago));
        }
        text.parse().map(Self).map_err(|_| {
            format!("{text:?} is neither a time such as 2026-11-23T07:00:00Z nor a length such as `24h`")
        })
    }
}

impl MonitorCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Show(args) => args.run(context).await,
            Self::Device(DeviceArgs { device, bundle }) => {
                let BundleName { model, counter } = bundle.bundle(context).await?;
                let path = format!("/api/v1/devices/{device}/monitor/{model}/{counter}");
                let found: DeviceMonitorView = context.client()?.get(&path).await?;
                context.print(&found, of_device)
            }
            Self::Cohorts(CohortsArgs { model, by }) => {
                let client = context.client()?;
                let settings: MonitorSettings = match (&model, by) {
                    (Some(model), Some(by)) => {
                        let by = by.split(',').map(str::trim).filter(|key| !key.is_empty());
                        let labels = CohortLabels { by: by.map(str::to_owned).collect() };
                        client.put(&format!("/api/v1/monitor/cohorts/{model}"), &labels).await?
                    }
                    _ => client.get("/api/v1/monitor").await?,
                };
                context.print(&settings, |settings| cohorts(settings, model.as_ref()))
            }
            Self::Retention(args) => {
                let client = context.client()?;
                let mut settings: MonitorSettings = client.get("/api/v1/monitor").await?;
                let RetentionArgs { five_minutes, hours, days } = args;
                if five_minutes.or(hours).or(days).is_some() {
                    let before = settings.retention;
                    let wanted = Retention {
                        five_minutes: five_minutes.unwrap_or(before.five_minutes),
                        hours: hours.unwrap_or(before.hours),
                        days: days.unwrap_or(before.days),
                    };
                    settings = client.put("/api/v1/monitor/retention", &wanted).await?;
                }
                context.print(&settings, |settings| {
                    let Retention { five_minutes, hours, days } = settings.retention;
                    format!(
                        "five minutes stay apart for {five_minutes} days, hours for {hours}, days for {days}"
                    )
                })
            }
        }
    }
}

impl ShowArgs {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let BundleName { model, counter } = self.bundle.bundle(context).await?;
        let mut query = Vec::new();
        query.extend(self.cohort.map(|cohort| format!("cohort={cohort}")));
        query.extend(self.since.map(|Moment(since)| format!("since={since}")));
        query.extend(self.until.map(|Moment(until)| format!("until={until}")));
        query.extend(self.step.map(|step| format!("step={}", step.as_secs())));
        query.extend(self.shadow.then(|| "role=shadow".to_owned()));
        let path = format!("/api/v1/models/{model}/bundles/{counter}/monitor?{}", query.join("&"));
        let found: MonitorView = context.client()?.get(&path).await?;
        context.print(&found, shown)
    }
}

fn cohorts(settings: &MonitorSettings, model: Option<&ModelName>) -> String {
    let chosen = settings.cohorts.iter().filter(|(name, _)| model.is_none_or(|model| model == *name));
    let rows: Vec<_> = chosen
        .map(|(model, choice)| vec![model.to_string(), choice.by.join(", "), choice.since.to_string()])
        .collect();
    match (rows.is_empty(), model) {
        (false, _) => table::of(&["MODEL", "BY", "SINCE"], rows.into_iter()),
        (true, Some(model)) => format!("all devices of `{model}` are one cohort"),
        (true, None) => "all devices of every model are one cohort".to_owned(),
    }
}

fn shown(view: &MonitorView) -> String {
    let counts = &view.counts;
    let latency = |what: &str, view: &LatencyView| {
        let LatencyView { p50, p95, p99, max } = view;
        let [p50, p95, p99] = [p50, p95, p99].map(|value| number(*value));
        format!("{what:<10} p50 {p50} ms, p95 {p95} ms, p99 {p99} ms, longest {max:.2} ms")
    };
    let cohorts: Vec<_> = view.cohorts.iter().map(ToString::to_string).collect();
    let role = match view.role {
        Role::Primary => "primary",
        Role::Shadow => "shadow",
    };
    let mut lines = vec![
        format!("bundle     {} ({role}), {} to {}", view.bundle, view.since, view.until),
        format!("cohort     {} (there are: {})", view.cohort, cohorts.join(" ")),
        format!(
            "requests   {} ({} rows), {} failed, {} turned away, in {} windows",
            counts.requests,
            counts.rows,
            counts.requests.saturating_sub(counts.ok),
            counts.rejected,
            view.windows
        ),
        latency("whole", &view.latency_ms),
        latency("engine", &view.infer_ms),
        latency("queue", &view.queue_ms),
    ];
    lines.extend(counts.errors.iter().map(|(code, n)| format!("error      {code}: {n}")));
    if let Some(estimate) = &view.profile.estimate {
        lines.push(format!(
            "estimate   accuracy {} by calibrated confidence, {} by threshold, of {} rows",
            share(estimate.cbpe),
            share(estimate.atc),
            estimate.n
        ));
    }
    for (source, labels) in &view.labels {
        lines.push(format!(
            "labels     {source}: accuracy {} of {}, {} without a prediction",
            share(labels.accuracy),
            labels.matched,
            labels.unmatched
        ));
        let cells = labels.confusion.iter().flat_map(|(truth, row)| {
            row.iter().map(move |(said, n)| format!("           {truth} taken for {said}: {n}"))
        });
        lines.extend(cells.take(10));
    }
    if !view.health.is_none() {
        let heat = view.health.hottest_c.map_or("-".to_owned(), |degrees| format!("{degrees} degrees"));
        let cpu = view.health.cpu().map_or("-".to_owned(), |cpu| format!("{cpu:.2}"));
        lines.push(format!(
            "devices    at most {heat}, slowed {} of {:.1} h, {cpu} processors",
            share(view.health.slowed()),
            view.health.hours()
        ));
    }
    if view.agreement.n > 0 {
        let same = 1.0 - view.agreement.disagree as f64 / view.agreement.n as f64;
        lines.push(format!(
            "agreement  {} of {} with the active bundle",
            share(Some(same)),
            view.agreement.n
        ));
    }
    if !view.classes.is_empty() {
        let all: u64 = view.classes.values().sum();
        let rows = view
            .classes
            .iter()
            .map(|(class, n)| vec![class.clone(), n.to_string(), share(Some(*n as f64 / all.max(1) as f64))]);
        lines.extend([String::new(), table::of(&["CLASS", "ROWS", "SHARE"], rows)]);
    }
    lines.extend(channels(&view.profile));
    if !view.points.is_empty() {
        let rows = view.points.iter().map(|point| {
            vec![
                point.start.to_string(),
                point.requests.to_string(),
                point.failed.to_string(),
                number(point.p95_ms),
                point.labels.to_string(),
                share(point.accuracy),
            ]
        });
        let header = ["FROM", "REQUESTS", "FAILED", "P95 MS", "LABELS", "ACCURACY"];
        lines.extend([String::new(), table::of(&header, rows)]);
    }
    lines.join("\n")
}

fn channels(profile: &ProfileView) -> Vec<String> {
    if profile.channels.is_empty() {
        return Vec::new();
    }
    let rows = profile.channels.iter().map(|channel| {
        let most = channel.categories.iter().max_by_key(|(_, n)| **n);
        vec![
            channel.id.clone(),
            channel.n.to_string(),
            number(channel.mean),
            number(channel.std),
            channel.missing.to_string(),
            most.map_or_else(|| "-".to_owned(), |(name, n)| format!("{name} ({n})")),
        ]
    });
    let (devices, rows_counted, told) = (profile.devices, profile.rows, profile.told);
    vec![
        String::new(),
        format!("profile    {rows_counted} rows of {told} told, at most {devices} devices in an hour"),
        table::of(&["CHANNEL", "N", "MEAN", "STD", "MISSING", "MOST"], rows),
    ]
}

fn of_device(view: &DeviceMonitorView) -> String {
    let usual = |id: &str| view.usual.channels.iter().find(|channel| channel.id == id);
    let rows = view.lately.channels.iter().map(|channel: &ChannelView| {
        let usual = usual(&channel.id);
        vec![
            channel.id.clone(),
            channel.n.to_string(),
            number(channel.mean),
            number(usual.and_then(|usual| usual.mean)),
            number(channel.std),
            number(usual.and_then(|usual| usual.std)),
            channel.missing.to_string(),
            channel.longest_run.to_string(),
        ]
    });
    let header = ["CHANNEL", "N", "MEAN", "USUALLY", "STD", "USUALLY", "MISSING", "LONGEST RUN"];
    format!(
        "{} with {}: {} rows since {}, {} usually remembered\n\n{}",
        view.device,
        view.bundle,
        view.lately.rows,
        view.since.map_or_else(|| "-".to_owned(), |since| since.to_string()),
        view.usual.rows,
        table::of(&header, rows)
    )
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_shows_counts_labels_estimate_channels_and_the_series() {
        let latency = || serde_json::json!({"p50": 1.0, "p95": 2.5, "p99": 3.0, "max": 4.0});
        let view: MonitorView = serde_json::from_value(serde_json::json!({
            "bundle": "digits@2", "role": "primary", "cohort": "site=a", "cohorts": ["all", "site=a"],
            "since": "2026-11-01T00:00:00Z", "until": "2026-11-02T00:00:00Z", "windows": 3,
            "counts": {"requests": 30, "rows": 30, "ok": 29, "errors": {"engine": 1}, "rejected": 2},
            "latency_ms": latency(), "infer_ms": latency(), "queue_ms": latency(),
            "classes": {"1": 10, "7": 30},
            "labels": {"local": {"matched": 10, "correct": 9, "unmatched": 1, "accuracy": 0.9,
                "confusion": {"1": {"7": 1}}}},
            "agreement": {"n": 10, "disagree": 1, "errors": 0},
            "health": {"told_ms": 7_200_000, "hottest_c": 71, "speed_ms": 7_200_000, "slowed_ms": 1_800_000,
                "cpu_ms": 3_600_000, "cpu_of_ms": 7_200_000},
            "profile": {"profiles": 2, "devices": 2, "rows": 30, "told": 90, "faults": {},
                "estimate": {"n": 30, "cbpe": 0.91, "atc": 0.88},
                "channels": [{"id": "input/image/luma", "n": 30, "missing": 2, "mean": 0.5, "std": 0.1,
                    "min": 0.0, "max": 1.0, "longest_run": 1, "bins": [], "categories": {}},
                    {"id": "input/colour", "n": 30, "missing": 0, "mean": null, "std": null, "min": null,
                    "max": null, "longest_run": 1, "bins": [], "categories": {"red": 20, "blue": 10}}]},
            "points": [{"start": "2026-11-01T00:00:00Z", "seconds": 3600, "requests": 30, "failed": 1,
                "p95_ms": 2.5, "labels": 10, "accuracy": 0.9}],
        }))
        .unwrap();
        let text = shown(&view);
        for line in [
            "cohort     site=a (there are: all site=a)",
            "requests   30 (30 rows), 1 failed, 2 turned away, in 3 windows",
            "whole      p50 1.000 ms, p95 2.500 ms, p99 3.000 ms, longest 4.00 ms",
            "error      engine: 1",
            "estimate   accuracy 91.0 % by calibrated confidence, 88.0 % by threshold, of 30 rows",
            "labels     local: accuracy 90.0 % of 10, 1 without a prediction",
            "           1 taken for 7: 1",
            "agreement  90.0 % of 10 with the active bundle",
            "devices    at most 71 degrees, slowed 25.0 % of 2.0 h, 0.50 processors",
            "profile    30 rows of 90 told, at most 2 devices in an hour",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let cells = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(cells("input/image/luma"), ["input/image/luma", "30", "0.500", "0.100", "2", "-"]);
        assert_eq!(cells("input/colour"), ["input/colour", "30", "-", "-", "0", "red", "(20)"]);
        assert_eq!(cells("2026-11-01T00")[1..5], ["30", "1", "2.500", "10"]);
    }
}
