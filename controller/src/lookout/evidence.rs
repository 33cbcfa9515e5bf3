//! Gathers what the rules of [`crate::advice`] look at. What cannot be had is left out: a rule without it is silent.

mod audits;
mod beside;
mod remembered;
mod survey;

use self::{remembered::Remembered, survey::Survey};
use super::{
    catalog::Catalog,
    subject::{CohortRecord, HourPoint},
};
use crate::{
    advice::{
        Audited, EngineMedians, Evidence, Health, LatencyParts, NodeTimes, Release, Repeats, Scope,
        ScoreSeries, Slice,
    },
    captures::{
        Captures,
        audited::{Z95, wilson},
    },
    drift::Incident,
    estimate::{self, Checked, Estimator, ScoreSettings, Trust},
    fleet::Fleet,
    ingest::{Aggregate, Cohort, HealthTotals, Level, MonitorError, Monitoring, Range, Summed as _},
};
use edgefleet_shared::{
    bundle::{Baseline, Manifest, pipeline::Op},
    ids::{BundleName, DeviceId},
    probe::{ProbeVerdict, node_shares},
    telemetry::{ProfileContent, Role, Sketch},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// What counts as now: the three hours that three hourly profiles span.
const NOW: Duration = Duration::from_secs(3 * 3_600);
const NOW_HOURS: u32 = 3;
/// What counts as usual.
const USUAL: Duration = Duration::from_secs(7 * 86_400);
const HOUR: Duration = Duration::from_secs(3_600);
/// After so many steady looks a drift did not come with the bundle.
const STEADY: u32 = 3;
/// The channel under which a cohort's largest distance of an input is kept by the hour.
const INPUTS: &str = "inputs";

/// Parts of the controller that know something.
pub struct Sources {
    fleet: Arc<Fleet>,
    pub(super) catalog: Arc<dyn Catalog>,
    captures: Remembered,
    survey: Survey,
}

impl Sources {
    pub fn new(fleet: Arc<Fleet>, catalog: Arc<dyn Catalog>, captures: Arc<Captures>) -> Self {
        Self { fleet, catalog, captures: Remembered::new(captures), survey: Survey::default() }
    }
}

/// What the lookout itself knows of a bundle.
pub(super) struct View<'a> {
    pub bundle: &'a BundleName,
    pub baseline: Option<Arc<Baseline>>,
    /// Whether drift was looked at, by a baseline or without.
    pub is_watched: bool,
    pub cohorts: BTreeMap<&'a str, &'a CohortRecord>,
    pub incidents: Vec<Incident>,
}

/// Everything that is known of one bundle now. `least`: labels from which on the rules believe in an accuracy.
pub(super) async fn gather(
    sources: &Sources,
    monitoring: &Monitoring,
    view: &View<'_>,
    least: u64,
    now: Timestamp,
) -> Evidence {
    let mut slices = Vec::new();
    for (cohort, record) in &view.cohorts {
        match of_cohort(monitoring, view.bundle, cohort, record, now).await {
            Ok(slice) => slices.push(slice),
            Err(error) => tracing::error!(bundle = %view.bundle, cohort, %error, "evidence.cohort"),
        }
    }
    for incident in &view.incidents {
        let Some(device) = &incident.key.device else { continue };
        match monitoring.device_profile(device, view.bundle).await {
            Ok(Some(profile)) => {
                let (bundle, cohort) = (view.bundle.clone(), incident.key.cohort.clone());
                let mut slice = Slice::new(Scope::Device { bundle, cohort, device: device.clone() });
                slice.devices = 1;
                slice.now = Some(profile.lately());
                slice.usual = Some(profile.usual.content).filter(|usual| usual.rows > 0);
                slices.push(slice);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%device, bundle = %view.bundle, %error, "evidence.device"),
        }
    }
    let whole = of_bundle(monitoring, view.bundle, &slices, now).await;
    slices.extend(whole);
    let audit_rate = captured(sources, monitoring, view, least, &mut slices, now).await;
    let estimators = estimators(monitoring, view, now).await;
    let running = sources.survey.running(&sources.fleet, now);
    let running = running.get(view.bundle);
    let manifest = sources.catalog.manifest(view.bundle).await;
    let max_batch =
        manifest.as_ref().map_or(0, |found| u32::try_from(found.limits.batch_max).unwrap_or(u32::MAX));
    for latency in slices.iter_mut().filter_map(|slice| slice.latency.as_mut()) {
        latency.max_batch = max_batch;
    }
    let versions = sources.survey.versions(&sources.fleet, now).await.unwrap_or_else(|error| {
        tracing::error!(bundle = %view.bundle, %error, "evidence.versions");
        Arc::default()
    });
    let engines = running.map(survey::Running::engines).unwrap_or_default();
    let nodes = sources.catalog.verdict(view.bundle).await.and_then(|verdict| node_times(verdict, &engines));
    Evidence {
        bundle: Some(view.bundle.clone()),
        baseline: view.baseline.clone(),
        slices,
        incidents: view.is_watched.then(|| view.incidents.clone()),
        release: release(&*sources.catalog, manifest.as_ref(), view).await,
        scores: scores(view),
        estimators,
        shadow: beside::shadow(monitoring, sources, running, view.bundle, now).await,
        engines,
        versions: versions.get(view.bundle).cloned(),
        audit_rate,
        thresholds: manifest.as_ref().map(thresholds).unwrap_or_default(),
        nodes,
    }
}

/// Where the time goes, as the check measured it when the bundle was pushed; beside it what most devices measured.
fn node_times(verdict: ProbeVerdict, engines: &[EngineMedians]) -> Option<NodeTimes> {
    let measured = verdict.measured.filter(|measured| !measured.nodes.is_empty())?;
    let setups = engines.iter().max_by_key(|class| class.devices);
    Some(NodeTimes {
        nodes: node_shares(measured.nodes).into_iter().collect(),
        setups_us: setups.map(|class| class.medians_us.clone()).unwrap_or_default(),
        infer_ms: measured.p50_ms,
    })
}

fn range<'a>(
    bundle: &'a BundleName,
    cohort: Option<&'a Cohort>,
    from: Timestamp,
    until: Timestamp,
) -> Range<'a> {
    Range { bundle, role: Role::Primary, cohort, from, until }
}

fn back(now: Timestamp, by: Duration) -> Timestamp {
    Timestamp::from_millis(now.as_millis().saturating_sub(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
}

async fn of_cohort(
    monitoring: &Monitoring,
    bundle: &BundleName,
    name: &str,
    record: &CohortRecord,
    now: Timestamp,
) -> Result<Slice, MonitorError> {
    let mut slice = Slice::new(Scope::Cohort { bundle: bundle.clone(), cohort: name.to_owned() });
    slice.devices = u32::try_from(record.devices).unwrap_or(u32::MAX);
    slice.now = Some(record.now.clone()).filter(|now| now.rows > 0);
    slice.usual = Some(record.usual.content.clone()).filter(|usual| usual.rows > 0);
    slice.repeats = slice.now.as_ref().and_then(repeats);
    let Ok(cohort) = name.parse::<Cohort>() else { return Ok(slice) };
    let (recent, week) = (back(now, NOW), back(now, USUAL));
    let lately = monitoring.total(range(bundle, Some(&cohort), recent, now)).await?;
    let before = monitoring.total(range(bundle, Some(&cohort), week, recent)).await?;
    add(&mut slice, &lately, &before);
    Ok(slice)
}

async fn of_bundle(
    monitoring: &Monitoring,
    bundle: &BundleName,
    slices: &[Slice],
    now: Timestamp,
) -> Option<Slice> {
    let mut slice = Slice::new(Scope::Bundle { bundle: bundle.clone() });
    let merged = |pick: fn(&Slice) -> Option<&ProfileContent>| {
        let cohorts = slices.iter().filter(|slice| matches!(slice.scope, Scope::Cohort { .. }));
        cohorts.filter_map(pick).cloned().reduce(|mut sum, one| {
            sum.merge(&one);
            sum
        })
    };
    slice.now = merged(|slice| slice.now.as_ref());
    slice.usual = merged(|slice| slice.usual.as_ref());
    slice.devices = slices
        .iter()
        .filter(|slice| matches!(slice.scope, Scope::Cohort { .. }))
        .fold(0, |sum, slice| sum.saturating_add(slice.devices));
    let (recent, week) = (back(now, NOW), back(now, USUAL));
    let lately = monitoring.total(range(bundle, None, recent, now)).await;
    let before = monitoring.total(range(bundle, None, week, recent)).await;
    match (lately, before) {
        (Ok(lately), Ok(before)) => {
            add(&mut slice, &lately, &before);
            Some(slice)
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%bundle, %error, "evidence.bundle");
            None
        }
    }
}

/// What the windows counted.
fn add(slice: &mut Slice, lately: &Aggregate, before: &Aggregate) {
    slice.classes.clone_from(&lately.classes);
    slice.audited = labelled(lately);
    slice.audited_before = labelled(before);
    slice.latency = latency(lately);
    slice.latency_usual = latency(before);
    slice.health = health(&lately.health);
    slice.health_usual = health(&before.health);
    let mut week = before.clone();
    week.merge(lately);
    let cells = week.confusion();
    let cells = cells.into_iter().map(|((truth, said), n)| (truth.to_owned(), said.to_owned(), n as f64));
    slice.confusion = cells.collect();
}

/// Inputs of the last three hours that came again within one of them, on the same device.
fn repeats(now: &ProfileContent) -> Option<Repeats> {
    let counted = now.repeats.filter(|counted| counted.rows > 0)?;
    Some(Repeats {
        inputs: counted.rows,
        distinct: counted.distinct,
        cache_enabled: 2 * counted.remembered >= counted.rows,
        hours: NOW_HOURS,
    })
}

/// `None` if no device said anything.
fn health(totals: &HealthTotals) -> Option<Health> {
    (totals.told_ms > 0).then(|| Health {
        hours: totals.hours(),
        temperature_max: totals.hottest_c.map(f64::from),
        throttled: totals.slowed().unwrap_or(0.0),
        cpu_share: totals.cpu().unwrap_or(0.0),
    })
}

/// Puts what captures say into the slices; returns the share of answers that is captured for audits.
async fn captured(
    sources: &Sources,
    monitoring: &Monitoring,
    view: &View<'_>,
    least: u64,
    slices: &mut [Slice],
    now: Timestamp,
) -> Option<f64> {
    let kept = sources.captures.of(&view.bundle.model, now).await;
    let kept =
        kept.map_err(|error| tracing::error!(bundle = %view.bundle, %error, "evidence.captures")).ok()?;
    let of_bundle = || kept.captures.iter().filter(|one| one.bundle == *view.bundle);
    let choice = monitoring.settings().cohorts_of(&view.bundle.model);
    let mut places = BTreeMap::<&DeviceId, String>::new();
    for one in of_bundle() {
        places.entry(&one.device).or_insert_with(|| {
            let known = sources.fleet.device(&one.device);
            let labels = known.map(|known| known.device.labels.clone()).unwrap_or_default();
            let cohort = Cohort::of(&choice.by, &labels);
            // A device beyond the bound of cohorts is counted with the others there.
            let is_known = view.cohorts.contains_key(cohort.as_str());
            if is_known { cohort.to_string() } else { Cohort::other().to_string() }
        });
    }
    for slice in slices {
        match &slice.scope {
            Scope::Bundle { .. } => {
                audits::fill(slice, audits::audit(of_bundle(), least, now), least);
                if let Some(record) = &kept.policy {
                    let range = range(view.bundle, None, back(now, USUAL), now);
                    let answered = monitoring.total(range).await.map_or(0, |sum| sum.counts.rows);
                    let (policy, set) = (&record.policy, record.at);
                    slice.captures = audits::quotas(of_bundle(), policy, set, answered, slice.devices, now);
                }
            }
            Scope::Cohort { cohort, .. } => {
                let here = of_bundle().filter(|one| places.get(&one.device).is_some_and(|at| at == cohort));
                let audit = audits::audit(here, least, now);
                audits::fill(slice, audit, least);
            }
            // One device has too few labels for anything.
            Scope::Device { .. } => {}
        }
    }
    kept.policy.as_ref().map(|record| record.policy.audit_share())
}

/// The least score of an answer, if a step of the bundle asks for one.
fn thresholds(manifest: &Manifest) -> BTreeMap<String, f64> {
    let steps = manifest.pipeline.iter().flat_map(|pipeline| &pipeline.post);
    let least = steps.filter_map(|step| match &step.op {
        Op::Abstain { min, .. } => Some(*min),
        Op::Threshold { at } => Some(*at),
        _ => None,
    });
    least.filter(|least| *least > 0.0 && *least < 1.0).take(1).map(|least| ("*".to_owned(), least)).collect()
}

/// Labels that came for whatever reason, each once: as an audit only if who labels does not choose.
fn labelled(aggregate: &Aggregate) -> Option<Audited> {
    let all = aggregate.all_labels();
    let (n, k) = (all.matched, all.correct.min(all.matched));
    if n == 0 {
        return None;
    }
    let (count, share) = (n as f64, k as f64 / n as f64);
    let (low, high) = wilson(share, count, Z95);
    Some(Audited { accuracy: share, low, high, labels: n, effective: count })
}

/// Of one device in the mean: a window is one device's five minutes.
fn latency(aggregate: &Aggregate) -> Option<LatencyParts> {
    let parts = &aggregate.latency;
    let n = parts.total.count();
    let mean = |sketch: &Sketch| match sketch.count() {
        0 => 0.0,
        n => sketch.sum_us as f64 / n as f64 / 1e3,
    };
    let quantile = |sketch: &Sketch, q: f64| sketch.quantile_us(q).unwrap_or(0.0) / 1e3;
    (n > 0).then(|| LatencyParts {
        n,
        queue_mean: mean(&parts.queue),
        pre_mean: mean(&parts.pre),
        infer_mean: mean(&parts.infer) - mean(&parts.pre) - mean(&parts.post),
        post_mean: mean(&parts.post),
        infer_p50: quantile(&parts.infer, 0.5),
        total_p95: quantile(&parts.total, 0.95),
        rate: n as f64 / (aggregate.windows.max(1) as f64 * Level::FiveMinutes.span().as_secs_f64()),
        // Devices answer one request after the other.
        workers: 1,
        ..LatencyParts::default()
    })
}

fn scores(view: &View<'_>) -> Vec<ScoreSeries> {
    let Ok(channel) = INPUTS.parse() else { return Vec::new() };
    let of = |(cohort, record): (&&str, &&CohortRecord)| ScoreSeries {
        cohort: (*cohort).to_owned(),
        channel: edgefleet_shared::ids::ChannelId::clone(&channel),
        scores: record.hours.iter().map(|point| (point.hour, point.inputs)).collect(),
    };
    view.cohorts.iter().map(of).collect()
}

/// How the estimates of the last weeks did beside the labels that came since.
async fn estimators(
    monitoring: &Monitoring,
    view: &View<'_>,
    now: Timestamp,
) -> BTreeMap<Estimator, estimate::EstimatorScore> {
    let oldest =
        view.cohorts.values().filter_map(|record| record.hours.front()).map(|point| point.hour).min();
    let Some(oldest) = oldest else { return BTreeMap::new() };
    let mut checked: BTreeMap<Estimator, Vec<Checked>> = BTreeMap::new();
    for (cohort, record) in &view.cohorts {
        let Ok(cohort) = cohort.parse::<Cohort>() else { continue };
        // A series has at most 2,016 steps; three weeks have 504 hours.
        let series = monitoring.series(range(view.bundle, Some(&cohort), oldest, now), HOUR).await;
        let Ok(series) = series else { continue };
        for point in series {
            let Some(audited) = labelled(&point.aggregate) else { continue };
            let Some(hour) = record.hours.iter().find(|hour| hour.hour == point.start) else { continue };
            for (which, estimate) in [(Estimator::Cbpe, hour.cbpe), (Estimator::Atc, hour.atc)] {
                let Some(estimate) = estimate else { continue };
                checked.entry(which).or_default().push(one_check(point.start, estimate, hour, &audited));
            }
        }
    }
    let settings = ScoreSettings::default();
    checked
        .into_iter()
        .map(|(which, checked)| (which, estimate::score(&checked, Trust::Unknown, &settings)))
        .collect()
}

fn one_check(at: Timestamp, estimate: f64, hour: &HourPoint, audited: &Audited) -> Checked {
    let rows = hour.rows.max(1) as f64;
    Checked {
        at,
        estimate,
        deviation: (estimate * (1.0 - estimate) / rows).max(0.0).sqrt(),
        truth: audited.accuracy,
        truth_deviation: audited.deviation(),
        labels: audited.labels,
    }
}

/// When the bundle came to each cohort, and what it changed.
async fn release(catalog: &dyn Catalog, ours: Option<&Manifest>, view: &View<'_>) -> Option<Release> {
    let activated = view
        .cohorts
        .iter()
        .filter(|(_, record)| record.steady < STEADY)
        .filter_map(|(cohort, record)| Some(((*cohort).to_owned(), record.first?)))
        .collect();
    let counter = view.bundle.counter.checked_sub(1).filter(|counter| *counter > 0)?;
    let previous = BundleName { model: view.bundle.model.clone(), counter };
    let (ours, theirs) = (ours?, catalog.manifest(&previous).await);
    let changed = theirs.as_ref().map(|theirs| differences(theirs, ours)).unwrap_or_default();
    let steps_changed = changed.iter().any(|field| field == "pipeline");
    let previous = theirs.is_some().then_some(previous);
    Some(Release { activated, previous, changed, steps_changed })
}

/// Fields that every release changes tell nothing.
const ALWAYS: [&str; 2] = ["model", "lineage"];

fn differences(before: &Manifest, after: &Manifest) -> Vec<String> {
    let fields = |manifest: &Manifest| match serde_json::to_value(manifest) {
        Ok(serde_json::Value::Object(all)) => all,
        _ => serde_json::Map::new(), // plain data: it is an object
    };
    let (before, after) = (fields(before), fields(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .filter(|name| !ALWAYS.contains(&name.as_str()) && before.get(*name) != after.get(*name))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::probe::{Confinement, Measured};

    #[test]
    fn the_check_of_a_push_says_where_the_time_goes() {
        let wall = || "enforced".to_owned();
        let verdict = |nodes: Vec<(String, f64)>| ProbeVerdict {
            protocol: 1,
            agent_version: "0.1.0".into(),
            bundle: "digits@1".parse().unwrap(),
            digest: edgefleet_shared::digest::BundleDigest::of(b"m"),
            ok: true,
            failure: None,
            engine: None,
            passed: vec![],
            golden: vec![],
            operators: BTreeMap::new(),
            measured: Some(Measured { load_ms: 1.0, p50_ms: 2.5, p95_ms: 3.0, peak_memory_bytes: 1, nodes }),
            confinement: Confinement { landlock: wall(), seccomp: wall(), limits: wall() },
        };
        let class = |devices, us| EngineMedians {
            hardware: "aarch64".into(),
            devices,
            medians_us: [("tract/f32".to_owned(), us)].into(),
        };
        assert_eq!(node_times(verdict(vec![]), &[]), None);
        let heavy = vec![("conv".to_owned(), 0.75), ("add".to_owned(), 0.25), ("odd".to_owned(), f64::NAN)];
        let found = node_times(verdict(heavy), &[class(2, 90.0), class(7, 40.0)]).unwrap();
        assert_eq!((found.infer_ms, found.nodes["conv"], found.nodes.len()), (2.5, 0.75, 2));
        assert_eq!(found.setups_us["tract/f32"], 40.0);
    }
}
