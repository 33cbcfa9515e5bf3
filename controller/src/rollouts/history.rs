//! What the last week's telemetry says of the bundle that a rollout replaces: what a plan's forecast assumes
//! otherwise, and the frozen p95 beyond which results of canaries are counted.

use super::documents::Documents;
use crate::{
    desired::intent_id,
    ingest::{
        Aggregate, BundleTotals, DEVICE_TELEMETRY, DeviceTelemetry, Hours, Level, Range, Spread, total,
    },
    rollout::Membership,
    store::{Repository, StoreError},
};
use edgefleet_shared::{
    ids::{BundleName, SlotName},
    telemetry::Role,
    time::Timestamp,
};
use std::{collections::BTreeMap, time::Duration};

const SPAN: Duration = Duration::from_secs(7 * 24 * 3_600);
const AHEAD: Duration = Duration::from_secs(24 * 3_600);
/// Members asked what they run: enough to know what most of them do.
const ASKED: usize = 500;
/// Fewer requests than these say little about a 95th percentile.
const LEAST_REQUESTS: u64 = 200;
/// Fewer device-hours than these say little about how many are bad, or how latency wanders.
const LEAST_HOURS: u64 = 48;

/// Per device that reported; `None` where nothing was.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct History {
    /// 95th percentile of the whole time of a request, milliseconds.
    pub p95_ms: Option<f64>,
    pub requests_per_hour: Option<f64>,
    pub labels_per_hour: Option<f64>,
    /// Share of device-hours with a bad window.
    pub bad_rate: Option<f64>,
    /// Standard deviation of the logarithm of a device's p95 from one hour to the next.
    pub latency_spread: Option<f64>,
}

impl History {
    fn of(sum: &Aggregate) -> Self {
        // A window is one device's bucket.
        let hours = sum.windows as f64 * Level::FiveMinutes.span().as_secs_f64() / 3_600.0;
        let per_hour = |n: u64| (sum.windows > 0).then(|| n as f64 / hours);
        let labels = sum.all_labels().matched;
        let enough = sum.latency.total.count() >= LEAST_REQUESTS;
        Self {
            p95_ms: sum.latency.total.quantile_us(0.95).filter(|_| enough).map(|us| us / 1e3),
            requests_per_hour: per_hour(sum.counts.requests),
            labels_per_hour: per_hour(labels).filter(|_| labels > 0),
            bad_rate: None,
            latency_spread: None,
        }
    }

    fn with_hours(self, hours: &[Hours]) -> Self {
        let (freedom, squares) = Spread::pooled(hours.iter().map(|hours| &hours.p95));
        let spread = (squares / freedom.max(1) as f64).sqrt();
        Self { bad_rate: bad_rate(hours), latency_spread: (freedom >= LEAST_HOURS).then_some(spread), ..self }
    }
}

/// Share of device-hours with a bad window; `None` if there are too few to say.
pub fn bad_rate(hours: &[Hours]) -> Option<f64> {
    let sum = |of: fn(&Hours) -> u64| hours.iter().map(of).fold(0, u64::saturating_add);
    let (n, bad) = (sum(|hours| hours.n), sum(|hours| hours.bad.min(hours.n)));
    // Half a bad hour more than were seen (Jeffreys): a quiet week proves no rate of 0.
    let rate = (bad as f64 + 0.5) / (n as f64 + 1.0);
    (n >= LEAST_HOURS).then_some(rate)
}

/// Of the bundle that most of the members run now; bad hours and spread since it came, of [`ASKED`] devices.
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
    // The newest may have come from a clock that is a little ahead.
    let (from, until) = (now - SPAN, now + AHEAD);
    let range = Range { bundle: &bundle, role: Role::Primary, cohort: None, from, until };
    let sum: Aggregate = total(&*documents.store, range).await?;
    let devices = Repository::<DeviceTelemetry>::new(documents.store.clone(), DEVICE_TELEMETRY);
    let mut hours = Vec::new();
    for member in membership.members.iter().take(ASKED) {
        let Some(found) = devices.find_json(member.device.as_str()).await? else { continue };
        let of_bundle = |totals: &&BundleTotals| totals.slot == *slot && totals.bundle == bundle;
        hours.extend(found.value.bundles.iter().find(of_bundle).map(|totals| totals.hours));
    }
    Ok(History::of(&sum).with_hours(&hours))
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

    #[test]
    fn hours_of_few_devices_say_nothing_and_quiet_ones_prove_no_rate_of_zero() {
        let told = |json: serde_json::Value| serde_json::from_value::<Hours>(json).unwrap();
        let day = told(serde_json::json!({"n": 24, "bad": 0, "p95": {"n": 24, "mean": 1.0, "m2": 0.92}}));
        let of = |hours: &[Hours]| History::default().with_hours(hours);
        assert_eq!(of(&[day]), History::default());
        let found = of(&[day, day]);
        assert_eq!((found.bad_rate, found.latency_spread), (Some(0.5 / 49.0), None));
        let found = of(&[day, day, day]);
        // 69 degrees of freedom: each device has its own mean.
        assert!((found.latency_spread.unwrap() - 0.2).abs() < 1e-9, "{found:?}");
        let bad = told(serde_json::json!({"n": 48, "bad": 12, "p95": {"n": 0, "mean": 0.0, "m2": 0.0}}));
        assert_eq!(of(&[bad]).bad_rate, Some(12.5 / 49.0));
    }
}
