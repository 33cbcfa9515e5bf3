//! Makes the choice of an engine anew when what it rests on changed, or when a bundle has become slower.

use super::{host::ServingHost, running::Running};
use crate::{
    engine::{
        chooser::{Drift, Key, MIN_PASSES, Retry, Seen, Selection},
        choosing::Chosen,
        setup::Setup,
    },
    failpoint,
    serving::{ServedBundle, slots::Active},
};
use edgefleet_shared::{digest::BundleDigest, ids::SlotName, reported::WhyAgain};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How often slots are looked at for a choice that no longer holds.
const PAUSE: Duration = Duration::from_secs(60);
/// The same while one of them waits for a moment when nobody asks it anything.
const BUSY_PAUSE: Duration = Duration::from_secs(2);

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
    /// It was chosen among other engines, on another processor or under other settings, or does not run as chosen.
    Changed,
    /// It takes longer than when it was chosen.
    Drifted,
}

/// What one look at a slot asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// A choice, in the next moment when nobody asks the slot anything.
    WhenIdle,
    Now(Cause),
}

/// What is known of a slot at one look.
#[derive(Clone, Copy)]
struct Look<'a> {
    key: &'a Key,
    /// What is known was found out under `key`, and runs.
    holds: bool,
    /// What was served since the last look, if it was enough.
    seen: Option<Seen>,
    can_try_all: bool,
    /// Nobody asks it anything, so that it may be tried.
    idle: bool,
}

/// What came of a choice that was made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// There is no new choice, or it could not be loaded: what served goes on.
    Failed,
    /// The slot serves something else by now.
    Overtaken,
    /// Measured anew; this runs the bundle.
    Chosen(Setup),
}

impl Watched {
    /// One look, `now` after the start.
    fn look(&mut self, now: Duration, look: Look<'_>) -> Due {
        if self.digest != Some(look.key.bundle) {
            *self = Self { digest: Some(look.key.bundle), ..Self::default() };
        }
        if let Some(seen) = look.seen {
            self.drift.see(now, seen);
        }
        let cause = match look.holds {
            false => self.retry.is_due(look.key, now).then_some(Cause::Changed),
            // A library that waits for the next start would be left out.
            true => (look.can_try_all && self.drift.is_due(now)).then_some(Cause::Drifted),
        };
        match cause {
            None => Due::Nothing,
            Some(_) if !look.idle => Due::WhenIdle,
            Some(cause) => Due::Now(cause),
        }
    }
}

/// Whether what is known of a bundle still holds and is what runs it. The same setup on another library is another
/// engine.
fn holds(known: Option<&Selection>, key: &Key, running: &Running, library: Option<&Path>) -> bool {
    let same_library = running.library.as_deref().is_none_or(|used| Some(used) == library);
    known.is_some_and(|known| {
        known.key == *key && known.chosen().is_some_and(|chosen| chosen.setup == running.setup)
    }) && same_library
}

/// Looks at the slots now and then, and when an engine pack came or went: one whose choice rests on other engines,
/// another processor or other settings, or whose latency has drifted away from what was measured, is tried anew
/// while nobody asks it anything, and runs with what comes out of that. Where nothing passes any more, ever more
/// rarely. One that runs on a library which was taken back does not wait for an idle moment.
///
/// `told` is notified of every new choice.
pub(super) async fn reconsider(host: Arc<ServingHost>, told: Arc<Notify>) {
    let (started, haste) = (Instant::now(), failpoint::haste());
    let now = || started.elapsed().saturating_mul(haste);
    let changed = host.packs().changed();
    let mut watched: BTreeMap<SlotName, Watched> = BTreeMap::new();
    let mut pause = PAUSE;
    loop {
        // Either is the same work.
        tokio::time::timeout(pause / haste, changed.notified()).await.ok();
        pause = PAUSE;
        let actives = host.slots().actives();
        watched.retain(|slot, _| actives.iter().any(|active| active.served.slot == *slot));
        for active in actives {
            let (slot, digest) = (&active.served.slot, active.served.digest);
            let Some(running) = host.engines().of(slot, digest) else { continue };
            let chooser = host.chooser();
            let library = chooser.engines().library();
            let taken_back = running.library.is_some() && running.library != library;
            let (key, selection) = (chooser.key(digest), chooser.selection(digest));
            let measured = selection.as_ref().and_then(|s| s.expected(&running.setup));
            let seen = measured
                .as_ref()
                .and_then(|measured| Seen::of(&active.stats.take_recent_passes(MIN_PASSES)?, measured));
            let look = Look {
                key: &key,
                holds: holds(selection.as_ref(), &key, &running, library.as_deref()),
                seen,
                can_try_all: chooser.can_try_all(),
                idle: taken_back || (active.stats.in_flight() == 0 && active.shadow().is_none()),
            };
            let watched = watched.entry(slot.clone()).or_default();
            let cause = match watched.look(now(), look) {
                Due::Now(cause) => cause,
                Due::WhenIdle => {
                    // A shadow stays for hours: nothing is missed meanwhile.
                    if active.shadow().is_none() {
                        pause = BUSY_PAUSE;
                    }
                    continue;
                }
                Due::Nothing => continue,
            };
            tracing::info!(%slot, ?cause, "looking for the best engine again");
            let outcome = again(&host, &active, &running).await;
            let known = chooser.selection(digest);
            match outcome {
                Outcome::Overtaken => continue,
                Outcome::Failed => {}
                Outcome::Chosen(_) => {
                    let why = match cause {
                        Cause::Changed => WhyAgain::Changed,
                        Cause::Drifted => WhyAgain::Drifted,
                    };
                    let at = crate::clock::now();
                    host.engines().chosen_again(slot, digest, (why, running.setup), at);
                    told.notify_one();
                }
            }
            match (cause, outcome) {
                (Cause::Changed, _) => {
                    let after = host.engines().of(slot, digest);
                    let library = chooser.engines().library();
                    let done = after.is_some_and(|after| {
                        holds(known.as_ref(), &chooser.key(digest), &after, library.as_deref())
                    });
                    if done {
                        watched.retry.passed();
                        // What was seen before was held against another measurement.
                        watched.drift.measured_anew();
                        continue;
                    }
                    match watched.retry.failed(key, now()) {
                        Some(pause) => tracing::info!(%slot, pause_s = pause.as_secs(), "trying again later"),
                        None => {
                            tracing::warn!(%slot, "not trying again until engines, settings or bundle change");
                        }
                    }
                }
                (Cause::Drifted, Outcome::Chosen(setup)) => {
                    let expected = known.and_then(|known| known.expected(&running.setup));
                    let same = measured.zip(expected).filter(|_| setup == running.setup);
                    watched.drift.chosen_again(now(), same.map(|(before, after)| (before.ms, after.ms)));
                }
                (Cause::Drifted, _) => watched.drift.not_chosen(now()),
            }
        }
    }
}

async fn again(host: &ServingHost, active: &Active, running: &Running) -> Outcome {
    let served = &active.served;
    let (chooser, manifest) = (host.chooser().clone(), running.manifest.clone());
    let files = super::packs::files(&running.files);
    let tried = tokio::task::spawn_blocking(move || chooser.try_bundle(&files, &manifest)).await;
    let failure = match tried {
        Ok(verdict) => verdict.failure.map(|failure| failure.message),
        Err(error) => Some(format!("the test broke: {error}")),
    };
    if let Some(reason) = failure {
        // What serves goes on: it gave right answers, and its health is watched.
        tracing::warn!(slot = %served.slot, reason, "no engine passes any more");
        return Outcome::Failed;
    }
    let known = host.chooser().selection(served.digest);
    let library = host.chooser().engines().library();
    if holds(known.as_ref(), &host.chooser().key(served.digest), running, library.as_deref()) {
        return Outcome::Chosen(running.setup);
    }
    let _switching = host.switching.lock().await;
    let now = host.slots().lease(served.slot.as_str());
    if !now.is_some_and(|now| now.served.digest == served.digest && now.served.attempt == served.attempt) {
        return Outcome::Overtaken; // the updater was faster
    }
    match host.load(&running.files, &running.manifest, served.digest).await {
        Ok(Chosen { model, setup, library }) => {
            tracing::info!(slot = %served.slot, from = %running.setup, to = %setup, "switching the engine");
            let chosen = (setup, library);
            let bundle = (running.files.clone(), running.manifest.clone());
            host.engines().set(&served.slot, served.digest, chosen, bundle);
            host.slots().activate(Arc::new(ServedBundle {
                slot: served.slot.clone(),
                bundle: served.bundle.clone(),
                digest: served.digest,
                attempt: served.attempt.clone(),
                manifest: served.manifest.clone(),
                model,
                engine: setup.engine,
                baseline: served.baseline.clone(),
            }));
            Outcome::Chosen(setup)
        }
        Err(refusal) => {
            tracing::warn!(slot = %served.slot, reason = refusal.message, "could not switch the engine");
            Outcome::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::chooser::Policy;

    const MINUTE: Duration = Duration::from_secs(60);

    fn key(threads: usize) -> Key {
        Key {
            bundle: BundleDigest::of(b"b"),
            engines: vec![],
            cpu: "cpu".into(),
            policy: Policy { threads, ..Policy::default() },
        }
    }
    fn look(key: &Key, p50: f64) -> Look<'_> {
        let seen = Some(Seen { p50, p95: p50 });
        Look { key, holds: true, seen, can_try_all: true, idle: true }
    }

    #[test]
    fn a_choice_that_fails_is_made_ever_more_rarely_and_at_once_after_a_change() {
        let (mut watched, mut tried) = (Watched::default(), Vec::new());
        for minute in 0..2_000 {
            let settings = key(if minute < 1_500 { 1 } else { 2 });
            let look = Look { holds: false, ..look(&settings, 1.0) };
            if watched.look(MINUTE * minute, look) == Due::Now(Cause::Changed) {
                tried.push(minute);
                watched.retry.failed(settings, MINUTE * minute);
            }
        }
        assert_eq!(tried[..8], [0, 2, 6, 14, 30, 62, 126, 1_500]);
        let other = key(3);
        let busy = Look { holds: false, idle: false, ..look(&other, 1.0) };
        assert_eq!(watched.look(MINUTE * 9_000, busy), Due::WhenIdle);
    }

    #[test]
    fn a_drift_is_looked_into_when_idle_and_not_while_a_library_waits() {
        for (p50, can_try_all, idle_from, wanted) in
            [(3.0, true, 0, Some(10)), (3.0, true, 17, Some(17)), (3.0, false, 0, None), (1.5, true, 0, None)]
        {
            let (mut watched, key) = (Watched::default(), key(1));
            let mut at = |minute: u32| {
                let look = Look { can_try_all, idle: minute >= idle_from, ..look(&key, p50) };
                watched.look(MINUTE * minute, look)
            };
            let due: Vec<Due> = (0..60).map(&mut at).collect();
            let found = due.iter().position(|due| *due == Due::Now(Cause::Drifted));
            assert_eq!(found, wanted, "{p50} {can_try_all}");
            // A busy slot is looked at again soon, not in a minute.
            let waiting = due.iter().filter(|due| **due == Due::WhenIdle).count();
            assert_eq!(waiting, if idle_from > 10 { idle_from as usize - 10 } else { 0 });
        }
    }
}
