//! Which engine runs what here: told in the status, and looked at again when something changed.

use super::host::ServingHost;
use crate::{
    engine::{
        LibraryFrom,
        chooser::{Drift, Key, MIN_PASSES, Retry, Seen, Selection},
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
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

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
                    json!({"setup": passed.setup.to_string(), "engine": passed.engine, "median_ms": passed.median_ms, "batch": passed.batch})
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

/// What became of the choices of one slot's bundle.
#[derive(Default)]
struct Watched {
    digest: Option<BundleDigest>,
    retry: Retry,
    drift: Drift,
}

/// Why a bundle is tried anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// It was chosen among other engines, on another processor or under other settings.
    Changed,
    /// It takes longer than when it was chosen.
    Drifted,
}

impl Watched {
    /// One look, `now` after the start. `idle`: nobody asks it anything, so that it may be tried.
    fn look(&mut self, now: Duration, key: &Key, known: Look<'_>, idle: bool) -> Option<Cause> {
        if self.digest != Some(key.bundle) {
            *self = Self { digest: Some(key.bundle), ..Self::default() };
        }
        if let Some(seen) = known.seen {
            self.drift.see(now, seen);
        }
        let holds = known.selection.is_some_and(|selection| selection.key == *key);
        match holds {
            _ if !idle => None,
            false => self.retry.is_due(key, now).then_some(Cause::Changed),
            // A library that waits for the next start would be left out.
            true => (known.can_try_all && self.drift.is_due(now)).then_some(Cause::Drifted),
        }
    }
}

/// What is known of a slot at one look.
#[derive(Clone, Copy)]
struct Look<'a> {
    selection: Option<&'a Selection>,
    /// What was served since the last look, if it was enough.
    seen: Option<Seen>,
    can_try_all: bool,
}

/// Looks at the slots now and then, and when an engine pack came or went: one whose choice rests on other engines,
/// another processor or other settings, or whose latency has drifted away from what was measured, is tried anew
/// while nobody asks it anything, and runs with what comes out of that. Where nothing passes any more, ever more
/// rarely. One that runs on a library which was taken back does not wait for an idle moment.
pub(super) async fn reconsider(host: Arc<ServingHost>) {
    let started = Instant::now();
    let changed = host.packs().changed();
    let mut watched: BTreeMap<SlotName, Watched> = BTreeMap::new();
    let mut pause = PAUSE;
    loop {
        // Either is the same work.
        tokio::time::timeout(pause, changed.notified()).await.ok();
        pause = PAUSE;
        let library = host.chooser().engines().library();
        let actives = host.slots().actives();
        watched.retain(|slot, _| actives.iter().any(|active| active.served.slot == *slot));
        for active in actives {
            let (slot, digest) = (&active.served.slot, active.served.digest);
            let Some(running) = host.engines().get(slot).filter(|r| r.digest == digest) else { continue };
            let taken_back = running.library.as_ref().is_some_and(|used| Some(used) != library.as_ref());
            let chooser = host.chooser();
            let (key, selection) = (chooser.key(digest), chooser.selection(digest));
            let measured = selection.as_ref().and_then(|s| s.expected(&running.setup));
            let seen = measured
                .as_ref()
                .and_then(|measured| Seen::of(&active.stats.take_recent_passes(MIN_PASSES)?, measured));
            let idle = active.stats.in_flight() == 0 && active.shadow().is_none();
            let look = Look { selection: selection.as_ref(), seen, can_try_all: chooser.can_try_all() };
            let watched = watched.entry(slot.clone()).or_default();
            let Some(cause) = watched.look(started.elapsed(), &key, look, idle || taken_back) else {
                let holds = selection.as_ref().is_some_and(|selection| selection.key == key);
                if !idle
                    && !holds
                    && active.shadow().is_none()
                    && watched.retry.is_due(&key, started.elapsed())
                {
                    pause = BUSY_PAUSE;
                }
                continue;
            };
            tracing::info!(%slot, ?cause, "looking for the best engine again");
            again(&host, &active).await;
            let now = started.elapsed();
            let after = host.engines().get(slot).filter(|r| r.digest == digest).map(|r| r.setup);
            match cause {
                Cause::Changed if host.chooser().is_current(digest) => watched.retry.passed(),
                Cause::Changed => match watched.retry.failed(key, now) {
                    Some(pause) => tracing::info!(%slot, pause_s = pause.as_secs(), "trying again later"),
                    None => {
                        tracing::warn!(%slot, "not trying again until engines, settings or bundle change")
                    }
                },
                Cause::Drifted => {
                    let now_expected =
                        host.chooser().selection(digest).and_then(|s| s.expected(&running.setup));
                    let same = measured.zip(now_expected).filter(|_| after == Some(running.setup));
                    watched.drift.chosen_again(now, same.map(|(before, after)| (before.ms, after.ms)));
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::chooser::{Policy, select};

    const MINUTE: Duration = Duration::from_secs(60);

    fn key(threads: usize) -> Key {
        Key {
            bundle: BundleDigest::of(b"b"),
            engines: vec![],
            cpu: "cpu".into(),
            policy: Policy { threads, ..Policy::default() },
        }
    }
    fn look(selection: Option<&Selection>, p50: f64, can_try_all: bool) -> Look<'_> {
        Look { selection, seen: Some(Seen { p50, p95: p50 }), can_try_all }
    }

    #[test]
    fn a_choice_that_fails_is_made_ever_more_rarely_and_at_once_after_a_change() {
        let (mut watched, mut tried) = (Watched::default(), Vec::new());
        for minute in 0..2_000 {
            let settings = if minute < 1_500 { 1 } else { 2 };
            if watched.look(MINUTE * minute, &key(settings), look(None, 1.0, true), true).is_some() {
                tried.push(minute);
                watched.retry.failed(key(settings), MINUTE * minute);
            }
        }
        assert_eq!(tried[..8], [0, 2, 6, 14, 30, 62, 126, 1_500]);
        assert_eq!(watched.look(MINUTE * 9_000, &key(3), look(None, 1.0, true), false), None, "it is busy");
    }

    #[test]
    fn a_drift_is_looked_into_when_idle_and_not_while_a_library_waits() {
        let selection = select(key(1), vec![], vec![], (0, 1), None);
        for (p50, can_try_all, idle_from, wanted) in
            [(3.0, true, 0, Some(10)), (3.0, true, 17, Some(17)), (3.0, false, 0, None), (1.5, true, 0, None)]
        {
            let mut watched = Watched::default();
            let found = (0..60).find(|minute| {
                let now = MINUTE * *minute;
                let look = look(Some(&selection), p50, can_try_all);
                watched.look(now, &key(1), look, *minute >= idle_from) == Some(Cause::Drifted)
            });
            assert_eq!(found, wanted, "{p50} {can_try_all}");
        }
    }
}
