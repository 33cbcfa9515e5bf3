//! What devices say they run, and what they should run: one walk over the fleet for all bundles, now and then.

use crate::{
    advice::{EngineMedians, Versions},
    desired::Intent,
    fleet::{
        Fleet,
        devices::{DeviceQuery, DeviceState, Status},
    },
    rollout::Attempt,
    rollouts::{ATTEMPT, Documents, attempt_id},
    store::{Repository, Scan, StoreError},
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    reported::{EngineReport, Phase, SlotReport},
    time::Timestamp,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Reports are in memory: a walk over 100,000 devices takes about 50 ms.
const REPORTS: Duration = Duration::from_secs(60);
/// What is wanted is in the store: one document per device and slot.
const WANTED: Duration = Duration::from_secs(1_800);
const PAGE: usize = 512;
/// Devices that are behind are looked at one by one: when was it handed to them?
const MOST_BEHIND: usize = 2_000;
const MOST_EXAMPLES: usize = 16;
/// Hardware classes that are told apart, and medians of one setup that are kept.
const MOST_CLASSES: usize = 64;
const MOST_MEDIANS: usize = 2_000;
/// Devices whose bad hours are asked for.
const MOST_SAMPLED: usize = 64;
/// A device that had the bundle for less time is not late.
pub(super) const LATE: Duration = crate::advice::PATIENCE;

/// What devices that run one bundle say.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    /// Some of them.
    pub sample: Vec<DeviceId>,
    classes: BTreeMap<String, Class>,
}

#[derive(Clone, Debug, Default)]
struct Class {
    devices: u32,
    medians_us: BTreeMap<String, Vec<f64>>,
}

impl Running {
    fn add(&mut self, device: &DeviceId, hardware: &str, engine: Option<&EngineReport>) {
        if self.sample.len() < MOST_SAMPLED {
            self.sample.push(device.clone());
        }
        let Some(engine) = engine else { return };
        if self.classes.len() >= MOST_CLASSES && !self.classes.contains_key(hardware) {
            return;
        }
        let measured = medians(engine);
        if measured.is_empty() {
            return;
        }
        let class = self.classes.entry(hardware.to_owned()).or_default();
        class.devices = class.devices.saturating_add(1);
        for (setup, us) in measured {
            let known = class.medians_us.entry(setup).or_default();
            if known.len() < MOST_MEDIANS {
                known.push(us);
            }
        }
    }

    pub(super) fn engines(&self) -> Vec<EngineMedians> {
        let class = |(hardware, class): (&String, &Class)| EngineMedians {
            hardware: hardware.clone(),
            devices: class.devices,
            medians_us: class.medians_us.iter().map(|(setup, all)| (setup.clone(), median(all))).collect(),
        };
        self.classes.iter().map(class).collect()
    }
}

/// Microseconds by engine and precision: the best number of threads stands for each.
fn medians(engine: &EngineReport) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::<String, f64>::new();
    for one in &engine.measured {
        let (Some(ms), Some((name, _))) = (one.median_ms, one.setup.rsplit_once('/')) else { continue };
        let us = found.entry(name.to_owned()).or_insert(f64::INFINITY);
        *us = us.min(1_000.0 * ms);
    }
    found
}

fn median(all: &[f64]) -> f64 {
    let mut all = all.to_vec();
    all.sort_unstable_by(f64::total_cmp);
    let upper = all.get(all.len() / 2).copied().unwrap_or(f64::NAN);
    if all.len().is_multiple_of(2) && !all.is_empty() {
        f64::midpoint(all[all.len() / 2 - 1], upper)
    } else {
        upper
    }
}

/// Why a device does not run what it should, in a word or two.
fn reason(status: &Status, slot: Option<&SlotReport>) -> String {
    let Some(slot) = slot else {
        return if status.online { "without the slot" } else { "never heard of" }.to_owned();
    };
    if !status.online {
        return "offline".to_owned();
    }
    match slot.phase {
        Phase::Idle => "online and idle".to_owned(),
        phase => serde_json::to_value(phase)
            .ok()
            .and_then(|name| name.as_str().map(str::to_owned))
            .unwrap_or_default(), // a plain name: it is text
    }
}

#[derive(Clone, Debug, Default)]
struct Known {
    reports: Timestamp,
    running: Arc<BTreeMap<BundleName, Running>>,
    wanted: Timestamp,
    versions: Arc<BTreeMap<BundleName, Versions>>,
}

/// Remembers the last walk.
#[derive(Default)]
pub(super) struct Survey {
    known: Mutex<Known>,
}

/// Whether something of `then` is still good at `now`; a clock that was set back makes it old.
fn is_fresh(then: Timestamp, now: Timestamp, keeps: Duration) -> bool {
    then != Timestamp::EPOCH && now >= then && now.since(then) < keeps
}

impl Survey {
    pub(super) fn running(&self, fleet: &Fleet, now: Timestamp) -> Arc<BTreeMap<BundleName, Running>> {
        let mut known = self.known.lock();
        if !is_fresh(known.reports, now, REPORTS) {
            known.running = Arc::new(walk(fleet));
            known.reports = now;
        }
        known.running.clone()
    }

    /// # Errors
    /// [`StoreError`].
    pub(super) async fn versions(
        &self,
        fleet: &Fleet,
        now: Timestamp,
    ) -> Result<Arc<BTreeMap<BundleName, Versions>>, StoreError> {
        {
            let known = self.known.lock();
            if is_fresh(known.wanted, now, WANTED) {
                return Ok(known.versions.clone());
            }
        }
        let versions = Arc::new(compare(fleet, now).await?);
        let mut known = self.known.lock();
        (known.wanted, known.versions) = (now, versions.clone());
        Ok(versions)
    }
}

fn walk(fleet: &Fleet) -> BTreeMap<BundleName, Running> {
    let mut found = BTreeMap::<BundleName, Running>::new();
    let mut query =
        DeviceQuery { selectors: vec![], state: Some(DeviceState::Enrolled), after: None, limit: PAGE };
    loop {
        let page = fleet.list_devices(&query);
        for known in &page.items {
            let Some(reported) = &known.status.reported else { continue };
            let mut seen = BTreeSet::new();
            for slot in reported.slots.values() {
                let Some(active) = slot.active.as_ref().filter(|active| seen.insert(&active.bundle)) else {
                    continue;
                };
                let engine = slot.engine.as_ref().filter(|engine| active.digest == Some(engine.digest));
                let running = found.entry(active.bundle.clone()).or_default();
                running.add(&known.device.id, &known.status.facts.hardware, engine);
            }
        }
        match (page.next, page.items.last()) {
            (Some(_), Some(last)) => query.after = Some(last.device.id.clone()),
            _ => return found,
        }
    }
}

/// Every intent beside the report of its device.
async fn compare(fleet: &Fleet, now: Timestamp) -> Result<BTreeMap<BundleName, Versions>, StoreError> {
    let documents = Documents::new(fleet.store().clone());
    let attempts = Repository::<Attempt>::new(fleet.store().clone(), ATTEMPT);
    let mut found = BTreeMap::<BundleName, Versions>::new();
    let mut looked_at = BTreeMap::<BundleName, usize>::new();
    let mut scan = Scan::all();
    loop {
        let page = documents.intents.list(scan.clone()).await?;
        for (_, intent) in page.entries {
            let Intent { device, slot, active: Some(active), .. } = intent.value else { continue };
            let Ok(known) = fleet.enrolled_device(&device) else { continue };
            let none = || Versions { assigned: now, wanted: 0, behind: BTreeMap::new(), examples: vec![] };
            let versions = found.entry(active.bundle.clone()).or_insert_with(none);
            versions.wanted += 1;
            let reported = known.status.reported.as_ref();
            let says = reported.and_then(|reported| reported.slots.get(&slot));
            let runs = says.and_then(|slot| slot.active.as_ref());
            if runs.is_some_and(|installed| installed.bundle == active.bundle) {
                continue;
            }
            let looks = looked_at.entry(active.bundle.clone()).or_default();
            *looks += 1;
            if *looks > MOST_BEHIND {
                continue;
            }
            let id = attempt_id(&active.attempt.rollout, &device);
            let handed = attempts.find_json(&id).await?.and_then(|found| found.value.handed_at);
            let Some(handed) = handed.filter(|handed| now.since(*handed) >= LATE && now >= *handed) else {
                continue;
            };
            let is_first = versions.behind.is_empty();
            versions.assigned = if is_first { handed } else { versions.assigned.max(handed) };
            *versions.behind.entry(reason(&known.status, says)).or_default() += 1;
            if versions.examples.len() < MOST_EXAMPLES {
                versions.examples.push(device);
            }
        }
        match page.next {
            Some(next) => scan.after = Some(next),
            None => return Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::{digest::BundleDigest, reported::MeasuredSetup};

    #[test]
    fn the_best_number_of_threads_stands_for_a_setup_and_devices_are_one_median() {
        let report = |times: &[(&str, f64)]| EngineReport {
            digest: BundleDigest::of(b"b"),
            setup: "onnxruntime/f32/1".into(),
            current: true,
            rounds: 50,
            measured: times
                .iter()
                .map(|(setup, ms)| MeasuredSetup {
                    setup: (*setup).into(),
                    median_ms: Some(*ms),
                    batch: None,
                })
                .collect(),
            refused: vec![],
            again: None,
        };
        let mut running = Running::default();
        for (n, ms) in [1.0, 3.0, 2.0].into_iter().enumerate() {
            let said = report(&[
                ("onnxruntime/f32/1", 2.0 * ms),
                ("onnxruntime/f32/4", ms),
                ("onnxruntime/int8-qdq/1", 4.0),
                ("junk", 0.0),
            ]);
            running.add(&format!("dev-{n}").parse().unwrap(), "pi-4", Some(&said));
        }
        running.add(&"dev-9".parse().unwrap(), "pi-4", None);
        let engines = running.engines();
        assert_eq!((engines.len(), engines[0].devices, running.sample.len()), (1, 3, 4));
        assert_eq!(engines[0].medians_us["onnxruntime/f32"], 2_000.0);
        assert_eq!(engines[0].medians_us["onnxruntime/int8-qdq"], 4_000.0);
        assert_eq!(engines[0].medians_us.len(), 2);
    }
}
