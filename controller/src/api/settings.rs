//! Rules for how devices behave, and what they come to on one device.

use super::{
    access::Caller,
    extract::{ApiJson, Pairs},
    operations::Operations,
    problem::Problem,
};
use crate::{
    clock,
    desired::SettingsSource as _,
    driver::Order,
    fleet::FleetError,
    settings::{NewRule, Rule, RuleError, usual_order},
};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use edgefleet_shared::{desired::Settings, ids::DeviceId, selector::Selector, time::Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    OpenApiRouter::new()
        .routes(routes!(list_rules))
        .routes(routes!(put_rule, remove_rule))
        .routes(routes!(settings_of_device))
}

/// Some settings for the fleet or a part of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleBody {
    /// Rules apply in this order, then by name; a later one wins.
    #[serde(default = "usual_order")]
    pub order: u32,
    /// Over labels and `id`; absent: the whole fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "site=plant-7")]
    pub select: Option<Selector>,
    /// The fields to set; the others keep what rules before it or the defaults say.
    #[schema(value_type = Object, example = json!({"window_secs": 60}))]
    pub set: Map<String, Value>,
    /// When the rule ends by itself; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
}

/// All rules, in the order in which they apply.
#[utoipa::path(get, path = "/api/v1/settings", tag = "settings", security(("bearer" = ["read"])),
    responses((status = 200, description = "Rules", body = Vec<Object>)))]
async fn list_rules(
    State(operations): State<Arc<Operations>>,
    query: Pairs,
) -> Result<Json<Vec<Rule>>, Problem> {
    query.only(&[])?;
    Ok(Json(operations.settings.current().to_vec()))
}

/// Writes a rule, in place of one of the same name. Devices that it changes get a new desired state.
#[utoipa::path(put, path = "/api/v1/settings/{name}", tag = "settings", security(("bearer" = ["rollouts:write"])),
    params(("name" = String, Path)), request_body = RuleBody,
    responses((status = 200, description = "As it was written down", body = Object)))]
async fn put_rule(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    Path(name): Path<String>,
    ApiJson(body): ApiJson<RuleBody>,
) -> Result<Json<Rule>, Problem> {
    let RuleBody { order, select, set, until } = body;
    let new = NewRule { name, order, select, set, until };
    let rule = operations.settings.put(&caller.actor(), new, clock::now()).await?;
    operations.driver.order(Order::SettingsChanged).await;
    Ok(Json(rule))
}

/// Takes a rule away. Devices that it concerned get a new desired state.
#[utoipa::path(delete, path = "/api/v1/settings/{name}", tag = "settings",
    security(("bearer" = ["rollouts:write"])), params(("name" = String, Path)),
    responses((status = 200, description = "As it was", body = Object)))]
async fn remove_rule(
    State(operations): State<Arc<Operations>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Rule>, Problem> {
    let rule = operations.settings.remove(&caller.actor(), &name, clock::now()).await?;
    operations.driver.order(Order::SettingsChanged).await;
    Ok(Json(rule))
}

/// What all rules come to on one device.
#[utoipa::path(get, path = "/api/v1/devices/{device}/settings", tag = "settings", security(("bearer" = ["read"])),
    params(("device" = String, Path)),
    responses((status = 200, description = "Settings", body = Object)))]
async fn settings_of_device(
    State(operations): State<Arc<Operations>>,
    Path(device): Path<String>,
) -> Result<Json<Settings>, Problem> {
    let device: DeviceId =
        device.parse().map_err(|error| Problem::bad_request("path-invalid", format!("{error}")))?;
    operations.fleet.device(&device)?;
    Ok(Json(operations.settings.of(&device)))
}

impl From<RuleError> for Problem {
    fn from(error: RuleError) -> Self {
        let detail = error.to_string();
        match error {
            RuleError::Unknown { .. } => {
                Self::not_found("rule-unknown", detail).hint("see the rules with `edgefleet settings list`")
            }
            RuleError::Full => Self::new(StatusCode::CONFLICT, "rules-full", detail),
            RuleError::Store(error) => FleetError::from(error).into(),
            RuleError::Setting { .. }
            | RuleError::Name { .. }
            | RuleError::Over { .. }
            | RuleError::Empty { .. }
            | RuleError::TooLarge { .. } => Self::bad_request("rule-invalid", detail),
        }
    }
}
