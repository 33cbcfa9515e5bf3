//! What a rule says: to whom it applies, since when, with which numbers, and what to do.

use super::action::Action;
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// The rules of `research/edge-serving.md` 7.6. The names are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RuleId {
    A01,
    A02,
    A03,
    A04,
    A05,
    A06,
    A07,
    A08,
    A09,
    A10,
    A11,
    A12,
    A13,
    A14,
    A15,
    A16,
    A17,
    A18,
    A19,
    A20,
    A21,
    A22,
    A23,
    A24,
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Something could be better.
    Info,
    /// Somebody should look within days.
    Warning,
    /// Answers are probably wrong now.
    Error,
}

/// How likely the rule is right about the cause, not how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    Low,
    Medium,
    High,
}

/// What a finding, or a slice of evidence, is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Scope {
    /// A bundle wherever it runs.
    Bundle {
        bundle: BundleName,
    },
    /// The devices of one cohort (labels chosen per model), with one bundle.
    Cohort {
        bundle: BundleName,
        cohort: String,
    },
    Device {
        bundle: BundleName,
        cohort: String,
        device: DeviceId,
    },
}

impl Scope {
    pub fn bundle(&self) -> &BundleName {
        match self {
            Self::Bundle { bundle } | Self::Cohort { bundle, .. } | Self::Device { bundle, .. } => bundle,
        }
    }
    /// Whether everything `other` is about is part of this.
    pub fn covers(&self, other: &Self) -> bool {
        let same = self.bundle() == other.bundle();
        same && match (self, other) {
            (Self::Bundle { .. }, _) => true,
            (
                Self::Cohort { cohort, .. },
                Self::Cohort { cohort: theirs, .. } | Self::Device { cohort: theirs, .. },
            ) => cohort == theirs,
            (Self::Device { device, .. }, Self::Device { device: theirs, .. }) => device == theirs,
            (Self::Cohort { .. } | Self::Device { .. }, _) => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle { bundle } => write!(f, "{bundle}"),
            Self::Cohort { bundle, cohort } => write!(f, "{bundle} in {cohort}"),
            Self::Device { bundle, device, .. } => write!(f, "{bundle} on {device}"),
        }
    }
}

/// Small: at most [`Plot::POINTS`] points a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Plot {
    /// Shares by bin on both sides; `edges` between the bins, or `names` of categories.
    Histogram {
        title: String,
        edges: Vec<f64>,
        names: Vec<String>,
        now: Vec<f64>,
        reference: Vec<f64>,
    },
    /// Lines over x; each (name, points).
    Lines {
        title: String,
        x: String,
        y: String,
        series: Vec<(String, Vec<(f64, f64)>)>,
    },
    Table {
        title: String,
        columns: Vec<String>,
        rows: Vec<Vec<String>>,
    },
}

impl Plot {
    pub const POINTS: usize = 200;
}

/// In plain words, with numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Text {
    pub what: String,
    pub why: String,
    pub to_do: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub rule: RuleId,
    pub scope: Scope,
    /// Tells findings of one rule and scope apart: a channel, a pair of classes, a hardware.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    pub severity: Severity,
    pub confidence: Confidence,
    pub since: Timestamp,
    pub numbers: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plots: Vec<Plot>,
    pub text: Text,
    pub action: Action,
}

/// What makes two findings the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FindingKey {
    pub rule: RuleId,
    pub scope: Scope,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Finding {
    pub(super) fn new(rule: RuleId, scope: Scope, since: Timestamp, action: Action) -> Self {
        Self {
            rule,
            scope,
            detail: String::new(),
            severity: Severity::Warning,
            confidence: Confidence::Medium,
            since,
            numbers: BTreeMap::new(),
            plots: Vec::new(),
            text: Text::default(),
            action,
        }
    }
    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
    pub(super) fn rated(mut self, severity: Severity, confidence: Confidence) -> Self {
        (self.severity, self.confidence) = (severity, confidence);
        self
    }
    /// Numbers that are not finite are left out.
    pub(super) fn number(mut self, name: &str, value: f64) -> Self {
        if value.is_finite() {
            self.numbers.insert(name.to_owned(), value);
        }
        self
    }
    pub(super) fn plot(mut self, plot: Plot) -> Self {
        self.plots.push(plot);
        self
    }
    pub(super) fn says(mut self, what: String, why: &str, to_do: String) -> Self {
        self.text = Text { what, why: why.to_owned(), to_do };
        self
    }
    pub fn key(&self) -> FindingKey {
        FindingKey { rule: self.rule, scope: self.scope.clone(), detail: self.detail.clone() }
    }
}

/// `0.123` as `12.3 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
