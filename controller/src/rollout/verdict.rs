//! What was decided, from which numbers, by which rule or person. Signed into the audit log by the driver.

use super::stage::{Bucket, Failures};
use crate::evidence::Assessment;
use edgefleet_shared::{
    ids::{BundleName, RolloutId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerdictRecord {
    pub rollout: RolloutId,
    pub bundle: BundleName,
    /// Index and name of the stage it is about; `None` for the rollout as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<(u16, String)>,
    pub decision: Decision,
    pub because: Because,
    pub at: Timestamp,
    /// Devices of the stage by bucket.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<Bucket, u64>,
    #[serde(default)]
    pub failures: Failures,
    /// What the gates said at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assessment: Option<Assessment>,
    /// 1, or how much faster than planned the waits went by.
    pub time_scale: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    Approved,
    Denied,
    Started,
    StagePassed,
    StageFailed,
    StageInconclusive,
    StageSkipped,
    Extended,
    Paused,
    Resumed,
    Reverting,
    Reverted,
    Aborted,
    Completed,
    Superseded,
    Expired,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum Because {
    /// One of the rules below, with its numbers in words.
    Rule {
        rule: Rule,
        sentence: String,
    },
    Person {
        by: String,
        reason: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Signatures or rollback checks refused on devices.
    VerifyFailed,
    RolledBack,
    Lost,
    PreflightFailed,
    /// Too large a share of finished attempts failed.
    FailureRate,
    /// Nobody of the stage succeeded.
    NobodySucceeded,
    /// A gate proved harm.
    Harm,
    /// Every gate asked was safe.
    Safe,
    /// No gate was asked; the soak is over without a hard failure.
    Soaked,
    /// A person vouched for what statistics cannot show on so few devices.
    Vouched,
    /// The longest soak is over without a verdict.
    MaxSoak,
    /// Nobody took care in time.
    Unattended,
    FreezeCalendar,
    LineStopped,
    ApprovalExpired,
    /// Everybody went back.
    AllReverted,
    Tail,
    Deadline,
}
