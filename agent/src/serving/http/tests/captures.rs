//! Requests that are captured, over the wire, and what deciding costs.

use super::*;
use crate::{
    capture::{
        Captures,
        upload::{Answer, Carrier, Uploader},
    },
    engine::tract::TractEngine,
    monitor::profile::BundleBaseline,
    serving::shadow::{self, Shadow},
};
use async_trait::async_trait;
use edgefleet_shared::{
    bundle::Baseline,
    capture::{Capture, CapturePolicy, Quota, RandomRule, Reason, Rule, Strategy},
    desired::ShadowSettings,
    digest::BlobDigest,
};
use serde_json::json;
use std::collections::VecDeque;

/// Takes what comes, after saying no as often as it was told to.
#[derive(Default)]
struct Receiver {
    noes: Mutex<VecDeque<Answer>>,
    got: Mutex<Vec<Capture>>,
}
#[async_trait]
impl Carrier for Receiver {
    async fn put(&self, id: BlobDigest, file: Bytes) -> Answer {
        assert_eq!(Capture::id(&file), id);
        if let Some(no) = self.noes.lock().pop_front() {
            return no;
        }
        self.got.lock().push(Capture::parse(&file).unwrap());
        Answer::Stored
    }
}

fn policy(share: f64, rules: Vec<Strategy>) -> CapturePolicy {
    let rules = rules.into_iter().map(|strategy| Rule { strategy, quota: Quota::default() }).collect();
    let random = RandomRule { share, quota: Quota::default() };
    CapturePolicy { random, rules, ..CapturePolicy::default() }
}

struct Set {
    server: Server,
    captures: Captures,
    receiver: Arc<Receiver>,
    dir: tempfile::TempDir,
}

impl Set {
    async fn start(policy: CapturePolicy) -> Self {
        Self::of(classifier(2), policy).await
    }

    async fn of(bundle: Arc<ServedBundle>, policy: CapturePolicy) -> Self {
        let server = Server::start(vec![bundle]).await;
        let dir = tempfile::tempdir().unwrap();
        let boot = BootId::from_random([7; 16]);
        let captures = Captures::start(dir.path(), 16 << 20, "dev-1".parse().unwrap(), boot).unwrap();
        captures.set_policies(&[("digits".parse().unwrap(), policy)].into());
        server.state.set_captures(captures.clone());
        server.state.add_status(Arc::new(captures.clone()));
        Self { server, captures, receiver: Arc::default(), dir }
    }

    async fn infer(&self, numbers: &[f32]) -> String {
        let body = json_infer("image", Datatype::Fp32, &[1, numbers.len()], &json!(numbers));
        let said = self.server.post("/v2/models/digits/infer", &body).await.json();
        said["parameters"]["prediction_id"].as_str().unwrap().to_owned()
    }

    /// Waits until `n` captures have arrived.
    async fn got(&self, n: usize) -> Vec<Capture> {
        let uploader = Uploader::new(self.captures.clone(), self.receiver.clone(), false);
        let running = tokio::spawn(uploader.run());
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.receiver.got.lock().len() < n {
            assert!(Instant::now() < deadline, "{}", self.status().await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running.abort();
        self.receiver.got.lock().clone()
    }

    async fn status(&self) -> Value {
        self.server.get("/v1/status").await.json()["captures"].clone()
    }

    async fn until(&self, what: &str, check: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let status = self.status().await;
            if check(&status) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn uncertain_rows_are_kept_with_what_was_answered_and_sent_until_acknowledged() {
    let set = Set::start(policy(1e-4, vec![Strategy::LowMargin { below: 0.1 }])).await;
    set.receiver.noes.lock().push_back(Answer::Later { why: "busy".into(), after: None });
    set.infer(&[0.9, 0.05, 0.03, 0.02]).await;
    let id = set.infer(&[0.4, 0.35, 0.15, 0.1]).await;
    let got = set.got(1).await;
    let [capture] = got.as_slice() else { panic!("{got:?}") };
    let document = &capture.document;
    assert_eq!((document.prediction.to_string(), document.bundle.to_string()), (id, "digits@2".into()));
    assert_eq!((document.reasons.as_slice(), document.inclusion), (&[Reason::LowMargin][..], Some(1.0)));
    let predicted = document.predicted.as_ref().unwrap();
    assert_eq!(predicted.class, "zero");
    assert!((predicted.margin.unwrap() - 0.05).abs() < 1e-6);
    assert_eq!(capture.inputs[0].data(), &raw(&[0.4, 0.35, 0.15, 0.1]));
    assert_eq!((capture.inputs[0].name(), capture.outputs[0].name()), ("image", "scores"));
    set.until("deleted after the acknowledgement", |status| status["waiting"] == 0).await;
    assert_eq!(std::fs::read_dir(set.dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_of_a_batch_is_kept_alone_and_copies_once_unless_audited() {
    let set = Set::start(policy(1e-4, vec![Strategy::LowMargin { below: 0.1 }])).await;
    let scores = json!([0.9, 0, 0, 0, 0.5, 0.45, 0, 0, 0.5, 0.45, 0, 0]);
    let body = json_infer("image", Datatype::Fp32, &[3, 4], &scores);
    set.server.post("/v2/models/digits/infer", &body).await;
    set.until("one kept, its copy not", |s| s["kept"] == 1 && s["duplicates"] == 1).await;
    let got = set.got(1).await;
    assert_eq!(got[0].inputs[0].shape(), [1, 4]);
    assert_eq!(got[0].inputs[0].data(), &raw(&[0.5, 0.45, 0.0, 0.0]));
    assert_eq!(got[0].document.prediction.sequence, 2);
    set.captures.set_policies(&[("digits".parse().unwrap(), policy(1.0, vec![]))].into());
    set.server.post("/v2/models/digits/infer", &body).await;
    let got = set.got(4).await;
    let audits: Vec<_> = got[1..].iter().map(|c| c.document.audit.unwrap().sequence).collect();
    assert_eq!(audits, [1, 2, 3], "copies count in an audit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_that_says_wrong_keeps_the_input_with_its_truth() {
    let set = Set::start(policy(1e-4, vec![Strategy::FeedbackNegative])).await;
    let right = set.infer(&[0.9, 0.1, 0.0, 0.0]).await;
    let wrong = set.infer(&[0.1, 0.9, 0.0, 0.0]).await;
    for id in [&right, &wrong] {
        let label = json!({"prediction_id": id, "label": "zero"}).to_string();
        assert_eq!(set.server.post("/v1/feedback", &label).await.status, 200);
    }
    let got = set.got(1).await;
    let document = &got[0].document;
    assert_eq!((document.prediction.to_string(), document.label.as_deref()), (wrong, Some("zero")));
    assert_eq!((document.reasons.as_slice(), document.inclusion), (&[Reason::FeedbackNegative][..], None));
    assert_eq!(set.status().await["kept"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_disagrees_keeps_the_input() {
    let set = Set::start(policy(1e-4, vec![Strategy::Disagreement])).await;
    let state = &set.server.state;
    let active = state.slots().lease("digits").unwrap();
    let mut manifest = classifier(3).manifest.clone();
    manifest.model.counter = 3;
    // Says class 1 to everything.
    let stubborn = |inputs: &[Tensor]| {
        let scores = raw(&[0.0, 1.0, 0.0, 0.0]);
        Ok(inputs
            .iter()
            .map(|_| Tensor::new("scores", Datatype::Fp32, vec![1, 4], scores.clone()).unwrap())
            .collect())
    };
    let candidate = bundle(manifest, Arc::new(Function(stubborn)));
    let beside = Shadow::beside(&set.server.monitor, &active, candidate, ShadowSettings::default());
    assert!(
        state.slots().set_shadow(&"digits".parse().unwrap(), Some((beside.clone(), active.served.digest)))
    );
    let (_, thread) = shadow::spawn(|| ()).unwrap();
    thread.send(beside).unwrap();
    set.infer(&[0.1, 0.9, 0.0, 0.0]).await;
    let other = set.infer(&[0.9, 0.1, 0.0, 0.0]).await;
    let got = set.got(1).await;
    assert_eq!(got[0].document.prediction.to_string(), other);
    assert_eq!(got[0].document.reasons, [Reason::Disagreement]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_and_a_policy_that_ends() {
    let set = Set::start(policy(1e-4, vec![])).await;
    let slot = "digits".parse().unwrap();
    assert!(set.captures.command(&slot, 1));
    set.infer(&[0.9, 0.1, 0.0, 0.0]).await;
    set.infer(&[0.9, 0.1, 0.0, 0.0]).await;
    assert_eq!(set.got(1).await[0].document.reasons, [Reason::OnCommand]);
    set.captures.set_policies(&BTreeMap::new());
    assert!(!set.captures.command(&slot, 1));
    set.infer(&[0.9, 0.1, 0.0, 0.0]).await;
    set.captures.flush(Duration::from_secs(10));
    assert_eq!(set.status().await["kept"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_uploads_back_and_a_refusal_ends_a_capture() {
    let mut with = policy(1.0, vec![]);
    with.upload.enabled = false;
    let set = Set::start(with.clone()).await;
    set.infer(&[0.9, 0.1, 0.0, 0.0]).await;
    set.until("on disk", |status| status["waiting"] == 1).await;
    let metered = Uploader::new(set.captures.clone(), set.receiver.clone(), true);
    let running = tokio::spawn(metered.run());
    for (enabled, bytes_per_day) in [(false, 0), (true, 0), (true, 10)] {
        with.upload = edgefleet_shared::capture::UploadRules { enabled, bytes_per_day, ..with.upload };
        with.upload.metered = bytes_per_day == 10; // the last one is held back by its bytes alone
        set.captures.set_policies(&[("digits".parse().unwrap(), with.clone())].into());
        set.infer(&[0.9, 0.1, 0.0, 0.0]).await; // and wakes the uploader
        tokio::time::sleep(Duration::from_millis(100)).await; // what must not happen, for a while
        assert_eq!(set.receiver.got.lock().len(), 0);
    }
    running.abort();
    set.receiver.noes.lock().push_back(Answer::Refused { why: "never".into() });
    with.upload.bytes_per_day = 0;
    set.captures.set_policies(&[("digits".parse().unwrap(), with)].into());
    set.got(3).await;
    set.until("all gone", |s| s["waiting"] == 0 && s["refused"] == 1 && s["uploaded"] == 3).await;
}

/// The whole of what a request pays when nothing is chosen. Printed; the bound is generous for busy machines
/// and unoptimised builds.
#[test]
fn deciding_costs_microseconds() {
    let dir = tempfile::tempdir().unwrap();
    let boot = BootId::from_random([7; 16]);
    let captures = Captures::start(dir.path(), 1 << 20, "dev-1".parse().unwrap(), boot).unwrap();
    let quota = Quota { per_day: Some(0), ..Quota::default() };
    let mut with = policy(1e-4, vec![Strategy::Entropy { below: 0.1 }, Strategy::LowMargin { below: 0.0 }]);
    with.rules.iter_mut().for_each(|rule| rule.quota = quota);
    captures.set_policies(&[("digits".parse().unwrap(), with)].into());
    let state = state(ServingConfig::default());
    state.slots().activate(classifier(2));
    let active = state.slots().lease("digits").unwrap();
    let values = raw(&[0.9, 0.05, 0.03, 0.02]);
    let inputs = [Tensor::new("image", Datatype::Fp32, vec![1, 4], values.clone()).unwrap()];
    let outputs = [Tensor::new("scores", Datatype::Fp32, vec![1, 4], values).unwrap()];
    let classes = active.classes.as_ref().unwrap().read(&outputs);
    let first: edgefleet_shared::ids::PredictionId = format!("dev-1.{boot}.1").parse().unwrap();
    let now = Moment { mono_ms: 1, wall: crate::clock::now(), clock: ClockQuality::Plausible };
    let started = Instant::now();
    let rounds = 20_000;
    for _ in 0..rounds {
        let capturing = captures.begin(&active, &inputs, 1).unwrap();
        capturing.answered(&active, &first, &classes, &outputs, now, |_| Default::default());
    }
    let each = started.elapsed() / rounds;
    println!("deciding about one row: {each:?}");
    assert!(each < Duration::from_micros(100), "{each:?}");
}

/// `digits@2` as it is shipped, with its baseline.
fn digits() -> Arc<ServedBundle> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/v2");
    let outputs = [spec("probabilities", Datatype::Fp32, &[-1, 10]), spec("label", Datatype::Int64, &[-1])];
    let mut manifest = manifest("digits", 2, &[spec("image", Datatype::Fp32, &[-1, 64])], &outputs);
    manifest.prediction =
        Some(Prediction { class: Some("label".into()), scores: Some("probabilities".into()) });
    let model = std::fs::read(dir.join("model.onnx")).unwrap();
    let (model, _) = TractEngine::new().load_bytes(model, &manifest.interface).unwrap();
    let baseline = Baseline::parse(&std::fs::read(dir.join("baseline.json")).unwrap()).unwrap();
    let plain = Arc::into_inner(bundle(manifest, Arc::new(model))).unwrap();
    Arc::new(ServedBundle { baseline: BundleBaseline::Sound(Arc::new(baseline)), ..plain })
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_unlike_the_baseline_are_kept_and_ordinary_ones_are_not() {
    let holdout = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/holdout/holdout.json");
    let holdout: Value = serde_json::from_slice(&std::fs::read(holdout).unwrap()).unwrap();
    let images: Vec<Vec<f32>> = serde_json::from_value(holdout["images"].clone()).unwrap();
    let mut wanted = policy(1e-4, vec![Strategy::Ood, Strategy::OutOfRange]);
    wanted.deduplicate = false;
    let set = Set::of(digits(), wanted).await;
    for image in &images[..100] {
        set.infer(image).await;
    }
    let kept = |status: &Value, reason: &str| status["slots"]["digits"]["reasons"][reason]["taken"].as_u64();
    let ordinary = set.status().await;
    assert!(kept(&ordinary, "ood").unwrap_or(0) <= 1, "{ordinary}");
    assert!(kept(&ordinary, "out-of-range").unwrap_or(0) <= 1, "{ordinary}");
    let mut ids = Vec::new();
    for image in &images[100..120] {
        let inverted: Vec<f32> = image.iter().map(|x| 16.0 - x).collect();
        ids.push(set.infer(&inverted).await);
    }
    let before = ordinary["kept"].as_u64().unwrap() as usize;
    let got = set.got(before + ids.len()).await;
    let foreign: Vec<_> =
        got.iter().filter(|capture| ids.contains(&capture.document.prediction.to_string())).collect();
    assert_eq!(foreign.len(), 20);
    for capture in foreign {
        let document = &capture.document;
        assert_eq!(document.inclusion, Some(1.0));
        for reason in [Reason::Ood, Reason::OutOfRange] {
            assert!(document.reasons.contains(&reason), "{document:?}");
        }
    }
    // Without profiles nothing is known of inputs.
    let now = set.status().await;
    set.server.monitor.set_profile(Duration::ZERO);
    set.infer(&images[100].iter().map(|x| 16.0 - x).collect::<Vec<_>>()).await;
    assert_eq!(kept(&set.status().await, "ood"), kept(&now, "ood"));
}
