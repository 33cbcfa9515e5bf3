//! Coming in, coming again, and not coming in.

use crate::fleet::{
    FleetError,
    attributes::Labels,
    certificate::{CertificateError, DeviceCertificate},
    devices::DeviceState,
    invites::{InviteRefusal, NewInvite},
    testing::{ADDRESS, DAY, TestDevice, TestFleet, actor, expect_enrolled, sample_invite},
};
use edgefleet_shared::{
    enroll::{ENROLL_SCHEMA, EnrollRequest, EnrollResponse, JoinCode, RenewRequest},
    trust::DeviceTrust,
};
use std::{net::IpAddr, sync::Arc};

fn refusal(error: FleetError) -> InviteRefusal {
    match error {
        FleetError::Invite(refusal) => refusal,
        other => panic!("{other}"),
    }
}

fn renew(device: &TestDevice, certificate: Option<String>) -> RenewRequest {
    RenewRequest { schema: ENROLL_SCHEMA, csr: device.csr(), certificate }
}

#[tokio::test]
async fn a_device_gets_an_identity_the_labels_of_its_invite_and_a_trust_chain_it_can_check() {
    let test = TestFleet::new().await;
    let invite = test.invite(2).await;
    let code: JoinCode = invite.code.to_string().parse().unwrap();
    assert_eq!(code.ca_pin, test.fleet.ca().pin());
    let device = TestDevice::new();
    let request = EnrollRequest { name: Some("press-7".into()), ..device.request(&code) };
    let enrolled = expect_enrolled(test.fleet.enroll(&request, ADDRESS).await.unwrap());
    assert!(enrolled.device.as_str().starts_with("dev-") && enrolled.device.as_str().len() == 16);
    use base64::{Engine, engine::general_purpose::STANDARD};
    DeviceTrust::pinned(&STANDARD.decode(&enrolled.trust[0]).unwrap(), code.trust_pin).unwrap();

    let certificate =
        DeviceCertificate::issued_by(&enrolled.certificate, test.fleet.ca().certificate()).unwrap();
    assert!(test.fleet.admits(&enrolled.device, &certificate.serial).is_ok());
    let known = test.fleet.device(&enrolled.device).unwrap();
    assert_eq!((known.device.name.as_str(), known.device.state), ("press-7", DeviceState::Enrolled));
    assert_eq!(known.device.labels, Labels::from([("site".into(), "plant-7".into())]));
    assert!(known.matches(&"site=plant-7,arch=aarch64,cores>2,name=press-7,!zone".parse().unwrap()));
    assert_eq!(test.fleet.invite(&code.invite).await.unwrap().used, 1);
    test.fleet.audit_log().verify().await.unwrap();
}

#[tokio::test]
async fn a_join_code_that_does_not_open_says_why_only_to_who_knows_its_secret() {
    let test = TestFleet::new().await;
    let fleet = &test.fleet;
    let device = TestDevice::new();
    let good = test.invite(1).await.code;
    let unknown = JoinCode { invite: "inv-unknown".parse().unwrap(), ..good.clone() };
    let wrong = JoinCode { secret: "wrong".into(), ..good.clone() };
    let long = JoinCode { secret: "x".repeat(100_000), ..good.clone() };
    for code in [unknown, wrong, long] {
        let error = fleet.enroll(&device.request(&code), ADDRESS).await.unwrap_err();
        assert_eq!(refusal(error), InviteRefusal::Unknown);
    }
    let revoked = test.invite(1).await.code;
    fleet.revoke_invite(&actor(), &revoked.invite).await.unwrap();
    let error = fleet.enroll(&device.request(&revoked), ADDRESS).await.unwrap_err();
    assert!(matches!(refusal(error), InviteRefusal::Revoked { .. }));

    let used = test.invite(1).await.code;
    fleet.enroll(&TestDevice::new().request(&used), ADDRESS).await.unwrap();
    let error = fleet.enroll(&device.request(&used), ADDRESS).await.unwrap_err();
    assert_eq!(refusal(error), InviteRefusal::UsedUp { uses: 1 });

    test.clock.advance(DAY);
    let error = fleet.enroll(&device.request(&good), ADDRESS).await.unwrap_err();
    assert!(matches!(refusal(error), InviteRefusal::Expired { .. }));
    assert_eq!(fleet.counters().refused, 6);
}

#[tokio::test]
async fn guessing_is_stopped_by_address_and_others_still_come_in() {
    let test = TestFleet::new().await;
    let good = test.invite(5).await.code;
    let wrong = JoinCode { secret: "wrong".into(), ..good.clone() };
    let device = TestDevice::new();
    for _ in 0..20 {
        test.fleet.enroll(&device.request(&wrong), ADDRESS).await.unwrap_err();
    }
    let blocked = test.fleet.enroll(&device.request(&good), ADDRESS).await.unwrap_err();
    assert!(matches!(blocked, FleetError::TooManyFailures { .. }), "{blocked}");
    let other: IpAddr = [10, 9, 9, 9].into();
    test.fleet.enroll(&device.request(&good), other).await.unwrap();
    test.clock.advance(std::time::Duration::from_secs(60));
    test.fleet.enroll(&TestDevice::new().request(&good), ADDRESS).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_invite_for_one_lets_exactly_one_in_however_many_try_at_once() {
    let test = TestFleet::new().await;
    for budget in [1, 5] {
        let code = test.invite(budget).await.code;
        let tries: Vec<_> = (0..20)
            .map(|_| {
                let (fleet, request) = (Arc::clone(&test.fleet), TestDevice::new().request(&code));
                tokio::spawn(async move { fleet.enroll(&request, ADDRESS).await })
            })
            .collect();
        let mut won = 0;
        for one in tries {
            match one.await.unwrap() {
                Ok(_) => won += 1,
                Err(error) => assert_eq!(refusal(error), InviteRefusal::UsedUp { uses: budget }),
            }
        }
        assert_eq!(won, budget);
    }
    assert_eq!(test.fleet.counts().enrolled, 6);
    test.fleet.audit_log().verify().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_key_becomes_one_device_even_when_its_requests_race() {
    let test = TestFleet::new().await;
    let code = test.invite(20).await.code;
    let device = TestDevice::new();
    let tries: Vec<_> = (0..6)
        .map(|_| {
            let (fleet, request) = (Arc::clone(&test.fleet), device.request(&code));
            tokio::spawn(
                async move { expect_enrolled(fleet.enroll(&request, ADDRESS).await.unwrap()).device },
            )
        })
        .collect();
    let mut ids = Vec::new();
    for one in tries {
        ids.push(one.await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(test.fleet.invite(&code.invite).await.unwrap().used, 1);
}

#[tokio::test]
async fn repeating_a_request_whose_answer_was_lost_works_although_the_invite_is_used_up_and_expired() {
    let test = TestFleet::new().await;
    let code = test.invite(1).await.code;
    let device = TestDevice::new();
    let first = expect_enrolled(test.fleet.enroll(&device.request(&code), ADDRESS).await.unwrap());
    test.clock.advance(2 * DAY);
    let again = expect_enrolled(test.fleet.enroll(&device.request(&code), ADDRESS).await.unwrap());
    assert_eq!(first.device, again.device);
    let named = device.request_as(&code, &first.device);
    assert_eq!(expect_enrolled(test.fleet.enroll(&named, ADDRESS).await.unwrap()).device, first.device);
    // Not with somebody else's id.
    let (_, other) = test.enrolled().await;
    let error = test.fleet.enroll(&device.request_as(&code, &other.device), ADDRESS).await.unwrap_err();
    assert!(matches!(error, FleetError::KeyInUse), "{error}");
    // Not after the invite was revoked.
    test.fleet.revoke_invite(&actor(), &code.invite).await.unwrap();
    let error = test.fleet.enroll(&device.request(&code), ADDRESS).await.unwrap_err();
    assert!(matches!(refusal(error), InviteRefusal::Revoked { .. }));
}

#[tokio::test]
async fn a_known_device_with_a_new_key_waits_for_a_person_and_then_only_the_new_key_counts() {
    let test = TestFleet::new().await;
    let (_, old) = test.enrolled().await;
    let code = test.invite(3).await.code;
    let replacement = TestDevice::new();
    let request = replacement.request_as(&code, &old.device);
    for _ in 0..2 {
        let response = test.fleet.enroll(&request, ADDRESS).await.unwrap();
        assert!(matches!(response, EnrollResponse::Pending { .. }));
    }
    let serial = test.fleet.device(&old.device).unwrap().device.certificates[0].serial.clone();
    assert!(test.fleet.admits(&old.device, &serial).is_ok(), "the old key works until somebody decides");
    test.fleet.approve_device(&actor(), &old.device).await.unwrap();
    assert!(test.fleet.admits(&old.device, &serial).is_err());
    assert_eq!(test.fleet.revoked_serials().await.unwrap()[0].serial, serial);
    let new = expect_enrolled(test.fleet.enroll(&request, ADDRESS).await.unwrap());
    assert_eq!(new.device, old.device);
    assert_eq!(test.fleet.invite(&code.invite).await.unwrap().used, 1);
    // Refused: another one asks and a person says no.
    let stranger = TestDevice::new().request_as(&code, &old.device);
    test.fleet.enroll(&stranger, ADDRESS).await.unwrap();
    test.fleet.deny_device(&actor(), &old.device).await.unwrap();
    assert!(matches!(test.fleet.enroll(&stranger, ADDRESS).await.unwrap_err(), FleetError::KeyInUse));
    let unknown = TestDevice::new().request_as(&code, &"dev-nobody".parse().unwrap());
    assert!(matches!(test.fleet.enroll(&unknown, ADDRESS).await.unwrap_err(), FleetError::NoDevice(_)));
    test.fleet.audit_log().verify().await.unwrap();
}

#[tokio::test]
async fn with_approval_a_device_waits_and_is_let_in_or_not() {
    let test = TestFleet::new().await;
    let invite = test.invite_with(NewInvite { uses: 2, approval: true, ..sample_invite() }).await;
    let (good, bad) = (TestDevice::new(), TestDevice::new());
    for device in [&good, &bad, &good] {
        let response = test.fleet.enroll(&device.request(&invite.code), ADDRESS).await.unwrap();
        assert!(matches!(response, EnrollResponse::Pending { .. }));
    }
    let test = test.restart().await;
    let query = crate::fleet::devices::DeviceQuery { limit: 10, ..Default::default() };
    let waiting = test.fleet.list_devices(&query).items;
    assert_eq!(waiting.len(), 2);
    let key = crate::fleet::certificate::key_of_request(&good.csr()).unwrap().digest();
    for known in waiting {
        let id = &known.device.id;
        if known.device.key == key {
            test.fleet.approve_device(&actor(), id).await.unwrap();
            assert!(matches!(test.fleet.approve_device(&actor(), id).await, Err(FleetError::NotPending(_))));
        } else {
            test.fleet.deny_device(&actor(), id).await.unwrap();
        }
    }
    test.clock.advance(2 * DAY);
    expect_enrolled(test.fleet.enroll(&good.request(&invite.code), ADDRESS).await.unwrap());
    let error = test.fleet.enroll(&bad.request(&invite.code), ADDRESS).await.unwrap_err();
    assert!(matches!(error, FleetError::Denied(_)), "{error}");
}

#[tokio::test]
async fn requests_with_a_bad_key_name_or_schema_take_nothing_from_the_invite() {
    let test = TestFleet::new().await;
    let code = test.invite(1).await.code;
    let good = TestDevice::new().request(&code);
    for (bad, expected) in [
        (EnrollRequest { csr: "garbage".into(), ..good.clone() }, "csr-malformed"),
        (EnrollRequest { csr: include_str!("rsa.csr.pem").into(), ..good.clone() }, "csr-not-p256"),
        (EnrollRequest { csr: "x".repeat(20_000), ..good.clone() }, "csr-too-large"),
        (EnrollRequest { name: Some("a b".into()), ..good.clone() }, "label-invalid"),
        (EnrollRequest { schema: 2, ..good.clone() }, "unknown-schema"),
    ] {
        assert_eq!(test.fleet.enroll(&bad, ADDRESS).await.unwrap_err().code(), expected);
    }
    test.fleet.enroll(&good, ADDRESS).await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_same_key_only() {
    let test = TestFleet::new().await;
    let (device, enrolled) = test.enrolled().await;
    let ca = test.fleet.ca().certificate().clone();
    let peer = DeviceCertificate::issued_by(&enrolled.certificate, &ca).unwrap();
    test.clock.advance(60 * DAY);
    let renewed = test.fleet.renew(&peer, &renew(&device, None)).await.unwrap();
    let renewed = DeviceCertificate::issued_by(&renewed.certificate, &ca).unwrap();
    assert_eq!((&renewed.device, &renewed.key), (&peer.device, &peer.key));
    assert!(renewed.not_after > peer.not_after);
    for serial in [&peer.serial, &renewed.serial] {
        assert!(test.fleet.admits(&peer.device, serial).is_ok(), "the old one works until it ends");
    }
    let error = test.fleet.renew(&peer, &renew(&TestDevice::new(), None)).await.unwrap_err();
    assert!(matches!(error, FleetError::OtherKey), "{error}");
    // Only the newest four stay.
    for _ in 0..3 {
        test.fleet.renew(&peer, &renew(&device, None)).await.unwrap();
    }
    let error = test.fleet.renew(&peer, &renew(&device, None)).await.unwrap_err();
    assert!(matches!(error, FleetError::CertificateRefused(_)), "{error}");
}

#[tokio::test]
async fn a_device_that_was_off_for_two_years_comes_back_with_its_key_and_nobody_else_does() {
    let test = TestFleet::new().await;
    let (device, enrolled) = test.enrolled().await;
    let (_, other) = test.enrolled().await;
    let test = test.restart().await;
    assert_eq!(
        test.fleet.device(&enrolled.device).unwrap().status.facts.cores,
        4,
        "what it said at enrolment"
    );
    test.clock.advance(730 * DAY);
    let old = Some(enrolled.certificate.clone());
    let thief = TestDevice::new();
    for (request, code) in [
        (renew(&thief, old.clone()), "other-key"),
        (renew(&device, Some(other.certificate.clone())), "other-key"),
        (renew(&device, None), "invalid"),
        (renew(&device, Some("garbage".into())), "csr-malformed"),
        (RenewRequest { csr: "garbage".into(), ..renew(&device, old.clone()) }, "csr-malformed"),
    ] {
        assert_eq!(test.fleet.renew_expired(&request, ADDRESS).await.unwrap_err().code(), code);
    }
    let foreign = TestFleet::new().await;
    let (_, stranger) = foreign.enrolled().await;
    let request = renew(&device, Some(stranger.certificate));
    let error = test.fleet.renew_expired(&request, ADDRESS).await.unwrap_err();
    assert!(matches!(error, FleetError::Certificate(CertificateError::ForeignIssuer)), "{error}");

    let renewed = test.fleet.renew_expired(&renew(&device, old.clone()), ADDRESS).await.unwrap();
    let renewed = DeviceCertificate::issued_by(&renewed.certificate, test.fleet.ca().certificate()).unwrap();
    assert!(test.fleet.admits(&renewed.device, &renewed.serial).is_ok());

    test.fleet.remove_device(&actor(), &enrolled.device, None).await.unwrap();
    let error = test.fleet.renew_expired(&renew(&device, old), ADDRESS).await.unwrap_err();
    assert!(matches!(error, FleetError::CertificateRefused(_)), "{error}");
}
