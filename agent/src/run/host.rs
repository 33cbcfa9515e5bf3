//! Puts tested bundles into service and says how they do.

use crate::{
    engine::{Engine, LoadedModel, choose_artifact, tract::TractEngine},
    monitor::{ErrorCode, Monitor},
    serving::{ServedBundle, SlotTable},
    update::{BundleFiles, Host, SlotHealth},
};
use async_trait::async_trait;
use edgefleet_shared::{
    bundle::Manifest,
    desired::Threshold,
    digest::BundleDigest,
    ids::{AttemptId, BundleName, SlotName},
    reported::{Refusal, RefusalCode},
};
use std::sync::Arc;

/// Failures of the engine before a bundle on probation is judged at all.
const MIN_ENGINE_FAILURES: u64 = 5;
/// One request in this many failing in the engine is too many for a bundle whose golden samples pass.
const TOLERATED_ONE_IN: u64 = 10;

/// The updater's view of serving.
pub(super) struct ServingHost {
    pub(super) slots: SlotTable,
    pub(super) monitor: Arc<Monitor>,
    pub(super) engine: Arc<TractEngine>,
}

impl ServingHost {
    async fn load(&self, files: &BundleFiles, manifest: &Manifest) -> Result<Arc<dyn LoadedModel>, Refusal> {
        let failed = |code: RefusalCode, message: String| Refusal {
            code,
            retry: code.retry(),
            message,
            subject: Some(manifest.name().to_string()),
            attempt: None,
            generation: None,
            at: crate::clock::now(),
        };
        let artifact = choose_artifact(&manifest.artifacts).ok_or_else(|| {
            let message = format!("`{}` has no artifact for {}", manifest.name(), std::env::consts::ARCH);
            failed(RefusalCode::NoArtifact, message)
        })?;
        let path = files.blobs_dir.join(artifact.blob.digest.to_hex());
        let (engine, interface) = (self.engine.clone(), manifest.interface.clone());
        // The confined probe ran this very file; a panic would still cost only this activation.
        let loaded = tokio::task::spawn_blocking(move || engine.load(&path, &interface)).await;
        match loaded {
            Ok(Ok(model)) => Ok(Arc::from(model)),
            Ok(Err(e)) => Err(failed(e.code, e.message)),
            Err(e) => {
                Err(failed(RefusalCode::ActivationFailed, format!("loading `{}`: {e}", manifest.name())))
            }
        }
    }
}

#[async_trait]
impl Host for ServingHost {
    async fn activate(
        &self,
        slot: &SlotName,
        files: BundleFiles,
        manifest: Manifest,
        name: BundleName,
        digest: BundleDigest,
        attempt: AttemptId,
    ) -> Result<(), Refusal> {
        let model = match self.slots.get(slot) {
            Some(served) if served.digest == digest && served.attempt == attempt => return Ok(()),
            Some(served) if served.digest == digest => served.model.clone(),
            _ => self.load(&files, &manifest).await?,
        };
        tracing::info!(%slot, bundle = %name, %attempt, "serving");
        let served = ServedBundle { slot: slot.clone(), bundle: name, digest, attempt, manifest, model };
        self.slots.activate(Arc::new(served));
        Ok(())
    }

    async fn deactivate(&self, slot: &SlotName) {
        self.slots.deactivate(slot);
    }

    fn health(&self, slot: &SlotName) -> SlotHealth {
        let Some(active) = self.slots.lease(slot.as_str()) else { return SlotHealth::Good };
        let totals = active.stats.totals();
        let failed: u64 = ErrorCode::ALL
            .into_iter()
            .filter(|code| code.is_ours())
            .map(|code| totals.errors[code as usize])
            .sum();
        judge(failed, failed.saturating_add(totals.success.count))
    }

    fn thresholds(&self, slot: &SlotName, thresholds: Vec<Threshold>) {
        self.monitor.set_thresholds(slot, thresholds);
    }
}

/// `failed` of `asked` requests failed for reasons of the bundle or the device.
fn judge(failed: u64, asked: u64) -> SlotHealth {
    match failed >= MIN_ENGINE_FAILURES && failed.saturating_mul(TOLERATED_ONE_IN) > asked {
        true => SlotHealth::Bad(format!("{failed} of {asked} requests failed in the engine")),
        false => SlotHealth::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_bad_only_when_enough_requests_of_enough_failed() {
        for (failed, asked, bad) in [
            (0, 0, false),
            (4, 4, false),
            (5, 5, true),
            (5, 49, true),
            (5, 50, false),
            (100, 900, true),
            (100, 1_000, false),
            (u64::MAX, u64::MAX, false), // saturated, not wrapped
        ] {
            assert_eq!(judge(failed, asked) != SlotHealth::Good, bad, "{failed} of {asked}");
        }
    }
}
