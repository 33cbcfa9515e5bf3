//! What a slot remembers. The whole of it is durable; nothing is inferred from files.

use super::{CANDIDATE_LANE, Candidate, Gate, Standing, Step, Target, candidate};
use edgefleet_shared::{
    desired::{Assigned, SlotDesired},
    digest::{BundleDigest, EnvelopeDigest},
    ids::{AttemptId, BundleName},
    reported::{Installed, Phase, Refusal, SlotReport},
    telemetry::batch::TerminalReport,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

/// A bundle whose release was checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    pub name: BundleName,
    /// Digest of the manifest.
    pub digest: BundleDigest,
    /// Exact size of the manifest, bytes.
    pub length: u64,
    pub release: EnvelopeDigest,
    pub attempt: AttemptId,
}
impl Bundle {
    pub fn installed(&self) -> Installed {
        Installed { bundle: self.name.clone(), digest: Some(self.digest), attempt: self.attempt.clone() }
    }
}

/// What the machine needs to know of time: the wall clock for reports, a steady one for durations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub wall: Timestamp,
    /// Milliseconds since this process started; never jumps.
    pub steady_ms: u64,
    /// The slot's maintenance window, by the desired state that is coming in or in force.
    pub gate: Gate,
}

/// What an attempt has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meter {
    pub spent_ms: u64,
    pub fetched_bytes: u64,
}

/// What became of a target that is not the active bundle. Remembered so that a reboot or a new
/// generation for another slot does not try it for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    pub target: Installed,
    pub release: EnvelopeDigest,
    pub refusal: Refusal,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Nothing under way: the active bundle, if any, is what is wanted.
    #[default]
    Settled,
    Busy(Target),
    Failed(Failed),
}

/// The active bundle is new and not yet trusted: the durable marker of probation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provisional {
    /// Process starts since the switch that did not live to the end of probation.
    pub boots: u32,
    pub probation_secs: u64,
    pub generation: u64,
    pub meter: Meter,
    /// What was `previous` before; becomes it again if the active bundle fails.
    pub older: Option<Bundle>,
}

/// One slot of one device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotState {
    /// The newest generation this slot was told of.
    pub generation: u64,
    pub wanted: Option<SlotDesired>,
    pub active: Option<Bundle>,
    /// The last bundle that was committed before `active`; stays on disk.
    pub previous: Option<Bundle>,
    pub provisional: Option<Provisional>,
    pub work: Work,
    /// The last trouble that did not end an attempt.
    pub last_error: Option<Refusal>,
    /// Terminal reports not yet taken over by the outbox.
    pub unacked: Vec<TerminalReport>,
    /// Changes whenever what is under way changes; answers with another ticket are late.
    pub ticket: u64,
    /// Steady clock at the last step, milliseconds.
    pub mark_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
    /// The last trouble of the candidate that did not end its attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_candidate_error: Option<Refusal>,
    /// As `ticket`, for the candidate, without [`CANDIDATE_LANE`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lane_ticket: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl SlotState {
    pub fn phase(&self) -> Phase {
        match &self.work {
            Work::Busy(target) if target.deferred.is_some() => Phase::Deferred,
            Work::Busy(target) if target.step == Step::Testing && !target.test_begun => Phase::Verified,
            Work::Busy(target) => target.step.phase(),
            Work::Failed(failed) => failed.refusal.code.phase(),
            Work::Settled if self.active.is_none() => Phase::Idle,
            Work::Settled if self.provisional.is_some() => Phase::Probation,
            Work::Settled => Phase::Committed,
        }
    }

    /// The counts of a running candidate are the server's to add.
    pub fn report(&self) -> SlotReport {
        let (target, progress, deferred) = match &self.work {
            Work::Busy(target) => (Some(target.installed()), target.progress(), target.deferred),
            Work::Failed(failed) => (Some(failed.target.clone()), None, None),
            Work::Settled => (None, None, None),
        };
        let last_error = match &self.work {
            Work::Failed(failed) => Some(failed.refusal.clone()),
            Work::Busy(_) | Work::Settled => self.last_error.clone(),
        };
        let candidate = self.candidate.as_ref();
        SlotReport {
            phase: self.phase(),
            active: self.active.as_ref().map(Bundle::installed),
            previous: self.previous.as_ref().map(Bundle::installed),
            target,
            progress,
            last_error,
            candidate: candidate.map(|candidate| candidate.report(self.last_candidate_error.as_ref())),
            deferred: deferred.or_else(|| candidate.and_then(candidate::deferred)),
            // The server's to add, too.
            engine: None,
        }
    }

    /// Whether looking at the window could change something.
    pub fn minds_window(&self) -> bool {
        let windowed = self.wanted.as_ref().is_some_and(|wanted| wanted.window.is_some());
        let fetches = |candidate: &Candidate| {
            candidate.target.step != Step::Switching && !matches!(candidate.standing, Standing::Failed(_))
        };
        windowed && (matches!(self.work, Work::Busy(_)) || self.candidate.as_ref().is_some_and(fetches))
    }

    /// The assignment that a job of this ticket's lane works on.
    pub fn assigned(&self, ticket: u64) -> Option<&Assigned> {
        match &self.work {
            _ if ticket & CANDIDATE_LANE != 0 => self.candidate.as_ref().map(|c| &c.target.assigned),
            Work::Busy(target) => Some(&target.assigned),
            Work::Settled | Work::Failed(_) => None,
        }
    }

    /// Every bundle whose files must stay, with the manifest's digest where it is known.
    pub fn kept(&self) -> impl Iterator<Item = (EnvelopeDigest, Option<BundleDigest>)> + '_ {
        let older = self.provisional.as_ref().and_then(|p| p.older.as_ref());
        let bundles = self.active.iter().chain(&self.previous).chain(older);
        let target = match &self.work {
            Work::Busy(t) => Some((t.assigned.release, t.bundle.as_ref().map(|b| b.digest))),
            Work::Settled | Work::Failed(_) => None,
        };
        let candidate = self.candidate.as_ref().filter(|c| !matches!(c.standing, Standing::Failed(_)));
        let candidate = candidate.map(|c| &c.target);
        let candidate = candidate.map(|t| (t.assigned.release, t.bundle.as_ref().map(|b| b.digest)));
        bundles.map(|b| (b.release, Some(b.digest))).chain(target).chain(candidate)
    }
}
