//! Pure: what one device has served, by bundle, and which of its records are stored.

use super::{
    aggregate::{LabelTotals, add_counts, add_latency},
    dedup::Seen,
    health::CpuSeen,
    hours::Hours,
};
use crate::store::Kind;
use edgefleet_shared::{
    ids::{BundleName, SlotName},
    telemetry::{Counts, LabelCounts, Latency, Role, Window},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

pub const DEVICE_TELEMETRY: Kind = Kind::new("device-telemetry");
/// Bundles remembered for each device: the ones of late labels are long past.
const MAX_BUNDLES: usize = 8;

/// One document per device, written with every batch: acknowledgements and totals move together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceTelemetry {
    pub seen: Seen,
    /// Most recently used last.
    pub bundles: Vec<BundleTotals>,
    /// Records the device itself lost, as it says.
    pub dropped: u64,
    pub last: Timestamp,
    /// What it last said of its processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuSeen>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleTotals {
    pub slot: SlotName,
    pub bundle: BundleName,
    #[serde(default)]
    pub counts: Counts,
    #[serde(default)]
    pub latency: Latency,
    #[serde(default)]
    pub labels: LabelTotals,
    #[serde(default)]
    pub hours: Hours,
}

impl DeviceTelemetry {
    fn totals(&mut self, slot: &SlotName, bundle: &BundleName) -> &mut BundleTotals {
        let known = self.bundles.iter().position(|t| t.slot == *slot && t.bundle == *bundle);
        let totals = match known {
            Some(at) => self.bundles.remove(at),
            None => BundleTotals {
                slot: slot.clone(),
                bundle: bundle.clone(),
                counts: Counts::default(),
                latency: Latency::default(),
                labels: LabelTotals::default(),
                hours: Hours::default(),
            },
        };
        if self.bundles.len() >= MAX_BUNDLES {
            self.bundles.remove(0);
        }
        self.bundles.push(totals);
        let last = self.bundles.len() - 1;
        &mut self.bundles[last]
    }

    pub fn add_window(&mut self, window: &Window) {
        if window.role == Role::Shadow {
            return; // shadows answer nobody
        }
        let totals = self.totals(&window.slot, &window.bundle);
        add_counts(&mut totals.counts, &window.counts);
        add_latency(&mut totals.latency, &window.latency);
        totals.hours.add(window);
    }

    pub fn add_labels(&mut self, labels: &LabelCounts) {
        self.totals(&labels.slot, &labels.bundle).labels.add_counts(labels);
    }
}
