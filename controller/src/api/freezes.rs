//! What holds all hand-outs back: the freeze calendar and the "stop the line" switch.

use super::{
    access::Caller,
    extract::{ApiJson, Pairs},
    operations::Operations,
    problem::Problem,
};
use crate::{
    clock,
    fleet::FleetError,
    rollout::FreezePeriod,
    rollouts::{Calendar, CalendarError},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use edgefleet_shared::{ids::SlotName, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new()
        .routes(routes!(show_calendar, add_freeze))
        .routes(routes!(remove_freeze))
        .routes(routes!(stop_the_line))
}

/// A time in which no rollout hands anything out.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewFreeze {
    #[schema(example = "black-friday")]
    pub name: String,
    #[schema(value_type = String, format = DateTime)]
    pub from: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
    /// Only these slots; empty: all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub slots: Vec<SlotName>,
    #[serde(default)]
    pub reason: String,
}

/// The one switch.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LineSwitch {
    /// `true`: nothing is handed out any more, by no rollout, until somebody lets it go on.
    pub stopped: bool,
    #[serde(default)]
    pub reason: String,
}

/// The freeze calendar and whether the line is stopped.
#[utoipa::path(get, path = "/api/v1/freezes", tag = "rollouts", security(("bearer" = ["read"])),
    responses((status = 200, description = "Calendar and switch", body = Object)))]
async fn show_calendar(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<Calendar>, Problem> {
    query.only(&[])?;
    Ok(Json(Calendar::clone(&operations.calendar.current())))
}

/// Writes a freeze into the calendar.
#[utoipa::path(post, path = "/api/v1/freezes", tag = "rollouts", security(("bearer" = ["rollouts:write"])),
    request_body = NewFreeze,
    responses((status = 200, description = "As it was written down", body = Object)))]
async fn add_freeze(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    ApiJson(new): ApiJson<NewFreeze>,
) -> Result<Json<FreezePeriod>, Problem> {
    let NewFreeze { name, from, until, slots, reason } = new;
    let period = FreezePeriod { name, from, until, slots, reason };
    let added = operations.calendar.add(&caller.actor(), period, clock::now()).await?;
    operations.rollouts.look_again();
    Ok(Json(added))
}

/// Takes a freeze out of the calendar.
#[utoipa::path(delete, path = "/api/v1/freezes/{name}", tag = "rollouts",
    security(("bearer" = ["rollouts:write"])), params(("name" = String, Path)),
    responses((status = 200, description = "As it was", body = Object)))]
async fn remove_freeze(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<FreezePeriod>, Problem> {
    let removed = operations.calendar.remove(&caller.actor(), &name, clock::now()).await?;
    operations.rollouts.look_again();
    Ok(Json(removed))
}

/// Stops the line, or lets it go on. What devices are doing already goes on.
#[utoipa::path(put, path = "/api/v1/line", tag = "rollouts", security(("bearer" = ["rollouts:write"])),
    request_body = LineSwitch,
    responses((status = 200, description = "Calendar and switch", body = Object)))]
async fn stop_the_line(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    ApiJson(switch): ApiJson<LineSwitch>,
) -> Result<Json<Calendar>, Problem> {
    let LineSwitch { stopped, reason } = switch;
    let calendar = operations.calendar.stop_the_line(&caller.actor(), stopped, reason, clock::now()).await?;
    operations.rollouts.look_again();
    Ok(Json(Calendar::clone(&calendar)))
}

impl From<CalendarError> for Problem {
    fn from(error: CalendarError) -> Self {
        let detail = error.to_string();
        match error {
            CalendarError::Taken { .. } => Self::new(StatusCode::CONFLICT, "freeze-exists", detail),
            CalendarError::Unknown { .. } => Self::not_found("freeze-unknown", detail)
                .hint("see the calendar with `edgefleet freeze list`"),
            CalendarError::Backwards { .. } => Self::bad_request("freeze-backwards", detail),
            CalendarError::Text { .. } => Self::bad_request("text-invalid", detail),
            CalendarError::Full => Self::new(StatusCode::CONFLICT, "calendar-full", detail),
            CalendarError::Store(error) => FleetError::from(error).into(),
        }
    }
}
