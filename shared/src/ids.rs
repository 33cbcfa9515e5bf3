//! Names of things, each its own type: parsed once at the border, trusted inside.
//!
//! All of them travel as text. The grammar is narrow on purpose: an id goes into MQTT topics, file
//! names, certificate subjects and NATS or RabbitMQ mappings unescaped.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("a {kind} must not be empty")]
    Empty { kind: &'static str },
    #[error("a {kind} has at most {limit} characters, this one has {found}")]
    TooLong { kind: &'static str, found: usize, limit: usize },
    #[error("a {kind} may hold only {allowed}, not {found:?}")]
    BadCharacter { kind: &'static str, found: char, allowed: &'static str },
    #[error("{text:?} is not a {kind}; write it as {wanted}")]
    Malformed { kind: &'static str, text: String, wanted: &'static str },
}

/// Checks length and alphabet; shared by every text id below.
fn check(
    kind: &'static str,
    text: &str,
    limit: usize,
    allowed: &'static str,
    ok: fn(char) -> bool,
) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if text.len() > limit {
        return Err(IdError::TooLong { kind, found: text.len(), limit });
    }
    match text.chars().find(|c| !ok(*c)) {
        Some(found) => Err(IdError::BadCharacter { kind, found, allowed }),
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $limit:literal, $allowed:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check($kind, text, $limit, $allowed, $ok)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

text_id!(
    /// One enrolled agent. Made by the controller, never reused; equals the MQTT client id, the
    /// certificate's common name and its DNS name.
    DeviceId, "device id", 64, "lower-case letters, digits and `-`",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
);
text_id!(
    /// A named lineage of bundles: `digits`. Also the name clients call it by.
    ModelName, "model name", 64, "lower-case letters, digits, `-`, `_` and `.`",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.')
);
text_id!(
    /// The place on a device that serves one model by name. Usually the model's own name;
    /// `engine/...` and `agent` are reserved for engine packs and the agent itself.
    SlotName, "slot name", 80, "lower-case letters, digits, `-`, `_`, `.` and `/`",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.' | '/')
);
text_id!(
    /// One rollout; an assignment by hand is a rollout of one stage.
    RolloutId, "rollout id", 40, "lower-case letters, digits and `-`",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
);
text_id!(
    /// Correlates a request with its answer over MQTT.
    MessageId, "message id", 64, "letters, digits and `-`",
    |c| c.is_ascii_alphanumeric() || c == '-'
);
text_id!(
    /// One join code given out by `edgefleet device invite`.
    InviteId, "invite id", 40, "lower-case letters, digits and `-`",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
);
text_id!(
    /// One monitored number or category of a bundle: `input/pixels/mean`, `confidence`.
    ChannelId, "channel id", 96, "letters, digits, `-`, `_`, `.` and `/`",
    |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/')
);

/// Engines that packs can bring. Their names are theirs alone: no model may have one.
const ENGINES: [&str; 1] = ["onnxruntime"];
/// Slots of engine packs begin with it.
const ENGINE_PREFIX: &str = "engine/";

impl ModelName {
    /// Whether bundles of this name are engine packs.
    pub fn is_engine(&self) -> bool {
        ENGINES.contains(&self.as_str())
    }
}

impl SlotName {
    /// Whether it is a place for engine packs, of an engine known here or not.
    pub fn is_engine(&self) -> bool {
        self.0.starts_with(ENGINE_PREFIX)
    }

    /// Whether bundles of this name belong here: packs of an engine into the slot of that engine, models
    /// into any other slot.
    pub fn takes(&self, name: &ModelName) -> bool {
        match self.0.strip_prefix(ENGINE_PREFIX) {
            Some(engine) => name.is_engine() && engine == name.as_str(),
            None => !name.is_engine(),
        }
    }
}

/// The slot of this name where nothing else is said: a model's own name, `engine/NAME` for an engine.
impl From<&ModelName> for SlotName {
    fn from(model: &ModelName) -> Self {
        if model.is_engine() { Self(format!("{ENGINE_PREFIX}{model}")) } else { Self(model.0.clone()) }
    }
}

/// 128 random bits drawn at each start of an agent, written as 32 hexadecimal digits.
///
/// Two agents that share an identity show up as two boots that alternate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootId([u8; 16]);

impl BootId {
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}
impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}
impl FromStr for BootId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wanted = "32 lower-case hexadecimal digits";
        let bad = || IdError::Malformed { kind: "boot id", text: text.chars().take(40).collect(), wanted };
        let mut bytes = [0; 16];
        crate::digest::decode_hex(text, &mut bytes).ok_or_else(bad)?;
        Ok(Self(bytes))
    }
}
impl Serialize for BootId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for BootId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// A bundle by its name for people: `digits@3`, the third release of model `digits`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BundleName {
    pub model: ModelName,
    /// Grows with every release of the model; also the version of the Open Inference Protocol.
    pub counter: u64,
}
impl fmt::Display for BundleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.model, self.counter)
    }
}
impl fmt::Debug for BundleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleName({self})")
    }
}
impl FromStr for BundleName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Malformed {
            kind: "bundle name",
            text: text.chars().take(100).collect(),
            wanted: "`model@counter`, for example `digits@3`",
        };
        let (model, counter) = text.split_once('@').ok_or_else(bad)?;
        let counter = counter.parse::<u64>().ok().filter(|n| *n > 0).ok_or_else(bad)?;
        Ok(Self { model: model.parse()?, counter })
    }
}
impl Serialize for BundleName {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for BundleName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// Which try of which rollout brought a bundle to a device; echoed in reports and windows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptId {
    pub rollout: RolloutId,
    pub number: u32,
}
impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.rollout, self.number)
    }
}

/// One answered inference: `device.boot.sequence`. Carries device and boot so that a late label
/// finds its way back without a directory.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PredictionId {
    pub device: DeviceId,
    pub boot: BootId,
    pub sequence: u64,
}
impl fmt::Display for PredictionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.device, self.boot, self.sequence)
    }
}
impl fmt::Debug for PredictionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PredictionId({self})")
    }
}
impl FromStr for PredictionId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bad = || IdError::Malformed {
            kind: "prediction id",
            text: text.chars().take(140).collect(),
            wanted: "`device.boot.sequence`, as returned with the prediction",
        };
        let mut parts = text.splitn(3, '.');
        let mut next = || parts.next().ok_or_else(bad);
        let (device, boot, sequence) = (next()?, next()?, next()?);
        Ok(Self {
            device: device.parse()?,
            boot: boot.parse()?,
            sequence: sequence.parse().map_err(|_| bad())?,
        })
    }
}
impl Serialize for PredictionId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for PredictionId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_ids_refuse_what_would_break_a_topic() {
        for (text, good) in [
            ("dev-1", true),
            ("", false),
            ("Dev", false),
            ("a/b", false),
            ("a+", false),
            ("#", false),
            ("a.b", false),
            (&"x".repeat(64), true),
            (&"x".repeat(65), false),
        ] {
            assert_eq!(text.parse::<DeviceId>().is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn engines_have_slots_of_their_own() {
        let name = |text: &str| text.parse::<ModelName>().unwrap();
        let slot = |text: &str| text.parse::<SlotName>().unwrap();
        assert_eq!(SlotName::from(&name("onnxruntime")), slot("engine/onnxruntime"));
        assert_eq!(SlotName::from(&name("digits")), slot("digits"));
        for (place, what, good) in [
            ("engine/onnxruntime", "onnxruntime", true),
            ("engine/onnxruntime", "digits", false),
            ("engine/digits", "digits", false),
            ("engine/other", "onnxruntime", false),
            ("onnxruntime", "onnxruntime", false),
            ("line-2/digits", "digits", true),
        ] {
            assert_eq!(slot(place).takes(&name(what)), good, "{place} {what}");
        }
    }

    #[test]
    fn bundle_names_are_model_and_counter() {
        for (text, good) in
            [("digits@3", true), ("digits", false), ("digits@0", false), ("digits@x", false), ("@1", false)]
        {
            assert_eq!(text.parse::<BundleName>().is_ok(), good, "{text:?}");
        }
        assert_eq!("digits@3".parse::<BundleName>().unwrap().to_string(), "digits@3");
    }

    #[test]
    fn prediction_ids_survive_the_round_trip() {
        let id = PredictionId {
            device: "dev-1".parse().unwrap(),
            boot: BootId::from_random([0xab; 16]),
            sequence: 42,
        };
        assert_eq!(id.to_string().parse::<PredictionId>().unwrap(), id);
        for bad in ["", "dev-1", "dev-1.zz.1", "dev-1..", "Dev.00.1"] {
            assert!(bad.parse::<PredictionId>().is_err(), "{bad:?}");
        }
    }
}
