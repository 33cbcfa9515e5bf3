//! Broken files: reported in words that help, repaired where that is safe, never silently accepted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::tests::{DEVICE, config};
use super::*;
use crate::store::Expect;

const RECORDS: u32 = 400;

type Damage<T> = fn(&T);

fn text(number: u32) -> Vec<u8> {
    format!("{{\"number\":{number},\"padding\":\"{}\"}}", "x".repeat(number as usize % 300)).into_bytes()
}

/// A closed store with 400 documents and a log.
async fn filled() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SledStore::open(config(dir.path())).await.unwrap();
    for chunk in 0..RECORDS / 20 {
        let mut transaction = Transaction::new().append("events", chunk.to_string());
        for number in chunk * 20..(chunk + 1) * 20 {
            transaction = transaction.put(DEVICE, format!("d-{number}"), Expect::Absent, text(number));
        }
        store.commit(transaction).await.unwrap();
    }
    store.close().await.unwrap();
    dir
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}

async fn assert_whole(store: &SledStore) {
    let page = store.scan(DEVICE, Scan::all()).await.unwrap();
    let found: BTreeMap<_, _> = page.entries.into_iter().map(|(id, found)| (id, found.body)).collect();
    let expected: BTreeMap<_, _> = (0..RECORDS).map(|number| (format!("d-{number}"), text(number))).collect();
    assert_eq!(found, expected);
    assert_eq!(store.log_head("events").await.unwrap(), u64::from(RECORDS / 20));
}

fn edit(dir: &Path, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join("sled").join(file);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn snapshots(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.join("sled")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("snap.")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn leftover_and_broken_snapshots_are_removed_and_nothing_is_lost() {
    let source = filled().await;
    for (leftover, content, outcome) in [
        ("snap.0000000000000123.generating", &b""[..], OpenOutcome::Clean),
        ("snap.0000000000000123.generating", b"garbage", OpenOutcome::Clean),
        ("snap.FFFFFFFFFFFFFFF0", b"", OpenOutcome::SnapshotRepaired),
        ("snap.FFFFFFFFFFFFFFF0", b"garbage garbage garbage", OpenOutcome::SnapshotRepaired),
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        fs::write(dir.path().join("sled").join(leftover), content).unwrap();
        let (store, found) = SledStore::open(config(dir.path())).await.unwrap();
        assert_eq!(found, outcome, "{leftover} {content:?}");
        assert_whole(&store).await;
        store.close().await.unwrap();
    }
    // The real one, broken. sled writes it when opening what was there before.
    let dir = tempfile::tempdir().unwrap();
    copy(source.path(), dir.path());
    SledStore::open(config(dir.path())).await.unwrap().0.close().await.unwrap();
    let real = snapshots(dir.path());
    assert!(!real.is_empty());
    for path in real {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(path, bytes).unwrap();
    }
    let (store, found) = SledStore::open(config(dir.path())).await.unwrap();
    assert_eq!(found, OpenOutcome::SnapshotRepaired);
    assert_whole(&store).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_file_is_not_taken_for_a_new_store() {
    let source = filled().await;
    let damages: [(&str, Damage<Path>); 4] = [
        ("database emptied", |dir| {
            edit(dir, "db", Vec::clear);
            snapshots(dir).iter().for_each(|path| fs::remove_file(path).unwrap());
        }),
        ("database deleted", |dir| fs::remove_file(dir.join("sled/db")).unwrap()),
        ("folder deleted", |dir| fs::remove_dir_all(dir.join("sled")).unwrap()),
        ("database cut in half", |dir| edit(dir, "db", |bytes| bytes.truncate(bytes.len() / 2))),
    ];
    for (name, damage) in damages {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        damage(dir.path());
        let refused = SledStore::open(config(dir.path())).await.err();
        let Some(StoreError::Damaged { dir: found, reason }) = &refused else {
            panic!("{name}: {refused:?}")
        };
        assert_eq!(found, dir.path(), "{name}: {reason}");
        assert!(refused.unwrap().to_string().contains("edgefleet restore"), "{name}");

        let config = SledConfig { on_damage: OnDamage::SetAside, ..config(dir.path()) };
        let (store, outcome) = SledStore::open(config.clone()).await.unwrap();
        let OpenOutcome::SetAside { path, .. } = outcome else { panic!("{name}: {outcome:?}") };
        assert_eq!(path, dir.path().join("sled.bad-1"), "{name}");
        assert!(path.is_dir(), "{name}");
        assert_eq!(store.scan(DEVICE, Scan::all()).await.unwrap().entries, [], "{name}");
        store.commit(Transaction::new().put(DEVICE, "new", Expect::Absent, b"1")).await.unwrap();
        store.close().await.unwrap();
        let (store, outcome) = SledStore::open(config).await.unwrap();
        assert_eq!(outcome, OpenOutcome::Clean, "{name}");
        assert_eq!(store.get(DEVICE, "new").await.unwrap().unwrap().body, b"1", "{name}");
        store.close().await.unwrap();
    }
}

/// sled was seen to drop records after a flipped byte and say nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_or_cut_database_is_whole_or_refused_but_never_silently_less() {
    let source = filled().await;
    let size = fs::metadata(source.path().join("sled/db")).unwrap().len() as usize;
    let used = fs::read(source.path().join("sled/db")).unwrap().iter().rposition(|byte| *byte != 0).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let (mut whole, mut refused, mut reasons) = (0, 0, BTreeMap::new());
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        copy(source.path(), dir.path());
        let without_snapshot = random.random_bool(0.5);
        if without_snapshot {
            snapshots(dir.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
        }
        let at = random.random_range(0..used);
        let cut = random.random_range(1..size);
        edit(dir.path(), "db", |bytes| match round % 4 {
            0 => bytes.truncate(cut),
            1 => bytes[at..size.min(at + 512)].fill(0),
            _ => bytes[at] ^= 1 << (at % 8),
        });
        match SledStore::open(config(dir.path())).await {
            Ok((store, _)) => {
                assert_whole(&store).await;
                store.close().await.unwrap();
                whole += 1;
            }
            Err(StoreError::Damaged { reason, .. }) => {
                *reasons.entry(reason.chars().take(60).collect::<String>()).or_insert(0) += 1;
                refused += 1;
            }
            Err(other) => panic!("round {round}: {other:?}"),
        }
    }
    eprintln!("40 damaged databases: {whole} opened whole, {refused} refused: {reasons:#?}");
    assert!(refused > 0, "no damage was noticed at all");
}

/// What a running store would answer if sled handed it a wrong record.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_record_is_reported_when_read_and_when_opening() {
    let damages: [(&str, Damage<sled::Tree>); 4] = [
        ("missing", |tree| drop(tree.remove(record::document_key("device", "d-3")).unwrap())),
        ("log entry missing", |tree| drop(tree.remove(record::log_key("events", 5)).unwrap())),
        ("older copy", |tree| {
            let key = record::document_key("device", "d-399");
            drop(tree.insert(&key, record::encode(&key, 1, b"old")).unwrap());
        }),
        ("changed bytes", |tree| {
            let key = record::document_key("device", "d-3");
            let mut value = tree.get(&key).unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 1;
            drop(tree.insert(&key, value).unwrap());
        }),
    ];
    for (name, damage) in damages {
        let dir = filled().await;
        let (store, _) = SledStore::open(config(dir.path())).await.unwrap();
        damage(&Arc::clone(store.shared.engine.read().as_ref().ok().unwrap()).tree);
        let seen = match name {
            "changed bytes" => store.get(DEVICE, "d-3").await.map(|_| ()),
            "log entry missing" => store.log_read("events", 1, 0).await.map(|_| ()),
            _ => Err(StoreError::Corrupt { what: String::new(), reason: "only seen when opening".into() }),
        };
        assert!(matches!(seen, Err(StoreError::Corrupt { .. })), "{name}: {seen:?}");
        store.close().await.unwrap();
        let refused = SledStore::open(config(dir.path())).await.err();
        assert!(matches!(refused, Some(StoreError::Damaged { .. })), "{name}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_marker_does_not_stop_a_whole_store() {
    let dir = filled().await;
    fs::write(dir.path().join(marker::FILE), b"not json").unwrap();
    let (store, outcome) = SledStore::open(config(dir.path())).await.unwrap();
    assert_eq!(outcome, OpenOutcome::Clean);
    assert_whole(&store).await;
    store.close().await.unwrap();
    assert!(marker::read(dir.path()).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_cut_off_leaves_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SledStore::open(config(dir.path())).await.unwrap();
    {
        let engine = Arc::clone(store.shared.engine.read().as_ref().ok().unwrap());
        let unfinished = record::Totals { importing: true, ..Default::default() };
        engine.tree.insert(record::TOTALS_KEY, unfinished.encode()).unwrap();
        let key = record::document_key("device", "d-1");
        engine.tree.insert(&key, record::encode(&key, 3, b"half")).unwrap();
    }
    store.close().await.unwrap();
    let (store, outcome) = SledStore::open(config(dir.path())).await.unwrap();
    assert_eq!(outcome, OpenOutcome::UnfinishedImportDiscarded);
    assert_eq!(store.scan(DEVICE, Scan::all()).await.unwrap().entries, []);
    store.close().await.unwrap();
}
