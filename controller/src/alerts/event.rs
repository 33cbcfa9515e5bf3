//! What happened, in words for people and numbers for programs.

use edgefleet_shared::{
    ids::{BundleName, DeviceId, RolloutId, SlotName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Longest title, characters: it becomes the subject of a mail.
const MAX_TITLE: usize = 200;
/// Longest text, characters.
const MAX_TEXT: usize = 4_000;
/// Most bytes of JSON that the numbers may have.
const MAX_NUMBERS: usize = 4_096;
/// Bytes of the digest in an id: 96 bits.
const ID_BYTES: usize = 12;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
        )]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $text)] $variant,)*
        }
        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| UnknownWord {
                    what: $what,
                    text: text.chars().take(40).collect(),
                    known: Self::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

/// A text that is none of the known words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}; known are {known}")]
pub struct UnknownWord {
    what: &'static str,
    text: String,
    known: String,
}

words! {
    /// What sort of thing happened. The words are part of what receivers see.
    AlertKind, "kind of alert" {
        FindingOpened = "finding.opened",
        FindingResolved = "finding.resolved",
        /// Several observations with one cause: drift, a device that fails.
        IncidentOpened = "incident.opened",
        IncidentResolved = "incident.resolved",
        RolloutPaused = "rollout.paused",
        /// It stopped for good, or its devices go back.
        RolloutAborted = "rollout.aborted",
        RolloutFinished = "rollout.finished",
        /// Somebody asked whether alerts arrive.
        Test = "test",
    }
}

words! {
    /// How much it matters, least first.
    Severity, "severity" {
        Info = "info",
        Warning = "warning",
        /// A person must act.
        Critical = "critical",
    }
}

/// What an alert is about, as far as it is about one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Subject {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub bundle: Option<BundleName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub rollout: Option<RolloutId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub slot: Option<SlotName>,
}

impl Subject {
    /// `(what, which)` of all that are named.
    pub fn parts(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("device", self.device.as_ref().map(ToString::to_string)),
            ("bundle", self.bundle.as_ref().map(ToString::to_string)),
            ("rollout", self.rollout.as_ref().map(ToString::to_string)),
            ("slot", self.slot.as_ref().map(ToString::to_string)),
        ];
        all.into_iter().filter_map(|(what, which)| Some((what, which?))).collect()
    }
}

/// One thing that happened and that people want to hear of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AlertEvent {
    /// `alr-` and 24 hex digits. The same occurrence has the same id, however often it is raised.
    pub id: String,
    pub kind: AlertKind,
    pub severity: Severity,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// One line.
    pub title: String,
    pub text: String,
    #[serde(default)]
    pub subject: Subject,
    /// What the text's numbers are, for programs.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub numbers: Map<String, Value>,
}

impl AlertEvent {
    /// `occurrence` names this one occurrence among all of its kind, for ever: `dev-1/duplicate-identity/TIME`.
    pub fn new(
        kind: AlertKind,
        severity: Severity,
        at: Timestamp,
        occurrence: &str,
        title: &str,
        text: &str,
    ) -> Self {
        let mut hash = Sha256::new();
        hash.update(kind.as_str());
        hash.update([0]);
        hash.update(occurrence);
        let digest = hash.finalize();
        Self {
            id: format!("alr-{}", edgefleet_shared::digest::encode_hex(&digest[..ID_BYTES])),
            kind,
            severity,
            at,
            title: one_line(title),
            text: text.chars().take(MAX_TEXT).collect(),
            subject: Subject::default(),
            numbers: Map::new(),
        }
    }
    #[must_use]
    pub fn device(mut self, device: &DeviceId) -> Self {
        self.subject.device = Some(device.clone());
        self
    }
    #[must_use]
    pub fn bundle(mut self, bundle: &BundleName) -> Self {
        self.subject.bundle = Some(bundle.clone());
        self
    }
    #[must_use]
    pub fn rollout(mut self, rollout: &RolloutId) -> Self {
        self.subject.rollout = Some(rollout.clone());
        self
    }
    #[must_use]
    pub fn slot(mut self, slot: &SlotName) -> Self {
        self.subject.slot = Some(slot.clone());
        self
    }
    /// More than 4 KiB of JSON are left out.
    #[must_use]
    pub fn numbers(mut self, numbers: Map<String, Value>) -> Self {
        let fits = serde_json::to_vec(&numbers).is_ok_and(|json| json.len() <= MAX_NUMBERS);
        self.numbers = if fits { numbers } else { Map::new() };
        self
    }
}

/// Controls have no place in a mail's subject.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TITLE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_occurrence_has_one_id_and_texts_are_bounded() {
        let at = Timestamp::from_secs(1);
        let of = |kind, occurrence: &str| {
            AlertEvent::new(kind, Severity::Info, at, occurrence, "a\r\nBcc: x", &"é".repeat(9_000))
        };
        let one = of(AlertKind::Test, "a");
        assert_eq!(one.id, of(AlertKind::Test, "a").id);
        assert_ne!(one.id, of(AlertKind::Test, "b").id);
        assert_ne!(one.id, of(AlertKind::FindingOpened, "a").id);
        assert_eq!((one.id.len(), one.text.chars().count()), (28, MAX_TEXT));
        assert_eq!(one.title, "a  Bcc: x");
        let many = (0..1_000).map(|n| (n.to_string(), Value::from(n))).collect();
        assert!(one.numbers(many).numbers.is_empty());
    }

    #[test]
    fn words_are_the_same_in_texts_and_documents() {
        for kind in AlertKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        assert!(Severity::Info < Severity::Warning && Severity::Warning < Severity::Critical);
        assert!("loud".parse::<Severity>().unwrap_err().to_string().contains("critical"));
    }
}
