//! What people do with devices.

use crate::{
    broker::embedded::{Admission, Verdict},
    fleet::{
        Cause, FleetError, Sessions,
        certificate::{DeviceCertificate, Serial},
        devices::{DevicePatch, DeviceQuery, DeviceState},
        testing::{ADDRESS, TestFleet, actor, expect_enrolled},
    },
    store::Revision,
};
use async_trait::async_trait;
use edgefleet_shared::{
    digest::BundleDigest,
    ids::{BootId, DeviceId},
    reported::{ClockQuality, Facts, REPORTED_SCHEMA, Reported},
};
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Default)]
struct Ended(Mutex<Vec<(DeviceId, bool)>>, bool);

#[async_trait]
impl Sessions for Ended {
    async fn kick(&self, device: &DeviceId) -> Result<(), Cause> {
        self.0.lock().push((device.clone(), false));
        Ok(())
    }
    async fn revoke(&self, device: &DeviceId) -> Result<(), Cause> {
        self.0.lock().push((device.clone(), true));
        if self.1 { Err("the broker is away".into()) } else { Ok(()) }
    }
}

fn patch(labels: &[(&str, Option<&str>)]) -> DevicePatch {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
    DevicePatch { name: None, labels }
}

#[tokio::test]
async fn a_removed_device_is_refused_at_once_and_after_a_restart_and_its_id_and_key_stay_taken() {
    for broker_away in [false, true] {
        let test = TestFleet::new().await;
        let (device, enrolled) = test.enrolled().await;
        let id = &enrolled.device;
        let ended = Arc::new(Ended(Mutex::default(), broker_away));
        test.fleet.set_sessions(Arc::clone(&ended) as Arc<dyn Sessions>);
        let serial = DeviceCertificate::issued_by(&enrolled.certificate, test.fleet.ca().certificate())
            .unwrap()
            .serial;
        assert_eq!(test.fleet.admit(id, &serial.to_bytes()), Verdict::Allow);
        test.fleet.record_presence(id, true, "connected").await.unwrap();

        let removal = test.fleet.remove_device(&actor(), id, None).await.unwrap();
        assert_eq!(removal.session_ended, !broker_away);
        assert_eq!(*ended.0.lock(), [(id.clone(), true)]);
        assert!(!removal.device.status.online);
        assert!(matches!(test.fleet.admit(id, &serial.to_bytes()), Verdict::Refuse(_)));

        let test = test.restart().await;
        assert!(matches!(test.fleet.admit(id, &serial.to_bytes()), Verdict::Refuse(_)));
        let all = DeviceQuery { limit: 10, ..DeviceQuery::default() };
        assert!(test.fleet.list_devices(&all).items.is_empty());
        let gone = DeviceQuery { state: Some(DeviceState::Removed), ..all };
        assert_eq!(test.fleet.list_devices(&gone).items[0].device.id, *id);
        assert_eq!(test.fleet.revoked_serials().await.unwrap()[0].serial, serial);
        assert!(test.fleet.revocation_list().await.unwrap().contains("X509 CRL"));
        let again =
            test.fleet.enroll(&device.request(&test.invite(1).await.code), ADDRESS).await.unwrap_err();
        assert!(matches!(again, FleetError::Removed(_)), "{again}");
        let renamed =
            test.fleet.patch_device(&actor(), id, &patch(&[("a", Some("b"))]), None).await.unwrap_err();
        assert!(matches!(renamed, FleetError::Removed(_)), "{renamed}");
        test.fleet.remove_device(&actor(), id, None).await.unwrap();
        test.fleet.audit_log().verify().await.unwrap();
    }
}

#[tokio::test]
async fn labels_are_set_taken_away_and_checked_and_a_stale_writer_loses() {
    let test = TestFleet::new().await;
    let (_, enrolled) = test.enrolled().await;
    let id = &enrolled.device;
    let before = test.fleet.device(id).unwrap();
    let change = patch(&[("site", None), ("line", Some("3"))]);
    let after = test.fleet.patch_device(&actor(), id, &change, Some(before.revision)).await.unwrap();
    assert_eq!(after.device.labels, [("line".to_owned(), "3".to_owned())].into());
    let late = test.fleet.patch_device(&actor(), id, &change, Some(before.revision)).await.unwrap_err();
    assert!(matches!(late, FleetError::Stale { found, .. } if found == after.revision), "{late}");
    let bad = test.fleet.patch_device(&actor(), id, &patch(&[("arch", Some("x"))]), None).await.unwrap_err();
    assert_eq!(bad.code(), "label-invalid");
    let rename = DevicePatch { name: Some("press-7".into()), ..DevicePatch::default() };
    let named = test.fleet.patch_device(&actor(), id, &rename, None).await.unwrap();
    assert_eq!(named.device.name, "press-7");
    // Nothing to change writes nothing.
    assert_eq!(test.fleet.patch_device(&actor(), id, &rename, None).await.unwrap().revision, named.revision);
    let unknown =
        test.fleet.patch_device(&actor(), &"dev-x".parse().unwrap(), &rename, Some(Revision(1))).await;
    assert!(matches!(unknown, Err(FleetError::NoDevice(_))));
    let test = test.restart().await;
    assert_eq!(test.fleet.device(id).unwrap().device.name, "press-7");
    let actions: Vec<_> =
        test.fleet.audit_entries(1, 100).await.unwrap().items.into_iter().map(|entry| entry.action).collect();
    assert_eq!(actions, ["invite.create", "device.enroll", "device.update", "device.update"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_to_one_device_at_once_are_all_kept() {
    let test = TestFleet::new().await;
    let (_, enrolled) = test.enrolled().await;
    let writers: Vec<_> = (0..12)
        .map(|n| {
            let (fleet, id) = (Arc::clone(&test.fleet), enrolled.device.clone());
            let change = patch(&[(&format!("k{n}"), Some("v"))]);
            tokio::spawn(async move { fleet.patch_device(&actor(), &id, &change, None).await.map(|_| ()) })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(test.fleet.device(&enrolled.device).unwrap().device.labels.len(), 13);
    test.fleet.audit_log().verify().await.unwrap();
}

#[tokio::test]
async fn pages_cover_every_device_once_and_selectors_are_a_union() {
    let test = TestFleet::new().await;
    let code = test.invite(10).await.code;
    for n in 0..7 {
        let device = super::super::testing::TestDevice::new();
        let enrolled = expect_enrolled(test.fleet.enroll(&device.request(&code), ADDRESS).await.unwrap());
        let line = n.to_string();
        test.fleet
            .patch_device(&actor(), &enrolled.device, &patch(&[("line", Some(&line))]), None)
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    let mut query = DeviceQuery { limit: 3, ..DeviceQuery::default() };
    loop {
        let page = test.fleet.list_devices(&query);
        seen.extend(page.items.into_iter().map(|known| known.device.id.clone()));
        let Some(next) = page.next else { break };
        query.after = Some(next.parse().unwrap());
    }
    assert_eq!(seen.len(), 7);
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]));
    let selectors = vec!["line<2".parse().unwrap(), "line in (1, 6)".parse().unwrap()];
    let query = DeviceQuery { selectors, limit: 100, ..DeviceQuery::default() };
    assert_eq!(test.fleet.list_devices(&query).items.len(), 3);
}

#[tokio::test]
async fn what_a_device_reports_is_kept_over_a_restart_and_never_becomes_a_label() {
    let test = TestFleet::new().await;
    let (_, enrolled) = test.enrolled().await;
    let id = &enrolled.device;
    let reported = Reported {
        schema: REPORTED_SCHEMA,
        device: id.clone(),
        boot: BootId::from_random([7; 16]),
        seq: 0,
        at: test.clock.now(),
        clock: ClockQuality::Plausible,
        generation: 3,
        trust_version: 1,
        nonce: None,
        slots: Default::default(),
        refused: None,
        facts: Facts { hostname: "x".repeat(10_000), arch: "riscv64".into(), ..Facts::default() },
    };
    test.fleet.record_presence(id, true, "connected").await.unwrap();
    test.fleet.record_report(reported.clone()).await.unwrap();
    let stranger = Reported { device: "dev-unknown".parse().unwrap(), ..reported };
    test.fleet.record_report(stranger).await.unwrap();
    assert_eq!(test.fleet.counts().online, 1);
    let test = test.restart().await;
    let known = test.fleet.device(id).unwrap();
    assert!(!known.status.online, "a controller that just started is connected to nobody");
    assert_eq!(known.status.reported.as_ref().unwrap().generation, 3);
    assert_eq!(known.status.facts.hostname.len(), 128);
    assert!(known.matches(&"arch=riscv64,online=false".parse().unwrap()));
    assert!(!known.device.labels.contains_key("arch"));
    assert_eq!(test.fleet.counts().online, 0);
}

/// A report of so many slots, each with how it runs, in texts of so many bytes.
fn with_engines(device: &DeviceId, slots: usize, text: usize) -> Reported {
    let engine = |text: String| {
        let refused = serde_json::json!({"setup": text, "code": "golden-mismatch", "reason": text});
        serde_json::json!({
            "digest": BundleDigest::of(b"b"),
            "setup": text,
            "measured": vec![serde_json::json!({"setup": text, "median_ms": 1e300}); 100],
            "refused": vec![refused; 100],
        })
    };
    let slot = |_| serde_json::json!({"phase": "committed", "engine": engine("\u{7}x".repeat(text))});
    let slots: serde_json::Map<_, _> = (0..slots).map(|n| (format!("slot-{n}"), slot(n))).collect();
    let report = serde_json::json!({
        "schema": 1, "device": device, "boot": "07".repeat(16), "at": "2026-11-23T08:00:00Z",
        "clock": "plausible", "generation": 3, "trust_version": 1, "facts": {}, "slots": slots,
    });
    serde_json::from_value(report).unwrap()
}

#[tokio::test]
async fn how_slots_run_is_kept_within_bounds_and_never_at_the_cost_of_where_they_are() {
    let test = TestFleet::new().await;
    let (_, enrolled) = test.enrolled().await;
    let id = &enrolled.device;
    let kept = || test.fleet.device(id).unwrap().status.reported.clone().unwrap();
    test.fleet.record_report(with_engines(id, 2, 5_000)).await.unwrap();
    assert!(serde_json::to_vec(&kept()).unwrap().len() < 10_000);
    for slot in kept().slots.values() {
        let engine = slot.engine.as_ref().expect("what runs it");
        assert!(engine.setup.bytes().all(|byte| byte == b'x') && engine.refused[0].reason.len() < 200);
        assert_eq!(engine.measured[0].median_ms, None, "no such time");
    }
    // So many that even bounded ones are too much: the slots stay.
    test.fleet.record_report(with_engines(id, 64, 5_000)).await.unwrap();
    assert_eq!(kept().slots.len(), 64);
    assert!(kept().slots.values().all(|slot| slot.engine.is_none()));
}

#[tokio::test]
async fn a_broker_beside_us_gets_the_removed_serials_and_a_name_to_take_over_that_is_not_among_them() {
    let test = TestFleet::new().await;
    let (_, enrolled) = test.enrolled().await;
    test.fleet.remove_device(&actor(), &enrolled.device, None).await.unwrap();
    let life = std::time::Duration::from_secs(60);
    let identity = test.fleet.ca().client_identity(&enrolled.device, life, test.clock.now()).unwrap();
    let minted = DeviceCertificate::parse(&identity.chain[0]).unwrap();
    assert_eq!(minted.device, enrolled.device);
    assert!(test.fleet.admits(&minted.device, &minted.serial).is_err(), "good at the other broker only");
    let list = test.fleet.revocation_list().await.unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(list.as_bytes()).unwrap();
    let (_, list) = x509_parser::parse_x509_crl(&pem.contents).unwrap();
    let serials: Vec<_> =
        list.iter_revoked_certificates().map(|one| Serial::from_bytes(one.raw_serial())).collect();
    let issued = DeviceCertificate::issued_by(&enrolled.certificate, test.fleet.ca().certificate()).unwrap();
    assert_eq!(serials, [issued.serial]);
    // Once it has expired it need not be named any more.
    test.clock.advance(91 * crate::fleet::testing::DAY);
    assert!(test.fleet.revoked_serials().await.unwrap().is_empty());
}
