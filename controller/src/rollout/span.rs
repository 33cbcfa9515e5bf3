//! Lengths of time and shares of a fleet, as plans write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, time::Duration};

/// A length of time in whole seconds. Stored as a number; files may write `"24h"` or `"90m"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

/// Longest length a plan may name: ten years. Keeps sums of them far from overflow.
const LONGEST_SECS: u64 = 10 * 366 * 24 * 3600;

impl Span {
    pub const ZERO: Self = Self(0);

    pub const fn secs(secs: u64) -> Self {
        Self(secs)
    }
    pub const fn minutes(minutes: u64) -> Self {
        Self(minutes * 60)
    }
    pub const fn hours(hours: u64) -> Self {
        Self(hours * 3_600)
    }
    pub const fn days(days: u64) -> Self {
        Self(days * 86_400)
    }
    pub const fn as_secs(self) -> u64 {
        self.0
    }
    /// The time to really wait if time runs `scale` times as fast; at least a millisecond of a wait is left.
    pub fn scaled(self, scale: f64) -> Duration {
        if self.0 == 0 {
            return Duration::ZERO;
        }
        let scale = if scale.is_finite() && scale > 0.0 { scale } else { 1.0 };
        // Below 2^53 and positive: the conversion is exact enough and cannot wrap.
        Duration::from_millis((((self.0 * 1_000) as f64) / scale).ceil().max(1.0) as u64)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days at most: a month has no fixed length.
        let (days, rest) = (self.0 / 86_400, self.0 % 86_400);
        let mut parts = Vec::new();
        for (n, unit) in [(days, "d"), (rest / 3_600, "h"), (rest / 60 % 60, "m"), (rest % 60, "s")] {
            if n > 0 {
                parts.push(format!("{n}{unit}"));
            }
        }
        f.pad(&if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") })
    }
}
impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}
impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds, or a length of time with a unit such as \"90s\" or \"24h\"")
            }
            fn visit_u64<E: de::Error>(self, secs: u64) -> Result<Span, E> {
                if secs > LONGEST_SECS {
                    return Err(E::custom(format!("{secs} s are more than ten years")));
                }
                Ok(Span(secs))
            }
            fn visit_i64<E: de::Error>(self, secs: i64) -> Result<Span, E> {
                let secs = u64::try_from(secs).map_err(|_| E::custom(format!("{secs} s are negative")))?;
                self.visit_u64(secs)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                let parsed = humantime::parse_duration(text).map_err(|error| {
                    let text: String = text.chars().take(40).collect();
                    E::custom(format!("{text:?} is no length of time ({error}); write `90s` or `24h`"))
                })?;
                if parsed.subsec_nanos() > 0 {
                    return Err(E::custom("lengths of time are whole seconds"));
                }
                self.visit_u64(parsed.as_secs())
            }
        }
        d.deserialize_any(Visitor)
    }
}

/// A share of something countable: `"2%"`, or an absolute number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// 0 to 100.
    Percent(f64),
    Count(u64),
}

impl Share {
    /// How many of `total` that are, rounded up so that a small share of a small fleet is not nobody.
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Count(n) => n.min(total),
            Self::Percent(p) => ((total as f64) * p / 100.0 - 1e-9).ceil().clamp(0.0, total as f64) as u64,
        }
    }
    /// The share as a fraction of 1; counts are a share of `total`.
    pub fn fraction(self, total: u64) -> f64 {
        match self {
            Self::Percent(p) => p / 100.0,
            Self::Count(n) => n as f64 / (total.max(1)) as f64,
        }
    }
    pub fn is_sound(self) -> bool {
        match self {
            Self::Percent(p) => p.is_finite() && (0.0..=100.0).contains(&p),
            Self::Count(_) => true,
        }
    }
}
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(p) => write!(f, "{p}%"),
            Self::Count(n) => write!(f, "{n}"),
        }
    }
}
impl Serialize for Share {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Percent(_) => s.collect_str(self),
            Self::Count(n) => s.serialize_u64(*n),
        }
    }
}
impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Share;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of devices, or a share such as \"5%\"")
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Share, E> {
                Ok(Share::Count(n))
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Share, E> {
                u64::try_from(n).map(Share::Count).map_err(|_| E::custom(format!("{n} is negative")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Share, E> {
                let bad = || {
                    let text: String = text.chars().take(40).collect();
                    E::custom(format!("{text:?} is neither a number nor a share such as \"5%\""))
                };
                let share = match text.trim().strip_suffix('%') {
                    Some(percent) => Share::Percent(percent.trim().parse().map_err(|_| bad())?),
                    None => Share::Count(text.trim().parse().map_err(|_| bad())?),
                };
                if share.is_sound() { Ok(share) } else { Err(bad()) }
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_with_units_and_stored_as_seconds() {
        for (text, wanted) in [
            ("\"24h\"", Some(86_400)),
            ("90", Some(90)),
            ("\"90m\"", Some(5_400)),
            ("\"\"", None),
            ("-1", None),
            ("\"100ms\"", None),
            ("99999999999", None),
        ] {
            let read = serde_json::from_str::<Span>(text).ok();
            assert_eq!(read.map(Span::as_secs), wanted, "{text}");
            if let Some(read) = read {
                assert_eq!(serde_json::to_string(&read).unwrap(), read.as_secs().to_string());
            }
        }
        assert_eq!(Span::secs(90_061).to_string(), "1d 1h 1m 1s");
    }

    #[test]
    fn a_faster_clock_shortens_waits_but_never_to_nothing() {
        for (secs, scale, millis) in
            [(3_600, 1.0, 3_600_000), (3_600, 600.0, 6_000), (1, 1e9, 1), (0, 2.0, 0), (1, f64::NAN, 1_000)]
        {
            assert_eq!(Span::secs(secs).scaled(scale).as_millis(), millis, "{secs} / {scale}");
        }
    }

    #[test]
    fn shares_round_up_and_stay_within_the_whole() {
        for (text, total, wanted) in [
            ("\"1%\"", 1_000, 10),
            ("\"1%\"", 10, 1),
            ("\"100%\"", 7, 7),
            ("\"2%\"", 0, 0),
            ("5", 3, 3),
            ("5", 30, 5),
            ("\"0.1%\"", 1_000_000, 1_000),
        ] {
            let share: Share = serde_json::from_str(text).unwrap();
            assert_eq!(share.of(total), wanted, "{text} of {total}");
            assert_eq!(
                serde_json::from_str::<Share>(&serde_json::to_string(&share).unwrap()).unwrap(),
                share
            );
        }
        for text in ["\"101%\"", "\"-1%\"", "\"x\"", "\"NaN%\"", "-3"] {
            assert!(serde_json::from_str::<Share>(text).is_err(), "{text}");
        }
    }
}
