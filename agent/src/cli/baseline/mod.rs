//! `edgefleet-agent baseline`: what a bundle's held-out data is like, for devices to count by.

mod csv;
mod data;
mod zip;

use super::{Failure, Output};
use crate::{
    engine::{Engines, bench::first_setup, subject::Subject},
    monitor::profile::baseline,
};
use clap::Args;
use edgefleet_shared::bundle::{Baseline, baseline::MAX_BASELINE_BYTES};
use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

#[derive(Args, Debug)]
pub(super) struct BaselineArgs {
    /// Bundle folder, as `edgefleet model build` makes it
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Held-out rows: arrays of NumPy named like the inputs (.npz), a table with a header (.csv), or a request of
    /// the Open Inference Protocol a line (.jsonl)
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The true classes: a file with one a line, or the name of the array, column or field in the data [default:
    /// `label` or `labels`, if the data has it]
    #[arg(long, value_name = "FILE|NAME")]
    labels: Option<String>,
    /// Where to write the baseline
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn baseline(args: BaselineArgs) -> Result<ExitCode, Failure> {
    let subject = Subject::open(&args.bundle)
        .map_err(|e| Failure::new(&format!("could not open {}", args.bundle.display()), e.into()))?;
    let Some(manifest) = &subject.manifest else {
        let error = anyhow::anyhow!("{} is no bundle folder", args.bundle.display());
        return Err(Failure::usage(error, "`edgefleet model build` makes one"));
    };
    let (rows, digest) = data::read(&args.data, args.labels.as_deref(), &subject.interface)
        .map_err(|e| Failure::new(&format!("could not read {}", args.data.display()), e))?;
    // Tract alone: what every device has, and the same on each machine.
    let engines = Engines::new(None);
    let setup = first_setup(&subject).map_err(|e| Failure::new("nothing can be run", e.into()))?;
    let file = subject.file(setup.precision).map(std::path::Path::to_owned);
    let file =
        file.ok_or_else(|| Failure::new("nothing can be run", anyhow::anyhow!("there is no {setup}")))?;
    let model = engines.engine(setup).and_then(|engine| subject.load(&*engine, &file));
    let model = model.map_err(|e| Failure::new("could not load the model", e.into()))?;
    let made = baseline::make(&*model, manifest, &rows, digest.to_string())
        .map_err(|e| Failure::new("there is no baseline", e.into()))?;
    let written = write(&args, &made).map_err(|e| Failure::new("could not write the baseline", e))?;
    match args.output {
        Output::Json => println!(
            "{}",
            serde_json::json!({"rows": made.rows, "bytes": written, "channels": made.channels.len(), "quality": made.quality})
        ),
        Output::Table => print!("{}", table(&args, &made, written)),
    }
    Ok(ExitCode::SUCCESS)
}

/// One channel a line, so that a change shows as one.
fn write(args: &BaselineArgs, made: &Baseline) -> anyhow::Result<usize> {
    let mut value = serde_json::to_value(made)?;
    let channels = value["channels"].take();
    let lines: Vec<String> =
        channels.as_array().into_iter().flatten().map(serde_json::to_string).collect::<Result<_, _>>()?;
    let text = serde_json::to_string(&value)?;
    let text =
        text.replacen("\"channels\":null", &format!("\"channels\":[\n{}\n]", lines.join(",\n")), 1) + "\n";
    anyhow::ensure!(text.len() as u64 <= MAX_BASELINE_BYTES, "it would have {} bytes", text.len());
    Baseline::parse(text.as_bytes())?; // as devices will
    std::fs::write(&args.out, &text)?;
    Ok(text.len())
}

fn table(args: &BaselineArgs, made: &Baseline, bytes: usize) -> String {
    let mut text = format!(
        "{} rows, {} channels, {bytes} bytes: {}\n",
        made.rows,
        made.channels.len(),
        args.out.display()
    );
    for channel in &made.channels {
        let _ = match channel.categories.is_empty() {
            true => writeln!(
                text,
                "  {:<28} {:>10.4} ± {:<10.4} {:>3} bins, {} missing",
                channel.id.as_str(),
                channel.moments.mean,
                channel.moments.std().unwrap_or(0.0),
                channel.bins.len(),
                channel.missing
            ),
            false => writeln!(text, "  {:<28} {} categories", channel.id.as_str(), channel.categories.len()),
        };
    }
    if let Some(q) = &made.quality {
        let kept = if q.calibration.confidence.is_empty() { "as it is" } else { "calibrated" };
        let _ = writeln!(
            text,
            "accuracy {:.4} of {}; calibration error {:.4}, {kept} {:.4}; threshold of ATC {:.4}",
            q.accuracy, q.n, q.ece_before, q.ece_after, q.atc_threshold
        );
    }
    text
}
