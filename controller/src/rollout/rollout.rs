//! The document of a rollout: counters and stage state, under 64 KiB whatever the fleet.

use super::{
    approval::Approvals,
    assignment::{MembershipSummary, Seed},
    effect::Pending,
    event::{Cursor, EffectId},
    freeze::{ActiveFreeze, LineStopped},
    handout::Tokens,
    plan::Plan,
    stage::StageProgress,
    verdict::Rule,
    waiting::WaitingOn,
};
use crate::evidence::{Assessment, Evidence, Gate};
use edgefleet_shared::{
    digest::{BlobDigest, EnvelopeDigest},
    ids::{BundleName, RolloutId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt};

/// Largest document the store is given, bytes of JSON.
pub const MAX_DOCUMENT: usize = 64 << 10;

/// What is rolled out, as the registry knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub bundle: BundleName,
    pub envelope: EnvelopeDigest,
    pub envelope_size: u64,
    /// Bytes a device fetches for it; what the byte budget counts.
    pub download: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub id: RolloutId,
    /// Counts up with every rollout: of two for one slot the higher holds.
    pub seq: u64,
    pub release: Release,
    pub plan: Plan,
    pub seed: Seed,
    /// The incumbents' p95 when the rollout was made, microseconds: canaries count their results beyond it, for
    /// an alarm. Unknown: nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_us: Option<u64>,
    pub by: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    pub created: Timestamp,
    #[serde(flatten)]
    pub state: State,
    /// When it came into this state.
    pub since: Timestamp,
    /// The latest `now` it was given: time never runs backwards for it.
    pub clock: Timestamp,
    /// Index of the open stage.
    pub stage: u16,
    pub stages: Vec<StageProgress>,
    pub membership: MembershipSummary,
    pub evidence: Evidence,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assessment: Option<Assessment>,
    pub approvals: Approvals,
    pub tokens: Tokens,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<ActiveFreeze>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<LineStopped>,
    /// How far a revert or cancellation has come through the devices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Sweep>,
    /// Gates whose harm a person has accepted; they are reported and decide nothing more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub accepted_gates: BTreeSet<Gate>,
    /// The tail of a completed rollout has paused it once.
    #[serde(default)]
    pub reopened: bool,
    /// Effects the driver has not reported done.
    pub pending: Vec<Pending>,
    pub next_effect: EffectId,
    /// As of the last event.
    pub waiting: Vec<WaitingOn>,
    /// When [`Event::Tick`](super::Event) is wanted next; `None`: no tick changes anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    Draft,
    PendingApproval,
    Ready,
    Scheduled {
        at: Timestamp,
    },
    /// Attempts are being written.
    Assigning {
        written: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<BlobDigest>,
    },
    Running,
    Paused {
        why: PauseWhy,
    },
    Reverting,
    Reverted {
        unreachable: u64,
    },
    Aborted,
    /// Stragglers and late joiners are watched until then.
    Completed {
        tail_until: Timestamp,
    },
    Superseded {
        /// Not `by`: the state's fields stand beside the rollout's own, and that is who wrote it.
        #[serde(rename = "superseded_by")]
        by: RolloutId,
    },
    Expired,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "kebab-case")]
pub enum PauseWhy {
    Operator { by: String, reason: String },
    Gate { rule: Rule, sentence: String },
    Inconclusive,
    FreezeCalendar { name: String },
    LineStopped,
    ApprovalExpired,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateName {
    Draft,
    PendingApproval,
    Ready,
    Scheduled,
    Assigning,
    Running,
    Paused,
    Reverting,
    Reverted,
    Aborted,
    Completed,
    Superseded,
    Expired,
}

impl StateName {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::PendingApproval => "pending-approval",
            Self::Ready => "ready",
            Self::Scheduled => "scheduled",
            Self::Assigning => "assigning",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Reverting => "reverting",
            Self::Reverted => "reverted",
            Self::Aborted => "aborted",
            Self::Completed => "completed",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
        }
    }
    /// No way leads out; [`StateName::Completed`] may be paused once while its tail lasts.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Reverted | Self::Aborted | Self::Completed | Self::Superseded | Self::Expired)
    }
}
impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl State {
    pub fn name(&self) -> StateName {
        match self {
            Self::Draft => StateName::Draft,
            Self::PendingApproval => StateName::PendingApproval,
            Self::Ready => StateName::Ready,
            Self::Scheduled { .. } => StateName::Scheduled,
            Self::Assigning { .. } => StateName::Assigning,
            Self::Running => StateName::Running,
            Self::Paused { .. } => StateName::Paused,
            Self::Reverting => StateName::Reverting,
            Self::Reverted { .. } => StateName::Reverted,
            Self::Aborted => StateName::Aborted,
            Self::Completed { .. } => StateName::Completed,
            Self::Superseded { .. } => StateName::Superseded,
            Self::Expired => StateName::Expired,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    pub kind: SweepKind,
    /// Everything from here on has been swept; `None`: nothing yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Cursor>,
    pub exhausted: bool,
    pub swept: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SweepKind {
    Revert,
    Cancel,
}

impl Rollout {
    /// A new rollout, still a draft. The plan is settled (see [`Plan::settle`]) but not checked.
    pub fn draft(
        id: RolloutId,
        seq: u64,
        release: Release,
        mut plan: Plan,
        seed: Seed,
        by: impl Into<String>,
        now: Timestamp,
    ) -> Self {
        plan.settle();
        let stages = plan.stages.iter().map(|_| StageProgress { since: now, ..StageProgress::default() });
        Self {
            id,
            seq,
            release,
            stages: stages.collect(),
            tokens: Tokens::new(now),
            plan,
            seed,
            slow_us: None,
            by: by.into(),
            reason: String::new(),
            created: now,
            state: State::Draft,
            since: now,
            clock: now,
            stage: 0,
            membership: MembershipSummary::default(),
            evidence: Evidence::default(),
            assessment: None,
            approvals: Approvals::default(),
            freeze: None,
            line: None,
            sweep: None,
            accepted_gates: BTreeSet::new(),
            reopened: false,
            pending: Vec::new(),
            next_effect: 1,
            waiting: Vec::new(),
            wake: None,
        }
    }
    pub fn is_terminal(&self) -> bool {
        self.state.name().is_terminal()
    }
    /// Between its start and its end.
    pub fn is_active(&self) -> bool {
        matches!(
            self.state,
            State::Assigning { .. } | State::Running | State::Paused { .. } | State::Reverting
        )
    }
    pub fn in_flight(&self) -> u64 {
        self.stages.iter().map(StageProgress::in_flight).sum()
    }
    /// All devices the plan reaches, once they are known.
    pub fn members(&self) -> u64 {
        self.membership.stages.iter().map(|stage| stage.devices).sum()
    }
    /// Most devices in flight at a time.
    pub fn concurrency_cap(&self) -> u64 {
        let limits = &self.plan.limits;
        limits.concurrency.of(self.members()).max(limits.concurrency_min).max(1)
    }
}
