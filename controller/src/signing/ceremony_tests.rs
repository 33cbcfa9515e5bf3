//! The life of a trust chain through files, as people would live it, and what is refused on the way.

use super::super::{
    ceremony::{CeremonyError, NewTrust, NewTrustSet, new_trust},
    key_file,
    setup::{self, SetupError, key_path, trust_dir},
    summary,
    trust_store::{Installed, TrustStore, TrustStoreError},
};
use super::*;
use std::{
    fs,
    path::{Path, PathBuf},
};

const LIFETIME: Duration = Duration::from_secs(365 * 86_400);

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + secs)
}

/// A 2-of-3 set with two publishers, made as `keys new-trust` does.
fn hardened(dir: &Path) -> NewTrustSet {
    let wanted = NewTrust {
        trust_keys: 3,
        trust_threshold: 2,
        publishers: vec!["anna".into(), "ci".into()],
        publisher_threshold: 2,
        lifetime: LIFETIME,
    };
    new_trust(&dir.join("set"), &wanted, at(0)).unwrap()
}

fn key(path: &Path) -> SigningKey {
    key_file::read_private(path).unwrap()
}

fn fresh(dir: &Path, name: &str) -> SigningKey {
    key_file::create_private(&dir.join(name)).unwrap()
}

/// Each holder signs a copy of the request on a machine of their own.
fn signed_copies(dir: &Path, next: &Trust, keys: &[&SigningKey]) -> Vec<Vec<u8>> {
    let original = dir.join("request.json");
    fs::write(&original, request(next).to_bytes()).unwrap();
    keys.iter()
        .enumerate()
        .map(|(index, key)| {
            let copy: PathBuf = dir.join(format!("request-{index}.json"));
            fs::copy(&original, &copy).unwrap();
            let (mut envelope, _) = read_request(&fs::read(&copy).unwrap()).unwrap();
            sign(&mut envelope, key, None).unwrap();
            fs::write(&copy, envelope.to_bytes()).unwrap();
            fs::read(&copy).unwrap()
        })
        .collect()
}

#[test]
fn a_two_of_three_ceremony_goes_through_files_from_end_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let set = hardened(dir.path());
    assert!(!key_path(&set.server, RoleName::Trust).exists(), "the server gets no trust key");
    assert!(!key_path(&set.server, RoleName::Publisher).exists(), "and no publisher key");
    let server = setup::open_or_create(&set.server, at(1)).unwrap();
    assert!(server.created.is_none());
    let watcher = server.trust.subscribe();

    let new_publisher = fresh(dir.path(), "eve");
    let changes = Changes {
        add: vec![(RoleName::Publisher, new_publisher.public())],
        remove: vec![set.publishers[0].1.as_str()[..8].to_owned()],
        floors: [("digits".parse().unwrap(), 2)].into(),
        ..Changes::default()
    };
    let next = propose(&server.trust.current(), &changes, LIFETIME, at(10)).unwrap();
    assert_eq!(differences(&server.trust.current(), &next).len(), 4);
    let (one, two) = (key(&set.trust[0].0), key(&set.trust[2].0));
    // The floor needs both publishers of version 1, the one who leaves included.
    let (anna, ci) = (key(&set.publishers[0].0), key(&set.publishers[1].0));
    let copies = signed_copies(dir.path(), &next, &[&one, &two, &anna, &ci]);

    for (copies, missing) in [
        (&copies[..1], "1 of 2 signatures by the present trust keys"),
        (&copies[..2], "0 of 2 by the present publishers"),
        (&copies[..3], "1 of 2 by the present publishers"),
    ] {
        let part = merge(copies).unwrap();
        assert!(!status(&server.trust.current(), &part).unwrap().complete(), "{missing}");
        let refusal = check(&server.trust.current_bytes(), &part).unwrap_err();
        assert!(refusal.to_string().contains(missing), "{refusal}");
        assert!(matches!(server.trust.install(&part.to_bytes()), Err(TrustStoreError::Refused { .. })));
    }

    let whole = merge(&copies).unwrap();
    assert!(status(&server.trust.current(), &whole).unwrap().complete());
    check(&server.trust.current_bytes(), &whole).unwrap();
    assert_eq!(server.trust.install(&whole.to_bytes()).unwrap(), Installed::New(2));
    assert_eq!(server.trust.install(&whole.to_bytes()).unwrap(), Installed::Known(2));
    assert!(watcher.has_changed().unwrap());
    assert_eq!(watcher.borrow().version, 2);

    // Everything is there again after a restart, version 1 included, byte for byte.
    let again = TrustStore::open(&trust_dir(&set.server)).unwrap().unwrap();
    assert_eq!((again.head(), again.since(1).len()), (server.trust.head(), 2));
    assert_eq!(again.version(2).unwrap(), whole.to_bytes());
    assert_eq!((again.version(3), again.version(0), again.since(9).len()), (None, None, 0));
}

#[test]
fn only_enough_of_the_right_keys_make_a_next_version() {
    let dir = tempfile::tempdir().unwrap();
    let set = hardened(dir.path());
    let store = TrustStore::open(&trust_dir(&set.server)).unwrap().unwrap();
    let old: Vec<SigningKey> = set.trust.iter().map(|(path, _)| key(path)).collect();
    let new: Vec<SigningKey> = (0..2).map(|n| fresh(dir.path(), &format!("new-{n}"))).collect();
    let changes = Changes {
        add: new.iter().map(|key| (RoleName::Trust, key.public())).collect(),
        remove: set.trust.iter().map(|(_, id)| id.to_string()).collect(),
        ..Changes::default()
    };
    let next = propose(&store.current(), &changes, LIFETIME, at(10)).unwrap();
    let publisher = key(&set.publishers[0].0);
    for (name, keys, accepted) in [
        ("new keys only", vec![&new[0], &new[1]], false),
        ("old keys only", vec![&old[0], &old[1]], false),
        ("one of each", vec![&old[0], &new[0]], false),
        ("one old key twice", vec![&old[0], &old[0], &new[0], &new[1]], false),
        ("a publisher in a trust key's place", vec![&old[0], &publisher, &new[0], &new[1]], false),
        ("two of each", vec![&old[0], &old[1], &new[0], &new[1]], true),
    ] {
        let merged = merge(&signed_copies(dir.path(), &next, &keys)).unwrap();
        assert_eq!(check(&store.current_bytes(), &merged).is_ok(), accepted, "{name}");
    }
}

#[test]
fn proposals_that_make_no_sense_are_refused_before_anybody_signs() {
    let dir = tempfile::tempdir().unwrap();
    let set = hardened(dir.path());
    let current = TrustStore::open(&trust_dir(&set.server)).unwrap().unwrap().current();
    let with = |changes: &Changes| propose(&current, changes, LIFETIME, at(10));
    let remove = |text: &str| Changes { remove: vec![text.to_owned()], ..Changes::default() };
    let threshold = |role, n| Changes { thresholds: vec![(role, n)], ..Changes::default() };
    let floor = |n| Changes { floors: [("digits".parse().unwrap(), n)].into(), ..Changes::default() };

    assert_eq!(with(&Changes::default()).unwrap_err(), ProposalError::Nothing);
    assert!(with(&Changes { renew: true, ..Changes::default() }).is_ok());
    assert!(matches!(with(&remove("ffffffffffff")), Err(ProposalError::UnknownKey { .. })));
    assert!(matches!(with(&remove("")), Err(ProposalError::AmbiguousKey { .. })));
    assert!(matches!(with(&remove(set.controller.as_str())), Err(ProposalError::Unusable { .. })));
    assert!(matches!(with(&remove(set.publishers[0].1.as_str())), Err(ProposalError::Unusable { .. })));
    for (role, n, good) in [
        (RoleName::Trust, 0, false),
        (RoleName::Trust, 4, false),
        (RoleName::Trust, 3, true),
        (RoleName::Controller, 2, false),
    ] {
        assert_eq!(with(&threshold(role, n)).is_ok(), good, "{role} {n}");
    }
    let raised = with(&floor(5)).unwrap();
    let lower = propose(&raised, &floor(4), LIFETIME, at(20)).unwrap_err();
    assert!(matches!(lower, ProposalError::FloorFalls { current: 5, wanted: 4, .. }));
    // A machine whose clock is in 1970 makes no document older than its predecessor.
    assert_eq!(propose(&current, &floor(2), LIFETIME, Timestamp::EPOCH).unwrap().issued, current.issued);
}

#[test]
fn requests_of_different_documents_do_not_merge_and_foreign_keys_do_not_sign() {
    let dir = tempfile::tempdir().unwrap();
    let set = hardened(dir.path());
    let current = TrustStore::open(&trust_dir(&set.server)).unwrap().unwrap().current();
    let renew = Changes { renew: true, ..Changes::default() };
    let one = propose(&current, &renew, LIFETIME, at(10)).unwrap();
    let two = propose(&current, &renew, LIFETIME, at(11)).unwrap();
    let different = merge(&[request(&one).to_bytes(), request(&two).to_bytes()]).unwrap_err();
    assert_eq!(different, ProposalError::Different);
    assert_eq!(merge(&[]).unwrap_err(), ProposalError::Empty);
    let stranger = fresh(dir.path(), "stranger");
    let mut envelope = request(&one);
    assert!(matches!(sign(&mut envelope, &stranger, Some(&current)), Err(ProposalError::NoSay { .. })));
    assert!(envelope.signatures.is_empty());
    // A publisher has a say where floors change, and nowhere else.
    let publisher = key(&set.publishers[0].0);
    let refused = sign(&mut envelope, &publisher, Some(&current)).unwrap_err();
    assert!(matches!(refused, ProposalError::NoSay { floors: false, .. }), "{refused}");
    let floor = Changes { floors: [("digits".parse().unwrap(), 2)].into(), ..Changes::default() };
    let mut envelope = request(&propose(&current, &floor, LIFETIME, at(10)).unwrap());
    let refused = sign(&mut envelope, &stranger, Some(&current)).unwrap_err();
    assert!(matches!(refused, ProposalError::NoSay { floors: true, .. }), "{refused}");
    sign(&mut envelope, &publisher, Some(&current)).unwrap();
    for junk in [&b""[..], b"{}", br#"{"payloadType":"x","payload":"","signatures":[]}"#] {
        assert!(matches!(read_request(junk), Err(ProposalError::Form { .. })));
    }
}

#[test]
fn the_first_start_makes_everything_and_the_second_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = setup::open_or_create(dir.path(), at(0)).unwrap();
    let notice = first.created.clone().unwrap().to_string();
    assert!(notice.contains("model sign") && notice.contains("new-trust --offline"), "{notice}");
    let second = setup::open_or_create(dir.path(), at(99)).unwrap();
    assert!(second.created.is_none());
    assert_eq!((second.trust.pin(), second.online.id()), (first.trust.pin(), first.online.id()));
    let here = summary::keys_on_controller(dir.path());
    let summary = summary::summarize(&second.trust.current(), second.trust.pin(), &here, at(86_400));
    assert_eq!((summary.expires_in_days, summary.warnings.len(), here.len()), (364, 2, 3));
    let expired = summary::summarize(&second.trust.current(), second.trust.pin(), &[], at(366 * 86_400));
    assert_eq!((expired.expires_in_days, expired.warnings.len()), (-2, 1));
}

#[test]
fn a_start_that_was_killed_half_way_is_finished_by_the_next() {
    let whole = tempfile::tempdir().unwrap();
    setup::open_or_create(whole.path(), at(0)).unwrap();
    for made in [0, 1, 2, 3] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("keys")).unwrap();
        for role in [RoleName::Trust, RoleName::Publisher, RoleName::Controller].into_iter().take(made) {
            fs::copy(key_path(whole.path(), role), key_path(dir.path(), role)).unwrap();
        }
        assert!(setup::open_or_create(dir.path(), at(1)).unwrap().created.is_some(), "{made} keys");
    }
}

#[test]
fn a_set_up_with_a_part_missing_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let set = hardened(dir.path());
    let controller = key_path(&set.server, RoleName::Controller);
    let aside = dir.path().join("aside");
    fs::rename(&controller, &aside).unwrap();
    let open = || setup::open_or_create(&set.server, at(1)).map(|_| ());
    assert!(matches!(open(), Err(SetupError::NoControllerKey { .. })));
    key_file::create_private(&controller).unwrap();
    assert!(matches!(open(), Err(SetupError::NotController { .. })));
    fs::rename(&aside, &controller).unwrap();
    open().unwrap();
    let first = trust_dir(&set.server).join("1.json");
    let bytes = fs::read(&first).unwrap();
    fs::rename(&first, trust_dir(&set.server).join("2.json")).unwrap();
    assert!(matches!(open(), Err(SetupError::Trust(TrustStoreError::NoFirst { found: 2, .. }))));
    fs::write(&first, &bytes).unwrap();
    assert!(matches!(open(), Err(SetupError::Trust(TrustStoreError::Stored { .. }))), "1 cannot follow 1");
    fs::rename(trust_dir(&set.server).join("2.json"), trust_dir(&set.server).join("4.json")).unwrap();
    assert!(matches!(open(), Err(SetupError::Trust(TrustStoreError::Gap { missing: (2, 3), .. }))));
    fs::remove_dir_all(trust_dir(&set.server)).unwrap();
    assert!(matches!(open(), Err(SetupError::NoTrust { .. })));
}

#[test]
fn impossible_sets_are_refused_and_old_ones_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = |keys, threshold, publishers: &[&str]| NewTrust {
        trust_keys: keys,
        trust_threshold: threshold,
        publishers: publishers.iter().map(ToString::to_string).collect(),
        publisher_threshold: 1,
        lifetime: LIFETIME,
    };
    let out = dir.path().join("set");
    for (bad, why) in [
        (wanted(3, 4, &["a"]), "threshold above keys"),
        (wanted(3, 0, &["a"]), "no threshold"),
        (wanted(17, 2, &["a"]), "more than an envelope can carry"),
        (wanted(3, 2, &[]), "no publisher"),
        (wanted(3, 2, &["a", "a"]), "a name twice"),
        (wanted(3, 2, &["../a"]), "a name that is a path"),
    ] {
        assert!(new_trust(&out, &bad, at(0)).is_err(), "{why}");
        assert!(!out.exists(), "{why}");
    }
    new_trust(&out, &wanted(1, 1, &["a"]), at(0)).unwrap();
    let again = new_trust(&out, &wanted(1, 1, &["a"]), at(0));
    assert!(matches!(again, Err(CeremonyError::NotEmpty { .. })));
}

#[test]
fn what_the_online_key_signs_is_what_devices_accept() {
    use edgefleet_shared::{
        desired::{DESIRED_SCHEMA, Desired, Settings},
        trust::DeviceTrust,
    };
    let dir = tempfile::tempdir().unwrap();
    let setup = setup::open_or_create(dir.path(), at(0)).unwrap();
    let desired = Desired {
        schema: DESIRED_SCHEMA,
        device: "d-1".parse().unwrap(),
        generation: 1,
        issued: at(1),
        expires: at(1_000),
        nonce: None,
        trust_version: 1,
        slots: BTreeMap::new(),
        settings: Settings::default(),
    };
    let raw = setup.online.sign_desired(&desired).unwrap();
    let mut device = DeviceTrust::pinned(&setup.trust.current_bytes(), setup.trust.pin()).unwrap();
    assert_eq!(device.accept(&raw, &desired.device, at(2)).unwrap().0, desired);
}
