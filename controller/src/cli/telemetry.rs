//! `edgefleet model telemetry`: how a bundle does out there, from its devices' own counts.

use super::{context::Context, failure::Failure, table};
use crate::api::telemetry::{BundleTelemetry, LatencyView};
use clap::Args;
use edgefleet_shared::{ids::BundleName, time::Timestamp};

/// How one bundle does: requests, failures, latency, accuracy from labels.
#[derive(Debug, Args)]
pub struct TelemetryArgs {
    /// What to look at, as MODEL@COUNTER
    bundle: BundleName,
    /// Only what devices counted at or after this time
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only what devices counted before this time
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
}

impl TelemetryArgs {
    /// # Errors
    /// [`Failure`].
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let bounds = [("since", self.since), ("until", self.until)];
        let query: Vec<_> =
            bounds.iter().filter_map(|(key, time)| Some(format!("{key}={}", (*time)?))).collect();
        let BundleName { model, counter } = &self.bundle;
        let path = format!("/api/v1/models/{model}/bundles/{counter}/telemetry?{}", query.join("&"));
        let telemetry: BundleTelemetry = context.client()?.get(&path).await?;
        context.print(&telemetry, shown)
    }
}

fn shown(telemetry: &BundleTelemetry) -> String {
    let counts = &telemetry.counts;
    let latency = |what: &str, view: &LatencyView| {
        format!(
            "{what:<10} p50 {} ms, p95 {} ms, p99 {} ms, longest {:.2} ms",
            ms(view.p50),
            ms(view.p95),
            ms(view.p99),
            view.max
        )
    };
    let mut lines = vec![
        format!("bundle     {}", telemetry.bundle),
        format!(
            "requests   {} ({} rows), {} failed, {} turned away, in {} windows",
            counts.requests,
            counts.rows,
            counts.requests.saturating_sub(counts.ok),
            counts.rejected,
            telemetry.windows
        ),
        latency("whole", &telemetry.latency_ms),
        latency("engine", &telemetry.infer_ms),
        latency("queue", &telemetry.queue_ms),
        format!(
            "accuracy   {} of {} labels ({} without a prediction)",
            share(telemetry.accuracy),
            telemetry.labels.matched,
            telemetry.labels.unmatched
        ),
    ];
    let errors = counts.errors.iter().map(|(code, n)| format!("error      {code}: {n}"));
    lines.extend(errors);
    let rows = telemetry.buckets.iter().map(|bucket| {
        vec![
            bucket.start.to_string(),
            bucket.requests.to_string(),
            bucket.failed.to_string(),
            ms(bucket.p95_ms),
            bucket.labels.to_string(),
            share(bucket.accuracy),
        ]
    });
    if !telemetry.buckets.is_empty() {
        lines.push(String::new());
        lines.push(table::of(&["FROM", "REQUESTS", "FAILED", "P95 MS", "LABELS", "ACCURACY"], rows));
    }
    lines.join("\n")
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{:.1} %", 100.0 * value))
}
