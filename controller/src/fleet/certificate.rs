//! What comes from outside as ASN.1: signing requests and certificates, parsed and verified, nothing issued.

use edgefleet_shared::{
    digest::{BlobDigest, encode_hex},
    ids::DeviceId,
    time::Timestamp,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use std::fmt;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::GeneralName,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256},
    prelude::{FromDer, X509Certificate},
    x509::SubjectPublicKeyInfo,
};

/// Largest request or certificate accepted, PEM, in bytes. A P-256 request has about 500.
pub const MAX_PEM_BYTES: usize = 8 * 1024;

/// An uncompressed P-256 point: 0x04, X, Y.
const P256_POINT_BYTES: usize = 65;

/// Why a signing request or a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the {what} has {found} bytes, {limit} are allowed")]
    TooLarge { what: &'static str, found: usize, limit: usize },
    #[error("the {what} is not one PEM block of DER: {reason}")]
    Malformed { what: &'static str, reason: String },
    #[error("the key is not ECDSA P-256, the only kind a device may have")]
    NotP256,
    #[error("the signing request is not signed by the key it names, so possession of it is not proven")]
    NoPossession,
    #[error("the certificate was not issued by this controller's authority")]
    ForeignIssuer,
    #[error("the certificate does not name exactly one device")]
    NoDevice,
}

/// A P-256 public key as DER SubjectPublicKeyInfo, proven to be well-formed.
#[derive(Clone, PartialEq, Eq)]
pub struct DevicePublicKey {
    spki: Vec<u8>,
}

impl DevicePublicKey {
    fn of(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, CertificateError> {
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let point = &info.subject_public_key.data;
        let ok = info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
            && curve.is_some_and(|curve| curve == OID_EC_P256)
            && point.len() == P256_POINT_BYTES
            && point[0] == 4;
        if ok { Ok(Self { spki: info.raw.to_vec() }) } else { Err(CertificateError::NotP256) }
    }

    /// DER SubjectPublicKeyInfo.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// What a device is recognised by.
    pub fn digest(&self) -> BlobDigest {
        BlobDigest::of(&self.spki)
    }
}

impl fmt::Debug for DevicePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevicePublicKey({})", self.digest().short())
    }
}

/// Serial number of a certificate: lower-case hexadecimal without leading zero bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Serial(String);

impl Serial {
    /// From big-endian bytes, with or without the leading zero that DER may need.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(encode_hex(&bytes[zeros..]))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Big-endian bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.0.len() / 2];
        // Made by `from_bytes` or read from our own store; an odd text yields zeros, which is nobody's serial.
        let _ = edgefleet_shared::digest::decode_hex(&self.0, &mut bytes);
        bytes
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({})", self.0)
    }
}

/// The key of a PEM signing request whose signature proves possession.
///
/// Only the key is taken: subject, names and extensions that the request asks for are ignored, because the
/// controller alone decides what a certificate says.
///
/// # Errors
/// [`CertificateError`]; the size is checked before anything is parsed.
pub fn key_of_request(pem: &str) -> Result<DevicePublicKey, CertificateError> {
    let what = "signing request";
    check_size(what, pem)?;
    let malformed = |reason: String| CertificateError::Malformed { what, reason };
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| malformed(error.to_string()))?;
    let (rest, request) =
        X509CertificationRequest::from_der(der.as_ref()).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes follow it", rest.len())));
    }
    let key = DevicePublicKey::of(&request.certification_request_info.subject_pki)?;
    if request.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err(CertificateError::NotP256);
    }
    request.verify_signature().map_err(|_| CertificateError::NoPossession)?;
    Ok(key)
}

/// What our own client certificates say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCertificate {
    /// Common name; equals the one DNS name.
    pub device: DeviceId,
    pub serial: Serial,
    pub not_after: Timestamp,
    pub key: DevicePublicKey,
}

impl DeviceCertificate {
    /// Reads a certificate whose issuer and dates somebody else has verified (TLS).
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn parse(der: &[u8]) -> Result<Self, CertificateError> {
        Self::read(&parse_certificate(der)?)
    }

    /// Reads a PEM certificate and verifies that `authority` (DER) signed it. Dates are not asked: expired
    /// certificates are what renewal is for.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn issued_by(pem: &str, authority: &[u8]) -> Result<Self, CertificateError> {
        let what = "certificate";
        check_size(what, pem)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| CertificateError::Malformed { what, reason: error.to_string() })?;
        let certificate = parse_certificate(&der)?;
        let authority = parse_certificate(authority)?;
        certificate
            .verify_signature(Some(authority.public_key()))
            .map_err(|_| CertificateError::ForeignIssuer)?;
        if certificate.is_ca() {
            return Err(CertificateError::NoDevice);
        }
        Self::read(&certificate)
    }

    fn read(certificate: &X509Certificate<'_>) -> Result<Self, CertificateError> {
        let mut names = certificate.subject().iter_common_name().map(|name| name.as_str());
        let (Some(Ok(name)), None) = (names.next(), names.next()) else {
            return Err(CertificateError::NoDevice);
        };
        let device: DeviceId = name.parse().map_err(|_| CertificateError::NoDevice)?;
        let alternative = certificate.subject_alternative_name().map_err(|_| CertificateError::NoDevice)?;
        let names = alternative.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let [GeneralName::DNSName(dns)] = names else { return Err(CertificateError::NoDevice) };
        if *dns != device.as_str() {
            return Err(CertificateError::NoDevice);
        }
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self {
            device,
            serial: Serial::from_bytes(certificate.raw_serial()),
            not_after: Timestamp::from_secs(not_after),
            key: DevicePublicKey::of(certificate.public_key())?,
        })
    }
}

fn check_size(what: &'static str, pem: &str) -> Result<(), CertificateError> {
    if pem.len() <= MAX_PEM_BYTES {
        return Ok(());
    }
    Err(CertificateError::TooLarge { what, found: pem.len(), limit: MAX_PEM_BYTES })
}

/// One DER certificate and nothing after it.
pub(crate) fn parse_certificate(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let malformed = |reason: String| CertificateError::Malformed { what: "certificate", reason };
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| malformed(error.to_string()))?;
    if rest.is_empty() { Ok(certificate) } else { Err(malformed(format!("{} bytes follow it", rest.len()))) }
}
