//! Pushes against the real store, blobs and trust; a script stands where the agent would.

use super::super::{builder, probe::tests as fake};
use super::*;
use crate::{
    blobs::local::LocalBlobs,
    signing::{release, setup},
    store::sled_home::{SledConfig, SledStore},
};
use edgefleet_shared::trust::{SigningKey, envelope::seal};
use std::{fs, time::Duration};

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_700_000_000 + secs)
}

/// A registry on disk, restartable.
struct House {
    dir: tempfile::TempDir,
    registry: Arc<Registry>,
    audit: Arc<AuditLog>,
    trust: Arc<TrustStore>,
}

impl House {
    async fn with_agent(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fake::agent(dir.path(), script);
        Self::open(dir).await
    }

    async fn good() -> Self {
        Self::with_agent(&fake::verdict_script(true, "")).await
    }

    async fn open(dir: tempfile::TempDir) -> Self {
        let path = dir.path();
        let store: Arc<dyn FleetStore> =
            Arc::new(SledStore::open(SledConfig::new(path.join("store"))).await.unwrap().0);
        let audit = Arc::new(AuditLog::new(Arc::clone(&store)));
        let (blobs, _) = LocalBlobs::open(path.join("blobs")).await.unwrap();
        let trust = setup::open_or_create(path, at(0)).unwrap().trust;
        let prober = Prober {
            agent: Some(path.join(crate::registry::probe::AGENT_PROGRAM)),
            library: None,
            limit: Duration::from_secs(60),
        };
        let registry = Registry::new(RegistryParts {
            store,
            audit: Arc::clone(&audit),
            blobs: Arc::new(blobs),
            trust: Arc::clone(&trust),
            prober,
            work: path.join("work"),
        })
        .unwrap();
        Self { dir, registry: Arc::new(registry), audit, trust }
    }

    fn publisher(&self) -> SigningKey {
        let path = setup::key_path(self.dir.path(), RoleName::Publisher);
        crate::signing::key_file::read_private(&path).unwrap()
    }

    /// Builds a digits version and signs it with the publisher's key.
    fn bundle(&self, version: &str) -> (PathBuf, Push) {
        let out = self.dir.path().join(version);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(version);
        builder::build(&source, &out).unwrap();
        let manifest = fs::read(out.join(MANIFEST_FILE)).unwrap();
        let signed = release::sign(&manifest, None, &[self.publisher()], at(1)).unwrap();
        let by = Pusher { name: "token:ci".into(), may_override: false };
        let push = Push {
            model: "digits".parse().unwrap(),
            manifest: manifest.into(),
            release: signed.envelope.into(),
            override_reason: None,
            by,
        };
        (out, push)
    }

    async fn upload(&self, bundle: &Path) {
        let manifest = Manifest::parse(&fs::read(bundle.join(MANIFEST_FILE)).unwrap()).unwrap();
        for blob in manifest.blobs() {
            let bytes = fs::read(blob_path(bundle, &blob.digest)).unwrap();
            let mut writer = self.registry.upload(blob.digest, Some(blob.size)).await.unwrap();
            writer.write(bytes.into()).await.unwrap();
            writer.finish().await.unwrap();
        }
    }

    async fn uploaded(&self, version: &str) -> Push {
        let (out, push) = self.bundle(version);
        self.upload(&out).await;
        push
    }
}

#[tokio::test]
async fn a_signed_and_checked_bundle_is_accepted_once_and_may_be_fetched() {
    let house = House::good().await;
    let (out, push) = house.bundle("v1");
    let manifest = Manifest::parse(&push.manifest).unwrap();
    let wanted: Vec<_> = manifest.blobs().iter().map(|blob| blob.digest).collect();
    assert_eq!(house.registry.missing(&wanted).await.unwrap().len(), wanted.len());
    house.upload(&out).await;
    assert!(house.registry.missing(&wanted).await.unwrap().is_empty());
    let blob = FetchObject::Blob(wanted[0]);
    assert_eq!(house.registry.size(&blob).await.unwrap(), None, "uploaded is not yet published");

    let first = house.registry.push(&push, at(2)).await.unwrap();
    assert_eq!((first.outcome, first.record.checks.passed), (PushOutcome::Created, true));
    let again = house.registry.push(&push, at(3)).await.unwrap();
    assert_eq!((again.outcome, again.record.clone()), (PushOutcome::Unchanged, first.record.clone()));
    assert_eq!(house.audit.read(1, 10).await.unwrap().len(), 1, "nothing changed, nothing is recorded");

    for digest in wanted.into_iter().chain([first.record.digest.into(), first.record.release.into()]) {
        let object = FetchObject::Blob(digest);
        let size = house.registry.size(&object).await.unwrap().unwrap();
        let bytes = house.registry.read(&object, 0, size).await.unwrap();
        assert_eq!(BlobDigest::of(&bytes), digest);
    }
    let trust = FetchObject::Trust(1);
    let size = house.registry.size(&trust).await.unwrap().unwrap();
    assert_eq!(house.registry.read(&trust, 0, size).await.unwrap(), house.trust.current_bytes());
    assert!(house.registry.read(&trust, 1, size).await.is_err());
    assert!(house.registry.read(&trust, u64::MAX, 2).await.is_err());
    assert_eq!(house.registry.size(&FetchObject::Trust(2)).await.unwrap(), None);
    assert_eq!(house.registry.manifest(&again.record).await.unwrap(), push.manifest);

    let models = house.registry.models().await.unwrap();
    assert_eq!((models.len(), models[0].newest, models[0].bundles.len()), (1, 1, 1));
    assert_eq!(house.registry.model(&"digit".parse().unwrap()).await.unwrap(), None, "a prefix is no model");
}

#[tokio::test]
async fn what_is_not_exactly_what_a_publisher_signed_is_refused() {
    let house = House::good().await;
    let good = house.uploaded("v1").await;
    let other = house.bundle("v2").1;
    let stranger = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
    let controller_key =
        crate::signing::key_file::read_private(&setup::key_path(house.dir.path(), RoleName::Controller))
            .unwrap();
    let sign = |key| -> Bytes { release::sign(&good.manifest, None, &[key], at(1)).unwrap().envelope.into() };
    let (by_stranger, by_controller) = (sign(stranger), sign(controller_key));
    let document = |change: &dyn Fn(&mut Release)| -> Bytes {
        let manifest = Manifest::parse(&good.manifest).unwrap();
        let mut release = Release {
            bundle: manifest.name(),
            manifest: Manifest::digest_of(&good.manifest),
            length: good.manifest.len() as u64,
            hardware: vec![],
            issued: at(1),
        };
        change(&mut release);
        seal(RELEASE_TYPE, &release, &[&house.publisher()]).into()
    };
    let mut flipped = good.manifest.to_vec();
    flipped[10] ^= 1;
    let with = |change: &dyn Fn(&mut Push)| {
        let mut push = good.clone();
        change(&mut push);
        push
    };
    let empty_signatures = {
        let mut envelope = Envelope::parse(&good.release).unwrap();
        envelope.signatures.clear();
        Bytes::from(envelope.to_bytes())
    };
    for (name, push, code) in [
        ("unknown key", with(&|p| p.release = by_stranger.clone()), "release-signature"),
        ("no signature", with(&|p| p.release = empty_signatures.clone()), "release-signature"),
        ("the controller's key", with(&|p| p.release = by_controller.clone()), "release-signature"),
        ("junk", with(&|p| p.release = Bytes::from_static(b"{}")), "release-signature"),
        ("the trust document", with(&|p| p.release = house.trust.current_bytes()), "release-signature"),
        ("manifest bit flip", with(&|p| p.manifest = flipped.clone().into()), "release-mismatch"),
        ("another bundle's release", with(&|p| p.release = other.release.clone()), "release-mismatch"),
        ("wrong length", with(&|p| p.release = document(&|r| r.length += 1)), "release-mismatch"),
        ("wrong name", with(&|p| p.release = document(&|r| r.bundle.counter = 9)), "release-mismatch"),
        (
            "wrong hardware",
            with(&|p| p.release = document(&|r| r.hardware = vec!["x".into()])),
            "release-mismatch",
        ),
        ("wrong path", with(&|p| p.model = "other".parse().unwrap()), "release-mismatch"),
    ] {
        // Even an administrator with a reason cannot talk a signature away.
        let push = Push {
            override_reason: Some("please".into()),
            by: Pusher { name: "admin".into(), may_override: true },
            ..push
        };
        let error = house.registry.push(&push, at(2)).await.unwrap_err();
        assert_eq!(error.code(), code, "{name}: {error}");
    }
    assert!(house.registry.models().await.unwrap().is_empty());
    assert!(house.audit.read(1, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_missing_blob_is_named_and_the_next_push_completes() {
    let house = House::good().await;
    let (out, push) = house.bundle("v1");
    let error = house.registry.push(&push, at(2)).await.unwrap_err();
    let PushError::BlobsMissing { missing } = error else { panic!("{error}") };
    assert_eq!(missing.len(), Manifest::parse(&push.manifest).unwrap().blobs().len());
    house.upload(&out).await;
    // The controller is killed before it accepted: store and blobs as they were, a folder under check left over.
    let House { dir, registry, audit, trust } = house;
    fs::create_dir_all(dir.path().join("work/probe-dead/blobs")).unwrap();
    registry.store.close().await.unwrap();
    drop((registry, audit, trust));
    let house = House::open(dir).await;
    assert!(!house.dir.path().join("work/probe-dead").exists(), "leftovers are swept");
    assert_eq!(house.registry.push(&push, at(3)).await.unwrap().outcome, PushOutcome::Created);
}

#[tokio::test]
async fn one_counter_names_one_content_for_ever() {
    let house = House::good().await;
    let push = house.uploaded("v1").await;
    house.registry.push(&push, at(2)).await.unwrap();
    let source = house.dir.path().join("source");
    fs::create_dir_all(source.join("golden")).unwrap();
    let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/v1");
    for name in ["model.onnx", "labels.txt", "baseline.json", "golden/00-zero.json"] {
        fs::copy(digits.join(name), source.join(name)).unwrap();
    }
    let text = fs::read_to_string(digits.join("bundle.toml")).unwrap();
    fs::write(source.join("bundle.toml"), text.replace("1.0.0", "1.0.1")).unwrap();
    let built = builder::build(&source, &house.dir.path().join("changed")).unwrap();
    let manifest = fs::read(built.dir.join(MANIFEST_FILE)).unwrap();
    let release = release::sign(&manifest, None, &[house.publisher()], at(1)).unwrap().envelope;
    let other = Push { manifest: manifest.into(), release: release.into(), ..push.clone() };
    house.upload(&built.dir).await;
    let error = house.registry.push(&other, at(3)).await.unwrap_err();
    assert_eq!(error.code(), "counter-taken", "{error}");

    // The same manifest signed at another time is the same bundle with another release.
    let resigned = release::sign(&push.manifest, None, &[house.publisher()], at(50)).unwrap().envelope;
    let resigned = Push { release: resigned.into(), ..push };
    let pushed = house.registry.push(&resigned, at(51)).await.unwrap();
    assert_eq!(pushed.outcome, PushOutcome::Resigned);
    assert_eq!(house.registry.find(&pushed.record.name).await.unwrap(), Some(pushed.record));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pushes_of_one_bundle_make_one_record() {
    let house = House::good().await;
    let push = house.uploaded("v1").await;
    let tasks: Vec<_> = (0..6)
        .map(|n| {
            let (registry, push) = (Arc::clone(&house.registry), push.clone());
            tokio::spawn(async move { registry.push(&push, at(10 + n)).await.unwrap().outcome })
        })
        .collect();
    let mut created = 0;
    for task in tasks {
        created += usize::from(task.await.unwrap() == PushOutcome::Created);
    }
    assert_eq!(created, 1);
    assert_eq!(house.audit.read(1, 10).await.unwrap().len(), 1);
    house.audit.verify().await.unwrap();
}

#[tokio::test]
async fn a_failed_check_is_refused_with_its_reason_and_only_an_administrator_may_go_on() {
    let failure = r#","failure":{"code":"golden-mismatch","message":"sample 00-zero differs","node":"n1"},
        "golden":[{"name":"00-zero","passed":false,"max_abs_diff":0.5,"mismatch":"label"}]"#;
    let house = House::with_agent(&fake::verdict_script(false, failure)).await;
    let push = house.uploaded("v1").await;
    let error = house.registry.push(&push, at(2)).await.unwrap_err();
    let text = error.to_string();
    for part in ["digits@1", "golden-mismatch", "node `n1`", "00-zero", "5.000e-1"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(matches!(&error, PushError::CheckFailed { verdict: Some(verdict), .. } if !verdict.ok));

    let reason = |text: &str| Push { override_reason: Some(text.into()), ..push.clone() };
    let error = house.registry.push(&reason("demo"), at(3)).await.unwrap_err();
    assert_eq!(error.code(), "override-forbidden");
    let admin = Pusher { name: "token:root".into(), may_override: true };
    let error = house.registry.push(&Push { by: admin.clone(), ..reason(" ") }, at(3)).await.unwrap_err();
    assert_eq!(error.code(), "override-reason");
    assert!(house.audit.read(1, 10).await.unwrap().is_empty());

    let pushed = house.registry.push(&Push { by: admin, ..reason("demo") }, at(4)).await.unwrap();
    assert_eq!(pushed.record.overridden.as_ref().unwrap().reason, "demo");
    assert!(!pushed.record.checks.verdict.as_ref().unwrap().ok, "the failed verdict is kept");
    let entries = house.audit.read(1, 10).await.unwrap();
    assert_eq!((entries.len(), entries[0].who.as_str()), (1, "token:root"));
    assert_eq!(entries[0].note.as_deref(), Some("demo"));
    assert!(entries[0].after.as_ref().unwrap().contains("golden-mismatch"));
}

#[tokio::test]
async fn a_check_that_cannot_run_refuses_even_an_administrator() {
    for (script, code) in [(r#"echo '{"protocol":99}'"#, "check-unavailable"), ("kill -9 $$", "check-failed")]
    {
        let house = House::with_agent(script).await;
        let push = house.uploaded("v1").await;
        let error = house.registry.push(&push, at(2)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let admin = Push {
            override_reason: Some("demo".into()),
            by: Pusher { name: "root".into(), may_override: true },
            ..push
        };
        let overridden = house.registry.push(&admin, at(3)).await;
        assert_eq!(overridden.is_ok(), code == "check-failed", "an unchecked bundle never gets in");
    }
    let house = House::good().await;
    fs::remove_file(house.dir.path().join(crate::registry::probe::AGENT_PROGRAM)).unwrap();
    let push = house.uploaded("v1").await;
    assert_eq!(house.registry.push(&push, at(2)).await.unwrap_err().code(), "check-unavailable");
}

#[tokio::test]
async fn a_floor_in_the_trust_document_stops_old_releases() {
    use crate::signing::proposal::{Changes, merge, propose, request, sign};
    let house = House::good().await;
    let push = house.uploaded("v1").await;
    let changes = Changes { floors: [("digits".parse().unwrap(), 2)].into(), ..Changes::default() };
    let next = propose(&house.trust.current(), &changes, setup::TRUST_LIFETIME, at(5)).unwrap();
    let mut envelope = request(&next);
    for role in [RoleName::Trust, RoleName::Publisher] {
        let key = setup::key_path(house.dir.path(), role);
        sign(&mut envelope, &crate::signing::key_file::read_private(&key).unwrap(), None).unwrap();
    }
    house.trust.install(&merge(&[envelope.to_bytes()]).unwrap().to_bytes()).unwrap();
    assert_eq!(house.registry.push(&push, at(6)).await.unwrap_err().code(), "below-floor");
    let newer = house.uploaded("v2").await;
    house.registry.push(&newer, at(7)).await.unwrap();
}
