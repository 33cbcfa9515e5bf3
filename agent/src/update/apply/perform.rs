//! One effect after the other, as the machine asked for them.

use super::{
    ACTIVATION_LIMIT, Lane, Updater,
    jobs::{loadable, not_ready},
};
use crate::{
    failpoint,
    update::{
        fetch::Problem,
        machine::{Bundle, Effect, Event, SlotState},
    },
};
use edgefleet_shared::{
    ids::SlotName,
    reported::{Phase, Refusal, RefusalCode},
    telemetry::batch::TerminalReport,
};
use rand::RngExt;

impl Updater {
    /// Failpoint after each durable marker, by the phase it marks.
    pub(super) fn persisted(&self, slot: &SlotName) {
        failpoint::hit(match self.doc.slots.get(slot).map(SlotState::phase) {
            None | Some(Phase::Idle) => "persisted.idle",
            Some(Phase::Fetching) => "persisted.fetching",
            Some(Phase::Verified | Phase::Testing) => "persisted.testing",
            Some(Phase::Switching) => "persisted.switching",
            Some(Phase::Probation) => "persisted.probation",
            Some(Phase::Committed | Phase::Deferred | Phase::Shadowing) => "persisted.committed",
            Some(_) => "persisted.failed",
        });
    }

    /// Performs one effect; an answer that is there at once is returned.
    pub(super) async fn perform(&mut self, slot: &SlotName, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Persist => {}
            Effect::Report => self.dirty = true,
            Effect::StopJob => self.stop_job(slot, Lane::Slot),
            Effect::StopCandidateJob => self.stop_job(slot, Lane::Candidate),
            Effect::StartTimer { ticket, after } => self.start_timer(slot, ticket, after),
            Effect::FetchRelease { ticket, assigned } => self.fetch_release(slot, ticket, assigned),
            Effect::FetchManifest { ticket, bundle } => self.fetch_manifest(slot, ticket, bundle),
            Effect::FetchBlobs { ticket, bundle } => self.fetch_blobs(slot, ticket, bundle),
            Effect::RunTest { ticket, bundle } => self.run_test(slot, ticket, bundle),
            Effect::Switch { ticket, to } => {
                if std::mem::take(&mut self.dirty) {
                    self.report(); // loading may take a while: people should see what it does
                }
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
            Effect::Shadow { ticket, bundle, settings } => self.start_shadow(slot, ticket, bundle, settings),
            Effect::StopShadow => self.world.host.stop_shadow(slot).await,
            Effect::Deactivate => self.world.host.deactivate(slot).await,
            Effect::Withdraw { ticket } => {
                if let Some(reason) = self.world.host.needed(slot) {
                    tracing::warn!(%slot, reason, "the engine pack stays");
                    let refusal = self.refusal(RefusalCode::NoArtifact, reason);
                    return Some(Event::StillNeeded { ticket, refusal });
                }
                self.world.host.deactivate(slot).await;
                return Some(Event::Withdrawn { ticket });
            }
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
        let failed = |problem: Problem| self.refusal(problem.code, problem.message);
        let loadable = loadable(&self.fetcher.store, bundle).await.map_err(failed)?;
        match tokio::time::timeout(ACTIVATION_LIMIT, self.world.host.activate(slot, loadable)).await {
            Ok(result) => result,
            Err(_) => Err(failed(not_ready(bundle))),
        }
    }

    pub(super) async fn terminal(&self, report: TerminalReport) -> Option<Event> {
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
}
