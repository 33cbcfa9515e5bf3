//! Tries an engine pack: its library is opened in a confined child and computes something there.

use super::{
    BundleFiles, ProbeOptions,
    files::failure,
    judge::{Judgement, judge_library},
    messages::Task,
    supervisor::{Needs, spawn},
};
use crate::engine::pack::{is_library_for, own_library};
use edgefleet_shared::{
    bundle::{EngineCard, Manifest},
    probe::{EngineFacts, ProbeFailure},
    reported::RefusalCode,
};
use std::io::Read;

/// Bytes of an ELF header that tell its kind and machine.
const HEAD_BYTES: u64 = 20;

pub(super) fn test(
    bundle: &BundleFiles,
    manifest: &Manifest,
    card: &EngineCard,
    options: &ProbeOptions,
) -> Result<Judgement, ProbeFailure> {
    let Some(own) = own_library(manifest).map_err(|e| failure(e.code, e.message))? else {
        return Ok(Judgement::default()); // a withdrawal: there is nothing to open
    };
    for library in &card.libraries {
        let path = bundle.blobs.join(library.blob.digest.to_hex());
        // A device has fetched its own library alone; a registry has them all.
        if library != own && !path.exists() {
            continue;
        }
        let file = bundle.open_blob(&library.blob)?;
        let mut head = Vec::new();
        file.take(HEAD_BYTES).read_to_end(&mut head).map_err(|e| {
            let text = format!("could not read blob {} of the bundle: {e}", library.blob.digest);
            failure(RefusalCode::StorageFailed, text)
        })?;
        if !is_library_for(&head, &library.target) {
            let text = format!("its library for {} is no shared library of that target", library.target);
            return Err(failure(RefusalCode::ModelInvalid, text));
        }
    }
    let unavailable = |text: String| failure(RefusalCode::ProbeUnavailable, text);
    let path = bundle.blobs.join(own.blob.digest.to_hex());
    // By its real path: the child's working folder is another one.
    let path = std::fs::canonicalize(&path)
        .map_err(|e| unavailable(format!("`{}` cannot be opened as a library: {e}", path.display())))?;
    let needs = Needs {
        data_bytes: options.memory_headroom_bytes.saturating_add(ProbeOptions::LIBRARY_BYTES),
        library: Some(path),
        threaded: false,
    };
    let ended = spawn(Task::Open, needs, &[], options).map_err(unavailable)?;
    let mut judgement = judge_library(&ended);
    if judgement.failure.is_none() {
        judgement.failure = judgement.engine.as_ref().and_then(|found| differs(manifest, card, found));
    }
    Ok(judgement)
}

/// What the library says of itself must be what its publisher signed.
fn differs(manifest: &Manifest, card: &EngineCard, found: &EngineFacts) -> Option<ProbeFailure> {
    let (signed, version) = (&manifest.model.version, &found.version);
    if signed != version {
        let text = format!("the library says that it is {version}, the manifest that it is {signed}");
        return Some(failure(RefusalCode::ManifestInvalid, text));
    }
    let api = version.split('.').nth(1).and_then(|minor| minor.parse::<u32>().ok());
    (api != Some(card.api)).then(|| {
        let text = format!("version {version} does not speak version {} of the C interface", card.api);
        failure(RefusalCode::ManifestInvalid, text)
    })
}
