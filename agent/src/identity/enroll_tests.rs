//! Enrolment and renewal over real HTTPS, against a controller played by a few closures.

use super::*;
use crate::identity::{folder::load, renew::renew, test_server::Pki};
use edgefleet_shared::{
    digest::EnvelopeDigest,
    enroll::{RenewRequest, RenewResponse},
    time::Timestamp,
    trust::{Role, SigningKey, Trust, documents::Roles, envelope::TRUST_TYPE, seal},
};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Two trust documents in a row, the second signed by the keys of both.
fn chain() -> Vec<Vec<u8>> {
    let key = |_| SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
    let [old, new] = [0, 1].map(key);
    let document = |version: u64, key: &SigningKey| {
        let role = || Role { keys: vec![key.public().id()], threshold: 1 };
        Trust {
            version,
            issued: Timestamp::from_secs(1_800_000_000 + version),
            expires: Timestamp::from_secs(1_900_000_000),
            keys: [(key.public().id(), key.public())].into(),
            roles: Roles { trust: role(), publisher: role(), controller: role() },
            floors: BTreeMap::new(),
        }
    };
    vec![seal(TRUST_TYPE, &document(1, &old), &[&old]), seal(TRUST_TYPE, &document(2, &new), &[&old, &new])]
}

struct Controller {
    pki: Arc<Pki>,
    code: JoinCode,
    requests: Arc<Mutex<Vec<EnrollRequest>>>,
}

/// `change` may spoil the answer; `pending` is how often "wait" is said before.
async fn controller(pending: u64, change: fn(&mut Enrolled)) -> Controller {
    let pki = Arc::new(Pki::valid_around(crate::clock::now()));
    let trust = chain();
    let trust_pin = EnvelopeDigest::of(&trust[0]);
    let requests = Arc::new(Mutex::new(vec![]));
    let (ca, seen, asked) = (pki.clone(), requests.clone(), AtomicU64::new(0));
    let url = pki
        .serve(move |path, body, _| {
            assert_eq!(path, "/api/v1/enroll");
            let request: EnrollRequest = serde_json::from_slice(body).unwrap();
            if request.secret != "s3cret" {
                let error =
                    br#"{"error":{"code":"invite-used-up","message":"invite inv-1 was used 1 of 1 times"}}"#;
                return (StatusCode::FORBIDDEN, error.to_vec());
            }
            let answer = if asked.fetch_add(1, Ordering::Relaxed) < pending {
                EnrollResponse::Pending { retry_after_secs: 1 }
            } else {
                let mut enrolled = Enrolled {
                    device: "dev-7".parse().unwrap(),
                    certificate: ca.sign("dev-7", &request.csr),
                    ca: ca.ca_pem(),
                    trust: trust.iter().map(|document| BASE64.encode(document)).collect(),
                    mqtt_host: "localhost".into(),
                    mqtt_port: 8883,
                    issued: crate::clock::now(),
                };
                change(&mut enrolled);
                EnrollResponse::Enrolled(Box::new(enrolled))
            };
            seen.lock().push(request);
            (StatusCode::OK, serde_json::to_vec(&answer).unwrap())
        })
        .await;
    let code = JoinCode {
        url,
        ca_pin: pki.ca_pin(),
        invite: "inv-1".parse().unwrap(),
        secret: "s3cret".into(),
        trust_pin,
    };
    Controller { pki, code, requests }
}

fn options(data: &Path) -> EnrollOptions {
    EnrollOptions {
        data: data.to_owned(),
        name: Some("cam-7".into()),
        force: false,
        wait: Duration::from_secs(10),
        facts: Facts::default(),
    }
}

async fn try_enroll(controller: &Controller, options: &EnrollOptions) -> Result<Identity, EnrollError> {
    enroll(&controller.code, options, &TrustedClock::system(), |_| ()).await
}

#[tokio::test]
async fn a_device_enrols_once_and_again_only_by_force_with_the_same_key() {
    let dir = tempfile::tempdir().unwrap();
    let controller = controller(0, |_| ()).await;
    assert!(load(dir.path()).unwrap().is_none());
    let identity = try_enroll(&controller, &options(dir.path())).await.unwrap();
    assert_eq!(identity.first_trust().unwrap().trust.version, 2);
    let read = load(dir.path()).unwrap().unwrap();
    assert_eq!(
        (read.controller, &read.certificate, &read.trust),
        (identity.controller.clone(), &identity.certificate, &identity.trust)
    );
    let key = dir.path().join("identity/key.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(dir.path().join("identity")).unwrap().permissions().mode() & 0o777, 0o700);

    let again = try_enroll(&controller, &options(dir.path())).await.unwrap_err();
    assert!(matches!(again, EnrollError::AlreadyEnrolled { .. }), "{again:?}");
    let before = std::fs::read(&key).unwrap();
    let mut remembered = TrustStore::open(&dir.path().join(TRUST_FOLDER), [0; 16]).unwrap();
    remembered.set(DeviceTrust { generation: 7, ..remembered.trust().clone() }).unwrap();
    drop(remembered);
    try_enroll(&controller, &EnrollOptions { force: true, ..options(dir.path()) }).await.unwrap();
    assert_eq!(std::fs::read(&key).unwrap(), before);
    let requests = controller.requests.lock();
    assert_eq!(requests[0].device, None);
    assert_eq!(requests[1].device, Some("dev-7".parse().unwrap()));
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["identity", "trust"]);
    let trust = TrustStore::open(&dir.path().join(TRUST_FOLDER), [0; 16]).unwrap();
    assert_eq!((trust.trust().trust.version, trust.lost()), (2, None));
    assert_eq!(trust.trust().generation, 7, "enrolling again must not open the door to replays");
}

#[tokio::test]
async fn a_power_cut_between_the_renames_leaves_an_identity() {
    for leftover in ["identity.new", "identity.old"] {
        let dir = tempfile::tempdir().unwrap();
        let controller = controller(0, |_| ()).await;
        try_enroll(&controller, &options(dir.path())).await.unwrap();
        std::fs::rename(dir.path().join("identity"), dir.path().join(leftover)).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap().device().as_str(), "dev-7", "{leftover}");
        assert!(dir.path().join("identity").exists());
    }
}

#[tokio::test]
async fn a_device_that_waits_for_approval_keeps_its_key_over_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let controller = controller(2, |_| ()).await;
    let impatient = EnrollOptions { wait: Duration::ZERO, ..options(dir.path()) };
    assert!(matches!(try_enroll(&controller, &impatient).await, Err(EnrollError::NotApproved { .. })));
    let mut heard = 0;
    enroll(&controller.code, &options(dir.path()), &TrustedClock::system(), |_| heard += 1).await.unwrap();
    assert_eq!(heard, 1);
    let key = |csr: &str| {
        let csr = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        rcgen::PublicKeyData::der_bytes(&csr.public_key).to_vec()
    };
    let requests = controller.requests.lock();
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| key(&request.csr) == key(&requests[0].csr)));
}

#[tokio::test]
async fn what_does_not_hold_together_is_refused_and_leaves_no_identity() {
    type Change = fn(&mut Enrolled);
    let changes: [(&str, Change, &str); 6] = [
        ("another device", |e| e.device = "dev-8".parse().unwrap(), "does not hold together"),
        ("no certificate", |e| e.certificate.clear(), "does not hold together"),
        ("another key's certificate", |e| e.certificate = e.ca.clone(), "does not hold together"),
        (
            "another CA",
            |e| e.ca = Pki::valid_around(Timestamp::from_secs(1_800_000_000)).ca_pem(),
            "does not hold together",
        ),
        ("no trust", |e| e.trust.clear(), "trust documents"),
        ("a chain that starts elsewhere", |e| drop(e.trust.remove(0)), "trust documents"),
    ];
    for (name, change, wanted) in changes {
        let dir = tempfile::tempdir().unwrap();
        let controller = controller(0, change).await;
        let error = try_enroll(&controller, &options(dir.path())).await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{name}: {error}");
        assert!(load(dir.path()).unwrap().is_none(), "{name}");
    }
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let mut controller = controller(0, |_| ()).await;
    controller.code.secret = "wrong".into();
    let error = try_enroll(&controller, &options(dir.path())).await.unwrap_err();
    assert!(error.to_string().contains("used 1 of 1 times"), "{error}");
    assert!(error.hint().contains("was used up"), "{}", error.hint());

    controller.code.ca_pin = BlobDigest::of(b"another");
    let error = try_enroll(&controller, &options(dir.path())).await.unwrap_err();
    let url = controller.code.url.clone();
    assert_eq!(error.to_string(), format!("the server at {url} is not the one the join code names"));

    controller.code.ca_pin = controller.pki.ca_pin();
    let late = TrustedClock::with_local(|| crate::clock::now() + Duration::from_secs(120 * 24 * 3600));
    let error = enroll(&controller.code, &options(dir.path()), &late, |_| ()).await.unwrap_err();
    assert!(matches!(error, EnrollError::Clock { .. }), "{error:?}");

    controller.code.url = "https://localhost:1".into();
    let error = try_enroll(&controller, &options(dir.path())).await.unwrap_err();
    assert!(matches!(error, EnrollError::Unreachable { .. }), "{error:?}");
    controller.code.url = "http://localhost:1".into();
    assert!(try_enroll(&controller, &options(dir.path())).await.is_err());
    assert!(load(dir.path()).unwrap().is_none());
}

#[tokio::test]
async fn renewal_shows_the_certificate_while_it_lives_and_sends_it_along_once_it_has_expired() {
    for expired in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let controller = controller(0, |_| ()).await;
        let mut identity = try_enroll(&controller, &options(dir.path())).await.unwrap();
        if expired {
            let long_ago = Pki::valid_around(crate::clock::now() - Duration::from_secs(100 * 24 * 3600));
            identity.certificate = long_ago.issue("dev-7", &identity.signer);
        }
        let ca = controller.pki.clone();
        identity.controller.url = controller
            .pki
            .serve(move |path, body, shown| {
                let request: RenewRequest = serde_json::from_slice(body).unwrap();
                let wanted = if expired { "/api/v1/renew-expired" } else { "/api/v1/device/renew" };
                assert_eq!((path, shown, request.certificate.is_some()), (wanted, !expired, expired));
                let answer = RenewResponse { certificate: ca.sign("dev-7", &request.csr), ca: ca.ca_pem() };
                (StatusCode::OK, serde_json::to_vec(&answer).unwrap())
            })
            .await;
        let renewed = renew(&identity, dir.path(), &TrustedClock::system()).await.unwrap();
        assert_ne!(renewed.certificate, identity.certificate);
        assert_eq!(load(dir.path()).unwrap().unwrap().certificate, renewed.certificate);
    }
}
