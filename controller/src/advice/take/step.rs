//! The steps.

use super::words::{encoded, quoted};
use crate::rollout::Plan;
use edgefleet_shared::{
    capture::Reason,
    ids::{BundleName, DeviceId},
    selector::Selector,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One thing to do or to look at, in words and typed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// One sentence.
    pub text: String,
    /// Pages of the controller, as paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Complete command lines; each runs as it stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub commands: Vec<String>,
    #[serde(flatten)]
    pub doing: Doing,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Doing {
    /// Nothing: a person looks.
    Look,
    /// Nothing: a person changes these lines of `what`.
    ByHand {
        what: String,
        lines: Vec<String>,
    },
    /// The filter of the labelling page; `waiting` captures fit it now.
    OpenQueue {
        filter: QueueFilter,
        waiting: u64,
        wanted: u64,
    },
    SetRule {
        rule: String,
        order: u32,
        /// Absent: the whole fleet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        select: Option<Selector>,
        set: Map<String, Value>,
        /// It ends by itself after so many days.
        days: u32,
    },
    /// A bundle of the same model blobs, for a publisher to sign.
    MakeBundle {
        from: BundleName,
        bundle: BundleName,
        change: Change,
    },
    StartRollout {
        plan: Box<Plan>,
    },
}

/// What differs in a bundle that is made without the model's source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Change {
    Calibration,
    /// The baseline, from so many rows of devices.
    Baseline {
        rows: u64,
    },
    /// The one threshold of the pipeline.
    Threshold {
        from: f64,
        to: f64,
    },
}

impl Change {
    pub fn word(self) -> &'static str {
        match self {
            Self::Calibration => "calibration",
            Self::Baseline { .. } => "baseline",
            Self::Threshold { .. } => "threshold",
        }
    }
}

/// Which captures the labelling page shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueFilter {
    pub bundle: BundleName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Selector>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// Any of them; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// Predicted classes, any of them; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
}

impl QueueFilter {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![("model", self.bundle.model.to_string()), ("bundle", self.bundle.to_string())];
        pairs.extend(self.select.iter().map(|select| ("select", select.to_string())));
        pairs.extend(self.devices.iter().map(|device| ("device", device.to_string())));
        pairs.extend(self.reasons.iter().map(|reason| ("reason", reason.to_string())));
        pairs.extend(self.classes.iter().map(|class| ("class", class.clone())));
        pairs
    }

    /// The labelling page with this filter.
    pub fn link(&self) -> String {
        let query: Vec<_> =
            self.pairs().into_iter().map(|(key, value)| format!("{key}={}", encoded(&value))).collect();
        format!("/label?{}", query.join("&"))
    }

    /// The same captures on the command line.
    pub fn command(&self) -> String {
        let flags = self.pairs().into_iter().map(|(key, value)| format!(" --{key} {}", quoted(&value)));
        format!("edgefleet capture list --state unlabelled{}", flags.collect::<String>())
    }
}
