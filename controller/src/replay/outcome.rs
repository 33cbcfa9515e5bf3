//! What came of a replay: when what was found, what was said wrongly, how far estimates were from the truth.

use super::{
    fleet::{DeviceHour, hour},
    reference::baseline,
    rows::{CLEAN, DataSet, Row},
    scenario::{Clean, Effort, Place, SCENARIOS, Scenario, Time},
    watch::Watch,
};
use crate::{
    advice::{FindingChange, RuleId},
    drift::IncidentChange,
    estimate::Estimator,
    evidence::random::Random,
};
use edgefleet_shared::{ids::DeviceId, time::Timestamp};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A Monday at midnight.
const BEGIN: u64 = 1_800_230_400;

/// Of one scenario, over all of its runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    pub name: String,
    pub runs: u64,
    pub device_days: f64,
    pub channels: usize,
    /// Hours from the onset to the first incident, and to the first right finding; `None`: not found in that run.
    pub incident_after: Vec<Option<u64>>,
    pub finding_after: Vec<Option<u64>>,
    /// Findings told after the onset (in harmless runs: ever), by rule.
    pub told: BTreeMap<RuleId, u64>,
    /// Of these, those of rules that are neither right nor also true.
    pub wrong: BTreeMap<RuleId, u64>,
    /// Incidents and findings before the onset, or without one.
    pub false_incidents: u64,
    pub false_findings: u64,
    pub quiet_device_days: f64,
    /// Drifts of single channels against one reference that opened without a shift.
    pub accuracy_before: f64,
    pub accuracy_after: f64,
    /// Means over the hours after the onset.
    pub estimates: BTreeMap<Estimator, f64>,
    /// Mean |estimate - true accuracy| by hour, before and after the onset.
    pub error_before: BTreeMap<Estimator, f64>,
    pub error_after: BTreeMap<Estimator, f64>,
    /// Hours from the onset until the estimator is marked untrusted (A23), first run.
    pub distrusted_after: Option<u64>,
    /// Of the first run: hour, true accuracy, CBPE, ATC.
    pub trace: Vec<(u64, f64, f64, f64)>,
    #[serde(skip)]
    errors: Errors,
}

#[derive(Clone, Debug, Default)]
struct Errors {
    hours: [f64; 2],
    right: [f64; 2],
    rows: [f64; 2],
    gaps: [BTreeMap<Estimator, f64>; 2],
    values: BTreeMap<Estimator, f64>,
}

fn half(rows: &[Row], odd: bool) -> Vec<&Row> {
    rows.iter().enumerate().filter(|(at, _)| (at % 2 == 1) == odd).map(|(_, row)| row).collect()
}

/// All runs of one scenario. `None` if the data set has no such condition.
pub fn run(scenario: &Scenario, sets: &[DataSet], effort: Effort) -> Option<Outcome> {
    let set = sets.iter().find(|set| set.name == scenario.set)?;
    let (clean, shifted) = (set.conditions.get(CLEAN)?, set.conditions.get(scenario.condition)?);
    let mut outcome =
        Outcome { name: scenario.name(), channels: set.channels.len() + 1, ..Outcome::default() };
    let known = Arc::new(baseline(set, &half(clean, false)));
    let pools = [half(clean, scenario.clean == Clean::HeldOut), half(shifted, true)];
    let runs = if scenario.is_harmless() { 1 } else { effort.runs };
    for number in 0..runs {
        one(scenario, set, &known, &pools, effort, number, &mut outcome)?;
    }
    Some(outcome.finish())
}

fn one(
    scenario: &Scenario,
    set: &DataSet,
    known: &Arc<edgefleet_shared::bundle::Baseline>,
    pools: &[Vec<&Row>; 2],
    effort: Effort,
    number: u64,
    outcome: &mut Outcome,
) -> Option<()> {
    let mut random = Random::new(effort.seed.wrapping_mul(1_000).wrapping_add(number));
    let devices: Vec<DeviceId> =
        (0..effort.devices).filter_map(|n| format!("virtual-{n}").parse().ok()).collect();
    let mut watch = Watch::new(format!("{}@1", set.name).parse().ok()?, known.clone(), devices);
    let audit = effort.audit_per_mille as f64 / 1_000.0;
    let (hours, onset) = (24 * effort.days(scenario), onset(scenario, effort));
    let (mut incident, mut finding, mut distrusted) = (None, None, None);
    let right: BTreeSet<_> = scenario.right.iter().collect();
    let fine: BTreeSet<_> = scenario.right.iter().chain(scenario.also).collect();
    for at in 0..hours {
        let after = usize::from(at >= onset);
        let shifted = |device: usize| {
            let there = match scenario.place {
                Place::Everywhere => true,
                Place::OneDevice => device == 0,
                Place::Nowhere => false,
            };
            there
                && match scenario.time {
                    Time::Lasting => at >= onset,
                    Time::Nightly => at % 24 < 8,
                }
        };
        let seen: Vec<DeviceHour> = (0..effort.devices)
            .map(|device| {
                hour(set, known, &pools[usize::from(shifted(device))], effort.rows, audit, &mut random)
            })
            .collect();
        let told = watch.hour(at, Timestamp::from_secs(BEGIN + 3_600 * at), &seen);
        outcome.errors.take(after, &seen, &told.estimates);
        if number == 0 {
            let (rows, right) = seen.iter().fold((0, 0), |sum, one| (sum.0 + one.rows, sum.1 + one.right));
            let value = |which| told.estimates.get(&which).copied().unwrap_or(0.0);
            let truth = right as f64 / rows.max(1) as f64;
            outcome.trace.push((at, truth, value(Estimator::Cbpe), value(Estimator::Atc)));
        }
        let opened = told.incidents.iter().filter(|(change, _)| *change == IncidentChange::Opened).count();
        if after == 0 {
            outcome.false_incidents += opened as u64;
        } else if opened > 0 && incident.is_none() {
            incident = Some(at - onset);
        }
        for change in &told.findings {
            let FindingChange::Opened { finding: found } = change else { continue };
            if after == 0 {
                outcome.false_findings += 1;
            }
            if after == 1 || scenario.is_harmless() {
                *outcome.told.entry(found.rule).or_default() += 1;
            }
            if after == 1 && !fine.contains(&found.rule) {
                *outcome.wrong.entry(found.rule).or_default() += 1;
            }
            if after == 1 && right.contains(&found.rule) && finding.is_none() {
                finding = Some(at - onset);
            }
            if after == 1 && found.rule == RuleId::A23 && distrusted.is_none() {
                distrusted = Some(at - onset);
            }
        }
    }
    outcome.runs += 1;
    outcome.device_days += hours as f64 / 24.0 * effort.devices as f64;
    outcome.quiet_device_days += onset.min(hours) as f64 / 24.0 * effort.devices as f64;
    if !scenario.is_harmless() {
        outcome.incident_after.push(incident);
        outcome.finding_after.push(finding);
        outcome.distrusted_after = outcome.distrusted_after.or(distrusted);
    }
    Some(())
}

/// The first shifted hour; harmless runs have none.
fn onset(scenario: &Scenario, effort: Effort) -> u64 {
    match (scenario.place, scenario.time) {
        (Place::Nowhere, _) => u64::MAX,
        (_, Time::Nightly) => 0,
        // In the middle of a day, so that nothing aligns with it.
        (_, Time::Lasting) => 24 * effort.onset_day() + 13,
    }
}

impl Errors {
    fn take(&mut self, after: usize, seen: &[DeviceHour], estimates: &BTreeMap<Estimator, f64>) {
        let (rows, right) = seen.iter().fold((0, 0), |sum, one| (sum.0 + one.rows, sum.1 + one.right));
        let truth = right as f64 / rows.max(1) as f64;
        self.hours[after] += 1.0;
        (self.rows[after], self.right[after]) =
            (self.rows[after] + rows as f64, self.right[after] + right as f64);
        for (which, value) in estimates {
            *self.gaps[after].entry(*which).or_default() += (value - truth).abs();
            if after == 1 {
                *self.values.entry(*which).or_default() += value;
            }
        }
    }
}

impl Outcome {
    fn finish(mut self) -> Self {
        let errors = std::mem::take(&mut self.errors);
        let mean = |sums: &BTreeMap<Estimator, f64>, hours: f64| {
            sums.iter().map(|(which, sum)| (*which, sum / hours.max(1.0))).collect::<BTreeMap<_, _>>()
        };
        self.accuracy_before = errors.right[0] / errors.rows[0].max(1.0);
        self.accuracy_after = errors.right[1] / errors.rows[1].max(1.0);
        self.error_before = mean(&errors.gaps[0], errors.hours[0]);
        self.error_after = mean(&errors.gaps[1], errors.hours[1]);
        self.estimates = mean(&errors.values, errors.hours[1]);
        self
    }

    pub fn found(&self) -> usize {
        self.finding_after.iter().flatten().count()
    }

    /// The middle delay; runs that found nothing count as later than all others.
    pub fn median(delays: &[Option<u64>]) -> Option<u64> {
        let mut sorted: Vec<_> = delays.iter().map(|delay| delay.unwrap_or(u64::MAX)).collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().filter(|delay| *delay != u64::MAX)
    }
}

/// Every scenario, in the order of the page; on so many threads.
pub fn measure(
    sets: &[DataSet],
    effort: Effort,
    threads: usize,
    tell: &(dyn Fn(&str) + Sync),
) -> Vec<(Scenario, Outcome)> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, SCENARIOS.len()) {
            scope.spawn(|| {
                while let Some(scenario) =
                    SCENARIOS.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
                {
                    tell(&scenario.name());
                    if let Some(outcome) = run(scenario, sets, effort) {
                        found.lock().push((*scenario, outcome));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_by_key(|(scenario, _)| SCENARIOS.iter().position(|one| one == scenario));
    found
}
