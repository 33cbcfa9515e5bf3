//! A controller that serves a store filled by hand: devices, bundles, telemetry, drift, advice, rollouts.

use crate::{
    advice::{Standing, Tracked},
    alerts::AlertSettings,
    captures::{
        CaptureRecord,
        record::{CAPTURE, Joined, LabelRecord, capture_key},
    },
    cli::rollout::tests::samples,
    drift::{Cause, ChannelDrift, Incident, IncidentChannel, IncidentKey},
    fleet::{
        certificate::Serial,
        data_dir::DataDir,
        devices::{CertificateRecord, Device, DeviceState, Status},
    },
    ingest::{AGGREGATE, Aggregate, BucketId, Cohort},
    lookout::{ADVICE, AdviceRecord, CohortRecord, DRIFT_COHORT, HourPoint, INCIDENT, IncidentRecord},
    registry::{
        BUNDLE, BundleRecord,
        record::{Checks, RECORD_SCHEMA},
    },
    rollouts::{ATTEMPT, ROLLOUT, attempt_id},
    server::{Addresses, BrokerChoice, ServeOptions, serve},
    store::{
        Expect, FleetStore, Kind, Transaction,
        sled_home::{SledConfig, SledStore},
    },
    transfer::Limits,
};
use edgefleet_shared::{
    capture::{Audit, CAPTURE_SCHEMA, CaptureDocument, Predicted, Reason},
    digest::{BlobDigest, BundleDigest},
    ids::{AttemptId, BootId, BundleName, DeviceId, PredictionId},
    reported::{ClockQuality, Facts},
    telemetry::{ProfileContent, Quality, Role},
    time::Timestamp,
};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);
/// What a hostile device would call itself.
pub(super) const HOSTILE: &str = "<script>alert(1)</script>\"'&";

pub(super) struct House {
    _dir: tempfile::TempDir,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
    pub(super) client: Client,
    pub(super) url: String,
    pub(super) admin: String,
}

/// Somebody who is signed in.
pub(super) struct Person {
    pub(super) cookie: String,
    pub(super) csrf: String,
}

pub(super) fn device_id(n: usize) -> DeviceId {
    format!("dev-{n:05}").parse().unwrap()
}

impl House {
    pub(super) async fn with(devices: usize) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fill(&data, devices).await;
        let local = "127.0.0.1:0".parse().unwrap();
        let options = ServeOptions {
            data: data.clone(),
            https: local,
            mqtt: local,
            public_url: None,
            agent_bin: None,
            ort_lib: None,
            limits: Limits::default(),
            broker: BrokerChoice::Embedded,
            alerts: AlertSettings::default(),
            otlp: None,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(options, stop.clone()));
        let begun = Instant::now();
        let addresses = loop {
            assert!(!task.is_finished() && begun.elapsed() < DEADLINE, "the controller did not start");
            match Addresses::read(&data) {
                Ok(addresses) => break addresses,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let ca = std::fs::read(data.join("ca/ca.pem")).unwrap();
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
            .build()
            .unwrap();
        let admin = std::fs::read_to_string(data.join("admin-token")).unwrap().trim().to_owned();
        Self { _dir: dir, stop, task, client, url: format!("https://{}", addresses.https), admin }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
    }

    pub(super) async fn token(&self, role: &str) -> String {
        let made = self.client.post(format!("{}/api/v1/tokens", self.url)).bearer_auth(&self.admin);
        let made = made.json(&json!({"name": role, "role": role})).send().await.unwrap();
        made.json::<Value>().await.unwrap()["text"].as_str().unwrap().to_owned()
    }

    pub(super) async fn sign_in(&self, token: &str) -> Response {
        let body = format!("token={token}&next=%2Ffleet");
        self.client
            .post(format!("{}/sign-in", self.url))
            .header("content-type", FORM)
            .body(body)
            .send()
            .await
            .unwrap()
    }

    pub(super) async fn person(&self, role: &str) -> Person {
        let response = self.sign_in(&self.token(role).await).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        let cookie = response.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        let page = self.get("/findings", Some(&cookie)).await.text().await.unwrap();
        let csrf = page.split("name=\"csrf\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        Person { cookie, csrf }
    }

    pub(super) async fn get(&self, path: &str, cookie: Option<&str>) -> Response {
        let mut request = self.client.get(format!("{}{path}", self.url));
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        request.send().await.unwrap()
    }

    pub(super) async fn post(&self, path: &str, cookie: &str, body: String) -> Response {
        let request = self.client.post(format!("{}{path}", self.url)).header("content-type", FORM);
        request.header("cookie", cookie).body(body).send().await.unwrap()
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

async fn fill(data: &Path, devices: usize) {
    let folder = DataDir::open(data).unwrap();
    let (store, _) = SledStore::open(SledConfig::new(folder.store())).await.unwrap();
    let now = crate::clock::now();
    let mut all = Vec::<(Kind, String, Vec<u8>)>::new();
    let mut put =
        |kind: Kind, id: String, value: Value| all.push((kind, id, serde_json::to_vec(&value).unwrap()));
    for n in 0..devices {
        let (device, status) = device(n, now);
        put(Kind::new("device"), device.id.to_string(), json!(device));
        put(Kind::new("device-status"), device.id.to_string(), json!(status));
    }
    let bundles: Vec<BundleName> = ["digits@1", "digits@2"].map(|name| name.parse().unwrap()).into();
    for (n, bundle) in bundles.iter().enumerate() {
        put(BUNDLE, bundle.to_string(), json!(record(bundle, now)));
        for step in 0..144u64 {
            // The second bundle comes after half of the day.
            if (step >= 72) != (n == 1) {
                continue;
            }
            let at = now - Duration::from_secs((144 - step) * 600);
            let start = Timestamp::from_secs(at.as_secs() / 300 * 300);
            let id = BucketId {
                bundle: bundle.clone(),
                role: Role::Primary,
                start,
                cohort: "site=lyon".parse::<Cohort>().unwrap(),
            };
            put(AGGREGATE, id.to_string(), json!(aggregate(step)));
        }
    }
    for n in 0..60 {
        let (key, record) = capture(n, now);
        put(CAPTURE, key, json!(record));
    }
    let incident = IncidentRecord::open(incident(&bundles[1], now), now - Duration::from_secs(3_000));
    put(INCIDENT, incident.id.clone(), json!(incident));
    for finding in crate::advice::tests::findings() {
        let tracked = Tracked {
            finding,
            standing: Standing::Open,
            opened: now,
            last_seen: now,
            judged: now,
            clear_since: None,
            told: now,
            told_numbers: BTreeMap::new(),
        };
        let record = AdviceRecord::open(tracked);
        put(ADVICE, record.id.clone(), json!(record));
    }
    for (n, sample) in samples::all().into_iter().enumerate() {
        let mut rollout = sample.rollout;
        rollout.id = format!("r-0mibjsxda-1f2{n}").parse().unwrap();
        put(ROLLOUT, rollout.id.to_string(), json!(rollout));
        for mut attempt in sample.attempts.into_iter().flatten() {
            attempt.rollout = rollout.id.clone();
            put(ATTEMPT, attempt_id(&rollout.id, &attempt.device), json!(attempt));
        }
    }
    let cohort = serde_json::to_vec(&cohort(now)).unwrap();
    all.push((DRIFT_COHORT, format!("{}/site=lyon", bundles[1]), zstd::bulk::compress(&cohort, 3).unwrap()));
    // Some streams of rules say the same.
    let mut seen = BTreeSet::new();
    all.retain(|(kind, id, _)| seen.insert((kind.as_str(), id.clone())));
    for part in all.chunks(100) {
        let put = |to: Transaction, (kind, id, body): &(Kind, String, Vec<u8>)| {
            to.put(*kind, id.as_str(), Expect::Any, body.clone())
        };
        store.commit(part.iter().fold(Transaction::new(), put)).await.unwrap();
    }
    store.close().await.unwrap();
}

fn device(n: usize, now: Timestamp) -> (Device, Status) {
    let id = device_id(n);
    let name = if n == 0 { HOSTILE.to_owned() } else { format!("press-{n}-camera") };
    let site = if n.is_multiple_of(2) { "lyon" } else { "berlin" };
    let device = Device {
        id: id.clone(),
        name,
        labels: [("site".to_owned(), site.to_owned())].into(),
        state: if n % 50 == 49 { DeviceState::Pending } else { DeviceState::Enrolled },
        key: BlobDigest::of(id.as_str().as_bytes()),
        certificates: vec![CertificateRecord {
            serial: Serial::from_bytes(&n.to_be_bytes()),
            issued: now,
            not_after: now + Duration::from_secs(90 * 86_400),
        }],
        new_key: None,
        invite: "inv-k3v7q2m5x4ab".parse().unwrap(),
        created: now,
        enrolled: Some(now),
        removed: None,
    };
    let facts = Facts {
        arch: "aarch64".into(),
        hardware: HOSTILE.into(),
        agent_version: "0.1.0".into(),
        ..Facts::default()
    };
    let status = Status {
        device: id,
        online: false,
        reason: HOSTILE.into(),
        last_seen: Some(now),
        facts,
        reported: None,
    };
    (device, status)
}

fn record(name: &BundleName, now: Timestamp) -> BundleRecord {
    let digest = |text: &str| serde_json::from_value(json!(BlobDigest::of(text.as_bytes()))).unwrap();
    BundleRecord {
        schema: RECORD_SCHEMA,
        name: name.clone(),
        digest: serde_json::from_value(json!(BlobDigest::of(name.to_string().as_bytes()))).unwrap(),
        manifest_size: 2_000,
        release: digest("release"),
        release_size: 700,
        signers: vec![],
        version: "1.4.0".into(),
        task: "classify".into(),
        description: HOSTILE.into(),
        hardware: vec![],
        blobs: 4,
        size: 1_200_000,
        checks: Checks { passed: true, problem: None, verdict: None },
        pushed_by: "ana".into(),
        at: now - Duration::from_secs(90_000),
        overridden: None,
    }
}

/// Every second one is labelled, and of those seven in ten are right.
fn capture(n: u64, now: Timestamp) -> (String, CaptureRecord) {
    let document = CaptureDocument {
        schema: CAPTURE_SCHEMA,
        prediction: PredictionId {
            device: device_id(2 * (n as usize % 4)),
            boot: BootId::from_random([3; 16]),
            sequence: n,
        },
        slot: "digits".parse().unwrap(),
        bundle: "digits@2".parse().unwrap(),
        digest: BundleDigest::of(b"digits"),
        attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
        at: now - Duration::from_secs(600 + n * 400),
        clock: ClockQuality::Plausible,
        reasons: vec![Reason::Random],
        inclusion: Some(0.05),
        audit: Some(Audit { share: 0.05, sequence: n }),
        predicted: Some(Predicted {
            index: 1,
            class: "one".into(),
            confidence: Some(0.5),
            margin: None,
            entropy: None,
        }),
        inputs: vec![],
        outputs: vec![],
        label: None,
    };
    let digest = BlobDigest::of(&n.to_be_bytes());
    let truth = if n % 20 < 14 { "one" } else { "seven" };
    let label = LabelRecord { label: Some(truth.into()), by: "bo".into(), at: now, joined: Joined::Nowhere };
    let label = n.is_multiple_of(2).then_some(label);
    let key = capture_key(&document, &digest);
    (key, CaptureRecord { digest, size: 900, received: now, document, label, datasets: BTreeSet::new() })
}

fn aggregate(step: u64) -> Aggregate {
    let mut sum = Aggregate { windows: 3, ..Aggregate::default() };
    sum.counts.requests = 3_000 + 200 * (step % 7);
    sum.counts.ok = sum.counts.requests - step % 5;
    for n in 0..200 {
        sum.latency.total.record_us(900 + 13 * n + 40 * (step % 11));
    }
    sum
}

fn incident(bundle: &BundleName, now: Timestamp) -> Incident {
    let since = now - Duration::from_secs(5_400);
    let channel = IncidentChannel {
        id: "input/image/contrast".parse().unwrap(),
        kind: None,
        since,
        js: 0.41,
        w1: Some(2.7),
        psi: 1.9,
        size: 4.1,
        p: 1e-9,
        missing: 0.0,
    };
    Incident {
        key: IncidentKey {
            bundle: bundle.clone(),
            cohort: "site=lyon".into(),
            device: None,
            cause: Cause::Population,
        },
        since,
        last: now,
        channels: vec![channel],
        channels_in_all: 1,
        devices: 4,
        examples: vec![device_id(0), device_id(2)],
        told_size: 4.1,
        told: now,
    }
}

/// A day in which the last third is blurred.
fn cohort(now: Timestamp) -> CohortRecord {
    let quality =
        |n: u64, share: f64| Some(Quality { n, expected_correct: share * n as f64, ..Quality::default() });
    let content =
        |share: f64| ProfileContent { rows: 900, quality: quality(900, share), ..ProfileContent::default() };
    let point = |hour: u64| {
        let is_late = hour >= 16;
        HourPoint {
            hour: Timestamp::from_secs((now.as_secs() / 3_600 - 24 + hour) * 3_600),
            rows: 900,
            inputs: if is_late { 0.42 } else { 0.05 + 0.01 * (hour % 3) as f64 },
            answers: if is_late { 0.31 } else { 0.04 },
            cbpe: Some(if is_late { 0.71 } else { 0.93 - 0.004 * (hour % 4) as f64 }),
            atc: None,
        }
    };
    let found: Vec<ChannelDrift> = ["input/image/contrast", "input/image/luma", "confidence", "entropy"]
        .iter()
        .enumerate()
        .map(|(n, id)| {
            let js = json!({"value": 0.41 - 0.12 * n as f64, "noise": 0.05, "floor": 0.1});
            serde_json::from_value(json!({
                "channel": id, "n": 900, "effective": 600.0, "reference_effective": 4_000.0, "js": js,
                "missing": {"now": 0.0, "reference": 0.0, "p": 1.0}, "p": 1e-6,
                "verdict": if n < 3 { "shifted" } else { "steady" },
            }))
            .unwrap()
        })
        .collect();
    let mut record = CohortRecord {
        now: content(0.7),
        looked: Some(now - Duration::from_secs(600)),
        devices: 5,
        found,
        hours: (0..24).map(point).collect(),
        ..CohortRecord::default()
    };
    record.usual.content = content(0.93);
    record
}
