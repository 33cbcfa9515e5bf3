//! Stores and exports written by format version 1 open in today's code.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

use super::tests::{DEVICE, config};
use super::*;
use crate::store::suite::export_bytes;
use crate::store::{Expect, Revision, audit};

const ROLLOUT: Kind = Kind::new("rollout");

fn golden(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/store/golden").join(file)
}

/// What the golden files hold.
async fn write_sample(store: Arc<dyn FleetStore>) {
    let log = audit::AuditLog::new(Arc::clone(&store));
    for number in 1..=3 {
        let draft = audit::AuditDraft {
            at: format!("2026-03-01T12:00:0{number}Z"),
            who: "token:ci".into(),
            action: "device.label".into(),
            subject: format!("device/d-{number}"),
            ..audit::AuditDraft::default()
        };
        let id = format!("d-{number}");
        let change = Transaction::new()
            .put(DEVICE, id, Expect::Absent, format!("{{\"number\":{number}}}"))
            .append("events", [number, 0, 255]);
        log.commit(change, &[draft]).await.unwrap();
    }
    store.commit(Transaction::new().delete(DEVICE, "d-2", Expect::Any)).await.unwrap();
    store.commit(Transaction::new().put(ROLLOUT, "größe/1", Expect::Absent, [])).await.unwrap();
}

async fn assert_sample(store: Arc<dyn FleetStore>) {
    let found = store.get(DEVICE, "d-3").await.unwrap().unwrap();
    assert_eq!(found, Document { revision: Revision(3), body: b"{\"number\":3}".to_vec() });
    assert_eq!(store.get(DEVICE, "d-2").await.unwrap(), None);
    let rollout = store.get(ROLLOUT, "größe/1").await.unwrap().unwrap();
    assert_eq!(rollout, Document { revision: Revision(5), body: vec![] });
    let events = store.log_read("events", 1, 0).await.unwrap();
    assert!(events.iter().map(|entry| entry.body.as_slice()).eq([[1, 0, 255], [2, 0, 255], [3, 0, 255]]));
    assert_eq!(audit::AuditLog::new(Arc::clone(&store)).verify().await.unwrap().seq, 3);
    let next = store.commit(Transaction::new().append("events", b"next")).await.unwrap();
    assert_eq!((next.revision, next.log_seqs), (Revision(6), vec![4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_version_1_is_imported_and_written_again_byte_by_byte() {
    let bytes = fs::read(golden("v1-export.jsonl")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SledStore::open(config(dir.path())).await.unwrap();
    let store: Arc<dyn FleetStore> = Arc::new(store);
    store.import(Box::new(Cursor::new(bytes.clone()))).await.unwrap();
    assert_eq!(export_bytes(&*store).await.0, bytes);
    assert_sample(Arc::clone(&store)).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_version_1_opens() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(open::FOLDER)).unwrap();
    for file in ["conf", "db"] {
        let packed = fs::read(golden(&format!("v1-sled-{file}.zst"))).unwrap();
        let bytes = zstd::bulk::decompress(&packed, 16 << 20).unwrap();
        fs::write(dir.path().join(open::FOLDER).join(file), bytes).unwrap();
    }
    fs::copy(golden("v1-marker.json"), dir.path().join(marker::FILE)).unwrap();
    let (store, outcome) = SledStore::open(config(dir.path())).await.unwrap();
    assert_eq!(outcome, OpenOutcome::Clean);
    let store: Arc<dyn FleetStore> = Arc::new(store);
    assert_sample(Arc::clone(&store)).await;
    store.close().await.unwrap();
}

/// Writes the golden files: only for a new format version, never to make a test pass.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes the golden files of the current format version"]
async fn write_the_golden_files() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = SledStore::open(config(dir.path())).await.unwrap();
    let store: Arc<dyn FleetStore> = Arc::new(store);
    write_sample(Arc::clone(&store)).await;
    fs::write(golden("v1-export.jsonl"), export_bytes(&*store).await.0).unwrap();
    store.close().await.unwrap();
    for file in ["conf", "db"] {
        let bytes = fs::read(dir.path().join(open::FOLDER).join(file)).unwrap();
        fs::write(golden(&format!("v1-sled-{file}.zst")), zstd::bulk::compress(&bytes, 19).unwrap()).unwrap();
    }
    fs::copy(dir.path().join(marker::FILE), golden("v1-marker.json")).unwrap();
}
