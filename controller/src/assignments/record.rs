//! The documents of an assignment, and how reports change them. Pure.

use crate::store::Kind;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::{BundleName, DeviceId, RolloutId, SlotName},
    reported::{Phase, Refusal, RefusalCode},
    selector::Selector,
    telemetry::TerminalReport,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const ROLLOUT: Kind = Kind::new("rollout");
pub const ATTEMPT: Kind = Kind::new("attempt");

/// Counters and state only; one [`AttemptRecord`] per device stands beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    pub id: RolloutId,
    /// Counts up with every rollout, unlike the clock in the id: of two for one slot the higher holds.
    #[serde(default)]
    pub seq: u64,
    pub slot: SlotName,
    pub bundle: BundleName,
    pub release: EnvelopeDigest,
    pub release_size: u64,
    /// A device is meant if any of them selects it.
    pub selectors: Vec<Selector>,
    pub probation_secs: u64,
    pub created: Timestamp,
    pub by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub state: RolloutState,
    pub counts: RolloutCounts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum RolloutState {
    /// Intents are being written; devices up to and including `after` have theirs.
    Assigning {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<DeviceId>,
        /// How many that are.
        #[serde(default)]
        assigned: u64,
    },
    /// Every device has its desired state or gets it when it connects.
    Running,
    Completed,
    Superseded {
        by: RolloutId,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RolloutCounts {
    pub total: u64,
    pub committed: u64,
    pub superseded: u64,
    pub removed: u64,
    /// Failed attempts by the refusal's code.
    pub failed: BTreeMap<String, u64>,
}

impl RolloutCounts {
    pub fn finished(&self) -> u64 {
        self.committed + self.superseded + self.removed + self.failed.values().sum::<u64>()
    }
    /// Adds or takes back one attempt in a finished state; unfinished ones are what remains of `total`.
    fn shift(&mut self, state: &AttemptState, by: i64) {
        let slot = match state {
            AttemptState::Assigned => return,
            AttemptState::Committed => &mut self.committed,
            AttemptState::Superseded => &mut self.superseded,
            AttemptState::Removed => &mut self.removed,
            AttemptState::Failed { code, .. } => self.failed.entry(code.as_str().to_owned()).or_default(),
        };
        *slot = slot.saturating_add_signed(by);
        self.failed.retain(|_, n| *n > 0);
    }
}

/// One device in one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptRecord {
    pub device: DeviceId,
    pub rollout: RolloutId,
    pub number: u32,
    #[serde(flatten)]
    pub state: AttemptState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    #[serde(default)]
    pub took_ms: u64,
    #[serde(default)]
    pub fetched_bytes: u64,
    pub updated: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "attempt", rename_all = "kebab-case")]
pub enum AttemptState {
    Assigned,
    Committed,
    Failed { phase: Phase, code: RefusalCode },
    Superseded,
    Removed,
}

/// `rollout/device`: all attempts of a rollout are one prefix.
pub fn attempt_id(rollout: &RolloutId, device: &DeviceId) -> String {
    format!("{rollout}/{device}")
}

impl AttemptRecord {
    /// Takes a device's terminal report in; the same report twice changes nothing, and a late
    /// success after a failure counts as the success it is.
    ///
    /// Returns the state before, if it changed.
    pub fn report(&mut self, report: &TerminalReport, now: Timestamp) -> Option<AttemptState> {
        let next = if report.phase == Phase::Committed {
            AttemptState::Committed
        } else if report.phase.is_failure() {
            let code = report.refusal.as_ref().map_or(RefusalCode::Unknown, |refusal| refusal.code);
            AttemptState::Failed { phase: report.phase, code }
        } else {
            return None; // not an end, whatever the device calls it
        };
        if next == self.state || self.state == AttemptState::Removed {
            return None;
        }
        self.refusal = report.refusal.clone();
        self.took_ms = report.took_ms;
        self.fetched_bytes = report.fetched_bytes;
        self.updated = now;
        Some(std::mem::replace(&mut self.state, next))
    }
}

impl RolloutRecord {
    /// Counts an attempt's move and closes the rollout when all have ended.
    pub fn moved(&mut self, before: &AttemptState, after: &AttemptState) {
        self.counts.shift(before, -1);
        self.counts.shift(after, 1);
        if self.state == RolloutState::Running && self.counts.finished() >= self.counts.total {
            self.state = RolloutState::Completed;
        }
    }
    pub fn is_open(&self) -> bool {
        matches!(self.state, RolloutState::Assigning { .. } | RolloutState::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::{
        ids::AttemptId,
        reported::{Installed, Retry},
    };

    fn rollout(total: u64) -> RolloutRecord {
        RolloutRecord {
            id: "r-1".parse().unwrap(),
            seq: 1,
            slot: "digits".parse().unwrap(),
            bundle: "digits@1".parse().unwrap(),
            release: EnvelopeDigest::of(b""),
            release_size: 1,
            selectors: vec![],
            probation_secs: 1,
            created: Timestamp::EPOCH,
            by: "test".into(),
            reason: None,
            state: RolloutState::Running,
            counts: RolloutCounts { total, ..RolloutCounts::default() },
        }
    }
    fn attempt(device: &str) -> AttemptRecord {
        AttemptRecord {
            device: device.parse().unwrap(),
            rollout: "r-1".parse().unwrap(),
            number: 1,
            state: AttemptState::Assigned,
            refusal: None,
            took_ms: 0,
            fetched_bytes: 0,
            updated: Timestamp::EPOCH,
        }
    }
    fn ends(phase: Phase, code: Option<RefusalCode>) -> TerminalReport {
        TerminalReport {
            slot: "digits".parse().unwrap(),
            generation: 1,
            phase,
            target: Installed {
                bundle: "digits@1".parse().unwrap(),
                digest: None,
                attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
            },
            refusal: code.map(|code| Refusal {
                code,
                retry: Retry::Never,
                message: String::new(),
                subject: None,
                attempt: None,
                generation: None,
                at: Timestamp::EPOCH,
            }),
            took_ms: 5,
            fetched_bytes: 6,
            at: Timestamp::EPOCH,
        }
    }

    #[test]
    fn a_rollout_completes_when_the_last_attempt_ends_and_repeats_change_nothing() {
        let (mut rollout, mut a, mut b) = (rollout(2), attempt("dev-a"), attempt("dev-b"));
        for _ in 0..2 {
            if let Some(before) = a.report(&ends(Phase::Committed, None), Timestamp::EPOCH) {
                rollout.moved(&before, &a.state);
            }
            assert_eq!((rollout.counts.committed, rollout.is_open()), (1, true));
        }
        let failure = ends(Phase::PreflightFailed, Some(RefusalCode::GoldenMismatch));
        let before = b.report(&failure, Timestamp::EPOCH).unwrap();
        rollout.moved(&before, &b.state);
        assert_eq!(rollout.counts.failed["golden-mismatch"], 1);
        assert_eq!(rollout.state, RolloutState::Completed);
        let before = b.report(&ends(Phase::Committed, None), Timestamp::EPOCH).unwrap();
        rollout.moved(&before, &b.state);
        assert_eq!((rollout.counts.committed, rollout.counts.failed.len()), (2, 0));
    }

    #[test]
    fn a_phase_that_is_no_end_is_not_counted() {
        let mut a = attempt("dev-a");
        assert_eq!(a.report(&ends(Phase::Fetching, None), Timestamp::EPOCH), None);
    }

    #[test]
    fn the_stored_forms_are_pinned() {
        let text = serde_json::to_string_pretty(&(rollout(1), attempt("dev-a"))).unwrap();
        insta::assert_snapshot!("rollout_and_attempt_v1", text);
    }
}
