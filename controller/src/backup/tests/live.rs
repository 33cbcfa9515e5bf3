//! Backups beside a controller that works.

use super::*;
use crate::fleet::data_dir::{DataDir, DataDirError};
use std::{
    io::{self, Cursor, Write},
    sync::mpsc,
    time::Duration,
};

const PAIR: Kind = Kind::new("pair");

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_under_load_is_of_one_moment() {
    let home = Home::new().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|task| {
            let (store, stop) = (Arc::clone(&home.parts.store), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut number = 0u64;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    number += 1;
                    let change = Transaction::new()
                        .put(PAIR, format!("{task}/a"), Expect::Any, number.to_string())
                        .put(PAIR, format!("{task}/b"), Expect::Any, number.to_string())
                        .append(format!("log/{task}"), number.to_string());
                    store.commit(change).await.unwrap();
                }
                number
            })
        })
        .collect();
    let mut seen = 0;
    for round in 0..5 {
        let file = home.backup(false).await;
        let target = home.beside(&format!("new-{round}"));
        restore(Cursor::new(file), restore_order(&target)).await.unwrap();
        let store = open_store(&target).await;
        for task in 0..4 {
            let get = async |part: &str| {
                let found = store.get(PAIR, &format!("{task}/{part}")).await.unwrap();
                found.map_or(0, |found| String::from_utf8(found.body).unwrap().parse::<u64>().unwrap())
            };
            let (a, b) = (get("a").await, get("b").await);
            let log = store.log_head(&format!("log/{task}")).await.unwrap();
            assert_eq!((a, b), (log, log), "task {task}, round {round}");
            seen = seen.max(a);
        }
        AuditLog::new(store).verify().await.unwrap();
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for writer in writers {
        assert!(writer.await.unwrap() > 5);
    }
    assert!(seen > 5, "the backups saw the load");
}

/// Takes nothing until it is told to.
struct Stalled {
    go: mpsc::Receiver<()>,
    started: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Write for Stalled {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(started) = self.started.take() {
            let _ = started.send(());
            self.go.recv().map_err(io::Error::other)?;
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_does_not_hold_up_the_fleet() {
    let home = Home::new().await;
    let (go, wait) = mpsc::channel();
    let (started, has_started) = tokio::sync::oneshot::channel();
    let parts = home.parts.clone();
    let stalled = Stalled { go: wait, started: Some(started) };
    let making = tokio::spawn(async move { write(&parts, order(false), stalled).await });
    has_started.await.unwrap();
    let change = Transaction::new().put(PAIR, "a", Expect::Absent, "1");
    tokio::time::timeout(Duration::from_secs(20), home.parts.store.commit(change)).await.unwrap().unwrap();
    assert!(!making.is_finished());
    go.send(()).unwrap();
    making.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_error_of_the_output_comes_back() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let home = Home::new().await;
    for room in [0, 100, 70_000] {
        let error = write(&home.parts, order(false), Full(room)).await.map(|_| ()).unwrap_err();
        assert!(matches!(&error, BackupError::Write(source) if source.kind() == io::ErrorKind::StorageFull));
    }
}

#[tokio::test]
async fn a_folder_is_backed_up_by_itself_only_while_nobody_uses_it() {
    let home = Home::new().await;
    let data = home.data().to_owned();
    let held = DataDir::open(&data).unwrap();
    let error = offline(&data, order(false), Vec::new()).await.unwrap_err();
    assert!(matches!(error, BackupError::DataDir(DataDirError::InUse { .. })), "{error:?}");
    drop(held);
    home.parts.store.close().await.unwrap();
    let (summary, file) = offline(&data, order(false), Vec::new()).await.unwrap();
    assert_eq!(verify(&*file, &phrase()).unwrap(), summary);
    // The next start finds everything as it was.
    drop(DataDir::open(&data).unwrap());
    let store = open_store(&data).await;
    assert!(store.get(THING, "t-7").await.unwrap().is_some());
    // And a folder without a controller gets none.
    let nothing = home.beside("nothing");
    let error = offline(&nothing, order(false), Vec::new()).await.unwrap_err();
    assert!(matches!(error, BackupError::NoController { .. }), "{error:?}");
    assert!(!nothing.exists());
}

#[test]
fn a_backup_file_is_private_whole_and_never_replaces_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(default_name(at(0)));
    assert_eq!(path.file_name().unwrap(), "edgefleet-backup-20270115T080000Z.efb");
    let file = NewFile::create(&path).unwrap();
    file.writer().unwrap().write_all(b"content").unwrap();
    assert!(!path.exists(), "not before it is whole");
    let other = NewFile::create(&path).unwrap();
    file.finish().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read(&path).unwrap(), b"content");
    assert!(matches!(other.finish(), Err(BackupError::Exists { .. })));
    assert!(matches!(NewFile::create(&path), Err(BackupError::Exists { .. })));
    drop(NewFile::create(&dir.path().join("dropped")).unwrap());
    assert_eq!(names(dir.path()).len(), 1, "nothing else is left");
}
