//! The engines of this device, and how a model is loaded with one of them.

use super::{
    Engine, LoadError, LoadedModel,
    onnxruntime::{self, OnnxRuntime, Standing},
    setup::{EngineName, Setup},
    tract::{self, TractEngine},
};
use edgefleet_shared::bundle::Interface;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// tract always; ONNX Runtime where its library is. Cheap to clone; opens the library only to load.
#[derive(Clone)]
pub struct Engines {
    tract: Arc<TractEngine>,
    library: Option<PathBuf>,
}

impl Engines {
    /// `library` is the one of the settings; without one the system's folders are looked through.
    pub fn new(library: Option<&Path>) -> Self {
        Self { tract: Arc::new(TractEngine::new()), library: onnxruntime::library_path(library) }
    }

    /// tract and nothing else.
    pub fn only_tract() -> Self {
        Self { tract: Arc::new(TractEngine::new()), library: None }
    }

    pub fn tract(&self) -> &TractEngine {
        &self.tract
    }

    pub fn library(&self) -> Option<&Path> {
        self.library.as_deref()
    }

    pub fn names(&self) -> Vec<EngineName> {
        let has = |engine: &EngineName| *engine == EngineName::Tract || self.library.is_some();
        EngineName::ALL.into_iter().filter(has).collect()
    }

    /// Threads an engine can use for one inference; `cores` where it has no limit of its own.
    pub fn threads_of(engine: EngineName, cores: usize) -> usize {
        match engine {
            // Its feature for threads is not built in.
            EngineName::Tract => 1,
            EngineName::Onnxruntime => cores,
        }
    }

    /// What tells one set of engines from another, without opening a library: of one that this process has
    /// opened, the file that it runs, whatever lies there now.
    pub fn identities(&self) -> Vec<String> {
        let mut all = vec![format!("{} {}", tract::NAME, tract::VERSION)];
        if let Some(path) = &self.library {
            let seen = match onnxruntime::standing(path).stamp() {
                Some(stamp) => stamp.to_string(),
                None => "missing".into(),
            };
            all.push(format!("{} {}: {seen}", onnxruntime::NAME, path.display()));
        }
        all
    }

    /// Why nothing new may be proved with an engine: a confined child would open another file than runs here.
    pub fn unprovable(&self, engine: EngineName) -> Option<String> {
        let path = self.library.as_deref().filter(|_| engine == EngineName::Onnxruntime)?;
        match onnxruntime::standing(path) {
            Standing::Replaced(_) => Some(format!(
                "`{}` was replaced since this agent opened it; what is there now counts after the next start",
                path.display()
            )),
            Standing::Missing | Standing::Present(_) => None,
        }
    }

    /// Loads the model file at `path`. An engine that is a library runs its code in this process from
    /// here on: a confined child must have come through with it before.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        &self,
        setup: Setup,
        path: &Path,
        interface: &Interface,
    ) -> Result<Box<dyn LoadedModel>, LoadError> {
        self.engine(setup)?.load(path, interface)
    }

    /// The engine of a setup, opened.
    ///
    /// # Errors
    /// [`LoadError`] if its library cannot be used.
    pub fn engine(&self, setup: Setup) -> Result<Arc<dyn Engine>, LoadError> {
        match (setup.engine, &self.library) {
            (EngineName::Tract, _) => Ok(self.tract.clone()),
            (EngineName::Onnxruntime, Some(library)) => {
                Ok(Arc::new(OnnxRuntime::open(library, setup.threads)?))
            }
            (EngineName::Onnxruntime, None) => Err(LoadError {
                code: edgefleet_shared::reported::RefusalCode::ProbeUnavailable,
                message: "there is no libonnxruntime on this device".into(),
                node: None,
                op: None,
            }),
        }
    }
}
