//! What one part of the controller wants of one slot of one device.

use crate::store::Kind;
use edgefleet_shared::{
    desired::Assigned,
    ids::{DeviceId, RolloutId, SlotName},
    maintenance::MaintenanceWindow,
};
use serde::{Deserialize, Serialize};

pub const INTENT: Kind = Kind::new("intent");

/// What rollouts want of one slot (an assignment by hand is a rollout of a single stage).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub device: DeviceId,
    pub slot: SlotName,
    /// What shall answer. Absent before the first bundle, and after a first one was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Assigned>,
    /// What shall run beside it as a shadow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Assigned>,
    pub probation_secs: u64,
    /// How slow a bundle may be beside the one before it, percent, before the device goes back by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slower_percent: Option<u32>,
    /// Results that take longer than this in the agent are counted, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_us: Option<u64>,
    /// When the device may activate, in its own time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<MaintenanceWindow>,
    /// The open rollout this slot is a member of, be it to get the bundle or to be compared with. One at a
    /// time: it is the lock on the slot, and where the slot's telemetry counts as evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<RolloutId>,
}

impl Intent {
    /// Nothing is wanted of the slot yet.
    pub fn empty(device: DeviceId, slot: SlotName) -> Self {
        Self {
            device,
            slot,
            active: None,
            candidate: None,
            probation_secs: 60,
            slower_percent: None,
            slow_us: None,
            window: None,
            trial: None,
        }
    }
}

/// `device/slot`: all intents of a device are one prefix.
pub fn intent_id(device: &DeviceId, slot: &SlotName) -> String {
    format!("{device}/{slot}")
}
