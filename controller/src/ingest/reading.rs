//! Reading what was added up: a stretch of time from every level that has some of it.

use super::{
    cohort::Cohort,
    level::{BucketId, Level, Summed},
};
use crate::store::{FleetStore, Kind, Scan, StoreError};
use edgefleet_shared::{ids::BundleName, telemetry::Role, time::Timestamp};

/// Buckets in memory at a time: a few MB.
const PAGE: usize = 500;

/// What is asked for. `cohort`: `None` and [`Cohort::all`] are every device. Buckets that `from` or `until` cut are
/// taken as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Range<'a> {
    pub bundle: &'a BundleName,
    pub role: Role,
    pub cohort: Option<&'a Cohort>,
    pub from: Timestamp,
    pub until: Timestamp,
}

impl Range<'_> {
    fn wants(&self, cohort: &Cohort) -> bool {
        self.cohort.is_none_or(|wanted| wanted.is_all() || wanted == cohort)
    }
}

/// Every bucket of `range`, coarse ones first, each level in the order of time, cohorts of one bucket added up.
///
/// # Errors
/// [`StoreError`], also for a bucket that cannot be read: a sum without it would be wrong in silence.
pub async fn visit<T: Summed>(
    store: &dyn FleetStore,
    range: Range<'_>,
    mut take: impl FnMut(Level, Timestamp, T) + Send,
) -> Result<(), StoreError> {
    for (level, kind) in T::LEVELS.iter().rev() {
        let mut open: Option<(Timestamp, T)> = None;
        each(store, *kind, *level, range, |id, body| {
            let part: T = serde_json::from_slice(body).map_err(|source| StoreError::Unreadable {
                kind: *kind,
                id: id.to_string(),
                source,
            })?;
            match &mut open {
                Some((start, sum)) if *start == id.start => sum.merge(&part),
                open => {
                    if let Some((start, sum)) = open.replace((id.start, part)) {
                        take(*level, start, sum);
                    }
                }
            }
            Ok(())
        })
        .await?;
        if let Some((start, sum)) = open {
            take(*level, start, sum);
        }
    }
    Ok(())
}

/// All of `range` together.
///
/// # Errors
/// As [`visit`].
pub async fn total<T: Summed>(store: &dyn FleetStore, range: Range<'_>) -> Result<T, StoreError> {
    let mut sum = T::default();
    visit(store, range, |_, _, part: T| sum.merge(&part)).await?;
    Ok(sum)
}

/// Id and body of every bucket of one level, in the order of time.
pub(super) async fn each(
    store: &dyn FleetStore,
    kind: Kind,
    level: Level,
    range: Range<'_>,
    mut take: impl FnMut(&BucketId, &[u8]) -> Result<(), StoreError> + Send,
) -> Result<(), StoreError> {
    let prefix = BucketId::prefix(range.bundle, range.role);
    // Of the bucket that `from` falls in, too.
    let mut after = match level.start_of(range.from) {
        Timestamp::EPOCH => None,
        start => Some(BucketId::just_before(range.bundle, range.role, start)),
    };
    loop {
        let scan = Scan { prefix: Some(prefix.clone()), after: after.take(), limit: PAGE };
        let page = store.scan(kind, scan).await?;
        for (id, document) in &page.entries {
            let Ok(id) = id.parse::<BucketId>() else { continue };
            if id.start >= range.until {
                return Ok(());
            }
            if range.wants(&id.cohort) {
                take(&id, &document.body)?;
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}
