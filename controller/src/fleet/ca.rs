//! The certificate authority of one fleet: made at the first start, kept in `<data>/ca/`.
//!
//! ```text
//! ca.pem  ca.key            the authority, 10 years
//! server.pem  server.key    HTTPS and MQTT; the certificate is renewed, the key never changes
//! controller.pem  .key      how this controller shows itself to an external broker
//! ```
//! All keys are ECDSA P-256, PKCS#8, mode 0600.
//!
//! **Dates.** Every certificate is valid from 2020 on. A start date protects nothing here (devices
//! are admitted by serial number, servers by a pinned authority), but a late one locks out whoever verifies
//! with a clock that is behind: an agent falls back to its build time before it has seen a signed time, and
//! a controller whose clock was ahead when it signed would refuse its own devices once it is corrected.

use super::{
    certificate::{CertificateError, DevicePublicKey, Serial, parse_certificate},
    data_dir::{DataDirError, create_private_dir, read_small, write_private},
    secret::{NoRandomness, random, random_id},
    server_names::ServerNames,
};
use arc_swap::ArcSwap;
use edgefleet_shared::{digest::BlobDigest, ids::DeviceId, time::Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevocationReason, RevokedCertParams,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// 2020-01-01T00:00:00Z, before the first agent was built; the start of every certificate.
const FIRST_DAY_SECS: u64 = 1_577_836_800;
/// 2026-01-01T00:00:00Z. A controller whose clock is below it counts lifetimes from here, so that a first
/// start at 1970 does not make an authority that is expired once the clock is right.
const EARLIEST_NOW_SECS: u64 = 1_767_225_600;
const CA_LIFE: Duration = Duration::from_secs(3_653 * DAY.as_secs());
/// Agents believe a clock that is up to 400 days ahead, so a server certificate has more than that left at
/// all times: it lives 1,000 days and is renewed once fewer than 500 remain.
const SERVER_LIFE: Duration = Duration::from_secs(1_000 * DAY.as_secs());
const SERVER_RENEW: Duration = Duration::from_secs(500 * DAY.as_secs());
/// Devices renew by themselves after 60 days.
pub const DEVICE_LIFE: Duration = Duration::from_secs(90 * DAY.as_secs());
/// A broker that keeps a revocation list longer than this refuses everybody (OpenSSL), so it is renewed at
/// every change and every day but lives long enough for a controller that is down for a while.
const CRL_LIFE: Duration = Duration::from_secs(90 * DAY.as_secs());

/// A time as rcgen wants it. A macro because its type comes from a crate that we do not name.
macro_rules! date {
    ($at:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(Timestamp::as_secs($at))
    };
}

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(transparent)]
    File(#[from] DataDirError),
    #[error("`{}` is missing although `{}` exists; restore both from a backup", missing.display(), present.display())]
    Half { missing: PathBuf, present: PathBuf },
    #[error("`{}` cannot be read as {what}: {reason}", path.display())]
    Unreadable { path: PathBuf, what: &'static str, reason: String },
    #[error("could not make {what}")]
    Make { what: &'static str, source: rcgen::Error },
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// A certificate with its key, as TLS wants them.
pub struct Identity {
    /// Leaf first, then the authority: an enrolling agent pins the authority it is shown.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub not_after: Timestamp,
}

impl Identity {
    /// PEM of the chain.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|der| pem_of("CERTIFICATE", der)).collect()
    }
    /// PEM of the key.
    pub fn key_pem(&self) -> String {
        pem_of("PRIVATE KEY", self.key.secret_der())
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key(), not_after: self.not_after }
    }
}

/// A certificate for a device, just issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// PEM of the leaf alone.
    pub pem: String,
    pub serial: Serial,
    pub not_after: Timestamp,
}

/// One line of a revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    pub serial: Serial,
    pub at: Timestamp,
}

/// The authority, open.
pub struct Ca {
    dir: PathBuf,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    server: ArcSwap<Identity>,
    controller: Identity,
}

impl Ca {
    /// Opens the authority in `dir`, making what is missing and renewing what is close to its end.
    ///
    /// # Errors
    /// [`CaError`]. A key without its certificate, or the reverse, is never replaced silently.
    pub fn open(dir: impl Into<PathBuf>, names: &ServerNames, now: Timestamp) -> Result<Self, CaError> {
        let dir = dir.into();
        create_private_dir(&dir)?;
        let (certificate, issuer) = open_authority(&dir, now)?;
        let server = open_server(&dir, &issuer, &certificate, names, now)?;
        let controller = open_controller(&dir, &issuer, &certificate, now)?;
        Ok(Self { dir, certificate, issuer, server: ArcSwap::from_pointee(server), controller })
    }

    /// The authority's certificate, DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authority's certificate, PEM.
    pub fn certificate_pem(&self) -> String {
        pem_of("CERTIFICATE", &self.certificate)
    }

    /// What join codes carry: SHA-256 of the certificate.
    pub fn pin(&self) -> BlobDigest {
        BlobDigest::of(&self.certificate)
    }

    /// The server's identity, current one.
    pub fn server(&self) -> Arc<Identity> {
        self.server.load_full()
    }

    /// SHA-256 of the server's public key (SPKI), for `curl --pinnedpubkey sha256//BASE64`. Stays the same
    /// over renewals.
    ///
    /// # Errors
    /// [`CaError::Certificate`] if our own certificate cannot be parsed.
    pub fn server_key_pin(&self) -> Result<BlobDigest, CaError> {
        let server = self.server();
        let leaf = server.chain.first().unwrap_or(&self.certificate);
        Ok(BlobDigest::of(parse_certificate(leaf)?.public_key().raw))
    }

    /// How this controller shows itself to an external broker: common name `controller-...`.
    pub fn controller(&self) -> &Identity {
        &self.controller
    }

    /// Issues a new server certificate (same key) if the names changed or the end is near. `true` if it did:
    /// listeners must take [`Ca::server`] again. Call it daily.
    ///
    /// # Errors
    /// [`CaError`]; the old certificate stays in use.
    pub fn renew_server(&self, names: &ServerNames, now: Timestamp) -> Result<bool, CaError> {
        let before = self.server().not_after;
        let server = open_server(&self.dir, &self.issuer, &self.certificate, names, now)?;
        let renewed = server.not_after != before || self.server().chain != server.chain;
        self.server.store(Arc::new(server));
        Ok(renewed)
    }

    /// A certificate for `device` over `key`: client authentication only, 90 days.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue_device(
        &self,
        device: &DeviceId,
        key: &DevicePublicKey,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        let what = "a device certificate";
        let key =
            SubjectPublicKeyInfo::from_der(key.spki()).map_err(|source| CaError::Make { what, source })?;
        let not_after = lifetime_from(now) + DEVICE_LIFE;
        let params = client_params(device.as_str(), not_after)?;
        let serial = serial_of(&params);
        let certificate =
            params.signed_by(&key, &self.issuer).map_err(|source| CaError::Make { what, source })?;
        Ok(Issued { pem: certificate.pem(), serial, not_after })
    }

    /// A short-lived client identity with a key of our own under any name. With a device's name it takes
    /// over that device's session on a broker that knows no other way to end one (DECISIONS 9).
    ///
    /// # Errors
    /// [`CaError`].
    pub fn client_identity(
        &self,
        name: &DeviceId,
        life: Duration,
        now: Timestamp,
    ) -> Result<Identity, CaError> {
        let key = new_key("a client key")?;
        make_client(&self.issuer, &self.certificate, name.as_str(), &key, lifetime_from(now) + life)
    }

    /// A revocation list (PEM) that names `revoked`; `number` must grow from list to list.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn revocation_list(
        &self,
        revoked: &[Revoked],
        number: u64,
        now: Timestamp,
    ) -> Result<String, CaError> {
        let what = "a revocation list";
        let revoked = revoked.iter().map(|one| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&one.serial.to_bytes()),
            revocation_time: date!(one.at),
            reason_code: Some(RevocationReason::CessationOfOperation),
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date!(Timestamp::from_secs(FIRST_DAY_SECS)),
            next_update: date!(lifetime_from(now) + CRL_LIFE),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).map_err(|source| CaError::Make { what, source })?;
        list.pem().map_err(|source| CaError::Make { what, source })
    }
}

fn open_authority(
    dir: &Path,
    now: Timestamp,
) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>), CaError> {
    let what = "the certificate authority";
    let (certificate_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
    let fail = |source| CaError::Make { what, source };
    let (certificate, key) = match (read_small(&certificate_path)?, read_small(&key_path)?) {
        (Some(certificate), Some(key)) => {
            (read_certificate(&certificate_path, &certificate)?, read_key(&key_path, &key)?)
        }
        (Some(_), None) => return Err(CaError::Half { missing: key_path, present: certificate_path }),
        // The key comes first, so a cut-off first start leaves it alone: nothing was signed with it yet.
        (None, key) => {
            let key = match key {
                Some(key) => read_key(&key_path, &key)?,
                None => {
                    let key = new_key(what)?;
                    write_private(&key_path, key.serialize_pem().as_bytes())?;
                    key
                }
            };
            let mut params = base_params(&random_id("Edgefleet CA ")?, lifetime_from(now) + CA_LIFE)?;
            // Only leaves may follow: nobody can be made an authority below this one.
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let certificate = params.self_signed(&key).map_err(fail)?;
            write_private(&certificate_path, certificate.pem().as_bytes())?;
            (certificate.der().clone(), key)
        }
    };
    check_pair(&certificate_path, &certificate, &key)?;
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(fail)?;
    Ok((certificate, issuer))
}

fn open_server(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
    ca: &CertificateDer<'static>,
    names: &ServerNames,
    now: Timestamp,
) -> Result<Identity, CaError> {
    let what = "the server certificate";
    let (certificate_path, key_path) = (dir.join("server.pem"), dir.join("server.key"));
    let key = match read_small(&key_path)? {
        Some(key) => read_key(&key_path, &key)?,
        None => {
            let key = new_key("the server key")?;
            write_private(&key_path, key.serialize_pem().as_bytes())?;
            key
        }
    };
    if let Some(bytes) = read_small(&certificate_path)? {
        let leaf = read_certificate(&certificate_path, &bytes)?;
        check_pair(&certificate_path, &leaf, &key)?;
        let parsed = parse_certificate(&leaf)?;
        let not_after = not_after(&parsed);
        let ours = parse_certificate(ca)?;
        let usable = parsed.verify_signature(Some(ours.public_key())).is_ok()
            && not_after.since(now) > SERVER_RENEW
            && ServerNames::of(&parsed).covers(names);
        if usable {
            return Ok(Identity { chain: vec![leaf.clone(), ca.clone()], key: der_of(&key), not_after });
        }
    }
    let not_after = lifetime_from(now) + SERVER_LIFE;
    let mut params = base_params("edgefleet", not_after)?;
    params.subject_alt_names =
        names.to_alternative_names().map_err(|source| CaError::Make { what, source })?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, issuer).map_err(|source| CaError::Make { what, source })?;
    let chain = vec![leaf.der().clone(), ca.clone()];
    let identity = Identity { chain, key: der_of(&key), not_after };
    write_private(&certificate_path, identity.chain_pem().as_bytes())?;
    Ok(identity)
}

fn open_controller(
    dir: &Path,
    issuer: &Issuer<'static, KeyPair>,
    ca: &CertificateDer<'static>,
    now: Timestamp,
) -> Result<Identity, CaError> {
    let (certificate_path, key_path) = (dir.join("controller.pem"), dir.join("controller.key"));
    if let (Some(certificate), Some(key)) = (read_small(&certificate_path)?, read_small(&key_path)?) {
        let leaf = read_certificate(&certificate_path, &certificate)?;
        let key = read_key(&key_path, &key)?;
        let not_after = not_after(&parse_certificate(&leaf)?);
        if check_pair(&certificate_path, &leaf, &key).is_ok() && not_after.since(now) > SERVER_RENEW {
            return Ok(Identity { chain: vec![leaf, ca.clone()], key: der_of(&key), not_after });
        }
    }
    let key = new_key("the controller's client key")?;
    let name = random_id("controller-")?;
    let identity = make_client(issuer, ca, &name, &key, lifetime_from(now) + SERVER_LIFE)?;
    write_private(&key_path, key.serialize_pem().as_bytes())?;
    write_private(&certificate_path, identity.chain_pem().as_bytes())?;
    Ok(identity)
}

fn make_client(
    issuer: &Issuer<'static, KeyPair>,
    ca: &CertificateDer<'static>,
    name: &str,
    key: &KeyPair,
    not_after: Timestamp,
) -> Result<Identity, CaError> {
    let params = client_params(name, not_after)?;
    let leaf = params
        .signed_by(key, issuer)
        .map_err(|source| CaError::Make { what: "a client certificate", source })?;
    Ok(Identity { chain: vec![leaf.der().clone(), ca.clone()], key: der_of(key), not_after })
}

fn client_params(name: &str, not_after: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = base_params(name, not_after)?;
    let dns = name.try_into().map_err(|source| CaError::Make { what: "a client certificate", source })?;
    params.subject_alt_names = vec![SanType::DnsName(dns)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn base_params(common_name: &str, not_after: Timestamp) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = date!(Timestamp::from_secs(FIRST_DAY_SECS));
    params.not_after = date!(not_after);
    let mut serial: [u8; 16] = random()?;
    // Positive and always 16 bytes long in DER; 126 bits stay random.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn serial_of(params: &CertificateParams) -> Serial {
    Serial::from_bytes(&params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default())
}

fn lifetime_from(now: Timestamp) -> Timestamp {
    now.max(Timestamp::from_secs(EARLIEST_NOW_SECS))
}

fn new_key(what: &'static str) -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|source| CaError::Make { what, source })
}

fn der_of(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

fn read_certificate(path: &Path, bytes: &[u8]) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(bytes).map_err(|error| CaError::Unreadable {
        path: path.to_owned(),
        what: "a PEM certificate",
        reason: error.to_string(),
    })
}

fn read_key(path: &Path, bytes: &[u8]) -> Result<KeyPair, CaError> {
    let unreadable = |reason: String| CaError::Unreadable {
        path: path.to_owned(),
        what: "a PEM ECDSA P-256 key in PKCS#8 form",
        reason,
    };
    let der = PrivatePkcs8KeyDer::from_pem_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|error| unreadable(error.to_string()))
}

fn check_pair(path: &Path, certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<(), CaError> {
    if parse_certificate(certificate)?.public_key().raw == key.subject_public_key_info() {
        return Ok(());
    }
    Err(CaError::Unreadable {
        path: path.to_owned(),
        what: "the certificate of the key beside it",
        reason: "it is for another key".into(),
    })
}

fn not_after(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Timestamp {
    Timestamp::from_secs(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0))
}

fn pem_of(label: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}
