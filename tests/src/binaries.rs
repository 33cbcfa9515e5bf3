//! Where the programs under test are: beside the test executable, as `cargo build` leaves them.

use anyhow::{Context, Result, ensure};
use std::path::PathBuf;

/// `edgefleet`: the controller and the command line.
///
/// # Errors
/// If it is not built; the text says how to build it.
pub fn edgefleet() -> Result<PathBuf> {
    beside_this("edgefleet")
}

/// `edgefleet-agent`.
///
/// # Errors
/// As [`edgefleet`].
pub fn agent() -> Result<PathBuf> {
    beside_this("edgefleet-agent")
}

fn beside_this(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("could not find this test's own program")?;
    // target/<profile>/deps/stories-<hash>
    let profile = this.ancestors().nth(2).context("the test program lies in no target folder")?;
    let program = profile.join(name);
    ensure!(
        program.is_file(),
        "`{}` is not built; tests build nothing themselves: run `cargo build --workspace --bins` \
         with the profile of the tests first (`make test` does)",
        program.display()
    );
    Ok(program)
}

/// A file of this repository, by its path from the root.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)
}
