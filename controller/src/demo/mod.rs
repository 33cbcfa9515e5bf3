//! `edgefleet demo`: the whole path with real processes, told in chapters.
//!
//! Nothing is simulated: `edgefleet serve` and the agents are processes of their own, bundles travel
//! signed over MQTT with TLS, the load are held-out images with true labels. The report is made from
//! the agents' own counters, and every promise is a check that can fail.

mod attack;
mod chapters;
mod console;
pub mod load;
mod plans;
pub mod processes;
pub mod report;
mod rollouts;
pub mod stage;
mod story;
mod tale;

pub use chapters::{Chapter, UnknownChapter};
pub use console::Console;
pub use load::{AgentLoad, Holdout, Load};
pub use processes::Process;
pub use report::Report;
pub use story::{DemoOptions, run};

use std::{io, path::PathBuf, process::ExitStatus};

/// Why the demo could not go on. Promises that did not hold are in the report instead.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("could not start `{}`", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("{name} ended with {status}; the end of its log:\n{log}")]
    Ended { name: String, status: ExitStatus, log: String },
    #[error("{name} did not say where it listens within 30 s; the end of its log:\n{log}")]
    Silent { name: String, log: String },
    #[error("held-out images `{}`: {reason}", path.display())]
    Holdout { path: PathBuf, reason: String },
    #[error("`edgefleet {command}` failed:\n{output}")]
    Command { command: String, output: String },
    #[error("`edgefleet {command}` printed something unexpected: {output}")]
    Output { command: String, output: String },
    #[error("{what} did not happen within {seconds} s: {state}")]
    Waited { what: String, seconds: u64, state: String },
    #[error("could not ask the controller: {action}")]
    Ask { action: String, source: reqwest::Error },
    #[error("could not write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("could not prepare the attack: {reason}")]
    Attack { reason: String },
    #[error("could not make a plan for {bundle}: {reason}")]
    Plan { bundle: String, reason: String },
    #[error("the controller refused {what}: {answer}")]
    Refused { what: String, answer: String },
    #[error("interrupted")]
    Interrupted,
}
