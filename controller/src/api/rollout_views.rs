//! Rollouts as the API shows and takes them. Field names are part of the contract; the documents inside
//! (plan, rollout, attempt, verdict) are those of [`rollout`](crate::rollout) themselves.

pub use crate::rollouts::SignedVerdict;
use crate::{
    evidence::{Assessment, Gate},
    rollout::{
        AbortMode, Bucket, Counts, Event, Mode, Plan, Rollout, Span, Stage, StageProgress, VerdictRecord,
        WaitingOn, explain,
    },
    rollouts::preview::Preview,
};
use edgefleet_shared::{
    ids::{BundleName, RolloutId, SlotName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Verdicts that [`Explanation`] carries, the newest last.
pub const LAST_VERDICTS: usize = 20;

/// A plan to start, or to look at.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewRollout {
    #[schema(value_type = Object)]
    pub plan: Plan,
    /// For the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Needed above 10 devices: the caller has seen the number.
    #[serde(default)]
    pub confirmed: bool,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
    /// False: it stays ready until it is told to start.
    #[serde(default = "yes")]
    pub start: bool,
}

fn yes() -> bool {
    true
}

/// What a plan became, or would do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum StartedRollout {
    Started {
        #[serde(flatten)]
        #[schema(value_type = Object)]
        rollout: Box<Rollout>,
    },
    DryRun {
        #[schema(value_type = Object)]
        preview: Box<Preview>,
    },
}

/// One line of the list of rollouts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutSummary {
    #[schema(value_type = String)]
    pub id: RolloutId,
    #[schema(value_type = String)]
    pub slot: SlotName,
    #[schema(value_type = String, example = "digits@2")]
    pub bundle: BundleName,
    /// `running`, `paused`, ...
    #[schema(example = "running")]
    pub state: String,
    /// The open stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "canary")]
    pub stage: Option<String>,
    /// Devices by bucket, each counted once: where it gets the bundle as its active one.
    #[schema(value_type = Object, example = json!({"committed": 12, "planned": 188}))]
    pub counts: Counts,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    pub by: String,
    /// One sentence per thing it waits for.
    pub waiting: Vec<String>,
}

impl RolloutSummary {
    pub fn of(rollout: &Rollout) -> Self {
        Self {
            id: rollout.id.clone(),
            slot: rollout.plan.rollout.slot.clone(),
            bundle: rollout.release.bundle.clone(),
            state: rollout.state.name().as_str().to_owned(),
            stage: open_stage(rollout).map(|stage| stage.name.clone()),
            counts: devices(rollout),
            since: rollout.since,
            created: rollout.created,
            by: rollout.by.clone(),
            waiting: rollout.waiting.iter().map(|waiting| waiting.sentence.clone()).collect(),
        }
    }
}

/// The stage the rollout is in, while it is under way.
pub fn open_stage(rollout: &Rollout) -> Option<&Stage> {
    rollout.is_active().then(|| rollout.plan.stages.get(usize::from(rollout.stage)))?
}

/// Devices of all stages by bucket. Shadow stages are left out: their devices have a stage of their own.
pub fn devices(rollout: &Rollout) -> Counts {
    let mut all = Counts::default();
    let active =
        rollout.plan.stages.iter().zip(&rollout.stages).filter(|(stage, _)| stage.mode == Mode::Active);
    for (bucket, n) in active.flat_map(|(_, progress)| progress.counts.iter()) {
        all.add(bucket, i64::try_from(n).unwrap_or(i64::MAX));
    }
    all
}

/// Why a rollout stands where it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The most important first.
    #[schema(value_type = Vec<Object>)]
    pub waiting: Vec<WaitingOn>,
    #[schema(value_type = Vec<Object>)]
    pub stages: Vec<StageView>,
    /// What the gates say now; absent before there is anything to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub assessment: Option<Assessment>,
    /// At most the last 20, the newest last.
    #[schema(value_type = Vec<Object>)]
    pub verdicts: Vec<VerdictRecord>,
}

/// A stage of the plan and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    pub name: String,
    pub mode: Mode,
    /// What has to be safe before it passes.
    pub gates: Vec<Gate>,
    pub soak: Span,
    pub max_soak: Span,
    #[serde(flatten)]
    pub progress: StageProgress,
}

impl Explanation {
    /// `verdicts`: all of them or the last ones, the newest last.
    pub fn of(rollout: &Rollout, mut verdicts: Vec<VerdictRecord>, now: Timestamp) -> Self {
        verdicts.drain(..verdicts.len().saturating_sub(LAST_VERDICTS));
        let stages = rollout.plan.stages.iter().zip(&rollout.stages).map(|(stage, progress)| StageView {
            name: stage.name.clone(),
            mode: stage.mode,
            gates: stage.gates.clone(),
            soak: stage.soak,
            max_soak: stage.max_soak(),
            progress: progress.clone(),
        });
        Self {
            waiting: explain::explain(rollout, now),
            stages: stages.collect(),
            assessment: rollout.assessment.clone(),
            verdicts,
        }
    }
}

impl StageView {
    /// Devices of the stage, and those that have what the stage brings.
    pub fn done_of(&self) -> (u64, u64) {
        let counts = &self.progress.counts;
        (counts.get(Bucket::Committed) + counts.get(Bucket::Shadowing), counts.members())
    }
}

/// What a person wants of a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "order", rename_all = "kebab-case", deny_unknown_fields)]
pub enum OrderRequest {
    Start,
    Pause {
        reason: String,
    },
    /// Goes on; after a verdict it means: in spite of it.
    Resume {
        reason: String,
    },
    Abort {
        #[schema(value_type = String, example = "revert")]
        mode: AbortMode,
        reason: String,
    },
    /// The open stage counts as done.
    Skip {
        reason: String,
    },
    /// More time for the open stage to find a verdict.
    Extend {
        /// Seconds, or a text such as `24h`.
        #[schema(value_type = u64)]
        span: Span,
        reason: String,
    },
}

impl OrderRequest {
    /// The verb in the audit log.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Start => "rollout.start",
            Self::Pause { .. } => "rollout.pause",
            Self::Resume { .. } => "rollout.resume",
            Self::Abort { .. } => "rollout.abort",
            Self::Skip { .. } => "rollout.skip",
            Self::Extend { .. } => "rollout.extend",
        }
    }

    /// The order as the machine takes it, given by `by`.
    pub fn event(self, by: impl Into<String>) -> Event {
        let by = by.into();
        match self {
            Self::Start => Event::Start { by },
            Self::Pause { reason } => Event::Pause { by, reason },
            Self::Resume { reason } => Event::Resume { by, reason },
            Self::Abort { mode, reason } => Event::Abort { by, reason, mode },
            Self::Skip { reason } => Event::Skip { by, reason },
            Self::Extend { span, reason } => Event::Extend { by, reason, span },
        }
    }
}

/// The answer to what waits for an approval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRequest {
    pub agree: bool,
    #[serde(default)]
    pub reason: String,
}

impl ApprovalRequest {
    pub fn event(self, by: impl Into<String>) -> Event {
        let (by, reason) = (by.into(), self.reason);
        if self.agree { Event::Approve { by, reason } } else { Event::Deny { by, reason } }
    }
}
