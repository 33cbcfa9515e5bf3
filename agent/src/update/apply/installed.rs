//! The engine pack that a data folder holds, looked up without the agent that owns it: nothing is written, and nothing
//! damaged is removed.

use super::Slots;
use crate::{
    engine::{PackLibrary, pack},
    store::durable::{DurableSlots, Loaded},
    update::bundles::BundleStore,
};
use edgefleet_shared::ids::{BundleName, SlotName};
use std::path::{Path, PathBuf};

/// A pack in force, and its library for this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledPack {
    pub bundle: BundleName,
    pub library: PackLibrary,
}

/// Why the pack of a data folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum InstalledError {
    #[error("could not read the slots of `{}`: {reason}", data.display())]
    Slots { data: PathBuf, reason: String },
    #[error("could not read the engine pack {bundle}")]
    Manifest { bundle: BundleName, source: super::super::bundles::BundleError },
    #[error("{reason}")]
    Unusable { reason: String },
    #[error("the library of {bundle}, `{}`, is not what was signed", path.display())]
    Damaged { bundle: BundleName, path: PathBuf },
}

/// The pack that is in force in `slot` of the data folder `data`; `None` if there is none, or a withdrawal.
///
/// # Errors
/// [`InstalledError`].
pub fn installed_pack(data: &Path, slot: &SlotName) -> Result<Option<InstalledPack>, InstalledError> {
    let doc: Slots = match DurableSlots::look(data, "slots") {
        Loaded::Value(doc) => doc,
        Loaded::Absent => return Ok(None),
        Loaded::Lost(reason) => return Err(InstalledError::Slots { data: data.to_owned(), reason }),
    };
    let Some(active) = doc.slots.get(slot).and_then(|state| state.active.as_ref()) else { return Ok(None) };
    let (bundle, store) = (active.name.clone(), BundleStore::at(&data.join(super::BUNDLES_FOLDER)));
    let manifest = store
        .manifest(active.digest)
        .map_err(|source| InstalledError::Manifest { bundle: bundle.clone(), source })?;
    let own = pack::own_library(&manifest).map_err(|e| InstalledError::Unusable { reason: e.message })?;
    let Some(own) = own else { return Ok(None) };
    let path = store.blob_path(own.blob.digest);
    if !BundleStore::is_sound(&path, own.blob.digest, own.blob.size) {
        return Err(InstalledError::Damaged { bundle, path });
    }
    let library = PackLibrary { path, version: manifest.model.version.clone() };
    Ok(Some(InstalledPack { bundle, library }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::machine::{Bundle, SlotState};
    use edgefleet_shared::{
        digest::{BlobDigest, BundleDigest, EnvelopeDigest},
        ids::AttemptId,
    };
    use serde_json::json;
    use std::fs;

    fn slot() -> SlotName {
        "engine/onnxruntime".parse().unwrap()
    }

    /// A data folder with this pack in force.
    fn data(targets: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let store = BundleStore::open(&folder.path().join(super::super::BUNDLES_FOLDER)).unwrap();
        let body = b"a library";
        let blob = BlobDigest::of(body);
        fs::write(store.blob_path(blob), body).unwrap();
        let library = |target: &&str| json!({"target": target, "digest": blob, "size": body.len()});
        let libraries: Vec<_> = targets.iter().map(library).collect();
        let api = if targets.is_empty() { 0 } else { 32 };
        let manifest = json!({"schema": 1, "kind": "engine",
            "model": {"name": "onnxruntime", "counter": 3, "version": "1.32.0"},
            "engine": {"api": api, "libraries": libraries}});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = BundleDigest::of(&manifest);
        fs::write(store.manifest_path(digest), &manifest).unwrap();
        let active = Bundle {
            name: "onnxruntime@3".parse().unwrap(),
            digest,
            length: manifest.len() as u64,
            release: EnvelopeDigest::of(b"r"),
            attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
        };
        let state = SlotState { active: Some(active), ..SlotState::default() };
        let (mut disk, _) = DurableSlots::open(folder.path(), "slots").unwrap();
        disk.save(&Slots { slots: [(slot(), state)].into(), ..Slots::default() }).unwrap();
        (folder, store.blob_path(blob))
    }

    #[test]
    fn the_pack_in_force_is_found_and_a_damaged_one_is_left_where_it_is() {
        let Some(target) = pack::target() else { return };
        let (folder, library) = data(&[target]);
        let found = installed_pack(folder.path(), &slot()).unwrap().expect("a pack");
        assert_eq!((found.bundle.to_string().as_str(), &found.library.path), ("onnxruntime@3", &library));
        assert_eq!(found.library.version, "1.32.0");
        fs::write(&library, b"a Library").unwrap();
        let error = installed_pack(folder.path(), &slot()).unwrap_err();
        assert!(error.to_string().contains("is not what was signed"), "{error}");
        assert!(library.exists(), "another process owns it");
    }

    #[test]
    fn no_pack_and_one_for_others_are_told_apart() {
        let empty = tempfile::tempdir().unwrap();
        let missing = empty.path().join("missing");
        assert_eq!(installed_pack(&missing, &slot()).unwrap(), None);
        assert!(!missing.exists(), "looking makes nothing");
        let (withdrawal, _) = data(&[]);
        assert_eq!(installed_pack(withdrawal.path(), &slot()).unwrap(), None);
        let other = if cfg!(target_arch = "x86_64") { "aarch64-linux-gnu" } else { "x86_64-linux-gnu" };
        let (folder, _) = data(&[other]);
        let error = installed_pack(folder.path(), &slot()).unwrap_err().to_string();
        assert!(error.contains(other) || error.contains("static build"), "{error}");
        fs::write(empty.path().join("slots.a"), "damaged").unwrap();
        let error = installed_pack(empty.path(), &slot()).unwrap_err();
        assert!(matches!(error, InstalledError::Slots { .. }), "{error}");
    }
}
