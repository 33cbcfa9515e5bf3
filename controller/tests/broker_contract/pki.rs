//! A certificate authority for one test.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use edgefleet_controller::{broker::external::ClientIdentity, clock};

pub struct Pki {
    ca: CertifiedIssuer<'static, KeyPair>,
    serial: AtomicU64,
}

/// A certificate with its key.
pub struct Issued {
    pub der: CertificateDer<'static>,
    pub pem: String,
    pub key: KeyPair,
    pub serial: SerialNumber,
}

impl Pki {
    pub fn new() -> Arc<Self> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, -3_600, 86_400);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Arc::new(Self { ca, serial: AtomicU64::new(1_000) })
    }

    /// Valid from an hour ago until `seconds` from now.
    pub fn issue(&self, common_name: &str, dns: &str, seconds: i64) -> Issued {
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let serial = SerialNumber::from(self.serial.fetch_add(1, Ordering::Relaxed));
        params.serial_number = Some(serial.clone());
        set_validity(&mut params, -3_600, seconds);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.ca).unwrap();
        Issued { der: certificate.der().clone(), pem: certificate.pem(), key, serial }
    }

    pub fn device(&self, id: &str) -> Issued {
        self.issue(id, id, 3_600)
    }

    pub fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.der().clone()).unwrap();
        roots
    }

    pub fn crl(&self, revoked: &[SerialNumber]) -> String {
        let now = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(clock::now().as_secs());
        let revoked_certs = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: serial.clone(),
            revocation_time: now - Duration::from_secs(60),
            reason_code: None,
            invalidity_date: None,
        });
        CertificateRevocationListParams {
            this_update: now - Duration::from_secs(60),
            next_update: now + Duration::from_secs(86_400),
            crl_number: SerialNumber::from(self.serial.fetch_add(1, Ordering::Relaxed)),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.ca)
        .unwrap()
        .pem()
        .unwrap()
    }

    /// TLS of a client that trusts this CA and shows `identity`, if any.
    pub fn client(&self, identity: Option<&Issued>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        match identity {
            Some(issued) => {
                builder.with_client_auth_cert(vec![issued.der.clone()], issued.private_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        }
    }
}

impl Issued {
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    pub fn identity(&self) -> ClientIdentity {
        ClientIdentity { chain: vec![self.der.clone()], key: self.private_key() }
    }
}

/// Relative to now, in seconds.
fn set_validity(params: &mut CertificateParams, from: i64, until: i64) {
    let now = i64::try_from(clock::now().as_secs()).unwrap();
    let at = |offset: i64| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(now + offset).unwrap())
    };
    params.not_before = at(from);
    params.not_after = at(until);
}
