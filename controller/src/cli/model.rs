//! `edgefleet model ...`: from an ONNX file to a bundle in the registry.

use super::{
    building::{BuildArgs, build},
    client::ClientError,
    context::Context,
    failure::Failure,
    lint::LintArgs,
    table,
    telemetry::TelemetryArgs,
    verdict,
};
use crate::{
    clock,
    registry::{
        ability::Ability,
        builder::{MANIFEST_FILE, RELEASE_FILE, blob_path},
        engine_use::EngineUse,
        http::{BlobList, BundleView, ModelList, PushBody, PushedView, StoredBlob},
        init,
        record::ModelSummary,
        service::PushOutcome,
    },
    signing::{key_file, release, setup},
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use clap::{Args, Subcommand};
use edgefleet_shared::{
    bundle::{BlobRef, Manifest, manifest::MAX_MANIFEST_BYTES},
    digest::BlobDigest,
    ids::{BundleName, ModelName},
    trust::{RoleName, envelope::MAX_ENVELOPE_BYTES},
};
use futures::{Stream, StreamExt as _};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Build, sign and publish models
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Look into an ONNX file and start a folder to edit
    Init(InitArgs),
    /// Build a source folder into a bundle and check it as a device would
    Build(BuildArgs),
    Lint(LintArgs),
    /// Sign a bundle with publisher keys
    Sign(SignArgs),
    /// Send a signed bundle to the controller
    Push(PushArgs),
    /// List models and their bundles
    List,
    /// Show a model (`digits`) or a bundle (`digits@3`)
    Show(ShowArgs),
    Telemetry(TelemetryArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The ONNX file
    pub model: PathBuf,
    /// New folder; without it, one named like the model in the current folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Name of the model; without it, guessed from the file name
    #[arg(long)]
    pub name: Option<ModelName>,
}

#[derive(Debug, Args)]
pub struct SignArgs {
    /// Bundle folder
    pub bundle: PathBuf,
    /// Private key of a publisher; repeat to sign with several. With --data, the key made on first start
    #[arg(long = "key", value_name = "FILE")]
    pub keys: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct PushArgs {
    /// Bundle folder, signed
    pub bundle: PathBuf,
    /// Accept it although a check fails (role admin, audited)
    #[arg(long, requires = "reason")]
    pub override_checks: bool,
    /// Why, for the audit log
    #[arg(long, requires = "override_checks", value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// `digits` or `digits@3`
    pub name: String,
}

impl ModelCommand {
    /// # Errors
    /// [`Failure`] to print.
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Init(args) => init_folder(context, &args),
            Self::Build(args) => build(context, args).await,
            Self::Lint(args) => args.run(context).await,
            Self::Sign(args) => sign(context, &args),
            Self::Push(args) => push(context, args).await,
            Self::List => list(context).await,
            Self::Show(args) => show(context, &args.name).await,
            Self::Telemetry(args) => args.run(context).await,
        }
    }
}

fn init_folder(context: &Context, args: &InitArgs) -> Result<(), Failure> {
    let stem = args.model.file_stem().and_then(|stem| stem.to_str()).unwrap_or("model");
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(stem));
    let started = init::init(&args.model, &out, args.name.as_ref().map(ModelName::as_str))?;
    let side = |tensors: &[crate::registry::onnx::OnnxTensor]| {
        let one = |t: &crate::registry::onnx::OnnxTensor| json!({"name": t.name, "datatype": t.datatype, "shape": t.shape});
        tensors.iter().map(one).collect::<Vec<_>>()
    };
    let value = json!({
        "dir": started.dir,
        "name": started.name,
        "opsets": started.summary.opsets,
        "inputs": side(&started.summary.inputs),
        "outputs": side(&started.summary.outputs),
        "operators": started.summary.operators,
    });
    context.print(&value, |_| {
        let dir = started.dir.display();
        format!(
            "Wrote {dir}/bundle.toml, {dir}/model.onnx and {dir}/golden/README.md.\n\
             Next: look at the guesses in bundle.toml, put golden samples into {dir}/golden, then\n  \
             edgefleet model build {dir}"
        )
    })
}

fn sign(context: &Context, args: &SignArgs) -> Result<(), Failure> {
    let manifest = read(&args.bundle.join(MANIFEST_FILE), MAX_MANIFEST_BYTES)?;
    let path = args.bundle.join(RELEASE_FILE);
    let present = if path.exists() { Some(read(&path, MAX_ENVELOPE_BYTES as u64)?) } else { None };
    let paths = match (&args.keys[..], context.data()) {
        ([], Some(data)) => vec![setup::key_path(data, RoleName::Publisher)],
        ([], None) => {
            return Err(Failure::usage("no key was given to sign with")
                .hint("use --key FILE; the controller's first start made DATA/keys/publisher.pk8"));
        }
        (paths, _) => paths.to_vec(),
    };
    let keys = paths.iter().map(|path| key_file::read_private(path)).collect::<Result<Vec<_>, _>>()?;
    let signed = release::sign(&manifest, present.as_deref(), &keys, clock::now())?;
    replace(&path, &signed.envelope)?;
    let value = json!({
        "bundle": signed.release.bundle,
        "manifest": signed.release.manifest,
        "release": edgefleet_shared::digest::EnvelopeDigest::of(&signed.envelope),
        "signers": signed.signers,
        "added_to_earlier": signed.extended,
    });
    context.print(&value, |_| {
        let signers: Vec<_> = signed.signers.iter().map(ToString::to_string).collect();
        format!(
            "Signed {} ({}), signatures by {}\nNext: edgefleet model push {}",
            signed.release.bundle,
            signed.release.manifest,
            signers.join(", "),
            args.bundle.display()
        )
    })
}

async fn push(context: &Context, args: PushArgs) -> Result<(), Failure> {
    let manifest_bytes = read(&args.bundle.join(MANIFEST_FILE), MAX_MANIFEST_BYTES)?;
    let release = args.bundle.join(RELEASE_FILE);
    if !release.exists() {
        return Err(Failure::new(format!("`{}` is not signed", args.bundle.display()))
            .hint(format!("edgefleet model sign {} --key PUBLISHER_KEY", args.bundle.display())));
    }
    let release = read(&release, MAX_ENVELOPE_BYTES as u64)?;
    let manifest = Manifest::parse(&manifest_bytes).map_err(|wrong| {
        let mut failure = Failure::new(format!("the manifest of `{}` is not usable", args.bundle.display()));
        failure.causes = wrong.iter().map(ToString::to_string).collect();
        failure
    })?;
    let client = context.client()?;
    let blobs = manifest.blobs();
    let asked = BlobList { digests: blobs.iter().map(|blob| blob.digest).collect() };
    let missing: BlobList = client.post("/api/v1/blobs/missing", &asked).await?;
    let wanted: Vec<&BlobRef> =
        blobs.iter().copied().filter(|blob| missing.digests.contains(&blob.digest)).collect();
    let total = wanted.iter().map(|blob| blob.size).sum();
    eprintln!("{} of {} blobs new, {}", wanted.len(), blobs.len(), HumanBytes(total));
    let bar = ProgressBar::new(total).with_message(manifest.name().to_string());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    for blob in &wanted {
        let stream = blob_stream(&args.bundle, &blob.digest, bar.clone())?;
        let path = format!("/api/v1/blobs/{}", blob.digest);
        let _: StoredBlob = client.upload(&path, blob.size, stream).await?;
    }
    bar.finish_and_clear();
    let body = PushBody {
        manifest: BASE64.encode(&manifest_bytes),
        release: BASE64.encode(&release),
        override_reason: args.reason.filter(|_| args.override_checks),
    };
    let spinner = ProgressBar::new_spinner().with_message("the controller checks the bundle");
    spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    let answer = client.post(&format!("/api/v1/models/{}/bundles", manifest.model.name), &body).await;
    spinner.finish_and_clear();
    let pushed: PushedView = answer.map_err(|error| {
        if let ClientError::Problem(problem) = &error
            && let Some(verdict) = &problem.verdict
        {
            eprintln!("{}", verdict::show(verdict));
        }
        Failure::from(error)
    })?;
    let value = json!({
        "outcome": pushed.outcome,
        "bundle": pushed.bundle,
        "blobs": blobs.len(),
        "uploaded": wanted.len(),
        "uploaded_bytes": total,
    });
    context.print(&value, |_| {
        let record = &pushed.bundle;
        let what = match pushed.outcome {
            PushOutcome::Created => "Pushed",
            PushOutcome::Unchanged => "Nothing to do, the controller has",
            PushOutcome::Resigned => "Renewed the signatures of",
        };
        let mut text = format!("{what} {} ({})\n", record.name, record.digest);
        if let Some(verdict) = &record.checks.verdict {
            text.push_str(&format!("{}\n", verdict::show(verdict)));
        }
        if let Some(overridden) = &record.overridden {
            text.push_str(&format!(
                "Its check FAILED and was overridden by {}: {}\n",
                overridden.by, overridden.reason
            ));
        }
        text.push_str(&format!("Next: edgefleet assign {} --select SELECTOR", record.name));
        text
    })
}

/// The bytes of a blob file, counted as they are read.
fn blob_stream(
    bundle: &Path,
    digest: &BlobDigest,
    bar: ProgressBar,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, Failure> {
    let path = blob_path(bundle, digest);
    let file = fs::File::open(&path).map_err(|e| {
        let mut failure = Failure::new(format!("could not read `{}`", path.display()));
        failure.causes.push(e.to_string());
        failure.hint("the bundle folder is incomplete; build it again")
    })?;
    let reader = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 256 * 1024);
    Ok(reader.inspect(move |chunk| {
        if let Ok(bytes) = chunk {
            bar.inc(bytes.len() as u64);
        }
    }))
}

async fn list(context: &Context) -> Result<(), Failure> {
    let models: ModelList = context.client()?.get("/api/v1/models").await?;
    context.print(&models, |models| {
        if models.items.is_empty() {
            return "No models yet. Begin with `edgefleet model init MODEL.onnx`.".to_owned();
        }
        let rows = models.items.iter().map(|model| {
            let last = model.bundles.last();
            vec![
                model.name.to_string(),
                format!("@{}", model.newest),
                model.bundles.len().to_string(),
                last.map(|line| line.version.clone()).unwrap_or_default(),
                last.map(|line| HumanBytes(line.size).to_string()).unwrap_or_default(),
                last.map(|line| line.at.to_string()).unwrap_or_default(),
            ]
        });
        table::of(&["MODEL", "NEWEST", "BUNDLES", "VERSION", "SIZE", "PUSHED"], rows)
    })
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let client = context.client()?;
    if name.contains('@') {
        let name: BundleName = name.parse().map_err(|e| Failure::usage(format!("{e}")))?;
        let path = format!("/api/v1/models/{}/bundles/{}", name.model, name.counter);
        let view: BundleView = client.get(&path).await?;
        let able: Ability = client.get(&format!("{path}/devices")).await?;
        let engines: EngineUse = client.get(&format!("{path}/engines")).await?;
        let shown = ShownBundle { view, devices: able, engines };
        return context.print(&shown, show_bundle);
    }
    let name: ModelName = name.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    let model: ModelSummary = client.get(&format!("/api/v1/models/{name}")).await?;
    context.print(&model, |model| {
        let rows = model.bundles.iter().map(|line| {
            vec![
                format!("{}@{}", model.name, line.counter),
                line.version.clone(),
                if line.checks_passed { "passed" } else { "FAILED, overridden" }.to_owned(),
                HumanBytes(line.size).to_string(),
                line.at.to_string(),
                line.pushed_by.clone(),
                line.digest.short(),
            ]
        });
        table::of(&["BUNDLE", "VERSION", "CHECK", "SIZE", "PUSHED", "BY", "DIGEST"], rows)
    })
}

/// A bundle, which enrolled devices can take it, and how those that have it run it.
#[derive(Serialize)]
struct ShownBundle {
    #[serde(flatten)]
    view: BundleView,
    devices: Ability,
    engines: EngineUse,
}

fn show_bundle(shown: &ShownBundle) -> String {
    let record = &shown.view.bundle;
    let signers: Vec<_> = record.signers.iter().map(ToString::to_string).collect();
    let overridden = record.overridden.as_ref().map(|one| format!("{} by {}", one.reason, one.by));
    let rows = [
        ("bundle", record.name.to_string()),
        ("version", record.version.clone()),
        ("description", record.description.clone()),
        ("digest", record.digest.to_string()),
        ("release", record.release.to_string()),
        ("signed by", signers.join(", ")),
        ("hardware", if record.hardware.is_empty() { "any".to_owned() } else { record.hardware.join(", ") }),
        ("size", format!("{} in {} blobs", HumanBytes(record.size), record.blobs)),
        ("pushed", format!("{} by {}", record.at, record.pushed_by)),
        ("devices", shown.devices.to_string()),
    ];
    let rows = rows.into_iter().chain(overridden.map(|text| ("check overridden", text)));
    let lineage = shown.view.manifest["lineage"].as_object().into_iter().flatten();
    let lineage =
        lineage.filter_map(|(what, text)| Some((format!("lineage {what}"), text.as_str()?.to_owned())));
    let rows = rows.map(|(field, value)| (field.to_owned(), value)).chain(lineage);
    let rows = rows.map(|(field, value)| vec![field, value]);
    let checks = record.checks.verdict.as_ref().map(verdict::show).unwrap_or_default();
    let parts = [Some(table::of(&["FIELD", "VALUE"], rows)), Some(checks), shown.engines.words()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    crate::registry::source::read_bounded(path, limit).map_err(|e| {
        let mut failure = Failure::new(format!("could not read `{}`", path.display()));
        failure.causes.push(e.to_string());
        failure.hint("name a bundle folder, as `edgefleet model build` writes it")
    })
}

/// Replaces a file as a whole.
pub(in crate::cli) fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};
    let write = || -> io::Result<()> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|e| {
        let mut failure = Failure::new(format!("could not write `{}`", path.display()));
        failure.causes.push(e.to_string());
        failure
    })
}
