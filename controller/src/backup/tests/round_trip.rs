use super::*;
use crate::{
    desired::{DesiredStates, Intent, Reason, intent_id},
    fleet::data_dir::{DataDir, DataDirError, UNFINISHED_RESTORE},
};
use edgefleet_shared::{
    desired::{Assigned, Settings},
    digest::EnvelopeDigest,
    ids::{AttemptId, DeviceId},
};

#[tokio::test]
async fn everything_comes_back() {
    let home = Home::new().await;
    let mut infos = Vec::new();
    for (seed, len) in [(1, 0), (2, 10), (3, 3_000_000)] {
        infos.push(home.parts.blobs.put(blob(seed, len)).await.unwrap());
    }
    let (summary, file) = write(&home.parts, order(true), Vec::new()).await.unwrap();
    assert_eq!((summary.blobs_listed, summary.blobs_included, summary.blob_bytes), (3, 3, 3_000_010));
    assert_eq!((summary.bytes, summary.left_out.len()), (file.len() as u64, 0));
    let before = files(home.data());
    assert_eq!(summary.files, before.len() as u64);
    for name in ["ca/ca.key", "ca/server.key", "keys/controller.pk8", "trust/1.json", "admin-token"] {
        assert!(before.contains_key(name), "{name} in {:?}", before.keys());
    }
    for (_, secret) in before.values() {
        assert!(!file.windows(secret.len()).any(|bytes| bytes == secret), "a file is readable");
    }
    assert_eq!(verify(&*file, &phrase()).unwrap(), summary);

    let target = home.beside("new/data");
    let restored = restore(std::io::Cursor::new(file), restore_order(&target)).await.unwrap();
    assert_eq!(restored.backup, summary);
    assert_eq!((restored.missing.len(), restored.blobs_copied), (0, 0));
    assert_eq!(restored.warnings, Vec::<String>::new());
    assert_eq!(files(&target), before);
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(names(target.parent().unwrap()), ["data"], "nothing is left beside it");
    let (blobs, swept) = LocalBlobs::open(target.join("blobs")).await.unwrap();
    assert_eq!(swept, 0);
    for (seed, info) in [1, 2, 3].into_iter().zip(infos) {
        let found = blobs.read(&info.digest, 4_000_000).await.unwrap();
        assert_eq!(found, blob(seed, info.size as usize));
    }
    let store = open_store(&target).await;
    for number in 0..50 {
        let id = format!("t-{number}");
        let old = home.parts.store.get(THING, &id).await.unwrap();
        assert!(old.is_some() && store.get(THING, &id).await.unwrap() == old, "{id}, revision included");
    }
    let audit = AuditLog::new(Arc::clone(&store));
    let head = audit.verify().await.unwrap();
    assert_eq!(head, home.parts.audit.verify().await.unwrap());
    let last = audit.read(head.seq, 1).await.unwrap().remove(0);
    assert_eq!((last.action.as_str(), last.who.as_str()), ("backup.create", "token:t1 (ops)"));
    setup::open_or_create(&target, at(600)).unwrap();
    Ca::open(target.join("ca"), &ServerNames::default(), at(600)).unwrap();
}

#[tokio::test]
async fn the_first_start_after_a_restore_is_audited_once() {
    let home = Home::new().await;
    let file = home.backup(false).await;
    let target = home.beside("new");
    restore(std::io::Cursor::new(file), restore_order(&target)).await.unwrap();
    let store = open_store(&target).await;
    let audit = AuditLog::new(Arc::clone(&store));
    let before = audit.verify().await.unwrap().seq;
    let note = note_restored(&store, &audit, at(700)).await.unwrap().unwrap();
    assert_eq!((note.created, note.restored), (at(100), at(500)));
    assert_eq!(note_restored(&store, &audit, at(701)).await.unwrap(), None);
    let head = audit.verify().await.unwrap();
    assert_eq!(head.seq, before + 1);
    let entry = audit.read(head.seq, 1).await.unwrap().remove(0);
    assert_eq!((entry.action.as_str(), entry.at), ("controller.restored", at(700).to_string()));
    assert!(entry.note.unwrap().contains(&at(100).to_string()));
}

#[tokio::test]
async fn blobs_by_reference_are_named_and_fetched_from_a_copy_that_is_right() {
    let home = Home::new().await;
    let good = home.parts.blobs.put(blob(1, 2_500_000)).await.unwrap();
    let rotten = home.parts.blobs.put(blob(2, 500)).await.unwrap();
    let gone = home.parts.blobs.put(blob(3, 700)).await.unwrap();
    let file = home.backup(false).await;
    assert!(file.len() < 1_000_000, "{} bytes", file.len());

    let bare = home.beside("bare");
    let restored = restore(std::io::Cursor::new(file.clone()), restore_order(&bare)).await.unwrap();
    assert_eq!(restored.missing.len(), 3);
    assert!(restored.missing.iter().all(|missing| missing.reason.is_none()));

    let path = |digest: edgefleet_shared::digest::BlobDigest| {
        let hex = digest.to_hex();
        home.data().join("blobs/sha256").join(&hex[..2]).join(hex)
    };
    std::fs::write(path(rotten.digest), [0; 500]).unwrap();
    std::fs::remove_file(path(gone.digest)).unwrap();
    // The data folder and the folder of blobs in it both do.
    for (name, blobs) in [("one", home.data().to_owned()), ("two", home.data().join("blobs"))] {
        let order = RestoreOrder { blobs: Some(blobs), ..restore_order(&home.beside(name)) };
        let restored = restore(std::io::Cursor::new(file.clone()), order).await.unwrap();
        assert_eq!(restored.blobs_copied, 1);
        let mut missing = restored.missing;
        missing.sort_by_key(|missing| missing.size);
        assert_eq!(missing[0].digest, rotten.digest);
        assert!(missing[0].reason.as_ref().unwrap().contains("500 bytes are"), "{missing:?}");
        assert_eq!((missing[1].digest, &missing[1].reason), (gone.digest, &None));
        let (blobs, _) = LocalBlobs::open(home.beside(name).join("blobs")).await.unwrap();
        assert_eq!(blobs.list().await.unwrap(), [good]);
    }
    // A backup with blobs says at once that one is damaged, and is made all the same.
    let (summary, file) = write(&home.parts, order(true), Vec::new()).await.unwrap();
    assert_eq!(summary.damaged_blobs, [rotten.digest]);
    let last = home.beside("three");
    let restored = restore(std::io::Cursor::new(file), restore_order(&last)).await.unwrap();
    assert_eq!(restored.missing.len(), 1);
    assert_eq!(restored.missing[0].digest, rotten.digest);
}

#[tokio::test]
async fn links_and_strangers_are_left_out_and_named() {
    let home = Home::new().await;
    std::fs::rename(home.data().join("keys/trust.pk8"), home.beside("trust.pk8")).unwrap();
    std::os::unix::fs::symlink(home.beside("trust.pk8"), home.data().join("keys/trust.pk8")).unwrap();
    std::fs::write(home.data().join("notes.txt"), "hello").unwrap();
    std::fs::write(home.data().join("ca/.new-123"), "half").unwrap();
    let (summary, file) = write(&home.parts, order(false), Vec::new()).await.unwrap();
    assert_eq!(summary.left_out, ["keys/trust.pk8", "notes.txt"]);
    restore(std::io::Cursor::new(file), restore_order(&home.beside("new"))).await.unwrap();
    let restored = files(&home.beside("new"));
    assert!(restored.contains_key("keys/publisher.pk8") && !restored.contains_key("keys/trust.pk8"));
}

#[tokio::test]
async fn a_folder_that_cannot_be_replaced_is_filled_in_place() {
    let home = Home::new().await;
    let file = home.backup(false).await;
    let dir = home.beside("mounted");
    std::fs::create_dir(&dir).unwrap();
    let target = place::Target::prepare_inside(&dir);
    restore::restore_to(target, std::io::Cursor::new(file.clone()), restore_order(&dir)).await.unwrap();
    assert_eq!(files(&dir), files(home.data()));
    assert_eq!(names(&dir), ["admin-token", "blobs", "ca", "controller.lock", "keys", "store", "trust"]);
    DataDir::open(&dir).unwrap();

    // A kill between two moves leaves the mark, and no controller starts with it.
    std::fs::write(dir.join(UNFINISHED_RESTORE), "").unwrap();
    assert!(matches!(DataDir::open(&dir), Err(DataDirError::UnfinishedRestore { .. })));

    // What a fresh file system has does not count as content.
    let fresh = home.beside("fresh");
    std::fs::create_dir_all(fresh.join("lost+found")).unwrap();
    restore(std::io::Cursor::new(file), restore_order(&fresh)).await.unwrap();
    assert_eq!(files(&fresh), files(home.data()));
}

#[tokio::test]
async fn a_controller_that_went_back_in_time_meets_its_devices_where_they_are() {
    let home = Home::new().await;
    let device: DeviceId = "dev-1".parse().unwrap();
    let intent = |bundle: &str, number: u32| {
        let rollout = format!("r-{number}").parse().unwrap();
        Intent {
            active: Some(Assigned {
                bundle: bundle.parse().unwrap(),
                release: EnvelopeDigest::of(bundle.as_bytes()),
                release_size: 10,
                attempt: AttemptId { rollout, number: 1 },
            }),
            ..Intent::empty(device.clone(), "digits".parse().unwrap())
        }
    };
    let want = |store: Arc<dyn FleetStore>, bundle: &'static str, number| {
        let intent = intent(bundle, number);
        async move {
            let id = intent_id(&intent.device, &intent.slot);
            let put = Transaction::new().put_json(INTENT, id, Expect::Any, &intent).unwrap();
            store.commit(put).await.unwrap();
        }
    };
    let states =
        DesiredStates::new(Arc::clone(&home.parts.store), home.setup.online.clone(), Settings::default());
    let mut reported = 0;
    let mut hand_out = async |bundle, number, secs| {
        want(Arc::clone(&home.parts.store), bundle, number).await;
        let reason = Reason { reported: Some(reported), nonce: None };
        let out = states.refresh(&device, &reason, 1, at(secs)).await.unwrap().unwrap();
        reported = out.generation;
        out.generation
    };
    assert_eq!(hand_out("digits@1", 1, 10).await, 1);
    assert_eq!(hand_out("digits@2", 2, 20).await, 2);
    let file = home.backup(false).await;
    for (number, generation) in [(3, 3), (4, 4), (5, 5)] {
        let bundle = if number % 2 == 0 { "digits@2" } else { "digits@1" };
        assert_eq!(hand_out(bundle, number, 100 + u64::from(number)).await, generation);
    }
    assert_eq!(reported, 5, "what the device accepted last");

    let target = home.beside("new");
    restore(std::io::Cursor::new(file), restore_order(&target)).await.unwrap();
    let store = open_store(&target).await;
    let setup = setup::open_or_create(&target, at(600)).unwrap();
    assert_eq!(setup.created, None, "the same keys");
    assert_eq!(setup.online.id(), home.setup.online.id());
    let states = DesiredStates::new(Arc::clone(&store), setup.online, Settings::default());
    let stored = states.stored(&device).await.unwrap().unwrap();
    assert_eq!(stored.desired.generation, 2, "it went back");

    let connects = Reason { reported: Some(5), nonce: None };
    let out = states.refresh(&device, &connects, 1, at(700)).await.unwrap().unwrap();
    assert_eq!((out.generation, out.changed, out.was_behind), (6, true, true));
    let again = states.refresh(&device, &connects, 1, at(701)).await.unwrap().unwrap();
    assert_eq!((again.generation, again.changed), (6, false), "met once, then in step");
    // The next assignment reaches the device: newer than anything it has seen.
    want(Arc::clone(&store), "digits@3", 9).await;
    let next = Reason { reported: Some(6), nonce: None };
    let out = states.refresh(&device, &next, 1, at(800)).await.unwrap().unwrap();
    assert_eq!((out.generation, out.changed, out.was_behind), (7, true, false));
}
