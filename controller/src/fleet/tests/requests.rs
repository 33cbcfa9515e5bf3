//! Signing requests and certificates from strangers.

use crate::fleet::{
    certificate::{CertificateError, DeviceCertificate, MAX_PEM_BYTES, Serial, key_of_request},
    testing::{TestDevice, TestFleet},
};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};

fn request_of(algorithm: &'static rcgen::SignatureAlgorithm) -> String {
    let key = KeyPair::generate_for(algorithm).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

fn pem(der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        STANDARD.encode(der)
    )
}

#[test]
fn only_p256_keys_are_taken() {
    assert!(key_of_request(&request_of(&rcgen::PKCS_ECDSA_P256_SHA256)).is_ok());
    for other in [request_of(&rcgen::PKCS_ECDSA_P384_SHA384), request_of(&rcgen::PKCS_ED25519)] {
        assert!(matches!(key_of_request(&other), Err(CertificateError::NotP256)));
    }
    let rsa = include_str!("rsa.csr.pem");
    assert!(matches!(key_of_request(rsa), Err(CertificateError::NotP256)));
}

#[test]
fn a_request_signed_by_another_key_proves_nothing() {
    let der = CertificateSigningRequestDer::from_pem_slice(TestDevice::new().csr().as_bytes()).unwrap();
    let mut forged = der.as_ref().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(matches!(key_of_request(&pem(&forged)), Err(CertificateError::NoPossession)));
    // Another device's public key under this device's signature.
    let (a, b) = (TestDevice::new(), TestDevice::new());
    let der = CertificateSigningRequestDer::from_pem_slice(a.csr().as_bytes()).unwrap();
    let mut stolen = der.as_ref().to_vec();
    let (own, other) = (a.key.public_key_raw(), b.key.public_key_raw());
    let at = stolen.windows(own.len()).position(|window| window == own).unwrap();
    stolen[at..at + other.len()].copy_from_slice(other);
    assert!(matches!(key_of_request(&pem(&stolen)), Err(CertificateError::NoPossession)));
}

#[test]
fn garbage_and_oversize_are_refused_before_they_cost_anything() {
    for text in
        ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
    {
        assert!(matches!(key_of_request(text), Err(CertificateError::Malformed { .. })), "{text:?}");
    }
    let huge = "A".repeat(MAX_PEM_BYTES + 1);
    assert!(matches!(key_of_request(&huge), Err(CertificateError::TooLarge { .. })));
    let der = CertificateSigningRequestDer::from_pem_slice(TestDevice::new().csr().as_bytes()).unwrap();
    let trailing = [der.as_ref(), &[0]].concat();
    assert!(matches!(key_of_request(&pem(&trailing)), Err(CertificateError::Malformed { .. })));
}

#[tokio::test]
async fn a_certificate_of_a_device_is_read_and_one_of_another_authority_is_not() {
    let (ours, theirs) = (TestFleet::new().await, TestFleet::new().await);
    let (_, enrolled) = ours.enrolled().await;
    let read = DeviceCertificate::issued_by(&enrolled.certificate, ours.fleet.ca().certificate()).unwrap();
    assert_eq!(read.device, enrolled.device);
    assert_eq!(
        read.not_after,
        ours.clock.now() + 90 * crate::fleet::testing::DAY
            - std::time::Duration::from_millis(ours.clock.now().as_millis() % 1000)
    );
    let foreign = DeviceCertificate::issued_by(&enrolled.certificate, theirs.fleet.ca().certificate());
    assert!(matches!(foreign, Err(CertificateError::ForeignIssuer)));
    // The authority's own certificate is signed by the authority and is no device's.
    let ca = DeviceCertificate::issued_by(&ours.fleet.ca().certificate_pem(), ours.fleet.ca().certificate());
    assert!(matches!(ca, Err(CertificateError::NoDevice)));
    let server = ours.fleet.ca().server().chain_pem();
    let server = DeviceCertificate::issued_by(&server, ours.fleet.ca().certificate());
    assert!(matches!(server, Err(CertificateError::NoDevice)));
}

#[test]
fn serials_are_the_same_with_and_without_the_leading_zero_of_der() {
    assert_eq!(Serial::from_bytes(&[0, 0x9a, 1]), Serial::from_bytes(&[0x9a, 1]));
    assert_eq!(Serial::from_bytes(&[0, 0x9a, 1]).to_bytes(), [0x9a, 1]);
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0usize..300, flip in 1u8..) {
        let _ = key_of_request(&pem(&bytes));
        let _ = DeviceCertificate::parse(&bytes);
        let der = CertificateSigningRequestDer::from_pem_slice(include_bytes!("rsa.csr.pem")).unwrap();
        let mut damaged = der.as_ref().to_vec();
        let at = at % damaged.len();
        damaged[at] ^= flip;
        let _ = key_of_request(&pem(&damaged));
    }
}
