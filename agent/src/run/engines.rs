//! Which engine runs what here: told in the status, and looked at again when something changed.

use super::host::ServingHost;
use crate::{
    engine::{
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
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// How often slots are looked at for a choice that no longer holds.
const PAUSE: Duration = Duration::from_secs(60);

/// How the bundle of a slot is run now.
#[derive(Clone)]
struct Running {
    digest: BundleDigest,
    setup: Setup,
    files: BundleFiles,
    /// As signed: serving knows only what clients see of it.
    manifest: Manifest,
}

/// By slot.
#[derive(Default)]
pub(super) struct RunningEngines(Mutex<BTreeMap<SlotName, Running>>);

impl RunningEngines {
    pub(super) fn set(
        &self,
        slot: &SlotName,
        digest: BundleDigest,
        setup: Setup,
        (files, manifest): (BundleFiles, Manifest),
    ) {
        self.0.lock().insert(slot.clone(), Running { digest, setup, files, manifest });
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
        let running = self.running.0.lock().clone();
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
            "library": self.chooser.engines().library().map(|path| path.display().to_string()),
            "slots": slots,
        })
    }
}

/// Looks at the slots now and then: one whose choice rests on other engines, another processor or other
/// settings is tried anew while nobody asks it anything, and runs with what comes out of that.
pub(super) async fn reconsider(host: Arc<ServingHost>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        for active in host.slots().actives() {
            let idle = active.stats.in_flight() == 0 && active.shadow().is_none();
            if idle && !host.chooser().is_current(active.served.digest) {
                again(&host, &active).await;
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
    if chosen == Some(running.setup) {
        return;
    }
    let _switching = host.switching.lock().await;
    let now = host.slots().lease(served.slot.as_str());
    if !now.is_some_and(|now| now.served.digest == served.digest && now.served.attempt == served.attempt) {
        return; // the updater was faster
    }
    match host.load(&running.files, &running.manifest, served.digest).await {
        Ok(Chosen { model, setup }) => {
            tracing::info!(slot = %served.slot, from = %running.setup, to = %setup, "switching the engine");
            host.engines().set(&served.slot, served.digest, setup, (running.files, running.manifest));
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
