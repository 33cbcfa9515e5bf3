//! Pure: how finely the past is kept, and the ids of what is kept.
//!
//! Every record lies in **one** level: old fine buckets are added to a coarser one and removed in one transaction, so a
//! reader adds up whatever it finds, and nothing can count twice.

use super::cohort::Cohort;
use crate::store::Kind;
use edgefleet_shared::{
    ids::BundleName,
    telemetry::Role,
    time::{TimeError, Timestamp},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, str::FromStr, time::Duration};

/// Length of a bucket; buckets begin at multiples of it since 1970, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    FiveMinutes,
    Hour,
    Day,
}

impl Level {
    pub const fn span(self) -> Duration {
        Duration::from_secs(match self {
            Self::FiveMinutes => 300,
            Self::Hour => 3_600,
            Self::Day => 86_400,
        })
    }
    /// Start of the bucket that `at` falls in.
    pub fn start_of(self, at: Timestamp) -> Timestamp {
        start_of(self.span(), at)
    }
}

/// Start of the stretch of length `span`, counted from 1970 on, that `at` falls in. Shorter than a second is a second.
pub fn start_of(span: Duration, at: Timestamp) -> Timestamp {
    let secs = span.as_secs().max(1);
    Timestamp::from_secs(at.as_secs() / secs * secs)
}

/// What is added up over time.
pub trait Summed: Default + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it is kept, finest first.
    const LEVELS: &'static [(Level, Kind)];
    /// Adds what another bucket holds.
    fn merge(&mut self, other: &Self);
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Shadow => "shadow",
    }
}

/// `digits@3/primary/2026-11-23T07:00:00.000Z/site=berlin`: one bundle is one prefix, in the order of time. Without a
/// cohort at the end it is [`Cohort::all`], as before there were others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BucketId {
    pub bundle: BundleName,
    pub role: Role,
    pub start: Timestamp,
    pub cohort: Cohort,
}

/// Why an id is not one of a bucket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not `bundle/role/time` or `bundle/role/time/cohort`")]
pub struct BucketIdError {
    text: String,
}

impl BucketId {
    /// What the ids of one bundle in one role begin with.
    pub fn prefix(bundle: &BundleName, role: Role) -> String {
        format!("{bundle}/{}/", role_name(role))
    }
    /// Sorts after every id of the same bundle and role, and before all others that follow.
    pub fn after_all(bundle: &BundleName, role: Role) -> String {
        format!("{}~", Self::prefix(bundle, role)) // times begin with digits
    }
    /// Sorts before the buckets that start at `start` and after all earlier ones.
    pub fn just_before(bundle: &BundleName, role: Role, start: Timestamp) -> String {
        format!("{}{}~", Self::prefix(bundle, role), start - Duration::from_millis(1))
    }
}

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", Self::prefix(&self.bundle, self.role), self.start)?;
        if self.cohort.is_all() { Ok(()) } else { write!(f, "/{}", self.cohort) }
    }
}
impl FromStr for BucketId {
    type Err = BucketIdError;
    fn from_str(text: &str) -> Result<Self, BucketIdError> {
        let bad = || BucketIdError { text: text.chars().take(120).collect() };
        let mut parts = text.splitn(4, '/');
        let mut next = || parts.next().ok_or_else(bad);
        let bundle = next()?.parse().map_err(|_| bad())?;
        let role = match next()? {
            "primary" => Role::Primary,
            "shadow" => Role::Shadow,
            _ => return Err(bad()),
        };
        let start = next()?.parse().map_err(|_: TimeError| bad())?;
        let cohort = parts.next().map_or(Ok(Cohort::all()), str::parse).map_err(|_| bad())?;
        Ok(Self { bundle, role, start, cohort })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(start: u64, cohort: &str) -> BucketId {
        let (bundle, start) = ("digits@3".parse().unwrap(), Timestamp::from_secs(start));
        BucketId { bundle, role: Role::Primary, start, cohort: cohort.parse().unwrap() }
    }

    #[test]
    fn ids_survive_the_round_trip_and_sort_by_time_then_cohort() {
        let ids = [id(300, "all"), id(300, "other"), id(300, "site=a"), id(600, "all"), id(900, "site=a")];
        let texts: Vec<_> = ids.iter().map(ToString::to_string).collect();
        assert!(texts.is_sorted());
        assert_eq!(texts[0], "digits@3/primary/1970-01-01T00:05:00.000Z");
        for (id, text) in ids.iter().zip(&texts) {
            assert_eq!(text.parse(), Ok(id.clone()));
            assert!(*text < BucketId::after_all(&id.bundle, id.role));
            assert_eq!(
                *text > BucketId::just_before(&id.bundle, id.role, Timestamp::from_secs(600)),
                id.start >= Timestamp::from_secs(600)
            );
        }
        for bad in
            ["digits@3", "digits@3/primary", "digits@3/third/1970-01-01T00:05:00.000Z", "a@1/primary/x"]
        {
            assert!(bad.parse::<BucketId>().is_err(), "{bad}");
        }
    }

    /// The longest names of everything fit into an id of the store.
    #[test]
    fn ids_are_bounded() {
        let model = "m".repeat(64);
        let keys = vec!["k".repeat(63), "l".repeat(63), "m".repeat(63)];
        let bundle = format!("{model}@{}", u64::MAX).parse().unwrap();
        let cohort = Cohort::of(&keys, &Default::default());
        let longest = BucketId { bundle, role: Role::Primary, start: Timestamp::from_secs(u64::MAX), cohort };
        assert!(longest.to_string().len() <= crate::store::MAX_ID_BYTES, "{longest}");
    }

    /// A day is 24 hours in UTC, whatever the clocks of a site do: the nights when Europe changes to summer time and back.
    #[test]
    fn buckets_know_no_summer_time() {
        for night in ["2026-03-29T00:00:00Z", "2026-10-25T00:00:00Z"] {
            let midnight: Timestamp = night.parse().unwrap();
            for minute in [0, 59, 60, 119, 120, 180, 1_439] {
                let at = midnight + Duration::from_secs(minute * 60);
                assert_eq!(Level::Day.start_of(at), midnight);
                assert_eq!(Level::Hour.start_of(at), midnight + Duration::from_secs(minute / 60 * 3_600));
            }
            assert_eq!(
                Level::Day.start_of(midnight + Duration::from_secs(86_400)),
                midnight + Level::Day.span()
            );
        }
        for (secs, start) in [(0, 0), (299, 0), (300, 300), (301, 300), (86_399, 86_100)] {
            assert_eq!(Level::FiveMinutes.start_of(Timestamp::from_secs(secs)), Timestamp::from_secs(start));
        }
    }
}
