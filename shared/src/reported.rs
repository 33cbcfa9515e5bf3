//! What a device says it is: a full report at every connect and at every change.

mod engines;

pub use engines::{ChosenAgain, EngineReport, MeasuredSetup, RefusedSetup, WhyAgain};

use crate::{
    digest::BundleDigest,
    ids::{AttemptId, BootId, BundleName, DeviceId, SlotName},
    time::Timestamp,
    trust::TrustError,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

pub const REPORTED_SCHEMA: u32 = 1;
/// Largest report that is kept whole, as JSON in bytes.
pub const MAX_REPORT_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reported {
    pub schema: u32,
    pub device: DeviceId,
    pub boot: BootId,
    /// Counts this boot's reports from 1; one that overtakes a newer one is told by it. 0: not counted.
    #[serde(default)]
    pub seq: u64,
    /// Device clock, believed only as far as `clock` says.
    pub at: Timestamp,
    pub clock: ClockQuality,
    /// Highest generation accepted.
    pub generation: u64,
    pub trust_version: u64,
    /// Present while the device has lost its state: the next desired state must carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    pub slots: BTreeMap<SlotName, SlotReport>,
    /// The last signed document that was refused as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    pub facts: Facts,
}

impl Reported {
    /// Keeps what devices make up of their engines within bounds.
    pub fn bound_engines(&mut self) {
        for slot in self.slots.values_mut() {
            slot.engine = slot.engine.take().map(EngineReport::bounded);
        }
    }
    /// The same report, without how the slots run.
    pub fn forget_engines(&mut self) {
        self.slots.values_mut().for_each(|slot| slot.engine = None);
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotReport {
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Installed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Installed>,
    /// What it is moving to, while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Installed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Refusal>,
    /// The bundle that runs, or will run, in the active one's shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<CandidateReport>,
    /// What holds the slot up while its phase is [`Phase::Deferred`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deferred: Option<Deferred>,
    /// How the active bundle is run here, and what that was chosen from. Not of slots of engine packs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineReport>,
}

/// Where a candidate is, and what it was given to do since the agent started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CandidateReport {
    pub installed: Installed,
    /// [`Phase::Fetching`], `Verified`, `Testing`, `Shadowing`, or a failure.
    pub phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Refusal>,
    /// Inputs it was given.
    #[serde(default)]
    pub mirrored: u64,
    /// Requests that were to be mirrored and were not, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shed: BTreeMap<ShedReason, u64>,
}

/// Why a request was not mirrored: the active bundle comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShedReason {
    /// The candidate is behind.
    QueueFull,
    /// The active bundle got slower.
    Latency,
    /// The device is short of memory.
    Memory,
    /// The device is hot.
    Heat,
    /// It has had the inputs it was to have.
    Quota,
    /// Written by a newer agent.
    #[serde(other)]
    Unknown,
}
impl ShedReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::Latency => "latency",
            Self::Memory => "memory",
            Self::Heat => "heat",
            Self::Quota => "quota",
            Self::Unknown => "unknown",
        }
    }
}
impl fmt::Display for ShedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a slot waits for before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferred {
    pub reason: DeferReason,
    /// When it is looked at again, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeferReason {
    /// The maintenance window is closed.
    Window,
    /// The device does not know the window's time zone.
    ZoneUnknown,
    /// The device is busy with something that goes first.
    Busy,
    /// Written by a newer agent.
    #[serde(other)]
    Unknown,
}
impl DeferReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Window => "window",
            Self::ZoneUnknown => "zone-unknown",
            Self::Busy => "busy",
            Self::Unknown => "unknown",
        }
    }
}
impl fmt::Display for DeferReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A bundle on a device and the attempt that brought it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    pub bundle: BundleName,
    /// Unknown until its release has been read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<BundleDigest>,
    pub attempt: AttemptId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// Where a device's slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    Idle,
    Deferred,
    Fetching,
    Verified,
    Testing,
    Shadowing,
    Switching,
    Probation,
    Committed,
    Incompatible,
    DownloadFailed,
    VerifyFailed,
    PreflightFailed,
    RolledBackLocal,
    TimedOut,
}

impl Phase {
    /// The attempt is over: nothing more happens without a new desired state.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Committed) || self.is_failure()
    }
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Incompatible
                | Self::DownloadFailed
                | Self::VerifyFailed
                | Self::PreflightFailed
                | Self::RolledBackLocal
                | Self::TimedOut
        )
    }
}
impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad`, so that tables can align it.
        f.pad(match self {
            Self::Idle => "idle",
            Self::Deferred => "deferred",
            Self::Fetching => "fetching",
            Self::Verified => "verified",
            Self::Testing => "testing",
            Self::Shadowing => "shadowing",
            Self::Switching => "switching",
            Self::Probation => "probation",
            Self::Committed => "committed",
            Self::Incompatible => "incompatible",
            Self::DownloadFailed => "download-failed",
            Self::VerifyFailed => "verify-failed",
            Self::PreflightFailed => "preflight-failed",
            Self::RolledBackLocal => "rolled-back-local",
            Self::TimedOut => "timed-out",
        })
    }
}

/// How far a device's wall clock can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockQuality {
    /// Within 400 days above the signed floor.
    Plausible,
    /// Below the floor: the floor was used instead.
    BehindFloor,
    /// More than 400 days above the floor.
    FarAhead,
}

/// Whether the same thing may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    Now,
    Later,
    Never,
}

/// Why a device refused or gave up something. Reaches the controller and is shown as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub code: RefusalCode,
    pub retry: Retry,
    /// One sentence for people, with names and numbers.
    pub message: String,
    /// The bundle or document it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<AttemptId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    pub at: Timestamp,
}

macro_rules! refusal_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal => $retry:ident, $phase:ident;)*) => {
        /// Machine-readable kind of a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum RefusalCode {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
            /// Written by a newer agent.
            #[serde(other, rename = "unknown")]
            Unknown,
        }
        impl RefusalCode {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown => "unknown",
                }
            }
            /// The retry class that goes with this kind.
            pub fn retry(self) -> Retry {
                match self {
                    $(Self::$name => Retry::$retry,)*
                    Self::Unknown => Retry::Later,
                }
            }
            /// The failure phase a slot ends in.
            pub fn phase(self) -> Phase {
                match self {
                    $(Self::$name => Phase::$phase,)*
                    Self::Unknown => Phase::PreflightFailed,
                }
            }
        }
    };
}

refusal_codes! {
    SignatureInvalid = "signature-invalid" => Never, VerifyFailed;
    /// A document of an older generation.
    GenerationReplayed = "generation-replayed" => Never, VerifyFailed;
    /// One generation, two contents.
    Equivocation = "equivocation" => Never, VerifyFailed;
    BelowFloor = "below-floor" => Never, VerifyFailed;
    Expired = "expired" => Later, VerifyFailed;
    WrongDevice = "wrong-device" => Never, VerifyFailed;
    TrustChain = "trust-chain" => Never, VerifyFailed;
    /// A newer trust document exists but did not arrive.
    TrustBehind = "trust-behind" => Later, VerifyFailed;
    ReleaseMismatch = "release-mismatch" => Never, VerifyFailed;
    StateLost = "state-lost" => Later, VerifyFailed;
    DocumentMalformed = "document-malformed" => Never, VerifyFailed;
    UnknownSchema = "unknown-schema" => Never, Incompatible;
    DigestMismatch = "digest-mismatch" => Later, DownloadFailed;
    SizeMismatch = "size-mismatch" => Later, DownloadFailed;
    NotFound = "not-found" => Later, DownloadFailed;
    TransferTimeout = "transfer-timeout" => Later, DownloadFailed;
    DiskFull = "disk-full" => Later, DownloadFailed;
    StorageFailed = "storage-failed" => Later, DownloadFailed;
    WrongHardware = "wrong-hardware" => Never, Incompatible;
    NoArtifact = "no-artifact" => Never, Incompatible;
    ManifestInvalid = "manifest-invalid" => Never, PreflightFailed;
    ModelInvalid = "model-invalid" => Never, PreflightFailed;
    UnsupportedOperator = "unsupported-operator" => Never, Incompatible;
    InterfaceMismatch = "interface-mismatch" => Never, PreflightFailed;
    GoldenMismatch = "golden-mismatch" => Never, PreflightFailed;
    OverMemory = "over-memory" => Never, PreflightFailed;
    OverLatency = "over-latency" => Never, PreflightFailed;
    ProbeCrashed = "probe-crashed" => Never, PreflightFailed;
    ProbeTimedOut = "probe-timed-out" => Never, PreflightFailed;
    ProbeUnavailable = "probe-unavailable" => Later, PreflightFailed;
    ActivationFailed = "activation-failed" => Later, PreflightFailed;
    CrashLoop = "crash-loop" => Never, RolledBackLocal;
    Unhealthy = "unhealthy" => Never, RolledBackLocal;
    /// Too slow while it served on probation.
    Latency = "latency" => Never, RolledBackLocal;
    /// Too much memory while it served on probation.
    Memory = "memory" => Never, RolledBackLocal;
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<&TrustError> for RefusalCode {
    fn from(error: &TrustError) -> Self {
        match error {
            TrustError::TooLarge { .. } | TrustError::Malformed { .. } | TrustError::WrongType { .. } => {
                Self::DocumentMalformed
            }
            TrustError::Threshold { .. } => Self::SignatureInvalid,
            TrustError::TrustOrder { .. } | TrustError::TrustInvalid { .. } | TrustError::TrustPin => {
                Self::TrustChain
            }
            TrustError::TrustBehind { .. } => Self::TrustBehind,
            TrustError::Expired { .. } => Self::Expired,
            TrustError::WrongDevice { .. } => Self::WrongDevice,
            TrustError::UnknownSchema { .. } => Self::UnknownSchema,
            TrustError::Replayed { .. } => Self::GenerationReplayed,
            TrustError::Equivocation { .. } => Self::Equivocation,
            TrustError::NonceMissing => Self::StateLost,
            TrustError::ReleaseMismatch { .. } => Self::ReleaseMismatch,
            TrustError::BelowFloor { .. } => Self::BelowFloor,
            TrustError::WrongHardware { .. } => Self::WrongHardware,
        }
    }
}

/// Claims of a device about itself. They never grant rights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    pub agent_version: String,
    pub arch: String,
    pub os: String,
    pub cpu: String,
    pub cores: u32,
    pub memory_bytes: u64,
    /// Hardware class, as bundles name it; from the agent's configuration.
    pub hardware: String,
    pub hostname: String,
    /// Engines that can run models, as `name version`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_written_as_they_are_named() {
        for code in RefusalCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
            assert!(code.phase().is_failure(), "{code}");
        }
        let newer: RefusalCode = serde_json::from_str(r#""from-the-future""#).unwrap();
        assert_eq!(newer, RefusalCode::Unknown);
    }

    #[test]
    fn what_a_newer_agent_says_is_still_a_report() {
        let said = r#"{"phase":"deferred","deferred":{"reason":"battery"},"candidate":{"phase":"shadowing",
            "installed":{"bundle":"digits@2","attempt":{"rollout":"r-1","number":1}},"shed":{"moonlight":3}}}"#;
        let report: SlotReport = serde_json::from_str(said).unwrap();
        assert_eq!(report.deferred, Some(Deferred { reason: DeferReason::Unknown, until: None }));
        assert_eq!(report.candidate.unwrap().shed, [(ShedReason::Unknown, 3)].into());
    }
}
