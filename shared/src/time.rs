//! Points in time as values. Nothing here reads a clock: shells pass `now` in.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    fmt,
    ops::{Add, Sub},
    str::FromStr,
    time::{Duration, SystemTime},
};

/// Milliseconds since 1970 (UTC), written as RFC 3339: `2026-11-23T07:04:50.000Z`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(u64);

/// Why a text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a UTC time; write it as 2026-11-23T07:04:50Z")]
pub struct TimeError {
    text: String,
}

/// How far above the signed floor a local clock is still believed: longer than a device may lie on a
/// shelf between two signed documents, shorter than the usual wrong year.
pub const BELIEVED_ABOVE_FLOOR: Duration = Duration::from_secs(400 * 24 * 3600);

/// The time to act by: the local clock from the floor up to [`BELIEVED_ABOVE_FLOOR`] above it, the
/// floor itself outside of that. One rule for certificates and for signed documents.
pub fn believed(local: Timestamp, floor: Timestamp) -> Timestamp {
    if local > floor + BELIEVED_ABOVE_FLOOR { floor } else { local.max(floor) }
}

impl Timestamp {
    pub const EPOCH: Self = Self(0);
    /// 9999-12-31T23:59:59Z, the last second RFC 3339 can write.
    const LAST_MILLIS: u64 = 253_402_300_799_000;

    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(Self::LAST_MILLIS))
    }
    pub fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1_000))
    }
    pub fn as_millis(self) -> u64 {
        self.0
    }
    pub fn as_secs(self) -> u64 {
        self.0 / 1_000
    }
    /// Zero if `earlier` is in fact later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
    pub fn to_system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0)
    }
    /// Times before 1970 become 1970.
    pub fn from_system_time(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self::from_millis(u64::try_from(since.as_millis()).unwrap_or(Self::LAST_MILLIS))
    }
}
impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}
impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }
}
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.to_system_time()).fmt(f)
    }
}
impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl FromStr for Timestamp {
    type Err = TimeError;
    fn from_str(text: &str) -> Result<Self, TimeError> {
        humantime::parse_rfc3339(text)
            .map(Self::from_system_time)
            .map_err(|_| TimeError { text: text.chars().take(40).collect() })
    }
}
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        let at = Timestamp::from_millis(1_795_417_490_123);
        assert_eq!(at.to_string().parse::<Timestamp>().unwrap(), at);
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Timestamp::EPOCH - Duration::from_secs(1), Timestamp::EPOCH);
        let last = Timestamp::from_millis(u64::MAX);
        assert_eq!(last + Duration::from_secs(1), last);
        assert!(last.to_string().starts_with("9999-12-31T23:59:59"));
        assert_eq!(Timestamp::EPOCH.since(last), Duration::ZERO);
    }
}
