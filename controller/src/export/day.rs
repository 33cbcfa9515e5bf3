//! A day of UTC.

use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

const SECS: u64 = 86_400;

/// Days since 1970, written `2026-11-23`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(u64);

impl Day {
    pub fn of(at: Timestamp) -> Self {
        Self(at.as_secs() / SECS)
    }
    pub fn start(self) -> Timestamp {
        Timestamp::from_secs(self.0.saturating_mul(SECS))
    }
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A text that is no day.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no day; write it as 2026-11-23")]
pub struct DayError {
    text: String,
}

impl FromStr for Day {
    type Err = DayError;
    fn from_str(text: &str) -> Result<Self, DayError> {
        let wrong = || DayError { text: text.chars().take(40).collect() };
        if text.len() != 10 {
            return Err(wrong());
        }
        format!("{text}T00:00:00Z").parse().map(Self::of).map_err(|_| wrong())
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.start().to_string();
        f.pad(text.split('T').next().unwrap_or(&text))
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_as_they_are_written() {
        let day: Day = "2028-02-29".parse().unwrap();
        assert_eq!((day.to_string().as_str(), day.next().to_string().as_str()), ("2028-02-29", "2028-03-01"));
        assert_eq!(Day::of(day.start()), day);
        for wrong in ["", "2026-11-31", "2026-1-2", "today", "2026-11-23T00:00:00Z", "2026-11-23x"] {
            assert!(wrong.parse::<Day>().is_err(), "{wrong}");
        }
    }
}
