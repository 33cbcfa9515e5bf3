//! What can happen to a rollout, and why an order is refused.

use super::{
    assignment::MembershipSummary,
    freeze::{ActiveFreeze, LineStopped},
    rollout::StateName,
    span::Span,
    stage::{Bucket, Failure},
};
use crate::evidence::Observation;
use edgefleet_shared::{digest::BlobDigest, ids::RolloutId};
use serde::{Deserialize, Serialize};

/// A number within one rollout; effects are idempotent by it.
pub type EffectId = u64;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    // Orders of people. They may be refused.
    Submit {
        by: String,
    },
    /// Answers the open request, whatever it is for.
    Approve {
        by: String,
        reason: String,
    },
    Deny {
        by: String,
        reason: String,
    },
    Start {
        by: String,
    },
    Pause {
        by: String,
        reason: String,
    },
    /// Goes on; after a verdict it means: in spite of it.
    Resume {
        by: String,
        reason: String,
    },
    Abort {
        by: String,
        reason: String,
        mode: AbortMode,
    },
    /// The open stage counts as done.
    Skip {
        by: String,
        reason: String,
    },
    /// More time for the open stage to find a verdict.
    Extend {
        by: String,
        reason: String,
        span: Span,
    },

    // The world. Never refused.
    Tick,
    /// What the calendar says for this slot now; `None`: nothing.
    Freeze {
        active: Option<ActiveFreeze>,
    },
    /// The switch; `None`: released.
    Line {
        stopped: Option<LineStopped>,
    },
    SupersededBy {
        rollout: RolloutId,
    },
    /// Members that joined the dynamic last stage late.
    Joined {
        devices: u64,
    },

    // What the driver did. Never refused; about an effect that is not pending: ignored.
    /// `done` once every member is written.
    MembersWritten {
        effect: EffectId,
        digest: BlobDigest,
        written: u64,
        done: Option<MembershipSummary>,
    },
    /// Attempts and intents of these devices are written. `cursor`: everybody of the stage up to this rank
    /// has had its turn; `exhausted`: that is everybody.
    HandedOut {
        effect: EffectId,
        count: u64,
        controls: u64,
        cursor: Option<u64>,
        exhausted: bool,
    },
    /// A piece of a sweep (revert, cancel) is written. The moves of its attempts arrive as [`Event::Moved`].
    Swept {
        effect: EffectId,
        cursor: Option<Cursor>,
        count: u64,
        exhausted: bool,
    },
    Done {
        effect: EffectId,
    },
    Moved {
        moved: Move,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AbortMode {
    /// Nothing more is handed out; everything stays as it is.
    Freeze,
    /// What has not been activated is cancelled; the rest stays.
    Halt,
    /// Every device goes back.
    Revert,
}

/// A place in a sweep, which goes from the newest hand-out to the oldest: by stage, then rank, downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    pub stage: u16,
    pub rank: u64,
}

/// What an attempt's change means to its rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "move", rename_all = "kebab-case")]
pub enum Move {
    Change(Change),
    Observed {
        observation: Observation,
    },
    /// For the driver: a canary activated; those of its controls that are alive join the
    /// comparison when they hear [`DeviceSaid::CanaryActivated`](super::DeviceSaid).
    ControlsJoin {
        match_of: u32,
    },
    /// For the driver: canary and controls can be compared, see [`compare()`](super::compare()).
    CompareDue {
        match_of: u32,
    },
}

/// One device goes from one bucket of a stage to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub stage: u16,
    pub from: Bucket,
    pub to: Bucket,
    /// A failure to count ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failure>,
    /// ... and one to take back, because the device made it after all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfailed: Option<Failure>,
}

/// Why an order was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("a rollout that is {state} cannot be told to {order}; that is possible while it is {allowed}")]
    WrongState { order: &'static str, state: StateName, allowed: &'static str },
    #[error("{by} wrote this rollout; somebody else has to agree to {what}")]
    OwnApproval { by: String, what: &'static str },
    #[error("rollout {rollout} waits for no approval")]
    NothingToApprove { rollout: RolloutId },
    #[error("stage `{stage}` has failed a hard gate ({rule}) and cannot be skipped")]
    HardGateOpen { stage: String, rule: String },
    #[error("rollout {rollout} has no open stage")]
    NoOpenStage { rollout: RolloutId },
    #[error("the plan has {count} mistakes; the first: {first}")]
    PlanMistakes { count: usize, first: String },
    #[error("going on after a verdict needs a reason")]
    ReasonMissing,
}
