//! What the last week's telemetry says of the bundle that a rollout replaces: what a plan's forecast assumes
//! otherwise, and the frozen p95 beyond which results of canaries are counted.

use super::documents::Documents;
use crate::{
    desired::intent_id,
    ingest::{AGGREGATE, Aggregate, BUCKET, aggregate_id},
    rollout::Membership,
    store::{Repository, Scan, StoreError},
};
use edgefleet_shared::{
    ids::{BundleName, SlotName},
    telemetry::Role,
    time::Timestamp,
};
use std::{collections::BTreeMap, time::Duration};

const SPAN: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Buckets in memory at a time.
const PAGE: usize = 500;
/// Members asked what they run: enough to know what most of them do.
const ASKED: usize = 500;
/// Fewer requests than these say little about a 95th percentile.
const LEAST_REQUESTS: u64 = 200;

/// Per device that reported; `None` where nothing was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct History {
    /// 95th percentile of the whole time of a request, milliseconds.
    pub p95_ms: Option<f64>,
    pub requests_per_hour: Option<f64>,
    pub labels_per_hour: Option<f64>,
}

impl History {
    fn of(sum: &Aggregate) -> Self {
        // A window is one device's bucket.
        let hours = sum.windows as f64 * BUCKET.as_secs_f64() / 3_600.0;
        let per_hour = |n: u64| (sum.windows > 0).then(|| n as f64 / hours);
        let labels = sum.all_labels().matched;
        let enough = sum.latency.total.count() >= LEAST_REQUESTS;
        Self {
            p95_ms: sum.latency.total.quantile_us(0.95).filter(|_| enough).map(|us| us / 1e3),
            requests_per_hour: per_hour(sum.counts.requests),
            labels_per_hour: per_hour(labels).filter(|_| labels > 0),
        }
    }
}

/// Of the bundle that most of the members run now.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn history(
    documents: &Documents,
    slot: &SlotName,
    membership: &Membership,
    now: Timestamp,
) -> Result<History, StoreError> {
    let Some(bundle) = incumbent(documents, slot, membership).await? else { return Ok(History::default()) };
    let aggregates = Repository::<Aggregate>::new(documents.store.clone(), AGGREGATE);
    let prefix = format!("{bundle}/primary/");
    let mut scan =
        Scan::all().prefix(&prefix).after(aggregate_id(&bundle, Role::Primary, now - SPAN)).limit(PAGE);
    let mut sum = Aggregate::default();
    loop {
        let page = aggregates.list(scan.clone()).await?;
        page.entries.iter().for_each(|(_, found)| sum.merge(&found.value));
        let Some(next) = page.next else { return Ok(History::of(&sum)) };
        scan.after = Some(next);
    }
}

async fn incumbent(
    documents: &Documents,
    slot: &SlotName,
    membership: &Membership,
) -> Result<Option<BundleName>, StoreError> {
    let mut counts = BTreeMap::<BundleName, usize>::new();
    for member in membership.members.iter().take(ASKED) {
        let found = documents.intents.find_json(&intent_id(&member.device, slot)).await?;
        if let Some(active) = found.and_then(|found| found.value.active) {
            *counts.entry(active.bundle).or_default() += 1;
        }
    }
    Ok(counts.into_iter().max_by_key(|(_, count)| *count).map(|(bundle, _)| bundle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_device_hour_and_a_percentile_needs_requests() {
        assert_eq!(History::of(&Aggregate::default()), History::default());
        let mut sum = Aggregate { windows: 24, ..Aggregate::default() }; // two device-hours
        sum.counts.requests = 500;
        (1..=100).for_each(|ms| sum.latency.total.record_us(ms * 1_000));
        let few = History::of(&sum);
        assert_eq!((few.p95_ms, few.requests_per_hour, few.labels_per_hour), (None, Some(250.0), None));
        (1..=100).for_each(|ms| sum.latency.total.record_us(ms * 1_000));
        let p95 = History::of(&sum).p95_ms.unwrap();
        assert!((93.0..=97.0).contains(&p95), "{p95}");
    }
}
