//! Bundle folders and ONNX files for the tests of the engine and the probe.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part

pub mod engine;
pub mod onnx;
pub mod ort;
pub mod parity;

use bytes::Bytes;
use edgefleet_shared::{
    bundle::{
        Artifact, BlobRef, Compat, GoldenRef, GoldenSample, Interface, Limits, Manifest, ModelCard,
        PipelineSpec, Precision, TensorSpec,
    },
    digest::BlobDigest,
    tensor::{Datatype, Tensor},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

pub fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

pub fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(models().join("fixtures").join(name)).unwrap()
}

pub fn spec(name: &str, datatype: Datatype, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.into(), datatype, shape: shape.to_vec() }
}

/// The interface of `digits`, which most fixtures share.
pub fn digits_interface() -> Interface {
    Interface {
        inputs: vec![spec("image", Datatype::Fp32, &[-1, 64])],
        outputs: vec![
            spec("probabilities", Datatype::Fp32, &[-1, 10]),
            spec("label", Datatype::Int64, &[-1]),
        ],
    }
}

pub fn floats(name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    let raw: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Tensor::new(name, Datatype::Fp32, shape.to_vec(), Bytes::from(raw)).unwrap()
}

/// An 8 x 8 picture out of focus: each pixel the mean of its neighbourhood.
pub fn blurred(image: &[f32]) -> Vec<f32> {
    let at = |y: isize, x: isize| image[(y.clamp(0, 7) * 8 + x.clamp(0, 7)) as usize];
    let around = (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (dy, dx)));
    let mean = |y: isize, x: isize| around.clone().map(|(dy, dx)| at(y + dy, x + dx)).sum::<f32>() / 9.0;
    (0..64).map(|n| mean(n / 8, n % 8)).collect()
}

/// Black for white; pixels are 0 to 16.
pub fn inverted(image: &[f32]) -> Vec<f32> {
    image.iter().map(|x| 16.0 - x).collect()
}

pub fn values(tensor: &Tensor) -> Vec<f32> {
    assert_eq!(tensor.datatype(), Datatype::Fp32);
    tensor.data().chunks_exact(4).map(|raw| f32::from_le_bytes(raw.try_into().unwrap())).collect()
}

#[derive(Deserialize)]
struct Sample {
    inputs: Vec<Entry>,
    outputs: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Entry {
    fn tensor(self) -> Tensor {
        let raw: Vec<u8> = match self.datatype {
            Datatype::Fp32 => self.data.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            Datatype::Int64 => self.data.iter().flat_map(|v| (*v as i64).to_le_bytes()).collect(),
            other => panic!("no golden sample has {other}"),
        };
        Tensor::new(self.name, self.datatype, self.shape, Bytes::from(raw)).unwrap()
    }
}

/// The golden samples of a folder of JSON files, by name.
pub fn golden(folder: &Path) -> Vec<(String, GoldenSample)> {
    let mut samples: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let sample: Sample = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let tensors = |list: Vec<Entry>| list.into_iter().map(Entry::tensor).collect();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            (name, GoldenSample { inputs: tensors(sample.inputs), outputs: tensors(sample.outputs) })
        })
        .collect();
    samples.sort_by(|a, b| a.0.cmp(&b.0));
    samples
}

/// A bundle to be written to a folder; change any part before [`Source::write`].
pub struct Source {
    pub model: Vec<u8>,
    pub interface: Interface,
    pub pipeline: Option<PipelineSpec>,
    pub labels: Vec<String>,
    pub golden: Vec<(String, GoldenSample)>,
    pub limits: Limits,
    pub targets: Vec<String>,
    pub baseline: Option<Vec<u8>>,
}

impl Source {
    /// `digits` in the version of one of the folders `v*`.
    pub fn digits(version: u32) -> Self {
        let folder = models().join(format!("digits/v{version}"));
        let toml: toml::Table = std::fs::read_to_string(folder.join("bundle.toml")).unwrap().parse().unwrap();
        let limits = toml["limits"].clone().try_into().unwrap();
        let specs = |side: &str| toml[side].clone().try_into::<Vec<TensorSpec>>().unwrap();
        Self {
            model: std::fs::read(folder.join("model.onnx")).unwrap(),
            interface: Interface { inputs: specs("input"), outputs: specs("output") },
            pipeline: None,
            labels: vec![],
            golden: golden(&folder.join("golden")),
            limits,
            targets: vec![],
            baseline: None,
        }
    }

    /// Another model behind the interface and golden samples of `digits`.
    pub fn fixture(name: &str) -> Self {
        Self { model: fixture(name), ..Self::digits(1) }
    }

    pub fn write(&self) -> Bundle {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let blob = |bytes: &[u8]| {
            let digest = BlobDigest::of(bytes);
            std::fs::write(blobs.join(digest.to_hex()), bytes).unwrap();
            BlobRef { digest, size: bytes.len() as u64 }
        };
        let manifest = Manifest {
            schema: 1,
            kind: Default::default(),
            engine: None,
            model: ModelCard {
                name: "digits".parse().unwrap(),
                counter: 7,
                version: "7".into(),
                task: String::new(),
                description: String::new(),
                license: String::new(),
                owner: String::new(),
            },
            artifacts: vec![Artifact {
                format: "onnx".into(),
                precision: Precision::F32,
                blob: blob(&self.model),
                targets: self.targets.clone(),
            }],
            interface: self.interface.clone(),
            prediction: None,
            labels: self.labels.clone(),
            pipeline: self.pipeline.clone(),
            golden: self
                .golden
                .iter()
                .map(|(name, sample)| GoldenRef {
                    name: name.clone(),
                    blob: blob(&sample.to_bytes()),
                    rtol: 1e-3,
                    atol: 1e-4,
                })
                .collect(),
            baseline: self.baseline.as_deref().map(blob),
            limits: self.limits.clone(),
            lineage: Default::default(),
            compat: Compat::default(),
        };
        std::fs::write(folder.path().join("manifest.json"), manifest.to_bytes()).unwrap();
        Bundle { folder, manifest }
    }
}

pub struct Bundle {
    pub folder: tempfile::TempDir,
    pub manifest: Manifest,
}

impl Bundle {
    pub fn blob(&self, blob: &BlobRef) -> PathBuf {
        self.folder.path().join("blobs/sha256").join(blob.digest.to_hex())
    }
}
