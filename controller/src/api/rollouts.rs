//! Rollouts over HTTP: plans in, what became of them out, and the orders of people.

use super::{
    abilities,
    access::Caller,
    extract::{ApiJson, ApiPath, Pairs, cursor},
    operations::Operations,
    problem::Problem,
    rollout_views::{
        ApprovalRequest, Explanation, LAST_VERDICTS, NewRollout, OrderRequest, RolloutSummary, SignedVerdict,
        StartedRollout,
    },
    views::Listing,
};
use crate::{
    clock,
    evidence::power::forecast,
    fleet::FleetError,
    rollout::{Attempt, Refused, Release, Rollout},
    rollouts::{
        self, NewRolloutRequest, OrderError, StartError,
        preview::{FleetFacts, Preview, preview},
    },
};
use axum::{Json, extract::State, http::StatusCode};
use edgefleet_shared::ids::{BundleName, DeviceId, RolloutId};
use std::sync::Arc;
use utoipa_axum::{router::OpenApiRouter, routes};

/// The forecast is a simulation; the same plan gets the same figures each time it is looked at.
const FORECAST_SEED: u64 = 1;

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new()
        .routes(routes!(list_rollouts, start_rollout))
        .routes(routes!(show_rollout))
        .routes(routes!(list_attempts))
        .routes(routes!(explain_rollout))
        .routes(routes!(list_verdicts))
        .routes(routes!(order_rollout))
        .routes(routes!(approve_rollout))
}

/// Starts a rollout, or says what its plan would do.
#[utoipa::path(post, path = "/api/v1/rollouts", tag = "rollouts", security(("bearer" = ["rollouts:write"])),
    request_body = NewRollout,
    responses((status = 200, description = "Started, or what it would do", body = StartedRollout)))]
async fn start_rollout(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    ApiJson(new): ApiJson<NewRollout>,
) -> Result<Json<StartedRollout>, Problem> {
    let release = release(&operations, &new.plan.rollout.bundle).await?;
    let request = NewRolloutRequest {
        plan: new.plan,
        release,
        confirmed: new.confirmed,
        start: new.start,
        reason: new.reason.unwrap_or_default(),
    };
    let now = clock::now();
    let actor = caller.actor();
    if new.dry_run {
        let preview = Box::new(preview_of(&operations, &request, actor.name(), now).await?);
        return Ok(Json(StartedRollout::DryRun { preview }));
    }
    let rollout = operations.rollouts.start(request, rollout_id(now)?, &actor, now).await?;
    Ok(Json(StartedRollout::Started { rollout: Box::new(rollout) }))
}

/// What a plan would do. Starts nothing.
pub(super) async fn preview_of(
    operations: &Operations,
    request: &NewRolloutRequest,
    by: &str,
    now: edgefleet_shared::time::Timestamp,
) -> Result<Preview, Problem> {
    let (draft, membership) = operations.rollouts.prepare(request, rollout_id(now)?, by, now).await?;
    let known = operations.rollouts.history(&draft, &membership, now).await.map_err(FleetError::from)?;
    let facts = FleetFacts {
        now,
        selected: operations.rollouts.selected(&draft),
        able: Some(abilities::of(operations, &draft.plan.rollout.bundle, &draft.plan.select).await?),
        download: request.release.download,
        links: operations.links,
        online: Some(operations.rollouts.online(&membership)),
        bad_rate: known.bad_rate,
        requests_per_hour: known.requests_per_hour,
        labels_per_hour: known.labels_per_hour,
        latency_spread: known.latency_spread,
        freezes: operations.calendar.current().periods.clone(),
    };
    // Simulates the gates: not on a thread that answers requests.
    let work = move || {
        preview(&draft.plan, &[], &membership, &facts, |stage, gates| forecast(stage, gates, FORECAST_SEED))
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| Problem::internal(&error))
}

/// What the registry knows of a bundle that is to be rolled out.
async fn release(operations: &Operations, bundle: &BundleName) -> Result<Release, Problem> {
    let found = operations.registry.find(bundle).await.map_err(FleetError::from)?;
    let Some(record) = found else {
        let detail = format!("there is no bundle {bundle}");
        return Err(Problem::not_found("bundle-unknown", detail)
            .hint("see what there is with `edgefleet model list`"));
    };
    Ok(Release {
        bundle: bundle.clone(),
        envelope: record.release,
        envelope_size: record.release_size,
        download: record.download_bytes(),
    })
}

fn rollout_id(now: edgefleet_shared::time::Timestamp) -> Result<RolloutId, Problem> {
    let random: u16 = rand::random();
    rollouts::rollout_id(now, &format!("{random:04x}")).map_err(|error| Problem::internal(&error))
}

/// Rollouts, oldest first.
#[utoipa::path(get, path = "/api/v1/rollouts", tag = "rollouts", security(("bearer" = ["read"])),
    params(("cursor" = Option<String>, Query), ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<RolloutSummary>)))]
async fn list_rollouts(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<Listing<RolloutSummary>>, Problem> {
    query.only(&["cursor", "limit"])?;
    let (after, limit) = query.page::<RolloutId>()?;
    let page = operations.rollouts.page(after, limit).await.map_err(FleetError::from)?;
    let items = page.entries.iter().map(|(_, rollout)| RolloutSummary::of(&rollout.value)).collect();
    Ok(Json(Listing { items, next: page.next.map(|id| cursor(&id)) }))
}

/// One rollout as it is stored: plan, stages, counts, evidence, what it waits for.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}", tag = "rollouts", security(("bearer" = ["read"])),
    params(("id" = String, Path)),
    responses((status = 200, description = "The rollout", body = Object)))]
async fn show_rollout(
    State(operations): State<Arc<Operations>>,
    ApiPath(id): ApiPath<RolloutId>,
) -> Result<Json<Rollout>, Problem> {
    Ok(Json(operations.rollouts.show(&id).await?))
}

/// The devices of a rollout and how the attempt of each stands.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}/attempts", tag = "rollouts", security(("bearer" = ["read"])),
    params(("id" = String, Path), ("cursor" = Option<String>, Query),
        ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<Object>)))]
async fn list_attempts(
    State(operations): State<Arc<Operations>>,
    ApiPath(id): ApiPath<RolloutId>,
    query: Pairs,
) -> Result<Json<Listing<Attempt>>, Problem> {
    query.only(&["cursor", "limit"])?;
    let (after, limit) = query.page::<DeviceId>()?;
    operations.rollouts.show(&id).await?;
    let found = operations.rollouts.attempts(&id, after.as_ref(), limit + 1).await;
    let mut items = found.map_err(FleetError::from)?;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| cursor(last.device.as_str()));
    Ok(Json(Listing { items, next }))
}

/// Why it stands where it stands: what it waits for, its gates with their numbers, the last verdicts.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}/explain", tag = "rollouts", security(("bearer" = ["read"])),
    params(("id" = String, Path)),
    responses((status = 200, description = "The explanation", body = Explanation)))]
async fn explain_rollout(
    State(operations): State<Arc<Operations>>,
    ApiPath(id): ApiPath<RolloutId>,
) -> Result<Json<Explanation>, Problem> {
    let rollout = operations.rollouts.show(&id).await?;
    let verdicts = operations.rollouts.last_verdicts(&id, LAST_VERDICTS).await.map_err(FleetError::from)?;
    let records = verdicts.into_iter().map(|signed| signed.record).collect();
    Ok(Json(Explanation::of(&rollout, records, clock::now())))
}

/// What was decided, from which numbers, by which rule or person; each signed. Oldest first.
#[utoipa::path(get, path = "/api/v1/rollouts/{id}/verdicts", tag = "rollouts", security(("bearer" = ["read"])),
    params(("id" = String, Path), ("cursor" = Option<String>, Query),
        ("limit" = Option<usize>, Query, description = "1 to 1,000")),
    responses((status = 200, description = "One page", body = Listing<SignedVerdict>)))]
async fn list_verdicts(
    State(operations): State<Arc<Operations>>,
    ApiPath(id): ApiPath<RolloutId>,
    query: Pairs,
) -> Result<Json<Listing<SignedVerdict>>, Problem> {
    query.only(&["cursor", "limit"])?;
    let (after, limit) = query.page::<u64>()?;
    operations.rollouts.show(&id).await?;
    let from = after.unwrap_or(0).saturating_add(1);
    let items = operations.rollouts.verdicts(&id, from, limit).await.map_err(FleetError::from)?;
    let last = from.saturating_add(items.len() as u64).saturating_sub(1);
    let next = (items.len() == limit).then(|| cursor(&last.to_string()));
    Ok(Json(Listing { items, next }))
}

/// Tells a rollout what to do.
#[utoipa::path(post, path = "/api/v1/rollouts/{id}/orders", tag = "rollouts",
    security(("bearer" = ["rollouts:write"])), params(("id" = String, Path)), request_body = OrderRequest,
    responses((status = 200, description = "The rollout afterwards", body = Object)))]
async fn order_rollout(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    ApiPath(id): ApiPath<RolloutId>,
    ApiJson(order): ApiJson<OrderRequest>,
) -> Result<Json<Rollout>, Problem> {
    let actor = caller.actor();
    let (action, event) = (order.action(), order.event(actor.name()));
    Ok(Json(operations.rollouts.order(&id, &actor, action, &event, clock::now()).await?))
}

/// Agrees to what a rollout asks for, or does not.
#[utoipa::path(post, path = "/api/v1/rollouts/{id}/approval", tag = "rollouts",
    security(("bearer" = ["rollouts:approve"])), params(("id" = String, Path)), request_body = ApprovalRequest,
    responses((status = 200, description = "The rollout afterwards", body = Object)))]
async fn approve_rollout(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    ApiPath(id): ApiPath<RolloutId>,
    ApiJson(answer): ApiJson<ApprovalRequest>,
) -> Result<Json<Rollout>, Problem> {
    let actor = caller.actor();
    let action = if answer.agree { "rollout.approve" } else { "rollout.deny" };
    let event = answer.event(actor.name());
    Ok(Json(operations.rollouts.order(&id, &actor, action, &event, clock::now()).await?))
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        let detail = error.to_string();
        match error {
            StartError::NobodySelected { .. } => Self::new(StatusCode::CONFLICT, "nobody-selected", detail)
                .hint("see what a selector selects with `edgefleet device list --select SELECTOR`"),
            StartError::Unconfirmed { .. } => Self::new(StatusCode::CONFLICT, "confirmation-needed", detail)
                .hint("look at the number, then repeat with `--yes` (`confirmed` in the API)"),
            StartError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "rollout-conflict", detail)
                .hint("wait for it, or replace it with `--supersede` (`on_overlap: supersede` in a plan)"),
            StartError::Downgrade { .. } => Self::new(StatusCode::CONFLICT, "downgrade", detail)
                .hint("give the reason in the plan: `rollout.allow_downgrade: \"...\"`"),
            StartError::Plan { .. } => Self::bad_request("plan-invalid", detail)
                .hint("every field with its default is in docs/examples/rollout.yaml"),
            StartError::Refused(refused) => refused.into(),
            StartError::Store(error) => FleetError::from(error).into(),
        }
    }
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::NoSuchRollout { .. } => Self::not_found("rollout-unknown", error.to_string())
                .hint("see what there is with `edgefleet rollout list`"),
            OrderError::Conflict { .. } => {
                Self::new(StatusCode::CONFLICT, "rollout-conflict", error.to_string())
                    .hint("wait for it, or plan this one with `on_overlap: supersede` or `queue`")
            }
            OrderError::Refused(refused) => refused.into(),
            OrderError::Store(error) => FleetError::from(error).into(),
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let code = match refused {
            Refused::WrongState { .. } => "rollout-state",
            Refused::OwnApproval { .. } => "approval-own",
            Refused::NothingToApprove { .. } => "approval-none",
            Refused::HardGateOpen { .. } => "hard-gate-open",
            Refused::NoOpenStage { .. } => "stage-none",
            Refused::PlanMistakes { .. } => "plan-invalid",
            Refused::ReasonMissing => "reason-missing",
        };
        Self::new(StatusCode::CONFLICT, code, refused.to_string())
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
