//! Rows out of the store.

use super::{
    day::Day,
    row::{Bucket, ChannelRow, ClassRow, Fields, LabelRow, Quantiles, Row, TelemetryRow},
};
use crate::{
    ingest::{Aggregate, BucketId, Level, ProfileTotals, Summed},
    store::{FleetStore, Kind, Scan, StoreError},
};
use edgefleet_shared::{
    ids::{BundleName, ModelName},
    telemetry::{Channel, Sketch},
    time::Timestamp,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// Buckets read at a time: a day has 288.
const PAGE: usize = 300;

/// All buckets of one bundle in one role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub bundle: BundleName,
    pub role: String,
}

impl Series {
    fn prefix(&self) -> String {
        format!("{}/{}/", self.bundle, self.role)
    }
    fn id_of(&self, id: &str) -> Option<BucketId> {
        id.starts_with(&self.prefix()).then(|| id.parse().ok())?
    }
}

/// Reads aggregates and profiles. Cheap to clone.
#[derive(Clone)]
pub struct Source {
    store: Arc<dyn FleetStore>,
}

/// Where anything of a series may lie.
fn kinds() -> impl Iterator<Item = Kind> {
    Aggregate::LEVELS.iter().chain(ProfileTotals::LEVELS).map(|(_, kind)| *kind)
}

impl Source {
    pub fn new(store: Arc<dyn FleetStore>) -> Self {
        Self { store }
    }

    /// Every series, of one model or of all; a few looks into the store for each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn series(&self, model: Option<&ModelName>) -> Result<Vec<Series>, StoreError> {
        let mut all = BTreeSet::new();
        let prefix = model.map(|model| format!("{model}@"));
        for kind in kinds() {
            let mut scan = Scan { prefix: prefix.clone(), after: None, limit: 1 };
            while let Some((id, _)) = self.store.scan(kind, scan.clone()).await?.entries.pop() {
                let mut parts = id.splitn(3, '/');
                let found = match (parts.next().map(str::parse::<BundleName>), parts.next()) {
                    (Some(Ok(bundle)), Some(role)) => Some(Series { bundle, role: role.to_owned() }),
                    _ => None,
                };
                // Behind all its times, which begin with digits.
                scan.after = Some(found.as_ref().map_or(id, |series| format!("{}~", series.prefix())));
                all.extend(found);
            }
        }
        // By name, as the store has them.
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(Series::prefix);
        Ok(all)
    }

    /// The time of the first bucket of `series` at or after `from`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn first(&self, series: &Series, from: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let mut first: Option<Timestamp> = None;
        for kind in kinds() {
            let page = self.store.scan(kind, scan(series, from).limit(1)).await?;
            let own = page.entries.first().and_then(|(id, _)| Some(series.id_of(id)?.start));
            first = own.into_iter().chain(first).min();
        }
        Ok(first)
    }

    /// What lies in `series` from `from` and before `until`: coarse buckets first, each level in the order of time,
    /// cohorts apart.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn buckets<T: Summed>(
        &self,
        series: &Series,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<(Level, BucketId, T)>, StoreError> {
        let mut all = Vec::new();
        for (level, kind) in T::LEVELS.iter().rev() {
            let mut scan = scan(series, from).limit(PAGE);
            'pages: loop {
                let page = self.store.scan(*kind, scan.clone()).await?;
                for (id, found) in page.entries {
                    let Some(bucket) = series.id_of(&id) else { continue };
                    if bucket.start >= until {
                        break 'pages;
                    }
                    let value = serde_json::from_slice(&found.body)
                        .map_err(|source| StoreError::Unreadable { kind: *kind, id, source })?;
                    all.push((*level, bucket, value));
                }
                match page.next {
                    Some(next) => scan.after = Some(next),
                    None => break,
                }
            }
        }
        Ok(all)
    }

    /// All rows of one day of `series`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rows(&self, series: &Series, day: Day) -> Result<Vec<Row>, StoreError> {
        let (from, until) = (day.start(), day.next().start());
        let aggregates = self.buckets::<Aggregate>(series, from, until).await?;
        let mut all: Vec<Row> =
            aggregates.iter().flat_map(|(level, id, one)| rows_of(bucket(series, *level, id), one)).collect();
        for (level, id, one) in self.buckets::<ProfileTotals>(series, from, until).await? {
            let bucket = bucket(series, level, &id);
            let channels = one.content.channels.iter();
            all.extend(channels.map(|one| Row { bucket: bucket.clone(), fields: channel(one) }));
        }
        Ok(all)
    }
}

fn scan(series: &Series, from: Timestamp) -> Scan {
    let prefix = series.prefix();
    let scan = Scan::all().prefix(prefix.clone());
    // Behind every cohort of the last moment before.
    if from == Timestamp::EPOCH {
        scan
    } else {
        scan.after(format!("{prefix}{}~", from - Duration::from_millis(1)))
    }
}

fn bucket(series: &Series, level: Level, id: &BucketId) -> Bucket {
    Bucket {
        model: series.bundle.model.clone(),
        bundle: series.bundle.to_string(),
        version: series.bundle.counter,
        role: series.role.clone(),
        cohort: id.cohort.to_string(),
        start: id.start,
        secs: level.span().as_secs(),
    }
}

fn channel(one: &Channel) -> Fields {
    let moments = Some(&one.moments).filter(|moments| moments.n > 0);
    Fields::Channels(ChannelRow {
        channel: one.id.to_string(),
        n: one.n,
        missing: one.missing,
        mean: moments.map(|moments| moments.mean),
        sd: moments.and_then(|moments| moments.std()),
        min: moments.map(|moments| moments.min),
        max: moments.map(|moments| moments.max),
        bins: serde_json::to_string(&one.bins).unwrap_or_default(), // numbers: cannot fail
    })
}

fn rows_of(bucket: Bucket, one: &Aggregate) -> Vec<Row> {
    let labels = one.all_labels();
    let telemetry = Fields::Telemetry(TelemetryRow {
        windows: one.windows,
        requests: one.counts.requests,
        rows: one.counts.rows,
        ok: one.counts.ok,
        errors: one.counts.requests.saturating_sub(one.counts.ok),
        rejected: one.counts.rejected,
        total: quantiles(&one.latency.total),
        queue: quantiles(&one.latency.queue),
        infer: quantiles(&one.latency.infer),
        labels_matched: labels.matched,
        labels_correct: labels.correct,
        labels_unmatched: labels.unmatched,
    });
    let classes =
        one.classes.iter().map(|(class, n)| Fields::Classes(ClassRow { class: class.clone(), n: *n }));
    let labels = one.labels.iter().map(|(source, part)| {
        Fields::Labels(LabelRow {
            source: source.clone(),
            matched: part.matched,
            correct: part.correct,
            unmatched: part.unmatched,
        })
    });
    let all = std::iter::once(telemetry).chain(classes).chain(labels);
    all.map(|fields| Row { bucket: bucket.clone(), fields }).collect()
}

fn quantiles(sketch: &Sketch) -> Quantiles {
    let ms = |q| sketch.quantile_us(q).map(|us| us / 1e3);
    Quantiles { p50: ms(0.5), p95: ms(0.95), p99: ms(0.99) }
}
