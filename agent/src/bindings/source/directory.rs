//! A folder that other programs move finished files into.
//!
//! Whoever writes gives a file its name when it is complete: names that begin with a dot or end in `.tmp` or `.part`
//! are left alone. The oldest is taken first and stays where it is until its answer was handed over; a kill in between
//! means that it is answered again. A file that takes the place of one in work is another file and answered, too. Polled, because that works on every file system a device may mount.

use crate::{
    bindings::{
        config::After,
        counts::Side,
        queue::Item,
        worker::{Verdict, Worker},
    },
    serving::local::Room,
    store::files,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BinaryHeap},
    ffi::{OsStr, OsString},
    fs::{self, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};
use tokio::time::sleep;

/// Files of one look at the folder.
const BATCH: usize = 512;
const DONE: &str = "done";
const FAILED: &str = "failed";
/// Beside a file that was not answered: why.
const REASON: &str = ".error.txt";
/// Files that were answered between two looks at how many are kept.
const PRUNE_EVERY: usize = 64;
/// Files that cannot be moved away and are passed over; more of them stop the binding.
const MAX_STUCK: usize = 1_024;

pub(super) struct Folder {
    path: PathBuf,
    after: After,
    keep: usize,
    limit: u64,
}

/// Why a file has no content for the model.
#[derive(Debug)]
enum Unread {
    /// Somebody took it away.
    Gone,
    Bad(String),
    /// There is no memory for it now.
    Later(String),
}

/// Tells a file from another one that has got its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl From<&Metadata> for Identity {
    fn from(found: &Metadata) -> Self {
        let modified = (found.mtime(), found.mtime_nsec());
        Self { device: found.dev(), inode: found.ino(), size: found.size(), modified }
    }
}

type Stuck = BTreeMap<OsString, Identity>;

impl Folder {
    pub(super) fn new(path: PathBuf, after: After, keep: usize, limit: u64) -> Self {
        Self { path, after, keep, limit }
    }

    /// Finished files, oldest first, at most [`BATCH`].
    fn scan(&self, except: &Stuck) -> io::Result<Vec<OsString>> {
        oldest(&self.path, BATCH, |name, found| {
            is_finished(name) && except.get(name).is_none_or(|stuck| *stuck != Identity::from(found))
        })
    }

    /// `None` if nothing has the name.
    fn look(&self, name: &OsStr) -> Option<Identity> {
        self.path.join(name).symlink_metadata().ok().as_ref().map(Identity::from)
    }

    /// `room` is asked before anything is read.
    fn read(&self, name: &OsStr, room: impl FnOnce(usize) -> Result<Room, String>) -> Result<Bytes, Unread> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        // A link is not followed, and a pipe does not hold us up.
        let opened = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
        let bad = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Unread::Gone,
            _ => Unread::Bad(format!("the file cannot be read: {e}")),
        };
        let mut file = opened.map_err(bad)?;
        let found = file.metadata().map_err(bad)?;
        if !found.is_file() {
            return Err(Unread::Bad("this is no plain file".into()));
        }
        let too_large = || Unread::Bad(format!("the file has more than {} bytes", self.limit));
        let size = usize::try_from(found.len()).map_err(|_| too_large())?;
        if found.len() > self.limit {
            return Err(too_large());
        }
        let room = room(size).map_err(Unread::Later)?;
        let mut bytes = Vec::with_capacity(size);
        // A file that grows meanwhile was not finished; it is found again as another one.
        Read::by_ref(&mut file).take(found.len()).read_to_end(&mut bytes).map_err(bad)?;
        Ok(room.hold(bytes.into()))
    }

    /// Puts away what was answered, or why it was not; another file that has its name by now stays for the next look.
    fn conclude(&self, name: &OsStr, answered: Identity, failed: Option<&str>) -> io::Result<()> {
        match (self.look(name), failed) {
            (Some(found), None) if found == answered => self.finish(name),
            (Some(found), Some(why)) if found == answered => self.fail(name, why),
            _ => Ok(()),
        }
    }

    fn finish(&self, name: &OsStr) -> io::Result<()> {
        match self.after {
            After::Delete => fs::remove_file(self.path.join(name)),
            After::Move => self.put_away(name, DONE).map(drop),
        }
    }

    fn fail(&self, name: &OsStr, why: &str) -> io::Result<()> {
        let path = self.put_away(name, FAILED)?;
        // New, or not at all: who writes into the folder must not choose what is written over.
        let mut reason =
            OpenOptions::new().write(true).create_new(true).open(files::with_suffix(&path, REASON))?;
        writeln!(reason, "{why}")
    }

    /// Moves a file into a folder below, under a name that is free there.
    fn put_away(&self, name: &OsStr, folder: &str) -> io::Result<PathBuf> {
        let folder = self.path.join(folder);
        own_folder(&folder)?;
        let mut to = folder.join(name);
        let mut number = 1;
        while to.symlink_metadata().is_ok() || files::with_suffix(&to, REASON).symlink_metadata().is_ok() {
            number += 1;
            if number > 1_000 {
                return Err(io::Error::other(format!("`{}` and 1000 like it exist", to.display())));
            }
            let mut other = name.to_owned();
            other.push(format!(".{number}"));
            to = folder.join(other);
        }
        fs::rename(self.path.join(name), &to)?;
        Ok(to)
    }

    /// Deletes what is more than `keep` files, oldest first, of `done` and of `failed`.
    fn prune(&self) -> io::Result<()> {
        for (folder, each) in [(DONE, 1), (FAILED, 2)] {
            let folder = self.path.join(folder);
            let linked = folder.symlink_metadata().is_ok_and(|found| !found.is_dir());
            let count = match fs::read_dir(&folder) {
                Ok(_) if linked => return Err(not_ours(&folder)),
                Ok(entries) => entries.count(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            let excess = count.saturating_sub(self.keep.saturating_mul(each));
            for name in oldest(&folder, excess, |_, _| true)? {
                fs::remove_file(folder.join(name))?;
            }
        }
        Ok(())
    }
}

/// Makes a folder, or takes one that is there and is no link to another place.
fn own_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    if folder.symlink_metadata()?.is_dir() { Ok(()) } else { Err(not_ours(folder)) }
}

fn not_ours(folder: &Path) -> io::Error {
    io::Error::other(format!("`{}` is no folder but a link or a file; remove it", folder.display()))
}

fn is_finished(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    !name.starts_with(b".") && !name.ends_with(b".tmp") && !name.ends_with(b".part")
}

/// The oldest `most` files of a folder by time of change and name, whatever it holds besides.
fn oldest(
    folder: &Path,
    most: usize,
    takes: impl Fn(&OsStr, &Metadata) -> bool,
) -> io::Result<Vec<OsString>> {
    let mut found: BinaryHeap<(SystemTime, OsString)> = BinaryHeap::new(); // the newest on top
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // Not followed; what vanished meanwhile is nobody's business any more.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() || !takes(&name, &metadata) {
            continue;
        }
        found.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), name));
        if found.len() > most {
            found.pop();
        }
    }
    Ok(found.into_sorted_vec().into_iter().map(|(_, name)| name).collect())
}

async fn blocking<T: Send + 'static>(
    folder: &Arc<Folder>,
    work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let folder = folder.clone();
    tokio::task::spawn_blocking(move || work(&folder)).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// Answers files for ever; looks for new ones every `every`.
pub(super) async fn serve(folder: Folder, every: Duration, mut worker: Worker) {
    let (folder, counts) = (Arc::new(folder), worker.counts().clone());
    // Files that could not be moved away: answered, and not to be answered again.
    let mut stuck = Stuck::new();
    let mut since_prune = PRUNE_EVERY;
    loop {
        let mut trouble = None;
        let at = |path: &Path, error: io::Error| format!("`{}`: {error}", path.display());
        let except = stuck.clone();
        let waiting = blocking(&folder, move |folder| folder.scan(&except)).await.unwrap_or_else(|error| {
            trouble = Some(at(&folder.path, error));
            vec![]
        });
        let mut done = 0;
        for name in &waiting {
            counts.queued.store(waiting.len() - done, Ordering::Relaxed);
            match answer(&folder, name, &mut worker).await {
                Ok(None) => done += 1,
                Ok(Some(why)) => {
                    trouble = Some(why);
                    break;
                }
                Err(error) => {
                    trouble = Some(at(&folder.path.join(name), error));
                    if stuck.len() == MAX_STUCK {
                        break;
                    }
                    stuck.extend(folder.look(name).map(|found| (name.clone(), found)));
                }
            }
        }
        counts.queued.store(waiting.len() - done, Ordering::Relaxed);
        since_prune += done;
        if since_prune >= PRUNE_EVERY {
            since_prune = 0;
            if let Err(error) = blocking(&folder, Folder::prune).await {
                trouble = Some(at(&folder.path, error));
            }
        }
        match &trouble {
            None => counts.up(Side::Source),
            Some(trouble) => counts.down(Side::Source, trouble),
        }
        if waiting.len() < BATCH || trouble.is_some() {
            sleep(every).await;
        }
    }
}

/// Deals with one file. `Some(why)`: not now, nobody serves its slot.
async fn answer(folder: &Arc<Folder>, name: &OsStr, worker: &mut Worker) -> io::Result<Option<String>> {
    let (file, room) = (name.to_owned(), worker.rooms());
    let looked = blocking(folder, move |folder| {
        // Looked at first: what takes its place from here on is told apart, at worst answered twice, never lost.
        Ok(folder.look(&file).map(|identity| (identity, folder.read(&file, room))))
    });
    let Some((identity, read)) = looked.await? else { return Ok(None) };
    let id = name.to_string_lossy().into_owned();
    let verdict = match read {
        Err(Unread::Gone) => return Ok(None),
        Err(Unread::Later(why)) => return Ok(Some(why)),
        Err(Unread::Bad(why)) => Verdict::Failed(why),
        Ok(bytes) => {
            let item = Item { id: Some(id.clone()), body: worker.body(bytes) };
            worker.ask_patiently(&item).await
        }
    };
    let why = match &verdict {
        Verdict::NotServed(why) => return Ok(Some(why.clone())),
        Verdict::GivenUp => return Ok(Some("the slot is busy".into())),
        Verdict::Answered(_) => None,
        Verdict::Failed(why) => Some(why.clone()),
    };
    worker.counts().received.fetch_add(1, Ordering::Relaxed);
    worker.conclude(Some(&id), verdict, true).await;
    let file = name.to_owned();
    blocking(folder, move |folder| folder.conclude(&file, identity, why.as_deref())).await.map(|()| None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::http::ServingConfig;
    use std::fs::File;

    fn folder(path: &Path, after: After, keep: usize) -> Folder {
        Folder::new(path.to_owned(), after, keep, 10)
    }

    fn put(path: &Path, name: &str, content: &[u8], secs: u64) {
        fs::write(path.join(name), content).unwrap();
        let file = File::options().write(true).open(path.join(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(secs)).unwrap();
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    #[test]
    fn finished_files_come_oldest_first_and_only_so_many() {
        let dir = tempfile::tempdir().unwrap();
        for (name, secs) in [("c", 1), ("b", 3), ("a", 3), ("d", 2), (".e", 0), ("f.tmp", 0), ("g.part", 0)] {
            put(dir.path(), name, b"x", secs);
        }
        fs::create_dir(dir.path().join("done")).unwrap();
        let inbox = folder(dir.path(), After::Move, 9);
        assert_eq!(inbox.scan(&Stuck::new()).unwrap(), ["c", "d", "a", "b"]);
        let stuck: Stuck = ["c", "a"].map(|name| (name.into(), inbox.look(OsStr::new(name)).unwrap())).into();
        assert_eq!(inbox.scan(&stuck).unwrap(), ["d", "b"]);
        put(dir.path(), "c", b"yy", 9);
        assert_eq!(inbox.scan(&stuck).unwrap(), ["d", "b", "c"], "another file of that name is not stuck");
        let finished = |name: &OsStr, _: &Metadata| is_finished(name);
        assert_eq!(oldest(dir.path(), 2, finished).unwrap(), ["d", "a"]);
        assert!(oldest(dir.path(), 0, finished).unwrap().is_empty());
        assert!(folder(Path::new("/no/such"), After::Move, 9).scan(&Stuck::new()).is_err());
    }

    #[test]
    fn a_file_that_takes_the_place_of_one_in_work_stays() {
        let dir = tempfile::tempdir().unwrap();
        let name = OsStr::new("a");
        for (after, failed) in [(After::Move, None), (After::Delete, None), (After::Move, Some("no picture"))]
        {
            let inbox = folder(dir.path(), after, 9);
            put(dir.path(), "a", b"old", 1);
            let answered = inbox.look(name).unwrap();
            put(dir.path(), "a.part", b"new", 1);
            fs::rename(dir.path().join("a.part"), dir.path().join("a")).unwrap();
            inbox.conclude(name, answered, failed).unwrap();
            assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"new", "{after:?} {failed:?}");
            inbox.conclude(name, inbox.look(name).unwrap(), failed).unwrap();
            assert!(!dir.path().join("a").exists(), "{after:?} {failed:?}");
            inbox.conclude(name, answered, failed).unwrap();
        }
    }

    #[test]
    fn only_plain_files_of_a_bounded_size_are_read() {
        let config = ServingConfig { body_budget_bytes: 15, ..ServingConfig::default() };
        let state = crate::serving::state_for_tests(config);
        let room = |bytes| Room::of(&state, bytes).map_err(|e| e.to_string());
        let dir = tempfile::tempdir().unwrap();
        let inbox = folder(dir.path(), After::Move, 9);
        put(dir.path(), "fits", b"0123456789", 1);
        put(dir.path(), "large", b"0123456789a", 1);
        std::os::unix::fs::symlink("fits", dir.path().join("link")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap();
        assert!(pipe.success());
        let fits = inbox.read(OsStr::new("fits"), room).unwrap();
        assert_eq!(fits, "0123456789");
        let more = inbox.read(OsStr::new("fits"), room);
        assert!(matches!(more, Err(Unread::Later(_))), "the memory of all requests is not enough: {more:?}");
        drop(fits);
        assert!(inbox.read(OsStr::new("fits"), room).is_ok());
        for name in ["large", "link", "pipe"] {
            assert!(matches!(inbox.read(OsStr::new(name), room), Err(Unread::Bad(_))), "{name}");
        }
        assert!(matches!(inbox.read(OsStr::new("none"), room), Err(Unread::Gone)));
    }

    #[test]
    fn files_are_put_away_under_free_names_and_the_oldest_of_too_many_go() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = folder(dir.path(), After::Move, 2);
        for secs in 1..=4 {
            put(dir.path(), "a", b"x", secs);
            inbox.finish(OsStr::new("a")).unwrap();
        }
        assert_eq!(names(&dir.path().join(DONE)), ["a", "a.2", "a.3", "a.4"]);
        put(dir.path(), "bad", b"x", 1);
        inbox.fail(OsStr::new("bad"), "no picture").unwrap();
        assert_eq!(names(&dir.path().join(FAILED)), ["bad", "bad.error.txt"]);
        assert_eq!(fs::read(dir.path().join("failed/bad.error.txt")).unwrap(), b"no picture\n");
        inbox.prune().unwrap();
        assert_eq!(names(&dir.path().join(DONE)), ["a.3", "a.4"]);
        assert_eq!(names(&dir.path().join(FAILED)).len(), 2);
        put(dir.path(), "gone", b"x", 1);
        folder(dir.path(), After::Delete, 2).finish(OsStr::new("gone")).unwrap();
        assert_eq!(names(dir.path()), ["done", "failed"]);
    }
}
