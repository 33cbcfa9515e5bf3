//! Whose clock on the wall a schedule means.

use jiff::tz::{Offset, TimeZone};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Longest name of the IANA database is 32 characters; more is no name.
const MAX_NAME: usize = 64;
/// Widest offset in use is +14:00; ISO 8601 lets it go to 18.
const MAX_OFFSET_SECS: i32 = 18 * 3600;

/// Why a text names no zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no time zone; write `device-local`, `Europe/Berlin`, `UTC` or `+02:00`")]
pub struct ZoneError {
    text: String,
}

/// The zone a schedule is read in: `device-local`, a name of the IANA database, or an offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Zone {
    /// Where the device is, as its `$TZ` or `/etc/localtime` says.
    #[default]
    DeviceLocal,
    /// Name in the IANA database, read from the device's own files.
    Named(String),
    /// Seconds east of UTC.
    Offset(i32),
}

impl Zone {
    /// The rules of a zone that needs no file; `None` if a shell has to read them.
    pub fn without_files(&self) -> Option<TimeZone> {
        match self {
            Self::Offset(0) => Some(TimeZone::UTC),
            Self::Offset(secs) => Offset::from_seconds(*secs).ok().map(TimeZone::fixed),
            Self::DeviceLocal | Self::Named(_) => None,
        }
    }
}

impl FromStr for Zone {
    type Err = ZoneError;
    fn from_str(text: &str) -> Result<Self, ZoneError> {
        let wrong = || ZoneError { text: text.chars().take(MAX_NAME).collect() };
        match text {
            "device-local" => return Ok(Self::DeviceLocal),
            "UTC" | "utc" | "Z" => return Ok(Self::Offset(0)),
            _ => {}
        }
        if text.starts_with(['+', '-']) {
            return offset(text).map(Self::Offset).ok_or_else(wrong);
        }
        // It becomes a file's name below the zone database: one plain path, nothing that climbs.
        let part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphabetic())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
        };
        if text.len() <= MAX_NAME && text.split('/').all(part) {
            Ok(Self::Named(text.to_owned()))
        } else {
            Err(wrong())
        }
    }
}

/// `+02:00` in seconds.
fn offset(text: &str) -> Option<i32> {
    let (sign, rest) = text.split_at_checked(1)?;
    let (hours, minutes) = rest.split_once(':')?;
    let two = |text: &str| {
        (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit()))
            .then(|| text.parse::<i32>().ok())
            .flatten()
    };
    let secs = two(hours)? * 3600 + two(minutes).filter(|m| *m < 60)? * 60;
    (secs <= MAX_OFFSET_SECS).then_some(if sign == "-" { -secs } else { secs })
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceLocal => f.pad("device-local"),
            Self::Named(name) => f.pad(name),
            Self::Offset(0) => f.pad("UTC"),
            Self::Offset(secs) => {
                let sign = if *secs < 0 { '-' } else { '+' };
                let minutes = secs.abs() / 60;
                f.pad(&format!("{sign}{:02}:{:02}", minutes / 60, minutes % 60))
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
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_named_or_offset_and_never_a_path() {
        for text in
            ["device-local", "Europe/Berlin", "America/Argentina/Buenos_Aires", "UTC", "+05:45", "-03:30"]
        {
            assert_eq!(text.parse::<Zone>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "/etc/passwd",
            "../x",
            "Europe/../x",
            "a//b",
            "+2",
            "+02:60",
            "+19:00",
            "+ab:cd",
            "+é:00",
            "Europe/Berlin\0",
        ] {
            assert!(text.parse::<Zone>().is_err(), "{text:?}");
        }
        assert!("A".repeat(65).parse::<Zone>().is_err());
    }
}
