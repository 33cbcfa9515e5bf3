//! Making a backup, beside a running controller or instead of one.

use super::{
    BackupError, Passphrase, Summary,
    content::{FORMAT, Head, VERSION, list_text, write_record},
    seal::{Cost, Sealer},
};
use crate::{
    blobs::{BlobError, BlobInfo, BlobStore, local::LocalBlobs},
    fleet::{Actor, data_dir::DataDir},
    store::{
        ExportSummary, FleetStore, StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
        sled_home::{SledConfig, SledStore},
    },
};
use edgefleet_shared::{
    digest::{BlobDigest, DigestHasher},
    time::Timestamp,
};
use parking_lot::Mutex;
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::runtime::Handle;

/// Folders of the data folder that are taken as they are.
pub(super) const FOLDERS: [&str; 3] = ["ca", "keys", "trust"];
/// Files beside them.
pub(super) const FILES: [&str; 1] = ["admin-token"];
/// What is taken in another way or made anew at every start.
const KNOWN: [&str; 4] = ["store", "blobs", "run", "controller.lock"];
/// Keys, certificates and trust documents have a few KiB; revocation lists grow with the fleet.
pub(super) const MAX_FILE_BYTES: u64 = 16 << 20;
pub(super) const MAX_DEPTH: usize = 4;
/// Exports are text with repetitions: the fastest level already divides them by four and more.
const COMPRESSION: i32 = 1;
const PIECE_BYTES: u64 = 1 << 20;

/// What a backup is made of.
#[derive(Clone)]
pub struct BackupParts {
    pub store: Arc<dyn FleetStore>,
    /// The one of this process.
    pub audit: Arc<AuditLog>,
    pub blobs: Arc<dyn BlobStore>,
    /// The data folder.
    pub data: PathBuf,
}

/// How to make it, and who asks.
#[derive(Clone, Debug)]
pub struct Order {
    pub passphrase: Passphrase,
    /// Take the bytes of blobs as well.
    pub with_blobs: bool,
    pub cost: Cost,
    pub actor: Actor,
    pub now: Timestamp,
}

/// Writes a backup to `out` and gives it back, flushed but not fsynced.
///
/// Commits to the store wait while it is copied (compressed, to an unnamed file in the data folder), not while
/// `out` is written. The audit entry `backup.create` comes first and is in the backup.
///
/// # Errors
/// [`BackupError`]. What was written to `out` then counts as cut off.
pub async fn write<W: Write + Send + 'static>(
    parts: &BackupParts,
    order: Order,
    out: W,
) -> Result<(Summary, W), BackupError> {
    order.passphrase.check_new()?;
    let draft = AuditDraft {
        at: order.now.to_string(),
        who: order.actor.name().to_owned(),
        action: "backup.create".into(),
        subject: "controller".into(),
        after: Some(if order.with_blobs { "with blobs" } else { "blobs by reference" }.into()),
        ..AuditDraft::default()
    };
    parts.audit.commit(Transaction::new(), &[draft]).await?;
    let export = Export::take(&*parts.store, &parts.data).await?;
    let (blobs, data, runtime) = (Arc::clone(&parts.blobs), parts.data.clone(), Handle::current());
    let writing = tokio::task::spawn_blocking(move || seal(export, &*blobs, &data, &order, &runtime, out));
    writing.await?
}

/// Makes a backup of a data folder that no controller is using.
///
/// # Errors
/// [`BackupError::DataDir`] with [`crate::fleet::data_dir::DataDirError::InUse`] if one is: ask that one then.
pub async fn offline<W: Write + Send + 'static>(
    data: &Path,
    order: Order,
    out: W,
) -> Result<(Summary, W), BackupError> {
    // Opening makes what is missing, so look first.
    if !data.join("store").is_dir() {
        return Err(BackupError::NoController { path: data.to_owned() });
    }
    let dir = DataDir::open(data)?;
    let (store, _) = SledStore::open(SledConfig::new(dir.store())).await?;
    let store: Arc<dyn FleetStore> = Arc::new(store);
    let (blobs, _) = LocalBlobs::open(dir.path().join("blobs")).await?;
    let audit = Arc::new(AuditLog::new(Arc::clone(&store)));
    let parts = BackupParts { store, audit, blobs: Arc::new(blobs), data: data.to_owned() };
    let made = write(&parts, order, out).await;
    parts.store.close().await?;
    made
}

/// A compressed export on disk.
struct Export {
    file: File,
    raw_bytes: u64,
    summary: ExportSummary,
}

impl Export {
    async fn take(store: &dyn FleetStore, data: &Path) -> Result<Self, BackupError> {
        let failed = || BackupError::io("copy the store to an unnamed file in", data);
        let file = tempfile::tempfile_in(data).map_err(failed())?;
        let encoder = zstd::stream::write::Encoder::new(file, COMPRESSION).map_err(failed())?;
        let shared = Arc::new(Mutex::new(Counted { out: encoder, bytes: 0 }));
        let summary = store.export(Box::new(SharedWriter(Arc::clone(&shared)))).await?;
        let counted = Arc::into_inner(shared).map(Mutex::into_inner);
        let kept = || StoreError::Unavailable { reason: "the export is still being written".into() };
        let Counted { out, bytes } = counted.ok_or_else(kept)?;
        let mut file = out.finish().map_err(failed())?;
        file.seek(SeekFrom::Start(0)).map_err(failed())?;
        Ok(Self { file, raw_bytes: bytes, summary })
    }
}

struct Counted<W> {
    out: W,
    bytes: u64,
}

/// The store keeps its writer; this gives it back.
struct SharedWriter<W>(Arc<Mutex<Counted<W>>>);

impl<W: Write> Write for SharedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut counted = self.0.lock();
        let written = counted.out.write(bytes)?;
        counted.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().out.flush()
    }
}

fn seal<W: Write>(
    export: Export,
    blobs: &dyn BlobStore,
    data: &Path,
    order: &Order,
    runtime: &Handle,
    out: W,
) -> Result<(Summary, W), BackupError> {
    let write = BackupError::Write;
    let mut out = Sealer::begin(out, &order.passphrase, order.cost, order.now).map_err(write)?;
    let program = env!("CARGO_PKG_VERSION").to_owned();
    let begin = Head::Begin { format: FORMAT.into(), version: VERSION, created: order.now, program };
    write_record(&mut out, &begin, 0, io::empty()).map_err(write)?;

    let Export { file, raw_bytes, summary } = export;
    let size = file.metadata().map_err(BackupError::io("measure the copy of the store in", data))?.len();
    let head = Head::Store { raw_bytes, summary: summary.clone() };
    write_record(&mut out, &head, size, file).map_err(write)?;

    let Collected { files, left_out } = collect(data)?;
    for file in &files {
        let bytes = fs::read(&file.from).map_err(BackupError::io("read", &file.from))?;
        let head = Head::File { path: file.path.clone(), mode: file.mode };
        write_record(&mut out, &head, bytes.len() as u64, &*bytes).map_err(write)?;
    }

    let listed = runtime.block_on(blobs.list())?;
    let text = list_text(&listed);
    let head = Head::BlobList { count: listed.len() as u64 };
    write_record(&mut out, &head, text.len() as u64, text.as_bytes()).map_err(write)?;
    let (mut included, mut damaged_blobs) = (0, Vec::new());
    for blob in listed.iter().filter(|_| order.with_blobs) {
        match runtime.block_on(blobs.size(&blob.digest)) {
            Ok(size) if size == blob.size => {}
            // Removed since it was listed; a restore reports it as missing.
            Ok(_) | Err(BlobError::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        }
        let hasher = DigestHasher::new();
        let mut body = BlobReader { blobs, blob: *blob, at: 0, piece: bytes::Bytes::new(), runtime, hasher };
        write_record(&mut out, &Head::Blob { digest: blob.digest }, blob.size, &mut body).map_err(write)?;
        included += 1;
        if BlobDigest::from_bytes(body.hasher.finish()) != blob.digest {
            tracing::error!(digest = %blob.digest, "a stored blob is damaged; push its bundle again");
            damaged_blobs.push(blob.digest);
        }
    }
    let files = files.len() as u64;
    write_record(&mut out, &Head::End { files, blobs: included }, 0, io::empty()).map_err(write)?;
    let (out, bytes) = out.finish().map_err(write)?;
    let summary = Summary {
        created: order.now,
        documents: summary.documents,
        log_entries: summary.log_entries,
        revision: summary.revision,
        files,
        blobs_listed: listed.len() as u64,
        blobs_included: included,
        blob_bytes: listed.iter().map(|blob| blob.size).sum(),
        bytes,
        left_out,
        damaged_blobs,
    };
    Ok((summary, out))
}

/// A blob as a stream of bytes, on a thread that may block.
struct BlobReader<'a> {
    blobs: &'a dyn BlobStore,
    blob: BlobInfo,
    at: u64,
    piece: bytes::Bytes,
    runtime: &'a Handle,
    hasher: DigestHasher,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let wanted = PIECE_BYTES.min(self.blob.size - self.at);
            if wanted == 0 {
                return Ok(0);
            }
            let reading = self.blobs.read_range(&self.blob.digest, self.at, wanted);
            self.piece = self.runtime.block_on(reading).map_err(io::Error::other)?;
            self.at += wanted;
            self.hasher.update(&self.piece);
        }
        let taken = self.piece.split_to(out.len().min(self.piece.len()));
        out[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

struct Found {
    /// Below the data folder, with `/`.
    path: String,
    from: PathBuf,
    mode: u32,
}

#[derive(Default)]
struct Collected {
    files: Vec<Found>,
    left_out: Vec<String>,
}

/// The files to take, in the order of their names. Links are not followed: a key that lives elsewhere
/// was put there for a reason.
fn collect(data: &Path) -> Result<Collected, BackupError> {
    let mut found = Collected::default();
    for (name, path) in sorted(data)? {
        let kind = fs::symlink_metadata(&path).map_err(BackupError::io("look at", &path))?;
        if FOLDERS.contains(&name.as_str()) && kind.is_dir() {
            below(&path, &name, 1, &mut found)?;
        } else if FILES.contains(&name.as_str()) && kind.is_file() {
            take(&path, name, &kind, &mut found)?;
        } else if !KNOWN.contains(&name.as_str()) && !is_passing(&name) {
            found.left_out.push(name);
        }
    }
    Ok(found)
}

fn below(dir: &Path, prefix: &str, depth: usize, found: &mut Collected) -> Result<(), BackupError> {
    for (name, path) in sorted(dir)? {
        let below_data = format!("{prefix}/{name}");
        let kind = match fs::symlink_metadata(&path) {
            Ok(kind) => kind,
            // A file that was replaced while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(BackupError::io("look at", path)(error)),
        };
        if is_passing(&name) {
        } else if kind.is_file() && super::restore::is_acceptable(&below_data) {
            take(&path, below_data, &kind, found)?;
        } else if kind.is_dir() && depth < MAX_DEPTH {
            below(&path, &below_data, depth + 1, found)?;
        } else {
            found.left_out.push(below_data);
        }
    }
    Ok(())
}

fn take(path: &Path, name: String, kind: &fs::Metadata, found: &mut Collected) -> Result<(), BackupError> {
    if kind.len() > MAX_FILE_BYTES {
        let (found, limit) = (kind.len(), MAX_FILE_BYTES);
        return Err(BackupError::FileTooLarge { path: path.to_owned(), found, limit });
    }
    let mode = kind.permissions().mode() & 0o777;
    found.files.push(Found { path: name, from: path.to_owned(), mode });
    Ok(())
}

/// Files that are still being written, and what cut writes left.
fn is_passing(name: &str) -> bool {
    name.starts_with('.') || name.ends_with(".part")
}

fn sorted(dir: &Path) -> Result<Vec<(String, PathBuf)>, BackupError> {
    let failed = || BackupError::io("list", dir);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        names.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    names.sort();
    Ok(names)
}
