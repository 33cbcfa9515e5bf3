//! Which engine runs what here: told in the status, and looked at again when something changed.

use super::host::ServingHost;
use crate::{
    engine::{
        LibraryFrom,
        choosing::{Chosen, EngineChooser},
        probe,
        setup::Setup,
    },
    serving::{ServedBundle, http::StatusProvider, slots::Active},
    update::BundleFiles,
};
use edgefleet_shared::{bundle::Manifest, digest::BundleDigest, ids::SlotName};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

/// How often slots are looked at for a choice that no longer holds.
const PAUSE: Duration = Duration::from_secs(60);
/// The same while one of them waits for a moment when nobody asks it anything.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

/// How the bundle of a slot is run now.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) digest: BundleDigest,
    pub(super) setup: Setup,
    /// What ran it when it was loaded, if that is a library.
    library: Option<PathBuf>,
    pub(super) files: BundleFiles,
    /// As signed: serving knows only what clients see of it.
    pub(super) manifest: Manifest,
}

/// By slot.
#[derive(Default)]
pub(super) struct RunningEngines(Mutex<BTreeMap<SlotName, Running>>);

impl RunningEngines {
    pub(super) fn set(
        &self,
        slot: &SlotName,
        digest: BundleDigest,
        chosen: (Setup, Option<PathBuf>),
        (files, manifest): (BundleFiles, Manifest),
    ) {
        let (setup, library) = chosen;
        self.0.lock().insert(slot.clone(), Running { digest, setup, library, files, manifest });
    }
    /// Everything that serves, by slot.
    pub(super) fn all(&self) -> BTreeMap<SlotName, Running> {
        self.0.lock().clone()
    }
    pub(super) fn remove(&self, slot: &SlotName) {
        self.0.lock().remove(slot);
    }
    fn get(&self, slot: &SlotName) -> Option<Running> {
        self.0.lock().get(slot).cloned()
    }
}

/// `engines` in `GET /v1/status`.
pub(super) struct EngineStatus {
    pub(super) chooser: Arc<EngineChooser>,
    pub(super) running: Arc<RunningEngines>,
}

impl StatusProvider for EngineStatus {
    fn name(&self) -> &'static str {
        "engines"
    }
    fn status(&self) -> Value {
        let running = self.running.all();
        let engines = self.chooser.engines();
        let slots: BTreeMap<String, Value> = running
            .into_iter()
            .map(|(slot, running)| {
                let known = self.chooser.selection(running.digest);
                let measured: Vec<Value> = known.iter().flat_map(|s| &s.passed).map(|passed| {
                    json!({"setup": passed.setup.to_string(), "engine": passed.engine, "median_ms": passed.median_ms})
                }).collect();
                let refused: Vec<Value> = known.iter().flat_map(|s| &s.refused).map(|refused| {
                    json!({"setup": refused.setup.to_string(), "code": refused.code, "reason": refused.reason})
                }).collect();
                let slot_status = json!({
                    "digest": running.digest,
                    "setup": running.setup.to_string(),
                    "library": running.library.map(|path| path.display().to_string()),
                    "current": self.chooser.is_current(running.digest),
                    "measured": measured,
                    "refused": refused,
                    "rounds": known.as_ref().map(|s| s.rounds),
                });
                (slot.to_string(), slot_status)
            })
            .collect();
        json!({
            "present": self.chooser.engine_names(),
            "library": engines.library().map(|path| path.display().to_string()),
            "library_from": engines.library_from().map(LibraryFrom::as_str),
            "slots": slots,
        })
    }
}

/// Looks at the slots now and then, and when an engine pack came or went: one whose choice rests on other
/// engines, another processor or other settings is tried anew while nobody asks it anything, and runs with
/// what comes out of that. One that runs on a library which was taken back does not wait for that.
pub(super) async fn reconsider(host: Arc<ServingHost>) {
    let changed = host.packs().changed();
    let mut pause = PAUSE;
    loop {
        // Either is the same work.
        tokio::time::timeout(pause, changed.notified()).await.ok();
        pause = PAUSE;
        let library = host.chooser().engines().library();
        for active in host.slots().actives() {
            let idle = active.stats.in_flight() == 0 && active.shadow().is_none();
            let running = host.engines().get(&active.served.slot);
            let taken_back = running.and_then(|r| r.library).is_some_and(|used| Some(used) != library);
            if host.chooser().is_current(active.served.digest) {
                continue;
            }
            if idle || taken_back {
                again(&host, &active).await;
            } else if active.shadow().is_none() {
                pause = BUSY_PAUSE;
            }
        }
    }
}

async fn again(host: &ServingHost, active: &Active) {
    let served = &active.served;
    let Some(running) = host.engines().get(&served.slot).filter(|r| r.digest == served.digest) else {
        return;
    };
    let (chooser, manifest) = (host.chooser().clone(), running.manifest.clone());
    let files = probe::BundleFiles {
        manifest: running.files.manifest_path.clone(),
        blobs: running.files.blobs_dir.clone(),
    };
    let Ok(verdict) = tokio::task::spawn_blocking(move || chooser.try_bundle(&files, &manifest)).await else {
        return;
    };
    if let Some(failure) = &verdict.failure {
        // What serves goes on: it gave right answers, and its health is watched.
        tracing::warn!(slot = %served.slot, reason = failure.message, "no engine passes any more");
        return;
    }
    let chosen = host.chooser().selection(served.digest).and_then(|s| s.chosen().map(|c| c.setup));
    // The same setup on another library is another engine.
    let library = host.chooser().engines().library();
    if chosen == Some(running.setup) && running.library.is_none_or(|used| Some(used) == library) {
        return;
    }
    let _switching = host.switching.lock().await;
    let now = host.slots().lease(served.slot.as_str());
    if !now.is_some_and(|now| now.served.digest == served.digest && now.served.attempt == served.attempt) {
        return; // the updater was faster
    }
    match host.load(&running.files, &running.manifest, served.digest).await {
        Ok(Chosen { model, setup, library }) => {
            tracing::info!(slot = %served.slot, from = %running.setup, to = %setup, "switching the engine");
            let chosen = (setup, library);
            host.engines().set(&served.slot, served.digest, chosen, (running.files, running.manifest));
            host.slots().activate(Arc::new(ServedBundle {
                slot: served.slot.clone(),
                bundle: served.bundle.clone(),
                digest: served.digest,
                attempt: served.attempt.clone(),
                manifest: served.manifest.clone(),
                model,
                engine: setup.engine,
            }));
        }
        Err(refusal) => {
            tracing::warn!(slot = %served.slot, reason = refusal.message, "could not switch the engine");
        }
    }
}
