//! What runs beside the updater's own task: fetching, testing, waiting. One job per slot; each ends by
//! telling the updater, with the ticket it was started under.

use super::{
    super::{
        bundles::BundleStore,
        fetch::{Meter, Problem, chain},
        machine::{Bundle, Event},
    },
    ACTIVATION_LIMIT, Internal, Lane, Loadable, PROGRESS_PAUSE, Probe, Updater, refusal,
};
use crate::{engine::panic_text, failpoint};
use edgefleet_shared::{
    desired::{Assigned, ShadowSettings},
    ids::SlotName,
    reported::RefusalCode,
};
use futures::FutureExt;
use rand::RngExt;
use std::{panic::AssertUnwindSafe, sync::atomic::Ordering, time::Duration};
use tokio::{sync::mpsc, time::Instant};

impl Updater {
    /// Runs `work` as the slot's job; the former one ends. A job that panics has failed like any other:
    /// without a word of it the slot would wait for ever.
    fn job(&mut self, slot: &SlotName, ticket: u64, work: impl Future<Output = ()> + Send + 'static) {
        let (tx, name) = (self.internal.0.clone(), slot.clone());
        let guarded = async move {
            if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
                let said = format!("this step broke the agent's own code: {}", panic_text(&*panic));
                tracing::error!(slot = %name, said);
                tell(&tx, name, ticket, Err(Problem::new(RefusalCode::Unknown, said)));
            }
        };
        let handle = tokio::spawn(guarded).abort_handle();
        if let Some(former) = self.jobs.insert((slot.clone(), Lane::of(ticket)), handle) {
            former.abort();
        }
    }

    pub(super) fn stop_job(&mut self, slot: &SlotName, lane: Lane) {
        if let Some(job) = self.jobs.remove(&(slot.clone(), lane)) {
            job.abort();
        }
    }

    /// Beside everything else: a candidate that takes its time to load holds nothing up.
    pub(super) fn start_shadow(
        &mut self,
        slot: &SlotName,
        ticket: u64,
        bundle: Bundle,
        settings: ShadowSettings,
    ) {
        let (fetcher, host) = (self.fetcher.clone(), self.world.host.clone());
        let (tx, name, clock) = (self.internal.0.clone(), slot.clone(), self.config.clock);
        self.job(slot, ticket, async move {
            failpoint::hit("shadow.before");
            let work = async {
                let failed = |problem: Problem| refusal(problem.code, problem.message, clock());
                let loadable = loadable(&fetcher.store, &bundle).await.map_err(failed)?;
                match tokio::time::timeout(ACTIVATION_LIMIT, host.shadow(&name, loadable, settings)).await {
                    Ok(result) => result,
                    Err(_) => Err(failed(not_ready(&bundle))),
                }
            };
            let event = match work.await {
                Ok(()) => Event::Switched { ticket },
                Err(refusal) => {
                    Event::StepFailed { ticket, refusal, jitter: rand::rng().random_range(0..1_000) }
                }
            };
            failpoint::hit("shadow.after");
            let _ = tx.send(Internal::Slot(name, event));
        });
    }

    pub(super) fn start_timer(&mut self, slot: &SlotName, ticket: u64, after: Duration) {
        let (tx, name) = (self.internal.0.clone(), slot.clone());
        self.job(slot, ticket, async move {
            tokio::time::sleep(after).await;
            let _ = tx.send(Internal::Slot(name, Event::TimerFired { ticket }));
        });
    }

    pub(super) fn fetch_release(&mut self, slot: &SlotName, ticket: u64, assigned: Assigned) {
        let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
        self.job(slot, ticket, async move {
            let meter = meter(&tx, &name, ticket);
            let result = fetcher.release(&assigned, &meter).await;
            fetched(&tx, &name, ticket, &meter);
            let _ = tx.send(match result {
                Ok(raw) => Internal::Release { slot: name, ticket, raw },
                Err(problem) => Internal::Problem { slot: name, ticket, problem },
            });
        });
    }

    pub(super) fn fetch_manifest(&mut self, slot: &SlotName, ticket: u64, bundle: Bundle) {
        let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
        self.job(slot, ticket, async move {
            if !name.takes(&bundle.name.model) {
                let said = format!("`{}` does not belong into slot `{name}`", bundle.name);
                return tell(&tx, name, ticket, Err(Problem::new(RefusalCode::NoArtifact, said)));
            }
            let meter = meter(&tx, &name, ticket);
            let result = fetcher.manifest(&bundle, &meter).await;
            fetched(&tx, &name, ticket, &meter);
            tell(&tx, name, ticket, result.map(|_| Event::ManifestReady { ticket }));
        });
    }

    pub(super) fn fetch_blobs(&mut self, slot: &SlotName, ticket: u64, bundle: Bundle) {
        let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
        let settings = self.doc.settings.clone();
        self.job(slot, ticket, async move {
            let meter = meter(&tx, &name, ticket);
            let result = fetcher.blobs(&bundle, &settings, &meter).await;
            fetched(&tx, &name, ticket, &meter);
            tell(&tx, name, ticket, result.map(|()| Event::BlobsReady { ticket }));
        });
    }

    pub(super) fn run_test(&mut self, slot: &SlotName, ticket: u64, bundle: Bundle) {
        let (fetcher, tx, name) = (self.fetcher.clone(), self.internal.0.clone(), slot.clone());
        let (probe, turn) = (self.world.probe.clone(), self.tests.clone());
        self.job(slot, ticket, async move {
            // Never closed, so there is always a turn.
            let turn = turn.acquire_owned().await.ok();
            let _ = tx.send(Internal::Slot(name.clone(), Event::TestBegun { ticket }));
            failpoint::hit("test.before");
            // A task of its own: the turn ends with the child, also if this job is replaced before.
            let testing = tokio::spawn(async move {
                let _turn = turn;
                test(probe.as_ref(), &fetcher.store, &bundle).await
            });
            let broke = |e| Err(Problem::new(RefusalCode::Unknown, format!("the test broke: {e}")));
            let result = testing.await.unwrap_or_else(broke);
            failpoint::hit("test.after");
            tell(&tx, name, ticket, result.map(|()| Event::Tested { ticket }));
        });
    }
}

/// Reads and checks what is about to be loaded.
pub(super) async fn loadable(store: &BundleStore, bundle: &Bundle) -> Result<Loadable, Problem> {
    let (reader, digest) = (store.clone(), bundle.digest);
    let failed = |message: String| Problem::new(RefusalCode::ActivationFailed, message);
    let manifest = tokio::task::spawn_blocking(move || reader.loadable(digest))
        .await
        .map_err(|e| failed(e.to_string()))?
        .map_err(|e| failed(chain(&e)))?;
    let (name, attempt) = (bundle.name.clone(), bundle.attempt.clone());
    Ok(Loadable { files: store.files(digest), manifest, name, digest, attempt })
}

pub(super) fn not_ready(bundle: &Bundle) -> Problem {
    let said = format!("`{}` was not ready after {} s", bundle.name, ACTIVATION_LIMIT.as_secs());
    Problem::new(RefusalCode::ActivationFailed, said)
}

fn tell(tx: &mpsc::UnboundedSender<Internal>, slot: SlotName, ticket: u64, result: Result<Event, Problem>) {
    let _ = tx.send(match result {
        Ok(event) => Internal::Slot(slot, event),
        Err(problem) => Internal::Problem { slot, ticket, problem },
    });
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
