//! Profile version 1: what the inputs and answers of one bundle were like on one device.
//!
//! A record beside [`Window`](super::Window), cut more rarely: 32 histograms of 22 bins that hold a few hundred rows
//! each carry some 10 bytes of surprise apiece, so every five minutes they would cost 100 KB a day however well they
//! were packed.

use super::{channel::Channel, channel::MAX_CHANNELS, window::MAX_KEYS, window::Role};
use crate::{
    digest::BundleDigest,
    ids::{AttemptId, BundleName, SlotName},
    reported::ClockQuality,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest key of a map, bytes.
const MAX_KEY_BYTES: usize = 128;

/// Cut at every change of bundle, attempt or role, like a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub slot: SlotName,
    pub bundle: BundleName,
    pub digest: BundleDigest,
    pub role: Role,
    pub attempt: AttemptId,
    /// Milliseconds since the agent's start.
    pub mono_start_ms: u64,
    pub mono_end_ms: u64,
    pub wall_start: Timestamp,
    pub wall_end: Timestamp,
    pub clock: ClockQuality,
    #[serde(flatten)]
    pub content: ProfileContent,
}

/// The part of a profile that adds up over devices and time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProfileContent {
    /// Rows that were answered.
    pub rows: u64,
    /// Ascending by id; at most [`MAX_CHANNELS`].
    pub channels: Vec<Channel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Inputs that could not be taken as they were, by kind (`decode_image`, `out-of-range:age`, ...).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, u64>,
    /// How often inputs come again; absent where nothing counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeats: Option<Repeats>,
}

/// Inputs that come again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Repeats {
    /// Rows that were looked at.
    pub rows: u64,
    /// Of these, rows unlike each other in some channel: estimated, within one profile of one device, then added up.
    pub distinct: u64,
    /// Of `rows`, those that came while the device remembered answers.
    pub remembered: u64,
}

impl Repeats {
    fn merge(&mut self, other: &Self) {
        self.rows = self.rows.saturating_add(other.rows);
        self.distinct = self.distinct.saturating_add(other.distinct);
        self.remembered = self.remembered.saturating_add(other.remembered);
    }
}

/// Accuracy estimated without labels, from the calibrated confidence. Sums, so that they add up.
///
/// Source: CBPE as in NannyML's documentation of confidence-based performance estimation; ATC in Garg et al.,
/// "Leveraging unlabeled data to predict out-of-distribution performance", ICLR 2022 (arXiv 2201.04234).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quality {
    /// Rows with a confidence.
    pub n: u64,
    /// Sum over rows of the calibrated probability p that the answer is right.
    pub expected_correct: f64,
    /// Sum over rows of p (1 - p).
    pub variance: f64,
    /// Rows whose confidence is at or above the baseline's threshold.
    pub above: u64,
    /// By predicted class, `other` beyond [`MAX_KEYS`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, ClassQuality>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClassQuality {
    pub n: u64,
    pub expected_correct: f64,
}

impl ProfileContent {
    pub fn channel(&self, id: &str) -> Option<&Channel> {
        self.channels.iter().find(|channel| channel.id.as_str() == id)
    }

    pub fn merge(&mut self, other: &Self) {
        self.rows = self.rows.saturating_add(other.rows);
        for theirs in &other.channels {
            match self.channels.binary_search_by(|mine| mine.id.cmp(&theirs.id)) {
                Ok(at) => self.channels[at].merge(theirs),
                Err(at) if self.channels.len() < MAX_CHANNELS => self.channels.insert(at, theirs.clone()),
                Err(_) => {}
            }
        }
        if let Some(theirs) = &other.quality {
            self.quality.get_or_insert_default().merge(theirs);
        }
        for (kind, n) in &other.faults {
            let sum = bounded(&mut self.faults, kind);
            *sum = sum.saturating_add(*n);
        }
        if let Some(theirs) = &other.repeats {
            self.repeats.get_or_insert_default().merge(theirs);
        }
    }

    /// Whether this can be true and is within bounds; a device may claim anything.
    pub fn is_sound(&self) -> bool {
        self.channels.len() <= MAX_CHANNELS
            && self.channels.is_sorted_by(|a, b| a.id < b.id)
            && self.channels.iter().all(Channel::is_sound)
            && self.faults.len() <= MAX_KEYS
            && self.faults.keys().all(|kind| kind.len() <= MAX_KEY_BYTES)
            && self.quality.as_ref().is_none_or(Quality::is_sound)
            && self.repeats.is_none_or(|repeats| {
                repeats.rows <= self.rows && repeats.distinct.max(repeats.remembered) <= repeats.rows
            })
    }
}

impl Quality {
    pub fn merge(&mut self, other: &Self) {
        self.n = self.n.saturating_add(other.n);
        self.expected_correct += other.expected_correct;
        self.variance += other.variance;
        self.above = self.above.saturating_add(other.above);
        for (class, theirs) in &other.classes {
            let mine = bounded(&mut self.classes, class);
            mine.n = mine.n.saturating_add(theirs.n);
            mine.expected_correct += theirs.expected_correct;
        }
    }

    /// Expected accuracy by CBPE, 0 to 1; `None` without rows.
    pub fn cbpe(&self) -> Option<f64> {
        (self.n > 0).then(|| self.expected_correct / self.n as f64)
    }
    /// Expected accuracy by ATC, 0 to 1; `None` without rows.
    pub fn atc(&self) -> Option<f64> {
        (self.n > 0).then(|| self.above as f64 / self.n as f64)
    }

    fn is_sound(&self) -> bool {
        let within = |sum: f64, n: u64| sum >= 0.0 && sum <= n as f64 * (1.0 + 1e-9) + 1e-9;
        within(self.expected_correct, self.n)
            && within(4.0 * self.variance, self.n)
            && self.above <= self.n
            && self.classes.len() <= MAX_KEYS
            && self.classes.iter().all(|(name, class)| {
                name.len() <= MAX_KEY_BYTES && class.n <= self.n && within(class.expected_correct, class.n)
            })
    }
}

/// The entry under `key`, or under `other` if that is too long or the map is full.
fn bounded<'a, T: Default>(map: &'a mut BTreeMap<String, T>, key: &str) -> &'a mut T {
    let fits = key.len() <= MAX_KEY_BYTES && (map.contains_key(key) || map.len() + 1 < MAX_KEYS);
    map.entry(if fits { key } else { super::channel::OTHER }.to_owned()).or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(id: &str, n: u64) -> ProfileContent {
        let mut channel = Channel::new(id.parse().unwrap());
        (channel.n, channel.bins) = (n, vec![n, 0]);
        let class = ClassQuality { n, expected_correct: 0.9 * n as f64 };
        let quality = Quality {
            n,
            expected_correct: 0.9 * n as f64,
            variance: 0.09 * n as f64,
            above: n / 2,
            classes: [("7".to_owned(), class)].into(),
        };
        let faults = [("decode_image".to_owned(), 1)].into();
        let repeats = Some(Repeats { rows: n, distinct: n / 2, remembered: 0 });
        ProfileContent { rows: n, channels: vec![channel], quality: Some(quality), faults, repeats }
    }

    #[test]
    fn profiles_add_up_and_stay_sorted() {
        let mut sum = content("input/b", 10);
        for (id, n) in [("input/c", 4), ("input/a", 6), ("input/b", 20)] {
            sum.merge(&content(id, n));
            assert!(sum.is_sound());
        }
        let ids: Vec<_> = sum.channels.iter().map(|c| (c.id.to_string(), c.n)).collect();
        assert_eq!(ids, [("input/a".into(), 6), ("input/b".into(), 30), ("input/c".into(), 4)]);
        let quality = sum.quality.as_ref().unwrap();
        assert_eq!((quality.n, quality.classes["7"].n, sum.faults["decode_image"]), (40, 40, 4));
        assert!((quality.cbpe().unwrap() - 0.9).abs() < 1e-12 && quality.atc() == Some(0.5));
    }

    #[test]
    fn it_stays_within_its_bounds_whatever_is_added() {
        let mut sum = ProfileContent::default();
        for n in 0..500 {
            let mut one = content(&format!("input/{n:03}"), 1);
            one.faults = [(format!("fault-{n}"), 1)].into();
            one.quality.as_mut().unwrap().classes =
                [(n.to_string(), ClassQuality { n: 1, expected_correct: 0.5 })].into();
            sum.merge(&one);
        }
        assert!(sum.is_sound());
        assert_eq!(sum.channels.len(), MAX_CHANNELS);
        assert_eq!(sum.faults.values().sum::<u64>(), 500);
        assert_eq!(sum.quality.unwrap().classes.values().map(|c| c.n).sum::<u64>(), 500);
    }

    #[test]
    fn impossible_claims_are_seen() {
        let claims: [fn(&mut ProfileContent); 7] = [
            |p| p.quality.as_mut().unwrap().expected_correct = 11.0,
            |p| p.quality.as_mut().unwrap().variance = f64::NAN,
            |p| p.repeats.as_mut().unwrap().distinct = 1_000_000,
            |p| p.repeats.as_mut().unwrap().rows = 1_000_000,
            |p| p.quality.as_mut().unwrap().above = 11,
            |p| p.channels.push(p.channels[0].clone()),
            |p| p.faults = [("x".repeat(129), 1)].into(),
        ];
        for claim in claims {
            let mut odd = content("input/a", 10);
            assert!(odd.is_sound());
            claim(&mut odd);
            assert!(!odd.is_sound(), "{odd:?}");
        }
    }
}
