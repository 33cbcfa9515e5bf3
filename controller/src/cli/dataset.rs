//! `edgefleet dataset`: labelled captures, frozen and exported.

use super::{context::Context, failure::Failure, table};
use crate::captures::{
    DatasetManifest, DatasetRecord,
    export::{csv_header, csv_line, files, json_line},
    http::{DatasetList, NewDataset},
};
use clap::{Args, Subcommand};
use edgefleet_shared::{
    capture::{Capture, Reason},
    digest::BlobDigest,
    ids::{BundleName, DeviceId, ModelName},
    time::Timestamp,
};
use serde_json::json;
use std::{
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

#[derive(Debug, Subcommand)]
pub enum DatasetCommand {
    Create(CreateArgs),
    /// List data sets
    List,
    /// Show one data set
    Show {
        name: String,
    },
    Export(ExportArgs),
}

/// Freeze labelled captures as a data set; its digest is what `lineage.dataset` of the next bundle names
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  edgefleet dataset create digits-hard-1 --model digits --reason low-margin"
)]
pub struct CreateArgs {
    /// 1 to 63 of a-z, 0-9, `-`, `_` and `.`
    name: String,
    #[arg(long)]
    model: ModelName,
    #[arg(long)]
    bundle: Option<BundleName>,
    #[arg(long)]
    device: Option<DeviceId>,
    #[arg(long)]
    reason: Option<Reason>,
    /// Only what was answered at or after this time, RFC 3339
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
}

/// Write a data set as files: inputs as .npy or the pictures they were, index.jsonl and index.csv
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  edgefleet dataset export digits-hard-1 ./digits-hard-1")]
pub struct ExportArgs {
    name: String,
    /// Made if it is not there; must be empty
    dir: PathBuf,
}

impl DatasetCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(CreateArgs { name, model, bundle, device, reason, since }) => {
                let new = NewDataset { name, model, bundle, device, reason, since };
                let made: DatasetRecord = context.client()?.post("/api/v1/datasets", &new).await?;
                context.print(&made, show)
            }
            Self::List => {
                let all: DatasetList = context.client()?.get("/api/v1/datasets").await?;
                context.print(&all.items, |all| {
                    let rows = all.iter().map(|one| {
                        let (rows, at) = (one.rows.to_string(), one.created.to_string());
                        vec![one.name.clone(), one.model.to_string(), rows, at, one.digest.to_string()]
                    });
                    table::of(&["DATASET", "MODEL", "ROWS", "CREATED", "DIGEST"], rows)
                })
            }
            Self::Show { name } => {
                let found: DatasetRecord = context
                    .client()?
                    .get(&format!("/api/v1/datasets/{}", super::device::encode(&name)))
                    .await?;
                context.print(&found, show)
            }
            Self::Export(args) => export(&args, context).await,
        }
    }
}

fn show(set: &DatasetRecord) -> String {
    let classes: Vec<_> = set.classes.iter().map(|(class, n)| format!("{class} {n}")).collect();
    format!(
        "dataset    {} of {}\ndigest     {}\nrows       {}: {}\ncreated    {} by {}\n\
         lineage    dataset = \"{}\"",
        set.name,
        set.model,
        set.digest,
        set.rows,
        classes.join(", "),
        set.created,
        set.by,
        set.digest
    )
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let mut failure = Failure::new(format!("could not write `{}`", path.display()));
    failure.causes.push(error.to_string());
    failure
}

async fn export(ExportArgs { name, dir }: &ExportArgs, context: &Context) -> Result<(), Failure> {
    let client = context.client()?;
    let at = format!("/api/v1/datasets/{}", super::device::encode(name));
    let record: DatasetRecord = client.get(&at).await?;
    let raw = client.get_bytes(&format!("{at}/manifest")).await?;
    if BlobDigest::of(&raw) != record.digest {
        return Err(Failure::new(format!("the manifest of `{name}` is not the one its digest names")));
    }
    let manifest: DatasetManifest = serde_json::from_slice(&raw)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| unwritable(&path, &error)
    };
    fs::create_dir_all(dir.join("inputs")).map_err(failed(dir))?;
    let strangers = fs::read_dir(dir).map_err(failed(dir))?.count() != 1
        || fs::read_dir(dir.join("inputs")).map_err(failed(dir))?.next().is_some();
    if strangers {
        return Err(Failure::usage(format!("`{}` is not empty", dir.display())));
    }
    let open = |name: &str| {
        let path = dir.join(name);
        fs::File::create(&path).map(BufWriter::new).map_err(|e| unwritable(&path, &e))
    };
    let (mut lines, mut table) = (open("index.jsonl")?, open("index.csv")?);
    table.write_all(csv_header().as_bytes()).map_err(failed(dir))?;
    let (mut written, mut bytes) = (0u64, 0u64);
    for row in &manifest.rows {
        let file = client.get_bytes(&format!("/api/v1/captures/{}/content", row.capture)).await?;
        if Capture::id(&file) != row.capture {
            return Err(Failure::new(format!("the bytes of {} are not those of the data set", row.capture)));
        }
        let capture = Capture::parse(&file).map_err(|e| Failure::new(format!("{}: {e}", row.capture)))?;
        let files = files(row, &capture);
        for file in &files {
            let path = dir.join(&file.path);
            fs::write(&path, &file.bytes).map_err(failed(&path))?;
            (written, bytes) = (written + 1, bytes + file.bytes.len() as u64);
        }
        lines.write_all(json_line(row, &files).as_bytes()).map_err(failed(dir))?;
        table.write_all(csv_line(row, &files).as_bytes()).map_err(failed(dir))?;
    }
    lines.flush().map_err(failed(dir))?;
    table.flush().map_err(failed(dir))?;
    // Last, so that a folder with a manifest is a whole export.
    fs::write(dir.join("manifest.json"), &raw).map_err(failed(dir))?;
    let done = json!({
        "dataset": record.name, "digest": record.digest, "rows": manifest.rows.len(), "files": written,
        "bytes": bytes, "dir": dir,
    });
    context.print(&done, |_| {
        let (rows, dir) = (manifest.rows.len(), dir.display());
        format!(
            "{rows} rows, {written} files with {bytes} bytes in {dir}; lineage.dataset is {}",
            record.digest
        )
    })
}
