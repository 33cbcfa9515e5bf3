//! `edgefleet model build`: a folder becomes a bundle, folded where that is proven to change nothing, checked,
//! and with what its author should know of it.

use super::{
    context::Context,
    failure::Failure,
    lint::{self, Linted},
    verdict,
};
use crate::registry::{
    builder::{self, Built},
    fold::{self, Done},
    probe::{ProbeError, Prober},
    source::{self, BundleSource, read_bounded},
};
use bytes::Bytes;
use clap::Args;
use edgefleet_shared::{bundle::Precision, probe::ProbeVerdict};
use indicatif::HumanBytes;
use serde::Serialize;
use serde_json::json;
use std::{fs, path::PathBuf};

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// Folder with bundle.toml
    #[arg(default_value = ".")]
    pub source: PathBuf,
    /// Bundle folder to write; without it, `build` inside the source folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The edgefleet-agent that checks; without it, looked for beside this program and in PATH
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_AGENT_BIN")]
    pub agent_bin: Option<PathBuf>,
    /// A libonnxruntime.so to check with too; the bundle passes if one engine takes it
    #[arg(long, value_name = "FILE", env = "EDGEFLEET_ORT_LIB")]
    pub ort_lib: Option<PathBuf>,
    /// Build only; the push will be checked all the same. Nothing is folded: nothing would prove it
    #[arg(long)]
    pub no_probe: bool,
    /// Keep the f32 model byte for byte, also where it could be folded
    #[arg(long)]
    pub no_fold: bool,
}

/// What came of folding.
#[derive(Debug, Serialize)]
struct Folding {
    /// The bundle holds the folded model.
    kept: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    done: Vec<Done>,
    bytes_before: u64,
    bytes_after: u64,
    /// Of one inference and of loading, before and after, with the engine that would run it, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ms: Option<(f64, f64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_ms: Option<(f64, f64)>,
}

/// A source with a model of it rewritten, in a folder that goes with this.
struct Rewritten {
    source: BundleSource,
    folding: Folding,
    folder: tempfile::TempDir,
}

/// # Errors
/// [`Failure`] to print; also if the bundle was built and no engine takes it.
pub(super) async fn build(context: &Context, args: BuildArgs) -> Result<(), Failure> {
    let out = args.out.unwrap_or_else(|| args.source.join("build"));
    let prober = Prober::new(args.agent_bin, args.ort_lib);
    let mut read = source::read(&args.source).map_err(builder::BuildError::from)?;
    if read.baseline_data.is_some() {
        read.baseline = Some(baseline(&prober, &args.source, &read).await?);
    }
    let unchecked = |built: &Built, error: ProbeError| {
        Failure::from(error).hint(format!(
            "{} was built but not checked; name the agent with --agent-bin, or build with --no-probe",
            built.name
        ))
    };
    let rewritten = if args.no_probe || args.no_fold { None } else { rewrite(&read)? };
    let (source, folding, proof) = match rewritten {
        None => (read, None, None),
        Some(rewritten) => match prove(&prober, &args.source, &read, rewritten).await? {
            Ok(Proven { source, folding, folder, verdict }) => {
                (source, Some((folding, folder)), Some(verdict))
            }
            // What was asked for is built all the same.
            Err(error) => return Err(unchecked(&builder::build_source(read, &args.source, &out)?, error)),
        },
    };
    let built = builder::build_source(source.clone(), &args.source, &out)?;
    let (mut checked, mut linted) = (None, None);
    if !args.no_probe {
        // The digest covers every blob: what has the same one was checked already, when its folding was proven.
        let proof = proof.filter(|one| one.digest == built.digest && one.bundle == built.name);
        checked = Some(match proof {
            Some(verdict) => verdict,
            None => prober
                .probe(&out, &built.name, built.digest)
                .await
                .map_err(|error| unchecked(&built, error))?,
        });
        linted = Some(lint::of_source(&prober, &source, false).await);
    }
    let folding = folding.map(|(folding, _folder)| folding);
    // Findings are a courtesy: without them the bundle is as good.
    let (linted, unlinted) = match linted {
        Some(Ok(linted)) => (linted, None),
        Some(Err(failure)) => (vec![], Some(failure.message)),
        None => (vec![], None),
    };
    let value = json!({
        "bundle": built.name,
        "digest": built.digest,
        "dir": built.dir,
        "blobs": built.blobs,
        "bytes": built.bytes,
        "kept_release": built.kept_release,
        "fold": folding,
        "lint": linted,
        "verdict": checked,
    });
    context.print(&value, |_| {
        text(&built, &out, folding.as_ref(), &linted, unlinted.as_deref(), checked.as_ref())
    })?;
    match checked {
        Some(verdict) if !verdict.ok => Err(verdict::failure(&verdict)),
        _ => Ok(()),
    }
}

/// What devices will count by, made by the agent from the held-out rows that the source names.
async fn baseline(prober: &Prober, dir: &std::path::Path, read: &BundleSource) -> Result<Vec<u8>, Failure> {
    let Some(data) = &read.baseline_data else { return Ok(vec![]) };
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("bundle");
    builder::build_source(read.clone(), dir, &out)?;
    prober.baseline(&out, data).await.map_err(|error| {
        Failure::from(error)
            .hint("name the agent with --agent-bin, or write the file with `edgefleet-agent baseline`")
    })
}

/// The f32 model for any architecture, folded; `None` if there is nothing to fold. Other variants are
/// made of one that was trained or calibrated as it is.
fn rewrite(read: &BundleSource) -> Result<Option<Rewritten>, Failure> {
    let meant = |artifact: &&source::ArtifactSource| {
        artifact.precision == Precision::F32 && artifact.targets.is_empty()
    };
    let Some(artifact) = read.artifacts.iter().find(meant) else { return Ok(None) };
    // Too large or gone by now: the builder says so where it matters.
    let Ok(bytes) = read_bounded(&artifact.path, fold::MAX_FOLDED_BYTES).map(Bytes::from) else {
        return Ok(None);
    };
    let Some(folded) = fold::fold(&bytes, &read.interface) else { return Ok(None) };
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(artifact.path.file_name().unwrap_or("model.onnx".as_ref()));
    fs::write(&path, &folded.bytes)?;
    let mut source = read.clone();
    for other in source.artifacts.iter_mut().filter(|other| other.path == artifact.path) {
        other.path.clone_from(&path);
    }
    let folding = Folding {
        kept: false,
        reason: None,
        done: folded.done,
        bytes_before: bytes.len() as u64,
        bytes_after: folded.bytes.len() as u64,
        p50_ms: None,
        load_ms: None,
    };
    Ok(Some(Rewritten { source, folding, folder }))
}

/// What is to be built, and what the agent said of it.
struct Proven {
    source: BundleSource,
    folding: Folding,
    folder: tempfile::TempDir,
    verdict: ProbeVerdict,
}

/// Has the agent check the bundle as it is and folded, and keeps what is proven. The inner error: the agent
/// gave no verdict.
async fn prove(
    prober: &Prober,
    dir: &std::path::Path,
    read: &BundleSource,
    rewritten: Rewritten,
) -> Result<Result<Proven, ProbeError>, Failure> {
    let Rewritten { source, mut folding, folder } = rewritten;
    let checked = async |name: &str, source: &BundleSource| -> Result<_, Failure> {
        let out = folder.path().join(name);
        let built = builder::build_source(source.clone(), dir, &out)?;
        Ok(prober.probe(&out, &built.name, built.digest).await)
    };
    let before = match checked("original", read).await? {
        Ok(verdict) => verdict,
        Err(error) => return Ok(Err(error)),
    };
    let after = match checked("folded", &source).await? {
        Ok(verdict) => verdict,
        Err(error) => return Ok(Err(error)),
    };
    folding.reason = refusal(&before, &after);
    folding.kept = folding.reason.is_none();
    let same_engine = before.engine == after.engine;
    if let (Some(a), Some(b), true) = (&before.measured, &after.measured, same_engine) {
        folding.p50_ms = Some((a.p50_ms, b.p50_ms));
        folding.load_ms = Some((a.load_ms, b.load_ms));
    }
    let (source, verdict) = if folding.kept { (source, after) } else { (read.clone(), before) };
    Ok(Ok(Proven { source, folding, folder, verdict }))
}

/// Why the folded bundle must not take the place of the original.
fn refusal(before: &ProbeVerdict, after: &ProbeVerdict) -> Option<String> {
    if let Some(failure) = &after.failure {
        return Some(format!("{}: {}", failure.code.as_str(), failure.message));
    }
    if !after.ok {
        return Some("its check failed".to_owned());
    }
    let lost = before.passed.iter().find(|setup| !after.passed.contains(setup));
    lost.map(|setup| format!("{setup} passes with the original only"))
}

fn text(
    built: &Built,
    out: &std::path::Path,
    folding: Option<&Folding>,
    linted: &[Linted],
    unlinted: Option<&str>,
    checked: Option<&ProbeVerdict>,
) -> String {
    let mut parts = vec![format!(
        "Built {} in {}: {} blobs, {}\n{}",
        built.name,
        out.display(),
        built.blobs,
        HumanBytes(built.bytes),
        built.digest,
    )];
    parts.extend(folding.map(folded));
    match checked {
        Some(verdict) => parts.push(verdict::show(verdict)),
        None => parts.push("Not checked (--no-probe); the controller will check it at the push.".to_owned()),
    }
    for linted in linted.iter().filter(|linted| !linted.findings.is_empty()) {
        parts.push(format!("{}\n{}", linted.file, lint::findings(&linted.findings)));
    }
    parts.extend(unlinted.map(|why| format!("No findings: {why}")));
    if checked.is_none_or(|verdict| verdict.ok) {
        parts.push(match built.kept_release {
            true => "Nothing changed since it was signed.".to_owned(),
            false => format!("Next: edgefleet model sign {} --key PUBLISHER_KEY", out.display()),
        });
    }
    parts.join("\n\n")
}

fn folded(folding: &Folding) -> String {
    let mut text = match &folding.reason {
        Some(reason) => format!("NOT FOLDED: the original was kept, because {reason}"),
        None => {
            format!("FOLDED: {} became {}", HumanBytes(folding.bytes_before), HumanBytes(folding.bytes_after))
        }
    };
    if let (Some((before, after)), None) = (folding.p50_ms, &folding.reason) {
        text += &format!(", one inference {before:.3} ms became {after:.3} ms");
    }
    for done in &folding.done {
        text += &format!("\n  - {done}");
    }
    text
}
