//! `edgefleet demo`.

use crate::{
    demo::{self, Chapter, DemoOptions},
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
  edgefleet demo --keep
  edgefleet demo --chapter golden")]
pub struct DemoArgs {
    /// Agents to start; fewer than four can prove nothing by evidence
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(4..=100))]
    devices: u16,
    /// Tell one chapter only, with what it needs before and the balance after
    ///
    /// By number or name: 1 join, 2 first, 3 better, 4 golden, 5 stolen, 6 wrong, 7 slow, 8 killed,
    /// 9 drift, 10 balance.
    #[arg(long, value_name = "N|NAME")]
    chapter: Option<Chapter>,
    /// Divide the waiting times of a real fleet by this: 600 s of probation take 2 s at 300
    ///
    /// Sample counts and thresholds are never scaled.
    #[arg(long, value_name = "X", default_value_t = 300, value_parser = clap::value_parser!(u32).range(20..=600))]
    time_scale: u32,
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
            chapter: self.chapter,
            time_scale: self.time_scale,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_every_chapter() {
        let help = DemoArgs::augment_args(clap::Command::new("demo")).render_long_help().to_string();
        // Wherever its lines are broken.
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for chapter in Chapter::ALL {
            let name = format!("{} {}", chapter.number(), chapter.key());
            assert!(help.contains(&name), "{name}: {help}");
        }
    }
}
