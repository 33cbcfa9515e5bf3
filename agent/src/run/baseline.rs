//! The baseline of a bundle that is about to serve. Whatever is wrong with it, the bundle serves.

use crate::{monitor::profile::BundleBaseline, update::BundleFiles};
use edgefleet_shared::bundle::{Baseline, BlobRef, Manifest, baseline::MAX_BASELINE_BYTES};
use std::sync::Arc;

/// Reads it, beside the async world.
pub(super) async fn read(files: &BundleFiles, manifest: &Manifest) -> BundleBaseline {
    let Some(BlobRef { digest, size }) = manifest.baseline.clone() else { return BundleBaseline::Absent };
    let path = files.blobs_dir.join(digest.to_hex());
    let reading = move || {
        if size > MAX_BASELINE_BYTES {
            return Err(format!("it has {size} bytes, {MAX_BASELINE_BYTES} are allowed"));
        }
        // Its digest was checked when it was fetched and again before the bundle's test.
        let bytes = std::fs::read(&path).map_err(|e| format!("could not read {}: {e}", path.display()))?;
        Baseline::parse(&bytes).map_err(|e| e.to_string())
    };
    let read = tokio::task::spawn_blocking(reading).await;
    match read.map_err(|e| e.to_string()).flatten() {
        Ok(baseline) => BundleBaseline::Sound(Arc::new(baseline)),
        Err(reason) => {
            let bundle = manifest.name();
            tracing::warn!(%bundle, reason, "the baseline is of no use; serving without its edges");
            BundleBaseline::Broken
        }
    }
}
