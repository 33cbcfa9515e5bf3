//! Pure: what one device's inputs and answers were like lately and are like usually, for one bundle and role.
//!
//! One document per device, bundle and role, zstd over JSON: 50,000 of them should fit on a small disk.

use super::{
    level::start_of,
    spent::Spent,
    thin::{Share, bounded, thinned},
};
use crate::store::Kind;
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    telemetry::{ProfileContent, Role},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub const DEVICE_PROFILE: Kind = Kind::new("device-profile");
/// Profiles kept as they came.
const RECENT: usize = 3;
/// What a week ago counts half.
const HALF_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Steps in which the usual fades: whole counts would be rounded away, or never fade, in smaller ones.
const STEP: Duration = Duration::from_secs(86_400);
/// Categories' part of one profile, bytes.
const CATEGORY_BYTES: usize = 16 << 10;
/// Largest document unpacked, bytes: four profiles of at most 300 KB.
const MAX_UNPACKED: usize = 2 << 20;

/// `device/bundle`, or `device/bundle/shadow`.
pub fn device_profile_id(device: &DeviceId, bundle: &BundleName, role: Role) -> String {
    match role {
        Role::Primary => format!("{device}/{bundle}"),
        Role::Shadow => format!("{device}/{bundle}/shadow"),
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceProfile {
    /// When the last one came.
    pub last: Timestamp,
    /// The latest, oldest first, as the device told them.
    pub recent: Vec<Recent>,
    /// Everything before them, the older the less.
    pub usual: Usual,
    pub(super) spent: Spent,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    pub start: Timestamp,
    pub end: Timestamp,
    pub content: ProfileContent,
}

/// Counts that halve in a week.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usual {
    /// The day as of which it has faded.
    pub as_of: Timestamp,
    pub content: ProfileContent,
}

/// Why a stored document is none.
#[derive(Debug, thiserror::Error)]
pub enum DeviceProfileError {
    #[error("it cannot be unpacked")]
    Packing(#[source] std::io::Error),
    #[error("it is not JSON of the expected form")]
    Form(#[source] serde_json::Error),
}

impl DeviceProfile {
    /// Takes a sound profile in. One that comes late takes its place by time.
    pub fn add(&mut self, start: Timestamp, end: Timestamp, content: &ProfileContent, now: Timestamp) {
        self.last = now;
        let mut content = content.clone();
        bounded(&mut content, CATEGORY_BYTES);
        let at = self.recent.partition_point(|one| one.start <= start);
        self.recent.insert(at, Recent { start, end, content });
        if self.recent.len() > RECENT {
            let oldest = self.recent.remove(0);
            self.usual.take(oldest.start, &oldest.content);
        }
    }

    /// The latest together.
    pub fn lately(&self) -> ProfileContent {
        self.recent.iter().fold(ProfileContent::default(), |mut sum, one| {
            sum.merge(&one.content);
            sum
        })
    }

    /// As it is stored.
    ///
    /// # Errors
    /// [`DeviceProfileError`] if it has no JSON form.
    pub fn to_bytes(&self) -> Result<Vec<u8>, DeviceProfileError> {
        let json = serde_json::to_vec(self).map_err(DeviceProfileError::Form)?;
        zstd::bulk::compress(&json, 3).map_err(DeviceProfileError::Packing)
    }

    /// # Errors
    /// [`DeviceProfileError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DeviceProfileError> {
        let json = zstd::bulk::decompress(bytes, MAX_UNPACKED).map_err(DeviceProfileError::Packing)?;
        serde_json::from_slice(&json).map_err(DeviceProfileError::Form)
    }
}

impl Usual {
    /// Takes a sound profile in that began at `start`.
    pub fn take(&mut self, start: Timestamp, content: &ProfileContent) {
        let day = start_of(STEP, start);
        if day > self.as_of {
            self.content = thinned(&self.content, left_after(day.since(self.as_of)));
            self.as_of = day;
            self.content.merge(content);
        } else {
            self.content.merge(&thinned(content, left_after(self.as_of.since(day))));
        }
        bounded(&mut self.content, CATEGORY_BYTES);
    }
}

/// What is left of a count after a time.
fn left_after(age: Duration) -> Share {
    Share::of_unit((-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2())
}

#[cfg(test)]
mod tests {
    use super::{super::thin::tests::profile, *};
    use edgefleet_shared::telemetry::Channel;

    fn hour(n: u64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 / 86_400 * 86_400 + n * 3_600)
    }
    fn end(n: u64) -> Timestamp {
        hour(n + 1)
    }

    #[test]
    fn the_latest_stay_as_they_were_and_the_older_fade_by_half_in_a_week() {
        let mut own = DeviceProfile::default();
        for n in 0..24 {
            own.add(hour(n), end(n), &profile(vec![100, 50]), end(n));
        }
        let starts: Vec<_> = own.recent.iter().map(|one| one.start).collect();
        assert_eq!(starts, [hour(21), hour(22), hour(23)]);
        assert_eq!((own.lately().rows, own.usual.content.rows), (450, 21 * 150));
        // A week later nothing else has come but what pushes the three out.
        for n in 0..3 {
            own.add(hour(7 * 24 + n), end(7 * 24 + n), &profile(vec![0, 8]), end(7 * 24 + n));
        }
        assert_eq!(own.usual.content.rows, 24 * 150, "these were of the first day");
        for n in 3..6 {
            own.add(hour(7 * 24 + n), end(7 * 24 + n), &profile(vec![0, 8]), end(7 * 24 + n));
        }
        let usual = &own.usual.content;
        assert!(usual.is_sound());
        assert_eq!((usual.rows, usual.channels[0].bins.clone()), (12 * 150 + 24, vec![1_200, 600 + 24]));
    }

    #[test]
    fn a_late_profile_takes_its_place_by_time() {
        let mut own = DeviceProfile::default();
        for n in [10, 12, 11] {
            own.add(hour(n), end(n), &profile(vec![n]), end(20));
        }
        assert_eq!(own.recent.iter().map(|one| one.content.rows).collect::<Vec<_>>(), [10, 11, 12]);
        own.add(hour(200), end(200), &profile(vec![200]), end(200));
        // Older than all: it goes to the usual at once, faded by its age.
        let before = own.usual.content.rows;
        own.add(hour(10), end(10), &profile(vec![1_000]), end(200));
        assert_eq!(own.usual.content.rows, before + 1_000);
        assert_eq!(own.recent[0].start, hour(11));
    }

    /// Thirty-two numbers of 22 bins, a few hundred rows an hour, for a month: what a document of 50,000 devices costs.
    #[test]
    fn a_document_is_small_enough_for_fifty_thousand_devices() {
        let mut own = DeviceProfile::default();
        let mut seed = 1u64;
        let mut next = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f64 / (1u64 << 24) as f64
        };
        for n in 0..720 {
            let mut content = ProfileContent { rows: 360, ..ProfileContent::default() };
            for at in 0..32 {
                let mut channel = Channel::new(format!("input/features/{at:02}").parse().unwrap());
                channel.bins = vec![0; 22];
                for _ in 0..360 {
                    let x = (next() + next() + next()) / 3.0;
                    channel.moments.take(x);
                    channel.bins[(x * 22.0) as usize] += 1;
                    channel.n += 1;
                }
                channel.lag1 = next();
                content.channels.push(channel);
            }
            assert!(content.is_sound());
            own.add(hour(n), end(n), &content, end(n));
        }
        let bytes = own.to_bytes().unwrap();
        println!("device-profile: {} bytes", bytes.len());
        assert!(bytes.len() < 16 << 10, "{}", bytes.len());
        let read = DeviceProfile::parse(&bytes).unwrap(); // JSON keeps all but the last bit of a number
        let bins = |own: &DeviceProfile| own.usual.content.channels[7].bins.clone();
        assert_eq!((bins(&read), &read.spent, read.recent.len()), (bins(&own), &own.spent, 3));
    }

    #[test]
    fn damaged_documents_are_named() {
        assert!(matches!(DeviceProfile::parse(b"{}"), Err(DeviceProfileError::Packing(_))));
        let packed = zstd::bulk::compress(b"[1]", 3).unwrap();
        assert!(matches!(DeviceProfile::parse(&packed), Err(DeviceProfileError::Form(_))));
        let bomb = zstd::bulk::compress(&vec![b' '; 64 << 20], 3).unwrap();
        assert!(matches!(DeviceProfile::parse(&bomb), Err(DeviceProfileError::Packing(_))));
    }
}
