//! `edgefleet-agent probe BUNDLE`.

use super::{Failure, Output};
use crate::engine::{
    Engines,
    chooser::{Budget, Policy},
    choosing::EngineChooser,
    probe::{self, BundleFiles, ProbeOptions},
    setup::Pattern,
};
use clap::Args;
use edgefleet_shared::probe::ProbeVerdict;
use std::{fmt::Write, path::PathBuf, process::ExitCode};

#[derive(Args, Debug)]
pub(super) struct ProbeArgs {
    /// Bundle folder: `manifest.json` and `blobs/sha256/...`
    bundle: PathBuf,
    /// Try this libonnxruntime.so too; the verdict is that of the engine which would run the bundle
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// Only these: `engine`, `engine/precision` or `engine/precision/threads`; may be repeated
    #[arg(long, value_name = "ENGINE")]
    engine: Vec<Pattern>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Without options, tract alone: what every device has.
fn verdict(args: &ProbeArgs) -> ProbeVerdict {
    let (files, options) = (BundleFiles::in_folder(&args.bundle), ProbeOptions::this_program());
    if args.ort_lib.is_none() && args.engine.is_empty() {
        return probe::run(&files, &options);
    }
    let engines = Engines::new(args.ort_lib.as_deref());
    let threads = args.engine.iter().filter_map(Pattern::threads).max().unwrap_or(1);
    let policy = Policy { pin: args.engine.clone(), threads, ..Policy::default() };
    let chooser = EngineChooser::new(engines, policy, options.clone(), Budget::DEFAULT, None);
    match files.manifest() {
        Ok(manifest) => chooser.try_bundle(&files, &manifest),
        // The probe says what is wrong with it.
        Err(_) => probe::run(&files, &options),
    }
}

pub(super) fn probe(args: ProbeArgs) -> Result<ExitCode, Failure> {
    let verdict = verdict(&args);
    match args.output {
        Output::Json => match serde_json::to_string(&verdict) {
            Ok(text) => println!("{text}"),
            Err(e) => return Err(Failure::new("could not write the verdict", e.into())),
        },
        Output::Table => print!("{}", table(&verdict)),
    }
    Ok(ExitCode::from(u8::from(!verdict.ok)))
}

fn table(verdict: &ProbeVerdict) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}"); // writing to memory cannot fail
    };
    line("bundle", format!("{} ({})", verdict.bundle, verdict.digest));
    line("verdict", if verdict.ok { "passed".into() } else { "failed".into() });
    if let Some(failure) = &verdict.failure {
        line("failure", format!("{}: {}", failure.code, failure.message));
    }
    if let Some(engine) = &verdict.engine {
        line("engine", format!("{} {}", engine.name, engine.version));
    }
    if let Some(measured) = &verdict.measured {
        line("load", format!("{:.1} ms", measured.load_ms));
        line("inference", format!("p50 {:.3} ms, p95 {:.3} ms", measured.p50_ms, measured.p95_ms));
        line("memory", format!("{:.1} MiB at most", measured.peak_memory_bytes as f64 / 1_048_576.0));
    }
    for golden in &verdict.golden {
        let result = match &golden.mismatch {
            Some(mismatch) => mismatch.clone(),
            None => format!("passed, largest difference {:e}", golden.max_abs_diff),
        };
        line("golden", format!("{}: {result}", golden.name));
    }
    let walls = &verdict.confinement;
    line("walls", format!("landlock {}, seccomp {}, limits {}", walls.landlock, walls.seccomp, walls.limits));
    text
}
