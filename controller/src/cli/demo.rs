//! `edgefleet demo`.

use crate::{
    demo::{self, DemoOptions},
    registry::probe::find_agent_here,
};
use anyhow::{Context, bail};
use clap::Args;
use std::path::PathBuf;

/// Show the whole path on this machine: a controller, agents, updates under load, refusals.
///
/// Starts real processes on free ports in a fresh folder and writes DIR/report.json. Ends with 0 only if
/// every promise held.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet demo
  edgefleet demo --devices 20 --json
  edgefleet demo --keep")]
pub struct DemoArgs {
    /// Agents to start
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=100))]
    devices: u16,
    /// Leave everything running at the end and print addresses and token
    #[arg(long)]
    keep: bool,
    /// Print the report as JSON on standard output, and nothing else
    #[arg(long)]
    json: bool,
    /// Folder of the sample model
    #[arg(long, value_name = "DIR", default_value = "models/digits")]
    model: PathBuf,
    /// Folder for the run; removed and made anew
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    dir: PathBuf,
    /// The `edgefleet-agent` program [default: beside this program, then PATH]
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_AGENT_BIN")]
    agent_bin: Option<PathBuf>,
}

impl DemoArgs {
    pub async fn run(self) -> anyhow::Result<()> {
        if !self.model.join("v1/bundle.toml").is_file() {
            bail!(
                "`{}` is not the sample model; run the demo in the project's folder or name it with --model",
                self.model.display()
            );
        }
        let agent_bin = find_agent_here(self.agent_bin.as_deref())?;
        // Children run with their own idea of the current folder only if a path is absolute.
        let absolute = |path: &PathBuf| std::path::absolute(path);
        let options = DemoOptions {
            model: absolute(&self.model)?,
            dir: absolute(&self.dir)?,
            agent_bin: absolute(&agent_bin)?,
            devices: usize::from(self.devices),
            keep: self.keep,
            quiet: self.json,
        };
        let report = demo::run(options).await?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report).context("could not print the report")?);
        }
        if report.passed { Ok(()) } else { bail!("the demo broke a promise; see the report") }
    }
}
