//! Pure: who was right where the active bundle and a candidate answered the same labelled inputs, and on how many
//! devices.

use edgefleet_shared::{
    digest::BlobDigest,
    ids::{BundleName, DeviceId},
    telemetry::{LabelCounts, Versus},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Candidates told apart in one bucket.
const MAX_CANDIDATES: usize = 8;
/// Smallest hashes of devices that are kept.
const SMALLEST: usize = 32;

/// By candidate. Bounded: what a device makes up stays in the document of a bundle.
pub type VersusByCandidate = BTreeMap<BundleName, VersusTotals>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VersusTotals {
    /// Candidate right, active wrong.
    pub wins: u64,
    /// Candidate wrong, active right.
    pub losses: u64,
    pub both_right: u64,
    pub both_wrong: u64,
    pub devices: DeviceCount,
}

/// How many devices there were: exactly up to 32, about (one in six) beyond. Merging loses nothing.
///
/// Smallest hashes (Bar-Yossef et al., RANDOM 2002): of n hashes spread evenly, the k-th smallest lies at about k/n.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceCount(BTreeSet<u32>);

impl DeviceCount {
    fn add(&mut self, device: &DeviceId) {
        let [a, b, c, d, ..] = *BlobDigest::of(device.as_str().as_bytes()).as_bytes();
        self.insert(u32::from_le_bytes([a, b, c, d]));
    }
    fn insert(&mut self, hash: u32) {
        self.0.insert(hash);
        if self.0.len() > SMALLEST {
            self.0.pop_last();
        }
    }
    pub fn estimate(&self) -> u64 {
        match self.0.last() {
            Some(last) if self.0.len() >= SMALLEST => {
                let place = (f64::from(*last) + 1.0) / (f64::from(u32::MAX) + 1.0);
                ((SMALLEST - 1) as f64 / place).round().max(SMALLEST as f64) as u64
            }
            _ => self.0.len() as u64,
        }
    }
}

impl VersusTotals {
    /// Labelled inputs that both answered.
    pub fn labels(&self) -> u64 {
        [self.wins, self.losses, self.both_right, self.both_wrong].into_iter().fold(0, u64::saturating_add)
    }
    fn merge(&mut self, other: &Self) {
        let add = |mine: &mut u64, theirs: u64| *mine = mine.saturating_add(theirs);
        add(&mut self.wins, other.wins);
        add(&mut self.losses, other.losses);
        add(&mut self.both_right, other.both_right);
        add(&mut self.both_wrong, other.both_wrong);
        other.devices.0.iter().for_each(|hash| self.devices.insert(*hash));
    }
}

fn merge_one(all: &mut VersusByCandidate, candidate: &BundleName, totals: &VersusTotals) {
    if let Some(known) = all.get_mut(candidate) {
        known.merge(totals);
    } else if all.len() < MAX_CANDIDATES {
        let mut new = VersusTotals::default();
        new.merge(totals);
        all.insert(candidate.clone(), new);
    }
}

/// Adds what one device says; nothing if the candidate is of another model or the bundle itself.
pub(super) fn add(all: &mut VersusByCandidate, labels: &LabelCounts, device: &DeviceId) {
    let Some(versus) = &labels.versus else { return };
    let Versus { bundle, wins, losses, both_right, both_wrong, .. } = versus;
    if bundle.model != labels.bundle.model || *bundle == labels.bundle {
        return;
    }
    let (wins, losses, both_right, both_wrong) = (*wins, *losses, *both_right, *both_wrong);
    let mut said = VersusTotals { wins, losses, both_right, both_wrong, devices: DeviceCount::default() };
    if said.labels() > 0 {
        said.devices.add(device);
        merge_one(all, bundle, &said);
    }
}

pub(super) fn merge(all: &mut VersusByCandidate, other: &VersusByCandidate) {
    other.iter().for_each(|(candidate, totals)| merge_one(all, candidate, totals));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(devices: std::ops::Range<u32>) -> DeviceCount {
        let mut count = DeviceCount::default();
        devices.for_each(|n| count.add(&format!("dev-{n}").parse().unwrap()));
        count
    }

    #[test]
    fn few_devices_are_counted_exactly_and_many_about() {
        assert_eq!(count(0..3).estimate(), 3);
        assert_eq!(count(0..31).estimate(), 31);
        for (n, low, high) in [(200, 120, 300), (10_000, 6_000, 15_000)] {
            let found = count(0..n).estimate();
            assert!((low..=high).contains(&found), "{n}: {found}");
        }
    }

    proptest! {
        #[test]
        fn merging_is_counting_together(a in 0..200u32, b in 0..200u32, more in 0..200u32) {
            let one = |devices: DeviceCount| VersusTotals { wins: 1, devices, ..VersusTotals::default() };
            let mut merged = one(count(0..a));
            merged.merge(&one(count(b..b + more)));
            let mut together = count(0..a);
            together.0.extend(count(b..b + more).0);
            while together.0.len() > SMALLEST {
                together.0.pop_last();
            }
            prop_assert_eq!(merged, VersusTotals { wins: 2, devices: together, ..VersusTotals::default() });
        }
    }
}
