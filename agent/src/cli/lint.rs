//! `edgefleet-agent lint MODEL`.

use super::{Failure, Output};
use crate::{
    engine::probe::{self, ProbeOptions},
    store::files,
};
use clap::Args;
use edgefleet_shared::{
    bundle::{Interface, manifest::MAX_MANIFEST_BYTES},
    lint::ModelLook,
};
use std::{fmt::Write, path::PathBuf, process::ExitCode};

#[derive(Args, Debug)]
pub(super) struct LintArgs {
    /// The ONNX file
    model: PathBuf,
    /// Have this libonnxruntime.so load it too
    #[arg(long, value_name = "FILE")]
    ort_lib: Option<PathBuf>,
    /// JSON with `inputs` and `outputs` as a manifest has them [default: what the file declares]
    #[arg(long, value_name = "FILE")]
    interface: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn lint(args: LintArgs) -> Result<ExitCode, Failure> {
    let interface: Option<Interface> = match &args.interface {
        None => None,
        Some(path) => {
            let unusable = |e: anyhow::Error| Failure::new(&format!("could not use {}", path.display()), e);
            let bytes = files::read_bounded(path, MAX_MANIFEST_BYTES).map_err(|e| unusable(e.into()))?;
            Some(serde_json::from_slice(&bytes).map_err(|e| unusable(e.into()))?)
        }
    };
    let options = ProbeOptions { library: args.ort_lib, ..ProbeOptions::this_program() };
    let look = probe::look(&args.model, interface.as_ref(), &options)
        .map_err(|failure| Failure::new("could not look at the model", anyhow::anyhow!(failure.message)))?;
    match args.output {
        Output::Json => match serde_json::to_string(&look) {
            Ok(text) => println!("{text}"),
            Err(e) => return Err(Failure::new("could not write what was found", e.into())),
        },
        Output::Table => print!("{}", table(&look)),
    }
    let taken = look.engines.iter().any(|engine| engine.refusal.is_none());
    Ok(ExitCode::from(u8::from(look.unusable.is_some() || !taken)))
}

fn table(look: &ModelLook) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}"); // writing to memory cannot fail
    };
    if let Some(unusable) = &look.unusable {
        line("unusable", format!("{}: {}", unusable.code, unusable.message));
    }
    if let Some(traits) = &look.traits {
        let opset = traits.opsets.get("").copied().unwrap_or(0);
        line(
            "model",
            format!("opset {opset}, {} nodes, {} bytes of weights", traits.nodes, traits.weight_bytes),
        );
        for (operator, count) in &traits.operators {
            line("operator", format!("{operator} {count}x"));
        }
    }
    for engine in &look.engines {
        let name = format!("{} {}", engine.name, engine.version);
        line(
            "engine",
            match &engine.refusal {
                None => format!("{name} takes it"),
                Some(refusal) => format!("{name} refuses it, {}: {}", refusal.code, refusal.message),
            },
        );
        for (operator, how) in &engine.problems {
            line("", format!("{operator} {how}"));
        }
    }
    text
}
