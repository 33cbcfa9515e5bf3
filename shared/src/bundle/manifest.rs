//! The manifest: names every blob of a bundle by digest and size before the first byte is fetched.

use super::{
    PipelineSpec,
    engine::{self, EngineCard, Kind},
};
use crate::{
    digest::{BlobDigest, BundleDigest},
    ids::{BundleName, ModelName},
    tensor::Datatype,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The one schema this code speaks; another number is another major version and is refused.
pub const SCHEMA: u32 = 1;
/// Largest manifest in bytes: a manifest lists blobs, it does not hold them.
pub const MAX_MANIFEST_BYTES: u64 = 256 * 1024;
/// Largest single blob of a bundle, 4 GiB: above it an update over a field link is no update.
pub const MAX_BLOB_BYTES: u64 = 4 << 30;
const MAX_ENTRIES: usize = 64;
const MAX_LABELS: usize = 100_000;

/// Why bytes are not a manifest this agent can use. All mistakes are returned at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest has {found} bytes, {limit} are allowed")]
    TooLarge { found: u64, limit: u64 },
    #[error("manifest is not valid JSON of the expected form: {reason}")]
    Malformed { reason: String },
    #[error("manifest schema {found} is not understood, this program knows {known}")]
    UnknownSchema { found: u64, known: u32 },
    #[error("manifest `{field}`: {reason}")]
    Invalid { field: String, reason: String },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub schema: u32,
    #[serde(default, skip_serializing_if = "Kind::is_model")]
    pub kind: Kind,
    pub model: ModelCard,
    /// What an engine pack brings; absent in a model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineCard>,
    /// The same model in one or more precisions; a device picks one it can run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    #[serde(default, skip_serializing_if = "Interface::is_empty")]
    pub interface: Interface,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Class names by index; empty if the answer is no class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Ordered operations around the model; absent: clients send what the model takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<PipelineSpec>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<GoldenRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BlobRef>,
    #[serde(default, skip_serializing_if = "Limits::is_unset")]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lineage: BTreeMap<String, String>,
    #[serde(default)]
    pub compat: Compat,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCard {
    pub name: ModelName,
    pub counter: u64,
    /// The author's own version text, for people.
    pub version: String,
    #[serde(default)]
    pub task: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub license: String,
    #[serde(default)]
    pub owner: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    F32,
    F16,
    /// Quantise/dequantise pairs with u8 activations and s8 weights.
    Int8Qdq,
}

/// A blob by digest and exact size in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    pub digest: BlobDigest,
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// `onnx` is the one format of schema 1.
    pub format: String,
    pub precision: Precision,
    #[serde(flatten)]
    pub blob: BlobRef,
    /// Architectures it is meant for, as `uname -m` names them; empty is any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
}

/// The tensors of a model; what clients see, unless a pipeline stands around it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub inputs: Vec<TensorSpec>,
    pub outputs: Vec<TensorSpec>,
}

impl Interface {
    fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    pub name: String,
    pub datatype: Datatype,
    /// -1 is variable; only the first dimension (the batch) and others a model truly leaves open.
    pub shape: Vec<i64>,
}

/// How an answer is read as a class, for telemetry and feedback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prediction {
    /// Integer output that holds the class index of each row; absent: arg max of `scores`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Floating-point output `[batch, classes]` whose maximum is the confidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenRef {
    pub name: String,
    #[serde(flatten)]
    pub blob: BlobRef,
    /// An output element `y` passes if `|y - expected| <= atol + rtol * |expected|`.
    pub rtol: f64,
    pub atol: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory the probe may use for data in bytes (RLIMIT_DATA), engine included.
    pub peak_memory_bytes: u64,
    /// 95th percentile of one inference of batch 1, in milliseconds.
    pub p95_latency_ms: f64,
    /// Largest batch in rows that one request may carry.
    pub batch_max: usize,
}

impl Limits {
    /// As in an engine pack. No model passes with it.
    fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compat {
    /// Hardware classes that may take the bundle; empty is any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hardware: Vec<String>,
}

impl Manifest {
    pub fn name(&self) -> BundleName {
        BundleName { model: self.model.name.clone(), counter: self.model.counter }
    }

    /// The bytes that are hashed, signed, stored and sent. Written once by the builder; everybody
    /// else keeps the bytes they received, so no canonical JSON is needed.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default() // plain data: cannot fail
    }

    /// Parses bytes whose digest the caller has already checked against a signed release.
    ///
    /// # Errors
    /// Every mistake found, not only the first.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<ManifestError>> {
        let found = bytes.len() as u64;
        if found > MAX_MANIFEST_BYTES {
            return Err(vec![ManifestError::TooLarge { found, limit: MAX_MANIFEST_BYTES }]);
        }
        let malformed = |e: serde_json::Error| vec![ManifestError::Malformed { reason: e.to_string() }];
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.schema != u64::from(SCHEMA) {
            return Err(vec![ManifestError::UnknownSchema { found: head.schema, known: SCHEMA }]);
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        let wrong = manifest.mistakes();
        if wrong.is_empty() { Ok(manifest) } else { Err(wrong) }
    }

    pub fn digest_of(bytes: &[u8]) -> BundleDigest {
        BundleDigest::of(bytes)
    }

    /// What clients send, golden samples included.
    pub fn external_inputs(&self) -> &[TensorSpec] {
        self.pipeline.as_ref().map_or(&self.interface.inputs, |pipeline| &pipeline.inputs)
    }

    /// What clients get, golden samples included; `prediction` names tensors of these.
    pub fn external_outputs(&self) -> &[TensorSpec] {
        self.pipeline.as_ref().map_or(&self.interface.outputs, |pipeline| &pipeline.outputs)
    }

    /// Both, as the interface that clients see.
    pub fn external(&self) -> Interface {
        Interface { inputs: self.external_inputs().to_vec(), outputs: self.external_outputs().to_vec() }
    }

    /// Every blob the bundle needs besides the manifest, each once.
    pub fn blobs(&self) -> Vec<&BlobRef> {
        let all = self
            .artifacts
            .iter()
            .map(|artifact| &artifact.blob)
            .chain(self.golden.iter().map(|golden| &golden.blob))
            .chain(&self.baseline)
            .chain(self.engine.iter().flat_map(|engine| &engine.libraries).map(|library| &library.blob));
        let mut seen = BTreeSet::new();
        all.filter(|blob| seen.insert(blob.digest)).collect()
    }

    /// The blobs that a device built for `target` fetches: of an engine pack its own library alone.
    pub fn blobs_for(&self, target: Option<&str>) -> Vec<&BlobRef> {
        match &self.engine {
            Some(engine) => engine.library(target).map(|library| &library.blob).into_iter().collect(),
            None => self.blobs(),
        }
    }

    /// Those of [`blobs_for`](Self::blobs_for) that are opened to serve: models or the library.
    pub fn loaded_blobs(&self, target: Option<&str>) -> Vec<&BlobRef> {
        match &self.engine {
            Some(_) => self.blobs_for(target),
            None => self.artifacts.iter().map(|artifact| &artifact.blob).collect(),
        }
    }

    /// What is wrong with the values, beyond their form. Empty if usable.
    pub fn mistakes(&self) -> Vec<ManifestError> {
        let mut wrong = Vec::new();
        let mut no = |field: &str, reason: String| {
            wrong.push(ManifestError::Invalid { field: field.to_owned(), reason });
        };
        if self.model.counter == 0 {
            no("model.counter", "starts at 1".into());
        }
        for (field, reason) in engine::mistakes(self) {
            no(field, reason);
        }
        for blob in self.blobs() {
            if blob.size == 0 || blob.size > MAX_BLOB_BYTES {
                no("size", format!("of {} is {}, not 1 to {MAX_BLOB_BYTES}", blob.digest, blob.size));
            }
        }
        if self.kind == Kind::Engine {
            return wrong; // what follows is about models
        }
        for (field, len, limit) in [
            ("artifacts", self.artifacts.len(), MAX_ENTRIES),
            ("golden", self.golden.len(), MAX_ENTRIES),
            ("interface.inputs", self.interface.inputs.len(), MAX_ENTRIES),
            ("interface.outputs", self.interface.outputs.len(), MAX_ENTRIES),
        ] {
            if len == 0 {
                no(field, "needs at least one entry".into());
            } else if len > limit {
                no(field, format!("has {len} entries, at most {limit} are allowed"));
            }
        }
        if self.labels.len() > MAX_LABELS {
            no("labels", format!("has {} entries, at most {MAX_LABELS} are allowed", self.labels.len()));
        }
        for (index, artifact) in self.artifacts.iter().enumerate() {
            if artifact.format != "onnx" {
                no(&format!("artifacts[{index}].format"), format!("is `{}`, not `onnx`", artifact.format));
            }
        }
        for (side, tensors) in [("inputs", &self.interface.inputs), ("outputs", &self.interface.outputs)] {
            let mut names = BTreeSet::new();
            for spec in tensors {
                let field = format!("interface.{side}.{}", spec.name);
                if spec.name.is_empty() || spec.name.len() > 256 {
                    no(&field, "a tensor name has 1 to 256 bytes".into());
                }
                if !names.insert(&spec.name) {
                    no(&field, "is named twice".into());
                }
                if spec.shape.len() > 8 || spec.shape.iter().any(|dim| *dim < -1 || *dim > 1 << 31) {
                    no(&field, format!("shape {:?} is out of bounds", spec.shape));
                }
            }
        }
        for golden in &self.golden {
            let sound = |t: f64| t.is_finite() && t >= 0.0;
            if !sound(golden.rtol) || !sound(golden.atol) {
                no(&format!("golden.{}", golden.name), "tolerances must be finite and not negative".into());
            }
        }
        if !(self.limits.p95_latency_ms.is_finite() && self.limits.p95_latency_ms > 0.0) {
            no("limits.p95_latency_ms", "must be above 0".into());
        }
        if !(1..=65_536).contains(&self.limits.batch_max) {
            no("limits.batch_max", format!("is {}, not 1 to 65536", self.limits.batch_max));
        }
        for (field, reason) in self.pipeline.iter().flat_map(PipelineSpec::mistakes) {
            no(&field, reason);
        }
        if let Some(prediction) = &self.prediction {
            let known = |name: &Option<String>| {
                name.as_ref().is_none_or(|name| self.external_outputs().iter().any(|o| o.name == *name))
            };
            if !known(&prediction.class) || !known(&prediction.scores) {
                no("prediction", "names an output that the interface lacks".into());
            }
        }
        wrong
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bundle::pipeline;

    pub(crate) fn sample() -> Manifest {
        let blob = |text: &str| BlobRef { digest: BlobDigest::of(text.as_bytes()), size: text.len() as u64 };
        Manifest {
            schema: SCHEMA,
            kind: Kind::Model,
            engine: None,
            model: ModelCard {
                name: "digits".parse().unwrap(),
                counter: 1,
                version: "1.0.0".into(),
                task: "classification".into(),
                description: String::new(),
                license: String::new(),
                owner: String::new(),
            },
            artifacts: vec![Artifact {
                format: "onnx".into(),
                precision: Precision::F32,
                blob: blob("model"),
                targets: vec![],
            }],
            interface: Interface {
                inputs: vec![TensorSpec {
                    name: "image".into(),
                    datatype: Datatype::Fp32,
                    shape: vec![-1, 64],
                }],
                outputs: vec![TensorSpec {
                    name: "label".into(),
                    datatype: Datatype::Int64,
                    shape: vec![-1],
                }],
            },
            prediction: Some(Prediction { class: Some("label".into()), scores: None }),
            labels: (0..10).map(|n| n.to_string()).collect(),
            pipeline: None,
            golden: vec![GoldenRef { name: "seven".into(), blob: blob("golden"), rtol: 1e-3, atol: 1e-4 }],
            baseline: None,
            limits: Limits { peak_memory_bytes: 64 << 20, p95_latency_ms: 50.0, batch_max: 32 },
            lineage: BTreeMap::new(),
            compat: Compat::default(),
        }
    }

    #[test]
    fn a_sound_manifest_survives_the_round_trip() {
        let bytes = sample().to_bytes();
        assert_eq!(Manifest::parse(&bytes).unwrap(), sample());
        insta::assert_snapshot!("manifest_v1", String::from_utf8(bytes).unwrap());
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let mut bad = sample();
        bad.model.counter = 0;
        bad.golden.clear();
        bad.limits.batch_max = 0;
        bad.artifacts[0].format = "pickle".into();
        let step =
            pipeline::Step { op: pipeline::Op::Crop { center: None, area: None }, from: None, to: None };
        let Interface { inputs, outputs } = bad.external();
        bad.pipeline = Some(PipelineSpec { inputs, outputs, pre: vec![step], post: vec![] });
        let wrong = Manifest::parse(&bad.to_bytes()).unwrap_err();
        assert_eq!(wrong.len(), 5, "{wrong:?}");
    }

    #[test]
    fn another_schema_is_refused_before_its_fields_are_read() {
        let wrong = Manifest::parse(br#"{"schema": 2, "anything": true}"#).unwrap_err();
        assert_eq!(wrong, [ManifestError::UnknownSchema { found: 2, known: 1 }]);
        assert!(matches!(Manifest::parse(b"not json").unwrap_err()[0], ManifestError::Malformed { .. }));
    }
}
