//! What a thief of the controller can do: everything its disk and its online key allow.
//!
//! The attack runs against the stopped controller's own store, as somebody with root on that machine
//! would: it forges a release of a new bundle with a broken publisher signature. The publisher's key
//! is not part of the loot in the hardened set-up; here the signature is simply damaged.

use super::DemoError;
use crate::{
    blobs::{BlobStore, local::LocalBlobs},
    registry::record::{BUNDLE, BUNDLE_BLOB, BundleRecord, SharedBlob, bundle_id},
    store::{
        Expect, FleetStore, Repository, Transaction,
        sled_home::{SledConfig, SledStore},
    },
};
use bytes::Bytes;
use edgefleet_shared::{
    digest::{BlobDigest, EnvelopeDigest},
    ids::BundleName,
    trust::Envelope,
};
use std::{path::Path, sync::Arc};

/// Makes the stored release of `bundle` one that no publisher signed: one bit of its signature is
/// flipped, and the registry names the result as if it had been pushed.
pub(super) async fn break_signature(controller: &Path, bundle: &BundleName) -> Result<(), DemoError> {
    let failed = |reason: String| DemoError::Attack { reason };
    let (store, _) = SledStore::open(SledConfig::new(controller.join("store")))
        .await
        .map_err(|e| failed(e.to_string()))?;
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let (blobs, _) = LocalBlobs::open(controller.join("blobs")).await.map_err(|e| failed(e.to_string()))?;
    let bundles = Repository::<BundleRecord>::new(store.clone(), BUNDLE);
    let id = bundle_id(bundle);
    let mut found = bundles.get_json(&id).await.map_err(|e| failed(e.to_string()))?;
    let digest = BlobDigest::from(found.value.release);
    let size = found.value.release_size;
    let raw = blobs.read_range(&digest, 0, size).await.map_err(|e| failed(e.to_string()))?;
    let mut envelope = Envelope::parse(&raw).map_err(|e| failed(e.to_string()))?;
    let signature = envelope.signatures.first_mut().ok_or_else(|| failed("no signature".into()))?;
    // The first base64 digit: another one keeps it base64 and makes it another signature.
    let other = if signature.sig.starts_with('A') { "B" } else { "A" };
    signature.sig.replace_range(0..1, other);
    let forged = envelope.to_bytes();
    let info = blobs.put(Bytes::from(forged)).await.map_err(|e| failed(e.to_string()))?;
    let shared = SharedBlob { size: info.size };
    let transaction = Transaction::new()
        .put_json(BUNDLE_BLOB, info.digest.to_hex(), Expect::Any, &shared)
        .map_err(|e| failed(e.to_string()))?;
    store.commit(transaction).await.map_err(|e| failed(e.to_string()))?;
    found.value.release = EnvelopeDigest::from_bytes(*info.digest.as_bytes());
    found.value.release_size = info.size;
    bundles
        .put_json(&id, Expect::Revision(found.revision), &found.value)
        .await
        .map_err(|e| failed(e.to_string()))?;
    store.close().await.map_err(|e| failed(e.to_string()))
}
