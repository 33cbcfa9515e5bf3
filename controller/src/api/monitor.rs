//! How bundles do over time and by cohort, what their inputs and answers are like, and what is chosen about it.

use super::{
    access::Caller,
    extract::{ApiJson, Pairs},
    operations::Operations,
    problem::Problem,
    telemetry::LatencyView,
};
use crate::{
    clock,
    fleet::FleetError,
    ingest::{
        Aggregate, AgreementTotals, Cohort, DeviceProfile, HealthTotals, LabelTotals, MonitorError,
        MonitorSettings, Point, Range, Retention, Summed as _,
    },
};
use axum::{
    Json,
    extract::{Path, State},
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, ModelName},
    telemetry::{Channel, Counts, ProfileContent, Role},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// What is shown when no beginning is asked for.
const LATELY: Duration = Duration::from_secs(86_400);
/// Points of a series when no step is asked for.
const POINTS: u64 = 48;

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new()
        .routes(routes!(monitor_settings))
        .routes(routes!(set_cohorts))
        .routes(routes!(set_retention))
        .routes(routes!(bundle_monitor))
        .routes(routes!(device_monitor))
}

/// Labels whose values make up the cohorts of a model.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CohortLabels {
    /// Up to three keys of labels; none: one cohort, `all`.
    pub by: Vec<String>,
}

/// One bundle in one role over a time, of one cohort or all.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MonitorView {
    #[schema(value_type = String)]
    pub bundle: BundleName,
    #[schema(value_type = String)]
    pub role: Role,
    #[schema(value_type = String)]
    pub cohort: Cohort,
    /// Those that counted something in this time.
    #[schema(value_type = Vec<String>)]
    pub cohorts: BTreeSet<Cohort>,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
    pub windows: u64,
    #[schema(value_type = Object)]
    pub counts: Counts,
    pub latency_ms: LatencyView,
    pub infer_ms: LatencyView,
    pub queue_ms: LatencyView,
    pub classes: BTreeMap<String, u64>,
    /// By source.
    pub labels: BTreeMap<String, SourceView>,
    /// Of a shadow, with the active bundle.
    #[schema(value_type = Object)]
    pub agreement: AgreementTotals,
    /// How the devices did that answered.
    #[serde(default, skip_serializing_if = "HealthTotals::is_none")]
    #[schema(value_type = Object)]
    pub health: HealthTotals,
    pub profile: ProfileView,
    /// Oldest first; steps without anything are left out.
    pub points: Vec<PointView>,
}

/// What one source of labels said.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SourceView {
    pub matched: u64,
    pub correct: u64,
    pub unmatched: u64,
    pub accuracy: Option<f64>,
    /// Truth, predicted, rows.
    #[schema(value_type = Object)]
    pub confusion: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What inputs and answers were like.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProfileView {
    pub profiles: u64,
    /// The most devices there were in an hour.
    pub devices: u64,
    /// Rows that count, and rows devices told of: a device counts with at most 10,000 in an hour.
    pub rows: u64,
    pub told: u64,
    pub estimate: Option<EstimateView>,
    pub channels: Vec<ChannelView>,
    /// Inputs that could not be taken as they were, by kind.
    pub faults: BTreeMap<String, u64>,
}

/// Accuracy estimated from the confidence alone, 0 to 1.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EstimateView {
    pub n: u64,
    pub cbpe: Option<f64>,
    pub atc: Option<f64>,
}

/// One number or category.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChannelView {
    pub id: String,
    pub n: u64,
    pub missing: u64,
    pub mean: Option<f64>,
    pub std: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub longest_run: u64,
    /// By the bundle's own edges.
    pub bins: Vec<u64>,
    pub categories: BTreeMap<String, u64>,
}

/// A step of the series.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PointView {
    #[schema(value_type = String, format = DateTime)]
    pub start: Timestamp,
    /// The step, or longer where the past is kept more coarsely.
    pub seconds: u64,
    pub requests: u64,
    pub failed: u64,
    pub p95_ms: Option<f64>,
    pub labels: u64,
    pub accuracy: Option<f64>,
}

/// What one device's inputs and answers are like.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceMonitorView {
    #[schema(value_type = String)]
    pub device: DeviceId,
    #[schema(value_type = String)]
    pub bundle: BundleName,
    /// When the last profile came.
    #[schema(value_type = String, format = DateTime)]
    pub last: Timestamp,
    /// The last few profiles together, and when the first of them began.
    pub lately: ProfileView,
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
    /// All before, counts halved every week.
    pub usual: ProfileView,
}

impl From<&Channel> for ChannelView {
    fn from(channel: &Channel) -> Self {
        let moments = &channel.moments;
        let some = |x: f64| (moments.n > 0).then_some(x);
        Self {
            id: channel.id.to_string(),
            n: channel.n,
            missing: channel.missing,
            mean: some(moments.mean),
            std: moments.std(),
            min: some(moments.min),
            max: some(moments.max),
            longest_run: channel.longest_run,
            bins: channel.bins.clone(),
            categories: channel.categories.clone(),
        }
    }
}

impl ProfileView {
    fn of(content: &ProfileContent, profiles: u64, devices: u64, told: u64) -> Self {
        let estimate = content.quality.as_ref().map(|quality| EstimateView {
            n: quality.n,
            cbpe: quality.cbpe(),
            atc: quality.atc(),
        });
        Self {
            profiles,
            devices,
            rows: content.rows,
            told,
            estimate,
            channels: content.channels.iter().map(ChannelView::from).collect(),
            faults: content.faults.clone(),
        }
    }
}

impl From<&LabelTotals> for SourceView {
    fn from(labels: &LabelTotals) -> Self {
        Self {
            matched: labels.matched,
            correct: labels.correct,
            unmatched: labels.unmatched,
            accuracy: labels.accuracy(),
            confusion: labels.confusion.clone(),
        }
    }
}

impl From<&Point> for PointView {
    fn from(point: &Point) -> Self {
        let part = &point.aggregate;
        let labels = part.all_labels();
        Self {
            start: point.start,
            seconds: point.length.as_secs(),
            requests: part.counts.requests,
            failed: part.counts.requests.saturating_sub(part.counts.ok),
            p95_ms: LatencyView::of(&part.latency.total).p95,
            labels: labels.matched,
            accuracy: labels.accuracy(),
        }
    }
}

/// What is chosen: labels of cohorts, and how long things are kept.
#[utoipa::path(get, path = "/api/v1/monitor", tag = "telemetry", security(("bearer" = ["read"])),
    responses((status = 200, description = "The settings", body = MonitorSettings)))]
async fn monitor_settings(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<MonitorSettings>, Problem> {
    query.only(&[])?;
    Ok(Json(MonitorSettings::clone(&operations.monitoring.settings())))
}

/// Chooses the labels whose values make up the cohorts of a model.
#[utoipa::path(put, path = "/api/v1/monitor/cohorts/{model}", tag = "telemetry",
    security(("bearer" = ["rollouts:write"])), params(("model" = String, Path)), request_body = CohortLabels,
    responses((status = 200, description = "The settings", body = MonitorSettings)))]
async fn set_cohorts(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    super::extract::ApiPath(model): super::extract::ApiPath<ModelName>,
    ApiJson(labels): ApiJson<CohortLabels>,
) -> Result<Json<MonitorSettings>, Problem> {
    let chosen = operations.monitoring.set_cohorts(&caller.actor(), &model, labels.by, clock::now()).await?;
    Ok(Json(MonitorSettings::clone(&chosen)))
}

/// Chooses for how many days each level is kept.
#[utoipa::path(put, path = "/api/v1/monitor/retention", tag = "telemetry",
    security(("bearer" = ["system:write"])), request_body = Retention,
    responses((status = 200, description = "The settings", body = MonitorSettings)))]
async fn set_retention(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    ApiJson(retention): ApiJson<Retention>,
) -> Result<Json<MonitorSettings>, Problem> {
    let chosen = operations.monitoring.set_retention(&caller.actor(), retention, clock::now()).await?;
    Ok(Json(MonitorSettings::clone(&chosen)))
}

fn bundle_of(model: &str, counter: u64) -> Result<BundleName, Problem> {
    let name = format!("{model}@{counter}");
    name.parse().map_err(|error| Problem::bad_request("path-invalid", format!("{error}")))
}

/// How a bundle did: counts, latency, labels, what its inputs and answers were like.
#[utoipa::path(get, path = "/api/v1/models/{model}/bundles/{counter}/monitor", tag = "telemetry",
    security(("bearer" = ["read"])), params(("model" = String, Path), ("counter" = u64, Path),
        ("cohort" = Option<String>, Query, description = "Only this cohort, as in `site=berlin`"),
        ("role" = Option<String>, Query, description = "`primary` (else) or `shadow`"),
        ("since" = Option<String>, Query, description = "From this time on, else the last day"),
        ("until" = Option<String>, Query, description = "Until before this time, else now"),
        ("step" = Option<u64>, Query, description = "Seconds of one point, at least 300")),
    responses((status = 200, description = "Totals, profile and series", body = MonitorView)))]
async fn bundle_monitor(
    State(operations): State<Arc<Operations>>,
    Path((model, counter)): Path<(String, u64)>,
    query: Pairs,
) -> Result<Json<MonitorView>, Problem> {
    query.only(&["cohort", "role", "since", "until", "step"])?;
    let bundle = bundle_of(&model, counter)?;
    let now = clock::now();
    let until = query.one::<Timestamp>("until")?.unwrap_or(now);
    let since = query.one::<Timestamp>("since")?.unwrap_or(until - LATELY);
    let cohort = query.one::<Cohort>("cohort")?.unwrap_or_else(Cohort::all);
    let role = match query.one::<String>("role")?.as_deref() {
        None | Some("primary") => Role::Primary,
        Some("shadow") => Role::Shadow,
        Some(_) => {
            return Err(Problem::bad_request("query-invalid", "parameter `role` is `primary` or `shadow`"));
        }
    };
    let step = query.one::<u64>("step")?.unwrap_or_else(|| step_for(until.since(since)));
    let range = Range { bundle: &bundle, role, cohort: Some(&cohort), from: since, until };
    let monitoring = &operations.monitoring;
    let points = monitoring.series(range, Duration::from_secs(step)).await?;
    let profile = monitoring.profile(range).await?;
    let cohorts = monitoring.cohorts(Range { cohort: None, ..range }).await?;
    let mut sum = Aggregate::default();
    points.iter().for_each(|point| sum.merge(&point.aggregate));
    let points = points.iter().map(PointView::from).collect();
    Ok(Json(MonitorView {
        role,
        cohorts,
        since,
        until,
        windows: sum.windows,
        latency_ms: LatencyView::of(&sum.latency.total),
        infer_ms: LatencyView::of(&sum.latency.infer),
        queue_ms: LatencyView::of(&sum.latency.queue),
        counts: sum.counts,
        classes: sum.classes,
        labels: sum.labels.iter().map(|(source, labels)| (source.clone(), labels.into())).collect(),
        agreement: sum.agreement,
        health: sum.health,
        profile: ProfileView::of(&profile.content, profile.profiles, profile.devices, profile.told),
        points,
        bundle,
        cohort,
    }))
}

/// Some 48 points: five minutes, an hour, a day, or days.
fn step_for(span: Duration) -> u64 {
    let least = span.as_secs() / POINTS;
    [300, 900, 3_600, 6 * 3_600, 86_400].into_iter().find(|step| *step >= least).unwrap_or(7 * 86_400)
}

/// What one device's inputs and answers are like lately, and usually.
#[utoipa::path(get, path = "/api/v1/devices/{id}/monitor/{model}/{counter}", tag = "telemetry",
    security(("bearer" = ["read"])),
    params(("id" = String, Path), ("model" = String, Path), ("counter" = u64, Path)),
    responses((status = 200, description = "Lately and usually", body = DeviceMonitorView)))]
async fn device_monitor(
    State(operations): State<Arc<Operations>>,
    Path((device, model, counter)): Path<(String, String, u64)>,
    query: Pairs,
) -> Result<Json<DeviceMonitorView>, Problem> {
    query.only(&[])?;
    let device: DeviceId =
        device.parse().map_err(|error| Problem::bad_request("path-invalid", format!("{error}")))?;
    let bundle = bundle_of(&model, counter)?;
    operations.fleet.device(&device)?;
    let found = operations.monitoring.device_profile(&device, &bundle).await?;
    let Some(found) = found else {
        let detail = format!("device `{device}` has sent no profile of `{bundle}`");
        return Err(Problem::not_found("profile-unknown", detail)
            .hint("devices send one an hour, of bundles that carry a baseline"));
    };
    let DeviceProfile { last, recent, usual, .. } = &found;
    let lately = found.lately();
    Ok(Json(DeviceMonitorView {
        device,
        bundle,
        last: *last,
        lately: ProfileView::of(&lately, recent.len() as u64, 1, lately.rows),
        since: recent.first().map(|first| first.start),
        usual: ProfileView::of(&usual.content, 0, 1, usual.content.rows),
    }))
}

impl From<MonitorError> for Problem {
    fn from(error: MonitorError) -> Self {
        let detail = error.to_string();
        match error {
            MonitorError::Choice(_) => Self::bad_request("choice-invalid", detail),
            MonitorError::TooFine { .. } => {
                Self::bad_request("step-too-small", detail).hint("ask for a longer step or a shorter time")
            }
            MonitorError::Unreadable { .. } => {
                Self::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "profile-unreadable", detail)
            }
            MonitorError::Store(error) => FleetError::from(error).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_has_some_forty_points() {
        let hours = |n: u64| step_for(Duration::from_secs(n * 3_600));
        assert_eq!([hours(1), hours(4), hours(24), hours(7 * 24)], [300, 300, 3_600, 6 * 3_600]);
        assert_eq!([hours(30 * 24), hours(365 * 24)], [86_400, 7 * 86_400]);
    }
}
