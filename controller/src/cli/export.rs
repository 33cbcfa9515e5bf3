//! `edgefleet export`: data as files that other programs read as they are.

use super::{client::ApiClient, context::Context, device::encode, failure::Failure, table};
use crate::export::{
    Day,
    folder::{Exporter, FileDone, FolderError, Place, Written},
    row::{Line, Table},
    s3::{S3Access, S3Error, S3Place, S3Url, S3UrlError},
};
use clap::{Args, Subcommand};
use edgefleet_shared::ids::ModelName;
use indicatif::{HumanBytes, HumanCount, ProgressBar};
use serde::Serialize;
use std::{path::PathBuf, str::FromStr};

/// One line of the stream, bytes: a row has a few hundred.
const MAX_LINE: usize = 1 << 20;

#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    Telemetry(TelemetryArgs),
}

/// Write telemetry as Parquet files in Hive-style folders: table, model, date.
///
/// Days are days of UTC and always whole. Exporting a day again replaces its files; files with more rows
/// than the controller still has are kept.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  edgefleet export telemetry --to lake
  edgefleet export telemetry --to lake --table telemetry --table classes --model digits
  edgefleet export telemetry --to lake --from 2026-11-01 --until 2026-12-01
  AWS_ENDPOINT_URL=https://minio.example.com edgefleet export telemetry --to s3://lake/fleet-1
  duckdb -c \"SELECT date, bundle, sum(requests) FROM 'lake/**/*.parquet' GROUP BY ALL\"")]
pub struct TelemetryArgs {
    /// Folder to write to, made if missing; or s3://bucket/prefix, with AWS_ACCESS_KEY_ID and the like in the
    /// environment
    #[arg(long, value_name = "DIR|S3")]
    to: Target,
    /// First day, as 2026-11-23 [default: the first there is]
    #[arg(long, value_name = "DAY")]
    from: Option<Day>,
    /// The day after the last [default: tomorrow]
    #[arg(long, value_name = "DAY")]
    until: Option<Day>,
    /// Only bundles of this model
    #[arg(long, value_name = "NAME")]
    model: Option<ModelName>,
    /// telemetry, classes, labels or channels; repeat it for more than one
    #[arg(long = "table", value_name = "TABLE", default_value = "telemetry")]
    tables: Vec<Table>,
    /// Replace files that have more rows than the controller still has, too
    #[arg(long)]
    replace: bool,
}

/// A folder, or what begins with `s3://`.
#[derive(Clone, Debug)]
enum Target {
    Folder(PathBuf),
    S3(S3Url),
}

impl FromStr for Target {
    type Err = S3UrlError;
    fn from_str(text: &str) -> Result<Self, S3UrlError> {
        match text.starts_with("s3://") {
            true => text.parse().map(Self::S3),
            false => Ok(Self::Folder(PathBuf::from(text))),
        }
    }
}

impl Target {
    fn place(&self) -> Result<Place, Failure> {
        let s3 = |url: &S3Url| {
            let access = S3Access::from_environment(|name| std::env::var(name).ok())?;
            S3Place::new(url, access)
        };
        match self {
            Self::Folder(path) => Ok(Place::Folder(path.clone())),
            Self::S3(url) => Ok(Place::S3(Box::new(s3(url).map_err(told)?))),
        }
    }
}

fn told(error: S3Error) -> Failure {
    match error.hint() {
        Some(hint) => Failure::from(error).hint(hint),
        None => error.into(),
    }
}

/// An export's error with its hint.
fn failed(error: FolderError) -> Failure {
    match error {
        FolderError::S3(error) => told(error),
        other => other.into(),
    }
}

/// What an export did.
#[derive(Debug, Serialize)]
struct Summary {
    from: Day,
    until: Day,
    rows: u64,
    bytes: usize,
    files: Vec<FileDone>,
}

impl ExportCommand {
    /// # Errors
    /// [`Failure`].
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Telemetry(args) => {
                let summary = args.export(&context.client()?).await?;
                context.print(&summary, shown)
            }
        }
    }
}

impl TelemetryArgs {
    fn path(&self) -> String {
        let mut path = "/api/v1/export/telemetry?".to_owned();
        let days = [("from", self.from), ("until", self.until)];
        let mut query: Vec<_> =
            days.iter().filter_map(|(key, day)| Some(format!("{key}={}", (*day)?))).collect();
        query.extend(self.model.iter().map(|model| format!("model={}", encode(model.as_str()))));
        query.extend(self.tables.iter().map(|table| format!("table={table}")));
        path.push_str(&query.join("&"));
        path
    }

    async fn export(&self, client: &ApiClient) -> Result<Summary, Failure> {
        let place = self.to.place()?;
        let mut lines = Lines::new(client.stream(&self.path()).await?);
        let (fleet, from, until) = match lines.next().await? {
            Some(Line::Begin { fleet, from, until }) => (fleet, from, until),
            _ => return Err(Failure::new("the controller's stream does not begin as it should")),
        };
        let bar = ProgressBar::new_spinner();
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        let mut exporter = Exporter::new(place, &fleet, self.replace);
        let mut summary = Summary { from, until, rows: 0, bytes: 0, files: vec![] };
        loop {
            match lines.next().await? {
                Some(Line::Row(row)) => {
                    summary.rows += 1;
                    if summary.rows.is_multiple_of(1_000) {
                        bar.set_message(format!("{} rows, {}", HumanCount(summary.rows), row.day()));
                    }
                    summary.add(exporter.take(*row).await.map_err(failed)?);
                }
                Some(Line::End { rows }) if rows == summary.rows => break,
                Some(Line::End { rows }) => {
                    let got = summary.rows;
                    return Err(Failure::new(format!("the controller sent {rows} rows and {got} arrived")));
                }
                Some(Line::Begin { .. }) | None => {
                    return Err(Failure::new("the controller's stream was cut off")
                        .hint("whole days that were written stay; run it again"));
                }
            }
        }
        summary.add(exporter.finish().await.map_err(failed)?);
        bar.finish_and_clear();
        Ok(summary)
    }
}

impl Summary {
    fn add(&mut self, files: Vec<FileDone>) {
        self.bytes += files.iter().map(|file| file.bytes).sum::<usize>();
        self.files.extend(files);
    }
}

fn shown(summary: &Summary) -> String {
    let count = |outcome| summary.files.iter().filter(|file| file.outcome == outcome).count();
    let mut text = format!(
        "{} rows from {} until {} in {} files ({}): {} new, {} replaced, {} unchanged, {} kept",
        HumanCount(summary.rows),
        summary.from,
        summary.until,
        summary.files.len(),
        HumanBytes(summary.bytes as u64),
        count(Written::New),
        count(Written::Replaced),
        count(Written::Unchanged),
        count(Written::Kept),
    );
    let kept: Vec<_> = summary.files.iter().filter(|file| file.outcome == Written::Kept).collect();
    if !kept.is_empty() {
        let rows = kept.iter().map(|file| vec![file.path.display().to_string(), file.rows.to_string()]);
        text.push_str(
            "\n\nThe controller has fewer rows of these days than the files; they stay as they are:\n",
        );
        text.push_str(&table::of(&["FILE", "ROWS NOW"], rows));
    }
    text
}

/// A stream's lines.
struct Lines {
    response: reqwest::Response,
    buffer: Vec<u8>,
    /// Where the next line begins.
    at: usize,
}

impl Lines {
    fn new(response: reqwest::Response) -> Self {
        Self { response, buffer: Vec::new(), at: 0 }
    }

    async fn next(&mut self) -> Result<Option<Line>, Failure> {
        loop {
            if let Some(length) = self.buffer[self.at..].iter().position(|byte| *byte == b'\n') {
                let line = &self.buffer[self.at..self.at + length];
                self.at += length + 1;
                return Ok(Some(serde_json::from_slice(line)?));
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            if self.buffer.len() > MAX_LINE {
                return Err(Failure::new(format!(
                    "a line of the controller's has more than {MAX_LINE} bytes"
                )));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => {
                    let mut failure = Failure::new("the controller's stream was cut off");
                    failure.causes = super::failure::sources(&error);
                    return Err(failure.hint("whole days that were written stay; run it again"));
                }
            }
        }
    }
}
