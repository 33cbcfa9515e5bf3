//! The MQTT topic tree and who may use which part of it in which direction.
//!
//! Every broker home asks [`device_may`] or is generated from the same table ([`DEVICE_RULES`]), so the
//! embedded broker and an external one cannot drift apart.

use crate::ids::DeviceId;
use std::fmt;

/// Everything of this protocol lies below this level; the major version is part of it.
pub const ROOT: &str = "edgefleet/v1";

/// Retained: version and digest of the newest trust document.
pub const TRUST_HEAD: &str = "edgefleet/v1/trust/head";

/// Largest MQTT payload either side accepts, in bytes. Broker research 8: engines agree up to 1 MiB;
/// blocks of up to 128 KiB and desired states stay far below.
pub const MAX_PAYLOAD_BYTES: usize = 256 * 1024;

/// What a device topic carries; the last level of `edgefleet/v1/devices/{id}/...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Channel {
    Desired,
    Reported,
    Presence,
    Telemetry,
    Fetch,
    Blocks,
    Command,
    Reply,
    Ack,
    Label,
}

/// Seen from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Publish,
    Subscribe,
}

/// The one direction each channel of its own a device may use. Nothing else is allowed to it but
/// subscribing [`TRUST_HEAD`].
pub const DEVICE_RULES: [(Channel, Direction); 10] = [
    (Channel::Desired, Direction::Subscribe),
    (Channel::Reported, Direction::Publish),
    (Channel::Presence, Direction::Publish),
    (Channel::Telemetry, Direction::Publish),
    (Channel::Fetch, Direction::Publish),
    (Channel::Blocks, Direction::Subscribe),
    (Channel::Command, Direction::Subscribe),
    (Channel::Reply, Direction::Publish),
    (Channel::Ack, Direction::Subscribe),
    (Channel::Label, Direction::Subscribe),
];

impl Channel {
    pub const ALL: [Self; 10] = [
        Self::Desired,
        Self::Reported,
        Self::Presence,
        Self::Telemetry,
        Self::Fetch,
        Self::Blocks,
        Self::Command,
        Self::Reply,
        Self::Ack,
        Self::Label,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Reported => "reported",
            Self::Presence => "presence",
            Self::Telemetry => "telemetry",
            Self::Fetch => "fetch",
            Self::Blocks => "blocks",
            Self::Command => "command",
            Self::Reply => "reply",
            Self::Ack => "ack",
            Self::Label => "label",
        }
    }

    fn from_level(level: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| channel.as_str() == level)
    }

    /// Topic of this channel of one device.
    pub fn of(self, device: &DeviceId) -> String {
        format!("{ROOT}/devices/{device}/{}", self.as_str())
    }

    /// Filter that matches this channel of every device; for controllers only.
    pub fn of_all(self) -> String {
        format!("{ROOT}/devices/+/{}", self.as_str())
    }
}
impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Splits a concrete topic of a device; `None` for anything else, wildcards included.
pub fn parse(topic: &str) -> Option<(DeviceId, Channel)> {
    let rest = topic.strip_prefix(ROOT)?.strip_prefix("/devices/")?;
    let (device, channel) = rest.split_once('/')?;
    Some((device.parse().ok()?, Channel::from_level(channel)?))
}

/// Whether `device` may use `topic` (or, subscribing, the filter `topic`) in `direction`.
///
/// Wildcards and `$share/...` filters never parse as an own topic, so they are refused, as are
/// topics of other devices. Applies to last wills too (they are publishes).
pub fn device_may(device: &DeviceId, direction: Direction, topic: &str) -> bool {
    if topic == TRUST_HEAD {
        return direction == Direction::Subscribe;
    }
    parse(topic)
        .is_some_and(|(owner, channel)| owner == *device && DEVICE_RULES.contains(&(channel, direction)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str) -> DeviceId {
        id.parse().unwrap()
    }

    #[test]
    fn each_channel_has_exactly_one_direction_for_its_owner_and_none_for_others() {
        for channel in Channel::ALL {
            let topic = channel.of(&device("dev-1"));
            let allowed = [Direction::Publish, Direction::Subscribe]
                .into_iter()
                .filter(|direction| device_may(&device("dev-1"), *direction, &topic))
                .count();
            assert_eq!(allowed, 1, "{topic}");
            for direction in [Direction::Publish, Direction::Subscribe] {
                assert!(!device_may(&device("dev-2"), direction, &topic), "{topic} by dev-2");
                // A prefix of the owner's id is somebody else.
                assert!(!device_may(&device("dev-"), direction, &topic), "{topic} by dev-");
            }
        }
    }

    #[test]
    fn wildcards_shared_filters_and_foreign_trees_are_refused() {
        let own = device("dev-1");
        for filter in [
            "#",
            "+/+/#",
            "edgefleet/v1/#",
            "edgefleet/v1/devices/+/desired",
            "edgefleet/v1/devices/dev-1/#",
            "edgefleet/v1/devices/dev-1/+",
            "edgefleet/v1/devices/dev-1",
            "edgefleet/v1/devices/dev-1/desired/x",
            "$share/g/edgefleet/v1/devices/dev-1/desired",
            "$SYS/broker/uptime",
            "edgefleet/v2/devices/dev-1/desired",
            "edgefleet/v1/trust/1",
            "edgefleet/v1/trust/+",
            "",
        ] {
            for direction in [Direction::Publish, Direction::Subscribe] {
                assert!(!device_may(&own, direction, filter), "{direction:?} {filter}");
            }
        }
        assert!(device_may(&own, Direction::Subscribe, TRUST_HEAD));
        assert!(!device_may(&own, Direction::Publish, TRUST_HEAD));
    }
}
