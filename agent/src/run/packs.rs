//! Engine packs on this device: tried beside what serves, then offered to the chooser, and watched.
//!
//! A library stays in the process that opened it: it starts threads and registers exit handlers of its own,
//! so it is never closed. The next one is opened beside it, under its own content-addressed path; models
//! loaded with the old one run on until they are switched. ONNX Runtime's symbols are its own (all but
//! two are hidden, those are versioned, and libraries are opened without sharing names), so versions do not
//! mix. The memory of the old one comes back with the next start; the number of packs between two starts is
//! bounded.

use super::running::RunningEngines;
use crate::{
    engine::{
        LibraryFrom, LoadError, PackLibrary,
        choosing::EngineChooser,
        pack,
        probe::{self, BundleFiles},
        setup::EngineName,
    },
    serving::SlotTable,
    update::SlotHealth,
};
use edgefleet_shared::{
    bundle::Manifest,
    probe::{ProbeFailure, ProbeVerdict},
    reported::RefusalCode,
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, path::PathBuf, sync::Arc};
use tokio::sync::Notify;

/// Different libraries of packs that one process offers; each costs some 20 MiB until the next start.
const MOST_LIBRARIES: usize = 8;

/// What is done with packs. The slot machine decides when.
pub(super) struct Packs {
    chooser: Arc<EngineChooser>,
    running: Arc<RunningEngines>,
    /// Told when another library counts.
    changed: Arc<Notify>,
    /// Offered since the start of this process.
    offered: Mutex<BTreeSet<PathBuf>>,
}

impl Packs {
    pub(super) fn new(chooser: Arc<EngineChooser>, running: Arc<RunningEngines>) -> Self {
        Self { chooser, running, changed: Arc::default(), offered: Mutex::default() }
    }

    pub(super) fn changed(&self) -> Arc<Notify> {
        self.changed.clone()
    }

    /// Opens the pack's library in a confined child; then, in one child each, runs the golden samples of
    /// everything that serves with it. Blocks.
    pub(super) fn test(&self, files: &BundleFiles, manifest: &Manifest) -> ProbeVerdict {
        let mut verdict = self.chooser.try_pack(files);
        if !verdict.ok {
            return verdict;
        }
        if let Err(failure) = self.on_what_serves(files, manifest) {
            (verdict.ok, verdict.failure) = (false, Some(failure));
        }
        verdict
    }

    fn on_what_serves(&self, files: &BundleFiles, manifest: &Manifest) -> Result<(), ProbeFailure> {
        let library = own_path(files, manifest).map_err(|e| ProbeFailure {
            code: e.code,
            message: e.message,
            node: None,
            op: None,
        })?;
        let Some(library) = library else {
            let without =
                |message| ProbeFailure { code: RefusalCode::NoArtifact, message, node: None, op: None };
            return self.needed().map_or(Ok(()), |message| Err(without(message)));
        };
        for (slot, running) in self.running.all() {
            let needed = running.setup.engine == EngineName::Onnxruntime;
            let setup = needed.then_some(running.setup);
            let files = self::files(&running.files);
            let tried = self.chooser.try_library(&library, setup, &files, &running.manifest);
            let Some(failure) = tried.and_then(|verdict| verdict.failure) else { continue };
            if needed || is_the_librarys_fault(failure.code) {
                let said = format!("{} in slot `{slot}`: {}", running.manifest.name(), failure.message);
                return Err(ProbeFailure { message: said, ..failure });
            }
            tracing::info!(%slot, reason = failure.message, "the new library does not run this bundle");
        }
        Ok(())
    }

    /// What serves and did not give right answers on tract: it must not lose the library. For withdrawals, and
    /// for packs that are not wanted any more.
    pub(super) fn needed(&self) -> Option<String> {
        if self.chooser.engines().library_from() != Some(LibraryFrom::Pack) {
            return None; // it is another library that runs them
        }
        self.running.all().into_iter().find_map(|(slot, running)| {
            let known = self.chooser.selection(running.digest);
            let on_tract = known.is_some_and(|selection| {
                selection.passed.iter().any(|passed| passed.setup.engine == EngineName::Tract)
            });
            let needs = running.setup.engine != EngineName::Tract && !on_tract;
            needs.then(|| format!("{} in slot `{slot}` runs on nothing else", running.manifest.name()))
        })
    }

    /// From now on the chooser considers the pack's library; after a withdrawal, none.
    ///
    /// # Errors
    /// Code and sentence.
    pub(super) fn activate(
        &self,
        files: &BundleFiles,
        manifest: &Manifest,
    ) -> Result<(), (RefusalCode, String)> {
        let Some(path) = own_path(files, manifest).map_err(|e| (e.code, e.message))? else {
            self.deactivate();
            return Ok(());
        };
        {
            let mut offered = self.offered.lock();
            if !offered.contains(&path) && offered.len() >= MOST_LIBRARIES {
                let said = format!(
                    "this process has had {MOST_LIBRARIES} libraries of engine packs already, and none can \
                     be taken out of it; restart the agent"
                );
                return Err((RefusalCode::ActivationFailed, said));
            }
            offered.insert(path.clone());
        }
        let pack = PackLibrary { path, version: manifest.model.version.clone() };
        if self.chooser.engines().pack().as_ref() == Some(&pack) {
            return Ok(());
        }
        tracing::info!(pack = %manifest.name(), version = pack.version, "engine pack in force");
        self.chooser.engines().set_pack(Some(pack));
        self.changed.notify_one();
        Ok(())
    }

    /// No pack counts any more.
    pub(super) fn deactivate(&self) {
        if self.chooser.engines().pack().is_some() {
            self.chooser.engines().set_pack(None);
            self.changed.notify_one();
        }
    }

    /// Bad as soon as a bundle that the pack's library runs is.
    pub(super) fn health(&self, slots: &SlotTable) -> SlotHealth {
        if self.chooser.engines().library_from() != Some(LibraryFrom::Pack) {
            return SlotHealth::Good;
        }
        let on_it = slots.actives().into_iter().filter(|a| a.served.engine == EngineName::Onnxruntime);
        for active in on_it {
            let limits = &active.served.manifest.limits;
            let health = super::health::judge(&active.stats.totals(), limits, None, None, None);
            if let SlotHealth::Bad { code, reason } = health {
                return SlotHealth::Bad { code, reason: format!("{}: {reason}", active.bundle_text) };
            }
        }
        SlotHealth::Good
    }
}

/// `None` for a withdrawal.
fn own_path(files: &BundleFiles, manifest: &Manifest) -> Result<Option<PathBuf>, LoadError> {
    let own = pack::own_library(manifest)?;
    Ok(own.map(|own| files.blobs.join(own.blob.digest.to_hex())))
}

/// A library that gives wrong answers, crashes or hangs is no good, whatever it does for others. One that
/// refuses a model, or is too slow or too large for its limits, is not used for that model.
fn is_the_librarys_fault(code: RefusalCode) -> bool {
    matches!(code, RefusalCode::GoldenMismatch | RefusalCode::ProbeCrashed | RefusalCode::ProbeTimedOut)
}

/// As the updater's files are called here.
pub(super) fn files(files: &crate::update::BundleFiles) -> probe::BundleFiles {
    probe::BundleFiles { manifest: files.manifest_path.clone(), blobs: files.blobs_dir.clone() }
}
