//! Engines are peers behind one trait: load a verified model file, run tensors through it.
//!
//! `tract` is the engine that is always there, `onnxruntime` is one where its library is; `pool` runs them
//! beside the async world, `probe` tries an unknown bundle in a confined child before anything here may load it,
//! `pack` knows which library of an engine pack is for this program, `piped` puts a bundle's own steps around its model, `golden` compares answers. `chooser` decides from that which engine runs a bundle; `choosing` does it.

pub mod aside;
pub mod bench;
pub mod chooser;
pub mod choosing;
mod engines;
pub mod golden;
pub mod onnxruntime;
pub mod pack;
pub mod piped;
pub mod pool;
pub(crate) mod priority;
pub mod probe;
mod request;
pub mod setup;
pub mod subject;
pub mod tract;

pub use engines::{Engines, LibraryFrom, PackLibrary};

use edgefleet_shared::{
    bundle::{Artifact, Interface, Precision, manifest::MAX_BLOB_BYTES},
    reported::RefusalCode,
    tensor::Tensor,
};
use std::{fs::File, io::Read, path::Path};

/// Turns a verified model file into something that can be run.
pub trait Engine: Send + Sync {
    fn name(&self) -> &'static str;
    fn version(&self) -> &'static str;
    /// Reads and prepares `model`. Inputs and outputs follow `interface`, bound by name.
    ///
    /// # Errors
    /// [`LoadError`] names the node and operator at fault where there is one.
    fn load(&self, model: &Path, interface: &Interface) -> Result<Box<dyn LoadedModel>, LoadError>;
}

/// A model ready to run; shared by all workers.
pub trait LoadedModel: Send + Sync {
    /// Runs one request. Inputs may come in any order and are matched by name; every call starts
    /// from a fresh state. Blocks; outputs come in the order of the interface.
    ///
    /// # Errors
    /// [`RunError`]; the model stays usable.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError>;

    /// Seconds by node of the graph over so many runs; `None` if the engine does not tell, or failed.
    fn node_times(&self, _inputs: &[Tensor], _runs: usize) -> Option<Vec<(String, f64)>> {
        None
    }
}

/// Why a model file cannot be served.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    pub code: RefusalCode,
    /// One sentence with names and numbers.
    pub message: String,
    pub node: Option<String>,
    pub op: Option<String>,
}

/// Why one request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The caller's tensors do not fit the interface: the caller can mend it.
    #[error("{0}")]
    BadInput(String),
    /// The engine failed or panicked; the message names the model and the engine's words.
    #[error("{0}")]
    Engine(String),
}

/// The bytes of a model file, at most as many as a bundle's blob may have.
fn read_model(path: &Path) -> Result<Vec<u8>, LoadError> {
    let fault = |code, message| LoadError { code, message, node: None, op: None };
    let unreadable = |reason: std::io::Error| {
        let message = format!("could not read model {}: {reason}", path.display());
        fault(RefusalCode::StorageFailed, message)
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_BLOB_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BLOB_BYTES {
        let message = format!("model file has more than {MAX_BLOB_BYTES} bytes");
        return Err(fault(RefusalCode::ModelInvalid, message));
    }
    Ok(bytes)
}

/// The variant of a model to start from: meant for this architecture, in the precision tract is best at.
/// F32 first: on tract, F16 is up to 300 times slower on x86-64 and int8 twice as slow.
pub fn choose_artifact(artifacts: &[Artifact]) -> Option<&Artifact> {
    artifacts.iter().filter(|artifact| is_meant_for_us(artifact)).min_by_key(|artifact| {
        match artifact.precision {
            Precision::F32 => 0,
            Precision::F16 => 1,
            Precision::Int8Qdq => 2,
        }
    })
}

pub(crate) fn is_meant_for_us(artifact: &Artifact) -> bool {
    artifact.targets.is_empty() || artifact.targets.iter().any(|t| is_this_machine(t))
}

/// `target` as `uname -m` names it.
fn is_this_machine(target: &str) -> bool {
    let arch = match target {
        "armv6l" | "armv7l" => "arm",
        "i386" | "i486" | "i586" | "i686" => "x86",
        other => other,
    };
    arch == std::env::consts::ARCH
}

/// Whether an engine's words, or its last ones on stderr, are those of a failed allocation.
pub(crate) fn is_out_of_memory(words: &str) -> bool {
    tract::is_out_of_memory(words) || onnxruntime::is_out_of_memory(words)
}

/// What a caught panic said.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without words").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::{bundle::BlobRef, digest::BlobDigest};

    #[test]
    fn a_device_takes_the_best_variant_meant_for_it_or_none() {
        let here = std::env::consts::ARCH;
        let artifact = |precision, target: &str| Artifact {
            format: "onnx".into(),
            precision,
            blob: BlobRef { digest: BlobDigest::of(b"x"), size: 1 },
            targets: (!target.is_empty()).then(|| target.to_owned()).into_iter().collect(),
        };
        use Precision::{F16, F32, Int8Qdq};
        for (offered, chosen) in [
            (vec![(Int8Qdq, ""), (F16, ""), (F32, "")], Some(F32)),
            (vec![(Int8Qdq, here), (F32, "s390x")], Some(Int8Qdq)),
            (vec![(F32, "s390x")], None),
            (vec![], None),
        ] {
            let artifacts: Vec<_> = offered.into_iter().map(|(p, target)| artifact(p, target)).collect();
            assert_eq!(choose_artifact(&artifacts).map(|a| a.precision), chosen, "{artifacts:?}");
        }
    }
}
