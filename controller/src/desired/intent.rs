//! What one part of the controller wants of one slot of one device.

use crate::store::Kind;
use edgefleet_shared::{
    desired::Assigned,
    ids::{DeviceId, RolloutId, SlotName},
};
use serde::{Deserialize, Serialize};

pub const INTENT: Kind = Kind::new("intent");

/// The wish of a rollout (an assignment by hand is one of a single stage) for one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub device: DeviceId,
    pub slot: SlotName,
    pub active: Assigned,
    pub probation_secs: u64,
    /// Who put it there; a later rollout of the slot replaces it.
    pub rollout: RolloutId,
}

/// `device/slot`: all intents of a device are one prefix.
pub fn intent_id(device: &DeviceId, slot: &SlotName) -> String {
    format!("{device}/{slot}")
}
