//! What the controller wants of one device: one document, one generation, one signature.

use crate::{
    capture::CapturePolicy,
    digest::{BlobDigest, EnvelopeDigest},
    ids::{AttemptId, BundleName, DeviceId, SlotName},
    maintenance::MaintenanceWindow,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const DESIRED_SCHEMA: u32 = 1;

/// The whole desired state of a device, signed by the controller role.
///
/// Level-triggered: a device re-reads it at every connect and moves towards it. Cancel and revert
/// are simply a higher generation. Order is (generation, issued).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    pub schema: u32,
    pub device: DeviceId,
    pub generation: u64,
    pub issued: Timestamp,
    /// 7 to 14 days after `issued`; stops new installs only, never the running bundle.
    pub expires: Timestamp,
    /// Answers a device that lost its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Newest trust version; a device that is behind fetches the chain first.
    pub trust_version: u64,
    pub slots: BTreeMap<SlotName, SlotDesired>,
    #[serde(default)]
    pub settings: Settings,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotDesired {
    pub active: Assigned,
    /// To run beside `active` on the same inputs, answers never returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Assigned>,
    /// How long the device itself watches a new bundle before it commits to it, in seconds.
    #[serde(default = "default_probation_secs")]
    pub probation_secs: u64,
    /// On probation a bundle goes back once its 95th percentile of engine time is over this many percent of
    /// the one it replaced, however generous its own budget. Without it only the budget counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slower_percent: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<Threshold>,
    /// How the candidate is run; the defaults if it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowSettings>,
    /// When another bundle may be activated; at any time without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<MaintenanceWindow>,
}

fn default_probation_secs() -> u64 {
    60
}

/// How much a candidate is given to do, and what counts as the same answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShadowSettings {
    /// Share of the requests that are mirrored, 0 to 1.
    pub share: f64,
    /// Inputs after which nothing more is mirrored; no limit without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<u64>,
    /// Outputs without classes agree if no number differs by more than this.
    pub tolerance: f64,
}
impl Default for ShadowSettings {
    fn default() -> Self {
        Self { share: 1.0, max_rows: None, tolerance: 1e-3 }
    }
}

/// One bundle given to one slot by one attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    pub bundle: BundleName,
    /// The signed release document, fetched as a blob.
    pub release: EnvelopeDigest,
    /// Its exact size in bytes.
    pub release_size: u64,
    pub attempt: AttemptId,
}

/// Ask the device to count how often a metric of a request goes beyond a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    pub id: String,
    pub metric: Metric,
    pub value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Whole time of a request in the agent, milliseconds.
    TotalMs,
    /// Engine time, milliseconds.
    InferMs,
}

/// Which way big blobs travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// HTTPS above [`Settings::https_above_bytes`], MQTT below.
    #[default]
    Auto,
    Mqtt,
    Https,
}

/// How a device behaves, apart from what it serves. Missing fields take their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Length of a telemetry window, seconds.
    pub window_secs: u64,
    /// Length of a profile of inputs and answers, seconds; see [`Profile`](crate::telemetry::Profile).
    pub profile_secs: u64,
    /// Longest silence: a full report is repeated at least this often, seconds.
    pub heartbeat_secs: u64,
    pub transport: Transport,
    pub https_above_bytes: u64,
    /// Payload of one block, bytes: 4 KiB to 128 KiB.
    pub block_bytes: u32,
    /// What is kept of the requests of each slot; nothing where a slot is missing.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub captures: BTreeMap<SlotName, CapturePolicy>,
    #[serde(skip_serializing_if = "TelemetrySettings::is_default")]
    pub telemetry: TelemetrySettings,
}

/// What telemetry may cost on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TelemetrySettings {
    /// Bytes of telemetry messages in 24 hours, 0 for no bound. Beyond it only terminal reports and losses are sent;
    /// the rest waits for the next day, added up by the hour.
    pub bytes_per_day: u64,
    /// What a device does whose owner says that its link is paid by volume.
    pub metered: Metered,
    /// Seconds that a record may wait for company while nothing urgent waits: what goes together is smaller. 0 sends
    /// at once.
    pub hold_secs: u64,
}

impl TelemetrySettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metered {
    /// Everything, as elsewhere.
    #[default]
    Send,
    /// Terminal reports and losses; the rest waits, added up by the hour.
    Essential,
}
impl Default for Settings {
    fn default() -> Self {
        Self {
            window_secs: 300,
            profile_secs: 3_600,
            heartbeat_secs: 60,
            transport: Transport::Auto,
            https_above_bytes: 8 << 20,
            block_bytes: crate::transfer::DEFAULT_BLOCK_BYTES,
            telemetry: TelemetrySettings::default(),
            captures: BTreeMap::new(),
        }
    }
}

impl Desired {
    /// Digest of everything but `issued`, `expires` and `nonce`: equal generations must have equal
    /// content, whenever they were signed.
    pub fn content_digest(&self) -> BlobDigest {
        let bare = Self { issued: Timestamp::EPOCH, expires: Timestamp::EPOCH, nonce: None, ..self.clone() };
        BlobDigest::of(&serde_json::to_vec(&bare).unwrap_or_default()) // plain data: cannot fail
    }
}
