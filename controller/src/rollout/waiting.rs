//! Why nothing is happening, as a value: shown everywhere, decided nowhere else.

use super::stage::Bucket;
use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One thing a rollout waits for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitingOn {
    /// Index and name of the stage, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<(u16, String)>,
    #[serde(flatten)]
    pub what: What,
    pub since: Timestamp,
    /// When something happens by itself; what, the sentence says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    pub who: Who,
    /// For people.
    pub sentence: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    Author,
    /// Anybody but the author.
    OtherPerson,
    Operator,
    Devices,
    /// Time alone.
    Nobody,
    Controller,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "waiting-on", rename_all = "kebab-case")]
pub enum What {
    Submit,
    Approval {
        scope: super::approval::Scope,
    },
    Start,
    StartTime,
    Members {
        written: u64,
    },
    Rate {
        per_min: f64,
        left: u64,
    },
    Concurrency {
        in_flight: u64,
        cap: u64,
    },
    /// Redundancy groups that are at their limit hold the rest back.
    Groups {
        left: u64,
    },
    BytesPerDay {
        used: u64,
        budget: u64,
    },
    /// Devices that have to finish before the soak begins.
    Coverage {
        finished: u64,
        wanted: u64,
        by_bucket: BTreeMap<Bucket, u64>,
    },
    Soak,
    /// Gates without a verdict.
    Evidence {
        gates: Vec<String>,
    },
    FreezeCalendar {
        name: String,
    },
    LineStopped {
        by: String,
    },
    /// Paused until somebody decides.
    Decision {
        why: String,
    },
    Revert {
        left: u64,
        unreachable: u64,
    },
    Sweep,
    /// The driver has not done these yet.
    Effects {
        pending: u64,
    },
    Tail {
        stragglers: u64,
    },
}
