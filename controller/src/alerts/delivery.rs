//! What is stored of an alert on its way: one document per alert and channel, in the kind of its state.

use super::{channel::ChannelName, event::AlertEvent};
use crate::store::Kind;
use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Alerts that were raised and not yet given to channels, by id.
pub const RAISED: Kind = Kind::new("alert-raised");
/// Deliveries to be made, by channel and id.
pub(super) const PENDING: Kind = Kind::new("alert-pending");
pub(super) const DELIVERED: Kind = Kind::new("alert-delivered");
/// Deliveries that were given up. A kind of their own, so that no number of good ones pushes them out.
pub(super) const DEAD: Kind = Kind::new("alert-dead");

/// Without its time: an occurrence that is raised twice is one delivery.
pub(super) fn delivery_id(channel: &ChannelName, event: &AlertEvent) -> String {
    format!("{channel}/{}", event.id)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryState {
    /// Not yet; it is tried again.
    Pending,
    Delivered,
    /// Given up.
    Dead,
}

impl DeliveryState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

impl std::str::FromStr for DeliveryState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Pending, Self::Delivered, Self::Dead]
            .into_iter()
            .find(|one| one.as_str() == text)
            .ok_or_else(|| "not `pending`, `delivered` or `dead`".to_owned())
    }
}

/// How one try went. Nothing secret: no address, no body that was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Outcome {
    /// The receiver took it.
    pub ok: bool,
    /// Of HTTP, or of SMTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    pub latency_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One alert on its way to one channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Delivery {
    pub channel: String,
    pub state: DeliveryState,
    pub tries: u32,
    #[schema(value_type = String, format = DateTime)]
    pub raised: Timestamp,
    /// When it is tried next, or when it was over.
    #[schema(value_type = String, format = DateTime)]
    pub next: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Outcome>,
    pub event: AlertEvent,
    /// Id of the message that tells it together with others; from before its first try on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl Delivery {
    pub fn new(channel: &ChannelName, event: AlertEvent, now: Timestamp) -> Self {
        Self {
            channel: channel.to_string(),
            state: DeliveryState::Pending,
            tries: 0,
            raised: now,
            next: now,
            last: None,
            event,
            digest: None,
        }
    }

    /// The same for every try of this delivery, and no other has it: `alr-0123.ops`.
    pub fn key(&self) -> String {
        format!("{}.{}", self.event.id, self.channel)
    }
}
