//! The five fields of cron, on minutes of a wall clock.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, ops::RangeInclusive, str::FromStr};

/// `minute hour day-of-month month day-of-week`, each `*`, numbers, `a-b`, lists and `/step`. As in every
/// cron, a day matches if either day field does, once both are restricted. Sunday is 0 or 7.
#[derive(Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minute: u64,
    hour: u64,
    day: u64,
    month: u64,
    weekday: u64,
}

/// Why a text is no cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cron {text:?}: {problem}")]
pub struct CronError {
    text: String,
    problem: String,
}

const FIELDS: [(&str, RangeInclusive<u32>); 5] = [
    ("minute", 0..=59),
    ("hour", 0..=23),
    ("day of month", 1..=31),
    ("month", 1..=12),
    ("day of week", 0..=7),
];

impl Cron {
    /// `minute`: wall-clock minutes since 1970-01-01T00:00.
    pub fn matches(&self, minute: i64) -> bool {
        let of_day = minute.rem_euclid(1_440);
        has(self.minute, of_day % 60) && has(self.hour, of_day / 60) && self.matches_day(minute)
    }
    pub fn matches_day(&self, minute: i64) -> bool {
        let days = minute.div_euclid(1_440);
        let (month, day) = month_and_day(days);
        let weekday = (days + 4).rem_euclid(7); // 1970-01-01 was a Thursday
        let by_date = has(self.day, day);
        let by_week = has(self.weekday, weekday);
        let any_date = self.day == full(&FIELDS[2].1);
        let any_week = self.weekday & 0x7f == 0x7f;
        has(self.month, month)
            && match (any_date, any_week) {
                (true, _) => by_week,
                (_, true) => by_date,
                (false, false) => by_date || by_week,
            }
    }
}

fn has(bits: u64, n: i64) -> bool {
    u32::try_from(n).is_ok_and(|n| n < 64 && bits >> n & 1 == 1)
}

fn full(range: &RangeInclusive<u32>) -> u64 {
    range.clone().fold(0, |bits, n| bits | 1 << n)
}

/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`, without the year.
fn month_and_day(days: i64) -> (i64, i64) {
    let of_era = (days + 719_468).rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (month, of_year - (153 * shifted + 2) / 5 + 1)
}

fn field(text: &str, range: &RangeInclusive<u32>) -> Option<u64> {
    let mut bits = 0;
    for part in text.split(',') {
        let (span, step) = match part.split_once('/') {
            Some((span, step)) => (span, step.parse().ok().filter(|n| (1..=60).contains(n))?),
            None => (part, 1u32),
        };
        let (from, to) = match span.split_once('-') {
            _ if span == "*" => (*range.start(), *range.end()),
            Some((from, to)) => (from.parse().ok()?, to.parse().ok()?),
            // `5/10` means from 5 on.
            None if part.contains('/') => (span.parse().ok()?, *range.end()),
            None => {
                let n = span.parse().ok()?;
                (n, n)
            }
        };
        if from > to || !range.contains(&from) || !range.contains(&to) {
            return None;
        }
        (from..=to).step_by(step as usize).for_each(|n| bits |= 1 << n);
    }
    Some(bits)
}

impl FromStr for Cron {
    type Err = CronError;
    fn from_str(text: &str) -> Result<Self, CronError> {
        let fail = |problem: String| CronError { text: text.chars().take(80).collect(), problem };
        if text.len() > 200 {
            return Err(fail(format!("{} bytes, at most 200", text.len())));
        }
        let parts: Vec<_> = text.split_whitespace().collect();
        if parts.len() != 5 {
            return Err(fail(format!("{} fields, wanted 5: minute hour day month weekday", parts.len())));
        }
        let mut bits = [0; 5];
        for ((bits, part), (name, range)) in bits.iter_mut().zip(&parts).zip(&FIELDS) {
            *bits = field(part, range).ok_or_else(|| {
                fail(format!("{name} {part:?} is not `*`, numbers, `a-b` or `/step` within {range:?}"))
            })?;
        }
        let [minute, hour, day, month, weekday] = bits;
        let weekday = weekday | (weekday >> 7 & 1);
        Ok(Self { text: parts.join(" "), minute, hour, day, month, weekday })
    }
}
impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}
impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cron({})", self.text)
    }
}
impl Serialize for Cron {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}
impl<'de> Deserialize<'de> for Cron {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::time::Timestamp;

    #[test]
    fn minutes_match_as_cron_does() {
        for (cron, at, wanted) in [
            ("0 2 * * *", "2026-11-23T02:00:00Z", true),
            ("0 2 * * *", "2026-11-23T02:01:00Z", false),
            ("*/15 * * * *", "2026-11-23T07:45:00Z", true),
            ("5/20 * * * *", "2026-11-23T07:25:00Z", true),
            ("0 0 29 2 *", "2028-02-29T00:00:00Z", true),
            ("0 0 1 3 *", "2027-03-01T00:00:00Z", true),
            ("0 3 * * 1-5", "2026-11-23T03:00:00Z", true), // a Monday
            ("0 3 * * 0", "2026-11-22T03:00:00Z", true),
            ("0 3 * * 7", "2026-11-22T03:00:00Z", true),
            ("0 3 * * 7", "2026-11-23T03:00:00Z", false),
            ("0 3 13 * 1", "2026-11-23T03:00:00Z", true), // either day field
            ("0 3 13 * *", "2026-11-23T03:00:00Z", false),
        ] {
            let minute = i64::try_from(at.parse::<Timestamp>().unwrap().as_secs() / 60).unwrap();
            assert_eq!(cron.parse::<Cron>().unwrap().matches(minute), wanted, "{cron} at {at}");
        }
        for bad in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "5-2 * * * *",
            "a * * * *",
            "*/0 * * * *",
            "* * * 13 *",
        ] {
            assert!(bad.parse::<Cron>().is_err(), "{bad}");
        }
    }
}
