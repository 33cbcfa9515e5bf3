//! The command line: one noun, one verb. Data goes to standard output, everything else to standard
//! error; exit codes: 0 done, 1 failed, 2 wrong usage.

pub mod advice;
#[cfg(test)]
mod advice_tests;
pub mod alert;
pub mod backup;
pub mod broker;
pub mod building;
pub mod capture;
pub mod client;
pub mod context;
pub mod contexts;
pub mod dataset;
pub mod demo;
pub mod device;
pub mod doctor;
pub mod export;
pub mod failure;
pub mod finding;
pub mod freeze;
pub mod incident;
pub mod keys;
pub mod lint;
pub mod model;
pub mod monitor;
pub mod people;
mod plan_file;
pub mod rollout;
pub mod serve;
mod serve_file;
pub mod settings;
pub mod shell;
pub mod simulate;
pub(crate) mod table;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod trust;
mod verdict;

use clap::{Parser, Subcommand};
use context::Context;
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// Owns a fleet of devices that infer: identity, models, assignments, telemetry.
#[derive(Debug, Parser)]
#[command(name = "edgefleet", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Start with:
  edgefleet serve --data ./fleet      the controller; its first start makes everything
  edgefleet device invite             a join code for `edgefleet-agent enroll CODE`
  edgefleet demo                      all of it on this machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Demo(demo::DemoArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    #[command(subcommand)]
    Broker(broker::BrokerCommand),
    Login(Call<contexts::LoginArgs>),
    Doctor(Call<doctor::DoctorArgs>),
    /// Controllers that `edgefleet login` remembered
    Context(Remote<contexts::ContextCommand>),
    /// Build, sign and publish models
    Model(Remote<model::ModelCommand>),
    /// Devices: invite, list, show, label, remove
    Device(Remote<device::DeviceCommand>),
    /// Give a bundle to every enrolled device that is selected: a rollout of one stage
    #[command(after_help = rollout::ASSIGN_EXAMPLES)]
    Assign(Call<rollout::AssignArgs>),
    /// Rollouts and how each device fared
    Rollout(Remote<rollout::RolloutCommand>),
    /// Times in which nothing is handed out
    Freeze(Remote<freeze::FreezeCommand>),
    /// One switch for all hand-outs of all rollouts
    Line(Remote<freeze::LineCommand>),
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(Call<simulate::SimulateArgs>),
    /// How devices behave, apart from what they serve
    Settings(Remote<settings::SettingsCommand>),
    /// How bundles do, by cohort and over time
    Monitor(Remote<monitor::MonitorCommand>),
    /// What drifts, where, since when
    Incident(Remote<incident::IncidentCommand>),
    /// What to do about how models are doing
    Advice(Remote<advice::AdviceCommand>),
    /// Inputs kept for labelling, and the policies they are kept by
    Capture(Remote<capture::CaptureCommand>),
    /// Labelled captures as data sets
    Dataset(Remote<dataset::DatasetCommand>),
    /// What a person has to look at
    Finding(Remote<finding::FindingCommand>),
    /// What people are told by webhook and mail
    Alert(Remote<alert::AlertCommand>),
    /// Write data to files for other programs
    Export(Remote<export::ExportCommand>),
    /// API tokens
    Token(Remote<people::TokenCommand>),
    /// Who changed what
    Audit(Remote<people::AuditCommand>),
    /// Show and make signing keys
    Keys(Remote<keys::KeysCommand>),
    /// Change who is trusted
    Trust(Remote<trust::TrustCommand>),
    Completions(shell::CompletionsArgs),
    Man(Call<shell::ManArgs>),
}

/// A command with the flags that say where the controller is and how to print.
#[derive(Debug, clap::Args)]
struct Remote<C: Subcommand> {
    #[command(flatten)]
    global: context::GlobalArgs,
    #[command(subcommand)]
    command: C,
}

// The same for a command without verbs. Not a doc comment: clap would show it as the command's help.
#[derive(Debug, clap::Args)]
struct Call<A: clap::Args> {
    #[command(flatten)]
    global: context::GlobalArgs,
    #[command(flatten)]
    args: A,
}

/// Runs the program's command line.
pub fn main() -> ExitCode {
    // One provider in the tree; whoever asks for the default one gets it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let level = if matches!(cli.command, Command::Serve(_)) { "info,mqtt5=warn" } else { "warn" };
    let filter = EnvFilter::try_from_env("EDGEFLEET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&error.into()),
    };
    match runtime.block_on(run(cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(args) => args.run().await,
        Command::Demo(args) => args.run().await,
        Command::Backup(args) => Ok(args.run().await.map_err(told)?),
        Command::Restore(args) => Ok(args.run().await.map_err(told)?),
        Command::Broker(command) => command.run(),
        Command::Login(Call { global, args }) => Ok(args.run(&Context::new(global)).await?),
        Command::Doctor(Call { global, args }) => Ok(args.run(&Context::new(global)).await?),
        Command::Context(Remote { global, command }) => Ok(command.run(&Context::new(global))?),
        Command::Model(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Device(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Assign(Call { global, args }) => Ok(args.run(&Context::new(global)).await?),
        Command::Rollout(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Freeze(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Line(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Simulate(Call { global, args }) => args.run(&Context::new(global)),
        Command::Settings(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Monitor(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Incident(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Advice(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Capture(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Dataset(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Finding(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Alert(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Export(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Token(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Audit(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Keys(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Trust(Remote { global, command }) => Ok(command.run(&Context::new(global)).await?),
        Command::Completions(args) => Ok(args.run()?),
        Command::Man(Call { global, args }) => Ok(args.run(&Context::new(global))?),
    }
}

/// A backup's error with its hint.
fn told(error: crate::backup::BackupError) -> failure::Failure {
    let hint = error.hint();
    let failure = failure::Failure::from(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
