//! Facts that HTTP and gRPC both tell about the server and its models.

use super::slots::Active;
use edgefleet_shared::{bundle::TensorSpec, tensor::Datatype};

pub(super) const NAME: &str = "edgefleet-agent";
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Engine and format of a model, as `onnxruntime_onnx`.
pub(super) fn platform(active: &Active) -> String {
    format!("{}_onnx", backend(active))
}

/// The engine that answers.
pub(super) fn backend(active: &Active) -> &'static str {
    active.served.engine.as_str()
}

/// Extensions of the protocol; load tools read them.
pub(super) fn extensions(shared_memory: bool) -> Vec<&'static str> {
    let mut extensions = vec![
        "binary_tensor_data",
        "classification",
        "model_repository",
        "model_configuration",
        "statistics",
        "parameters",
        "trace",
        "logging",
    ];
    if shared_memory {
        extensions.push("system_shared_memory");
    }
    extensions
}

/// A tensor as the model's configuration has it: without the batch.
pub(super) struct ConfigTensor<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: Datatype,
    pub(super) dims: &'a [i64],
    /// The format wants at least one dimension; a reshape to none then says that there is none.
    pub(super) is_scalar: bool,
}

pub(super) fn config_tensors<'a>(
    specs: &'a [TensorSpec],
    batched: bool,
) -> impl Iterator<Item = ConfigTensor<'a>> {
    specs.iter().map(move |spec| {
        let dims = if batched { spec.shape.get(1..).unwrap_or_default() } else { &spec.shape[..] };
        let is_scalar = dims.is_empty();
        let dims = if is_scalar { &[1][..] } else { dims };
        ConfigTensor { name: &spec.name, datatype: spec.datatype, dims, is_scalar }
    })
}

/// `max_batch_size`: 0 for a model whose tensors do not all begin with the batch.
pub(super) fn max_batch(active: &Active) -> usize {
    if active.is_batched() { active.served.manifest.limits.batch_max } else { 0 }
}

/// State and reason in the repository's index.
pub(super) fn state(active: &Active) -> (&'static str, &'static str) {
    if active.is_available() { ("READY", "") } else { ("UNAVAILABLE", "unloaded by hand") }
}
