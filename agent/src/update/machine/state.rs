//! What a slot remembers. The whole of it is durable; nothing is inferred from files.

use edgefleet_shared::{
    desired::{Assigned, SlotDesired},
    digest::{BundleDigest, EnvelopeDigest},
    ids::{AttemptId, BundleName},
    reported::{Installed, Phase, Progress, Refusal, RefusalCode, SlotReport},
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
}

/// The bundle a slot moves to, and how far that came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    pub assigned: Assigned,
    /// Known once the release was checked.
    pub bundle: Option<Bundle>,
    pub step: Step,
    /// A retry timer runs; nothing else does.
    pub waiting: bool,
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub meter: Meter,
    /// Failed tries of the present step since it last made progress.
    pub tries: u32,
    /// Content that came whole and was not what its digest says.
    pub corrupt: u32,
    /// Swaps that failed.
    pub switch_tries: u32,
    /// Process starts that found this step unfinished.
    pub boots: u32,
    /// The test itself runs; until then the bundle is whole and verified, and waits for its turn.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub test_begun: bool,
}

/// What an attempt has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Meter {
    pub spent_ms: u64,
    pub fetched_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Release,
    Manifest,
    Blobs,
    Testing,
    Switching,
}
impl Step {
    pub fn phase(self) -> Phase {
        match self {
            Self::Release | Self::Manifest | Self::Blobs => Phase::Fetching,
            Self::Testing => Phase::Testing,
            Self::Switching => Phase::Switching,
        }
    }
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
}

impl SlotState {
    pub fn phase(&self) -> Phase {
        match &self.work {
            Work::Busy(target) if target.step == Step::Testing && !target.test_begun => Phase::Verified,
            Work::Busy(target) => target.step.phase(),
            Work::Failed(failed) => failed.refusal.code.phase(),
            Work::Settled if self.active.is_none() => Phase::Idle,
            Work::Settled if self.provisional.is_some() => Phase::Probation,
            Work::Settled if self.deferred().is_some() => Phase::Deferred,
            Work::Settled => Phase::Committed,
        }
    }

    /// A candidate that was asked for and does not run: this version serves no shadows.
    pub fn deferred(&self) -> Option<&Assigned> {
        self.wanted.as_ref()?.candidate.as_ref()
    }

    pub fn report(&self, at: Timestamp) -> SlotReport {
        let installed = |assigned: &Assigned| Installed {
            bundle: assigned.bundle.clone(),
            digest: None,
            attempt: assigned.attempt.clone(),
        };
        let (target, progress) = match &self.work {
            Work::Busy(target) => {
                let known = target.bundle.as_ref().map(Bundle::installed);
                let progress = (target.total_bytes > 0)
                    .then_some(Progress { done_bytes: target.done_bytes, total_bytes: target.total_bytes });
                (Some(known.unwrap_or_else(|| installed(&target.assigned))), progress)
            }
            Work::Failed(failed) => (Some(failed.target.clone()), None),
            Work::Settled if self.phase() == Phase::Deferred => (self.deferred().map(installed), None),
            Work::Settled => (None, None),
        };
        let last_error = match &self.work {
            Work::Failed(failed) => Some(failed.refusal.clone()),
            Work::Settled if self.phase() == Phase::Deferred => {
                self.last_error.clone().or_else(|| self.deferred().map(|c| no_shadow(c, self.generation, at)))
            }
            _ => self.last_error.clone(),
        };
        SlotReport {
            phase: self.phase(),
            active: self.active.as_ref().map(Bundle::installed),
            previous: self.previous.as_ref().map(Bundle::installed),
            target,
            progress,
            last_error,
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
        bundles.map(|b| (b.release, Some(b.digest))).chain(target)
    }
}

fn no_shadow(candidate: &Assigned, generation: u64, at: Timestamp) -> Refusal {
    Refusal {
        code: RefusalCode::Unknown,
        retry: RefusalCode::Unknown.retry(),
        message: format!("`{}` waits: this agent cannot run a shadow", candidate.bundle),
        subject: Some(candidate.bundle.to_string()),
        attempt: Some(candidate.attempt.clone()),
        generation: Some(generation),
        at,
    }
}
