//! `edgefleet-agent bench MODEL|BUNDLE`.

use super::{ConfigArgs, Failure, Output, absolute};
use crate::engine::{
    Engines,
    bench::{Contest, Entry, contest},
    chooser::{Budget, Policy, offered},
    setup::Pattern,
    subject::Subject,
};
use clap::Args;
use edgefleet_shared::bundle::Artifact;
use serde_json::json;
use std::{fmt::Write, path::PathBuf, process::ExitCode, time::Duration};

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// Bundle folder, or an ONNX file that declares its inputs and outputs
    model: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
    /// A libonnxruntime.so to measure [default: of the settings, of the engine pack in force, or the system's]
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// Only these: `engine`, `engine/precision` or `engine/precision/threads`; may be repeated
    #[arg(long, value_name = "ENGINE")]
    engine: Vec<Pattern>,
    /// Rows of one request, separated by commas
    #[arg(long, value_name = "ROWS", default_value = "1,8", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    batch: Vec<u16>,
    /// Threads of one inference, separated by commas
    #[arg(long, value_name = "THREADS", default_value = "1,2", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Rounds in which each runs once, at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Time for each combination of batch and threads
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    budget: Duration,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn bench(args: BenchArgs) -> Result<ExitCode, Failure> {
    let library = args.ort_lib.as_deref().map(absolute);
    let config = args.config.load(library.into_iter().map(|path| ("engine.onnxruntime", path)).collect())?;
    let failed = |what: &str, error: anyhow::Error| Failure::new(what, error);
    let subject = Subject::open(&args.model)
        .map_err(|e| failed(&format!("could not open {}", args.model.display()), e.into()))?;
    let engines = super::engines(&config);
    engines.tract().warm_up();
    let budget = Budget { warm_up: 3, most: args.rounds as usize, time: args.budget };
    let mut all = Contest::default();
    for threads in &args.threads {
        let entries = entries(&subject, &engines, usize::from(*threads), &args.engine);
        for batch in &args.batch {
            eprintln!("measuring {} contestants, batch {batch}, threads {threads}", entries.len());
            let done = contest(&subject, &engines, &entries, usize::from(*batch), budget)
                .map_err(|e| failed("could not make the input", e.into()))?;
            all.rows.extend(done.rows);
            all.absent.extend(done.absent);
        }
    }
    match args.output {
        Output::Json => {
            let document = json!({"model": subject.name, "rows": all.rows, "absent": all.absent});
            println!("{document}");
        }
        Output::Table => print!("{}", table(&all)),
    }
    Ok(ExitCode::from(u8::from(all.rows.is_empty())))
}

/// Every engine and variant with exactly this many threads; all, also those that gain nothing.
fn entries(subject: &Subject, engines: &Engines, threads: usize, only: &[Pattern]) -> Vec<Entry> {
    let artifacts: Vec<&Artifact> = subject.artifacts.iter().collect();
    let policy = Policy { threads, pin: vec![Pattern::any()], ..Policy::default() };
    let (setups, _) = offered(&artifacts, &engines.names(), &policy, |e| Engines::threads_of(e, threads));
    let wanted = |setup: &crate::engine::setup::Setup| {
        setup.threads == threads && (only.is_empty() || only.iter().any(|pattern| pattern.matches(setup)))
    };
    setups.into_iter().filter(wanted).map(Entry::new).collect()
}

fn table(contest: &Contest) -> String {
    let mut text = format!(
        "{:<12} {:<8} {:>7} {:>5} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9}\n",
        "engine",
        "variant",
        "threads",
        "batch",
        "rounds",
        "min ms",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "rows/s",
        "load ms",
        "MiB",
        "max diff"
    );
    for row in &contest.rows {
        // Writing to memory cannot fail.
        let _ = writeln!(
            text,
            "{:<12} {:<8} {:>7} {:>5} {:>6} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.0} {:>8.1} {:>8.1} {:>9.1e}{}",
            row.engine,
            row.variant,
            row.threads,
            row.batch,
            row.rounds,
            row.min_ms,
            row.median_ms,
            row.p90_ms,
            row.p99_ms,
            row.rows_per_second,
            row.load_ms,
            row.memory_bytes as f64 / 1_048_576.0,
            row.max_abs_diff,
            if row.agrees { "" } else { "  differs" },
        );
    }
    for absent in &contest.absent {
        let _ = writeln!(
            text,
            "{:<12} {:<8} {:>7} {:>5} {}",
            absent.engine, absent.variant, absent.threads, absent.batch, absent.reason
        );
    }
    text
}
