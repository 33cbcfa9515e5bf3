//! Whole backups and restores of real controllers' folders: real stores, keys, trust documents and blobs.

mod hostile;
mod kill;
mod live;
mod round_trip;
mod size;

use super::*;
use crate::{
    blobs::{BlobStore, local::LocalBlobs},
    desired::INTENT,
    fleet::{Actor, ca::Ca, data_dir::write_private, server_names::ServerNames},
    signing::setup::{self, Setup},
    store::{
        Expect, FleetStore, Kind, Transaction,
        audit::{AuditDraft, AuditLog},
        sled_home::{SledConfig, SledStore},
    },
};
use bytes::Bytes;
use edgefleet_shared::time::Timestamp;
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

const CHEAP: Cost = Cost { memory_kib: 64, passes: 1, lanes: 1 };
const PHRASE: &str = "correct horse battery";
const THING: Kind = Kind::new("thing");

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_800_000_000 + secs)
}

fn phrase() -> Passphrase {
    Passphrase::new(PHRASE).unwrap()
}

fn order(with_blobs: bool) -> Order {
    Order { passphrase: phrase(), with_blobs, cost: CHEAP, actor: Actor::token("t1", "ops"), now: at(100) }
}

fn restore_order(data: &Path) -> RestoreOrder {
    RestoreOrder { passphrase: phrase(), data: data.to_owned(), blobs: None, now: at(500) }
}

/// A controller's folder with everything a backup takes, in use by this process.
struct Home {
    dir: TempDir,
    parts: BackupParts,
    setup: Setup,
}

impl Home {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let names = ServerNames::default();
        Ca::open(data.join("ca"), &names, at(0)).unwrap();
        let setup = setup::open_or_create(&data, at(0)).unwrap();
        write_private(&data.join("admin-token"), b"eft_secret").unwrap();
        let store = open_store(&data).await;
        let audit = Arc::new(AuditLog::new(Arc::clone(&store)));
        let (blobs, _) = LocalBlobs::open(data.join("blobs")).await.unwrap();
        let parts = BackupParts { store, audit, blobs: Arc::new(blobs), data };
        let home = Self { dir, parts, setup };
        for number in 0..50 {
            let draft = AuditDraft { action: "thing.put".into(), ..AuditDraft::default() };
            let thing =
                Transaction::new().put(THING, format!("t-{number}"), Expect::Absent, body(number, 2_000));
            home.parts.audit.commit(thing, &[draft]).await.unwrap();
        }
        home
    }

    fn data(&self) -> &Path {
        &self.parts.data
    }

    /// A place beside the data folder.
    fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn backup(&self, with_blobs: bool) -> Vec<u8> {
        write(&self.parts, order(with_blobs), Vec::new()).await.unwrap().1
    }
}

async fn open_store(data: &Path) -> Arc<dyn FleetStore> {
    Arc::new(SledStore::open(SledConfig::new(data.join("store"))).await.unwrap().0)
}

/// Bytes that hardly compress.
fn body(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn blob(seed: u64, len: usize) -> Bytes {
    body(seed, len).into()
}

/// Path below `dir`, permissions and content of every file of the folders that are taken as they are.
fn files(dir: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    fn below(dir: &Path, prefix: &str, found: &mut BTreeMap<String, (u32, Vec<u8>)>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if !matches!(name.as_str(), "store" | "blobs") {
                    below(&entry.path(), &format!("{name}/"), found);
                }
            } else if name != "controller.lock" {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                found.insert(name, (mode, std::fs::read(entry.path()).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    below(dir, "", &mut found);
    found
}

/// Names in a folder, hidden ones included.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
