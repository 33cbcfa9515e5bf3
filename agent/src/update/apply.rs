//! Performs what the slot machines decide: the shell with files, network, child process and clock.
//!
//! One task owns all slots. Effects run in their order; `Persist` is awaited before the next one, and
//! if it fails (disk full) the event waits and is tried again. Fetching and testing are jobs beside
//! it, one per slot; a job that was replaced is aborted, and a late answer is known by its ticket.

pub use super::world::{Command, DeviceReport, Host, Probe, Reports, SettingsWatch, SlotHealth, World};
use super::{
    bundles::BundleStore,
    fetch::{Fetcher, Meter, Problem, chain},
    machine::{Bundle, Effect, Event, Now, SlotState, Step, Work, step},
    transfer::TransferError,
};
use crate::{
    failpoint,
    store::{
        durable::{DurableSlots, Loaded, SaveError},
        trust_state::{TrustStore, TrustStoreError},
    },
};
use bytes::Bytes;
use edgefleet_shared::{
    desired::{Desired, Settings},
    ids::{DeviceId, SlotName},
    message::TrustHead,
    reported::{Phase, Refusal, RefusalCode},
    time::Timestamp,
    trust::{RoleName, TrustError},
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

/// More slots than this on one device are refused.
const MAX_SLOTS: usize = 64;
/// A bundle that takes longer to load than this is not activated.
const ACTIVATION_LIMIT: Duration = Duration::from_secs(300);
/// How often health is asked, and what a full disk held back is tried again.
const TICK: Duration = Duration::from_secs(1);
const STALL_PAUSE: Duration = Duration::from_secs(10);
const TERMINAL_PAUSE: Duration = Duration::from_secs(60);
/// At most one progress report in this time per slot.
const PROGRESS_PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct UpdaterConfig {
    /// Holds `slots.a|b` and `bundles/`.
    pub data_dir: PathBuf,
    /// Home of the [`TrustStore`], made at enrolment.
    pub trust_dir: PathBuf,
    pub device: DeviceId,
    /// Hardware class, as bundles name it.
    pub hardware: String,
    /// Free bytes that a download must leave on the disk.
    pub reserve_bytes: u64,
    /// Fresh random bytes: the nonce, should the trust state be lost.
    pub random: [u8; 16],
    /// The local clock, right or wrong.
    pub clock: fn() -> Timestamp,
}

/// Why the updater cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("could not open `{}`", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Trust(#[from] TrustStoreError),
}

/// The durable document of all slots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Slots {
    slots: BTreeMap<SlotName, SlotState>,
    #[serde(default)]
    settings: Settings,
}

enum Internal {
    Slot(SlotName, Event),
    /// The release envelope came: to be judged by the trust in force now.
    Release {
        slot: SlotName,
        ticket: u64,
        raw: Vec<u8>,
    },
    Problem {
        slot: SlotName,
        ticket: u64,
        problem: Problem,
    },
    Trust {
        version: u64,
        result: Result<Bytes, TransferError>,
    },
}

/// Owns all slots of the device.
pub struct Updater {
    config: UpdaterConfig,
    world: World,
    trust: TrustStore,
    disk: Option<DurableSlots<Slots>>,
    doc: Slots,
    fetcher: Arc<Fetcher>,
    jobs: HashMap<SlotName, AbortHandle>,
    internal: (mpsc::UnboundedSender<Internal>, mpsc::UnboundedReceiver<Internal>),
    origin: Instant,
    settings: watch::Sender<Settings>,
    refused: Option<Refusal>,
    /// A desired state that waits for trust documents, and why it could not be taken without.
    pending: Option<(Bytes, TrustError)>,
    /// The newest trust version heard of.
    trust_head: u64,
    trust_job: Option<AbortHandle>,
    /// Held back by a disk that does not take the marker.
    stalled: VecDeque<(SlotName, Event)>,
    stalled_until: Instant,
    terminals_at: Instant,
    dirty: bool,
}

impl Updater {
    /// Reads what is on disk. Serves nothing yet: see [`start`](Self::start).
    ///
    /// # Errors
    /// [`OpenError`]; lost slot markers are no error, they are logged and slots start empty.
    pub fn open(config: UpdaterConfig, world: World) -> Result<Self, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { path, source }
        };
        let trust = TrustStore::open(&config.trust_dir, config.random)?;
        if let Some(reason) = trust.lost() {
            tracing::error!(reason, "trust state lost; asking the controller with a nonce");
        }
        let (disk, loaded) = DurableSlots::open(&config.data_dir, "slots").map_err(io(&config.data_dir))?;
        let doc: Slots = match loaded {
            Loaded::Value(doc) => doc,
            Loaded::Absent => Slots::default(),
            Loaded::Lost(reason) => {
                tracing::error!(reason, "slot markers lost; slots start empty");
                Slots::default()
            }
        };
        let root = config.data_dir.join("bundles");
        let store = BundleStore::open(&root).map_err(io(&root))?;
        world.blocks.set_block_bytes(doc.settings.block_bytes);
        let fetcher = Arc::new(Fetcher::new(
            store,
            world.blocks.clone(),
            world.https.clone(),
            config.hardware.clone(),
            config.reserve_bytes,
        ));
        let now = Instant::now();
        Ok(Self {
            settings: watch::Sender::new(doc.settings.clone()),
            trust_head: trust.trust().trust.version,
            config,
            world,
            trust,
            disk: Some(disk),
            doc,
            fetcher,
            jobs: HashMap::new(),
            internal: mpsc::unbounded_channel(),
            origin: now,
            refused: None,
            pending: None,
            trust_job: None,
            stalled: VecDeque::new(),
            stalled_until: now,
            terminals_at: now + TERMINAL_PAUSE,
            dirty: true,
        })
    }

    /// Settings in force, also right after a start without network.
    pub fn settings(&self) -> SettingsWatch {
        self.settings.subscribe()
    }

    /// Highest signed time seen; what the TLS clock is corrected by.
    pub fn floor(&self) -> Timestamp {
        self.trust.trust().floor
    }

    /// Serves what the markers say, before any network: call it before the link starts. A bundle
    /// whose three starts failed goes back to the one before here.
    pub async fn start(&mut self) {
        for slot in self.doc.slots.keys().cloned().collect::<Vec<_>>() {
            let wanted = self.doc.slots.get(&slot).and_then(|state| state.wanted.as_ref());
            if let Some(wanted) = wanted {
                self.world.host.thresholds(&slot, wanted.thresholds.clone());
            }
            self.dispatch(slot, Event::Started).await;
        }
        self.report();
    }

    /// Runs until [`Command::Stop`] or until `commands` closes.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => self.command(command).await,
                },
                Some(internal) = self.internal.1.recv() => self.internal(internal).await,
                _ = tick.tick() => self.tick().await,
            }
            if std::mem::take(&mut self.dirty) {
                self.report();
            }
        }
        for slot in self.doc.slots.keys().cloned().collect::<Vec<_>>() {
            self.dispatch(slot, Event::Stopping).await;
        }
        self.jobs.values().chain(&self.trust_job).for_each(AbortHandle::abort);
    }

    fn report(&self) {
        let at = (self.config.clock)();
        let trust = self.trust.trust();
        self.world.reports.reported(DeviceReport {
            generation: trust.generation,
            trust_version: trust.trust.version,
            floor: trust.floor,
            nonce: trust.nonce.clone(),
            slots: self.doc.slots.iter().map(|(name, slot)| (name.clone(), slot.report(at))).collect(),
            refused: self.refused.clone(),
        });
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Desired(raw) => self.desired(raw).await,
            Command::TrustHead(TrustHead { version, .. }) => {
                self.trust_head = self.trust_head.max(version);
                if version > self.trust.trust().trust.version {
                    self.fetch_trust();
                }
            }
            Command::Connected => {
                self.world.blocks.reconnected();
                self.dirty = true;
            }
            Command::Report | Command::Stop => self.dirty = true,
        }
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        if !self.stalled.is_empty() && now >= self.stalled_until {
            let held: Vec<_> = self.stalled.drain(..).collect();
            for (slot, event) in held {
                self.dispatch(slot, event).await;
            }
        }
        let on_probation: Vec<_> = self
            .doc
            .slots
            .iter()
            .filter(|(_, slot)| slot.provisional.is_some())
            .map(|(name, _)| name.clone())
            .collect();
        for slot in on_probation {
            if let SlotHealth::Bad(reason) = self.world.host.health(&slot) {
                self.dispatch(slot, Event::HealthBad { reason }).await;
            }
        }
        if now >= self.terminals_at {
            self.terminals_at = now + TERMINAL_PAUSE;
            let waiting: Vec<_> = self
                .doc
                .slots
                .iter()
                .flat_map(|(name, slot)| slot.unacked.iter().map(|r| (name.clone(), r.clone())))
                .collect();
            for (slot, report) in waiting {
                if let Some(event) = self.terminal(report).await {
                    self.dispatch(slot, event).await;
                }
            }
        }
    }

    // ---- documents ----

    async fn desired(&mut self, raw: Bytes) {
        let mut next = self.trust.trust().clone();
        match next.accept(&raw, &self.config.device, (self.config.clock)()) {
            Ok((desired, _)) if desired.slots.len() > MAX_SLOTS => {
                let found = desired.slots.len();
                self.refuse(
                    RefusalCode::DocumentMalformed,
                    format!("{found} slots, {MAX_SLOTS} are allowed"),
                );
            }
            Ok((desired, _)) => {
                // Whatever is Known here may not have reached the slots before a kill: always applied.
                if let Err(e) = self.trust.set(next) {
                    return self.refuse(storage_code(&e), chain(&e)); // comes again at the next connect
                }
                self.refused = None;
                self.pending = None;
                self.dirty = true;
                self.apply(desired).await;
            }
            // Perhaps signed by keys that a trust document we lack brings.
            Err(
                e @ (TrustError::TrustBehind { .. }
                | TrustError::Threshold { role: RoleName::Controller, .. }),
            ) => {
                self.pending = Some((raw, e));
                self.fetch_trust();
            }
            Err(e) => self.refuse(RefusalCode::from(&e), chain(&e)),
        }
    }

    async fn apply(&mut self, desired: Desired) {
        let Desired { generation, slots, settings, .. } = desired;
        if self.doc.settings != settings {
            self.world.blocks.set_block_bytes(settings.block_bytes);
            self.doc.settings = settings.clone();
            self.settings.send_replace(settings);
            if let Err(e) = self.persist().await {
                tracing::error!(reason = chain(&e), "settings could not be saved");
            }
        }
        let gone: Vec<_> = self.doc.slots.keys().filter(|name| !slots.contains_key(*name)).cloned().collect();
        for slot in gone {
            self.dispatch(slot.clone(), Event::Removed { generation }).await;
            self.doc.slots.retain(|name, state| *name != slot || !state.unacked.is_empty());
        }
        for (name, slot) in slots {
            self.world.host.thresholds(&name, slot.thresholds.clone());
            self.dispatch(name, Event::Desired { generation, slot }).await;
        }
    }

    fn refuse(&mut self, code: RefusalCode, message: String) {
        tracing::warn!(%code, message, "document refused");
        self.refused = Some(Refusal { subject: Some("desired state".into()), ..self.refusal(code, message) });
        self.dirty = true;
    }

    fn refusal(&self, code: RefusalCode, message: String) -> Refusal {
        let at = (self.config.clock)();
        Refusal { code, retry: code.retry(), message, subject: None, attempt: None, generation: None, at }
    }

    /// Fetches the next trust document, unless that is under way.
    fn fetch_trust(&mut self) {
        if self.trust_job.is_some() {
            return;
        }
        let Some(version) = self.trust.trust().trust.version.checked_add(1) else { return };
        let (blocks, tx) = (self.world.blocks.clone(), self.internal.0.clone());
        let job = tokio::spawn(async move {
            let result = blocks.trust(version).await;
            let _ = tx.send(Internal::Trust { version, result });
        });
        self.trust_job = Some(job.abort_handle());
    }

    async fn trust_came(&mut self, version: u64, result: Result<Bytes, TransferError>) {
        self.trust_job = None;
        let problem = match result.map(|raw| self.trust.advance(&raw)) {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(refused))) => Some((RefusalCode::from(&refused), chain(&refused))),
            Ok(Err(e)) => Some((RefusalCode::StorageFailed, chain(&e))),
            Err(e) => {
                let code = if self.pending.is_some() { None } else { Some(RefusalCode::TrustBehind) };
                Some((
                    code.unwrap_or(e.code()),
                    format!("trust document {version} did not come: {}", chain(&e)),
                ))
            }
        };
        self.dirty = true;
        match problem {
            None if self.trust_head > version => self.fetch_trust(),
            None => {
                if let Some((raw, _)) = self.pending.take() {
                    self.desired(raw).await;
                }
            }
            Some((code, said)) => match self.pending.take() {
                // The document's own fault comes first; that nothing newer helps is the footnote.
                Some((_, why)) => self.refuse(RefusalCode::from(&why), format!("{why} ({said})")),
                None => self.refuse(code, said),
            },
        }
    }

    // ---- slots ----

    async fn internal(&mut self, internal: Internal) {
        match internal {
            Internal::Slot(slot, event) => self.dispatch(slot, event).await,
            Internal::Trust { version, result } => self.trust_came(version, result).await,
            Internal::Problem { slot, ticket, problem } => {
                let event = self.failed(ticket, problem);
                self.dispatch(slot, event).await;
            }
            Internal::Release { slot, ticket, raw } => {
                let assigned = match self.doc.slots.get(&slot).map(|state| &state.work) {
                    Some(Work::Busy(target)) => target.assigned.clone(),
                    _ => return,
                };
                let event = match self.trust.trust().check_release(&raw, &assigned, &self.config.hardware) {
                    Ok(release) => Event::ReleaseChecked { ticket, release },
                    Err(e) => self.failed(ticket, Problem::new(RefusalCode::from(&e), chain(&e))),
                };
                self.dispatch(slot, event).await;
            }
        }
    }

    fn failed(&self, ticket: u64, problem: Problem) -> Event {
        let refusal = self.refusal(problem.code, problem.message);
        Event::StepFailed { ticket, refusal, jitter: rand::rng().random_range(0..1_000) }
    }

    fn now(&self) -> Now {
        let steady_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { wall: (self.config.clock)(), steady_ms }
    }

    /// One event, its effects, and the events that these answer with at once.
    async fn dispatch(&mut self, slot: SlotName, event: Event) {
        let mut queue = VecDeque::from([(slot, event)]);
        while let Some((slot, event)) = queue.pop_front() {
            if !self.stalled.is_empty() {
                self.stalled.push_back((slot, event));
                continue;
            }
            let before = self.doc.slots.get(&slot).cloned();
            let state = before.clone().unwrap_or_default();
            let (next, effects) = step(&state, &slot, event.clone(), self.now());
            self.doc.slots.insert(slot.clone(), next);
            for effect in effects {
                if effect == Effect::Persist {
                    match self.persist().await {
                        Ok(()) => self.persisted(&slot),
                        Err(e) if event == Event::Started => {
                            // Serving comes first: a full disk must not keep a device from starting.
                            tracing::error!(%slot, reason = chain(&e), "start marker could not be saved");
                        }
                        Err(e) => {
                            tracing::error!(%slot, reason = chain(&e), "slot marker could not be saved; waiting");
                            self.doc.slots.remove(&slot);
                            self.doc.slots.extend(before.map(|state| (slot.clone(), state)));
                            self.refuse(storage_code(&e), chain(&e));
                            self.stalled.push_back((slot, event));
                            self.stalled_until = Instant::now() + STALL_PAUSE;
                            break;
                        }
                    }
                } else {
                    let answer = self.perform(&slot, effect).await;
                    queue.extend(answer.map(|event| (slot.clone(), event)));
                }
            }
        }
    }

    async fn persist(&mut self) -> Result<(), SaveError> {
        let Some(mut disk) = self.disk.take() else { return Ok(()) };
        let doc = self.doc.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let result = disk.save(&doc);
            (disk, result)
        })
        .await;
        match saved {
            Ok((disk, result)) => {
                self.disk = Some(disk);
                result
            }
            Err(e) => {
                let path = self.config.data_dir.clone();
                let (disk, _) = DurableSlots::<Slots>::open(&path, "slots")
                    .map_err(|source| SaveError::Write { path: path.clone(), source })?;
                self.disk = Some(disk);
                Err(SaveError::Write { path, source: io::Error::other(e) })
            }
        }
    }

    /// Failpoint after each durable marker, by the phase it marks.
    fn persisted(&self, slot: &SlotName) {
        failpoint::hit(match self.doc.slots.get(slot).map(SlotState::phase) {
            None | Some(Phase::Idle) => "persisted.idle",
            Some(Phase::Fetching | Phase::Verified) => "persisted.fetching",
            Some(Phase::Testing) => "persisted.testing",
            Some(Phase::Switching) => "persisted.switching",
            Some(Phase::Probation) => "persisted.probation",
            Some(Phase::Committed | Phase::Deferred | Phase::Shadowing) => "persisted.committed",
            Some(_) => "persisted.failed",
        });
    }

    /// Performs one effect; an answer that is there at once is returned.
    async fn perform(&mut self, slot: &SlotName, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Persist => {}
            Effect::Report => self.dirty = true,
            Effect::StopJob => {
                if let Some(job) = self.jobs.remove(slot) {
                    job.abort();
                }
            }
            Effect::StartTimer { ticket, after } => {
                let (tx, name) = (self.internal.0.clone(), slot.clone());
                self.job(slot, async move {
                    tokio::time::sleep(after).await;
                    let _ = tx.send(Internal::Slot(name, Event::TimerFired { ticket }));
                });
            }
            Effect::FetchRelease { ticket, assigned } => {
                let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
                self.job(slot, async move {
                    let meter = meter(&tx, &name, ticket);
                    let result = fetcher.release(&assigned, &meter).await;
                    fetched(&tx, &name, ticket, &meter);
                    let _ = tx.send(match result {
                        Ok(raw) => Internal::Release { slot: name, ticket, raw },
                        Err(problem) => Internal::Problem { slot: name, ticket, problem },
                    });
                });
            }
            Effect::FetchManifest { ticket, bundle } => {
                let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
                self.job(slot, async move {
                    let meter = meter(&tx, &name, ticket);
                    let result = fetcher.manifest(&bundle, &meter).await;
                    fetched(&tx, &name, ticket, &meter);
                    let _ = tx.send(match result {
                        Ok(_) => Internal::Slot(name, Event::ManifestReady { ticket }),
                        Err(problem) => Internal::Problem { slot: name, ticket, problem },
                    });
                });
            }
            Effect::FetchBlobs { ticket, bundle } => {
                let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
                let settings = self.doc.settings.clone();
                self.job(slot, async move {
                    let meter = meter(&tx, &name, ticket);
                    let result = fetcher.blobs(&bundle, &settings, &meter).await;
                    fetched(&tx, &name, ticket, &meter);
                    let _ = tx.send(match result {
                        Ok(()) => Internal::Slot(name, Event::BlobsReady { ticket }),
                        Err(problem) => Internal::Problem { slot: name, ticket, problem },
                    });
                });
            }
            Effect::RunTest { ticket, bundle } => {
                let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
                let probe = self.world.probe.clone();
                self.job(slot, async move {
                    failpoint::hit("test.before");
                    let result = test(probe.as_ref(), &fetcher.store, &bundle).await;
                    failpoint::hit("test.after");
                    let _ = tx.send(match result {
                        Ok(()) => Internal::Slot(name, Event::Tested { ticket }),
                        Err(problem) => Internal::Problem { slot: name, ticket, problem },
                    });
                });
            }
            Effect::Switch { ticket, to } => {
                failpoint::hit("switch.before");
                let result = self.activate(slot, &to).await;
                failpoint::hit("switch.after");
                return Some(match result {
                    Ok(()) => Event::Switched { ticket },
                    Err(refusal) => {
                        Event::StepFailed { ticket, refusal, jitter: rand::rng().random_range(0..1_000) }
                    }
                });
            }
            Effect::Activate(bundle) => {
                failpoint::hit("activate.before");
                if let Err(refusal) = self.activate(slot, &bundle).await {
                    tracing::error!(%slot, bundle = %bundle.name, reason = refusal.message, "bundle does not run");
                    return Some(Event::ActivateFailed { refusal });
                }
            }
            Effect::Deactivate => self.world.host.deactivate(slot).await,
            Effect::Terminal(report) => return self.terminal(report).await,
            Effect::CollectGarbage => {
                let kept: Vec<_> = self.doc.slots.values().flat_map(SlotState::kept).collect();
                let store = self.fetcher.store.clone();
                match tokio::task::spawn_blocking(move || store.collect(kept.into_iter())).await {
                    Ok(Ok(0)) => {}
                    Ok(Ok(bytes)) => tracing::info!(bytes, "collected bundles nobody names"),
                    Ok(Err(e)) => tracing::warn!(reason = %e, "garbage collection failed"),
                    Err(e) => tracing::warn!(reason = %e, "garbage collection failed"),
                }
            }
        }
        None
    }

    async fn activate(&self, slot: &SlotName, bundle: &Bundle) -> Result<(), Refusal> {
        let manifest = self
            .fetcher
            .store
            .manifest(bundle.digest)
            .map_err(|e| self.refusal(RefusalCode::ActivationFailed, chain(&e)))?;
        let files = self.fetcher.store.files(bundle.digest);
        let (name, attempt) = (bundle.name.clone(), bundle.attempt.clone());
        let done = self.world.host.activate(slot, files, manifest, name, bundle.digest, attempt);
        match tokio::time::timeout(ACTIVATION_LIMIT, done).await {
            Ok(result) => result,
            Err(_) => {
                let said = format!("`{}` was not ready after {} s", bundle.name, ACTIVATION_LIMIT.as_secs());
                Err(self.refusal(RefusalCode::ActivationFailed, said))
            }
        }
    }

    async fn terminal(&self, report: edgefleet_shared::telemetry::batch::TerminalReport) -> Option<Event> {
        failpoint::hit("terminal.before");
        let (attempt, phase) = (report.target.attempt.clone(), report.phase);
        match self.world.reports.terminal(report).await {
            Ok(()) => {
                failpoint::hit("terminal.after");
                Some(Event::Acked { attempt, phase })
            }
            Err(e) => {
                tracing::warn!(reason = format!("{e:#}"), "terminal report waits for the outbox");
                None
            }
        }
    }

    fn job(&mut self, slot: &SlotName, work: impl Future<Output = ()> + Send + 'static) {
        let handle = tokio::spawn(work).abort_handle();
        if let Some(former) = self.jobs.insert(slot.clone(), handle) {
            former.abort();
        }
    }
}

impl Drop for Updater {
    fn drop(&mut self) {
        self.jobs.values().chain(&self.trust_job).for_each(AbortHandle::abort);
    }
}

fn storage_code(error: &SaveError) -> RefusalCode {
    if error.is_full() { RefusalCode::DiskFull } else { RefusalCode::StorageFailed }
}

async fn test(probe: &dyn Probe, store: &BundleStore, bundle: &Bundle) -> Result<(), Problem> {
    let manifest = store.manifest(bundle.digest)?;
    let verdict = probe.probe(store.files(bundle.digest), &manifest).await;
    if verdict.digest != bundle.digest {
        let said = format!("the probe judged {} instead of {}", verdict.digest, bundle.digest);
        return Err(Problem::new(RefusalCode::ProbeUnavailable, said));
    }
    match verdict.failure {
        Some(failure) => Err(Problem::new(failure.code, failure.message)),
        None if verdict.ok => Ok(()),
        None => Err(Problem::new(RefusalCode::ProbeUnavailable, "the probe said neither yes nor why not")),
    }
}

/// Reports a job's progress, not more often than [`PROGRESS_PAUSE`].
fn meter(tx: &mpsc::UnboundedSender<Internal>, slot: &SlotName, ticket: u64) -> Meter {
    let (tx, slot) = (tx.clone(), slot.clone());
    let last = parking_lot::Mutex::new(None::<Instant>);
    Meter {
        received: Default::default(),
        progress: Box::new(move |done_bytes, total_bytes| {
            let mut last = last.lock();
            let now = Instant::now();
            if done_bytes == total_bytes || last.is_none_or(|at| now - at >= PROGRESS_PAUSE) {
                *last = Some(now);
                let event = Event::Progress { ticket, done_bytes, total_bytes };
                let _ = tx.send(Internal::Slot(slot.clone(), event));
            }
        }),
    }
}

fn fetched(tx: &mpsc::UnboundedSender<Internal>, slot: &SlotName, ticket: u64, meter: &Meter) {
    let bytes = meter.received.load(Ordering::Relaxed);
    if bytes > 0 {
        let _ = tx.send(Internal::Slot(slot.clone(), Event::Fetched { ticket, bytes }));
    }
}
