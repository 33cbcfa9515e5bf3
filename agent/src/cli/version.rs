//! `edgefleet-agent version`.

use super::{ConfigArgs, Failure, absolute, engines};
use crate::engine::{
    LibraryFrom,
    onnxruntime::{self, LibraryError},
    tract,
};
use clap::Args;
use std::{path::PathBuf, process::ExitCode};

#[derive(Args, Debug)]
pub(super) struct VersionArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A libonnxruntime.so [default: of the settings, of the engine pack in force, or the system's]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
}

pub(super) fn version(args: VersionArgs) -> Result<ExitCode, Failure> {
    // Also where the settings are broken.
    println!("edgefleet-agent {}", env!("CARGO_PKG_VERSION"));
    println!("target {}-{}", std::env::consts::ARCH, std::env::consts::OS);
    println!("engine {} {}", tract::NAME, tract::VERSION);
    let library = args.ort_lib.as_deref().map(absolute);
    let config = args.config.load(library.into_iter().map(|path| ("engine.onnxruntime", path)).collect())?;
    let engines = engines(&config);
    let name = onnxruntime::NAME;
    match (engines.library(), engines.library_from(), engines.pack()) {
        (Some(path), Some(LibraryFrom::Pack), Some(pack)) => {
            println!("engine {name} {} at {} (engine pack)", pack.version, path.display());
        }
        (Some(path), from, _) => {
            let from = from.map_or("", LibraryFrom::as_str);
            println!("engine {name} at {} ({from})", path.display());
        }
        (None, ..) if cfg!(target_feature = "crt-static") => {
            println!("engine {name}: {}", LibraryError::StaticBuild);
        }
        (None, ..) => {
            let data = config.data.display();
            println!("engine {name}: no library in the system's folders, no engine pack in {data}");
        }
    }
    Ok(ExitCode::SUCCESS)
}
