//! The engines of this device, and how a model is loaded with one of them.

use super::{
    Engine, LoadError, LoadedModel,
    onnxruntime::{self, OnnxRuntime, Standing},
    setup::{EngineName, Setup},
    tract::{self, TractEngine},
};
use edgefleet_shared::bundle::Interface;
use parking_lot::RwLock;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// tract always; ONNX Runtime where its library is. Cheap to clone; opens the library only to load.
#[derive(Clone)]
pub struct Engines {
    tract: Arc<TractEngine>,
    /// Of the settings, or of the system.
    library: Option<PathBuf>,
    /// What the settings name goes before every pack, what the system has after it.
    is_configured: bool,
    /// Shared by all clones.
    pack: Arc<RwLock<Option<PackLibrary>>>,
}

/// The library of the engine pack in force. It has been opened in a confined child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackLibrary {
    pub path: PathBuf,
    /// As signed, and as the library said itself.
    pub version: String,
}

/// Where the library in use comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryFrom {
    Settings,
    Pack,
    System,
}

impl LibraryFrom {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Pack => "pack",
            Self::System => "system",
        }
    }
}

impl Engines {
    /// `library` is the one of the settings; without one the system's folders are looked through.
    pub fn new(library: Option<&Path>) -> Self {
        let is_configured = library.is_some();
        Self { library: onnxruntime::library_path(library), is_configured, ..Self::only_tract() }
    }

    /// tract and nothing else, until a pack comes.
    pub fn only_tract() -> Self {
        let tract = Arc::new(TractEngine::new());
        Self { tract, library: None, is_configured: false, pack: Arc::default() }
    }

    /// From now on this pack's library counts, or none.
    pub fn set_pack(&self, pack: Option<PackLibrary>) {
        *self.pack.write() = pack;
    }

    pub fn pack(&self) -> Option<PackLibrary> {
        self.pack.read().clone()
    }

    pub fn library_from(&self) -> Option<LibraryFrom> {
        if self.is_configured {
            return Some(LibraryFrom::Settings);
        }
        let system = self.library.is_some().then_some(LibraryFrom::System);
        if self.pack.read().is_some() { Some(LibraryFrom::Pack) } else { system }
    }

    pub fn tract(&self) -> &TractEngine {
        &self.tract
    }

    /// The library in use: that of the settings, of the pack in force, or of the system.
    pub fn library(&self) -> Option<PathBuf> {
        let pack = || self.pack.read().as_ref().map(|pack| pack.path.clone());
        let packed = if self.is_configured { None } else { pack() };
        packed.or_else(|| self.library.clone())
    }

    pub fn names(&self) -> Vec<EngineName> {
        let has = |engine: &EngineName| *engine == EngineName::Tract || self.library_from().is_some();
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
    /// opened, the file that it runs, whatever lies there now. A pack's file is named by its content: fetched
    /// again, it is the same.
    pub fn identities(&self) -> Vec<String> {
        let mut all = vec![format!("{} {}", tract::NAME, tract::VERSION)];
        if let Some(path) = self.library() {
            let seen = match onnxruntime::standing(&path).stamp() {
                Some(_) if self.library_from() == Some(LibraryFrom::Pack) => "of a pack".into(),
                Some(stamp) => stamp.to_string(),
                None => "missing".into(),
            };
            all.push(format!("{} {}: {seen}", onnxruntime::NAME, path.display()));
        }
        all
    }

    /// Why nothing new may be proved with an engine: a confined child would open another file than runs here.
    pub fn unprovable(&self, engine: EngineName) -> Option<String> {
        if self.library_from() == Some(LibraryFrom::Pack) {
            return None;
        }
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
        match (setup.engine, self.library()) {
            (EngineName::Tract, _) => Ok(self.tract.clone()),
            (EngineName::Onnxruntime, Some(library)) => {
                Ok(Arc::new(OnnxRuntime::open(&library, setup.threads)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_go_before_a_pack_and_a_pack_before_the_system() {
        let pack = PackLibrary { path: "/packs/a".into(), version: "1.32.0".into() };
        let system = Engines { library: Some("/usr/lib/system".into()), ..Engines::only_tract() };
        let configured = Engines::new(Some(Path::new("/opt/mine")));
        let none = Engines::only_tract();
        for (engines, before, with_pack) in [
            (&system, Some(LibraryFrom::System), LibraryFrom::Pack),
            (&configured, Some(LibraryFrom::Settings), LibraryFrom::Settings),
            (&none, None, LibraryFrom::Pack),
        ] {
            let clone = engines.clone();
            let library = engines.library();
            assert_eq!(engines.library_from(), before);
            engines.set_pack(Some(pack.clone()));
            assert_eq!(clone.library_from(), Some(with_pack), "a clone sees it too");
            assert_eq!(clone.library() == Some(pack.path.clone()), with_pack == LibraryFrom::Pack);
            assert_eq!(clone.names().len(), 2);
            engines.set_pack(None);
            assert_eq!((engines.library_from(), engines.library()), (before, library));
        }
    }
}
