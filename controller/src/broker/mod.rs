//! One way to talk to any MQTT broker: the one inside this process ([`embedded`]) or one beside it
//! ([`external`], for example Mosquitto).
//!
//! What every home promises, and `tests/broker_contract` checks on each:
//! * a client is who its certificate says, and its MQTT client id is that name;
//! * a device uses exactly the topics of [`edgefleet_shared::topics::DEVICE_RULES`], last wills included;
//! * device messages arrive as [`BrokerEvent`]s on one **bounded** channel.
//!
//! What no home promises: that a message arrives. A PUBACK means "the broker has it", nothing more; a
//! message on the way to a device is dropped when its queue is full, its session ends, or the link to
//! an external broker breaks. Callers are level-triggered: they send the state again when the device
//! reports, on [`BrokerEvent::Connected`] and on [`Upstream::Up`].
//!
//! **Back-pressure.** When the receiver does not keep up, the channel fills; then the embedded broker
//! stops reading from the devices that publish (their PUBACK waits, TCP pushes back) and the external
//! client stops reading from its broker, which queues up to its own limits. Nothing grows without
//! bound; a stall longer than a keep-alive looks like a dead broker to the other side. A receiver may call any method of [`Broker`] between two events.
//!
//! **Names.** A certificate whose common name starts with [`CONTROLLER_PREFIX`] is a controller's (or
//! an operator's for debugging). The controller makes all device ids and never makes one with this
//! prefix; its CA issues such names to controllers only.

pub mod embedded;
pub mod external;
mod limits;
pub mod mosquitto;
mod registry;
mod routes;
mod session;
pub mod tls;

pub use limits::descriptor_limit;

use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    ids::DeviceId,
    topics::{Channel, MAX_PAYLOAD_BYTES, ROOT},
};
use std::{fmt, net::SocketAddr};

/// Common names with this prefix belong to controllers; no device id may start with it.
pub const CONTROLLER_PREFIX: &str = "controller-";

/// Largest MQTT packet: the payload plus fixed header, the longest legal topic and its packet id.
pub const MAX_PACKET_BYTES: usize = MAX_PAYLOAD_BYTES + 4 * 1024;

/// A capacity of the event channel that serves well: 256 messages of full size are 64 MiB.
pub const EVENT_CAPACITY: usize = 256;

/// Whether this certificate name is a controller's. See [`CONTROLLER_PREFIX`].
pub fn is_controller(identity: &DeviceId) -> bool {
    identity.as_str().starts_with(CONTROLLER_PREFIX)
}

/// MQTT quality of service; 2 is not part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
}

/// A message from the controller to devices.
#[derive(Clone, Debug)]
pub struct Message {
    /// A concrete topic below [`ROOT`].
    pub topic: String,
    /// At most [`MAX_PAYLOAD_BYTES`]. Empty and retained removes the retained message.
    pub payload: Bytes,
    /// Kept by the broker for later subscribers.
    pub retain: bool,
    pub qos: Qos,
}

impl Message {
    /// Refuses what no broker may see: foreign topics, wildcards, oversize.
    fn check(&self) -> Result<(), BrokerError> {
        let below_root = self.topic.strip_prefix(ROOT).is_some_and(|rest| rest.starts_with('/'));
        if !below_root || self.topic.len() > 512 || self.topic.contains(['+', '#', '\0']) {
            return Err(BrokerError::BadTopic { topic: self.topic.chars().take(200).collect() });
        }
        if self.payload.len() > MAX_PAYLOAD_BYTES {
            return Err(BrokerError::TooLarge {
                topic: self.topic.clone(),
                bytes: self.payload.len(),
                limit: MAX_PAYLOAD_BYTES,
            });
        }
        Ok(())
    }
}

/// What happens at the broker, in order per device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrokerEvent {
    /// A device published on one of its own channels.
    Message {
        device: DeviceId,
        channel: Channel,
        /// At most [`MAX_PAYLOAD_BYTES`].
        payload: Bytes,
        /// The broker repeats what it had stored: old news, sent once after start or [`Upstream::Up`].
        retained: bool,
    },
    /// Embedded only; elsewhere the presence channel tells.
    Connected { device: DeviceId, peer: Option<SocketAddr> },
    /// Embedded only. The device's last will, if it applies, came just before as a `Message`.
    Disconnected { device: DeviceId, unexpected: bool, reason: DisconnectReason },
    /// A second connection with the same identity displaced the first; `Connected` follows and no
    /// `Disconnected` comes for the first. The displaced connection's last will does not apply.
    Takeover { device: DeviceId },
    /// The link to an external broker.
    Upstream(Upstream),
}

/// State of the link to an external broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Subscriptions are requested again; stored `reported` and `presence` messages follow.
    Up,
    /// Everything in flight is lost. Comes once per outage.
    Down { reason: String },
}

/// Why a device's connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DisconnectReason {
    /// It said goodbye.
    Client,
    /// The connection broke, timed out or violated the protocol.
    Network,
    TakenOver,
    Kicked,
    Revoked,
    CertificateExpired,
    /// It published more than [`MAX_PAYLOAD_BYTES`].
    Oversize,
    Stopped,
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "disconnected by the device",
            Self::Network => "connection lost",
            Self::TakenOver => "taken over by another connection of the same identity",
            Self::Kicked => "ended by the controller",
            Self::Revoked => "identity revoked",
            Self::CertificateExpired => "certificate expired",
            Self::Oversize => "published more than a payload may hold",
            Self::Stopped => "broker stopped",
        })
    }
}

/// Which broker serves the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerKind {
    Embedded,
    External,
}

impl fmt::Display for BrokerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::External => "external",
        })
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why the broker could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("`{topic}` is not a concrete topic below `{ROOT}/`")]
    BadTopic { topic: String },
    #[error("a payload of {bytes} bytes for `{topic}` exceeds the limit of {limit}")]
    TooLarge { topic: String, bytes: usize, limit: usize },
    #[error("the external broker is not connected")]
    Offline,
    #[error("the external broker did not take a message for `{topic}` within {seconds} s")]
    Busy { topic: String, seconds: u64 },
    #[error("the session of {device} did not end within {seconds} s")]
    StillConnected { device: DeviceId, seconds: u64 },
    #[error("could not revoke {device} at the external broker: {action}")]
    Revocation { device: DeviceId, action: &'static str, source: Source },
    #[error("could not start the broker: {action}")]
    Start { action: String, source: Source },
}

/// A broker the controller can use. See the module for what it does and does not promise.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Hands a message to the broker. Never waits for a slow device: what exceeds its bounded queue is
    /// dropped, oldest first (QoS 0: newest).
    ///
    /// # Errors
    /// [`BrokerError::BadTopic`], [`BrokerError::TooLarge`]; external also `Offline`, `Busy`.
    async fn publish(&self, message: Message) -> Result<(), BrokerError>;

    /// Ends the device's session if it has one. It may come back at once.
    ///
    /// # Errors
    /// [`BrokerError::StillConnected`] if it is not gone within 5 s.
    async fn kick(&self, device: &DeviceId) -> Result<(), BrokerError>;

    /// Ends the device's session and refuses it until [`Broker::allow`]. Returns when it is gone.
    ///
    /// Embedded: the refusal lives in memory; across restarts the [`embedded::Admission`] remembers.
    async fn revoke(&self, device: &DeviceId) -> Result<(), BrokerError>;

    /// Takes a [`Broker::revoke`] back.
    async fn allow(&self, device: &DeviceId) -> Result<(), BrokerError>;

    /// Ends all sessions (last wills are not sent) and releases port and files. Idempotent.
    async fn stop(&self);

    fn kind(&self) -> BrokerKind;

    /// Whether devices can be reached now.
    ///
    /// # Errors
    /// Why not, for the log.
    fn ready(&self) -> Result<(), String>;

    /// Devices connected now; `None` where only the broker knows.
    fn connected(&self) -> Option<usize>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_outside_the_tree_or_oversize_are_refused() {
        let message = |topic: &str, bytes: usize| Message {
            topic: topic.to_owned(),
            payload: Bytes::from(vec![0; bytes]),
            retain: false,
            qos: Qos::AtLeastOnce,
        };
        assert!(message("edgefleet/v1/trust/head", MAX_PAYLOAD_BYTES).check().is_ok());
        assert!(message("edgefleet/v1/trust/head", MAX_PAYLOAD_BYTES + 1).check().is_err());
        for topic in ["", "edgefleet/v1", "edgefleet/v10/x", "edgefleet/v1/devices/+/ack", "$SYS/x", "a/#"] {
            assert!(message(topic, 1).check().is_err(), "{topic:?}");
        }
    }
}
