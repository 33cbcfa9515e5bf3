//! One bundle on its way onto the device: its steps, their jobs, their retries.

use super::{Bundle, Effect, Event, Meter};
use edgefleet_shared::{
    desired::Assigned,
    digest::BundleDigest,
    reported::{Deferred, Phase, Refusal, RefusalCode, Retry},
    trust::Release,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Content that does not match its digest is fetched anew this often: damage, not attack.
const MAX_CORRUPT: u32 = 3;
/// Source: research on fleet control, retry table: 10 downloads, 60 s doubling to 1 h.
const MAX_DOWNLOAD_TRIES: u32 = 10;
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(3_600);
const MAX_PROBE_TRIES: u32 = 3;
const MAX_SWITCH_TRIES: u32 = 1;

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
    /// Held up by its window; `waiting` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferred: Option<Deferred>,
    /// This bundle went through its test on this device as the candidate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tested: Option<BundleDigest>,
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

impl Target {
    pub(super) fn new(assigned: Assigned) -> Self {
        Self {
            assigned,
            bundle: None,
            step: Step::Release,
            waiting: false,
            done_bytes: 0,
            total_bytes: 0,
            meter: Meter::default(),
            tries: 0,
            corrupt: 0,
            switch_tries: 0,
            boots: 0,
            test_begun: false,
            deferred: None,
            tested: None,
        }
    }

    /// Its release was checked: the bundle is known.
    pub(super) fn checked(&mut self, release: Release) -> Bundle {
        let bundle = Bundle {
            name: release.bundle,
            digest: release.manifest,
            length: release.length,
            release: self.assigned.release,
            attempt: self.assigned.attempt.clone(),
        };
        self.bundle = Some(bundle.clone());
        bundle
    }

    /// Marks the beginning of `step`; returns its job.
    pub(super) fn begin(&mut self, step: Step, ticket: u64) -> Effect {
        if self.step != step {
            (self.tries, self.boots) = (0, 0);
        }
        self.step = step;
        (self.waiting, self.test_begun, self.deferred) = (false, false, None);
        match (step, self.bundle.clone()) {
            (Step::Manifest, Some(bundle)) => Effect::FetchManifest { ticket, bundle },
            (Step::Blobs, Some(bundle)) => Effect::FetchBlobs { ticket, bundle },
            (Step::Testing, Some(bundle)) => Effect::RunTest { ticket, bundle },
            (Step::Switching, Some(to)) => Effect::Switch { ticket, to },
            // Without a checked release every step starts at the release.
            (Step::Release, _) | (_, None) => {
                self.step = Step::Release;
                Effect::FetchRelease { ticket, assigned: self.assigned.clone() }
            }
        }
    }

    /// Takes in how far a download came; whether people should see it.
    pub(super) fn counts(&mut self, event: &Event) -> bool {
        match (self.step, event) {
            (
                Step::Release | Step::Manifest | Step::Blobs,
                Event::Progress { done_bytes, total_bytes, .. },
            ) => {
                if *done_bytes > self.done_bytes {
                    self.tries = 0;
                }
                (self.done_bytes, self.total_bytes) = (*done_bytes, *total_bytes);
                true
            }
            (Step::Release | Step::Manifest | Step::Blobs, Event::Fetched { bytes, .. }) => {
                self.meter.fetched_bytes += bytes;
                false
            }
            _ => false,
        }
    }

    /// Counts a failure. The pause before the next try, or `None` if there is none: the attempt ends.
    pub(super) fn another_try(&mut self, refusal: &Refusal, jitter: u32) -> Option<Duration> {
        let corrupt = matches!(refusal.code, RefusalCode::DigestMismatch | RefusalCode::SizeMismatch);
        let (count, limit) = match (refusal.retry, self.step) {
            (Retry::Never, _) => (0, 0),
            _ if refusal.code.phase() == Phase::VerifyFailed => (0, 0),
            _ if corrupt => {
                self.corrupt += 1;
                (self.corrupt, MAX_CORRUPT)
            }
            (Retry::Now | Retry::Later, Step::Switching) => {
                // Perhaps its files were damaged: verified, completed and tested before the next try.
                self.switch_tries += 1;
                self.step = Step::Manifest;
                (self.switch_tries, MAX_SWITCH_TRIES)
            }
            (Retry::Now | Retry::Later, step) => {
                self.tries += 1;
                let download = step != Step::Testing;
                (self.tries, if download { MAX_DOWNLOAD_TRIES } else { MAX_PROBE_TRIES })
            }
        };
        if count == 0 || count > limit {
            return None;
        }
        (self.waiting, self.test_begun, self.deferred) = (true, false, None);
        Some(if refusal.retry == Retry::Now { Duration::ZERO } else { backoff(count, jitter) })
    }
}

/// 60 s, doubling to 1 h, plus up to a quarter of it.
fn backoff(tries: u32, jitter: u32) -> Duration {
    let doubled = FIRST_RETRY.saturating_mul(1 << tries.saturating_sub(1).min(10));
    let base = doubled.min(LONGEST_RETRY);
    base + base * jitter.min(1_000) / 4_000
}
