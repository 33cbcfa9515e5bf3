//! Opening sled without trusting it: on its own thread, with a time limit, panics caught, leftovers removed
//! and every record checked. What cannot be trusted is reported; the files are never changed to look well.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::record::{self, Key, Totals};
use super::{OnDamage, OpenOutcome, SledConfig, marker, space};
use crate::store::StoreError;

/// sled's own folder inside the store's.
pub(super) const FOLDER: &str = "sled";
const TREE: &str = "records";
/// Reading 5 million records took about this long on a small machine.
const CHECK_LIMIT: Duration = Duration::from_secs(600);
/// Dropping sled joins its threads; a store that died of a full disk may not come back from that.
const DROP_LIMIT: Duration = Duration::from_secs(5);
/// How long opening waits for a handle on sled's file that is on its way out.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);
/// As many broken folders are kept before opening gives up instead of adding one more.
const MAX_SET_ASIDE: u32 = 1_000;

/// An open sled and the two handles whose fsync makes its writes durable.
pub(super) struct Engine {
    pub(super) db: sled::Db,
    pub(super) tree: sled::Tree,
    /// `<folder>/db`: sled itself only calls `sync_file_range`, which a power cut does not respect.
    file: File,
    /// sled keeps large pages as files of their own here.
    heap: File,
}

impl Engine {
    fn open(folder: &Path, cache_bytes: u64) -> Result<Self, sled::Error> {
        let db =
            sled::Config::new().path(folder).cache_capacity(cache_bytes).mode(sled::Mode::LowSpace).open()?;
        let tree = db.open_tree(TREE)?;
        db.flush()?;
        let engine =
            Self { file: File::open(folder.join("db"))?, heap: File::open(folder.join("blobs"))?, db, tree };
        engine.sync()?;
        // The names of the files themselves.
        File::open(folder)?.sync_all()?;
        Ok(engine)
    }

    /// Returns when everything applied so far would survive a power cut.
    pub(super) fn sync(&self) -> Result<(), sled::Error> {
        self.db.flush()?;
        self.file.sync_all()?;
        self.heap.sync_all()?;
        Ok(())
    }

    /// Reads every record and compares it with the totals.
    ///
    /// # Errors
    /// The first thing that is not as it was written.
    pub(super) fn check(&self) -> Result<Totals, String> {
        let totals = match self.tree.get(record::TOTALS_KEY).map_err(|error| error.to_string())? {
            Some(value) => Totals::decode(&value).map_err(|reason| format!("totals: {reason}"))?,
            None => Totals::default(),
        };
        if totals.importing {
            return Ok(totals);
        }
        let mut found = Totals { revision: totals.revision, ..Totals::default() };
        let mut last_log: Option<(String, u64)> = None;
        for pair in self.tree.iter() {
            let (key, value) = pair.map_err(|error| error.to_string())?;
            let wrong = |reason: &str| format!("{}: {reason}", record::describe(&key));
            match record::parse_key(&key).ok_or_else(|| wrong("it is not of this format"))? {
                Key::Totals => continue,
                Key::Document { .. } => {}
                Key::Log { name, seq } => {
                    let wanted = match &last_log {
                        Some((last, number)) if last == name => number + 1,
                        Some(_) | None => 1,
                    };
                    if seq != wanted {
                        return Err(wrong(&format!("entry {wanted} should be there")));
                    }
                    last_log = Some((name.to_owned(), seq));
                }
            }
            let (revision, _) = record::decode(&key, &value).map_err(|reason| wrong(&reason))?;
            if revision > totals.revision {
                return Err(wrong(&format!(
                    "revision {revision} is newer than the newest, {}",
                    totals.revision
                )));
            }
            found.add(&key, revision);
        }
        if (found.documents, found.log_entries) != (totals.documents, totals.log_entries) {
            return Err(format!(
                "{} documents and {} log entries are there, {} and {} should be",
                found.documents, found.log_entries, totals.documents, totals.log_entries
            ));
        }
        if found.fingerprint != totals.fingerprint {
            return Err("some records are older copies of what was acknowledged".to_owned());
        }
        Ok(totals)
    }
}

/// Why one attempt at opening failed.
enum Failure {
    /// Retrying without snapshots may help; else the files are broken.
    Damage(String),
    /// Nothing is wrong with the files.
    Circumstance(StoreError),
}

/// Opens the store in `config.dir`, whose lock the caller holds.
pub(super) fn open_guarded(config: &SledConfig) -> Result<(Engine, Totals, OpenOutcome), StoreError> {
    let folder = config.dir.join(FOLDER);
    let trouble = |error: io::Error| {
        StoreError::unavailable(format!("could not prepare `{}`: {error}", folder.display()))
    };
    remove_snapshots(&folder, |name| name.ends_with(".generating")).map_err(trouble)?;
    let mut outcome = OpenOutcome::Clean;
    let mut opened = attempt(config, &folder);
    if let Err(Failure::Damage(_)) = &opened
        && remove_snapshots(&folder, |_| true).map_err(trouble)? > 0
    {
        outcome = OpenOutcome::SnapshotRepaired;
        opened = attempt(config, &folder);
    }
    match opened {
        Ok((engine, totals)) if totals.importing => {
            drop_guarded(engine);
            fs::remove_dir_all(&folder).map_err(trouble)?;
            let (engine, totals) = fresh(config, &folder)?;
            Ok((engine, totals, OpenOutcome::UnfinishedImportDiscarded))
        }
        Ok((engine, totals)) => Ok((engine, totals, outcome)),
        Err(Failure::Circumstance(error)) => Err(error),
        Err(Failure::Damage(reason)) => match (config.on_damage, space::refusal(&config.dir, config.disk)) {
            // sled cannot open on a full disk, and says so in the same words as when it is broken.
            (_, Some(full)) => Err(StoreError::unavailable(full)),
            (OnDamage::Refuse, None) => Err(StoreError::Damaged { dir: config.dir.clone(), reason }),
            (OnDamage::SetAside, None) => {
                let path = set_aside(config, &folder).map_err(trouble)?;
                let (engine, totals) = fresh(config, &folder)?;
                Ok((engine, totals, OpenOutcome::SetAside { path, reason }))
            }
        },
    }
}

fn fresh(config: &SledConfig, folder: &Path) -> Result<(Engine, Totals), StoreError> {
    attempt(config, folder).map_err(|failure| match failure {
        Failure::Damage(reason) => StoreError::unavailable(format!(
            "could not create a new store in `{}`: {reason}",
            folder.display()
        )),
        Failure::Circumstance(error) => error,
    })
}

fn attempt(config: &SledConfig, folder: &Path) -> Result<(Engine, Totals), Failure> {
    enum Step {
        Opened,
        Checked(Box<(Engine, Totals)>),
    }
    let (report, steps) = mpsc::channel::<Result<Step, Failure>>();
    let (folder_there, cache_bytes) = (folder.to_owned(), config.cache_bytes);
    let spawned = thread::Builder::new().name("store-open".to_owned()).spawn(move || {
        let engine = match open_once_released(&folder_there, cache_bytes) {
            Ok(engine) => engine,
            Err(failure) => return drop(report.send(Err(failure))),
        };
        if report.send(Ok(Step::Opened)).is_err() {
            return; // nobody waits any more
        }
        let checked = match guard(|| engine.check()) {
            Ok(Ok(totals)) => Ok(Step::Checked(Box::new((engine, totals)))),
            Ok(Err(reason)) | Err(reason) => {
                drop_guarded(engine);
                Err(Failure::Damage(reason))
            }
        };
        drop(report.send(checked));
    });
    if let Err(error) = spawned {
        let reason = format!("could not start a thread to open it: {error}");
        return Err(Failure::Circumstance(StoreError::unavailable(reason)));
    }
    let mut limit = config.open_limit;
    loop {
        match steps.recv_timeout(limit) {
            Ok(Ok(Step::Opened)) => limit = CHECK_LIMIT,
            Ok(Ok(Step::Checked(done))) => return against_marker(&config.dir, *done),
            Ok(Err(failure)) => return Err(failure),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(Failure::Damage(format!("it did not open within {} s", limit.as_secs_f64())));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Failure::Damage("the thread that opened it vanished".to_owned()));
            }
        }
    }
}

/// sled lets go of its file some time after it was dropped, and a child process between fork and exec holds it
/// too. The store's own lock is held, so whoever else has the file is about to let go of it.
fn open_once_released(folder: &Path, cache_bytes: u64) -> Result<Engine, Failure> {
    let deadline = Instant::now() + RELEASE_LIMIT;
    loop {
        match guard(|| Engine::open(folder, cache_bytes)) {
            Ok(Ok(engine)) => return Ok(engine),
            Ok(Err(error)) if is_in_use(&error) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            Ok(Err(error)) => return Err(judge(error)),
            Err(panic) => return Err(Failure::Damage(panic)),
        }
    }
}

fn is_in_use(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

/// An empty or older store beside a note of more is a loss, not a new store.
fn against_marker(dir: &Path, (engine, totals): (Engine, Totals)) -> Result<(Engine, Totals), Failure> {
    let promised = match marker::read(dir) {
        Ok(found) => found.map_or(0, |marker| marker.revision),
        // A damaged note says nothing against records that were all checked; the next write replaces it.
        Err(error) => {
            tracing::warn!(error = %error, dir = %dir.display(), "the store's marker file cannot be read");
            0
        }
    };
    if promised <= totals.revision {
        return Ok((engine, totals));
    }
    let found = if totals == Totals::default() {
        "it is empty".to_owned()
    } else {
        format!("it ends at revision {}", totals.revision)
    };
    drop_guarded(engine);
    Err(Failure::Damage(format!("{found}, but everything up to revision {promised} was acknowledged")))
}

fn judge(error: sled::Error) -> Failure {
    let circumstance = |reason: String| Failure::Circumstance(StoreError::unavailable(reason));
    match error {
        error if is_in_use(&error) => circumstance("its files are still in use by this process".to_owned()),
        sled::Error::Io(error) => match error.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded => circumstance(format!("could not open its files: {error}")),
            _ if error.raw_os_error() == Some(libc::EMFILE) => circumstance(error.to_string()),
            _ => Failure::Damage(error.to_string()),
        },
        error @ (sled::Error::Corruption { .. }
        | sled::Error::CollectionNotFound(_)
        | sled::Error::Unsupported(_)
        | sled::Error::ReportableBug(_)) => Failure::Damage(error.to_string()),
    }
}

/// Runs `work` and turns a panic of sled into its message.
pub(super) fn guard<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_text(panic.as_ref()))
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the engine panicked: {}", text.unwrap_or("no message").lines().next().unwrap_or_default())
}

/// Drops an engine on a thread of its own; returns when it is gone or after 5 s.
pub(super) fn drop_guarded(engine: Engine) -> bool {
    let (done, finished) = mpsc::channel();
    let spawned = thread::Builder::new().name("store-drop".to_owned()).spawn(move || {
        let gone = guard(|| drop(engine)).is_ok();
        let _ = done.send(gone); // nobody waits any more
    });
    spawned.is_ok() && finished.recv_timeout(DROP_LIMIT).unwrap_or(false)
}

/// Removes sled's snapshot files of the given names and says how many there were. They only shorten opening;
/// a half-written one keeps sled from opening at all.
fn remove_snapshots(folder: &Path, which: impl Fn(&str) -> bool) -> io::Result<usize> {
    let mut removed = 0;
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    for file in listing {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && which(&name) {
            fs::remove_file(file.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Moves the broken folder and its note out of the way, keeping them for a person.
fn set_aside(config: &SledConfig, folder: &Path) -> io::Result<PathBuf> {
    let free = (1..=MAX_SET_ASIDE)
        .map(|number| config.dir.join(format!("{FOLDER}.bad-{number}")))
        .find(|path| !path.exists())
        .ok_or_else(|| io::Error::other(format!("{MAX_SET_ASIDE} broken folders are there already")))?;
    if folder.exists() {
        fs::rename(folder, &free)?;
    } else {
        fs::create_dir(&free)?;
    }
    marker::remove(&config.dir)?;
    Ok(free)
}
