//! The small control messages. All JSON; unknown fields are ignored, another schema is refused.

use crate::{
    digest::EnvelopeDigest,
    ids::{BootId, DeviceId, MessageId, PredictionId, SlotName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub const MESSAGE_SCHEMA: u32 = 1;

/// Why a control message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("message has {found} bytes, {limit} are allowed")]
    TooLarge { found: usize, limit: usize },
    #[error("message is not valid JSON of the expected form: {reason}")]
    Malformed { reason: String },
    #[error("message schema {found} is not understood, this program knows {known}")]
    UnknownSchema { found: u64, known: u32 },
}

/// Parses a JSON message of at most `limit` bytes whose `schema` must be `known`.
///
/// # Errors
/// [`MessageError`].
pub fn parse<T: DeserializeOwned>(bytes: &[u8], known: u32, limit: usize) -> Result<T, MessageError> {
    if bytes.len() > limit {
        return Err(MessageError::TooLarge { found: bytes.len(), limit });
    }
    #[derive(Deserialize)]
    struct Head {
        schema: u64,
    }
    let malformed = |e: serde_json::Error| MessageError::Malformed { reason: e.to_string() };
    let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
    if head.schema != u64::from(known) {
        return Err(MessageError::UnknownSchema { found: head.schema, known });
    }
    serde_json::from_slice(bytes).map_err(malformed)
}

/// On `presence`, retained; also the last will (`online: false, reason: "connection lost"`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    pub schema: u32,
    pub device: DeviceId,
    pub boot: BootId,
    pub online: bool,
    pub reason: String,
}

/// On `trust/head`, retained: where the chain of trust documents ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustHead {
    pub schema: u32,
    pub version: u64,
    pub digest: EnvelopeDigest,
}

/// On `command`, inside a DSSE envelope of the controller role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub schema: u32,
    pub id: MessageId,
    pub device: DeviceId,
    pub nonce: String,
    /// Not acted upon afterwards; the id is remembered until then.
    pub deadline: Timestamp,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// Answer at once.
    Ping,
    /// Report in full and send what waits in the outbox.
    Report,
    /// Keep the next so many rows of a slot for labelling, whatever its policy says.
    Capture { slot: SlotName, count: u32 },
}

/// On `reply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    pub schema: u32,
    pub id: MessageId,
    pub device: DeviceId,
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// On `label`: truths posted at the controller, to be joined on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    pub schema: u32,
    pub source: String,
    pub labels: Vec<Label>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub prediction: PredictionId,
    /// Class name as in the bundle's labels, or its index.
    pub label: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_ignored_and_unknown_majors_refused() {
        let head = |schema: u32| {
            format!(r#"{{"schema":{schema},"version":3,"digest":"sha256:{}","new":1}}"#, "0".repeat(64))
        };
        assert_eq!(parse::<TrustHead>(head(1).as_bytes(), 1, 1000).unwrap().version, 3);
        assert_eq!(
            parse::<TrustHead>(head(2).as_bytes(), 1, 1000),
            Err(MessageError::UnknownSchema { found: 2, known: 1 })
        );
        assert!(matches!(
            parse::<TrustHead>(head(1).as_bytes(), 1, 10),
            Err(MessageError::TooLarge { limit: 10, .. })
        ));
    }
}
