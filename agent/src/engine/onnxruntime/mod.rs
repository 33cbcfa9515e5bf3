//! ONNX Runtime, where a `libonnxruntime` is present: faster than tract on most convolutional networks
//! and transformers, and the only one here that gains from int8.
//!
//! Nothing of it is in the program: the library is opened at run time, from a path in the settings or
//! from the system's folders. Graphs go through the same inspection as for tract before the library
//! sees a byte: no external files, bounded sizes, the interface on both sides.

mod find;
mod library;
mod model;
mod session;
mod stamp;
mod tensors;
mod words;

pub use find::find;
pub use library::{LibraryError, OLDEST_MINOR};
pub use model::OrtModel;
pub use stamp::{Stamp, Standing};
pub(in crate::engine) use words::is_out_of_memory;

use super::{Engine, LoadError, LoadedModel, tract};
use edgefleet_shared::{
    bundle::{Interface, TensorSpec},
    reported::RefusalCode,
    tensor::{Datatype, Tensor},
};
use std::path::{Path, PathBuf};

pub const NAME: &str = "onnxruntime";

/// Loads ONNX files with an opened library.
#[derive(Clone)]
pub struct OnnxRuntime {
    library: &'static library::Library,
    threads: usize,
}

impl OnnxRuntime {
    /// Opens the library at `path`, whose code runs in this process from then on. `threads` is for one
    /// inference, at least 1.
    ///
    /// # Errors
    /// [`LibraryError`].
    pub fn open(path: &Path, threads: usize) -> Result<Self, LibraryError> {
        Ok(Self { library: library::open(path)?, threads: threads.max(1) })
    }

    /// The same library with another number of threads for one inference.
    #[must_use]
    pub fn with_threads(&self, threads: usize) -> Self {
        Self { library: self.library, threads: threads.max(1) }
    }

    /// Makes the library look at the processor and set itself up, by running a matrix product of 2 by 2:
    /// a confined process that goes on with less can do neither later.
    ///
    /// # Errors
    /// A library that cannot even do that, in its words.
    pub fn warm_up(&self) -> Result<(), LoadError> {
        let side = |name: &str| {
            vec![TensorSpec { name: name.into(), datatype: Datatype::Fp32, shape: vec![-1, -1] }]
        };
        let interface = Interface { inputs: side("x"), outputs: side("y") };
        let (model, _) = self.with_threads(1).load_bytes(tract::product_file(), &interface)?;
        let failed = |words: String| words::load_error(self.library.version, &words);
        let input = Tensor::new("x", Datatype::Fp32, vec![2, 2], vec![0; 16].into());
        let input = input.map_err(|e| failed(e.to_string()))?;
        model.run(&[input]).map(drop).map_err(|e| failed(e.to_string()))
    }

    /// Loads a model from its bytes; for a confined process that cannot open files.
    ///
    /// # Errors
    /// [`LoadError`] with the node and operator at fault where ONNX Runtime names them.
    pub fn load_bytes(
        &self,
        model: Vec<u8>,
        interface: &Interface,
    ) -> Result<(OrtModel, tract::Inspection), LoadError> {
        let inspection = tract::inspect_for(&model, interface)?;
        let model = OrtModel::prepare(self.library, self.threads, &model, interface)?;
        Ok((model, inspection))
    }
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }
    fn version(&self) -> &'static str {
        self.library.version
    }
    fn load(&self, model: &Path, interface: &Interface) -> Result<Box<dyn LoadedModel>, LoadError> {
        let (model, _) = self.load_bytes(super::read_model(model)?, interface)?;
        Ok(Box::new(model))
    }
}

/// A library that cannot be used is a refusal of the engine, not of the model.
impl From<LibraryError> for LoadError {
    fn from(error: LibraryError) -> Self {
        Self { code: RefusalCode::ProbeUnavailable, message: error.to_string(), node: None, op: None }
    }
}

/// Which library this process would run from `path`, without running anything of it.
pub fn standing(path: &Path) -> Standing {
    library::standing(path)
}

/// The library to use: the one in the settings, or what the system has.
pub fn library_path(configured: Option<&Path>) -> Option<PathBuf> {
    match configured {
        Some(path) => Some(path.to_owned()),
        None if cfg!(target_feature = "crt-static") => None,
        None => find(),
    }
}
