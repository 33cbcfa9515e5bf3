//! What devices counted, by bundle and by device.

use super::{
    extract::{ApiPath, Pairs},
    operations::Operations,
    problem::Problem,
};
use crate::{
    fleet::FleetError,
    ingest::{Aggregate, DEVICE_TELEMETRY, DeviceTelemetry, Level, Range, Summed as _, visit},
    store::Repository,
    transfer::TransferTotals,
};
use axum::{
    Json,
    extract::{Path, State},
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    telemetry::{Counts, Role, Sketch},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new()
        .routes(routes!(bundle_telemetry))
        .routes(routes!(device_telemetry))
        .routes(routes!(transfers))
}

/// Quantiles of a latency, milliseconds, within 1 %.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LatencyView {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    pub max: f64,
}

impl LatencyView {
    pub fn of(sketch: &Sketch) -> Self {
        let ms = |q| sketch.quantile_us(q).map(|us| us / 1e3);
        Self { p50: ms(0.5), p95: ms(0.95), p99: ms(0.99), max: sketch.max_us as f64 / 1e3 }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LabelsView {
    pub matched: u64,
    pub correct: u64,
    pub unmatched: u64,
}

/// One bundle over all devices, or a part of its time.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BundleTelemetry {
    #[schema(value_type = String)]
    pub bundle: BundleName,
    pub windows: u64,
    #[schema(value_type = Object)]
    pub counts: Counts,
    /// Whole time in the agent.
    pub latency_ms: LatencyView,
    pub infer_ms: LatencyView,
    pub queue_ms: LatencyView,
    pub classes: BTreeMap<String, u64>,
    pub labels: LabelsView,
    /// Share of right answers among the labelled ones.
    pub accuracy: Option<f64>,
    /// Oldest first: five minutes each, hours and days where the past is kept more coarsely.
    pub buckets: Vec<BucketView>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct BucketView {
    #[schema(value_type = String, format = DateTime)]
    pub start: Timestamp,
    /// Length.
    pub seconds: u64,
    pub requests: u64,
    pub failed: u64,
    pub p95_ms: Option<f64>,
    pub labels: u64,
    pub accuracy: Option<f64>,
}

/// Counts, latency and accuracy of one bundle, from its devices' own windows.
#[utoipa::path(get, path = "/api/v1/models/{model}/bundles/{counter}/telemetry", tag = "telemetry",
    security(("bearer" = ["read"])), params(("model" = String, Path), ("counter" = u64, Path),
        ("since" = Option<String>, Query, description = "From the bucket on that this time falls in"),
        ("until" = Option<String>, Query, description = "Only buckets that start before this time")),
    responses((status = 200, description = "Summary and buckets", body = BundleTelemetry)))]
async fn bundle_telemetry(
    State(operations): State<Arc<Operations>>,
    Path((model, counter)): Path<(String, u64)>,
    query: Pairs,
) -> Result<Json<BundleTelemetry>, Problem> {
    query.only(&["since", "until"])?;
    let (since, until) = (query.one::<Timestamp>("since")?, query.one::<Timestamp>("until")?);
    let name = format!("{model}@{counter}");
    let bundle: BundleName =
        name.parse().map_err(|error| Problem::bad_request("path-invalid", format!("{error}")))?;
    let range = Range {
        bundle: &bundle,
        role: Role::Primary,
        cohort: None,
        from: since.unwrap_or(Timestamp::EPOCH),
        until: until.unwrap_or(Timestamp::from_millis(u64::MAX)),
    };
    let (mut sum, mut buckets) = (Aggregate::default(), Vec::new());
    visit(&*operations.store, range, |level, start, part| add(&mut sum, &mut buckets, level, start, &part))
        .await
        .map_err(FleetError::from)?;
    buckets.sort_by_key(|bucket: &BucketView| bucket.start);
    let labels = sum.all_labels();
    Ok(Json(BundleTelemetry {
        bundle,
        windows: sum.windows,
        latency_ms: LatencyView::of(&sum.latency.total),
        infer_ms: LatencyView::of(&sum.latency.infer),
        queue_ms: LatencyView::of(&sum.latency.queue),
        accuracy: labels.accuracy(),
        labels: LabelsView { matched: labels.matched, correct: labels.correct, unmatched: labels.unmatched },
        counts: sum.counts,
        classes: sum.classes,
        buckets,
    }))
}

fn add(sum: &mut Aggregate, buckets: &mut Vec<BucketView>, level: Level, start: Timestamp, part: &Aggregate) {
    let labels = part.all_labels();
    buckets.push(BucketView {
        start,
        seconds: level.span().as_secs(),
        requests: part.counts.requests,
        failed: part.counts.requests.saturating_sub(part.counts.ok),
        p95_ms: LatencyView::of(&part.latency.total).p95,
        labels: labels.matched,
        accuracy: labels.accuracy(),
    });
    sum.merge(part);
}

/// What one device served.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceTelemetryView {
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// Most recently used last.
    pub bundles: Vec<DeviceBundleView>,
    /// Records the device lost before it could send them.
    pub dropped: u64,
    #[schema(value_type = String, format = DateTime)]
    pub last: Timestamp,
    /// What it was sent since the controller started.
    #[schema(value_type = Object)]
    pub transfer: TransferTotals,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceBundleView {
    pub slot: String,
    pub bundle: String,
    #[schema(value_type = Object)]
    pub counts: Counts,
    pub latency_ms: LatencyView,
    pub labels: LabelsView,
    pub accuracy: Option<f64>,
}

/// Counts, latency and accuracy of one device, by bundle.
#[utoipa::path(get, path = "/api/v1/devices/{id}/telemetry", tag = "telemetry",
    security(("bearer" = ["read"])), params(("id" = String, Path)),
    responses((status = 200, description = "By bundle", body = DeviceTelemetryView)))]
async fn device_telemetry(
    State(operations): State<Arc<Operations>>,
    ApiPath(device): ApiPath<DeviceId>,
) -> Result<Json<DeviceTelemetryView>, Problem> {
    operations.fleet.device(&device)?;
    let repository = Repository::<DeviceTelemetry>::new(operations.store.clone(), DEVICE_TELEMETRY);
    let found = repository.find_json(device.as_str()).await.map_err(FleetError::from)?;
    let own = found.map(|found| found.value).unwrap_or_default();
    let bundles = own
        .bundles
        .iter()
        .map(|bundle| DeviceBundleView {
            slot: bundle.slot.to_string(),
            bundle: bundle.bundle.to_string(),
            counts: bundle.counts.clone(),
            latency_ms: LatencyView::of(&bundle.latency.total),
            labels: LabelsView {
                matched: bundle.labels.matched,
                correct: bundle.labels.correct,
                unmatched: bundle.labels.unmatched,
            },
            accuracy: bundle.labels.accuracy(),
        })
        .collect();
    let transfer = operations.blocks.totals(&device);
    Ok(Json(DeviceTelemetryView { device, bundles, dropped: own.dropped, last: own.last, transfer }))
}

/// Block transfer since the controller started.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TransfersView {
    pub sent_bytes: u64,
}

/// Bytes sent to all devices over MQTT since the controller started.
#[utoipa::path(get, path = "/api/v1/transfers", tag = "telemetry", security(("bearer" = ["read"])),
    responses((status = 200, description = "Totals", body = TransfersView)))]
async fn transfers(State(operations): State<Arc<Operations>>) -> Json<TransfersView> {
    Json(TransfersView { sent_bytes: operations.blocks.sent_bytes() })
}
