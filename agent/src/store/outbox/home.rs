//! Opens sled 0.34.7 without trusting it: a damaged store panics, hangs or silently opens empty.
//!
//! Rules (measured on damaged files): open on a thread of its own, under `catch_unwind`, 20 s at most;
//! delete leftover `snap.*.generating` before; on failure delete `snap.*` and try once more; then set
//! the folder aside as `<dir>.bad-1` (one is kept) and start empty. A marker file beside the store
//! remembers how much there was, so that an emptied store is loss and not news.

use super::OutboxError;
use crate::store::files;
use serde::{Deserialize, Serialize};
use std::{
    any::Any,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

const OPEN_PATIENCE: Duration = Duration::from_secs(20);
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
const CACHE_BYTES: u64 = 4 << 20;
/// Meta record inside the store, written with every batch.
const META_KEY: &[u8] = b"meta";

/// How far the queue came: inside the store (atomic with its records) and in the marker beside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    /// Highest place ever used.
    pub last: u64,
    /// Records kept.
    pub live: u64,
    /// No mergeable record beyond this place was ever handed out; `None` in stores of before there was merging.
    #[serde(default)]
    pub handed: Option<u64>,
}

/// One record as found, not yet believed.
pub(super) struct Found {
    pub position: u64,
    pub bytes: Vec<u8>,
}

pub(super) struct Home {
    dir: PathBuf,
    db: sled::Db,
}

/// A store that opened, and what it took.
pub(super) struct Opened {
    pub home: Home,
    pub meta: Option<Meta>,
    pub found: Vec<Found>,
    /// What had to be mended.
    pub mended: Option<String>,
}

enum Attempt {
    Open(Box<(sled::Db, Option<Meta>, Vec<Found>)>),
    InUse,
    /// Not damage: the disk does not let us now.
    DiskRefuses(String),
    Damaged(String),
}

impl Home {
    /// # Errors
    /// [`OutboxError::InUse`] and [`OutboxError::Store`] where trying later may help.
    pub(super) fn open(dir: &Path) -> Result<Opened, OutboxError> {
        let failed = |reason: String| OutboxError::Store { path: dir.to_owned(), reason };
        remove_snapshots(dir, |name| name.ends_with(".generating"));
        let mut mended = None;
        let (mut round, mut tries) = (0, 0);
        loop {
            match attempt(dir) {
                Attempt::Open(open) => {
                    let (db, meta, found) = *open;
                    return Ok(Opened { home: Self { dir: dir.to_owned(), db }, meta, found, mended });
                }
                // A handle on its way out keeps the lock for a moment.
                Attempt::InUse if tries < LOCK_TRIES => {
                    tries += 1;
                    thread::sleep(LOCK_PAUSE);
                }
                Attempt::InUse => return Err(OutboxError::InUse { path: dir.to_owned() }),
                Attempt::DiskRefuses(reason) => return Err(failed(reason)),
                Attempt::Damaged(reason) if round == 0 && remove_snapshots(dir, |_| true) > 0 => {
                    mended = Some(format!("its snapshots were deleted ({reason})"));
                    round += 1;
                }
                Attempt::Damaged(reason) if round < 2 => {
                    let aside = files::with_suffix(dir, ".bad-1");
                    fs::remove_dir_all(&aside).ok(); // an older one; if it stays, the rename says so
                    fs::rename(dir, &aside)
                        .map_err(|e| failed(format!("{reason}; setting it aside: {e}")))?;
                    mended = Some(format!("it was set aside as `{}` ({reason})", aside.display()));
                    round += 1;
                }
                Attempt::Damaged(reason) => return Err(failed(reason)),
            }
        }
    }

    /// Applies `batch` and makes it durable: sled's flush alone syncs neither file size nor disk cache.
    pub(super) fn write(&self, mut batch: sled::Batch, meta: Meta) -> Result<(), String> {
        batch.insert(META_KEY, serde_json::to_vec(&meta).unwrap_or_default()); // plain data
        guarded(|| {
            self.db.apply_batch(batch).map_err(|e| e.to_string())?;
            self.db.flush().map_err(|e| e.to_string())?;
            fs::File::open(self.dir.join("db")).and_then(|file| file.sync_all()).map_err(|e| e.to_string())
        })?;
        write_marker(&self.dir, meta).map_err(|e| format!("writing its marker: {e}"))
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        guarded(|| self.db.get(key).map(|found| found.map(|bytes| bytes.to_vec())).map_err(|e| e.to_string()))
    }

    pub(super) fn size_on_disk(&self) -> u64 {
        guarded(|| self.db.size_on_disk().map_err(|e| e.to_string())).unwrap_or(0)
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panic_text(&*panic)))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no words");
    format!("sled panicked: {}", text.chars().take(200).collect::<String>())
}

/// Opens and reads everything once, so that damage shows now.
fn attempt(dir: &Path) -> Attempt {
    let (answer, answered) = mpsc::channel();
    let path = dir.to_owned();
    let spawned = thread::Builder::new().name("outbox-open".into()).spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(|| read_all(&path)));
        answer.send(result.map_err(|panic| panic_text(&*panic))).ok();
    });
    if let Err(e) = spawned {
        return Attempt::DiskRefuses(format!("no thread to open it: {e}"));
    }
    match answered.recv_timeout(OPEN_PATIENCE) {
        Err(_) => Attempt::Damaged(format!("it did not open within {} s", OPEN_PATIENCE.as_secs())),
        Ok(Err(panic)) => Attempt::Damaged(panic),
        Ok(Ok(Ok(open))) => Attempt::Open(Box::new(open)),
        Ok(Ok(Err(sled::Error::Io(e)))) => judge_io(&e),
        Ok(Ok(Err(e))) => Attempt::Damaged(e.to_string()),
    }
}

fn judge_io(e: &io::Error) -> Attempt {
    let text = e.to_string();
    if text.contains("could not acquire lock") {
        return Attempt::InUse;
    }
    match e.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::PermissionDenied => Attempt::DiskRefuses(text),
        _ => Attempt::Damaged(text),
    }
}

type Contents = (sled::Db, Option<Meta>, Vec<Found>);

fn read_all(dir: &Path) -> Result<Contents, sled::Error> {
    let db = sled::Config::new()
        .path(dir)
        .cache_capacity(CACHE_BYTES)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(None) // we flush when we have promised something
        .open()?;
    let meta = db.get(META_KEY)?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut found = Vec::new();
    for entry in db.iter() {
        let (key, value) = entry?;
        if let Ok(position) = <[u8; 8]>::try_from(key.as_ref()) {
            found.push(Found { position: u64::from_be_bytes(position), bytes: value.to_vec() });
        }
    }
    Ok((db, meta, found))
}

/// Deletes snapshot files that `which` picks; returns how many.
fn remove_snapshots(dir: &Path, which: impl Fn(&str) -> bool) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let names = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("snap.") && which(name))
    });
    names.filter(|entry| fs::remove_file(entry.path()).is_ok()).count()
}

fn marker_path(dir: &Path) -> PathBuf {
    files::with_suffix(dir, ".marker.json")
}

/// `None` if there is none or it cannot be read; the store then speaks for itself.
pub(super) fn read_marker(dir: &Path) -> Option<Meta> {
    serde_json::from_slice(&files::read_bounded(&marker_path(dir), 4096).ok()?).ok()
}

fn write_marker(dir: &Path, meta: Meta) -> io::Result<()> {
    files::replace(&marker_path(dir), &serde_json::to_vec(&meta).unwrap_or_default(), 0o644)
}
