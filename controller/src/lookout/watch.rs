//! The task: what came is looked at, what opened or closed is written and told in one transaction.

use super::{
    alerting,
    catalog::Known,
    evidence::{self, Sources},
    learned::LEARNING,
    records::{
        self, ADVICE, AdviceRecord, DRIFT_COHORT, DRIFT_DEVICE, INCIDENT, IncidentRecord, put_cohort,
        put_device,
    },
    subject::{CohortRecord, DeviceRecord, Drifts, LEAST_DEVICES, Look, Round},
};
use crate::{
    advice::{self, AdviceSettings, FindingChange},
    clock,
    drift::{self, DriftSettings, DriftState, Incident, IncidentChange, SubjectDrift},
    ingest::{Cohort, DeviceProfile, Monitoring},
    store::{Expect, FleetStore, MAX_OPERATIONS, StoreError, Transaction},
};
use edgefleet_shared::{
    bundle::Baseline,
    ids::{BundleName, DeviceId},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// News that may wait; one that finds no place is looked at with the device's next profile.
const QUEUE: usize = 8_192;
/// Devices looked at in one pass.
const AT_A_TIME: usize = 256;
/// Longest time between two passes: findings also change because time goes by.
const PASS: Duration = Duration::from_secs(60);
/// Advice of one bundle is thought over at most this often.
const THINK: Duration = Duration::from_secs(5);
/// After the store failed.
const AFTER_ERROR: Duration = Duration::from_secs(5);
/// A bundle that nobody has sent profiles of for so long is not thought about any more.
const QUIET: Duration = Duration::from_secs(15 * 86_400);
/// Resolved incidents and advice are kept this long.
const KEPT: Duration = Duration::from_secs(90 * 86_400);
/// How often what was kept long enough is looked for.
const TIDY: Duration = Duration::from_secs(86_400);
/// Devices with a record in memory per bundle; those with an open drift stay.
const IN_MEMORY: usize = 10_000;

/// A device has sent a profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    pub bundle: BundleName,
    pub device: DeviceId,
    pub cohort: Cohort,
}

/// Where ingestion says whose profile is new. Cheap to clone; never waits.
#[derive(Clone, Debug)]
pub struct LookoutHandle {
    sender: mpsc::Sender<Heard>,
    missed: Arc<AtomicU64>,
}

impl LookoutHandle {
    pub fn tell(&self, heard: Heard) {
        if self.sender.try_send(heard).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
    /// News that found no place.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

pub struct LookoutParts {
    pub store: Arc<dyn FleetStore>,
    pub monitoring: Monitoring,
    pub sources: Sources,
}

pub struct Lookout {
    parts: LookoutParts,
    heard: mpsc::Receiver<Heard>,
    settings: DriftSettings,
    advice_settings: AdviceSettings,
    bundles: BTreeMap<BundleName, Bundle>,
    tidied: Timestamp,
}

/// What is known of one bundle.
#[derive(Default)]
struct Bundle {
    baseline: Option<Known>,
    cohorts: BTreeMap<String, (CohortRecord, Round)>,
    devices: BTreeMap<DeviceId, DeviceRecord>,
    incidents: Vec<IncidentRecord>,
    advice: Vec<AdviceRecord>,
    heard: Timestamp,
    thought: Timestamp,
}

impl Lookout {
    pub fn new(parts: LookoutParts) -> (Self, LookoutHandle) {
        let (sender, heard) = mpsc::channel(QUEUE);
        let (settings, advice_settings) = (DriftSettings::default(), AdviceSettings::default());
        let lookout = Self {
            parts,
            heard,
            settings,
            advice_settings,
            bundles: BTreeMap::new(),
            tidied: Timestamp::EPOCH,
        };
        (lookout, LookoutHandle { sender, missed: Arc::default() })
    }

    /// Runs until `stop` is cancelled or every handle is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        let run = async {
            while let Err(error) = self.remember(clock::now()).await {
                tracing::error!(%error, "lookout.remember");
                tokio::time::sleep(AFTER_ERROR).await;
            }
            let mut waiting = Vec::with_capacity(AT_A_TIME);
            loop {
                let patience = self.patience(clock::now());
                let room = AT_A_TIME - waiting.len().min(AT_A_TIME - 1);
                let news = self.heard.recv_many(&mut waiting, room);
                if tokio::time::timeout(patience, news).await == Ok(0) {
                    return;
                }
                let heard: BTreeSet<Heard> = waiting.drain(..).collect();
                if let Err(error) = self.pass(&heard, clock::now()).await {
                    // What was heard is looked at again with the device's next profile.
                    tracing::error!(%error, devices = heard.len(), "lookout.pass");
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        };
        tokio::select! {
            () = run => {}
            () = stop.cancelled() => {}
        }
    }

    /// How long to wait for news before somebody has to be thought about.
    fn patience(&self, now: Timestamp) -> Duration {
        let due = |bundle: &Bundle| {
            let every = if bundle.heard > bundle.thought { THINK } else { PASS };
            (bundle.thought + every).since(now)
        };
        self.bundles.values().map(due).min().unwrap_or(PASS).clamp(Duration::from_millis(100), PASS)
    }

    /// Reads what an earlier process knew.
    async fn remember(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let store = &*self.parts.store;
        self.bundles.clear();
        for (id, body) in records::raw_all(store, DRIFT_COHORT).await? {
            let Some((bundle, cohort)) = records::split(&id) else { continue };
            let Some(record) = records::parse_cohort(&body) else { continue };
            let known = self.bundles.entry(bundle).or_default();
            known.heard = known.heard.max(record.looked.unwrap_or_default()).min(now);
            known.cohorts.insert(cohort.to_owned(), (record, Round::default()));
        }
        for (id, record) in records::all::<DeviceRecord>(store, DRIFT_DEVICE).await? {
            let Some((bundle, device)) = records::split(&id) else { continue };
            let Ok(device) = device.parse() else { continue };
            if record.drifts.is_open() {
                self.bundles.entry(bundle).or_default().devices.insert(device, record);
            }
        }
        for record in records::all::<IncidentRecord>(store, INCIDENT).await?.into_values() {
            if record.resolved.is_none() {
                let bundle = record.incident.key.bundle.clone();
                self.bundles.entry(bundle).or_default().incidents.push(record);
            }
        }
        for record in records::all::<AdviceRecord>(store, ADVICE).await?.into_values() {
            let bundle = record.tracked.finding.scope.bundle().clone();
            self.bundles.entry(bundle).or_default().advice.push(record);
        }
        Ok(())
    }

    async fn pass(&mut self, heard: &BTreeSet<Heard>, now: Timestamp) -> Result<(), StoreError> {
        let mut by_bundle: BTreeMap<BundleName, Vec<&Heard>> = BTreeMap::new();
        for one in heard {
            by_bundle.entry(one.bundle.clone()).or_default().push(one);
        }
        // One bundle's trouble is not another's.
        let mut failed = Ok(());
        for (name, heard) in by_bundle {
            if let Err(error) = self.look(&name, &heard, now).await {
                tracing::error!(bundle = %name, %error, "lookout.look");
                failed = Err(error);
            }
        }
        let due: Vec<BundleName> = self
            .bundles
            .iter()
            .filter(|(_, bundle)| {
                let every = if bundle.heard > bundle.thought { THINK } else { PASS };
                now.since(bundle.thought) >= every
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            if let Err(error) = self.think(&name, now).await {
                tracing::error!(bundle = %name, %error, "lookout.think");
                failed = Err(error);
            }
        }
        self.bundles.retain(|_, bundle| now.since(bundle.heard) < QUIET || !bundle.incidents.is_empty());
        if now.since(self.tidied) >= TIDY {
            records::tidy(&*self.parts.store, KEPT, now).await?;
            self.tidied = now;
        }
        failed
    }

    /// Looks at the new profiles of some devices with one bundle.
    async fn look(&mut self, name: &BundleName, heard: &[&Heard], now: Timestamp) -> Result<(), StoreError> {
        let Self { parts, settings, bundles, .. } = self;
        let bundle = bundles.entry(name.clone()).or_default();
        bundle.heard = now;
        if bundle.baseline.is_none() {
            bundle.baseline = parts.sources.catalog.baseline(name).await;
        }
        // Nobody knows what it is compared by until the catalog answers.
        let Some(known) = bundle.baseline.clone() else { return Ok(()) };
        let baseline = known.baseline().map(|baseline| &**baseline);
        let mut transaction = Transaction::new();
        let mut touched = BTreeSet::new();
        for one in heard {
            let profile = match parts.monitoring.device_profile(&one.device, name).await {
                Ok(Some(profile)) => profile,
                Ok(None) => continue,
                Err(error) => {
                    tracing::error!(device = %one.device, bundle = %name, %error, "lookout.profile");
                    continue;
                }
            };
            let record = match bundle.devices.get(&one.device) {
                Some(record) => record.clone(),
                None => stored(&*parts.store, name, &one.device).await?,
            };
            let record = bundle.take(one, &profile, record, baseline, settings, now);
            transaction = put_device(transaction, name, &one.device, &record)?;
            if record.drifts.is_open() || bundle.devices.len() < IN_MEMORY {
                bundle.devices.insert(one.device.clone(), record);
            } else {
                bundle.devices.remove(&one.device);
            }
            touched.insert(one.cohort.as_str().to_owned());
        }
        for cohort in &touched {
            if let Some((record, _)) = bundle.cohorts.get(cohort) {
                transaction = put_cohort(transaction, name, cohort, record);
            }
        }
        let (incidents, changed) = bundle.group(name, settings, now);
        // An incident that grew may be one that people are told of as well: what is told is what is written, once.
        let mut written = BTreeMap::new();
        for record in &incidents {
            let known = bundle.incidents.iter().find(|known| known.id == record.id);
            let extent = |one: &IncidentRecord| (one.incident.devices, one.incident.channels_in_all);
            if known.is_some_and(|known| extent(known) != extent(record)) {
                written.insert(record.id.as_str(), record);
            }
        }
        for (change, record) in &changed {
            written.insert(record.id.as_str(), record);
            if let Some(event) = alerting::of_incident(*change, record, now) {
                transaction = crate::alerts::outbox(transaction, &event)?;
            }
        }
        for (id, record) in written {
            transaction = transaction.put_json(INCIDENT, id, Expect::Any, record)?;
        }
        commit(&*parts.store, transaction).await?;
        bundle.incidents = incidents;
        Ok(())
    }

    /// Thinks over what to advise about one bundle.
    async fn think(&mut self, name: &BundleName, now: Timestamp) -> Result<(), StoreError> {
        let Self { parts, bundles, advice_settings, .. } = self;
        let Some(bundle) = bundles.get_mut(name) else { return Ok(()) };
        let view = evidence::View {
            bundle: name,
            baseline: bundle.baseline.as_ref().and_then(Known::baseline).cloned(),
            is_watched: bundle.baseline.is_some(),
            cohorts: bundle.cohorts.iter().map(|(cohort, (record, _))| (cohort.as_str(), record)).collect(),
            incidents: bundle.incidents.iter().map(|record| record.incident.clone()).collect(),
        };
        let gathered =
            evidence::gather(&parts.sources, &parts.monitoring, &view, advice_settings.min_labels, now).await;
        let judged = advice::advise(&gathered, advice_settings, now);
        let tracked: Vec<_> = bundle.advice.iter().map(|record| record.tracked.clone()).collect();
        let (next, changes) = advice::reconcile(&tracked, &judged, now);
        let mut transaction = Transaction::new();
        let mut records = Vec::with_capacity(next.len());
        let before: BTreeMap<_, _> =
            bundle.advice.iter().map(|record| (record.tracked.finding.key(), record)).collect();
        for tracked in next {
            let known = before.get(&tracked.finding.key()).filter(|old| old.tracked.opened == tracked.opened);
            let record = match known {
                Some(old) => AdviceRecord { id: old.id.clone(), tracked },
                None => AdviceRecord::open(tracked),
            };
            if known.is_none_or(|old| **old != record) {
                transaction = transaction.put_json(ADVICE, record.id.as_str(), Expect::Any, &record)?;
            }
            records.push(record);
        }
        // What reconciliation forgets has been over for longer than its cooldown; people may still read of it.
        for change in &changes {
            if let Some(record) =
                records.iter().find(|one| one.tracked.finding.key() == change.finding().key())
                && let Some(event) = alerting::of_advice(change, record, now)
            {
                transaction = crate::alerts::outbox(transaction, &event)?;
            }
            if let FindingChange::Opened { finding } = change {
                tracing::info!(bundle = %name, rule = %finding.rule, scope = %finding.scope, "advice.open");
            }
        }
        commit(&*parts.store, transaction).await?;
        (bundle.advice, bundle.thought) = (records, now);
        Ok(())
    }
}

impl Bundle {
    /// Takes in what one device has sent since it was last looked at.
    fn take(
        &mut self,
        heard: &Heard,
        profile: &DeviceProfile,
        mut record: DeviceRecord,
        baseline: Option<&Baseline>,
        settings: &DriftSettings,
        now: Timestamp,
    ) -> DeviceRecord {
        let cohort = heard.cohort.as_str();
        if record.cohort != cohort {
            record =
                DeviceRecord { cohort: cohort.to_owned(), looked: record.looked, ..DeviceRecord::default() };
        }
        let (together, round) = self.cohorts.entry(cohort.to_owned()).or_default();
        let (before, usual) = (record.looked, &profile.usual.content);
        for recent in profile.recent.iter().filter(|recent| recent.start > before) {
            if round.is_complete(together.devices) {
                together.look(round, baseline, settings, now);
                *round = Round::default();
            }
            if round.devices() == 0 {
                together.began = now;
            }
            let is_many = together.devices >= LEAST_DEVICES;
            let cohort = Some(&together.now).filter(|now| is_many && now.rows > 0);
            let look = Look { content: &recent.content, usual, cohort, at: recent.end.min(now) };
            record.look(recent.start, &look, baseline, settings);
            let is_odd = record.drifts.is_odd();
            round.hear(&heard.device, is_odd);
            if is_odd { &mut together.odd } else { &mut together.round }.merge(&recent.content);
            let begin = recent.start.min(now);
            together.first = Some(together.first.map_or(begin, |first| first.min(begin)));
        }
        record
    }

    fn has_baseline(&self) -> bool {
        self.baseline.as_ref().is_some_and(|known| known.baseline().is_some())
    }

    /// What a subject is held against: the baseline or, without one, its own past.
    fn reference<'a>(&self, drifts: &'a Drifts) -> &'a DriftState {
        if self.has_baseline() { &drifts.baseline } else { &drifts.usual }
    }

    /// Whether what is known of a cohort is enough to hold anything against it.
    fn has_learned(&self, cohort: &str, now: Timestamp) -> bool {
        let first = self.cohorts.get(cohort).and_then(|(record, _)| record.first);
        self.has_baseline() || first.is_some_and(|first| now.since(first) >= LEARNING)
    }

    /// Which drift says that it is the device and not its cohort.
    fn beside<'a>(&self, record: &'a DeviceRecord) -> Option<&'a DriftState> {
        let Drifts { baseline, usual, cohort } = &record.drifts;
        let together = self.cohorts.get(&record.cohort).map(|(together, _)| together);
        match together.filter(|together| together.devices >= LEAST_DEVICES) {
            // A device with too few beside it is its own cohort: whatever it drifts from is its own doing.
            None => Some(if self.has_baseline() { baseline } else { usual }),
            // What all devices share shows on each of them first.
            Some(together) => cohort.since().is_some_and(|since| together.has_seen(since)).then_some(cohort),
        }
    }

    /// Open incidents after this look, and those to write with what became of them.
    fn group(
        &self,
        name: &BundleName,
        settings: &DriftSettings,
        now: Timestamp,
    ) -> (Vec<IncidentRecord>, Vec<(IncidentChange, IncidentRecord)>) {
        let learned = self.cohorts.iter().filter(|(cohort, _)| self.has_learned(cohort, now));
        let together = learned.map(|(cohort, (record, _))| SubjectDrift {
            cohort,
            device: None,
            baseline: Some(self.reference(&record.drifts)),
            usual: Some(&record.drifts.usual),
            cohort_now: None,
        });
        let open = self.devices.iter().filter(|(_, record)| record.drifts.is_open());
        let open = open.filter(|(_, record)| self.has_learned(&record.cohort, now));
        let each = open.map(|(device, record)| SubjectDrift {
            cohort: &record.cohort,
            device: Some(device),
            baseline: Some(self.reference(&record.drifts)),
            usual: Some(&record.drifts.usual),
            cohort_now: self.beside(record),
        });
        let subjects: Vec<_> = together.chain(each).collect();
        let previous: Vec<Incident> = self.incidents.iter().map(|record| record.incident.clone()).collect();
        let (open, changes) = drift::group(name, &previous, &subjects, settings, now);
        let mut changed = Vec::new();
        let mut records = Vec::with_capacity(open.len());
        let told = |incident: &Incident| changes.iter().find(|(_, other)| other.key == incident.key);
        for incident in open {
            let known = self.incidents.iter().find(|record| record.incident.key == incident.key);
            let record = match known {
                Some(known) => IncidentRecord { incident, ..known.clone() },
                None => IncidentRecord::open(incident, now),
            };
            if let Some((change, _)) = told(&record.incident) {
                changed.push((*change, record.clone()));
            }
            records.push(record);
        }
        for (change, incident) in changes.iter().filter(|(change, _)| *change == IncidentChange::Resolved) {
            let known = self.incidents.iter().find(|record| record.incident.key == incident.key);
            let Some(known) = known else { continue };
            let record = IncidentRecord { incident: incident.clone(), resolved: Some(now), ..known.clone() };
            changed.push((*change, record));
        }
        (records, changed)
    }
}

async fn stored(
    store: &dyn FleetStore,
    bundle: &BundleName,
    device: &DeviceId,
) -> Result<DeviceRecord, StoreError> {
    let found = store.get(DRIFT_DEVICE, &records::device_id(bundle, device)).await?;
    Ok(found.and_then(|found| serde_json::from_slice(&found.body).ok()).unwrap_or_default())
}

async fn commit(store: &dyn FleetStore, transaction: Transaction) -> Result<(), StoreError> {
    if transaction.operations.is_empty() {
        return Ok(());
    }
    debug_assert!(transaction.operations.len() <= MAX_OPERATIONS, "a pass is small");
    store.commit(transaction).await.map(drop)
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
