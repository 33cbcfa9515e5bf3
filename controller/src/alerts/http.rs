//! Alerts over HTTP: which channels there are, what became of alerts, and a test.

use super::{Alerts, ChannelName, ChannelStatus, Delivery, DeliveryState, Outcome, TestError, Tested};
use crate::{
    api::{
        access::Caller,
        extract::{ApiJson, DEFAULT_LIMIT, MAX_LIMIT, Pairs},
        problem::Problem,
        views::Listing,
    },
    fleet::FleetError,
};
use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

pub fn routes(alerts: Alerts) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list_alerts))
        .routes(routes!(list_channels))
        .routes(routes!(test_alerts))
        .with_state(alerts)
}

/// A channel as the server's settings have it, without secrets.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ChannelView {
    pub name: String,
    /// `webhook` or `email`.
    pub way: String,
    /// Where it goes; of a webhook only scheme, host and port.
    pub target: String,
    /// Empty: all.
    pub kinds: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_severity: Option<String>,
    /// Alerts that wait to be delivered.
    pub pending: u64,
}

impl From<ChannelStatus> for ChannelView {
    fn from(status: ChannelStatus) -> Self {
        Self {
            name: status.name.to_string(),
            way: status.way.to_owned(),
            target: status.target,
            kinds: status.wants.kinds.iter().map(ToString::to_string).collect(),
            min_severity: status.wants.min_severity.map(|least| least.to_string()),
            pending: status.waiting,
        }
    }
}

/// Deliveries of alerts, the newest alert first.
#[utoipa::path(get, path = "/api/v1/alerts", tag = "alerts", security(("bearer" = ["read"])),
    params(("state" = Option<DeliveryState>, Query), ("channel" = Option<String>, Query),
        ("limit" = Option<usize>, Query, description = "1 to 1,000, by default 100")),
    responses((status = 200, description = "Deliveries", body = Listing<Delivery>)))]
async fn list_alerts(State(alerts): State<Alerts>, query: Pairs) -> Result<Json<Listing<Delivery>>, Problem> {
    query.only(&["state", "channel", "limit"])?;
    let limit = query.one::<usize>("limit")?.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let detail = format!("parameter `limit` is {limit}, 1 to {MAX_LIMIT} are allowed");
        return Err(Problem::bad_request("query-invalid", detail));
    }
    let (state, channel) = (query.one::<DeliveryState>("state")?, query.one::<ChannelName>("channel")?);
    let items = alerts
        .list(state, channel.as_ref().map(ChannelName::as_str), limit)
        .await
        .map_err(FleetError::from)?;
    Ok(Json(Listing { items, next: None }))
}

/// Who is told, how, and what of.
#[utoipa::path(get, path = "/api/v1/alerts/channels", tag = "alerts", security(("bearer" = ["read"])),
    responses((status = 200, description = "Channels", body = Listing<ChannelView>)))]
async fn list_channels(State(alerts): State<Alerts>) -> Json<Listing<ChannelView>> {
    Json(Listing { items: alerts.channels().into_iter().map(ChannelView::from).collect(), next: None })
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TestBody {
    /// Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
}

/// How one channel took a test.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TestedView {
    pub channel: String,
    pub way: String,
    pub target: String,
    pub outcome: Outcome,
}

impl From<Tested> for TestedView {
    fn from(tested: Tested) -> Self {
        let Tested { channel, way, target, outcome } = tested;
        Self { channel: channel.to_string(), way: way.to_owned(), target, outcome }
    }
}

/// Sends a test to one channel or to all and says how each took it. Filters and queue are passed by.
#[utoipa::path(post, path = "/api/v1/alerts/test", tag = "alerts", security(("bearer" = ["system:write"])),
    request_body = TestBody,
    responses((status = 200, description = "One outcome for each channel", body = Listing<TestedView>)))]
async fn test_alerts(
    State(alerts): State<Alerts>,
    caller: Caller,
    ApiJson(body): ApiJson<TestBody>,
) -> Result<Json<Listing<TestedView>>, Problem> {
    let tested = alerts.test(body.channel.as_deref(), caller.actor().name()).await?;
    Ok(Json(Listing { items: tested.into_iter().map(TestedView::from).collect(), next: None }))
}

impl From<TestError> for Problem {
    fn from(error: TestError) -> Self {
        match error {
            TestError::NoSuchChannel { .. } => Self::not_found("channel-unknown", error.to_string())
                .hint("see what there is with `edgefleet alert channels`"),
            TestError::NoChannels => {
                Self::new(StatusCode::CONFLICT, "no-channels", error.to_string()).hint(
                    "write `[[alerts.webhook]]` or `[[alerts.email]]` into the server's settings, see docs/alerts.md",
                )
            }
            TestError::Store(error) => FleetError::from(error).into(),
        }
    }
}
