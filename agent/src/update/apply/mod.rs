//! Performs what the slot machines decide: the shell with files, network, child process and clock.
//!
//! One task owns all slots. Effects run in their order; `Persist` is awaited before the next one, and
//! if it fails (disk full) the event waits and is tried again. Fetching and testing are jobs beside
//! it, one per slot, tests one at a time; a job that was replaced is aborted, and a late answer is known
//! by its ticket.

pub use super::world::{
    Command, DeviceReport, Host, Loadable, Probe, Reports, SettingsWatch, ShadowStatus, SlotHealth, World,
};
mod documents;
mod installed;
mod jobs;
mod perform;
#[cfg(test)]
mod tests;
mod zones;

pub use installed::{InstalledError, InstalledPack, installed_pack};

use zones::Zones;

use super::{
    bundles::BundleStore,
    fetch::{Fetcher, Problem, chain},
    machine::{CANDIDATE_LANE, Candidate, Effect, Event, Gate, Now, SlotState, step},
    transfer::TransferError,
};
use crate::store::{
    durable::{DurableSlots, Loaded, SaveError},
    trust_state::{TrustStore, TrustStoreError},
};
use bytes::Bytes;
use edgefleet_shared::{
    desired::Settings,
    digest::BlobDigest,
    ids::{DeviceId, SlotName},
    message::TrustHead,
    reported::{Refusal, RefusalCode},
    time::{Timestamp, believed},
    trust::TrustError,
};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

/// More slots than this on one device are refused.
const MAX_SLOTS: usize = 64;
/// Manifests and blobs, under the data folder.
const BUNDLES_FOLDER: &str = "bundles";
/// A bundle that takes longer to load than this is not activated.
const ACTIVATION_LIMIT: Duration = Duration::from_secs(300);
/// How often health is asked, and what a full disk held back is tried again.
const TICK: Duration = Duration::from_secs(1);
const STALL_PAUSE: Duration = Duration::from_secs(10);
const TERMINAL_PAUSE: Duration = Duration::from_secs(60);
/// Longest time between two reports of what a shadow was given.
const MAX_HEARTBEAT_SECS: u64 = 86_400;
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

/// The slot itself, or its candidate beside: each has one job at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Slot,
    Candidate,
}
impl Lane {
    fn of(ticket: u64) -> Self {
        if ticket & CANDIDATE_LANE == 0 { Self::Slot } else { Self::Candidate }
    }
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
    /// Away while it saves; gone for good if that was cut off, and then opened anew.
    disk: Option<DurableSlots<Slots>>,
    doc: Slots,
    fetcher: Arc<Fetcher>,
    jobs: HashMap<(SlotName, Lane), AbortHandle>,
    zones: Zones,
    /// Shadows as they were last reported.
    shadows: BTreeMap<SlotName, (u64, u64)>,
    shadows_at: Instant,
    /// One test at a time: two would measure each other's load and share the memory meant for one.
    tests: Arc<Semaphore>,
    internal: (mpsc::UnboundedSender<Internal>, mpsc::UnboundedReceiver<Internal>),
    origin: Instant,
    settings: watch::Sender<Settings>,
    refused: Option<Refusal>,
    /// The desired state that `refused` is about, if it is about one.
    refused_document: Option<BlobDigest>,
    /// That the slot markers were lost, until every slot has come to an end again.
    lost: Option<Refusal>,
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
    /// [`OpenError`]; lost slot markers are no error: slots start empty, and the reports say so.
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
        let mut lost = None;
        let doc: Slots = match loaded {
            Loaded::Value(doc) => doc,
            Loaded::Absent => Slots::default(),
            Loaded::Lost(reason) => {
                tracing::error!(reason, "slot markers lost; slots start empty");
                let message = format!("the slot markers were lost, slots started empty: {reason}");
                lost = Some(message);
                Slots::default()
            }
        };
        let root = config.data_dir.join(BUNDLES_FOLDER);
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
        let lost = lost.map(|message| refusal(RefusalCode::StateLost, message, (config.clock)()));
        let lost = lost.map(|lost| Refusal { subject: Some("slot markers".into()), ..lost });
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
            zones: Zones::default(),
            shadows: BTreeMap::new(),
            shadows_at: now,
            tests: Arc::new(Semaphore::new(1)),
            internal: mpsc::unbounded_channel(),
            origin: now,
            refused: None,
            refused_document: None,
            lost,
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
        // Engines first: what runs on one is loaded with it.
        let (engines, models): (Vec<SlotName>, _) =
            self.doc.slots.keys().cloned().partition(SlotName::is_engine);
        for slot in engines.into_iter().chain::<Vec<_>>(models) {
            let wanted = self.doc.slots.get(&slot).and_then(|state| state.wanted.as_ref());
            if let Some(wanted) = wanted {
                self.world.host.thresholds(&slot, wanted.thresholds.clone());
                self.world.host.slower(&slot, wanted.slower_percent);
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

    fn report(&mut self) {
        let whole = !self.doc.slots.is_empty() && self.doc.slots.values().all(|s| s.phase().is_terminal());
        if whole {
            self.lost = None;
        }
        let trust = self.trust.trust();
        let slots = self.doc.slots.iter().map(|(name, slot)| {
            let mut report = slot.report();
            if let Some(candidate) = &mut report.candidate
                && let Some(shadow) = self.world.host.shadowed(name)
            {
                (candidate.mirrored, candidate.shed) = (shadow.mirrored, shadow.shed);
            }
            (name.clone(), report)
        });
        self.world.reports.reported(DeviceReport {
            generation: trust.generation,
            trust_version: trust.trust.version,
            floor: trust.floor,
            nonce: trust.nonce.clone(),
            slots: slots.collect(),
            refused: self.refused.clone().or_else(|| self.lost.clone()),
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
            if self.stalled.is_empty() {
                self.refused = None; // it said that the disk was full
                self.dirty = true;
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
            if let SlotHealth::Bad { code, reason } = self.world.host.health(&slot) {
                self.dispatch(slot, Event::HealthBad { code, reason }).await;
            }
        }
        if self.stalled.is_empty() {
            // Otherwise one look a second would wait behind the full disk.
            self.look_at_shadows(now).await;
            self.look_at_windows().await;
        }
        self.tell_terminals(now).await;
    }

    /// Every second, so that no jump of the clock matters for longer.
    async fn look_at_windows(&mut self) {
        let windowed = self.doc.slots.iter().filter(|(_, slot)| slot.minds_window());
        for slot in windowed.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.dispatch(slot, Event::WindowLooked).await;
        }
    }

    async fn tell_terminals(&mut self, now: Instant) {
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

    /// Ends shadows that misbehave, and has their counts reported once per heartbeat.
    async fn look_at_shadows(&mut self, now: Instant) {
        let mut counts = BTreeMap::new();
        for slot in self.doc.slots.keys().cloned().collect::<Vec<_>>() {
            let Some(shadow) = self.world.host.shadowed(&slot) else { continue };
            // Whatever came too late to be stopped: no shadow runs that is not wanted.
            let candidate = self.doc.slots.get(&slot).and_then(|state| state.candidate.as_ref());
            if !candidate.is_some_and(Candidate::may_run) {
                self.world.host.stop_shadow(&slot).await;
                continue;
            }
            counts.insert(slot.clone(), (shadow.mirrored, shadow.shed.values().sum()));
            if let SlotHealth::Bad { code, reason } = shadow.health {
                self.dispatch(slot, Event::ShadowBad { code, reason }).await;
            }
        }
        let heartbeat = Duration::from_secs(self.doc.settings.heartbeat_secs.clamp(1, MAX_HEARTBEAT_SECS));
        if counts != self.shadows && now.duration_since(self.shadows_at) >= heartbeat {
            self.shadows_at = now;
            self.shadows = counts;
            self.dirty = true;
        }
    }

    async fn internal(&mut self, internal: Internal) {
        match internal {
            Internal::Slot(slot, event) => {
                self.dispatch(slot.clone(), event).await;
                self.forget_if_over(&slot);
            }
            Internal::Trust { version, result } => self.trust_came(version, result).await,
            Internal::Problem { slot, ticket, problem } => {
                let event = self.failed(ticket, problem);
                self.dispatch(slot, event).await;
            }
            Internal::Release { slot, ticket, raw } => {
                let assigned = self.doc.slots.get(&slot).and_then(|state| state.assigned(ticket).cloned());
                let Some(assigned) = assigned else { return };
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

    /// The moment as `event` finds it in `slot`: by the window it brings, or the one in force.
    fn now(&mut self, slot: &SlotState, event: &Event) -> Now {
        let steady_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let wall = (self.config.clock)();
        let wanted = match event {
            Event::Desired { slot, .. } => Some(&**slot),
            _ => slot.wanted.as_ref(),
        };
        let window = wanted.and_then(|wanted| wanted.window.as_ref());
        let rules = window.and_then(|window| self.zones.rules(&window.zone));
        let at = believed(wall, self.trust.trust().floor);
        Now { wall, steady_ms, gate: Gate::of(window, rules, at) }
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
            if before.is_none() && !matches!(event, Event::Desired { .. }) {
                continue; // the late word of a job: it must not bring a removed slot back
            }
            let state = before.clone().unwrap_or_default();
            let now = self.now(&state, &event);
            let (next, effects) = step(&state, &slot, event.clone(), now);
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
        let (held, doc, dir) = (self.disk.take(), self.doc.clone(), self.config.data_dir.clone());
        let path = dir.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let mut disk = match held {
                Some(disk) => disk,
                None => DurableSlots::open(&dir, "slots")?.0,
            };
            let result = disk.save(&doc);
            Ok((disk, result))
        })
        .await;
        match saved.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok((disk, result)) => {
                self.disk = Some(disk);
                result
            }
            Err(source) => Err(SaveError::Write { path, source }),
        }
    }
}

impl Drop for Updater {
    fn drop(&mut self) {
        self.jobs.values().chain(&self.trust_job).for_each(AbortHandle::abort);
    }
}

fn refusal(code: RefusalCode, message: String, at: Timestamp) -> Refusal {
    Refusal { code, retry: code.retry(), message, subject: None, attempt: None, generation: None, at }
}

fn storage_code(error: &SaveError) -> RefusalCode {
    if error.is_full() { RefusalCode::DiskFull } else { RefusalCode::StorageFailed }
}
