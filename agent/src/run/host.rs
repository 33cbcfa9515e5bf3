//! Puts tested bundles into service and says how they do; runs candidates in their shadow.

use super::{
    baseline,
    health::{self, Before},
    packs::{self, Packs},
    running::RunningEngines,
};
use crate::{
    engine::{
        LoadError,
        choosing::{Chosen, EngineChooser},
    },
    monitor::Monitor,
    serving::{
        ServedBundle, SlotTable,
        pressure::{Guard, MIN_ANSWERS, sense},
        shadow::{self, Shadow},
    },
    update::{BundleFiles, Host, Loadable, ShadowStatus, SlotHealth},
};
use async_trait::async_trait;
use edgefleet_shared::{
    bundle::Manifest,
    desired::{ShadowSettings, Threshold},
    digest::BundleDigest,
    ids::SlotName,
    reported::{Refusal, RefusalCode},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How often a shadow is asked to step back.
const GUARD_PAUSE: Duration = Duration::from_secs(1);
/// Answers of the active bundle before its latency without a shadow counts as known.
const MIN_BASELINE: u64 = 50;

/// The updater's view of serving.
pub(super) struct ServingHost {
    slots: SlotTable,
    monitor: Arc<Monitor>,
    chooser: Arc<EngineChooser>,
    engines: Arc<RunningEngines>,
    packs: Arc<Packs>,
    /// Held while a slot's model changes: by an activation, or because another engine is better.
    pub(super) switching: tokio::sync::Mutex<()>,
    /// What was known of the device when a slot's bundle was last activated.
    before: Mutex<BTreeMap<SlotName, Before>>,
    /// How slow a bundle may be beside the one before it, percent; nothing where only its budget counts.
    slower: Mutex<BTreeMap<SlotName, u32>>,
    /// Models loaded since the start: memory is only told apart while nothing else was.
    loads: AtomicU64,
}

fn refusal(manifest: &Manifest, code: RefusalCode, message: String) -> Refusal {
    Refusal {
        code,
        retry: code.retry(),
        message,
        subject: Some(manifest.name().to_string()),
        attempt: None,
        generation: None,
        at: crate::clock::now(),
    }
}

/// What serving works with: the model and the steps around it are one, and its interface is what clients see.
fn seen_by_clients(manifest: Manifest) -> Manifest {
    Manifest { interface: manifest.external(), ..manifest }
}

impl ServingHost {
    pub(super) fn new(slots: SlotTable, monitor: Arc<Monitor>, chooser: Arc<EngineChooser>) -> Self {
        let engines: Arc<RunningEngines> = Arc::default();
        let packs = Arc::new(Packs::new(chooser.clone(), engines.clone()));
        Self {
            slots,
            monitor,
            chooser,
            engines,
            packs,
            switching: tokio::sync::Mutex::default(),
            before: Mutex::default(),
            slower: Mutex::default(),
            loads: AtomicU64::new(0),
        }
    }

    pub(super) fn slots(&self) -> &SlotTable {
        &self.slots
    }
    pub(super) fn chooser(&self) -> &Arc<EngineChooser> {
        &self.chooser
    }
    pub(super) fn packs(&self) -> &Arc<Packs> {
        &self.packs
    }
    /// How each slot's bundle is run.
    pub(super) fn engines(&self) -> &Arc<RunningEngines> {
        &self.engines
    }

    /// The work of loading, for whichever thread is to do it.
    fn loading(
        &self,
        files: &BundleFiles,
        manifest: &Manifest,
        digest: BundleDigest,
    ) -> impl FnOnce() -> Result<Chosen, LoadError> + Send + use<> {
        let (chooser, manifest) = (self.chooser.clone(), manifest.clone());
        let files = packs::files(files);
        self.loads.fetch_add(1, Ordering::Relaxed);
        move || chooser.load(digest, &manifest, &files)
    }

    pub(super) async fn load(
        &self,
        files: &BundleFiles,
        manifest: &Manifest,
        digest: BundleDigest,
    ) -> Result<Chosen, Refusal> {
        // The confined probe ran this very file; a panic would still cost only this activation.
        match tokio::task::spawn_blocking(self.loading(files, manifest, digest)).await {
            Ok(Ok(model)) => Ok(model),
            Ok(Err(e)) => Err(refusal(manifest, e.code, e.message)),
            Err(e) => {
                let said = format!("loading `{}`: {e}", manifest.name());
                Err(refusal(manifest, RefusalCode::ActivationFailed, said))
            }
        }
    }
}

#[async_trait]
impl Host for ServingHost {
    async fn activate(&self, slot: &SlotName, bundle: Loadable) -> Result<(), Refusal> {
        let Loadable { files, manifest, name, digest, attempt } = bundle;
        let _switching = self.switching.lock().await;
        if slot.is_engine() {
            let done = self.packs.activate(&packs::files(&files), &manifest);
            return done.map_err(|(code, said)| refusal(&manifest, code, said));
        }
        let baseline = baseline::read(&files, &manifest).await;
        let active = self.slots.lease(slot.as_str());
        let (model, engine) = match active.as_ref().map(|active| &active.served) {
            Some(served) if served.digest == digest && served.attempt == attempt => return Ok(()),
            Some(served) if served.digest == digest => (served.model.clone(), served.engine),
            _ => {
                let anonymous = health::anonymous_bytes();
                let Chosen { model, setup, library } = self.load(&files, &manifest, digest).await?;
                self.engines.set(slot, digest, (setup, library), (files, manifest.clone()));
                let former_p95_ms = active.and_then(|active| health::p95_ms(&active.stats.totals()));
                let loads = self.loads.load(Ordering::Relaxed);
                self.before.lock().insert(slot.clone(), Before { digest, anonymous, loads, former_p95_ms });
                (model, setup.engine)
            }
        };
        tracing::info!(%slot, bundle = %name, %attempt, "serving");
        let manifest = seen_by_clients(manifest);
        let slot_name = slot.clone();
        let served = ServedBundle {
            slot: slot_name,
            bundle: name,
            digest,
            attempt,
            manifest,
            model,
            engine,
            baseline,
        };
        self.slots.activate(Arc::new(served));
        Ok(())
    }

    async fn deactivate(&self, slot: &SlotName) {
        let _switching = self.switching.lock().await;
        if slot.is_engine() {
            self.packs.deactivate();
            return;
        }
        self.slots.deactivate(slot);
        self.engines.remove(slot);
        self.before.lock().remove(slot);
    }

    fn needed(&self, slot: &SlotName) -> Option<String> {
        self.packs.needed().filter(|_| slot.is_engine())
    }

    fn health(&self, slot: &SlotName) -> SlotHealth {
        if slot.is_engine() {
            return self.packs.health(&self.slots);
        }
        let Some(active) = self.slots.lease(slot.as_str()) else { return SlotHealth::Good };
        let before = self.before.lock().get(slot).filter(|b| b.digest == active.served.digest).copied();
        let alone = before.is_some_and(|before| before.loads == self.loads.load(Ordering::Relaxed));
        let anonymous = if alone { health::anonymous_bytes() } else { None };
        let slower = self.slower.lock().get(slot).copied();
        health::judge(&active.stats.totals(), &active.served.manifest.limits, slower, before, anonymous)
    }

    async fn shadow(
        &self,
        slot: &SlotName,
        bundle: Loadable,
        settings: ShadowSettings,
    ) -> Result<(), Refusal> {
        let Loadable { files, manifest, name, digest, attempt } = bundle;
        if slot.is_engine() {
            let said = format!("`{name}` is an engine pack, which runs beside nothing");
            return Err(refusal(&manifest, RefusalCode::NoArtifact, said));
        }
        let gone = |manifest: &Manifest| {
            let said = format!("`{}` has no active bundle to run beside", manifest.name());
            refusal(manifest, RefusalCode::ActivationFailed, said)
        };
        let active = self.slots.lease(slot.as_str()).ok_or_else(|| gone(&manifest))?;
        let running = active.shadow().filter(|s| s.served.digest == digest && s.served.attempt == attempt);
        if let Some(running) = running {
            running.set(settings);
            return Ok(());
        }
        let baseline = baseline::read(&files, &manifest).await;
        let load = self.loading(&files, &manifest, digest);
        let thread = shadow::spawn(load);
        let failed = |said: String| refusal(&manifest, RefusalCode::ActivationFailed, said);
        let (loaded, thread) = thread.map_err(|e| failed(format!("no thread for a shadow: {e}")))?;
        let (model, engine) = match loaded.await {
            Ok(Ok(Chosen { model, setup, .. })) => (model, setup.engine),
            Ok(Err(e)) => return Err(refusal(&manifest, e.code, e.message)),
            Err(_) => return Err(failed(format!("the engine panicked while it loaded `{name}`"))),
        };
        tracing::info!(%slot, bundle = %name, %attempt, "running in the shadow");
        let manifest = seen_by_clients(manifest);
        let slot_name = slot.clone();
        let served = ServedBundle {
            slot: slot_name,
            bundle: name,
            digest,
            attempt,
            manifest,
            model,
            engine,
            baseline,
        };
        let shadow = Shadow::beside(&self.monitor, &active, Arc::new(served), settings);
        if !self.slots.set_shadow(slot, Some((shadow.clone(), active.served.digest))) {
            self.monitor.retire_shadow(&shadow.recorder);
            return Err(gone(&shadow.served.manifest));
        }
        let totals = active.stats.totals();
        let baseline = (totals.total_us.count() >= MIN_BASELINE).then(|| totals.total_us.quantile_us(0.95));
        let budget = active.served.manifest.limits.p95_latency_ms;
        let guard = Guard::new(budget, baseline.flatten().map(|us| us / 1_000.0));
        tokio::spawn(watch(Arc::downgrade(&shadow), self.slots.clone(), slot.clone(), guard));
        thread.send(shadow).ok(); // it waits for nothing else
        Ok(())
    }

    async fn stop_shadow(&self, slot: &SlotName) {
        self.slots.set_shadow(slot, None);
    }

    fn shadowed(&self, slot: &SlotName) -> Option<ShadowStatus> {
        let shadow = self.slots.lease(slot.as_str())?.shadow()?;
        let health = health::judge_shadow(shadow.answered(), shadow.running_for());
        Some(ShadowStatus { mirrored: shadow.mirrored(), shed: shadow.shed(), health })
    }

    fn thresholds(&self, slot: &SlotName, thresholds: Vec<Threshold>) {
        self.monitor.set_thresholds(slot, thresholds);
    }

    fn slower(&self, slot: &SlotName, percent: Option<u32>) {
        let mut slower = self.slower.lock();
        match percent {
            Some(percent) => slower.insert(slot.clone(), percent),
            None => slower.remove(slot),
        };
    }
}

/// Makes the shadow step back while the device has better things to do. Ends with it.
async fn watch(shadow: Weak<Shadow>, slots: SlotTable, slot: SlotName, mut guard: Guard) {
    let started = Instant::now();
    loop {
        tokio::time::sleep(GUARD_PAUSE).await;
        let senses = tokio::task::spawn_blocking(|| sense(Path::new("/"))).await.unwrap_or_default();
        let Some(shadow) = shadow.upgrade().filter(|shadow| shadow.is_open()) else { return };
        let p95 = slots.lease(slot.as_str()).and_then(|a| a.stats.take_recent_p95_ms(MIN_ANSWERS));
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let reason = guard.judge(now_ms, p95, senses);
        if reason != shadow.shedding() {
            tracing::info!(%slot, reason = reason.map(|r| r.as_str()), p95_ms = p95, "shadow load");
        }
        shadow.shed_for(reason);
    }
}
