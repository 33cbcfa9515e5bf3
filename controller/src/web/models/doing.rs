//! How the bundles of a model do: read from aggregates, the lookout's cohorts and labelled captures; drawn as plots.

use super::{
    super::{
        Web,
        answer::PageError,
        plot::{Chart, Dot, Look, Mark, Series, Unit, meter},
        words::{count, figure, millis, percent},
    },
    Back,
};
use crate::{
    api::telemetry::LatencyView,
    captures::{AuditedView, Wanted},
    drift::{ChannelDrift, ChannelVerdict},
    fleet::FleetError,
    ingest::{Aggregate, Cohort, Point, Range, Summed as _},
    lookout::{CohortRecord, HourPoint},
    registry::record::ModelSummary,
};
use edgefleet_shared::{bundle::ChannelKind, ids::BundleName, telemetry::Role, time::Timestamp};
use maud::{Markup, html};
use std::collections::{BTreeMap, BTreeSet};

/// Bundles looked at, the newest.
const BUNDLES: usize = 6;
/// Lines of one plot.
const LINES: usize = 6;
/// Parts of the time of which labels are added up.
const AUDITS: u32 = 8;
/// Channels of one cohort that are shown, the most moved.
const CHANNELS: usize = 16;
/// Cohorts whose channels are shown.
const CHANNEL_TABLES: usize = 4;

/// One bundle over the time asked for.
struct One {
    bundle: BundleName,
    points: Vec<Point>,
    sum: Aggregate,
    /// Those that the cohort asked for holds.
    known: BTreeMap<String, CohortRecord>,
    audited: Vec<(f64, AuditedView)>,
    audited_in_all: Option<AuditedView>,
}

pub(super) struct Doing {
    /// Newest first.
    all: Vec<One>,
    cohorts: BTreeSet<Cohort>,
    from: Timestamp,
    until: Timestamp,
    step: f64,
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millis() as f64 / 1e3
}

impl Doing {
    pub(super) async fn read(
        web: &Web,
        model: &ModelSummary,
        cohort: &Cohort,
        back: Back,
    ) -> Result<Self, PageError> {
        let operations = &web.operations;
        let until = web.now();
        let from = until - back.span();
        let mut audited = audits(web, model, cohort, from, back).await?;
        let (mut all, mut cohorts) = (Vec::new(), BTreeSet::new());
        for line in model.bundles.iter().rev().take(BUNDLES) {
            let bundle = BundleName { model: model.name.clone(), counter: line.counter };
            let range = Range { bundle: &bundle, role: Role::Primary, cohort: Some(cohort), from, until };
            let points = operations.monitoring.series(range, back.step()).await?;
            let mut sum = Aggregate::default();
            points.iter().for_each(|point| sum.merge(&point.aggregate));
            cohorts.extend(operations.monitoring.cohorts(Range { cohort: None, ..range }).await?);
            let mut known = operations.lookout.cohorts(&bundle).await.map_err(FleetError::from)?;
            cohorts.extend(known.keys().filter_map(|name| name.parse::<Cohort>().ok()));
            known.retain(|name, _| cohort.is_all() || name == cohort.as_str());
            let (audited, audited_in_all) = audited.remove(&bundle).unwrap_or_default();
            if sum.windows > 0 || !known.is_empty() || audited_in_all.is_some() {
                all.push(One { points, sum, known, audited, audited_in_all, bundle });
            }
        }
        Ok(Self { all, cohorts, from, until, step: back.step().as_secs_f64() })
    }

    pub(super) fn cohorts(&self) -> impl Iterator<Item = &Cohort> {
        self.cohorts.iter()
    }

    /// Each bundle in numbers.
    pub(super) fn now(&self) -> Markup {
        if self.all.is_empty() {
            return html! { p .empty { "Nothing was heard of it in this time." } };
        }
        html! {
            div .wide tabindex="0" {
                table {
                    thead { tr {
                        th scope="col" { "Bundle" }
                        th scope="col" .number { "Requests" }
                        th scope="col" .number { "Failed" }
                        th scope="col" .number { "p50" }
                        th scope="col" .number { "p95" }
                        th scope="col" { "Accuracy, estimated now (usually)" }
                        th scope="col" { "Accuracy, audited by labels" }
                    } }
                    tbody { @for one in &self.all { (one.row()) } }
                }
            }
            p .faint {
                "Estimated: from the confidence alone (CBPE), no label needed; it cannot see when the meaning of inputs changes. "
                "Audited: from labelled captures, weighted by the chance they were kept with, with a 95 % interval."
            }
        }
    }

    /// The time-series, bundle changes marked.
    pub(super) fn plots(&self) -> Markup {
        let charts = [self.accuracy(), self.drift(), self.latency(), self.requests(), self.failed()];
        html! { div .plots { @for chart in charts { (chart.render()) } } }
    }

    fn chart(&self, title: &str, unit: Unit) -> Chart {
        let mut chart = Chart::over_time(title, unit, (seconds(self.from), seconds(self.until)), self.step);
        let begun = |one: &One| {
            let first = one.points.first()?;
            let first = if first.start > self.from { first.start } else { return None };
            Some(Mark { name: one.bundle.to_string(), x: seconds(first) })
        };
        chart.marks = self.all.iter().filter_map(begun).collect();
        chart
    }

    /// Bundle and cohort pairs that the lookout knows: as many as a plot holds.
    fn pairs(&self) -> impl Iterator<Item = (usize, String, &CohortRecord)> {
        let each = self.all.iter().flat_map(|one| {
            let name = |cohort: &str| {
                if cohort == "all" { one.bundle.to_string() } else { format!("{} in {cohort}", one.bundle) }
            };
            one.known.iter().map(move |(cohort, record)| (name(cohort), record))
        });
        each.take(LINES).enumerate().map(|(tone, (name, record))| (tone, name, record))
    }

    fn hours<'a>(
        &'a self,
        chart: &mut Chart,
        look: Look,
        word: &str,
        value: impl Fn(&HourPoint) -> Option<f64> + 'a,
    ) {
        // The lookout keeps hours.
        chart.step = chart.step.max(3_600.0);
        for (tone, name, record) in self.pairs() {
            let dot = |point: &HourPoint| Some(Dot::new(seconds(point.hour), value(point)?));
            let dots = record.hours.iter().filter_map(dot).collect();
            chart.series.push(Series { name: format!("{name}{word}"), tone, look, dots });
        }
    }

    fn accuracy(&self) -> Chart {
        let mut chart = self.chart("Accuracy", Unit::Percent);
        chart.from_zero = false;
        self.hours(&mut chart, Look::Line, ", estimated", |point| point.cbpe.or(point.atc));
        // What the last look saw, in between the hours.
        for ((_, _, record), series) in self.pairs().zip(&mut chart.series) {
            let seen = record.now.quality.as_ref().and_then(|quality| quality.cbpe());
            if let (Some(at), Some(seen)) = (record.looked, seen) {
                series.dots.push(Dot::new(seconds(at), seen));
            }
        }
        for (tone, one) in self.all.iter().enumerate() {
            let dot = |(x, view): &(f64, AuditedView)| {
                let estimate = view.combined.or(view.audited)?;
                Some(Dot { x: *x, y: estimate.accuracy, band: Some((estimate.low, estimate.high)) })
            };
            let dots: Vec<_> = one.audited.iter().filter_map(dot).collect();
            if !dots.is_empty() {
                let name = format!("{}, audited", one.bundle);
                chart.series.push(Series { name, tone: tone + 1, look: Look::Dots, dots });
            }
        }
        chart
    }

    fn drift(&self) -> Chart {
        let mut chart = self.chart(
            "Drift from the baseline (largest Jensen-Shannon distance)",
            Unit::Plain("distance".into()),
        );
        self.hours(&mut chart, Look::Line, ", inputs", |point| Some(point.inputs));
        self.hours(&mut chart, Look::Dashed, ", answers", |point| Some(point.answers));
        // What the last look saw, in between the hours.
        let both = self.pairs().map(|pair| (pair, false)).chain(self.pairs().map(|pair| (pair, true)));
        for (((_, _, record), is_answer), series) in both.zip(&mut chart.series) {
            if let Some((at, seen)) = record.looked.zip(largest(&record.found, is_answer)) {
                series.dots.push(Dot::new(seconds(at), seen));
            }
        }
        chart
    }

    fn points(&self, chart: &mut Chart, look: Look, word: &str, value: impl Fn(&Point) -> Option<f64>) {
        for (tone, one) in self.all.iter().take(LINES).enumerate() {
            let dot = |point: &Point| Some(Dot::new(seconds(point.start), value(point)?));
            let dots: Vec<_> = one.points.iter().filter_map(dot).collect();
            chart.series.push(Series { name: format!("{}{word}", one.bundle), tone, look, dots });
        }
    }

    fn latency(&self) -> Chart {
        let mut chart = self.chart("Latency in the agent", Unit::Millis);
        self.points(&mut chart, Look::Line, ", p95", |point| {
            LatencyView::of(&point.aggregate.latency.total).p95
        });
        self.points(&mut chart, Look::Dashed, ", p50", |point| {
            LatencyView::of(&point.aggregate.latency.total).p50
        });
        chart
    }

    fn requests(&self) -> Chart {
        let mut chart = self.chart("Requests a minute", Unit::Count);
        let rate = |point: &Point| {
            // The last step is not over.
            let minutes = point.length.min(self.until.since(point.start)).as_secs_f64() / 60.0;
            (minutes >= 1.0).then(|| point.aggregate.counts.requests as f64 / minutes)
        };
        self.points(&mut chart, Look::Line, "", rate);
        chart
    }

    fn failed(&self) -> Chart {
        let mut chart = self.chart("Failed requests", Unit::Percent);
        self.points(&mut chart, Look::Line, "", |point| failed(&point.aggregate));
        chart
    }

    /// What the last look at each cohort found against the baseline.
    pub(super) fn channels(&self) -> Markup {
        let found: Vec<_> =
            self.pairs().filter(|(_, _, record)| !record.found.is_empty()).take(CHANNEL_TABLES).collect();
        html! {
            @if found.is_empty() { p .empty { "Nothing was compared yet: a bundle needs a baseline, and a cohort three devices." } }
            div .cards {
                @for (_, name, record) in &found {
                    @let channels = worst(&record.found);
                    section .card {
                        h3 { (name) }
                        p .faint { (count(record.devices)) " devices, " (count(record.now.rows)) " rows in the last look" }
                        div .wide tabindex="0" {
                            table {
                                thead { tr { th scope="col" { "Channel" } th scope="col" { "Distance" } th scope="col" .number { "JS" } th scope="col" { "Verdict" } } }
                                tbody { @for channel in channels.iter().take(CHANNELS) { (channel_row(channel)) } }
                            }
                        }
                        @if channels.len() > CHANNELS { p .faint { (channels.len() - CHANNELS) " more that moved less." } }
                    }
                }
            }
        }
    }
}

/// Largest distance among inputs or among answers; `None` if neither was compared.
fn largest(found: &[ChannelDrift], is_answer: bool) -> Option<f64> {
    let is_of = |one: &&ChannelDrift| {
        one.kind.is_some_and(|kind| matches!(kind, ChannelKind::Output | ChannelKind::Score) == is_answer)
    };
    found.iter().filter(is_of).map(ChannelDrift::score).max_by(f64::total_cmp)
}

fn worst(found: &[ChannelDrift]) -> Vec<&ChannelDrift> {
    let mut all: Vec<_> = found.iter().collect();
    all.sort_by(|a, b| b.size().total_cmp(&a.size()).then_with(|| b.score().total_cmp(&a.score())));
    all
}

fn channel_row(channel: &ChannelDrift) -> Markup {
    let (tone, word) = match channel.verdict {
        ChannelVerdict::Shifted => ("bad", "shifted"),
        ChannelVerdict::Slight => ("warn", "slight"),
        ChannelVerdict::Steady => ("good", "steady"),
        ChannelVerdict::TooFew => ("", "too few rows"),
    };
    let floor = channel.js.map(|js| js.floor);
    let score = channel.score();
    let says = format!("{} of 1, worth a word from {}", figure(score), figure(floor.unwrap_or(0.0)));
    html! {
        tr {
            th scope="row" { code { (channel.channel) } }
            td { (meter(score, floor, tone, &says)) }
            td .number { (figure(score)) }
            td { (super::super::words::badge(tone, word)) }
        }
    }
}

/// Share of requests that were not answered well.
fn failed(sum: &Aggregate) -> Option<f64> {
    let counts = &sum.counts;
    (counts.requests > 0).then(|| counts.requests.saturating_sub(counts.ok) as f64 / counts.requests as f64)
}

impl One {
    fn row(&self) -> Markup {
        let latency = LatencyView::of(&self.sum.latency.total);
        let audited = self.audited_in_all.as_ref();
        html! {
            tr {
                th scope="row" { (self.bundle) }
                td .number { (count(self.sum.counts.requests)) }
                td .number { (percent(failed(&self.sum))) }
                td .number { (millis(latency.p50)) }
                td .number { (millis(latency.p95)) }
                td {
                    @for (cohort, record) in self.known.iter().take(LINES) {
                        @let now = record.now.quality.as_ref().and_then(|quality| quality.cbpe());
                        @let usual = record.usual.content.quality.as_ref().and_then(|quality| quality.cbpe());
                        @if now.is_some() {
                            div { (percent(now)) " " span .faint { "(" (percent(usual)) ")" @if cohort != "all" { " " (cohort) } } }
                        }
                    }
                }
                td {
                    @match audited.and_then(|view| view.combined.or(view.audited)) {
                        Some(found) => {
                            (percent(Some(found.accuracy))) " "
                            span .faint { (percent(Some(found.low))) " to " (percent(Some(found.high))) ", " (count(found.labelled)) " labels" }
                        }
                        None => span .faint { "no labels" },
                    }
                }
            }
        }
    }
}

type Audits = BTreeMap<BundleName, (Vec<(f64, AuditedView)>, Option<AuditedView>)>;

/// Accuracy by labels, in parts of the time and in all, by bundle. Two passes over the captures of the model.
async fn audits(
    web: &Web,
    model: &ModelSummary,
    cohort: &Cohort,
    from: Timestamp,
    back: Back,
) -> Result<Audits, PageError> {
    let part = back.span() / AUDITS;
    let by = web.operations.monitoring.settings().cohorts_of(&model.name).by;
    let fleet = &web.operations.fleet;
    let is_in = |record: &crate::captures::CaptureRecord| {
        let device = &record.document.prediction.device;
        let labels = || fleet.device(device).map(|known| known.device.labels.clone()).unwrap_or_default();
        cohort.is_all() || Cohort::of(&by, &labels()) == *cohort
    };
    let wanted = Wanted { model: Some(model.name.clone()), since: Some(from), ..Wanted::default() };
    let parts = web.captures.audited_by(&wanted, |record| {
        let at = record.document.at.since(from).as_secs() / part.as_secs().max(1);
        is_in(record).then(|| (record.document.bundle.clone(), at))
    });
    let parts = parts.await.map_err(FleetError::from)?;
    let whole =
        web.captures.audited_by(&wanted, |record| is_in(record).then(|| record.document.bundle.clone()));
    let whole = whole.await.map_err(FleetError::from)?;
    let mut found = Audits::new();
    for ((bundle, at), view) in parts {
        let middle = seconds(from) + (at as f64 + 0.5) * part.as_secs_f64();
        found.entry(bundle).or_default().0.push((middle, view));
    }
    for (bundle, view) in whole {
        found.entry(bundle).or_default().1 = Some(view);
    }
    Ok(found)
}
