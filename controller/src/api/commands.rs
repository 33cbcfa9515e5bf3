//! Commands and labels over HTTP.

use super::{
    extract::{ApiJson, ApiPath},
    operations::Operations,
    problem::Problem,
};
use crate::{broker::BrokerError, commands::CommandError};
use axum::{Json, extract::State, http::StatusCode};
use edgefleet_shared::{
    ids::DeviceId,
    message::{Action, Label},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Labels in one request.
const MAX_LABELS: usize = 10_000;

pub(super) fn routes() -> OpenApiRouter<Arc<Operations>> {
    let labels = OpenApiRouter::new()
        .routes(routes!(post_labels))
        .layer(axum::extract::DefaultBodyLimit::max(4 << 20));
    OpenApiRouter::new().routes(routes!(send_command)).merge(labels)
}

/// What a device is told to do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCommand {
    /// `{"kind": "ping"}` answers at once; `{"kind": "report"}` reports in full and sends what waits.
    #[schema(value_type = Object, example = json!({"kind": "ping"}))]
    pub action: Action,
}

/// The device did it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CommandDone {
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// From sending to the answer.
    pub took_ms: u64,
}

/// Tells a device something, signed, and waits up to 10 s for its answer.
#[utoipa::path(post, path = "/api/v1/devices/{id}/commands", tag = "devices",
    security(("bearer" = ["rollouts:write"])), params(("id" = String, Path)), request_body = NewCommand,
    responses((status = 200, description = "Done", body = CommandDone)))]
async fn send_command(
    State(operations): State<Arc<Operations>>,
    ApiPath(device): ApiPath<DeviceId>,
    ApiJson(command): ApiJson<NewCommand>,
) -> Result<Json<CommandDone>, Problem> {
    operations.fleet.enrolled_device(&device)?;
    let started = std::time::Instant::now();
    operations.commands.send(&device, command.action).await?;
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Json(CommandDone { device, took_ms }))
}

/// Truths about predictions, by the id that came with each.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewLabels {
    #[schema(value_type = Vec<Object>, example = json!([{"prediction": "dev-1.00ff.7", "label": "7"}]))]
    pub labels: Vec<Label>,
}

/// How many labels went on to their devices.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LabelsTaken {
    pub accepted: usize,
    /// Of devices this fleet does not have, or not any more.
    pub unknown_device: usize,
}

/// Passes labels to the devices that made the predictions; they join them there, also late, and the
/// counts come back with their telemetry.
#[utoipa::path(post, path = "/api/v1/labels", tag = "telemetry", security(("bearer" = ["rollouts:write"])),
    request_body = NewLabels, responses((status = 200, description = "Passed on", body = LabelsTaken)))]
async fn post_labels(
    State(operations): State<Arc<Operations>>,
    ApiJson(new): ApiJson<NewLabels>,
) -> Result<Json<LabelsTaken>, Problem> {
    if new.labels.len() > MAX_LABELS {
        let detail = format!("{} labels in one request, at most {MAX_LABELS}", new.labels.len());
        return Err(Problem::bad_request("too-many-labels", detail));
    }
    let mut by_device: BTreeMap<DeviceId, Vec<Label>> = BTreeMap::new();
    for label in new.labels {
        by_device.entry(label.prediction.device.clone()).or_default().push(label);
    }
    let mut taken = LabelsTaken { accepted: 0, unknown_device: 0 };
    for (device, labels) in by_device {
        if operations.fleet.enrolled_device(&device).is_err() {
            taken.unknown_device += labels.len();
            continue;
        }
        taken.accepted += labels.len();
        operations.commands.label(&device, labels).await?;
    }
    Ok(Json(taken))
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        match &error {
            CommandError::NoAnswer { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "device-silent", error.to_string())
            }
            CommandError::Refused { .. } => {
                Self::new(StatusCode::CONFLICT, "device-refused-command", error.to_string())
            }
            CommandError::Broker(BrokerError::Offline | BrokerError::Busy { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "broker-unreachable", error.to_string())
            }
            CommandError::Sign(_) | CommandError::Broker(_) => Self::internal(&error),
        }
    }
}
