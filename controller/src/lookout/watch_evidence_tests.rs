//! What devices send, people label and reports say, until the rule that asks for it speaks.

use super::*;
use crate::{
    advice::RuleId,
    captures::Word,
    desired::{INTENT, Intent, intent_id},
    fleet::attributes::Labels,
    ingest::{Ingest, Surroundings},
    rollouts::{ATTEMPT, Documents, Rollouts, attempt_id},
};
use bytes::Bytes;
use edgefleet_shared::{
    capture::{
        Audit, CAPTURE_SCHEMA, Capture, CaptureDocument, CapturePolicy, Kept, Predicted, Reason, TensorEntry,
    },
    digest::{BundleDigest, EnvelopeDigest},
    ids::{AttemptId, BootId, PredictionId},
    reported::{ClockQuality, Reported},
    telemetry::{
        Ack, Agreement, Counts, DeviceHealth, LabelCounts, Latency, Profile, Record, RecordBody,
        TelemetryBatch, Versus, Window, batch::TELEMETRY_SCHEMA,
    },
    tensor::{Datatype, Tensor},
};
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3_600);

fn attempt() -> AttemptId {
    AttemptId { rollout: "r-1".parse().unwrap(), number: 1 }
}

/// Tells the lookout as the server does.
struct Telling(LookoutHandle);

#[async_trait]
impl Surroundings for Telling {
    async fn is_known(&self, bundle: &BundleName) -> bool {
        bundle.model.as_str() == "digits"
    }
    fn is_isolated(&self, _: &DeviceId) -> bool {
        false
    }
    fn labels(&self, _: &DeviceId) -> Labels {
        Labels::default()
    }
    fn profiled(&self, bundle: BundleName, device: DeviceId, cohort: Cohort) {
        self.0.tell(Heard { bundle, device, cohort });
    }
    async fn acknowledge(&self, _: &DeviceId, _: Ack) {}
}

fn window(role: Role, start: Timestamp) -> RecordBody {
    let bundle = if role == Role::Shadow { "digits@2" } else { "digits@1" };
    RecordBody::Window(Box::new(Window {
        slot: "digits".parse().unwrap(),
        bundle: bundle.parse().unwrap(),
        digest: BundleDigest::of(b"m"),
        role,
        attempt: attempt(),
        mono_start_ms: 0,
        mono_end_ms: 300_000,
        wall_start: start,
        wall_end: start + Duration::from_secs(300),
        clock: ClockQuality::Plausible,
        counts: Counts { requests: 500, rows: 500, ok: 500, ..Counts::default() },
        latency: Latency::default(),
        classes: BTreeMap::new(),
        first_bad_ms: None,
        exceed: vec![],
        agreement: (role == Role::Shadow).then(|| Agreement { n: 500, disagree: 90, ..Agreement::default() }),
        device: None,
    }))
}

fn profile(start: Timestamp) -> RecordBody {
    RecordBody::Profile(Box::new(Profile {
        slot: "digits".parse().unwrap(),
        bundle: bundle(),
        digest: BundleDigest::of(b"m"),
        role: Role::Primary,
        attempt: attempt(),
        mono_start_ms: 0,
        mono_end_ms: 3_600_000,
        wall_start: start,
        wall_end: start + HOUR,
        clock: ClockQuality::Plausible,
        content: content_of(400, [0.0; 2]),
    }))
}

fn labels(start: Timestamp, [wins, losses, both_right, both_wrong]: [u64; 4]) -> RecordBody {
    RecordBody::Labels(LabelCounts {
        slot: "digits".parse().unwrap(),
        bundle: bundle(),
        digest: BundleDigest::of(b"m"),
        attempt: attempt(),
        bucket: start,
        source: "controller".into(),
        matched: wins + losses + both_right + both_wrong,
        correct: losses + both_right,
        confusion: vec![("1".into(), "7".into(), wins), ("3".into(), "8".into(), both_wrong)],
        unmatched: BTreeMap::new(),
        versus: Some(Versus {
            bundle: "digits@2".parse().unwrap(),
            digest: BundleDigest::of(b"c"),
            attempt: attempt(),
            wins,
            losses,
            both_right,
            both_wrong,
        }),
    })
}

/// Rules with something open to say, and of one of them the whole finding.
async fn open(place: &Place) -> BTreeMap<RuleId, crate::advice::Finding> {
    let advice = place.reading().advice(&Filter::default()).await.unwrap();
    advice.into_iter().map(|one| one.record.tracked.finding).map(|found| (found.rule, found)).collect()
}

/// What devices send of a candidate, from bytes to findings.
async fn sent(devices: usize, each: [u64; 4]) -> BTreeMap<RuleId, crate::advice::Finding> {
    let now = crate::clock::now();
    let start = now - HOUR;
    let bodies =
        vec![window(Role::Primary, start), window(Role::Shadow, start), profile(start), labels(start, each)];
    heard(devices, &bodies, now).await
}

/// All devices send the same.
async fn heard(
    devices: usize,
    bodies: &[RecordBody],
    now: Timestamp,
) -> BTreeMap<RuleId, crate::advice::Finding> {
    let home = TestFleet::at(now).await;
    let (lookout, handle) = Lookout::new(parts(&home).await);
    let store = home.fleet.store().clone();
    let monitoring = Monitoring::open(store.clone(), home.fleet.audit_log().clone()).await.unwrap();
    let rollouts =
        Rollouts::new(Documents::new(store.clone()), home.fleet.audit_log().clone(), home.fleet.clone());
    let (worker, queue) = Ingest::new(store, rollouts, Arc::new(Telling(handle)), monitoring);
    for n in 0..devices {
        let device: DeviceId = format!("dev-{n}").parse().unwrap();
        let boot = BootId::from_random([7; 16]);
        let records = (1..).zip(bodies).map(|(seq, body)| Record { boot, seq, body: body.clone() }).collect();
        let batch = TelemetryBatch { schema: TELEMETRY_SCHEMA, device: device.clone(), records };
        queue.offer(&device, &batch.to_bytes().unwrap()).unwrap();
    }
    drop(queue);
    worker.run().await;
    let mut place = Place { bundle: bundle(), home, lookout, now };
    let mut heard = BTreeSet::new();
    while let Ok(one) = place.lookout.heard.try_recv() {
        heard.insert(one);
    }
    assert_eq!(heard.len(), devices);
    place.lookout.pass(&heard, now).await.unwrap();
    open(&place).await
}

#[tokio::test]
async fn a_candidate_that_is_right_more_often_on_four_devices_is_ready_for_canaries() {
    let found = sent(4, [40, 5, 100, 15]).await;
    let ready = &found[&RuleId::A14];
    assert_eq!(ready.numbers["labels"], 640.0);
    assert!((ready.numbers["gain"] - 140.0 / 640.0).abs() < 1e-9, "{ready:?}");
    assert!(
        ready.text.what.contains("right 160 times") && ready.text.what.contains("4 devices"),
        "{}",
        ready.text.what
    );
    // 160 of 220 mistakes of the active bundle take 1 and 7 for each other.
    assert!((found[&RuleId::A13].numbers["share"] - 160.0 / 220.0).abs() < 1e-9);
    // Two devices are no fleet.
    assert!(!sent(2, [40, 5, 100, 15]).await.contains_key(&RuleId::A14));
}

#[tokio::test]
async fn a_candidate_that_errs_differently_is_told_of() {
    let found = sent(5, [20, 20, 140, 20]).await;
    assert!(!found.contains_key(&RuleId::A14));
    let differs = &found[&RuleId::A15];
    assert_eq!((differs.numbers["disagree"], differs.numbers["labels"]), (0.18, 1_000.0));
}

#[tokio::test]
async fn processors_that_are_slowed_and_slow_inference_are_heat() {
    let now = crate::clock::now();
    let hot = |start: Timestamp, infer_us: u64, slowed: bool| {
        let RecordBody::Window(mut window) = window(Role::Primary, start) else {
            unreachable!("a window is a window")
        };
        for _ in 0..500 {
            window.latency.infer.record_us(infer_us);
            window.latency.total.record_us(infer_us);
        }
        window.mono_end_ms = 3_600_000;
        let cpu_ms = Some(1_800_000);
        window.device =
            Some(DeviceHealth { temp_c: Some(84), slowed: Some(slowed), cpu_ms, ..DeviceHealth::default() });
        RecordBody::Window(window)
    };
    let before = now - Duration::from_secs(2 * 86_400);
    let bodies = |infer_us, slowed| {
        vec![hot(before, 10_000, false), hot(now - HOUR, infer_us, slowed), profile(now - HOUR)]
    };
    let found = heard(3, &bodies(18_000, true), now).await;
    let heat = &found[&RuleId::A17];
    assert_eq!((heat.numbers["throttled"], heat.numbers["throttled_before"]), (1.0, 0.0));
    assert_eq!(heat.numbers["temperature"], 84.0);
    // As fast as ever: nobody has to know.
    assert!(!heard(3, &bodies(10_000, true), now).await.contains_key(&RuleId::A17));
    assert!(!heard(3, &bodies(18_000, false), now).await.contains_key(&RuleId::A17));
}

/// Audit capture number `n` that says "one".
fn capture(n: u64, at: Timestamp) -> (edgefleet_shared::digest::BlobDigest, Bytes, DeviceId) {
    let input = Tensor::new("x", Datatype::Uint8, vec![1, 8], Bytes::from(n.to_le_bytes().to_vec())).unwrap();
    let device: DeviceId = format!("dev-{:02}", n % 8).parse().unwrap();
    let document = CaptureDocument {
        schema: CAPTURE_SCHEMA,
        prediction: PredictionId { device: device.clone(), boot: BootId::from_random([3; 16]), sequence: n },
        slot: "digits".parse().unwrap(),
        bundle: bundle(),
        digest: BundleDigest::of(b"digits"),
        attempt: attempt(),
        at,
        clock: ClockQuality::Plausible,
        reasons: vec![Reason::Random],
        inclusion: Some(0.05),
        audit: Some(Audit { share: 0.05, sequence: n }),
        predicted: Some(Predicted {
            index: 1,
            class: "one".into(),
            confidence: Some(0.9),
            margin: None,
            entropy: None,
        }),
        inputs: vec![TensorEntry {
            name: "x".into(),
            datatype: Datatype::Uint8,
            shape: vec![1, 8],
            kept: Kept::Bytes { bytes: 8 },
        }],
        outputs: vec![],
        label: None,
    };
    let file: Bytes = Capture { document, inputs: vec![input], outputs: vec![] }.to_bytes().unwrap().into();
    (Capture::id(&file), file, device)
}

#[tokio::test]
async fn labelled_captures_that_contradict_the_estimate_are_concept_drift() {
    let home = TestFleet::new().await;
    let captures = captures(&home).await;
    let (store, audit) = (home.fleet.store().clone(), home.fleet.audit_log().clone());
    let monitoring = Monitoring::open(store.clone(), audit).await.unwrap();
    let sources = Sources::new(home.fleet.clone(), Arc::new(OneBundle), captures.clone());
    let lookout = Lookout::new(LookoutParts { store, monitoring, sources }).0;
    let mut place = Place { bundle: bundle(), home, lookout, now: start() };
    let mut policy = CapturePolicy::default();
    policy.random.share = 0.05;
    captures.set_policy(&actor(), &bundle().model, Some(policy), start()).await.unwrap();
    let label = async |from: u64, until: u64, wrong_of_ten: u64, at: Timestamp| {
        for n in from..until {
            let (digest, file, device) = capture(n, at);
            assert!(captures.receive(&device, digest, file, at).await.unwrap());
            let class = if n % 10 < wrong_of_ten { "seven" } else { "one" };
            captures.label(&actor(), &digest, Word::Class(class.into()), at).await.unwrap();
        }
    };
    label(0, 120, 1, start()).await;
    for _ in 0..2 {
        place.hour(&[0.0; 8]).await;
    }
    assert!(!open(&place).await.contains_key(&RuleId::A04), "nine of ten, as on held-out data");
    label(120, 420, 5, place.now).await;
    place.hour(&[0.0; 8]).await;
    let found = open(&place).await;
    let drift = &found[&RuleId::A04];
    assert_eq!(drift.numbers["labels"], 420.0);
    assert!((drift.numbers["audited"] - 258.0 / 420.0).abs() < 1e-9, "{drift:?}");
    let action = serde_json::to_string(&drift.action).unwrap();
    assert!(action.contains("0.05") && action.contains("0.2"), "{action}");
}

#[tokio::test]
async fn stragglers_and_slow_int8_are_seen_in_what_devices_report() {
    let mut place = Place::new().await;
    let now = place.now;
    let digest = BundleDigest::of(b"digits@1");
    let store = place.home.fleet.store().clone();
    let mut behind = BTreeSet::new();
    for n in 0..4_u64 {
        let (_, enrolled) = place.home.enrolled().await;
        let device = enrolled.device;
        let slot: edgefleet_shared::ids::SlotName = "digits".parse().unwrap();
        let active = edgefleet_shared::desired::Assigned {
            bundle: bundle(),
            release: EnvelopeDigest::of(b"release"),
            release_size: 9,
            attempt: attempt(),
        };
        let intent = Intent { active: Some(active), ..Intent::empty(device.clone(), slot.clone()) };
        // One of those behind got it only an hour ago.
        let handed = if n == 3 { now - HOUR } else { now - Duration::from_secs(5 * 86_400) };
        let attempt = json!({
            "device": device, "rollout": "r-1", "number": 1, "stage": 0, "arm": "none", "stratum": "",
            "rank": n, "state": "assigned", "since": handed, "mode": "active", "bucket": "in-flight",
            "handed_at": handed, "updated": handed,
        });
        let (intent_id, attempt_id) =
            (intent_id(&device, &slot), attempt_id(&"r-1".parse().unwrap(), &device));
        let put = Transaction::new()
            .put_json(INTENT, intent_id.as_str(), Expect::Absent, &intent)
            .unwrap()
            .put_json(ATTEMPT, attempt_id.as_str(), Expect::Absent, &attempt)
            .unwrap();
        store.commit(put).await.unwrap();
        let runs = if n < 1 { "digits@1" } else { "digits@7" };
        let measured = json!([
            {"setup": "onnxruntime/f32/1", "median_ms": 2.0}, {"setup": "onnxruntime/f32/4", "median_ms": 1.0},
            {"setup": "onnxruntime/int8-qdq/1", "median_ms": 3.0},
        ]);
        let reported: Reported = serde_json::from_value(json!({
            "schema": 1, "device": device, "boot": "00".repeat(16), "at": now, "clock": "plausible",
            "generation": 1, "trust_version": 1, "facts": {"hardware": "pi-4"},
            "slots": {"digits": {
                "phase": if n < 1 { "committed" } else { "download-failed" },
                "active": {"bundle": runs, "digest": digest, "attempt": {"rollout": "r-1", "number": 1}},
                "engine": {"digest": digest, "setup": "onnxruntime/f32/4", "measured": measured},
            }},
        }))
        .unwrap();
        place.home.fleet.record_report(reported).await.unwrap();
        if n != 2 {
            place.home.fleet.record_presence(&device, true, "connected").await.unwrap();
        }
        if n == 1 || n == 2 {
            behind.insert(device);
        }
    }
    place.hour(&[0.0; 8]).await;
    let found = open(&place).await;
    let late = &found[&RuleId::A24];
    assert_eq!((late.numbers["behind"], late.numbers["share"]), (2.0, 0.5));
    let action = serde_json::to_value(&late.action).unwrap().to_string();
    assert!(action.contains(r#""download-failed":1"#) && action.contains(r#""offline":1"#), "{action}");
    assert!(behind.iter().all(|device| action.contains(device.as_str())), "{action}");
    let slow = &found[&RuleId::A19];
    assert_eq!((slow.numbers["int8_us"], slow.numbers["f32_us"]), (3_000.0, 1_000.0));
}
