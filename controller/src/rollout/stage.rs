//! How far a stage is: counters and times, whatever the number of its devices.

use super::span::Span;
use edgefleet_shared::{reported::RefusalCode, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageState {
    #[default]
    Waiting,
    /// Devices get their turn.
    Delivering,
    /// Enough have it; time and evidence decide.
    Soaking,
    Passed,
    Failed,
    Inconclusive,
    Skipped,
}

impl StageState {
    pub fn is_open(self) -> bool {
        matches!(self, Self::Delivering | Self::Soaking)
    }
    pub fn is_over(self) -> bool {
        matches!(self, Self::Passed | Self::Skipped)
    }
}

macro_rules! buckets {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Where a device of a stage is counted. Each device is in exactly one bucket of its stage.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Bucket {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }
        impl Bucket {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}
buckets! {
    /// Its turn has not come.
    Planned = "planned",
    /// A control: kept on the incumbent until the last stage.
    Held = "held",
    /// Handed out and under way: holds a slot of the concurrency cap.
    InFlight = "in-flight",
    /// Under way again by itself after its slot had been given back (offline, deferred). Counted apart:
    /// nobody was handed out into its place beyond the cap, and nobody is until it ends.
    Returned = "returned",
    /// The device says: not now (window, busy, battery, metered, locked).
    Deferred = "deferred",
    /// Silent for a while; holds no slot.
    Away = "away",
    /// Silent for so long that coverage does not count it; keeps its desired state.
    Gone = "gone",
    /// Waits for a retry or sits out a penalty; holds no slot.
    Waiting = "waiting",
    /// Its turn comes once more.
    Again = "again",
    /// Runs the candidate beside the active bundle.
    Shadowing = "shadowing",
    Committed = "committed",
    Failed = "failed",
    TimedOut = "timed-out",
    /// Went silent after it had activated the bundle.
    Lost = "lost",
    Cancelled = "cancelled",
    Superseded = "superseded",
    Removed = "removed",
    /// Told to go back.
    Reverting = "reverting",
    Reverted = "reverted",
}

impl Bucket {
    /// Holds a slot of the concurrency cap.
    pub fn holds_slot(self) -> bool {
        matches!(self, Self::InFlight | Self::Returned)
    }
    /// Has finished an attempt, well or badly.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Shadowing | Self::Committed | Self::Failed | Self::TimedOut | Self::Lost)
    }
    /// Takes part in the coverage of its stage.
    pub fn counts_for_coverage(self) -> bool {
        !matches!(
            self,
            Self::Gone
                | Self::Held
                | Self::Cancelled
                | Self::Superseded
                | Self::Removed
                | Self::Reverting
                | Self::Reverted
        )
    }
}

/// Devices by bucket. Signed: moves may arrive in another order than they happened, sums come right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Counts(BTreeMap<Bucket, i64>);

impl Counts {
    pub fn get(&self, bucket: Bucket) -> u64 {
        self.0.get(&bucket).copied().and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }
    pub fn add(&mut self, bucket: Bucket, n: i64) {
        let count = self.0.entry(bucket).or_default();
        *count = count.saturating_add(n);
        if *count == 0 {
            self.0.remove(&bucket);
        }
    }
    pub fn sum(&self, wanted: impl Fn(Bucket) -> bool) -> u64 {
        self.0.iter().filter(|(b, _)| wanted(**b)).map(|(_, n)| u64::try_from(*n).unwrap_or(0)).sum()
    }
    pub fn members(&self) -> u64 {
        self.sum(|_| true)
    }
    /// Whether no bucket is below zero: true whenever every move has arrived.
    pub fn is_settled(&self) -> bool {
        self.0.values().all(|n| *n >= 0)
    }
    pub fn iter(&self) -> impl Iterator<Item = (Bucket, u64)> + '_ {
        self.0.iter().map(|(bucket, n)| (*bucket, u64::try_from(*n).unwrap_or(0)))
    }
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    Incompatible,
    Download,
    Verify,
    Preflight,
    RolledBack,
    TimedOut,
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub kind: FailureKind,
    pub code: RefusalCode,
}

/// Attempts that failed, by kind, over all time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Failures(BTreeMap<FailureKind, i64>);

impl Failures {
    pub fn get(&self, kind: FailureKind) -> u64 {
        self.0.get(&kind).copied().and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
    }
    pub fn add(&mut self, kind: FailureKind, n: i64) {
        let count = self.0.entry(kind).or_default();
        *count = count.saturating_add(n);
    }
    pub fn total(&self) -> u64 {
        self.0.values().map(|n| u64::try_from(*n).unwrap_or(0)).sum()
    }
    /// Failures of a kind since `baseline` was taken.
    pub fn since(&self, baseline: &Self, kind: FailureKind) -> u64 {
        self.get(kind).saturating_sub(baseline.get(kind))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageProgress {
    pub state: StageState,
    /// When it came into this state.
    pub since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soak_from: Option<Timestamp>,
    /// Added to the longest soak by people.
    pub extended: Span,
    pub counts: Counts,
    pub failures: Failures,
    /// Failed attempts by refusal code; at most as many as there are codes.
    pub codes: BTreeMap<String, i64>,
    /// Successes after a time-out.
    pub late: u64,
    /// Devices that were handed out, over all time.
    pub handed_out: u64,
    /// Every device up to this rank has had its turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<u64>,
    /// The hand-out met the end of the stage.
    pub exhausted: bool,
    /// Failures a person has looked at and accepted; rules count from here.
    pub accepted: Failures,
    /// By whom and why it was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl StageProgress {
    /// Devices that count for the coverage, and those of them that have finished.
    pub fn coverage(&self) -> (u64, u64) {
        let counted = self.counts.sum(Bucket::counts_for_coverage);
        let finished = self.counts.sum(Bucket::is_finished);
        (finished, counted)
    }
    pub fn in_flight(&self) -> u64 {
        self.counts.sum(Bucket::holds_slot)
    }
    /// Finished attempts: what failure rates are shares of.
    pub fn finished_attempts(&self) -> u64 {
        self.counts.get(Bucket::Committed) + self.counts.get(Bucket::Shadowing) + self.failures.total()
    }
    pub(super) fn enter(&mut self, state: StageState, now: Timestamp) {
        self.state = state;
        self.since = now;
    }
}
