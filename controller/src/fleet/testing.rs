//! A real fleet in a temporary folder, with a clock that tests set, and devices that make their own keys.

use super::{Actor, Endpoints, Fleet, FleetParts, TrustChain, ca::Ca, server_names::ServerNames};
use crate::{
    clock::Clock,
    fleet::invites::{CreatedInvite, NewInvite},
    store::{
        audit::AuditLog,
        sled_home::{SledConfig, SledStore},
    },
};
use edgefleet_shared::{
    digest::EnvelopeDigest,
    enroll::{ENROLL_SCHEMA, EnrollRequest, EnrollResponse, Enrolled, JoinCode},
    ids::DeviceId,
    reported::Facts,
    time::Timestamp,
    trust::{
        Role, SigningKey, Trust,
        documents::Roles,
        envelope::{TRUST_TYPE, seal},
    },
};
use rcgen::{CertificateParams, KeyPair};
use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);
pub(crate) const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

/// 2026-11-23T07:04:50Z.
pub(crate) fn start() -> Timestamp {
    Timestamp::from_secs(1_795_417_490)
}

#[derive(Clone)]
pub(crate) struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub(crate) fn at(now: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(now.as_millis())))
    }
    pub(crate) fn set(&self, now: Timestamp) {
        self.0.store(now.as_millis(), Ordering::SeqCst);
    }
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
    pub(crate) fn advance(&self, by: Duration) {
        self.set(self.now() + by);
    }
    pub(crate) fn clock(&self) -> Clock {
        let cell = Arc::clone(&self.0);
        Arc::new(move || Timestamp::from_millis(cell.load(Ordering::SeqCst)))
    }
}

/// A chain of one really signed document.
pub(crate) struct OneDocument(pub(crate) Vec<u8>);

impl OneDocument {
    pub(crate) fn new() -> Self {
        let key = SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap();
        let role = || Role { keys: vec![key.public().id()], threshold: 1 };
        let trust = Trust {
            version: 1,
            issued: start(),
            expires: start() + 400 * DAY,
            keys: [(key.public().id(), key.public())].into(),
            roles: Roles { trust: role(), publisher: role(), controller: role() },
            floors: Default::default(),
        };
        Self(seal(TRUST_TYPE, &trust, &[&key]))
    }
}

impl TrustChain for OneDocument {
    fn newest(&self) -> EnvelopeDigest {
        EnvelopeDigest::of(&self.0)
    }
    fn since(&self, pin: &EnvelopeDigest) -> Option<Vec<Vec<u8>>> {
        (*pin == self.newest()).then(|| vec![self.0.clone()])
    }
}

pub(crate) struct TestFleet {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) clock: TestClock,
    trust: Arc<OneDocument>,
}

impl TestFleet {
    pub(crate) async fn new() -> Self {
        Self::at(start()).await
    }

    pub(crate) async fn at(now: Timestamp) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, trust) = (TestClock::at(now), Arc::new(OneDocument::new()));
        let fleet = open(dir.path(), &clock, &trust).await;
        Self { dir, fleet, clock, trust }
    }

    /// Stops and starts again from what is on disk.
    pub(crate) async fn restart(self) -> Self {
        let Self { dir, fleet, clock, trust } = self;
        fleet.store().close().await.unwrap();
        drop(fleet);
        let fleet = open(dir.path(), &clock, &trust).await;
        Self { dir, fleet, clock, trust }
    }

    pub(crate) async fn invite(&self, uses: u32) -> CreatedInvite {
        self.invite_with(NewInvite { uses, ..sample_invite() }).await
    }

    pub(crate) async fn invite_with(&self, new: NewInvite) -> CreatedInvite {
        self.fleet.create_invite(&actor(), new).await.unwrap()
    }

    /// A device that came in by an invite of its own.
    pub(crate) async fn enrolled(&self) -> (TestDevice, Enrolled) {
        let invite = self.invite(1).await;
        let device = TestDevice::new();
        let response = self.fleet.enroll(&device.request(&invite.code), ADDRESS).await.unwrap();
        (device, expect_enrolled(response))
    }
}

async fn open(dir: &Path, clock: &TestClock, trust: &Arc<OneDocument>) -> Arc<Fleet> {
    let (store, _) = SledStore::open(SledConfig::new(dir.join("store"))).await.unwrap();
    let store: Arc<dyn crate::store::FleetStore> = Arc::new(store);
    let ca = Ca::open(dir.join("ca"), &ServerNames::default(), clock.now()).unwrap();
    let parts = FleetParts {
        audit: Arc::new(AuditLog::new(Arc::clone(&store))),
        store,
        ca: Arc::new(ca),
        trust: Arc::clone(trust) as Arc<dyn TrustChain>,
        clock: clock.clock(),
        endpoints: Endpoints {
            url: "https://localhost:8443".into(),
            mqtt_host: "localhost".into(),
            mqtt_port: 8883,
        },
    };
    Arc::new(Fleet::open(parts).await.unwrap())
}

pub(crate) fn actor() -> Actor {
    Actor::token("test", "test")
}

pub(crate) fn sample_invite() -> NewInvite {
    NewInvite {
        labels: [("site".to_owned(), "plant-7".to_owned())].into(),
        uses: 1,
        ttl: DAY,
        approval: false,
    }
}

pub(crate) fn expect_enrolled(response: EnrollResponse) -> Enrolled {
    match response {
        EnrollResponse::Enrolled(enrolled) => *enrolled,
        EnrollResponse::Pending { .. } => panic!("pending"),
    }
}

/// A device's side: its key and what it sends.
pub(crate) struct TestDevice {
    pub(crate) key: KeyPair,
}

impl TestDevice {
    pub(crate) fn new() -> Self {
        Self { key: KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    pub(crate) fn csr(&self) -> String {
        CertificateParams::new(vec!["ignored".to_owned()])
            .unwrap()
            .serialize_request(&self.key)
            .unwrap()
            .pem()
            .unwrap()
    }

    pub(crate) fn request(&self, code: &JoinCode) -> EnrollRequest {
        EnrollRequest {
            schema: ENROLL_SCHEMA,
            invite: code.invite.clone(),
            secret: code.secret.clone(),
            csr: self.csr(),
            device: None,
            name: None,
            facts: Facts { arch: "aarch64".into(), cores: 4, ..Facts::default() },
        }
    }

    pub(crate) fn request_as(&self, code: &JoinCode, device: &DeviceId) -> EnrollRequest {
        EnrollRequest { device: Some(device.clone()), ..self.request(code) }
    }
}
