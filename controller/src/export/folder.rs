//! Hive-style folders, on a disk or as objects in S3: `table=telemetry/model=digits/date=2026-11-23/part-DIGEST.parquet`.
//!
//! A table's day of one model is one file, named by fleet, table, model and day, so that exporting it again replaces
//! it by a rename: readers see the old rows or the new ones, never both, never half a file.

use super::{
    day::Day,
    parquet_file::{rows_of, write},
    row::{Row, Table, columns},
    s3::{S3Error, S3Place},
};
use edgefleet_shared::{digest::encode_hex, ids::ModelName};
use parquet::errors::ParquetError;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Why an export could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("could not write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("could not put {rows} rows of {table} into a Parquet file")]
    Parquet { table: Table, rows: usize, source: ParquetError },
    #[error(transparent)]
    S3(#[from] S3Error),
}

/// Where files go.
pub enum Place {
    Folder(PathBuf),
    S3(Box<S3Place>),
}

impl Place {
    /// What is there under this name; `None`: nothing.
    async fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
        match self {
            Self::Folder(root) => match fs::read(root.join(path)) {
                Ok(old) => Ok(Some(old)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(FolderError::Write { path: root.join(path), source }),
            },
            Self::S3(place) => Ok(place.read(&object_of(path)).await?),
        }
    }

    /// Whole, in place of what is there.
    async fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<(), FolderError> {
        match self {
            Self::Folder(root) => {
                let whole = root.join(path);
                put(&whole, &bytes).map_err(|source| FolderError::Write { path: whole, source })
            }
            Self::S3(place) => Ok(place.put(&object_of(path), bytes.into()).await?),
        }
    }
}

/// The file's name with slashes, whatever machine writes it.
fn object_of(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Partition {
    pub table: Table,
    pub model: ModelName,
    pub day: Day,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Written {
    New,
    Replaced,
    /// The same rows were there already.
    Unchanged,
    /// What is there has more rows than the controller still has: retention has been at work.
    Kept,
}

/// One file of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileDone {
    /// Below the folder.
    pub path: PathBuf,
    pub rows: usize,
    pub bytes: usize,
    pub outcome: Written,
}

/// Collects rows and writes them, a day at a time.
pub struct Exporter {
    place: Place,
    fleet: String,
    /// Replace files that have more rows, too.
    replace: bool,
    waiting: BTreeMap<Partition, Vec<Row>>,
}

impl Exporter {
    /// `fleet`: as the stream names it.
    pub fn new(place: Place, fleet: &str, replace: bool) -> Self {
        Self { place, fleet: fleet.to_owned(), replace, waiting: BTreeMap::new() }
    }

    /// Takes a row in. The files of all earlier days are written then: rows come day by day.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn take(&mut self, row: Row) -> Result<Vec<FileDone>, FolderError> {
        let day = row.day();
        let done = match self.waiting.first_key_value() {
            Some(_) if self.waiting.keys().any(|partition| partition.day < day) => self.finish().await?,
            _ => vec![],
        };
        let partition = Partition { table: row.table(), model: row.bucket.model.clone(), day };
        self.waiting.entry(partition).or_default().push(row);
        Ok(done)
    }

    /// Writes what is waiting.
    ///
    /// # Errors
    /// [`FolderError`].
    pub async fn finish(&mut self) -> Result<Vec<FileDone>, FolderError> {
        let waiting = std::mem::take(&mut self.waiting);
        let mut done = Vec::new();
        for (partition, rows) in waiting {
            done.push(self.write(&partition, rows).await?);
        }
        Ok(done)
    }

    async fn write(&self, partition: &Partition, mut rows: Vec<Row>) -> Result<FileDone, FolderError> {
        rows.sort_by(|a, b| a.bucket.cmp(&b.bucket));
        let Partition { table, .. } = *partition;
        let parquet = |source| FolderError::Parquet { table, rows: rows.len(), source };
        let bytes = write(&columns(table, &rows)).map_err(parquet)?;
        let path = path_of(partition, &self.fleet);
        let outcome = match self.place.read(&path).await? {
            Some(old) if old == bytes => Written::Unchanged,
            // One that cannot be read is worth less than anything.
            Some(old) if !self.replace && rows_of(&old).is_ok_and(|n| n > rows.len() as u64) => Written::Kept,
            Some(_) => Written::Replaced,
            None => Written::New,
        };
        let size = bytes.len();
        if matches!(outcome, Written::New | Written::Replaced) {
            self.place.put(&path, bytes).await?;
        }
        Ok(FileDone { path, rows: rows.len(), bytes: size, outcome })
    }
}

/// Below the folder of the export.
pub fn path_of(partition: &Partition, fleet: &str) -> PathBuf {
    let Partition { table, model, day } = partition;
    let digest = Sha256::digest(format!("{fleet}/{table}/{model}/{day}"));
    let part = format!("part-{}.parquet", encode_hex(&digest[..8]));
    PathBuf::from(format!("table={table}"))
        .join(format!("model={model}"))
        .join(format!("date={day}"))
        .join(part)
}

/// Durable, and whole at every moment.
fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    // Its name ends otherwise: no reader's pattern finds it.
    let mut file = tempfile::Builder::new()
        .prefix(".part-")
        .suffix(".tmp")
        // What is exported is for others to read.
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}
