//! Captures in a real store with real blobs.

use super::{
    record::{CaptureRecord, Joined},
    *,
};
use crate::{
    blobs::{BlobStore, local::LocalBlobs},
    fleet::Actor,
    store::{
        FleetStore,
        audit::AuditLog,
        sled_home::{SledConfig, SledStore},
    },
};
use bytes::Bytes;
use edgefleet_shared::{
    capture::{
        Audit, CAPTURE_SCHEMA, Capture, CaptureDocument, CapturePolicy, Kept, Predicted, Reason, TensorEntry,
    },
    digest::{BlobDigest, BundleDigest},
    ids::{AttemptId, BootId, DeviceId, PredictionId},
    reported::ClockQuality,
    tensor::{Datatype, Tensor},
    time::Timestamp,
};
use std::{sync::Arc, time::Duration};

const NOW: u64 = 1_800_000_000;

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(NOW + secs)
}

/// Capture number `n` of `device`: says "one", kept by chance if `n` is even.
fn file(device: &str, n: u64) -> (BlobDigest, Bytes) {
    let raw: Vec<u8> = (0..200u64).map(|at| (at * 31 + n * 7 + at * n) as u8).collect();
    let input = Tensor::new("x", Datatype::Uint8, vec![1, 200], Bytes::from(raw)).unwrap();
    let by_chance = n.is_multiple_of(2);
    let document = CaptureDocument {
        schema: CAPTURE_SCHEMA,
        prediction: PredictionId {
            device: device.parse().unwrap(),
            boot: BootId::from_random([3; 16]),
            sequence: n,
        },
        slot: "digits".parse().unwrap(),
        bundle: format!("digits@{}", 1 + n % 2).parse().unwrap(),
        digest: BundleDigest::of(b"digits"),
        attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
        at: at(n),
        clock: ClockQuality::Plausible,
        reasons: vec![if by_chance { Reason::Random } else { Reason::LowMargin }],
        inclusion: Some(if by_chance { 0.5 } else { 1.0 }),
        audit: by_chance.then_some(Audit { share: 0.5, sequence: n }),
        predicted: Some(Predicted {
            index: 1,
            class: "one".into(),
            confidence: Some(0.5),
            margin: None,
            entropy: None,
        }),
        inputs: vec![TensorEntry {
            name: "x".into(),
            datatype: Datatype::Uint8,
            shape: vec![1, 200],
            kept: Kept::Bytes { bytes: 200 },
        }],
        outputs: vec![],
        label: None,
    };
    let file = Capture { document, inputs: vec![input], outputs: vec![] }.to_bytes().unwrap();
    (Capture::id(&file), file.into())
}

struct Home {
    dir: tempfile::TempDir,
    store: Arc<dyn FleetStore>,
    blobs: Arc<dyn BlobStore>,
    captures: Captures,
    me: Actor,
}

impl Home {
    async fn new(limits: CaptureLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = SledStore::open(SledConfig::new(dir.path().join("store"))).await.unwrap();
        let store: Arc<dyn FleetStore> = Arc::new(store);
        let (blobs, _) = LocalBlobs::open(dir.path().join("blobs")).await.unwrap();
        let blobs: Arc<dyn BlobStore> = Arc::new(blobs);
        let captures = Self::open(&store, &blobs, limits).await;
        Self { dir, store, blobs, captures, me: Actor::token("t-1", "anna") }
    }
    async fn open(
        store: &Arc<dyn FleetStore>,
        blobs: &Arc<dyn BlobStore>,
        limits: CaptureLimits,
    ) -> Captures {
        let audit = Arc::new(AuditLog::new(store.clone()));
        Captures::open(store.clone(), audit, blobs.clone(), limits, at(0)).await.unwrap()
    }
    async fn receive(&self, device: &str, n: u64) -> Result<bool, CapturesError> {
        let (digest, file) = file(device, n);
        let device: DeviceId = device.parse().unwrap();
        self.captures.receive(&device, digest, file, at(n)).await
    }
    async fn all(&self, wanted: Wanted) -> Vec<CaptureRecord> {
        self.captures.list(&wanted, None, 1_000).await.unwrap().0
    }
    async fn label(&self, n: u64, class: &str) -> CaptureRecord {
        let word = Word::Class(class.into());
        self.captures.label(&self.me, &file("dev-1", n).0, word, at(n)).await.unwrap()
    }
}

#[tokio::test]
async fn a_capture_is_taken_once_and_only_from_its_own_device() {
    let home = Home::new(CaptureLimits::default()).await;
    assert!(home.receive("dev-1", 1).await.unwrap());
    assert!(!home.receive("dev-1", 1).await.unwrap(), "the same again changes nothing");
    let (digest, bytes) = file("dev-1", 2);
    let thief = "dev-2".parse().unwrap();
    let refused = home.captures.receive(&thief, digest, bytes.clone(), at(1)).await;
    assert!(matches!(refused, Err(CapturesError::Foreign { .. })));
    let device: DeviceId = "dev-1".parse().unwrap();
    let refused = home.captures.receive(&device, file("dev-1", 3).0, bytes, at(1)).await;
    assert!(matches!(refused, Err(CapturesError::Digest { .. })));
    let junk = Bytes::from_static(b"EFCAP1\n\0junk");
    let refused = home.captures.receive(&device, BlobDigest::of(&junk), junk, at(1)).await;
    assert!(matches!(refused, Err(CapturesError::Unreadable { .. })));
    assert_eq!(home.all(Wanted::default()).await.len(), 1);
    assert_eq!(home.blobs.list().await.unwrap().len(), 1, "nothing of what was refused stays");
    let (digest, bytes) = file("dev-1", 1);
    assert_eq!(home.captures.file(&digest).await.unwrap(), bytes);
    assert!(home.dir.path().join("blobs").exists());
}

#[tokio::test]
async fn quotas_and_the_size_cap_hold_across_restarts_and_spare_what_people_labelled() {
    let one = file("dev-1", 2).1.len() as u64;
    let limits = CaptureLimits {
        total_bytes: one * 6 + 60,
        device_bytes_per_day: one * 4 + 40,
        unlabelled_age: Duration::from_secs(1_000),
    };
    let home = Home::new(limits).await;
    for n in 0..4 {
        assert!(home.receive("dev-1", n).await.unwrap());
    }
    let refused = home.receive("dev-1", 4).await;
    assert!(matches!(refused, Err(CapturesError::Quota { retry_secs: 1.., .. })), "{refused:?}");
    home.label(0, "one").await;
    let Home { dir, store, blobs, captures, me } = home;
    drop(captures);
    let captures = Home::open(&store, &blobs, limits).await;
    let home = Home { dir, store, blobs, captures, me };
    assert!(matches!(home.receive("dev-1", 4).await, Err(CapturesError::Quota { .. })), "after a restart");
    for n in 10..14 {
        assert!(home.receive("dev-2", n).await.unwrap());
    }
    let left = home.all(Wanted::default()).await;
    let sequences: Vec<_> = left.iter().map(|one| one.document.prediction.sequence).collect();
    assert!(sequences.contains(&0) && !sequences.contains(&1), "the oldest unlabelled goes: {sequences:?}");
    assert_eq!(home.blobs.list().await.unwrap().len(), left.len());
    let expired = home.captures.expire(at(2_000)).await.unwrap();
    assert_eq!((expired, home.all(Wanted::default()).await.len()), (left.len() - 1, 1));
}

#[tokio::test]
async fn the_queue_is_filtered_and_labels_can_be_taken_back() {
    let home = Home::new(CaptureLimits::default()).await;
    for n in 0..6 {
        home.receive("dev-1", n).await.unwrap();
    }
    home.receive("dev-2", 6).await.unwrap();
    let by = |wanted: Wanted| async { home.all(wanted).await.len() };
    let all = Wanted::default;
    assert_eq!(by(Wanted { bundle: Some("digits@2".parse().unwrap()), ..all() }).await, 3);
    assert_eq!(by(Wanted { reason: Some(Reason::LowMargin), ..all() }).await, 3);
    assert_eq!(by(Wanted { device: Some("dev-2".parse().unwrap()), ..all() }).await, 1);
    assert_eq!(by(Wanted { model: Some("other".parse().unwrap()), ..all() }).await, 0);
    assert_eq!(by(Wanted { since: Some(at(4)), ..all() }).await, 3);
    let model = || Wanted { model: Some("digits".parse().unwrap()), ..all() };
    for (since, until, wanted) in
        [(Some(4), None, 3), (Some(2), Some(5), 3), (None, Some(0), 0), (Some(7), None, 0)]
    {
        let wanted_captures = || Wanted { since: since.map(at), until: until.map(at), ..model() };
        assert_eq!(by(wanted_captures()).await, wanted, "{since:?} to {until:?}");
        assert_eq!(home.captures.count(&wanted_captures(), 99).await.unwrap(), wanted as u64);
    }
    assert_eq!(home.captures.count(&model(), 2).await.unwrap(), 2);
    let of = |devices: &[&str]| Some(devices.iter().map(|one| one.parse().unwrap()).collect());
    assert_eq!(by(Wanted { devices: of(&["dev-2", "dev-9"]), ..all() }).await, 1);
    assert_eq!(by(Wanted { devices: of(&[]), ..all() }).await, 0, "a selector that nobody fits");
    assert_eq!(by(Wanted { reasons: vec![Reason::LowMargin, Reason::Ood], ..all() }).await, 3);
    assert_eq!(by(Wanted { classes: vec!["no such".into()], ..all() }).await, 0);
    let (page, next) = home.captures.list(&all(), None, 4).await.unwrap();
    let (rest, end) = home.captures.list(&all(), next, 4).await.unwrap();
    assert_eq!((page.len(), rest.len(), end), (4, 3, None));

    let labelled = home.label(1, "seven").await;
    assert_eq!((labelled.correct(), labelled.state()), (Some(false), LabelState::Labelled));
    let grace = Duration::from_secs(10);
    assert_eq!(home.captures.undecided(grace, at(5)).await.unwrap().len(), 0);
    let due = home.captures.undecided(grace, at(11)).await.unwrap();
    assert_eq!(due.len(), 1);
    let digest = file("dev-1", 1).0;
    let undone = home.captures.label(&home.me, &digest, Word::Undo, at(6)).await.unwrap();
    assert_eq!(undone.state(), LabelState::Unlabelled);
    assert_eq!(home.captures.undecided(grace, at(60)).await.unwrap().len(), 0);
    let nothing = home.captures.label(&home.me, &digest, Word::Undo, at(6)).await;
    assert!(matches!(nothing, Err(CapturesError::NotLabelled { .. })));
    let counted = home.label(1, "one").await;
    home.captures.decided(&counted, Joined::Controller).await.unwrap();
    let again = home.label(1, "two").await;
    assert_eq!(again.label.unwrap().joined, Joined::Controller, "counted once, whatever is said later");
    let skipped = home.captures.label(&home.me, &file("dev-1", 2).0, Word::Skip, at(7)).await.unwrap();
    assert_eq!(skipped.state(), LabelState::Skipped);
    assert_eq!(by(Wanted { state: Some(LabelState::Unlabelled), ..all() }).await, 5);
}

#[tokio::test]
async fn a_data_set_is_frozen_holds_its_captures_and_weighs_the_audit() {
    let home = Home::new(CaptureLimits::default()).await;
    for n in 0..6 {
        home.receive("dev-1", n).await.unwrap();
    }
    let model = "digits".parse().unwrap();
    let make =
        |name: &'static str| home.captures.create_dataset(&home.me, name, &model, Wanted::default(), at(100));
    assert!(matches!(make("empty").await, Err(CapturesError::NothingLabelled)));
    for (n, class) in [(0, "one"), (1, "seven"), (2, "one"), (4, "seven")] {
        home.label(n, class).await;
    }
    assert!(matches!(make("Bad Name").await, Err(CapturesError::DatasetName { .. })));
    let made = make("first").await.unwrap();
    assert_eq!((made.rows, made.classes["one"], made.classes["seven"]), (4, 2, 2));
    assert!(matches!(make("first").await, Err(CapturesError::DatasetExists { .. })));
    let raw = home.captures.dataset_manifest("first").await.unwrap();
    assert_eq!(BlobDigest::of(&raw), made.digest);
    home.label(0, "nine").await;
    let again = home.captures.dataset_manifest("first").await.unwrap();
    assert_eq!(again, raw, "a later word changes no data set");
    let manifest: DatasetManifest = serde_json::from_slice(&raw).unwrap();
    assert_eq!(manifest.rows[1].label, "seven");
    assert_eq!((manifest.rows[0].inclusion, manifest.rows[1].reasons.as_str()), (Some(0.5), "low-margin"));
    let held = home.captures.delete(&home.me, &file("dev-1", 1).0, at(101)).await;
    assert!(matches!(held, Err(CapturesError::Held { .. })));
    home.captures.delete(&home.me, &file("dev-1", 5).0, at(101)).await.unwrap();
    assert!(matches!(home.captures.get(&file("dev-1", 5).0).await, Err(CapturesError::Unknown { .. })));
    let view = home.captures.audited(&Wanted::default()).await.unwrap();
    assert_eq!((view.captures, view.labelled, view.audit_rows), (5, 4, 3));
    let audited = view.audited.unwrap();
    assert!((audited.accuracy - 1.0 / 3.0).abs() < 1e-9 && audited.labelled == 3, "{audited:?}");
    let combined = view.combined.unwrap();
    // Two hard rows (one labelled, wrong) and three audit rows that stand for six.
    assert!((combined.accuracy - 0.75 / 3.0).abs() < 1e-9, "{combined:?}");
}

#[tokio::test]
async fn policies_are_set_shown_ended_and_audited() {
    let home = Home::new(CaptureLimits::default()).await;
    let model = "digits".parse().unwrap();
    assert!(matches!(home.captures.policy(&model).await, Err(CapturesError::NoPolicy { .. })));
    let policy = CapturePolicy::default();
    home.captures.set_policy(&home.me, &model, Some(policy.clone()), at(1)).await.unwrap();
    assert_eq!(home.captures.policy(&model).await.unwrap().policy, policy);
    home.captures.set_policy(&home.me, &model, None, at(2)).await.unwrap();
    assert!(matches!(home.captures.policy(&model).await, Err(CapturesError::NoPolicy { .. })));
    let entries = AuditLog::new(home.store.clone()).read(1, 10).await.unwrap();
    let actions: Vec<_> = entries.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["capture-policy.set", "capture-policy.end"]);
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_no_html_from_devices() {
    let script = include_str!("page/app.js");
    for word in
        ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"]
    {
        assert!(!script.contains(word), "{word}");
    }
    let page = include_str!("page/index.html");
    assert!(!page.contains("style=") && !page.contains("onclick") && !page.contains("//"));
    assert!(!page::CONTENT_SECURITY_POLICY.contains("unsafe"));
    assert!(page::CONTENT_SECURITY_POLICY.starts_with("default-src 'none'"));
}
