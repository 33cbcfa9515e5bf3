//! What shells and manuals want to know of the command line: completions and man pages, made from its own definition.

use super::{Cli, context::Context, failure::Failure};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

/// Print what a shell needs to complete commands, flags and values.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(edgefleet completions bash)
  edgefleet completions zsh > ~/.zfunc/_edgefleet
  edgefleet completions fish > ~/.config/fish/completions/edgefleet.fish")]
pub struct CompletionsArgs {
    shell: Shell,
}

impl CompletionsArgs {
    /// # Errors
    /// If standard output is gone.
    pub fn run(&self) -> Result<(), Failure> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "edgefleet", &mut text);
        io::stdout().lock().write_all(&text)?;
        Ok(())
    }
}

/// Write man pages, one for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  edgefleet man ~/.local/share/man/man1 && man edgefleet-rollout-start")]
pub struct ManArgs {
    /// Folder for the pages; made if it is not there
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

impl ManArgs {
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, context: &Context) -> Result<(), Failure> {
        fs::create_dir_all(&self.out)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &self.out))
            .map_err(|error| {
                let mut failure = Failure::new(format!("could not write to `{}`", self.out.display()));
                failure.causes.push(error.to_string());
                failure
            })?;
        let pages = fs::read_dir(&self.out)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("edgefleet") && name.ends_with(".1"))
            .count();
        context.print(&serde_json::json!({ "pages": pages }), |_| {
            format!("wrote {pages} pages to {}", self.out.display())
        })
    }
}
