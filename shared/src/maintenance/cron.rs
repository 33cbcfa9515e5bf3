//! The five fields of crontab(5): minute, hour, day of month, month, day of week.
//!
//! Pure and bounded: each field becomes a bit set. As in crontab(5), a day matches if either day field
//! does, when neither of them begins with `*`; names of months and days are the English ones.

use jiff::civil::Date;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Longest text of a schedule, characters.
const MAX_TEXT: usize = 128;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// Most days a month can have; 29 in February, for leap years have it.
const LONGEST: [u32; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Why a text is not a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    #[error("a schedule has at most {MAX_TEXT} characters, this one has {found}")]
    TooLong { found: usize },
    #[error("a schedule has 5 fields (minute hour day month weekday), `{text}` has {found}")]
    Fields { text: String, found: usize },
    #[error("`{part}` is no {field} of a schedule; write {low} to {high}, a range, a list or `*/step`")]
    Field { field: &'static str, part: String, low: u32, high: u32 },
    #[error("`{text}` names no day that exists")]
    NeverDue { text: String },
}

/// When something is due, in local time: `0 2 * * mon-fri`.
#[derive(Clone, PartialEq, Eq)]
pub struct Cron {
    text: String,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Both day fields are restricted: either may match.
    either_day: bool,
}

impl Cron {
    /// Whether `date` is one of its days.
    pub fn has_day(&self, date: Date) -> bool {
        let bit = |set: u64, at: i8| u32::try_from(at).is_ok_and(|at| set >> at & 1 == 1);
        let (day, weekday) =
            (bit(self.days, date.day()), bit(self.weekdays, date.weekday().to_sunday_zero_offset()));
        bit(self.months, date.month()) && if self.either_day { day || weekday } else { day && weekday }
    }

    /// Hours and minutes of each of its days, ascending.
    pub fn times(&self) -> impl DoubleEndedIterator<Item = (i8, i8)> + '_ {
        let set = |bits: u64, below: i8| (0..below).filter(move |at| bits >> at & 1 == 1);
        set(self.hours, 24).flat_map(move |hour| set(self.minutes, 60).map(move |minute| (hour, minute)))
    }
}

impl FromStr for Cron {
    type Err = CronError;
    fn from_str(text: &str) -> Result<Self, CronError> {
        if text.len() > MAX_TEXT {
            return Err(CronError::TooLong { found: text.len() });
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(CronError::Fields { text: text.to_owned(), found: fields.len() });
        };
        let weekdays = field("weekday", weekday, 0, 7, &DAYS, 0)?;
        let cron = Self {
            text: fields.join(" "),
            minutes: field("minute", minute, 0, 59, &[], 0)?,
            hours: field("hour", hour, 0, 23, &[], 0)?,
            days: field("day", day, 1, 31, &[], 0)?,
            months: field("month", month, 1, 12, &MONTHS, 1)?,
            // 7 is Sunday as well.
            weekdays: (weekdays | weekdays >> 7) & 0x7f,
            either_day: !day.starts_with('*') && !weekday.starts_with('*'),
        };
        let exists = (1..=12u32)
            .zip(LONGEST)
            .any(|(month, longest)| cron.months >> month & 1 == 1 && cron.days & ((2 << longest) - 1) != 0);
        if !exists && !cron.either_day {
            return Err(CronError::NeverDue { text: cron.text });
        }
        Ok(cron)
    }
}

/// The set of one field. `names` stand for the numbers from `first` on.
fn field(
    name: &'static str,
    text: &str,
    low: u32,
    high: u32,
    names: &[&str],
    first: u32,
) -> Result<u64, CronError> {
    let wrong = |part: &str| CronError::Field { field: name, part: part.to_owned(), low, high };
    let number = |text: &str| {
        let named = names.iter().zip(first..).find(|(n, _)| n.eq_ignore_ascii_case(text)).map(|(_, at)| at);
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let plain = || if digits { text.parse().ok() } else { None };
        named.or_else(plain).filter(|n| (low..=high).contains(n))
    };
    let mut set = 0u64;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u32>().ok().filter(|s| (1..=high).contains(s));
                (range, Some(step.ok_or_else(|| wrong(part))?))
            }
            None => (part, None),
        };
        let (from, to) = match (range, range.split_once('-')) {
            ("*", _) => (low, high),
            (_, Some((from, to))) => {
                (number(from).ok_or_else(|| wrong(part))?, number(to).ok_or_else(|| wrong(part))?)
            }
            (single, None) => {
                let at = number(single).ok_or_else(|| wrong(part))?;
                (at, if step.is_some() { high } else { at })
            }
        };
        if from > to {
            return Err(wrong(part));
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        set = (from..=to).step_by(step).fold(set, |set, at| set | 1 << at);
    }
    Ok(set)
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
    use jiff::civil::date;
    use proptest::prelude::*;

    #[test]
    fn schedules_are_read_as_crontab_reads_them() {
        // text, times of a day, does it have Monday 2026-11-23
        for (text, times, monday) in [
            ("0 2 * * *", 1, true),
            ("*/15 2-4 * * mon-fri", 12, true),
            ("5,10 0 * * 7", 2, false),
            ("0 0 * * Sat,SUN", 1, false),
            ("30 1 23 11 *", 1, true),
            ("0 0 1 * 1", 1, true),      // either day field
            ("0 0 */2 * tue", 1, false), // both: 23 is odd, but it is no Tuesday
            ("10/20 0 * jan-nov/2 *", 3, true),
            ("* * * * *", 1440, true),
        ] {
            let cron: Cron = text.parse().unwrap();
            assert_eq!((cron.times().count(), cron.has_day(date(2026, 11, 23))), (times, monday), "{text}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_named() {
        for text in [
            "",
            "0 2 * *",
            "0 2 * * * *",
            "60 0 * * *",
            "0 24 * * *",
            "0 0 0 * *",
            "0 0 32 * *",
            "0 0 * 13 *",
            "0 0 * * 8",
            "5-1 0 * * *",
            "*/0 0 * * *",
            "*/99 0 * * *",
            "-1 0 * * *",
            "a 0 * * *",
            "0 0 * * mo",
            "1,,2 0 * * *",
            "+5 0 * * *",
            "0 0 30 feb *",
            "0 0 31 4,6,9,11 *",
            "1- 0 * * *",
        ] {
            assert!(text.parse::<Cron>().is_err(), "{text:?}");
        }
        assert!("0 ".repeat(200).parse::<Cron>().is_err());
        assert!("0 0 29 feb *".parse::<Cron>().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_written_as_it_was_read(text in "[0-9*/,a-z -]{0,40}") {
            if let Ok(cron) = text.parse::<Cron>() {
                prop_assert_eq!(cron.to_string().parse::<Cron>().unwrap(), cron.clone());
                prop_assert!(cron.times().next().is_some());
            }
        }
    }
}
