//! Maintenance windows: when a device may switch. A value here; evaluated on the device, so it works offline.

use super::span::Span;
use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

pub use super::cron::Cron;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Minute, hour, day of month, month, day of week: when it opens.
    pub cron: Cron,
    /// How long it stays open; at least half an hour.
    #[serde(rename = "for")]
    pub length: Span,
    #[serde(default)]
    pub zone: Zone,
    #[serde(default)]
    pub download: Download,
}

/// Whose clock on the wall it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Zone {
    #[default]
    DeviceLocal,
    /// Minutes east of Greenwich.
    Fixed(i32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Download {
    /// Fetch at any time, switch inside the window.
    #[default]
    Anytime,
    Inside,
}

/// What a device finds when it looks at its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    OpenUntil(Timestamp),
    /// `None`: not within a year.
    ClosedUntil(Option<Timestamp>),
}

impl Window {
    /// Whether it is open at `now`.
    ///
    /// `local_offset`: minutes east of Greenwich of the device's own zone at a moment; asked only for
    /// [`Zone::DeviceLocal`]. An opening in an hour that a clock change skips is at the next minute that
    /// exists; one in a repeated hour happens once, the first time.
    pub fn at(&self, now: Timestamp, local_offset: impl Fn(Timestamp) -> i32) -> Opening {
        let offset = |minute: i64| -> i64 {
            match self.zone {
                Zone::Fixed(minutes) => i64::from(minutes),
                Zone::DeviceLocal => i64::from(local_offset(to_time(minute))),
            }
        };
        let current = to_minute(now);
        let length = i64::try_from(self.length.as_secs() / 60).unwrap_or(i64::MAX).clamp(1, LONGEST_MINUTES);
        for minute in (current - length + 1..=current).rev() {
            if self.opens(minute, &offset) {
                return Opening::OpenUntil(to_time(minute + length));
            }
        }
        let mut minute = current + 1;
        let end = current + 366 * 1_440;
        while minute < end {
            if self.opens(minute, &offset) {
                return Opening::ClosedUntil(Some(to_time(minute)));
            }
            // Days that cannot match are crossed by the hour; no clock change jumps further than that.
            let local = minute + offset(minute);
            let dull = !self.cron.matches_day(local) && !self.cron.matches_day(local + 120);
            minute += if dull { 60 } else { 1 };
        }
        Opening::ClosedUntil(None)
    }

    /// Whether the window opens at this minute (UTC, since 1970).
    fn opens(&self, minute: i64, offset: &impl Fn(i64) -> i64) -> bool {
        let local = minute + offset(minute);
        let before = minute - 1 + offset(minute - 1);
        // Minutes that a clock change has skipped open here too.
        let skipped = (before + 1..=local).rev().take(180).any(|m| self.cron.matches(m));
        let here = skipped || (local <= before && self.cron.matches(local));
        // The same minute of the wall clock was there before: the hour is repeated.
        here && !(1..=180).any(|ago| minute - ago + offset(minute - ago) == local)
    }
}

/// A window open longer than a week is none.
const LONGEST_MINUTES: i64 = 7 * 1_440;

fn to_minute(at: Timestamp) -> i64 {
    i64::try_from(at.as_secs() / 60).unwrap_or(i64::MAX / 2)
}
fn to_time(minute: i64) -> Timestamp {
    Timestamp::from_secs(u64::try_from(minute).unwrap_or(0).saturating_mul(60))
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceLocal => f.write_str("device-local"),
            Self::Fixed(0) => f.write_str("UTC"),
            Self::Fixed(m) => {
                let sign = if *m < 0 { '-' } else { '+' };
                write!(f, "{sign}{:02}:{:02}", m.abs() / 60, m.abs() % 60)
            }
        }
    }
}
impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let fixed = || -> Option<i32> {
            let (sign, rest) = match text.split_at_checked(1)? {
                ("+", rest) => (1, rest),
                ("-", rest) => (-1, rest),
                _ => return None,
            };
            let (hours, minutes) = rest.split_once(':')?;
            let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
            ((0..=14).contains(&hours) && (0..60).contains(&minutes)).then_some(sign * (hours * 60 + minutes))
        };
        match text.as_str() {
            "device-local" => Ok(Self::DeviceLocal),
            "UTC" | "utc" => Ok(Self::Fixed(0)),
            _ => fixed().map(Self::Fixed).ok_or_else(|| {
                let text: String = text.chars().take(40).collect();
                de::Error::custom(format!("zone {text:?} is not `device-local`, `UTC` or like `+02:00`"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }
    /// Berlin in 2026: summer from March 29th 01:00 UTC to October 25th 01:00 UTC.
    fn berlin(now: Timestamp) -> i32 {
        if (at("2026-03-29T01:00:00Z")..at("2026-10-25T01:00:00Z")).contains(&now) { 120 } else { 60 }
    }
    fn window(cron: &str, minutes: u64) -> Window {
        Window {
            cron: cron.parse().unwrap(),
            length: Span::minutes(minutes),
            zone: Zone::DeviceLocal,
            download: Download::Anytime,
        }
    }

    #[test]
    fn a_window_is_open_for_its_length_in_the_devices_own_zone() {
        let night = window("0 2 * * *", 120);
        for (now, wanted) in [
            ("2026-11-23T00:59:30Z", Opening::ClosedUntil(Some(at("2026-11-23T01:00:00Z")))),
            ("2026-11-23T01:00:00Z", Opening::OpenUntil(at("2026-11-23T03:00:00Z"))),
            ("2026-11-23T02:59:59Z", Opening::OpenUntil(at("2026-11-23T03:00:00Z"))),
            ("2026-11-23T03:00:00Z", Opening::ClosedUntil(Some(at("2026-11-24T01:00:00Z")))),
            ("2026-07-01T00:00:00Z", Opening::OpenUntil(at("2026-07-01T02:00:00Z"))),
        ] {
            assert_eq!(night.at(at(now), berlin), wanted, "{now}");
        }
    }

    #[test]
    fn a_skipped_hour_opens_at_the_next_minute_and_a_repeated_one_opens_once() {
        let night = window("30 2 * * *", 30);
        // March 29th: 02:00 to 03:00 local does not exist; 03:00 local is 01:00 UTC.
        assert_eq!(
            night.at(at("2026-03-29T01:00:00Z"), berlin),
            Opening::OpenUntil(at("2026-03-29T01:30:00Z"))
        );
        // October 25th: 02:30 local comes at 00:30 and again at 01:30 UTC.
        assert_eq!(
            night.at(at("2026-10-25T00:30:00Z"), berlin),
            Opening::OpenUntil(at("2026-10-25T01:00:00Z"))
        );
        assert_eq!(
            night.at(at("2026-10-25T01:30:00Z"), berlin),
            Opening::ClosedUntil(Some(at("2026-10-26T01:30:00Z")))
        );
    }

    #[test]
    fn rare_openings_are_found_and_impossible_ones_end_the_search() {
        let rare = window("0 0 31 12 *", 30);
        assert_eq!(
            rare.at(at("2026-01-01T12:00:00Z"), |_| 0),
            Opening::ClosedUntil(Some(at("2026-12-31T00:00:00Z")))
        );
        assert_eq!(
            window("0 0 31 2 *", 30).at(at("2026-01-01T12:00:00Z"), |_| 0),
            Opening::ClosedUntil(None)
        );
    }

    #[test]
    fn zones_are_read_and_written() {
        for (text, zone) in [
            ("UTC", Zone::Fixed(0)),
            ("+05:30", Zone::Fixed(330)),
            ("-03:00", Zone::Fixed(-180)),
            ("device-local", Zone::DeviceLocal),
        ] {
            let json = format!("{text:?}");
            assert_eq!(serde_json::from_str::<Zone>(&json).unwrap(), zone);
            assert_eq!(serde_json::to_string(&zone).unwrap(), json);
        }
        for bad in ["\"Mars\"", "\"+25:00\"", "\"+1\"", "\"\"", "\"é\""] {
            assert!(serde_json::from_str::<Zone>(bad).is_err(), "{bad}");
        }
    }
}
