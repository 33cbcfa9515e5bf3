//! Carries out the choice of an engine: tries the setups in confined children, lets those that passed
//! take turns, remembers the outcome on disk, and loads bundles accordingly.

use super::{
    Engines, LibraryFrom, LoadError, LoadedModel, choose_artifact,
    chooser::{self, Batch, Budget, Key, Passed, Policy, Refused, Selection},
    is_meant_for_us, piped,
    pool::rows_together,
    probe::{self, BundleFiles, Comparison, Contestant, ProbeOptions},
    setup::{EngineName, Setup, artifact},
};
use crate::store::files;
use edgefleet_shared::{
    bundle::{Artifact, Manifest},
    digest::BundleDigest,
    probe::{ProbeFailure, ProbeVerdict},
    reported::RefusalCode,
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest remembered choice.
const MAX_BYTES: u64 = 1 << 20;
/// Choices kept; a device serves a handful of bundles.
const KEPT: usize = 64;

/// Decides which engine runs a bundle here.
pub struct EngineChooser {
    engines: Engines,
    policy: Policy,
    cpu: String,
    cores: usize,
    probe: ProbeOptions,
    budget: Budget,
    /// `None`: nothing is remembered beyond this process.
    folder: Option<PathBuf>,
    known: Mutex<BTreeMap<BundleDigest, Selection>>,
    /// Held while something is tried: two at a time would measure each other, and share the memory meant for one.
    trying: Mutex<()>,
}

/// A model in memory, and how it is run.
pub struct Chosen {
    pub model: Arc<dyn LoadedModel>,
    pub setup: Setup,
    /// The library that runs it, if one does.
    pub library: Option<PathBuf>,
}

impl EngineChooser {
    /// `folder` holds what is remembered; unreadable files in it are as good as none.
    pub fn new(
        engines: Engines,
        policy: Policy,
        probe: ProbeOptions,
        budget: Budget,
        folder: Option<PathBuf>,
    ) -> Self {
        let known = folder.as_deref().map(remembered).unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            engines,
            policy,
            cpu: fingerprint(),
            cores,
            probe,
            budget,
            folder,
            known: Mutex::new(known),
            trying: Mutex::default(),
        }
    }

    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    /// How to probe with the library in use now.
    fn probing(&self) -> ProbeOptions {
        ProbeOptions { library: self.engines.library(), ..self.probe.clone() }
    }

    /// Opens the library of an engine pack in a confined child. Blocks.
    pub fn try_pack(&self, files: &BundleFiles) -> ProbeVerdict {
        let _turn = self.trying.lock();
        probe::run(files, &self.probe)
    }

    /// Runs the golden samples of a bundle with a library that is not in use yet: as `setup` says, or as it
    /// would be tried first. `None` if the settings exclude it. Blocks.
    pub fn try_library(
        &self,
        library: &Path,
        setup: Option<Setup>,
        files: &BundleFiles,
        manifest: &Manifest,
    ) -> Option<ProbeVerdict> {
        let setup = setup.or_else(|| {
            let artifacts: Vec<&Artifact> =
                manifest.artifacts.iter().filter(|a| is_meant_for_us(a)).collect();
            let threads = |engine| Engines::threads_of(engine, self.cores);
            let (setups, _) = chooser::offered(&artifacts, &[EngineName::Onnxruntime], &self.policy, threads);
            setups.first().copied()
        })?;
        let library = Some(library.to_owned());
        let _turn = self.trying.lock();
        Some(probe::run(files, &ProbeOptions { setup: Some(setup), library, ..self.probe.clone() }))
    }

    /// What a choice for a bundle rests on now.
    pub fn key(&self, bundle: BundleDigest) -> Key {
        let (engines, cpu) = (self.engines.identities(), self.cpu.clone());
        Key { bundle, engines, cpu, policy: self.policy.clone() }
    }

    /// Engines by name and version; of a library the version is known once a bundle was tried with it.
    pub fn engine_names(&self) -> Vec<String> {
        let identities = self.engines.identities();
        let known = self.known.lock();
        let current = known.values().filter(|selection| selection.key.engines == identities);
        let tried: Vec<&str> =
            current.flat_map(|selection| &selection.passed).map(|passed| passed.engine.as_str()).collect();
        let named = |engine: EngineName| match engine {
            EngineName::Tract => format!("{engine} {}", super::tract::VERSION),
            EngineName::Onnxruntime => {
                if let Some(pack) =
                    self.engines.pack().filter(|_| self.engines.library_from() == Some(LibraryFrom::Pack))
                {
                    return format!("{engine} {}", pack.version);
                }
                let version = tried.iter().find(|name| name.starts_with(engine.as_str()));
                version.map_or_else(|| engine.to_string(), |name| (*name).to_owned())
            }
        };
        self.engines.names().into_iter().map(named).collect()
    }

    /// What was found out about a bundle, perhaps under another key.
    pub fn selection(&self, bundle: BundleDigest) -> Option<Selection> {
        self.known.lock().get(&bundle).cloned()
    }

    /// Whether what is known of a bundle still holds: same engines, processor and settings.
    pub fn is_current(&self, bundle: BundleDigest) -> bool {
        self.selection(bundle).is_some_and(|selection| selection.key == self.key(bundle))
    }

    /// Everything this device could run a bundle with, in order of preference, and what the settings
    /// exclude or cannot be tried now.
    pub fn offered(&self, manifest: &Manifest) -> (Vec<Setup>, Vec<Refused>) {
        let artifacts: Vec<&Artifact> = manifest.artifacts.iter().filter(|a| is_meant_for_us(a)).collect();
        let threads = |engine| Engines::threads_of(engine, self.cores);
        let (setups, mut refused) =
            chooser::offered(&artifacts, &self.engines.names(), &self.policy, threads);
        let mut kept = Vec::with_capacity(setups.len());
        for setup in setups {
            match self.engines.unprovable(setup.engine) {
                None => kept.push(setup),
                Some(reason) => refused.push(Refused { setup, code: None, reason }),
            }
        }
        (kept, refused)
    }

    /// Whether everything that is here can be tried; not while a library waits for the next start.
    pub fn can_try_all(&self) -> bool {
        self.engines.names().into_iter().all(|engine| self.engines.unprovable(engine).is_none())
    }

    /// Tries a bundle: its golden samples with every setup, then, among those that passed, the speed.
    /// The verdict is that of the setup that will run it, or of the first if none passed. Blocks.
    pub fn try_bundle(&self, files: &BundleFiles, manifest: &Manifest) -> ProbeVerdict {
        let _turn = self.trying.lock();
        let engines = self.engines.identities();
        let (setups, mut refused) = self.offered(manifest);
        let Some(first) = setups.first().copied() else {
            // Without settings that exclude all, no artifact is meant for this machine: the probe says so.
            if refused.is_empty() {
                return probe::run(files, &self.probing());
            }
            let reasons: Vec<String> = refused.iter().map(|r| format!("{}: {}", r.setup, r.reason)).collect();
            return probe::untried(files, &format!("no engine is left to try ({})", reasons.join("; ")));
        };
        let mut passed: Vec<(Passed, ProbeVerdict)> = Vec::new();
        let mut failed: Option<ProbeVerdict> = None;
        for setup in setups {
            let verdict = probe::run(files, &ProbeOptions { setup: Some(setup), ..self.probing() });
            match &verdict.failure {
                None => {
                    let engine = verdict
                        .engine
                        .as_ref()
                        .map_or_else(String::new, |engine| format!("{} {}", engine.name, engine.version));
                    passed.push((Passed { setup, engine, median_ms: None, batch: None }, verdict));
                }
                Some(failure) => {
                    tracing::info!(bundle = %verdict.bundle, %setup, reason = failure.message, "refused an engine");
                    let (code, reason) = (Some(failure.code), failure.message.clone());
                    refused.push(Refused { setup, code, reason });
                    if setup == first || failed.is_none() {
                        failed = Some(verdict);
                    }
                }
            }
        }
        if self.engines.identities() != engines {
            // What passed may be another file than the one here now. Of tract there is but one.
            let (same, other) = passed.into_iter().partition(|(p, _)| p.setup.engine == EngineName::Tract);
            passed = same;
            for (Passed { setup, .. }, _) in other {
                let reason = "its library was replaced while it was tried".to_owned();
                failed.get_or_insert_with(|| probe::untried(files, &reason));
                refused.push(Refused { setup, code: None, reason });
            }
        }
        if passed.is_empty() {
            // It was tried with the first, so there is a verdict.
            return failed.unwrap_or_else(|| probe::untried(files, "no engine was tried"));
        }
        let digest = passed[0].1.digest;
        let known = self.selection(digest);
        let former = known.as_ref().and_then(|s| s.chosen().map(|chosen| chosen.setup));
        let measured = self.measure(files, manifest, &mut passed, &mut refused, former);
        let mut verdicts: Vec<(Setup, ProbeVerdict)> = Vec::new();
        let mut all = Vec::new();
        for (passed, verdict) in passed {
            verdicts.push((passed.setup, verdict));
            all.push(passed);
        }
        let key = Key { engines, ..self.key(digest) };
        let rounds = measured.0;
        let chosen = match known.filter(|known| known.key == key && !self.can_try_all()) {
            // What was proved with the library that runs here still holds.
            Some(known) => known.chosen().map(|chosen| chosen.setup),
            None => {
                let selection = chooser::select(key, all, refused, measured, former);
                let chosen = selection.chosen().map(|chosen| chosen.setup);
                self.remember(digest, selection);
                chosen
            }
        };
        let chosen = chosen.unwrap_or(first);
        tracing::info!(bundle = %manifest.name(), setup = %chosen, rounds, "chose an engine");
        let at = verdicts.iter().position(|(setup, _)| *setup == chosen).unwrap_or(0);
        let passed = verdicts.iter().map(|(setup, _)| setup.to_string()).collect();
        ProbeVerdict { passed, ..verdicts.swap_remove(at).1 }
    }

    /// Fills in the medians where there is something to compare. Returns the rounds, and the rows of the
    /// input.
    fn measure(
        &self,
        files: &BundleFiles,
        manifest: &Manifest,
        passed: &mut Vec<(Passed, ProbeVerdict)>,
        refused: &mut Vec<Refused>,
        former: Option<Setup>,
    ) -> (usize, usize) {
        if passed.len() < 2 {
            return (0, 1);
        }
        let alone = |verdict: &ProbeVerdict| verdict.measured.as_ref().map_or(f64::INFINITY, |m| m.p50_ms);
        let alone_ms: Vec<f64> = passed.iter().map(|(_, verdict)| alone(verdict)).collect();
        let keep = passed.iter().position(|(passed, _)| Some(passed.setup) == former).unwrap_or(0);
        let order = chooser::order(&alone_ms, keep);
        let contestant = |at: &usize| Contestant { setup: passed[*at].0.setup, alone_ms: alone_ms[*at] };
        let contestants: Vec<Contestant> = order.iter().map(contestant).collect();
        let (limits, seen) = (&manifest.limits, manifest.external());
        let rows = rows_together(self.policy.rows, limits, &seen, manifest.pipeline.as_ref());
        let compared = probe::compare(files, manifest, &contestants, rows, self.budget, &self.probing());
        let Comparison { times, rows, batch } = match compared {
            Ok(compared) => compared,
            Err(failure) => {
                tracing::warn!(bundle = %manifest.name(), reason = failure.message, "could not compare engines");
                if failure.code == RefusalCode::ProbeTimedOut {
                    // What each took alone is less than a comparison, and more than nothing.
                    for ((one, _), ms) in passed.iter_mut().zip(alone_ms) {
                        one.median_ms = Some(ms).filter(|ms| ms.is_finite());
                    }
                }
                // Each gave right answers alone; the first in order is as good as before.
                return (0, 1);
            }
        };
        let mut rounds = 0;
        let mut failed: Vec<(usize, ProbeFailure)> = Vec::new();
        for (at, times) in order.into_iter().zip(times) {
            let finite = |ms: f64| Some(ms).filter(|ms| ms.is_finite() && *ms >= 0.0);
            match times {
                Ok(Some(times)) => {
                    rounds = rounds.max(times.rounds);
                    let one = &mut passed[at].0;
                    one.median_ms = finite(times.small_ms);
                    let ms = times.batch_ms.and_then(finite);
                    one.batch = batch.zip(ms).map(|(rows, median_ms)| Batch { rows, median_ms });
                }
                Ok(None) => {}
                Err(reason) => failed.push((at, reason)),
            }
        }
        failed.sort_unstable_by_key(|(at, _)| *at);
        if failed.len() == passed.len() {
            // Each gave right answers alone: the first runs the bundle, as if nothing was there to compare.
            failed.remove(0);
        }
        for (at, ProbeFailure { code, message, .. }) in failed.into_iter().rev() {
            let (one, _) = passed.remove(at);
            let reason = format!("in turns with others: {message}");
            refused.push(Refused { setup: one.setup, code: Some(code), reason });
        }
        (rounds, rows)
    }

    fn remember(&self, bundle: BundleDigest, selection: Selection) {
        if let Some(folder) = &self.folder
            && let Err(error) = write(folder, bundle, &selection)
        {
            // It is found out anew after the next start.
            tracing::warn!(%bundle, %error, "could not remember the choice of an engine");
        }
        self.known.lock().insert(bundle, selection);
    }

    /// What may run a bundle right now, best first. Of one that nobody tried here: tract, which was all
    /// there was when it came. Never what the settings exclude.
    fn proven(&self, bundle: BundleDigest, manifest: &Manifest) -> Vec<Setup> {
        let Some(selection) = self.selection(bundle) else {
            let artifact = choose_artifact(&manifest.artifacts);
            let tract =
                |a: &Artifact| Setup { engine: EngineName::Tract, precision: a.precision, threads: 1 };
            return artifact.map(tract).into_iter().filter(|setup| self.policy.allows(setup)).collect();
        };
        // A library that is another one since may not run here before it was tried again.
        let same = selection.key == self.key(bundle);
        let trusted =
            |setup: &Setup| self.policy.allows(setup) && (same || setup.engine == EngineName::Tract);
        selection.passed.iter().map(|passed| passed.setup).filter(trusted).collect()
    }

    /// Loads a bundle with the setup chosen for it. If that one is not there any more (a library was
    /// removed), with the next that gave right answers; where none is left, what there is now is tried
    /// first. Blocks.
    ///
    /// # Errors
    /// [`LoadError`] of the last setup that was tried.
    pub fn load(
        &self,
        bundle: BundleDigest,
        manifest: &Manifest,
        files: &BundleFiles,
    ) -> Result<Chosen, LoadError> {
        let mut engines = self.engines.identities();
        let mut setups = self.proven(bundle, manifest);
        if setups.is_empty() && !self.is_current(bundle) {
            tracing::info!(bundle = %manifest.name(), "no proven engine is left, trying those that are here");
            self.try_bundle(files, manifest);
            engines = self.engines.identities();
            setups = self.proven(bundle, manifest);
        }
        let mut last = None;
        for setup in setups {
            let Some(found) = artifact(&manifest.artifacts, setup.precision) else { continue };
            let path = files.blobs.join(found.blob.digest.to_hex());
            let library = self.engines.library().filter(|_| setup.engine == EngineName::Onnxruntime);
            let whole = self.engines.load(setup, &path, &manifest.interface).and_then(|model| {
                if setup.engine != EngineName::Tract && self.engines.identities() != engines {
                    return Err(replaced(setup.engine));
                }
                piped::around(model, manifest.pipeline.as_ref(), &manifest.interface, &manifest.labels)
            });
            match whole {
                Ok(model) => return Ok(Chosen { model: model.into(), setup, library }),
                Err(error) => {
                    tracing::warn!(bundle = %manifest.name(), %setup, %error, "could not load with an engine");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| LoadError {
            code: RefusalCode::NoArtifact,
            message: format!(
                "`{}` has nothing that an engine of this device ({}) may run under its settings",
                manifest.name(),
                self.engines.identities().join(", ")
            ),
            node: None,
            op: None,
        }))
    }
}

/// Between the look at a library and its opening.
fn replaced(engine: EngineName) -> LoadError {
    LoadError {
        code: RefusalCode::ProbeUnavailable,
        message: format!("the library of {engine} is another one than the one that was proved"),
        node: None,
        op: None,
    }
}

fn file(folder: &Path, bundle: BundleDigest) -> PathBuf {
    folder.join(format!("{}.json", bundle.to_hex()))
}

fn write(folder: &Path, bundle: BundleDigest, selection: &Selection) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let json = serde_json::to_vec_pretty(selection)?;
    files::replace(&file(folder, bundle), &json, 0o644)?;
    let now = std::time::Duration::from_millis(crate::clock::now().as_millis());
    let ages = fs::read_dir(folder)?.flatten().filter_map(|entry| {
        let modified = entry.metadata().ok()?.modified().ok()?;
        let since_1970 = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        Some((entry.path(), now.saturating_sub(since_1970).as_secs()))
    });
    for path in chooser::outdated(ages.collect(), KEPT) {
        fs::remove_file(path)?;
    }
    Ok(())
}

fn remembered(folder: &Path) -> BTreeMap<BundleDigest, Selection> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let read = |path: PathBuf| -> Option<Selection> {
        let bytes = files::read_bounded(&path, MAX_BYTES).ok()?;
        serde_json::from_slice(&bytes).ok()
    };
    let found = entries.flatten().take(4 * KEPT).filter_map(|entry| read(entry.path()));
    found.map(|selection| (selection.key.bundle, selection)).collect()
}

/// Names the processor and what it can do: an image of one device must not carry its choices to another.
fn fingerprint() -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |keys: &[&str]| {
        text.lines().find(|line| keys.iter().any(|key| line.starts_with(key))).unwrap_or_default()
    };
    let name = line(&["model name", "CPU part", "isa"]).split(':').nth(1).unwrap_or_default().trim();
    let mut hash = DefaultHasher::new();
    line(&["flags", "Features"]).hash(&mut hash);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{name}, {} x{cores}, {:08x}", std::env::consts::ARCH, hash.finish() as u32)
}
