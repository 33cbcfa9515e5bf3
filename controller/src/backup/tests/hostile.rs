//! Damaged, foreign and forged files, and targets that are not free.

use super::*;
use crate::backup::{
    content::{FORMAT, Head, VERSION, write_record},
    seal::{CHUNK_BYTES, FRAME_BYTES, HEADER_BYTES, Sealer},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::io::Cursor;

/// Nothing appeared at `target`, and nothing is left beside it.
fn untouched(home: &Home, target: &Path) {
    assert!(!target.exists());
    assert_eq!(names(home.dir.path()), ["data"]);
}

#[tokio::test]
async fn damage_anywhere_restores_nothing() {
    let home = Home::new().await;
    home.parts.blobs.put(blob(1, 100_000)).await.unwrap();
    let file = home.backup(true).await;
    let target = home.beside("new");
    let framed = FRAME_BYTES + CHUNK_BYTES + 16;
    let borders: Vec<_> = (HEADER_BYTES..file.len()).step_by(framed).collect();
    assert!(borders.len() > 3, "{} chunks", borders.len());
    for cut in borders.iter().flat_map(|at| [*at, at + 1, at + 1_000]).filter(|cut| *cut < file.len()) {
        let cut_off = file[..cut].to_vec();
        let error = restore(Cursor::new(cut_off), restore_order(&target)).await.unwrap_err();
        assert!(matches!(error, BackupError::Sealed(SealError::CutOff { .. })), "{cut}: {error:?}");
        untouched(&home, &target);
    }
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..60 {
        let mut changed = file.clone();
        let at = random.random_range(0..file.len());
        changed[at] ^= random.random_range(1..=255u8);
        assert!(verify(&*changed, &phrase()).is_err(), "byte {at}");
        let error = restore(Cursor::new(changed), restore_order(&target)).await.unwrap_err();
        assert!(matches!(error, BackupError::Sealed(_)), "{at}: {error:?}");
        untouched(&home, &target);
    }
    let restored = restore(Cursor::new(file), restore_order(&target)).await.unwrap();
    assert_eq!(restored.missing, []);
}

#[tokio::test]
async fn a_wrong_passphrase_is_said_to_be_one() {
    let home = Home::new().await;
    let file = home.backup(false).await;
    let target = home.beside("new");
    let passphrase = Passphrase::new("correct horse batterz").unwrap();
    let wrong = RestoreOrder { passphrase, ..restore_order(&target) };
    let error = restore(Cursor::new(file), wrong).await.unwrap_err();
    assert!(matches!(error, BackupError::Sealed(SealError::WrongPassphrase)), "{error:?}");
    assert!(error.hint().unwrap().contains("passphrase"));
    untouched(&home, &target);
    let short = Order { passphrase: Passphrase::new("short").unwrap(), ..order(false) };
    let error = write(&home.parts, short, Vec::new()).await.unwrap_err();
    assert!(matches!(error, BackupError::Passphrase(PassphraseError::TooShort { found: 5 })), "{error:?}");
}

#[tokio::test]
async fn a_target_that_is_not_empty_is_refused_and_keeps_what_it_has() {
    let home = Home::new().await;
    let file = home.backup(false).await;
    let before = files(home.data());
    let error = restore(Cursor::new(file.clone()), restore_order(home.data())).await.unwrap_err();
    let BackupError::NotEmpty { found, .. } = &error else { panic!("{error:?}") };
    assert!(found.contains(&"ca".to_owned()) && found.contains(&"store".to_owned()), "{error}");
    assert_eq!(files(home.data()), before);
    // Hidden files count.
    let hidden = home.beside("hidden");
    std::fs::create_dir(&hidden).unwrap();
    std::fs::write(hidden.join(".keep"), "").unwrap();
    let error = restore(Cursor::new(file.clone()), restore_order(&hidden)).await.unwrap_err();
    assert!(error.to_string().contains(".keep"), "{error}");
    // A file is no folder.
    let error = restore(Cursor::new(file.clone()), restore_order(&hidden.join(".keep"))).await.unwrap_err();
    assert!(matches!(error, BackupError::NotFolder { .. }), "{error:?}");
    // Somebody takes the place meanwhile.
    let raced = home.beside("raced");
    let target = place::Target::prepare(&raced).unwrap();
    std::fs::create_dir(&raced).unwrap();
    std::fs::write(raced.join("controller.lock"), "").unwrap();
    let error =
        restore::restore_to(target, Cursor::new(file.clone()), restore_order(&raced)).await.unwrap_err();
    assert!(matches!(error, BackupError::NotEmpty { .. }), "{error:?}");
    assert_eq!(names(&raced), ["controller.lock"]);
    // An empty one is fine.
    let empty = home.beside("empty");
    std::fs::create_dir(&empty).unwrap();
    restore(Cursor::new(file), restore_order(&empty)).await.unwrap();
    assert_eq!(files(&empty), before);
}

/// A file that opens with the right passphrase and holds `parts`.
fn forged(parts: &[(Head, &[u8])]) -> Vec<u8> {
    let mut sealer = Sealer::begin(Vec::new(), &phrase(), CHEAP, at(100)).unwrap();
    for (head, body) in parts {
        write_record(&mut sealer, head, body.len() as u64, *body).unwrap();
    }
    sealer.finish().unwrap().0
}

fn begin(version: u32) -> (Head, &'static [u8]) {
    (Head::Begin { format: FORMAT.into(), version, created: at(100), program: "0".into() }, b"")
}

#[tokio::test]
async fn forged_content_writes_nothing_outside_and_restores_nothing() {
    let home = Home::new().await;
    let target = home.beside("new");
    let file = |path: &str| (Head::File { path: path.into(), mode: 0o4777 }, &b"evil"[..]);
    let list = || (Head::BlobList { count: 0 }, &b""[..]);
    let end = |files, blobs| (Head::End { files, blobs }, &b""[..]);
    let outside = [
        "../evil",
        "/tmp/evil",
        "ca/../../evil",
        "ca/..",
        "ca//evil",
        "evil",
        "store/evil",
        "ca",
        "ca/.evil",
        "",
        "ca/a b",
        "ca/a/b/c/d/e",
        "controller.lock",
        "restore-unfinished",
        "admin-token/x",
        "keys\\..\\evil",
        "blobs/sha256/x",
    ];
    let mut cases: Vec<_> =
        outside.iter().map(|path| forged(&[begin(1), file(path), list(), end(1, 0)])).collect();
    cases.extend([
        forged(&[]),
        forged(&[begin(1)]),
        forged(&[begin(2), list(), end(0, 0)]),
        forged(&[begin(1), begin(1), list(), end(0, 0)]),
        forged(&[begin(1), list(), list(), end(0, 0)]),
        forged(&[begin(1), list(), end(0, 0)]),
        forged(&[begin(1), list(), end(7, 0)]),
        forged(&[begin(1), (Head::BlobList { count: 1 }, b"sha256:00 7\n"), end(0, 0)]),
        forged(&[list(), begin(1), end(0, 0)]),
        forged(&[begin(1), file("ca/x"), file("ca/x"), list(), end(2, 0)]),
    ]);
    for (case, file) in cases.into_iter().enumerate() {
        assert!(restore(Cursor::new(file), restore_order(&target)).await.is_err(), "case {case}");
        untouched(&home, &target);
    }
    assert_eq!(VERSION, 1);
}

#[tokio::test]
async fn an_export_that_unpacks_to_more_than_promised_is_refused() {
    let home = Home::new().await;
    let bomb = zstd::encode_all(&vec![b'x'; 50_000_000][..], 1).unwrap();
    let summary =
        crate::store::ExportSummary { documents: 0, log_entries: 0, revision: 1, sha256: "0".into() };
    let file = forged(&[
        begin(1),
        (Head::Store { raw_bytes: 1_000, summary }, &bomb),
        (Head::BlobList { count: 0 }, b""),
        (Head::End { files: 0, blobs: 0 }, b""),
    ]);
    let target = home.beside("new");
    assert!(verify(&*file, &phrase()).is_err());
    assert!(restore(Cursor::new(file), restore_order(&target)).await.is_err());
    untouched(&home, &target);
}
