//! Engines are peers behind one trait: load a verified model file, run tensors through it.

use edgefleet_shared::{bundle::Interface, reported::RefusalCode, tensor::Tensor};
use std::path::Path;

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
