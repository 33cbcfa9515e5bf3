//! Something to run from the command line: a bundle folder, or a model file that declares its own
//! interface.

use super::{
    Engine, LoadError, LoadedModel, RunError, is_meant_for_us, piped, probe::BundleFiles, read_model, tract,
};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{Artifact, BlobRef, GoldenSample, Interface, Manifest, PipelineSpec, Precision, TensorSpec},
    digest::BlobDigest,
    reported::RefusalCode,
    tensor::{Datatype, Tensor, element_count},
};
use std::path::{Path, PathBuf};

/// Largest made-up input in bytes.
const MAX_INPUT: usize = 1 << 30;

/// A model with its variants and one input.
pub struct Subject {
    /// The bundle's name, or the file's.
    pub name: String,
    /// The tensors outside of the bundle's own steps.
    pub interface: Interface,
    /// The model's own.
    inner: Interface,
    pipeline: Option<PipelineSpec>,
    labels: Vec<String>,
    pub artifacts: Vec<Artifact>,
    /// Most rows of one request.
    pub batch_max: usize,
    files: Vec<(Precision, PathBuf)>,
    /// Of a bundle.
    pub manifest: Option<Manifest>,
    /// The first golden input, or made-up numbers.
    pub input: Vec<Tensor>,
}

fn fault(code: RefusalCode, message: String) -> LoadError {
    LoadError { code, message, node: None, op: None }
}

impl Subject {
    /// A folder with `manifest.json` is a bundle, any other path a model in f32.
    ///
    /// # Errors
    /// [`LoadError`] names what cannot be read.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        match path.join("manifest.json").is_file() {
            true => Self::bundle(path),
            false => Self::model(path),
        }
    }

    fn bundle(folder: &Path) -> Result<Self, LoadError> {
        let files = BundleFiles::in_folder(folder);
        let manifest = files.manifest().map_err(|text| fault(RefusalCode::ManifestInvalid, text))?;
        let refused = |f: edgefleet_shared::probe::ProbeFailure| fault(f.code, f.message);
        files.check(&manifest).map_err(refused)?;
        let path = |blob: &BlobRef| files.blobs.join(blob.digest.to_hex());
        let artifacts: Vec<Artifact> =
            manifest.artifacts.iter().filter(|artifact| is_meant_for_us(artifact)).cloned().collect();
        let input = match manifest.golden.first() {
            None => made_up(manifest.external_inputs())?,
            Some(golden) => {
                let bytes = Bytes::from(read_model(&path(&golden.blob))?);
                let sample = GoldenSample::parse(&bytes)
                    .map_err(|e| fault(RefusalCode::ManifestInvalid, e.to_string()))?;
                sample.inputs
            }
        };
        Ok(Self {
            name: manifest.name().to_string(),
            files: artifacts.iter().map(|a| (a.precision, path(&a.blob))).collect(),
            interface: manifest.external(),
            inner: manifest.interface.clone(),
            pipeline: manifest.pipeline.clone(),
            labels: manifest.labels.clone(),
            batch_max: manifest.limits.batch_max,
            artifacts,
            input,
            manifest: Some(manifest),
        })
    }

    fn model(path: &Path) -> Result<Self, LoadError> {
        let bytes = read_model(path)?;
        let interface = tract::declared_interface(&bytes)?;
        let blob = BlobRef { digest: BlobDigest::of(b""), size: bytes.len() as u64 };
        let artifact = Artifact { format: "onnx".into(), precision: Precision::F32, blob, targets: vec![] };
        let name = path.file_stem().unwrap_or(path.as_os_str());
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            input: made_up(&interface.inputs)?,
            inner: interface.clone(),
            interface,
            pipeline: None,
            labels: vec![],
            batch_max: 1 << 16,
            artifacts: vec![artifact],
            files: vec![(Precision::F32, path.to_owned())],
            manifest: None,
        })
    }

    /// The model of a variant with the steps around it.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&self, engine: &dyn Engine, file: &Path) -> Result<Box<dyn LoadedModel>, LoadError> {
        let model = engine.load(file, &self.inner)?;
        piped::around(model, self.pipeline.as_ref(), &self.inner, &self.labels)
    }

    /// The model file of a variant.
    pub fn file(&self, precision: Precision) -> Option<&Path> {
        self.files.iter().find(|(known, _)| *known == precision).map(|(_, path)| path.as_path())
    }

    /// The input as a batch of `rows`, its first row again and again. `None` if the model takes no batch
    /// of that size.
    ///
    /// # Errors
    /// The bytes do not make the tensor they should.
    pub fn batch(&self, rows: usize) -> Result<Option<Vec<Tensor>>, RunError> {
        let batched = |spec: &TensorSpec| spec.shape.first() == Some(&-1);
        if rows > 1 && (rows > self.batch_max || !self.interface.inputs.iter().all(batched)) {
            return Ok(None);
        }
        let mut all = Vec::new();
        for tensor in &self.input {
            let varies = self.interface.inputs.iter().any(|spec| spec.name == tensor.name() && batched(spec));
            let had = tensor.shape().first().copied().unwrap_or(1).max(1);
            let row = match (varies, tensor.datatype().size()) {
                (false, _) => {
                    all.push(tensor.clone());
                    continue;
                }
                (true, None) if had > 1 => return Ok(None),
                (true, _) => &tensor.data()[..tensor.data().len() / had],
            };
            let mut shape = tensor.shape().to_vec();
            shape[0] = rows;
            let data = Bytes::from(row.repeat(rows));
            let tensor = Tensor::new(tensor.name(), tensor.datatype(), shape, data);
            all.push(tensor.map_err(|e| RunError::BadInput(e.to_string()))?);
        }
        Ok(Some(all))
    }
}

/// Numbers from 0 to 1, small whole numbers, and the text `a`: the same at every call. Open dimensions
/// are 1.
fn made_up(specs: &[TensorSpec]) -> Result<Vec<Tensor>, LoadError> {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed >> 40 // 24 bits, which a float holds exactly
    };
    let mut all = Vec::new();
    for spec in specs {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(1)).collect();
        let fits = element_count(&shape).filter(|count| *count <= MAX_INPUT / 8);
        let count = fits.ok_or_else(|| {
            let text = format!("input `{}` of shape {:?} is too large to make up", spec.name, spec.shape);
            fault(RefusalCode::InterfaceMismatch, text)
        })?;
        let mut raw = Vec::new();
        for _ in 0..count {
            let number = next();
            let share = number as f32 / (1 << 24) as f32;
            match spec.datatype {
                Datatype::Fp32 => raw.extend(share.to_le_bytes()),
                Datatype::Fp64 => raw.extend(f64::from(share).to_le_bytes()),
                Datatype::Fp16 => raw.extend(half::f16::from_f32(share).to_le_bytes()),
                Datatype::Bf16 => raw.extend(half::bf16::from_f32(share).to_le_bytes()),
                Datatype::Bytes => raw.extend(b"\x01\0\0\0a"),
                whole => {
                    let size = whole.size().unwrap_or(1);
                    raw.push((number % 2) as u8);
                    raw.extend(std::iter::repeat_n(0, size - 1));
                }
            }
        }
        let tensor = Tensor::new(&spec.name, spec.datatype, shape, Bytes::from(raw));
        all.push(tensor.map_err(|e| fault(RefusalCode::InterfaceMismatch, e.to_string()))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_inputs_fit_every_datatype_and_are_always_the_same() {
        let all = [
            Datatype::Bool,
            Datatype::Uint8,
            Datatype::Int64,
            Datatype::Fp16,
            Datatype::Bf16,
            Datatype::Fp32,
            Datatype::Fp64,
            Datatype::Bytes,
        ];
        let specs: Vec<TensorSpec> = all
            .into_iter()
            .map(|datatype| TensorSpec { name: datatype.to_string(), datatype, shape: vec![-1, 3] })
            .collect();
        let tensors = made_up(&specs).unwrap();
        assert_eq!(tensors, made_up(&specs).unwrap());
        assert!(tensors.iter().all(|tensor| tensor.shape() == [1, 3]));
        let huge = TensorSpec { name: "x".into(), datatype: Datatype::Fp32, shape: vec![1 << 31, 1 << 31] };
        assert!(made_up(&[huge]).is_err());
    }
}
