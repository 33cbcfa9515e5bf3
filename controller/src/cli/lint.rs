//! `edgefleet model lint FILE|DIR`: what the author of a model should know, without building it.

use super::{context::Context, failure::Failure, table};
use crate::registry::{
    fold,
    lint::{self, Around, Finding, Level},
    onnx::{MAX_ONNX_BYTES, inspect},
    probe::Prober,
    source::{self, BundleSource, SourceError, read_bounded},
};
use bytes::Bytes;
use clap::Args;
use edgefleet_shared::{
    bundle::{Interface, Precision},
    lint::{EngineLook, ModelLook},
};
use indicatif::HumanBytes;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// ONNX files of a folder without a usable bundle.toml that are looked at.
const MAX_FILES: usize = 16;

/// Say what each engine makes of a model, without building it
#[derive(Debug, Args)]
#[command(after_help = "\
The agent reads and loads the model behind the walls of its check, once for each engine; nothing is run.
Exit code 1 only if no device could run it.

Examples:
  edgefleet model lint model.onnx
  edgefleet model lint models/digits/v1 --ort-lib libonnxruntime.so --output json")]
pub struct LintArgs {
    /// An ONNX file, or a folder with bundle.toml
    pub source: PathBuf,
    /// The edgefleet-agent that is asked; without it, looked for beside this program and in PATH
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_AGENT_BIN")]
    pub agent_bin: Option<PathBuf>,
    /// A libonnxruntime.so to ask too
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_ORT_LIB")]
    pub ort_lib: Option<PathBuf>,
}

/// One model file, looked at.
#[derive(Debug, Serialize)]
pub(super) struct Linted {
    pub(super) file: String,
    pub(super) look: ModelLook,
    pub(super) findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Report {
    models: Vec<Linted>,
    /// What keeps bundle.toml from being built.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mistakes: Vec<String>,
}

impl LintArgs {
    /// # Errors
    /// [`Failure`] to print; also if no device could run a model.
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let prober = Prober::new(self.agent_bin, self.ort_lib);
        let report = if self.source.is_dir() {
            of_folder(&prober, &self.source).await?
        } else {
            Report { models: vec![of_file(&prober, &self.source).await?], mistakes: vec![] }
        };
        context.print(&report, |report| {
            let mut parts: Vec<String> = report.models.iter().map(text).collect();
            if !report.mistakes.is_empty() {
                parts.push(format!("NOT READY TO BE BUILT\n  - {}", report.mistakes.join("\n  - ")));
            }
            parts.join("\n\n")
        })?;
        let wrong = |linted: &&Linted| linted.findings.iter().any(|finding| finding.level == Level::Error);
        // A device needs one variant that it can run.
        match report.models.iter().filter(wrong).count() {
            count if count == report.models.len() => {
                Err(Failure::new(format!("no device could run `{}`", self.source.display())))
            }
            _ => Ok(()),
        }
    }
}

async fn of_folder(prober: &Prober, dir: &Path) -> Result<Report, Failure> {
    match source::read(dir) {
        Ok(source) => Ok(Report { models: of_source(prober, &source, true).await?, mistakes: vec![] }),
        Err(SourceError::Wrong { wrong, .. }) => {
            let mut models = Vec::new();
            for path in onnx_files(dir)? {
                models.push(of_file(prober, &path).await?);
            }
            Ok(Report { models, mistakes: wrong.0.iter().map(ToString::to_string).collect() })
        }
        Err(error) => Err(Failure::from(error).hint("name an ONNX file, or a folder with bundle.toml")),
    }
}

/// Looks at every artifact of a source. `fold`: says what could be folded, too.
pub(super) async fn of_source(
    prober: &Prober,
    source: &BundleSource,
    fold: bool,
) -> Result<Vec<Linted>, Failure> {
    let mut all = Vec::new();
    for artifact in &source.artifacts {
        let look = prober.look(&artifact.path, Some(&source.interface)).await?;
        let f32 = |precision: Precision| precision == Precision::F32;
        let folds = match fold && f32(artifact.precision) {
            true => folds(&artifact.path, &source.interface),
            false => vec![],
        };
        let around = Around {
            precision: Some(artifact.precision),
            interface: Some(&source.interface),
            golden: Some(source.golden.len()),
            has_f32: source.artifacts.iter().any(|artifact| f32(artifact.precision)),
            folds: &folds,
        };
        let findings = lint::findings(&look, around);
        all.push(Linted { file: shown(&artifact.path), look, findings });
    }
    Ok(all)
}

async fn of_file(prober: &Prober, path: &Path) -> Result<Linted, Failure> {
    let look = prober.look(path, None).await?;
    // Only what the file itself fixes is known.
    let nothing = Interface { inputs: vec![], outputs: vec![] };
    let folds = folds(path, &nothing);
    let findings = lint::findings(&look, Around { folds: &folds, ..Around::default() });
    Ok(Linted { file: shown(path), look, findings })
}

fn folds(path: &Path, interface: &Interface) -> Vec<fold::Done> {
    let bytes = read_bounded(path, fold::MAX_FOLDED_BYTES.min(MAX_ONNX_BYTES)).map(Bytes::from);
    let sound = bytes.ok().filter(|bytes| inspect(bytes.clone()).is_ok());
    sound.and_then(|bytes| fold::fold(&bytes, interface)).map(|folded| folded.done).unwrap_or_default()
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn onnx_files(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(dir)?;
    let onnx = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "onnx");
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(onnx).collect();
    files.sort();
    files.truncate(MAX_FILES);
    Ok(files)
}

/// One model for people.
pub(super) fn text(linted: &Linted) -> String {
    let mut parts = vec![linted.file.clone()];
    if let Some(traits) = &linted.look.traits {
        let sets = traits.opsets.iter().map(|(domain, version)| match domain.as_str() {
            "" => format!("opset {version}"),
            domain => format!("{domain} {version}"),
        });
        parts[0] += &format!(
            ": {}, {} nodes, {} of weights",
            sets.collect::<Vec<_>>().join(", "),
            traits.nodes,
            HumanBytes(traits.weight_bytes)
        );
        let engines = &linted.look.engines;
        let mut header = vec!["OPERATOR".to_owned(), "USES".to_owned()];
        header.extend(engines.iter().map(|engine| engine.name.to_uppercase()));
        let rows = traits.operators.iter().map(|(op, uses)| {
            let mut row = vec![op.clone(), uses.to_string()];
            row.extend(engines.iter().map(|engine| verdict(engine, op)));
            row
        });
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        parts.push(table::of(&header, rows));
        let rows = engines.iter().map(|engine| {
            let loads = if engine.refusal.is_some() { "refuses it" } else { "loads it" };
            vec![format!("{} {}", engine.name, engine.version), loads.to_owned()]
        });
        parts.push(table::of(&["ENGINE", "MODEL"], rows));
    }
    parts.push(findings(&linted.findings));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// What an engine says of one operator. One that refuses the model names the first it stumbles over only.
fn verdict(engine: &EngineLook, op: &str) -> String {
    let refused = engine.refusal.as_ref().and_then(|refusal| refusal.op.as_deref()) == Some(op);
    match engine.problems.get(op) {
        Some(how) if how.contains("wrong") => "WRONG".to_owned(),
        Some(_) => "lacks it".to_owned(),
        None if refused => "refuses it".to_owned(),
        // tract's problems are complete; of others nothing more is known.
        None if engine.refusal.is_some() && engine.opsets.is_none() => "-".to_owned(),
        None => "ok".to_owned(),
    }
}

pub(super) fn findings(all: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let level = match finding.level {
            Level::Error => "ERROR",
            Level::Warning => "warning",
            Level::Note => "note",
        };
        vec![level.to_owned(), finding.message.clone()]
    };
    if all.is_empty() { String::new() } else { table::wrapped(&["LEVEL", "FINDING"], all.iter().map(line)) }
}
