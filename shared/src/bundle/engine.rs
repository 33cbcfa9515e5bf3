//! Engine packs: a bundle that brings a library that runs models, instead of a model.

use super::manifest::{BlobRef, Manifest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Targets whose agents can load a library. The others (static builds, armv7) refuse every pack.
pub const TARGETS: [&str; 2] = ["x86_64-linux-gnu", "aarch64-linux-gnu"];

/// What a bundle holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    #[default]
    Model,
    Engine,
}

impl Kind {
    pub(super) fn is_model(&self) -> bool {
        *self == Self::Model
    }
}

/// The library of an engine. Its name and version are those of the bundle's card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineCard {
    /// Version of the C interface the library speaks: what an agent must know before it fetches a byte.
    /// Of ONNX Runtime the second number of its version; 0 in a withdrawal.
    pub api: u32,
    /// One per target; none in a withdrawal.
    pub libraries: Vec<Library>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// One of [`TARGETS`].
    pub target: String,
    #[serde(flatten)]
    pub blob: BlobRef,
}

impl EngineCard {
    /// Whether this is the signed word that no pack counts any more.
    pub fn is_withdrawal(&self) -> bool {
        self.libraries.is_empty()
    }
    /// The library for a device of this target; `None` is one that can load none.
    pub fn library(&self, target: Option<&str>) -> Option<&Library> {
        self.libraries.iter().find(|library| Some(library.target.as_str()) == target)
    }
    pub fn targets(&self) -> Vec<&str> {
        self.libraries.iter().map(|library| library.target.as_str()).collect()
    }
}

/// Field and reason of what is wrong with a manifest as to its kind.
pub(super) fn mistakes(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let name = &manifest.model.name;
    match (manifest.kind, &manifest.engine) {
        (Kind::Model, None) if name.is_engine() => {
            wrong.push(("model.name", format!("`{name}` is the name of an engine")));
        }
        (Kind::Model, None) => {}
        (Kind::Model, Some(_)) => wrong.push(("engine", "belongs to a bundle of kind `engine`".into())),
        (Kind::Engine, None) => wrong.push(("engine", "is missing".into())),
        (Kind::Engine, Some(engine)) => {
            if !name.is_engine() {
                wrong.push(("model.name", format!("`{name}` is no engine that agents know")));
            }
            // Both at once: leaving the libraries out by mistake must not take an engine away.
            if engine.api == 0 && !engine.libraries.is_empty() {
                wrong.push(("engine.api", "is at least 1 where there are libraries".into()));
            }
            if engine.libraries.is_empty() && engine.api != 0 {
                wrong.push(("engine.libraries", "needs at least one entry, or `api` to be 0".into()));
            }
            let mut seen = BTreeSet::new();
            for library in &engine.libraries {
                let target = library.target.as_str();
                if !TARGETS.contains(&target) {
                    let known = TARGETS.join("`, `");
                    wrong.push(("engine.libraries", format!("target `{target}` is none of `{known}`")));
                } else if !seen.insert(target) {
                    wrong.push(("engine.libraries", format!("target `{target}` is named twice")));
                }
            }
            let model = !manifest.artifacts.is_empty()
                || !manifest.golden.is_empty()
                || !manifest.labels.is_empty()
                || manifest.pipeline.is_some()
                || manifest.prediction.is_some()
                || manifest.baseline.is_some();
            if model {
                wrong.push(("kind", "`engine` brings libraries, and nothing of a model".into()));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bundle::{Interface, Limits, manifest},
        digest::BlobDigest,
    };

    fn pack() -> Manifest {
        let library = |target: &str| Library {
            target: target.into(),
            blob: BlobRef { digest: BlobDigest::of(target.as_bytes()), size: 7 },
        };
        let mut pack = manifest::tests::sample();
        pack.kind = Kind::Engine;
        pack.model.name = "onnxruntime".parse().unwrap();
        pack.model.task = String::new();
        pack.engine = Some(EngineCard { api: 32, libraries: TARGETS.map(library).into() });
        pack.interface = Interface::default();
        pack.limits = Limits::default();
        (pack.artifacts, pack.golden, pack.labels) = (vec![], vec![], vec![]);
        pack.prediction = None;
        pack
    }

    #[test]
    fn a_pack_survives_the_round_trip_and_a_device_takes_its_own_library() {
        let bytes = pack().to_bytes();
        let parsed = Manifest::parse(&bytes).unwrap();
        assert_eq!(parsed, pack());
        assert_eq!(parsed.blobs().len(), 2);
        let own = parsed.blobs_for(Some("aarch64-linux-gnu"));
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].digest, BlobDigest::of(b"aarch64-linux-gnu"));
        assert_eq!(parsed.loaded_blobs(Some("aarch64-linux-gnu")), own);
        for none in [None, Some("armv7-linux-gnueabihf")] {
            assert!(parsed.blobs_for(none).is_empty());
        }
        insta::assert_snapshot!("engine_pack_v1", String::from_utf8(bytes).unwrap());
    }

    #[test]
    fn a_withdrawal_says_so_twice() {
        let mut none = pack();
        none.engine = Some(EngineCard { api: 0, libraries: vec![] });
        let parsed = Manifest::parse(&none.to_bytes()).unwrap();
        assert!(parsed.engine.as_ref().unwrap().is_withdrawal() && parsed.blobs().is_empty());
        assert!(!pack().engine.unwrap().is_withdrawal());
    }

    #[test]
    fn every_mistake_of_a_pack_is_named() {
        type Change = fn(&mut Manifest);
        let cases: [(Change, &str); 9] = [
            (|m| m.engine = None, "is missing"),
            (|m| m.kind = Kind::Model, "belongs to a bundle of kind"),
            (|m| m.model.name = "digits".parse().unwrap(), "no engine that agents know"),
            (|m| m.engine.as_mut().unwrap().api = 0, "at least 1"),
            (|m| m.engine.as_mut().unwrap().libraries.clear(), "at least one entry"),
            (|m| m.engine.as_mut().unwrap().libraries[0].target = "armv7".into(), "is none of"),
            (|m| m.engine.as_mut().unwrap().libraries[1].target = TARGETS[0].into(), "named twice"),
            (|m| m.engine.as_mut().unwrap().libraries[0].blob.size = 0, "not 1 to"),
            (|m| m.labels.push("seven".into()), "nothing of a model"),
        ];
        for (change, words) in cases {
            let mut bad = pack();
            change(&mut bad);
            let wrong = Manifest::parse(&bad.to_bytes()).unwrap_err();
            assert!(wrong.iter().any(|w| w.to_string().contains(words)), "{words}: {wrong:?}");
        }
        let mut model = manifest::tests::sample();
        model.model.name = "onnxruntime".parse().unwrap();
        assert!(Manifest::parse(&model.to_bytes()).is_err(), "the name of an engine is not a model's");
    }
}
