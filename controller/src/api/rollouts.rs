//! Assignments over HTTP: rollouts of one stage, their devices, and what happens on the way.

use super::{
    access::Caller,
    extract::{ApiJson, ApiPath, MAX_LIMIT, Pairs, cursor},
    operations::Operations,
    problem::Problem,
    views::Listing,
};
use crate::{
    assignments::{AssignError, AssignRequest, AttemptRecord, RolloutRecord},
    clock,
    driver::Order,
    fleet::FleetError,
};
use axum::{Json, extract::State, http::StatusCode};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, RolloutId, SlotName},
    selector::Selector,
};
use serde::{Deserialize, Serialize};
use std::{fmt::Display, str::FromStr, sync::Arc};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new()
        .routes(routes!(list_rollouts, start_rollout))
        .routes(routes!(show_rollout))
        .routes(routes!(list_attempts))
}

/// A bundle for a selection of devices.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRollout {
    #[schema(value_type = String, example = "digits@2")]
    pub bundle: BundleName,
    /// A device is meant if any of them selects it.
    #[schema(value_type = Vec<String>, example = json!(["site=lab"]))]
    pub selectors: Vec<Selector>,
    /// Absent: the slot named like the model.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub slot: Option<SlotName>,
    /// How long each device watches the bundle before it commits to it.
    #[serde(default = "default_probation")]
    pub probation_secs: u64,
    /// Replace rollouts of the slot that still run on some of these devices.
    #[serde(default)]
    pub supersede: bool,
    /// Needed above 10 devices: the caller has seen the number.
    #[serde(default)]
    pub confirmed: bool,
    /// For the audit log.
    #[serde(default)]
    pub reason: Option<String>,
    /// Only say which devices it would reach.
    #[serde(default)]
    pub dry_run: bool,
}

fn default_probation() -> u64 {
    60
}

/// What a rollout became, or would reach.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum StartedRollout {
    Started {
        #[serde(flatten)]
        #[schema(value_type = Object)]
        rollout: Box<RolloutRecord>,
    },
    DryRun {
        #[schema(value_type = Vec<String>)]
        devices: Vec<DeviceId>,
    },
}

/// A week: longer than any soak a person waits for by hand.
const MAX_PROBATION_SECS: u64 = 7 * 86_400;

/// Assigns a bundle to every enrolled device that is selected.
#[utoipa::path(post, path = "/api/v1/rollouts", tag = "rollouts", security(("bearer" = ["rollouts:write"])),
    request_body = NewRollout,
    responses((status = 200, description = "Started, or what it would reach", body = StartedRollout)))]
async fn start_rollout(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    ApiJson(new): ApiJson<NewRollout>,
) -> Result<Json<StartedRollout>, Problem> {
    if new.selectors.is_empty() {
        let detail = "`selectors` is empty; an empty text as the only selector selects every device";
        return Err(Problem::bad_request("selector-missing", detail));
    }
    if new.probation_secs > MAX_PROBATION_SECS {
        let detail = format!("`probation_secs` is {}, at most {MAX_PROBATION_SECS}", new.probation_secs);
        return Err(Problem::bad_request("probation-too-long", detail));
    }
    let found = operations.registry.find(&new.bundle).await.map_err(FleetError::from)?;
    let Some(record) = found else {
        let detail = format!("there is no bundle {}", new.bundle);
        return Err(Problem::not_found("bundle-unknown", detail)
            .hint("see what there is with `edgefleet model list`"));
    };
    let request = AssignRequest {
        slot: new.slot.unwrap_or_else(|| (&new.bundle.model).into()),
        bundle: new.bundle,
        release: record.release,
        release_size: record.release_size,
        selectors: new.selectors,
        probation_secs: new.probation_secs,
        supersede: new.supersede,
        confirmed: new.confirmed,
        by: caller.actor().name().to_owned(),
        reason: new.reason,
    };
    if new.dry_run {
        let devices = operations.assignments.preview(&request).await?;
        return Ok(Json(StartedRollout::DryRun { devices }));
    }
    let now = clock::now();
    let rollout = operations.assignments.start(request, rollout_id(now)?, now).await?;
    operations.driver.order(Order::Rollout(rollout.id.clone())).await;
    Ok(Json(StartedRollout::Started { rollout: Box::new(rollout) }))
}

/// `r-` and the time in base 36 and four random digits: sorts by time, readable over the phone.
fn rollout_id(now: edgefleet_shared::time::Timestamp) -> Result<RolloutId, Problem> {
    let mut digits = Vec::new();
    let mut rest = now.as_millis();
    while digits.len() < 9 {
        digits.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
        rest /= 36;
    }
    let time: String = digits.into_iter().rev().collect();
    let random: u16 = rand::random();
    format!("r-{time}-{random:04x}").parse().map_err(|error| Problem::internal(&error))
}

/// Rollouts, oldest first.
#[utoipa::path(get, path = "/api/v1/rollouts", tag = "rollouts", security(("bearer" = ["read"])),
    params(("cursor" = Option<String>, Query), ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<Object>)))]
async fn list_rollouts(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<Listing<RolloutRecord>>, Problem> {
    let all = operations.assignments.list().await.map_err(FleetError::from)?;
    Ok(Json(one_page(all, &query, |rollout| &rollout.id)?))
}

/// One rollout with its counts.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}", tag = "rollouts", security(("bearer" = ["read"])),
    params(("id" = String, Path)),
    responses((status = 200, description = "The rollout", body = Object)))]
async fn show_rollout(
    State(operations): State<Arc<Operations>>,
    ApiPath(id): ApiPath<RolloutId>,
) -> Result<Json<RolloutRecord>, Problem> {
    Ok(Json(operations.assignments.show(&id).await?))
}

/// Every device of a rollout and how its attempt stands.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}/attempts", tag = "rollouts", security(("bearer" = ["read"])),
    params(("id" = String, Path), ("cursor" = Option<String>, Query),
        ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<Object>)))]
async fn list_attempts(
    State(operations): State<Arc<Operations>>,
    ApiPath(id): ApiPath<RolloutId>,
    query: Pairs,
) -> Result<Json<Listing<AttemptRecord>>, Problem> {
    operations.assignments.show(&id).await?;
    let all = operations.assignments.attempts(&id).await.map_err(FleetError::from)?;
    Ok(Json(one_page(all, &query, |attempt| &attempt.device)?))
}

/// The part of `all`, which is sorted by `id`, that `query` asks for; without a `limit` as much as one page
/// may hold.
fn one_page<T, I: Ord + FromStr + Display>(
    mut all: Vec<T>,
    query: &Pairs,
    id: impl Fn(&T) -> &I,
) -> Result<Listing<T>, Problem> {
    query.only(&["cursor", "limit"])?;
    let (after, limit) = query.page::<I>()?;
    let limit = if query.one::<usize>("limit")?.is_some() { limit } else { MAX_LIMIT };
    if let Some(after) = after {
        all.retain(|one| *id(one) > after);
    }
    let more = all.len() > limit;
    all.truncate(limit);
    let next = all.last().filter(|_| more).map(|last| cursor(&id(last).to_string()));
    Ok(Listing { items: all, next })
}

impl From<AssignError> for Problem {
    fn from(error: AssignError) -> Self {
        let detail = error.to_string();
        match error {
            AssignError::NobodySelected { .. } => Self::new(StatusCode::CONFLICT, "nobody-selected", detail)
                .hint("see what a selector selects with `edgefleet device list --select SELECTOR`"),
            AssignError::Unconfirmed { .. } => Self::new(StatusCode::CONFLICT, "confirmation-needed", detail)
                .hint("look at the number, then repeat with `--yes` (`confirmed` in the API)"),
            AssignError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "rollout-conflict", detail)
                .hint("wait for it, or replace it with `--supersede`"),
            AssignError::NoSuchRollout { .. } => Self::not_found("rollout-unknown", detail),
            AssignError::Store(error) => FleetError::from(error).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::time::Timestamp;
    use std::time::Duration;

    #[test]
    fn rollout_ids_sort_by_time() {
        let now = Timestamp::from_secs(1_795_417_490);
        let ids: Vec<_> = (0..5).map(|n| rollout_id(now + Duration::from_secs(n * 60)).unwrap()).collect();
        assert!(ids.is_sorted(), "{ids:?}");
    }
}
