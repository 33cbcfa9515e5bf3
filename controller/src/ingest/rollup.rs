//! Pure: which old buckets become part of coarser ones, or go.

use super::{
    level::{BucketId, Level},
    settings::Retention,
};
use edgefleet_shared::time::Timestamp;
use std::collections::BTreeMap;

/// Buckets that leave their level together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fold {
    /// Where they are added; `None`: they are only deleted.
    pub(super) into: Option<BucketId>,
    /// Which of the ids given.
    pub(super) parts: Vec<usize>,
}

/// What is due among `ids`: some of one bundle and role, in the order of time, of `level`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) folds: Vec<Fold>,
    /// A bucket that is not due was reached, so none behind it is.
    pub(super) ended: bool,
}

/// Buckets leave `level` once the whole bucket of the `coarser` level that they fall in is older than the level is kept;
/// what comes later still is added to what was there. A part of a group is as good as the whole: the rest follows.
pub(super) fn due(
    level: Level,
    coarser: Option<Level>,
    ids: &[BucketId],
    retention: Retention,
    now: Timestamp,
) -> Due {
    let target = coarser.unwrap_or(level);
    let mut groups = BTreeMap::<BucketId, Vec<usize>>::new();
    let mut ended = false;
    for (at, id) in ids.iter().enumerate() {
        let start = target.start_of(id.start);
        if start + target.span() + retention.of(level) > now {
            ended = true;
            break;
        }
        groups.entry(BucketId { start, ..id.clone() }).or_default().push(at);
    }
    let folds = groups.into_iter().map(|(into, parts)| Fold { into: coarser.map(|_| into), parts });
    Due { folds: folds.collect(), ended }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::telemetry::Role;
    use std::time::Duration;

    const KEEP: Retention = Retention { five_minutes: 1, hours: 31, days: 62 };

    fn id(start: Timestamp, cohort: &str) -> BucketId {
        let bundle = "digits@1".parse().unwrap();
        BucketId { bundle, role: Role::Primary, start, cohort: cohort.parse().unwrap() }
    }

    #[test]
    fn an_hour_folds_once_all_of_it_is_old_enough() {
        let midnight: Timestamp = "2026-11-01T00:00:00Z".parse().unwrap();
        let minute = |n: u64| midnight + Duration::from_secs(n * 60);
        let ids = [
            id(minute(0), "all"),
            id(minute(5), "all"),
            id(minute(5), "site=a"),
            id(minute(60), "all"),
            id(minute(65), "all"),
        ];
        let at = |now| due(Level::FiveMinutes, Some(Level::Hour), &ids, KEEP, now);
        let day = Duration::from_secs(86_400);
        assert_eq!(at(minute(59) + day), Due { folds: vec![], ended: true });
        let first =
            |cohort: &str, parts: &[usize]| Fold { into: Some(id(midnight, cohort)), parts: parts.to_vec() };
        let hour = vec![first("all", &[0, 1]), first("site=a", &[2])];
        assert_eq!(at(minute(60) + day), Due { folds: hour.clone(), ended: true });
        let both = at(minute(120) + day);
        assert!(!both.ended);
        assert_eq!(both.folds[2], Fold { into: Some(id(minute(60), "all")), parts: vec![3, 4] });
    }

    #[test]
    fn days_go_when_nothing_is_coarser() {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let day = Duration::from_secs(86_400);
        let ids = [id(start, "all"), id(start + day, "all")];
        let found = due(Level::Day, None, &ids, KEEP, start + 63 * day);
        assert_eq!(found, Due { folds: vec![Fold { into: None, parts: vec![0] }], ended: true });
    }
}
