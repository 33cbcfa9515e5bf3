//! Which requests of a slot a device keeps, how many, how redacted, and when they travel.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, str::FromStr};

/// The random audit share is never below it: without it nothing unbiased can be said of a model.
pub const MIN_AUDIT_SHARE: f64 = 1e-4;
/// Captures that one request with many rows may become.
pub const MAX_SHARE_OF_REQUEST: usize = 16;
const MAX_RULES: usize = 16;
const MAX_REDACTIONS: usize = 32;

/// Why an input was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    Random,
    LowMargin,
    NearThreshold,
    Entropy,
    Ood,
    Disagreement,
    ClassQuota,
    OutOfRange,
    FeedbackNegative,
    Schedule,
    OnCommand,
}

impl Reason {
    pub const ALL: [Self; 11] = [
        Self::Random,
        Self::LowMargin,
        Self::NearThreshold,
        Self::Entropy,
        Self::Ood,
        Self::Disagreement,
        Self::ClassQuota,
        Self::OutOfRange,
        Self::FeedbackNegative,
        Self::Schedule,
        Self::OnCommand,
    ];
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::LowMargin => "low-margin",
            Self::NearThreshold => "near-threshold",
            Self::Entropy => "entropy",
            Self::Ood => "ood",
            Self::Disagreement => "disagreement",
            Self::ClassQuota => "class-quota",
            Self::OutOfRange => "out-of-range",
            Self::FeedbackNegative => "feedback-negative",
            Self::Schedule => "schedule",
            Self::OnCommand => "on-command",
        }
    }
    /// Known only some time after the answer, so it has no part in the inclusion probability.
    pub fn is_late(self) -> bool {
        matches!(self, Self::Disagreement | Self::FeedbackNegative)
    }
}
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl FromStr for Reason {
    type Err = PolicyError;
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let found = Self::ALL.into_iter().find(|reason| reason.as_str() == text);
        found.ok_or_else(|| PolicyError::UnknownReason { text: text.chars().take(40).collect() })
    }
}

/// Why a policy is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("a capture policy is not of the expected form: {reason}")]
    Malformed { reason: String },
    #[error("{text:?} is no capture reason; known are {}", Reason::ALL.map(Reason::as_str).join(", "))]
    UnknownReason { text: String },
    #[error("`{field}` is {found}; {wanted}")]
    Range { field: String, found: String, wanted: &'static str },
    #[error("strategy `{reason}` is named twice")]
    Twice { reason: Reason },
    #[error("{found} {what}, at most {limit} are allowed")]
    TooMany { what: &'static str, found: usize, limit: usize },
}

/// Captures in one minute, hour and day, counted from the agent's start; no limit where absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_hour: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_day: Option<u32>,
}

/// The audit sample. Never a hard stop: each time a quota's worth was taken within its period the share
/// halves, so every row keeps a known probability above 0 and a period takes about
/// `quota * log2(rows * share / quota)` at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RandomRule {
    /// Of all rows, [`MIN_AUDIT_SHARE`] to 1.
    pub share: f64,
    pub quota: Quota,
}
impl Default for RandomRule {
    fn default() -> Self {
        Self { share: 0.01, quota: Quota { per_minute: None, per_hour: Some(60), per_day: Some(500) } }
    }
}

/// What makes a row worth keeping, apart from chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "strategy", rename_all = "kebab-case")]
pub enum Strategy {
    /// The two highest scores are closer than this.
    LowMargin { below: f64 },
    /// The highest score is within this distance of a decision threshold.
    NearThreshold { threshold: f64, within: f64 },
    /// `1 + sum(p ln p) / ln C` is below this: 1 is certain, 0 knows nothing.
    Entropy { below: f64 },
    /// The monitor calls the input foreign to the training data.
    Ood,
    /// The candidate beside the active bundle says something else. Known late.
    Disagreement,
    /// So many of each predicted class a day.
    ClassQuota { per_class_per_day: u32 },
    /// The monitor found input values outside the declared range.
    OutOfRange,
    /// A label says that the answer was wrong. Known late: inputs of the last moments are held for it.
    FeedbackNegative,
    /// One row after every so many seconds.
    Schedule { every_secs: u64 },
}

impl Strategy {
    pub fn reason(&self) -> Reason {
        match self {
            Self::LowMargin { .. } => Reason::LowMargin,
            Self::NearThreshold { .. } => Reason::NearThreshold,
            Self::Entropy { .. } => Reason::Entropy,
            Self::Ood => Reason::Ood,
            Self::Disagreement => Reason::Disagreement,
            Self::ClassQuota { .. } => Reason::ClassQuota,
            Self::OutOfRange => Reason::OutOfRange,
            Self::FeedbackNegative => Reason::FeedbackNegative,
            Self::Schedule { .. } => Reason::Schedule,
        }
    }
}

/// A strategy and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    #[serde(flatten)]
    pub strategy: Strategy,
    #[serde(default)]
    pub quota: Quota,
}

/// What a device keeps of an input instead of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Redaction {
    /// Count, minimum, maximum, mean and standard deviation.
    Drop,
    /// The SHA-256 of its bytes, to recognise the same input again.
    Hash,
}

impl<'de> Deserialize<'de> for Redaction {
    /// What a newer controller calls otherwise is the strictest one known here.
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(if String::deserialize(d)? == "hash" { Self::Hash } else { Self::Drop })
    }
}

/// When captures travel, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UploadRules {
    pub enabled: bool,
    /// Also over a link that the device's own settings call metered.
    pub metered: bool,
    /// Of this slot, within 24 hours; 0 is no limit.
    pub bytes_per_day: u64,
    /// On average while uploading; 0 is no limit.
    pub bytes_per_second: u64,
}
impl Default for UploadRules {
    fn default() -> Self {
        Self { enabled: true, metered: false, bytes_per_day: 50 << 20, bytes_per_second: 256 << 10 }
    }
}

/// Everything about the captures of one slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CapturePolicy {
    pub random: RandomRule,
    #[serde(deserialize_with = "known_rules")]
    pub rules: Vec<Rule>,
    /// By name of the input; `*` is every input that is not named.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub redact: BTreeMap<String, Redaction>,
    /// What the device's captures may take on its disk, all slots together the largest of them.
    pub disk_bytes: u64,
    /// Drop what looks like a capture of the last hour. Never applied to the audit sample.
    pub deduplicate: bool,
    pub upload: UploadRules,
}
impl Default for CapturePolicy {
    /// 1 % audit, and up to 100 uncertain answers a day.
    fn default() -> Self {
        let quota = Quota { per_minute: Some(10), per_hour: Some(50), per_day: Some(100) };
        Self {
            random: RandomRule::default(),
            rules: vec![Rule { strategy: Strategy::LowMargin { below: 0.1 }, quota }],
            redact: BTreeMap::new(),
            disk_bytes: 64 << 20,
            deduplicate: true,
            upload: UploadRules::default(),
        }
    }
}

/// The rules this program knows; a device must not stop at those of a newer controller.
fn known_rules<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Rule>, D::Error> {
    let all = Vec::<Value>::deserialize(d)?;
    Ok(all.into_iter().filter_map(|rule| serde_json::from_value(rule).ok()).collect())
}

/// The first place of `given` that `understood` has not, or has otherwise.
fn lost(path: &str, given: &Value, understood: &Value) -> Option<String> {
    match (given, understood) {
        (Value::Null, _) => None,
        (Value::Object(given), Value::Object(understood)) => given.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            lost(&path, value, understood.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(given), Value::Array(understood)) if given.len() == understood.len() => {
            let pairs = given.iter().zip(understood).enumerate();
            pairs
                .into_iter()
                .find_map(|(at, (given, understood))| lost(&format!("{path}[{at}]"), given, understood))
        }
        (Value::Number(given), Value::Number(understood)) if given.as_f64() == understood.as_f64() => None,
        (given, understood) if given == understood => None,
        _ => Some(path.to_owned()),
    }
}

impl CapturePolicy {
    /// Reads what a person wrote: nothing in it may be unknown, and it must be acceptable.
    ///
    /// # Errors
    /// [`PolicyError`], every mistake found.
    pub fn read(given: Value) -> Result<Self, Vec<PolicyError>> {
        let malformed = |reason: String| vec![PolicyError::Malformed { reason }];
        let policy: Self = serde_json::from_value(given.clone()).map_err(|e| malformed(e.to_string()))?;
        let understood = serde_json::to_value(&policy).map_err(|e| malformed(e.to_string()))?;
        if let Some(path) = lost("", &given, &understood) {
            return Err(malformed(format!("`{path}` is not understood")));
        }
        policy.check().map(|()| policy)
    }

    /// All mistakes at once; devices clamp instead ([`Self::audit_share`]), so that a policy of a newer
    /// controller cannot stop them.
    ///
    /// # Errors
    /// Every mistake found.
    pub fn check(&self) -> Result<(), Vec<PolicyError>> {
        let mut wrong = Vec::new();
        let mut range = |field: &str, found: f64, low: f64, high: f64, wanted: &'static str| {
            if !(low..=high).contains(&found) {
                let (field, found) = (field.to_owned(), found.to_string());
                wrong.push(PolicyError::Range { field, found, wanted });
            }
        };
        range(
            "random.share",
            self.random.share,
            MIN_AUDIT_SHARE,
            1.0,
            "an audit share is never 0: 0.0001 to 1",
        );
        range(
            "disk_bytes",
            self.disk_bytes as f64,
            (1u64 << 20) as f64,
            (1u64 << 36) as f64,
            "1 MiB to 64 GiB are allowed",
        );
        for rule in &self.rules {
            let field = rule.strategy.reason().as_str();
            match rule.strategy {
                Strategy::LowMargin { below } | Strategy::Entropy { below } => {
                    range(&format!("{field}.below"), below, 0.0, 1.0, "0 to 1 are allowed");
                }
                Strategy::NearThreshold { threshold, within } => {
                    range(&format!("{field}.threshold"), threshold, 0.0, 1.0, "0 to 1 are allowed");
                    range(&format!("{field}.within"), within, 0.0, 1.0, "0 to 1 are allowed");
                }
                Strategy::Schedule { every_secs } => {
                    let every = every_secs as f64;
                    range(&format!("{field}.every_secs"), every, 1.0, 31_536_000.0, "1 s to a year");
                }
                Strategy::ClassQuota { per_class_per_day } => {
                    let each = f64::from(per_class_per_day);
                    range(&format!("{field}.per_class_per_day"), each, 1.0, 100_000.0, "1 to 100000");
                }
                Strategy::Ood
                | Strategy::Disagreement
                | Strategy::OutOfRange
                | Strategy::FeedbackNegative => {}
            }
        }
        for (at, rule) in self.rules.iter().enumerate() {
            let reason = rule.strategy.reason();
            if self.rules[..at].iter().any(|other| other.strategy.reason() == reason) {
                wrong.push(PolicyError::Twice { reason });
            }
        }
        for (what, found, limit) in
            [("strategies", self.rules.len(), MAX_RULES), ("redactions", self.redact.len(), MAX_REDACTIONS)]
        {
            if found > limit {
                wrong.push(PolicyError::TooMany { what, found, limit });
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// The audit share a device works with, whatever stands there: never 0, never above 1.
    pub fn audit_share(&self) -> f64 {
        match self.random.share {
            share if share.is_finite() => share.clamp(MIN_AUDIT_SHARE, 1.0),
            _ => MIN_AUDIT_SHARE,
        }
    }

    /// What happens to an input of this name.
    pub fn redaction(&self, input: &str) -> Option<Redaction> {
        self.redact.get(input).or_else(|| self.redact.get("*")).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_people_write_it_and_names_every_mistake() {
        let text = r#"{"random": {"share": 0.0}, "redact": {"*": "hash"}, "disk_bytes": 1,
            "rules": [{"strategy": "low-margin", "below": 2.0, "quota": {"per_day": 5}},
                      {"strategy": "low-margin", "below": 0.1}, {"strategy": "ood"}]}"#;
        let policy: CapturePolicy = serde_json::from_str(text).unwrap();
        let wrong = policy.check().unwrap_err();
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        assert_eq!(policy.audit_share(), MIN_AUDIT_SHARE);
        assert_eq!(policy.redaction("image"), Some(Redaction::Hash));
        assert_eq!(policy.rules[0].quota.per_day, Some(5));
        assert!(CapturePolicy::default().check().is_ok());
        let again: CapturePolicy = serde_json::from_slice(&serde_json::to_vec(&policy).unwrap()).unwrap();
        assert_eq!(again, policy);
    }

    #[test]
    fn people_are_told_of_words_that_devices_pass_over() {
        for (text, path) in [
            (r#"{"randon": {}}"#, "randon"),
            (r#"{"random": {"share": 0.5, "quota": {"per_week": 3}}}"#, "random.quota.per_week"),
            (r#"{"rules": [{"strategy": "telepathy"}]}"#, "rules"),
            (r#"{"rules": [{"strategy": "ood", "below": 1}]}"#, "rules[0].below"),
            (r#"{"redact": {"face": "blur"}}"#, "redact.face"),
        ] {
            let wrong = CapturePolicy::read(serde_json::from_str(text).unwrap()).unwrap_err();
            assert!(wrong[0].to_string().contains(&format!("`{path}`")), "{wrong:?}");
            let device: CapturePolicy = serde_json::from_str(text).unwrap();
            assert!(device.rules.len() <= 1 && device.redaction("face") != Some(Redaction::Hash), "{text}");
        }
        let whole = serde_json::to_value(CapturePolicy::default()).unwrap();
        assert_eq!(CapturePolicy::read(whole).unwrap(), CapturePolicy::default());
    }

    #[test]
    fn reasons_are_words() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse::<Reason>().unwrap(), reason);
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        assert!("Random".parse::<Reason>().is_err());
    }
}
