//! What the authority makes, keeps and renews.

use crate::fleet::{
    ca::{Ca, CaError, Revoked},
    certificate::{Serial, parse_certificate},
    server_names::ServerNames,
    testing::{DAY, TestDevice, start},
};
use edgefleet_shared::time::Timestamp;
use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn dates(der: &[u8]) -> (i64, i64) {
    let certificate = parse_certificate(der).unwrap();
    (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp())
}

#[test]
fn everything_is_made_once_and_only_the_owner_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let names = ServerNames::default().with_url("https://fleet.example:8443").unwrap();
    let first = Ca::open(dir.path(), &names, start()).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    let second = Ca::open(dir.path(), &names, start() + DAY).unwrap();
    assert_eq!(first.pin(), second.pin());
    assert_eq!(first.server().chain, second.server().chain);
    assert_eq!(first.controller().chain, second.controller().chain);
    let controller =
        crate::fleet::certificate::DeviceCertificate::parse(&second.controller().chain[0]).unwrap();
    assert!(controller.device.as_str().starts_with(crate::broker::CONTROLLER_PREFIX));
}

#[test]
fn the_server_key_survives_renewals_and_new_names() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), &ServerNames::default(), start()).unwrap();
    let (pin, chain) = (ca.server_key_pin().unwrap(), ca.server().chain.clone());
    assert!(!ca.renew_server(&ServerNames::default(), start() + 400 * DAY).unwrap(), "too early");
    assert!(ca.renew_server(&ServerNames::default(), start() + 501 * DAY).unwrap());
    assert_ne!(ca.server().chain, chain);
    assert_eq!(ca.server_key_pin().unwrap(), pin);
    assert!(ca.renew_server(&ServerNames::default().with_host("10.0.0.7"), start() + 501 * DAY).unwrap());
    assert_eq!(ca.server_key_pin().unwrap(), pin);
    assert_eq!(
        Ca::open(dir.path(), &ServerNames::default(), start()).unwrap().server_key_pin().unwrap(),
        pin
    );
}

#[test]
fn certificates_hold_for_clocks_that_are_years_off() {
    let key = {
        let csr = TestDevice::new().csr();
        crate::fleet::certificate::key_of_request(&csr).unwrap()
    };
    let device = "dev-1".parse().unwrap();
    let built = i64::try_from(start().as_secs()).unwrap();
    for first_start in [Timestamp::EPOCH, start() - 2 * YEAR, start(), start() + 10 * YEAR] {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), &ServerNames::default(), first_start).unwrap();
        let issued = ca.issue_device(&device, &key, first_start).unwrap();
        let issued =
            crate::fleet::certificate::DeviceCertificate::issued_by(&issued.pem, ca.certificate()).unwrap();
        let two_years_before = built - i64::try_from(2 * YEAR.as_secs()).unwrap();
        for (what, (from, to)) in [
            ("the authority", dates(ca.certificate())),
            ("the server", dates(&ca.server().chain[0])),
            ("the controller", dates(&ca.controller().chain[0])),
        ] {
            // An agent that knows nothing but its build time, and one whose clock is believed 400 days ahead of
            // the controller's.
            assert!(from <= two_years_before, "{what} made at {first_start}");
            let ahead = i64::try_from((first_start + 400 * DAY).as_secs()).unwrap();
            assert!(ahead < to, "{what} made at {first_start}");
        }
        assert!(issued.not_after > first_start, "{first_start}");
    }
    // A controller that first started at 1970 has an authority that still holds when its clock is right.
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), &ServerNames::default(), Timestamp::EPOCH).unwrap();
    assert!(dates(ca.certificate()).1 > built);
}

#[test]
fn a_missing_or_foreign_key_is_named_and_nothing_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    Ca::open(dir.path(), &ServerNames::default(), start()).unwrap();
    Ca::open(other.path(), &ServerNames::default(), start()).unwrap();
    let open = || Ca::open(dir.path(), &ServerNames::default(), start()).err();
    let key = fs::read(dir.path().join("ca.key")).unwrap();
    fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
    assert!(matches!(open(), Some(CaError::Unreadable { .. })));
    fs::write(dir.path().join("ca.key"), b"garbage").unwrap();
    assert!(matches!(open(), Some(CaError::Unreadable { .. })));
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    assert!(matches!(open(), Some(CaError::Half { .. })));
    fs::write(dir.path().join("ca.key"), key).unwrap();
    assert!(open().is_none());
}

#[test]
fn a_revocation_list_is_signed_by_the_authority_and_names_the_serials() {
    use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open(dir.path(), &ServerNames::default(), start()).unwrap();
    let revoked = Revoked { serial: Serial::from_bytes(&[0x7a; 16]), at: start() };
    for (list, count) in [(vec![], 0), (vec![revoked], 1)] {
        let pem = ca.revocation_list(&list, 7, start()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        assert_eq!(pem.label, "X509 CRL");
        let (_, parsed) = CertificateRevocationList::from_der(&pem.contents).unwrap();
        parsed.verify_signature(parse_certificate(ca.certificate()).unwrap().public_key()).unwrap();
        let serials: Vec<_> =
            parsed.iter_revoked_certificates().map(|one| Serial::from_bytes(one.raw_serial())).collect();
        assert_eq!(serials.len(), count);
        assert!(serials.iter().all(|serial| *serial == Serial::from_bytes(&[0x7a; 16])));
    }
}
