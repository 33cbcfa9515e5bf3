//! Bounded memories: what keeps the evidence small on fleets of any size and with hostile input.

use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};

/// How much weight the most influential devices carry, in at most [`Influence::KEPT`] entries.
///
/// The Space-Saving sketch (Metwally, Agrawal, El Abbadi, ICDT 2005) with real weights. A device without
/// an entry takes over the lightest one **including its weight**. Hence for every device, kept or not,
/// `true weight <= most()`: a kept device's entry is never below its true weight (it starts at or above
/// what the device can have had before, since the lightest entry only ever grows), and a device without
/// entry was never above the lightest entry, which is at most the heaviest. And `most()` exceeds the true
/// maximum by at most `total / KEPT`, so at most a sixteenth of the evidence is lost to the bound.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Influence(Vec<(DeviceId, f64)>);

impl Influence {
    pub(super) const KEPT: usize = 16;

    pub(super) fn add(&mut self, device: &DeviceId, weight: f64) {
        if !weight.is_finite() || weight <= 0.0 {
            return;
        }
        if let Some((_, held)) = self.0.iter_mut().find(|(id, _)| id == device) {
            *held += weight;
        } else if self.0.len() < Self::KEPT {
            self.0.push((device.clone(), weight));
        } else if let Some(lightest) = self.0.iter_mut().min_by(|a, b| a.1.total_cmp(&b.1)) {
            *lightest = (device.clone(), lightest.1 + weight);
        }
    }

    /// An upper bound of the weight of any one device.
    pub(super) fn most(&self) -> f64 {
        self.0.iter().map(|(_, weight)| *weight).fold(0.0, f64::max)
    }

    /// Distinct devices seen, exact up to [`Influence::KEPT`].
    pub(super) fn devices(&self) -> u32 {
        self.0.len() as u32
    }

    /// The heaviest first.
    pub(super) fn examples(&self, limit: usize) -> Vec<DeviceId> {
        let mut all: Vec<_> = self.0.iter().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        all.into_iter().take(limit).map(|(id, _)| id.clone()).collect()
    }
}

/// Counts by name (stratum or class) for people to read: the first [`Slices::KEPT`] names, the rest as one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Slices(Vec<(String, f64, f64)>);

impl Slices {
    pub(super) const KEPT: usize = 16;
    const REST: &str = "others";

    /// `bad` of `of` more in `name`.
    pub(super) fn add(&mut self, name: &str, bad: f64, of: f64) {
        let name = label(name);
        let at = self.0.iter().position(|(held, _, _)| *held == name);
        let room = self.0.len() + 1 < Self::KEPT;
        let wanted = if at.is_some() || room { name } else { Self::REST.to_owned() };
        let held = match self.0.iter().position(|(held, _, _)| *held == wanted) {
            Some(at) => at,
            None => {
                self.0.push((wanted, 0.0, 0.0));
                self.0.len() - 1
            }
        };
        if let Some((_, b, n)) = self.0.get_mut(held) {
            *b = (*b + bad).clamp(0.0, 1e15);
            *n = (*n + of).clamp(0.0, 1e15);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, f64, f64)> + Clone {
        self.0.iter().map(|(name, bad, of)| (name.as_str(), *bad, *of))
    }

    /// The three with the largest share of bad, each with some bad.
    pub(super) fn worst(&self) -> Vec<super::Slice> {
        let mut all: Vec<_> = self.0.iter().filter(|(_, bad, of)| *bad > 0.0 && *of > 0.0).collect();
        all.sort_by(|a, b| (b.1 / b.2).total_cmp(&(a.1 / a.2)).then_with(|| a.0.cmp(&b.0)));
        all.into_iter()
            .take(3)
            .map(|(name, bad, of)| super::Slice { name: name.clone(), bad: *bad, of: *of })
            .collect()
    }
}

/// At most 32 bytes, nothing that grows when written as JSON.
pub(super) fn label(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        let c = if c.is_control() || c == '"' || c == '\\' { '?' } else { c };
        if out.len() + c.len_utf8() > 32 {
            break;
        }
        out.push(c);
    }
    out
}

/// FNV-1a, 32 bits: names that collide share a risk set or a site, which costs power and not validity.
pub(super) fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn no_device_weighs_more_than_the_bound(adds in prop::collection::vec((0u8..60, 0.0..5.0f64), 0..600)) {
            let (mut sketch, mut truth, mut total) = (Influence::default(), BTreeMap::<u8, f64>::new(), 0.0);
            for (device, weight) in adds {
                sketch.add(&format!("d-{device}").parse().unwrap(), weight);
                *truth.entry(device).or_default() += weight;
                total += weight;
            }
            let most = truth.values().copied().fold(0.0, f64::max);
            prop_assert!(sketch.most() + 1e-9 >= most);
            prop_assert!(sketch.most() <= most + total / Influence::KEPT as f64 + 1e-9);
            prop_assert!(sketch.0.len() <= Influence::KEPT);
        }

        #[test]
        fn slices_and_labels_stay_small(names in prop::collection::vec(".{0,80}", 0..100)) {
            let mut slices = Slices::default();
            for name in &names {
                slices.add(name, 1.0, 2.0);
                prop_assert!(label(name).len() <= 32);
            }
            prop_assert!(slices.iter().count() <= Slices::KEPT);
            let sum: f64 = slices.iter().map(|(_, bad, _)| bad).sum();
            prop_assert_eq!(sum, names.len() as f64);
        }
    }
}
