//! Hard failures: a device that went back, was lost, or refused the bundle. Counted, not tested.

use super::observation::HardFailure;
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};

/// Devices of one kind of failure, each once as long as it is among those kept by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Failed {
    pub(super) devices: u32,
    pub(super) named: Vec<DeviceId>,
}

impl Failed {
    const NAMED: usize = 8;

    fn add(&mut self, device: &DeviceId) {
        if self.named.contains(device) {
            return;
        }
        self.devices = self.devices.saturating_add(1);
        if self.named.len() < Self::NAMED {
            self.named.push(device.clone());
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Hard {
    pub(super) refused: Failed,
    pub(super) rolled_back: Failed,
    pub(super) lost: Failed,
}

impl Hard {
    pub(super) fn add(&mut self, device: &DeviceId, failure: HardFailure) {
        match failure {
            HardFailure::Refused => self.refused.add(device),
            HardFailure::RolledBack => self.rolled_back.add(device),
            HardFailure::Lost => self.lost.add(device),
        }
    }

    /// Whether one kind has reached both `failures` devices and more than `share` of the canaries.
    pub(super) fn fails(&self, failures: u32, share: f64, canaries: u32) -> bool {
        [&self.rolled_back, &self.lost].into_iter().any(|kind| {
            kind.devices >= failures.max(1) && f64::from(kind.devices) > share * f64::from(canaries)
        })
    }

    /// A refusal asks for a person at once while the stage is small, later from two devices on
    /// (DECISIONS 12); 50 canaries are the largest canary stage of the default plan.
    pub(super) fn alarms(&self, canaries: u32) -> bool {
        self.refused.devices >= if canaries <= 50 { 1 } else { 2 }
    }
}
