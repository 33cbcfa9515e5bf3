//! Pure: what the inputs and answers of one bundle were like in one cohort over some time.

use super::{
    level::{Level, Summed},
    spent::Grant,
    thin::{Share, bounded, rows_in, thinned},
};
use crate::store::Kind;
use edgefleet_shared::telemetry::ProfileContent;
use serde::{Deserialize, Serialize};

pub const PROFILE_HOUR: Kind = Kind::new("profile-hour");
pub const PROFILE_DAY: Kind = Kind::new("profile-day");
/// Categories' part of one document, bytes; with bins and moments it stays below what a document may have.
const CATEGORY_BYTES: usize = 128 << 10;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProfileTotals {
    /// Profiles that count here.
    pub profiles: u64,
    /// Distinct devices in an hour; of longer times the most there were in one of its hours.
    pub devices: u64,
    /// Rows of the device with the most; of longer times their sum, so never too few.
    pub largest: u64,
    /// Rows as devices told them, before they were thinned.
    pub told: u64,
    pub content: ProfileContent,
}

impl ProfileTotals {
    /// Adds a sound profile of one device, thinned to what it was granted.
    pub(super) fn add(&mut self, content: &ProfileContent, grant: Grant) {
        if grant.rows == 0 {
            return;
        }
        self.profiles = self.profiles.saturating_add(1);
        self.devices = self.devices.saturating_add(u64::from(grant.first));
        self.largest = self.largest.max(grant.in_hour);
        self.told = self.told.saturating_add(content.rows);
        self.content.merge(&thinned(content, Share::new(grant.rows, rows_in(content))));
        bounded(&mut self.content, CATEGORY_BYTES);
    }
}

impl Summed for ProfileTotals {
    const LEVELS: &'static [(Level, Kind)] = &[(Level::Hour, PROFILE_HOUR), (Level::Day, PROFILE_DAY)];

    fn merge(&mut self, other: &Self) {
        self.profiles = self.profiles.saturating_add(other.profiles);
        self.devices = self.devices.max(other.devices);
        self.largest = self.largest.saturating_add(other.largest);
        self.told = self.told.saturating_add(other.told);
        self.content.merge(&other.content);
        bounded(&mut self.content, CATEGORY_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            spent::{ROWS_PER_DEVICE_HOUR, Spent},
            thin::tests::profile,
        },
        *,
    };

    /// Ninety-nine devices of 100 rows and one of a million: the one has its 10,000 and not 99 %.
    #[test]
    fn a_single_device_does_not_steer_an_hour() {
        let mut totals = ProfileTotals::default();
        for _ in 0..99 {
            let quiet = profile(vec![100, 0]);
            totals.add(&quiet, Spent::default().take(1, rows_in(&quiet)));
        }
        let mut loud = Spent::default();
        for _ in 0..10 {
            let claimed = profile(vec![0, 100_000]);
            totals.add(&claimed, loud.take(1, rows_in(&claimed)));
        }
        assert!(totals.content.is_sound());
        let [quiet, loud] = totals.content.channels[0].bins[..] else { panic!("two bins") };
        assert_eq!(quiet, 9_900);
        assert!(loud <= ROWS_PER_DEVICE_HOUR && loud > ROWS_PER_DEVICE_HOUR * 8 / 10, "{loud}");
        assert_eq!((totals.devices, totals.largest, totals.told), (100, 10_000, 109_900));
    }

    #[test]
    fn hours_add_up_to_days() {
        let mut day = ProfileTotals::default();
        for hour in 0..24 {
            let mut one = ProfileTotals::default();
            for _ in 0..=hour % 3 {
                let content = profile(vec![10, 20]);
                one.add(&content, Spent::default().take(hour, rows_in(&content)));
            }
            day.merge(&one);
        }
        assert_eq!(
            (day.profiles, day.devices, day.content.channels[0].bins.clone()),
            (48, 3, vec![480, 960])
        );
    }
}
