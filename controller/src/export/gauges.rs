//! How each bundle did in the last hour, for `/metrics`: read from the aggregates once a minute, because a scrape
//! waits for nothing.

use super::source::{Series, Source};
use crate::{
    api::metrics::{MetricKind, MetricsText},
    clock::Clock,
    ingest::{Aggregate, LabelTotals, Summed as _},
    store::StoreError,
};
use arc_swap::ArcSwap;
use edgefleet_shared::time::Timestamp;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// What "the last hour" is: buckets that began in it.
const SPAN: Duration = Duration::from_secs(3_600);
const EVERY: Duration = Duration::from_secs(60);
/// Bundles that are shown on their own, those with most requests; the rest is `other`.
pub(super) const MOST_BUNDLES: usize = 20;
const OTHER: &str = "other";

#[derive(Clone, Debug, Default, PartialEq)]
struct Gauge {
    model: String,
    bundle: String,
    requests: u64,
    errors: u64,
    p95_secs: Option<f64>,
    labels: BTreeMap<String, LabelTotals>,
}

/// The last look. Cheap to clone.
#[derive(Clone, Default)]
pub struct BundleGauges(Arc<ArcSwap<Vec<Gauge>>>);

impl BundleGauges {
    /// Looks once a minute until `stop` is cancelled.
    pub async fn run(self, source: Source, clock: Clock, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            if let Err(error) = self.look(&source, clock()).await {
                tracing::warn!(%error, "metrics.bundles");
            }
        }
    }

    /// # Errors
    /// [`StoreError`]; what was seen before stays.
    pub async fn look(&self, source: &Source, now: Timestamp) -> Result<(), StoreError> {
        let mut sums = Vec::new();
        for series in source.series(None).await? {
            if series.role != "primary" {
                continue;
            }
            let mut sum = Aggregate::default();
            for (_, _, bucket) in source.buckets::<Aggregate>(&series, now - SPAN, now).await? {
                sum.merge(&bucket);
            }
            if sum.windows > 0 || !sum.labels.is_empty() {
                sums.push((series, sum));
            }
        }
        self.0.store(Arc::new(gauges(sums)));
        Ok(())
    }

    pub fn metrics(&self, text: &mut MetricsText) {
        let all = self.0.load();
        let name = "edgefleet_bundle_requests";
        text.family(name, MetricKind::Gauge, "Requests of the last hour, by bundle.");
        for one in all.iter() {
            text.sample(name, &one.name(), one.requests);
        }
        let name = "edgefleet_bundle_errors";
        text.family(name, MetricKind::Gauge, "Requests of the last hour that failed, by bundle.");
        for one in all.iter() {
            text.sample(name, &one.name(), one.errors);
        }
        let name = "edgefleet_bundle_p95_seconds";
        text.family(name, MetricKind::Gauge, "95th percentile of the time of a request in the last hour.");
        for one in all.iter() {
            if let Some(p95) = one.p95_secs {
                text.sample(name, &one.name(), p95);
            }
        }
        let name = "edgefleet_bundle_labels";
        text.family(name, MetricKind::Gauge, "Labels joined to predictions of the last hour, by source.");
        one_by_source(&all, |labels, source, sample| {
            text.sample(name, &[sample[0], sample[1], ("source", source)], labels.matched);
        });
        let name = "edgefleet_bundle_accuracy_ratio";
        text.family(name, MetricKind::Gauge, "Share of right answers among those labels, by source.");
        one_by_source(&all, |labels, source, sample| {
            if let Some(accuracy) = labels.accuracy() {
                text.sample(name, &[sample[0], sample[1], ("source", source)], accuracy);
            }
        });
    }
}

type Name<'a> = [(&'static str, &'a str); 2];

fn one_by_source(all: &[Gauge], mut each: impl FnMut(&LabelTotals, &str, Name<'_>)) {
    for one in all {
        for (source, labels) in &one.labels {
            each(labels, source, one.name());
        }
    }
}

impl Gauge {
    fn of(model: &str, bundle: &str, sum: Aggregate) -> Self {
        Self {
            model: model.to_owned(),
            bundle: bundle.to_owned(),
            requests: sum.counts.requests,
            errors: sum.counts.requests.saturating_sub(sum.counts.ok),
            p95_secs: sum.latency.total.quantile_us(0.95).map(|us| us / 1e6),
            labels: sum.labels,
        }
    }
    fn name(&self) -> Name<'_> {
        [("model", &self.model), ("bundle", &self.bundle)]
    }
}

/// The largest by name, the rest together.
fn gauges(mut sums: Vec<(Series, Aggregate)>) -> Vec<Gauge> {
    sums.sort_by(|(a, left), (b, right)| {
        let name = |series: &Series| (series.bundle.model.to_string(), series.bundle.counter);
        right.counts.requests.cmp(&left.counts.requests).then_with(|| name(a).cmp(&name(b)))
    });
    let rest = sums.split_off(sums.len().min(MOST_BUNDLES));
    let mut all: Vec<_> = sums
        .into_iter()
        .map(|(series, sum)| Gauge::of(series.bundle.model.as_str(), &series.bundle.to_string(), sum))
        .collect();
    if !rest.is_empty() {
        let sum = rest.iter().fold(Aggregate::default(), |mut sum, (_, part)| {
            sum.merge(part);
            sum
        });
        all.push(Gauge::of(OTHER, OTHER, sum));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_nothing_is_lost() {
        let sums = (1..=50u64).map(|n| {
            let mut sum = Aggregate { windows: 1, ..Aggregate::default() };
            sum.counts.requests = n;
            let bundle = format!("digits@{n}").parse().unwrap();
            (Series { bundle, role: "primary".into() }, sum)
        });
        let all = gauges(sums.collect());
        assert_eq!(all.len(), MOST_BUNDLES + 1);
        assert_eq!((all[0].bundle.as_str(), all[MOST_BUNDLES].bundle.as_str()), ("digits@50", OTHER));
        assert_eq!(all.iter().map(|one| one.requests).sum::<u64>(), 50 * 51 / 2);
        assert_eq!(gauges(vec![]), vec![]);
    }
}
