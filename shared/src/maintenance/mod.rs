//! When a device may change what it serves: a schedule, a length and a zone.
//!
//! Pure: the zone's rules come in as a value, so that a device decides by itself, offline, and the
//! controller can say beforehand what it will decide. A local time that a change to summer time skips
//! opens at the next minute that exists; one that comes twice opens once, the first time.

pub mod cron;
pub mod zone;

pub use cron::{Cron, CronError};
pub use jiff::tz::TimeZone;
pub use zone::{Zone, ZoneError};

use crate::time::Timestamp;
use jiff::{
    civil::{Date, DateTime},
    tz::AmbiguousOffset,
};
use serde::{Deserialize, Serialize};

/// Shortest window: below it a download or a slow test alone could let every one of them pass.
pub const MIN_SECS: u64 = 30 * 60;
pub const MAX_SECS: u64 = 7 * 86_400;
/// The longest wait between two days of a schedule is from 29 February to 29 February over a year
/// like 2100 that has none.
const MAX_DAYS_AHEAD: u32 = 8 * 366 + 2;

/// Whether bytes may come before the window opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Download {
    #[default]
    Anytime,
    Inside,
}

/// Why a window is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    #[error("a maintenance window lasts {MIN_SECS} to {MAX_SECS} s, not {found} s")]
    Length { found: u64 },
}

/// When a device may activate another bundle. Going back is never delayed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct MaintenanceWindow {
    pub cron: Cron,
    for_secs: u64,
    pub zone: Zone,
    pub download: Download,
    /// What is assigned here is urgent: the window holds nothing up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignore_window: bool,
}

#[derive(Deserialize)]
struct Unchecked {
    cron: Cron,
    for_secs: u64,
    #[serde(default)]
    zone: Zone,
    #[serde(default)]
    download: Download,
    #[serde(default)]
    ignore_window: bool,
}
impl TryFrom<Unchecked> for MaintenanceWindow {
    type Error = WindowError;
    fn try_from(raw: Unchecked) -> Result<Self, WindowError> {
        let window = Self::new(raw.cron, raw.for_secs, raw.zone)?;
        Ok(Self { download: raw.download, ignore_window: raw.ignore_window, ..window })
    }
}

impl MaintenanceWindow {
    /// A window that opens at each time of `cron` for `for_secs` seconds; downloads at any time.
    ///
    /// # Errors
    /// [`WindowError::Length`] outside of [`MIN_SECS`] to [`MAX_SECS`].
    pub fn new(cron: Cron, for_secs: u64, zone: Zone) -> Result<Self, WindowError> {
        if !(MIN_SECS..=MAX_SECS).contains(&for_secs) {
            return Err(WindowError::Length { found: for_secs });
        }
        Ok(Self { cron, for_secs, zone, download: Download::Anytime, ignore_window: false })
    }

    pub fn for_secs(&self) -> u64 {
        self.for_secs
    }

    /// Whether it is open at `at`; `ignore_window` is not looked at.
    pub fn is_open(&self, at: Timestamp, rules: &TimeZone) -> bool {
        self.last_opening(at, rules).is_some()
    }

    /// The opening that `at` still lies in: the latest, if several overlap.
    pub fn last_opening(&self, at: Timestamp, rules: &TimeZone) -> Option<Timestamp> {
        let day = local_day(at, rules)?;
        let mut day = day.tomorrow().unwrap_or(day);
        // A day more on either side: a zone may skip or repeat one.
        for _ in 0..self.for_secs / 86_400 + 4 {
            if self.cron.has_day(day) {
                let latest = self.cron.times().rev().find_map(|(hour, minute)| {
                    opening(day.at(hour, minute, 0, 0), rules).filter(|opens| *opens <= at)
                });
                if let Some(opens) = latest {
                    return (at.since(opens).as_millis() < u128::from(self.for_secs) * 1_000)
                        .then_some(opens);
                }
            }
            day = day.yesterday().ok()?;
        }
        None
    }

    /// The first opening after `at`; `None` if there is none within eight years.
    pub fn next_open(&self, at: Timestamp, rules: &TimeZone) -> Option<Timestamp> {
        let day = local_day(at, rules)?;
        let mut day = day.yesterday().unwrap_or(day);
        for _ in 0..MAX_DAYS_AHEAD {
            if self.cron.has_day(day) {
                let next = self.cron.times().find_map(|(hour, minute)| {
                    opening(day.at(hour, minute, 0, 0), rules).filter(|opens| *opens > at)
                });
                if next.is_some() {
                    return next;
                }
            }
            day = day.tomorrow().ok()?;
        }
        None
    }
}

fn local_day(at: Timestamp, rules: &TimeZone) -> Option<Date> {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(at.as_millis()).ok()?).ok()?;
    Some(rules.to_datetime(at).date())
}

/// When a local time is: the first of two, the next that exists if it is skipped.
fn opening(local: DateTime, rules: &TimeZone) -> Option<Timestamp> {
    let ambiguous = rules.to_ambiguous_timestamp(local);
    let instant = match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } | AmbiguousOffset::Fold { .. } => ambiguous.earlier().ok()?,
        AmbiguousOffset::Gap { .. } => {
            let before = ambiguous.earlier().ok()?;
            rules.following(before).next()?.timestamp()
        }
    };
    u64::try_from(instant.as_millisecond()).ok().map(Timestamp::from_millis)
}

#[cfg(test)]
mod tests;
