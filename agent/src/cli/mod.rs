//! The command line: what people and systemd type. Data goes to stdout, all else to stderr; exit codes
//! are 0 (done), 1 (failed) and 2 (wrong usage).

mod baseline;
mod bench;
mod enroll;
mod failure;
mod infer;
mod lines;
mod lint;
mod npy;
mod peer;
mod probe;
mod replay;
mod status;
mod version;

use crate::{
    causes::one_line,
    config::{self, Config, LogFormat},
    engine::{self, Engines, onnxruntime},
    update::installed_pack,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use edgefleet_shared::ids::{ModelName, SlotName};
use failure::Failure;
use std::{path::PathBuf, process::ExitCode, time::Duration};
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

/// Serves ONNX models on this device and keeps them current, safely.
#[derive(Parser, Debug)]
#[command(name = "edgefleet-agent", version, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  edgefleet-agent enroll ef1-eyJ1Ijoi... --data /var/lib/edgefleet-agent
  edgefleet-agent run --data /var/lib/edgefleet-agent
  edgefleet-agent status --output json | jq .slots")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Joins a fleet with the join code of `edgefleet device invite`.
    #[command(after_help = "\
Examples:
  edgefleet-agent enroll ef1-eyJ1Ijoi...
  edgefleet-agent enroll ef1-eyJ1Ijoi... --name cam-7 --wait 1h")]
    Enroll(enroll::EnrollArgs),
    /// Serves models and follows the controller until it is told to stop.
    #[command(after_help = run_help())]
    Run(RunArgs),
    /// Shows what the agent on this machine is doing.
    #[command(after_help = "\
Examples:
  edgefleet-agent status
  edgefleet-agent status --output json | jq '.slots.digits.bundle'")]
    Status(status::StatusArgs),
    /// Tries a bundle folder in a confined child process, as a device does before it trusts it.
    #[command(after_help = "\
Examples:
  edgefleet-agent probe ./digits-3
  edgefleet-agent probe ./digits-3 --output json | jq .measured")]
    Probe(probe::ProbeArgs),
    /// Says what a model file is made of and which engine takes it, without running it.
    #[command(after_help = "\
The file is read and loaded in a confined child process for each engine.

Examples:
  edgefleet-agent lint model.onnx
  edgefleet-agent lint model.onnx --ort-lib libonnxruntime.so --output json | jq .engines")]
    Lint(lint::LintArgs),
    /// Runs a model once on this machine, without an agent.
    #[command(after_help = "\
The model is loaded by this very process: `probe` it first if you do not trust it.

Examples:
  edgefleet-agent infer model.onnx --input request.json
  edgefleet-agent infer model.onnx --input image=image.npy
  echo '{\"inputs\":[...]}' | edgefleet-agent infer ./digits-3 --input - --engine onnxruntime
  edgefleet-agent infer digits --lines < requests.jsonl > answers.jsonl")]
    Infer(infer::InferArgs),
    /// Sends recorded inputs to a slot at the pace they were recorded, and tells how fast it answered.
    #[command(after_help = "\
Each line of FILE is {\"at_ms\": TIME, \"request\": {...}}, {\"at_ms\": TIME, \"bytes\": \"base64\"} or a bare request.

Examples:
  edgefleet-agent replay requests.jsonl --slot digits
  edgefleet-agent replay requests.jsonl --slot digits --speed 0 --to http://127.0.0.1:8000 --output json")]
    Replay(replay::ReplayArgs),
    /// Measures a model with every engine, variant, batch and number of threads, side by side.
    #[command(after_help = "\
The model is loaded by this very process: `probe` it first if you do not trust it. All contestants take
turns, so that whatever else the machine does meets all of them.

Examples:
  edgefleet-agent bench ./digits-3
  edgefleet-agent bench model.onnx --batch 1 --threads 1 --output json | jq .rows")]
    Bench(bench::BenchArgs),
    /// Counts a bundle's held-out data as devices count theirs, for the baseline that travels with it.
    #[command(after_help = "\
The model is loaded by this very process: `probe` it first if you do not trust it. `edgefleet model build` does this
for a folder whose bundle.toml names the data.

Examples:
  edgefleet-agent baseline --bundle ./digits-3 --data holdout.npz --labels label --out baseline.json
  edgefleet-agent baseline --bundle ./penguins-1 --data penguins.csv --labels species --out baseline.json")]
    Baseline(baseline::BaselineArgs),
    /// The confined child of a probe; not for people.
    #[command(name = engine::probe::WORKER_COMMAND, hide = true)]
    ProbeWorker,
    /// Shows version, target and engines: those that `infer` and `bench` use, and a service with these settings.
    #[command(after_help = "\
The library of ONNX Runtime is that of --ort-lib or the settings, otherwise that of the engine pack in force in the
data folder, otherwise the system's.

Examples:
  edgefleet-agent version
  edgefleet-agent version --data /var/lib/edgefleet-agent")]
    Version(version::VersionArgs),
}

/// Where settings come from; every command takes these.
#[derive(Args, Debug, Clone, Default)]
struct ConfigArgs {
    /// Settings file [default: /etc/edgefleet-agent.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// Folder for identity, bundles, state and outbox [default: /var/lib/edgefleet-agent]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
}

#[derive(Args, Debug)]
struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Address of the Open Inference Protocol [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<String>,
    /// Address of the metrics [default: 127.0.0.1:8002]
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<String>,
    /// Allow listening beyond loopback; there is no authentication
    #[arg(long)]
    http_allow_remote: bool,
    /// Hardware class, as bundles name it
    #[arg(long, value_name = "CLASS")]
    hardware: Option<String>,
    /// A libonnxruntime.so to use as a second engine [default: the system's, if it is there]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// Least level that is logged, or a filter
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How the log is written to stderr [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

fn run_help() -> String {
    let mut text = String::from("Settings (file key = default, what it is):\n");
    for (key, default, what) in config::KEYS {
        let default = if default.is_empty() { "\"\"" } else { default };
        text.push_str(&format!("  {key} = {default}\n      {what}\n"));
    }
    text.push_str(
        "\nEach key can be an environment variable too: `http.listen` is EDGEFLEET_AGENT_HTTP_LISTEN.\n\
         `[[bindings]]` of the file brings inputs without a client: MQTT, folders, lines of JSON.\n\n\
         Examples:\n  edgefleet-agent run --data ./agent --http-listen 127.0.0.1:0\n  \
         EDGEFLEET_AGENT_LOG_FORMAT=json edgefleet-agent run",
    );
    text
}

impl ConfigArgs {
    fn load(&self, more: Vec<(&'static str, String)>) -> Result<Config, Failure> {
        let data = self.data.clone().map(|data| ("data", data));
        let file = self.config.clone().or_else(config::default_file);
        config::load(file.as_deref(), std::env::vars(), data.into_iter().chain(more)).map_err(Failure::config)
    }
}

impl RunArgs {
    fn load(&self) -> Result<Config, Failure> {
        let given = [
            ("http.listen", self.http_listen.clone()),
            ("metrics.listen", self.metrics_listen.clone()),
            ("http.allow_remote", self.http_allow_remote.then(|| "true".to_owned())),
            ("hardware", self.hardware.clone()),
            ("engine.onnxruntime", self.ort_lib.as_deref().map(absolute)),
            ("log.level", self.log_level.clone()),
            ("log.format", self.log_format.clone()),
        ];
        self.config.load(given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect())
    }
}

/// The engines of this device as the service has them, the pack in its data folder included. A pack that cannot be
/// used is told on stderr, and done without.
fn engines(config: &Config) -> Engines {
    let engines = Engines::new(config.engine_onnxruntime.as_deref());
    let slot = onnxruntime::NAME.parse::<ModelName>().map(|name| SlotName::from(&name));
    let Some(slot) = slot.ok().filter(|_| config.engine_onnxruntime.is_none()) else { return engines };
    match installed_pack(&config.data, &slot) {
        Ok(pack) => engines.set_pack(pack.map(|pack| pack.library)),
        Err(error) => eprintln!("without the engine pack: {}", one_line(&error)),
    }
    engines
}

/// What a relative path on the command line means, for settings that want the whole one.
fn absolute(path: &std::path::Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Runs the program. The child of a probe never comes as far as starting a thread.
pub fn main() -> ExitCode {
    // Argument parsing alone would already read the environment; the child has none.
    if std::env::args_os().nth(1).is_some_and(|first| first == engine::probe::WORKER_COMMAND) {
        return engine::probe::probe_worker_main();
    }
    let cli = Cli::parse(); // exits with 2 on wrong usage, 0 for help
    let done = match cli.command {
        Command::Enroll(args) => block_on(enroll::enroll(args)),
        Command::Run(args) => args.load().and_then(|config| {
            start_log(&config);
            block_on(async { crate::run::run(config).await.map_err(Failure::from) })
        }),
        Command::Status(args) => block_on(status::status(args)),
        Command::Probe(args) => probe::probe(args),
        Command::Lint(args) => lint::lint(args),
        Command::Infer(args) if args.lines => block_on(lines::lines(args)),
        Command::Infer(args) => infer::infer(args),
        Command::Replay(args) => block_on(replay::replay(args)),
        Command::Bench(args) => bench::bench(args),
        Command::Baseline(args) => baseline::baseline(args),
        Command::ProbeWorker => return engine::probe::probe_worker_main(),
        Command::Version(args) => version::version(args),
    };
    done.unwrap_or_else(|failure| failure.print())
}

/// Two threads serve the network; inference has threads of its own.
fn block_on(work: impl Future<Output = Result<ExitCode, Failure>>) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("agent")
        .enable_all()
        .build()
        .map_err(|e| Failure::new("could not start", e.into()))?;
    let result = runtime.block_on(work);
    // A stuck blocking task must not keep a stopped agent alive.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

fn start_log(config: &Config) {
    let filter: Targets = config.log_level.parse().unwrap_or_else(|_| Targets::new()); // checked before
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let layer = match config.log_format {
        LogFormat::Text => layer.with_ansi(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().ok(); // once per process
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_its_help_names_every_setting() {
        Cli::command().debug_assert();
        let help = run_help();
        for (key, ..) in config::KEYS {
            assert!(help.contains(key), "{key}");
        }
    }
}
