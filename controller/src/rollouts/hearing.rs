//! What devices say, in the words of the core, and to which rollouts it matters.
//!
//! Telemetry is heard inside the transaction that stores it ([`Ears`]). Full reports come again every minute
//! and say the same most of the time: the [`Clerk`] takes in what is new, many in one transaction.

use super::{documents::Documents, driver::Looks, roster::Roster, working::Working};
use crate::{
    clock,
    desired::intent_id,
    rollout::{Deferral, DeviceSaid, RecordKey, WindowSaid},
    store::{Retry, StoreError, Transaction},
};
use edgefleet_shared::{
    ids::{AttemptId, DeviceId, RolloutId, SlotName},
    reported::{DeferReason, Phase, Reported, SlotReport},
    telemetry::{LabelCounts, Record, RecordBody, Role, TerminalReport, Window},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// Reports waiting for the clerk; more wait with their device's lane.
const QUEUE: usize = 1_024;
/// Reports of one transaction.
const MERGE: usize = 64;
const RETRY: Duration = Duration::from_secs(1);
/// Classes of one window that count in the comparison; the window itself is bounded already.
const MAX_CLASSES: usize = 128;

/// Telemetry as evidence. Remembers which rollout has a slot for the length of one transaction.
pub struct Ears<'a> {
    documents: &'a Documents,
    trials: BTreeMap<String, Option<RolloutId>>,
}

impl<'a> Ears<'a> {
    pub fn new(documents: &'a Documents) -> Self {
        Self { documents, trials: BTreeMap::new() }
    }

    /// The open rollout that `slot` of `device` is part of.
    async fn trial(&mut self, device: &DeviceId, slot: &SlotName) -> Result<Option<RolloutId>, StoreError> {
        let key = intent_id(device, slot);
        if let Some(known) = self.trials.get(&key) {
            return Ok(known.clone());
        }
        let found = self.documents.intents.find_json(&key).await?;
        let trial = found.and_then(|intent| intent.value.trial);
        self.trials.insert(key, trial.clone());
        Ok(trial)
    }

    /// Takes one record in. `believed`: whether the device's numbers count as evidence; how its attempts
    /// ended counts in any case.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hear(
        &mut self,
        working: &mut Working<'_>,
        device: &DeviceId,
        record: &Record,
        believed: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let key = RecordKey { boot: record.boot, seq: record.seq };
        match &record.body {
            RecordBody::Window(window) if believed => match window.role {
                Role::Primary => {
                    if let Some(trial) = self.trial(device, &window.slot).await? {
                        working.hear(&trial, device, &primary(window, key), now).await?;
                    }
                }
                Role::Shadow => {
                    if let Some(said) = shadow(window, key) {
                        working.hear(&window.attempt.rollout, device, &said, now).await?;
                    }
                }
            },
            RecordBody::Labels(labels) if believed => {
                if let Some((rollout, said)) = compared(labels, key) {
                    working.hear(rollout, device, &said, now).await?;
                }
            }
            RecordBody::Terminal(report) => {
                let rollout = &report.target.attempt.rollout;
                let said = ended(report);
                working.hear(rollout, device, &said, now).await?;
                // The way back to an older bundle ends under the older attempt.
                if let Some(trial) = self.trial(device, &report.slot).await?.filter(|t| t != rollout) {
                    working.hear(&trial, device, &said, now).await?;
                }
            }
            RecordBody::Window(_)
            | RecordBody::Profile(_)
            | RecordBody::Labels(_)
            | RecordBody::Dropped { .. }
            | RecordBody::Unknown => {}
        }
        Ok(())
    }
}

fn primary(window: &Window, key: RecordKey) -> DeviceSaid {
    let exceed = window.exceed.iter().fold(None, |sum: Option<(u64, u64)>, one| {
        let (n, x) = sum.unwrap_or_default();
        Some((n.saturating_add(one.n), x.saturating_add(one.x)))
    });
    DeviceSaid::Window(WindowSaid {
        key,
        attempt: window.attempt.clone(),
        start: window.wall_start,
        requests: window.counts.requests,
        bad: window.first_bad_ms.is_some(),
        p95_ms: window.latency.total.quantile_us(0.95).map(|us| us / 1e3),
        exceed,
        classes: window.classes.iter().take(MAX_CLASSES).map(|(class, n)| (class.clone(), *n)).collect(),
    })
}

fn shadow(window: &Window, key: RecordKey) -> Option<DeviceSaid> {
    let agreement = window.agreement.as_ref()?;
    let classes = agreement.classes.iter().take(MAX_CLASSES);
    Some(DeviceSaid::Shadow {
        key,
        attempt: window.attempt.clone(),
        // Where the candidate failed and the active bundle answered, they did not agree.
        n: agreement.n.saturating_add(agreement.errors),
        disagree: agreement.disagree.saturating_add(agreement.errors),
        classes: classes.map(|(class, one)| (class.clone(), (one.n, one.disagree))).collect(),
    })
}

fn compared(labels: &LabelCounts, key: RecordKey) -> Option<(&RolloutId, DeviceSaid)> {
    let versus = labels.versus.as_ref()?;
    let said = DeviceSaid::Labels {
        key,
        attempt: versus.attempt.clone(),
        source: labels.source.clone(),
        both_right: versus.both_right,
        both_wrong: versus.both_wrong,
        wins: versus.wins,
        losses: versus.losses,
    };
    Some((&versus.attempt.rollout, said))
}

fn ended(report: &TerminalReport) -> DeviceSaid {
    DeviceSaid::Ended {
        generation: report.generation,
        phase: report.phase,
        attempt: report.target.attempt.clone(),
        refusal: report.refusal.clone(),
        took_ms: report.took_ms,
        fetched_bytes: report.fetched_bytes,
    }
}

/// Which rollouts a slot's report is about, and what it says to each.
fn of_report(slot: &SlotReport, generation: u64, trial: Option<&RolloutId>) -> Vec<(RolloutId, DeviceSaid)> {
    let active = slot.active.as_ref().map(|installed| installed.attempt.clone());
    let target = slot.target.as_ref().map(|installed| installed.attempt.clone());
    let said = |phase: Phase, target: Option<AttemptId>, refusal| DeviceSaid::Report {
        generation,
        phase,
        target,
        active: active.clone(),
        deferral: slot.deferred.as_ref().map(|deferred| match deferred.reason {
            DeferReason::Window => Deferral::Window,
            DeferReason::Busy => Deferral::Busy,
            DeferReason::ZoneUnknown | DeferReason::Unknown => Deferral::Unknown,
        }),
        refusal,
    };
    let mut all = Vec::new();
    if let Some(candidate) = &slot.candidate {
        let attempt = candidate.installed.attempt.clone();
        let rollout = attempt.rollout.clone();
        all.push((rollout, said(candidate.phase, Some(attempt), candidate.error.clone())));
    }
    let shadowed = all.first().map(|(rollout, _)| rollout.clone());
    let about = [target.as_ref().map(|id| &id.rollout), active.as_ref().map(|id| &id.rollout), trial];
    let rollouts: BTreeSet<_> = about.into_iter().flatten().cloned().collect();
    for rollout in rollouts {
        // To the rollout that shadows here, the candidate's phase is the answer.
        if shadowed.as_ref() != Some(&rollout) {
            all.push((rollout, said(slot.phase, target.clone(), slot.last_error.clone())));
        }
    }
    all
}

/// Where reports are put. Cheap to clone.
#[derive(Clone)]
pub struct Clerk(mpsc::Sender<Reported>);

/// The task behind [`Clerk`].
pub(super) struct ClerkTask {
    documents: Documents,
    roster: Arc<dyn Roster>,
    reports: mpsc::Receiver<Reported>,
    looks: Looks,
    /// What each device said last, as far as rollouts care; lost with the process, so that the first report
    /// after a start is always heard.
    last: HashMap<DeviceId, u64>,
    hasher: RandomState,
}

impl Clerk {
    /// Waits while too many reports wait. Dropped after shutdown: the device says it again.
    pub async fn take(&self, report: Reported) {
        let _ = self.0.send(report).await;
    }
}

impl ClerkTask {
    pub(super) fn new(documents: Documents, roster: Arc<dyn Roster>, looks: Looks) -> (Self, Clerk) {
        let (sender, reports) = mpsc::channel(QUEUE);
        let (last, hasher) = (HashMap::new(), RandomState::new());
        (Self { documents, roster, reports, looks, last, hasher }, Clerk(sender))
    }

    /// Runs until every [`Clerk`] is gone.
    pub(super) async fn run(mut self) {
        let mut waiting = Vec::with_capacity(MERGE);
        while self.reports.recv_many(&mut waiting, MERGE).await > 0 {
            let mut news = Vec::new();
            for report in waiting.drain(..) {
                let mark = self.mark(&report);
                if self.last.get(&report.device) != Some(&mark) {
                    news.push((mark, report));
                }
            }
            if news.is_empty() {
                continue;
            }
            while let Err(error) = self.hear(&news, clock::now()).await {
                if error.retry() == Retry::Never {
                    tracing::error!(%error, reports = news.len(), "report.hear");
                    break;
                }
                if !matches!(error, StoreError::StaleRevision { .. }) {
                    tracing::error!(%error, "report.hear");
                    tokio::time::sleep(RETRY).await;
                }
            }
            for (mark, report) in news {
                self.last.insert(report.device, mark);
            }
        }
    }

    /// A hash of what rollouts care about.
    fn mark(&self, report: &Reported) -> u64 {
        let slots: Vec<_> = report
            .slots
            .iter()
            .map(|(name, slot)| {
                let candidate = slot.candidate.as_ref().map(|one| (one.phase, &one.installed.attempt));
                let active = slot.active.as_ref().map(|one| &one.attempt);
                let target = slot.target.as_ref().map(|one| &one.attempt);
                (name, slot.phase, active, target, candidate, slot.deferred.map(|one| one.reason))
            })
            .collect();
        self.hasher.hash_one(format!("{:?} {} {slots:?}", report.boot, report.generation))
    }

    async fn hear(&self, news: &[(u64, Reported)], now: Timestamp) -> Result<(), StoreError> {
        let mut working = Working::new(&self.documents, &*self.roster);
        for (_, report) in news {
            let intents = self.documents.intents.list_all(&format!("{}/", report.device)).await?;
            let trials: BTreeMap<_, _> =
                intents.into_iter().map(|(_, intent)| (intent.value.slot, intent.value.trial)).collect();
            for (name, slot) in &report.slots {
                let trial = trials.get(name).and_then(Option::as_ref);
                for (rollout, said) in of_report(slot, report.generation, trial) {
                    working.hear(&rollout, &report.device, &said, now).await?;
                }
            }
            // A slot that is wanted and not there: the device has put it away, or never had it.
            for (name, trial) in &trials {
                let Some(trial) = trial.as_ref().filter(|_| !report.slots.contains_key(name)) else {
                    continue;
                };
                let said = DeviceSaid::Report {
                    generation: report.generation,
                    phase: Phase::Idle,
                    target: None,
                    active: None,
                    deferral: None,
                    refusal: None,
                };
                working.hear(trial, &report.device, &said, now).await?;
            }
        }
        if !working.is_changed() {
            return Ok(());
        }
        self.documents.store.commit(working.stage(Transaction::new())?).await?;
        self.looks.after(working.aftermath());
        Ok(())
    }
}
