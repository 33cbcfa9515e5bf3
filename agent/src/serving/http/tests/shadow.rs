//! A candidate beside the active bundle, over the wire: its answers are counted, never returned, and
//! whatever it does costs nobody else anything.

use super::*;
use crate::{
    engine::{Engine, tract::TractEngine},
    serving::shadow::{self, MAX_REQUESTS, Shadow},
};
use edgefleet_shared::{
    desired::ShadowSettings,
    reported::ShedReason,
    telemetry::{LabelCounts, Role, Window},
};
use serde_json::json;
use std::{path::Path, sync::mpsc};

/// Puts `candidate` beside what its slot serves, as the agent does.
async fn beside(server: &Server, candidate: Arc<ServedBundle>, settings: ShadowSettings) -> Arc<Shadow> {
    let active = server.state.slots().lease(candidate.slot.as_str()).unwrap();
    let model = candidate.model.clone();
    let (loaded, thread) = shadow::spawn(move || model).unwrap();
    loaded.await.unwrap();
    let slot = candidate.slot.clone();
    let shadow = Shadow::beside(&server.monitor, &active, candidate, settings);
    assert!(server.state.slots().set_shadow(&slot, Some((shadow.clone(), active.served.digest))));
    thread.send(shadow.clone()).unwrap();
    shadow
}

/// As [`classifier`], answering through `model`.
fn candidate(
    counter: u64,
    model: impl Fn(&[Tensor]) -> Result<Vec<Tensor>, RunError> + Send + Sync + 'static,
) -> Arc<ServedBundle> {
    let mut served = Arc::into_inner(classifier(counter)).unwrap();
    served.model = Arc::new(Function(model));
    Arc::new(served)
}

fn scores(inputs: &[Tensor]) -> Vec<Tensor> {
    inputs.iter().map(|x| x.clone().with_name("scores")).collect()
}

/// One request for class `class`.
fn asks(class: usize) -> String {
    let mut row = [0.0; 4];
    row[class] = 0.9;
    json_infer("image", Datatype::Fp32, &[1, 4], &json!(row))
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let waits = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waits).await.unwrap_or_else(|_| panic!("never {what}"));
}

fn windows(server: &Server, role: Role) -> Vec<Window> {
    let records = server.kept.0.lock();
    let all = records.iter().filter_map(|r| if let RecordBody::Window(w) = r { Some(w) } else { None });
    all.filter(|w| w.role == role).map(|w| (**w).clone()).collect()
}

fn labels(server: &Server) -> Vec<LabelCounts> {
    let records = server.kept.0.lock();
    records
        .iter()
        .filter_map(|r| if let RecordBody::Labels(l) = r { Some(l.clone()) } else { None })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_do_not_wait_for_a_candidate_that_is_stuck() {
    let server = Server::start(vec![classifier(1)]).await;
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let stuck = candidate(2, move |inputs| {
        gate.lock().recv().ok();
        Ok(scores(inputs))
    });
    let shadow = beside(&server, stuck, ShadowSettings::default()).await;
    let mut client = server.connect().await;
    for n in 0..200usize {
        // The client gives up after 20 s: nothing here may wait for the candidate.
        let said = client.call("POST", "/v2/models/digits/infer", "", asks(n % 4).as_bytes()).await;
        assert_eq!((said.status, said.header("x-edgefleet-bundle")), (200, Some("digits@1")));
    }
    assert_eq!(shadow.mirrored(), MAX_REQUESTS as u64);
    assert_eq!(shadow.shed(), [(ShedReason::QueueFull, 200 - MAX_REQUESTS as u64)].into());
    until("stuck", || shadow.running_for().is_some()).await;
    let status = server.get("/v1/status").await.json();
    let told = &status["slots"]["digits"]["shadow"];
    assert_eq!((&told["bundle"], &told["mirrored"]), (&json!("digits@2"), &json!(MAX_REQUESTS)));
    assert_eq!(told["shed"], json!({"queue-full": 200 - MAX_REQUESTS}));
    // Switching does not wait for it either, and ends it.
    server.state.slots().activate(classifier(3));
    assert!(!shadow.is_open());
    assert_eq!(client.call("POST", "/v2/models/digits/infer", "", asks(0).as_bytes()).await.status, 200);
    drop(release);
    let weak = Arc::downgrade(&shadow);
    drop(shadow);
    server.monitor.tick();
    until("gone", || {
        server.monitor.tick();
        weak.strong_count() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agreement_is_counted_by_class_in_windows_of_its_own() {
    let server = Server::start(vec![classifier(1)]).await;
    // Says 0 where the active bundle says 3.
    let wrong = candidate(2, |inputs| {
        let data = inputs[0].data();
        let is_three = data[12..16] != [0; 4];
        let data =
            if is_three { [&data[12..16], &data[4..12], &data[..4]].concat().into() } else { data.clone() };
        Tensor::new("scores", Datatype::Fp32, inputs[0].shape().to_vec(), data)
            .map(|y| vec![y])
            .map_err(|e| RunError::Engine(e.to_string()))
    });
    let shadow = beside(&server, wrong, ShadowSettings::default()).await;
    for n in 1..=20u64 {
        let said = server.post("/v2/models/digits/infer", &asks(n as usize % 4)).await.json();
        assert_eq!(said["parameters"]["bundle"], "digits@1", "its answers are never returned");
        until("answered", || shadow.answered().0 == n).await;
    }
    server.monitor.flush();
    let told = windows(&server, Role::Shadow);
    let [window] = &told[..] else { panic!("{told:?}") };
    assert_eq!(
        (window.bundle.to_string().as_str(), window.attempt.to_string().as_str()),
        ("digits@2", "r1/2")
    );
    assert_eq!((window.counts.requests, window.counts.ok, window.latency.infer.count()), (20, 20, 20));
    let agreement = window.agreement.as_ref().unwrap();
    assert_eq!((agreement.n, agreement.disagree, agreement.errors), (20, 5, 0));
    let by_class: Vec<_> = agreement.classes.iter().map(|(c, a)| (c.as_str(), a.n, a.disagree)).collect();
    assert_eq!(by_class, [("one", 5, 0), ("three", 5, 5), ("two", 5, 0), ("zero", 5, 0)]);
    assert_eq!(window.classes["zero"], 10, "its own answers");
    let active = &windows(&server, Role::Primary)[0];
    assert_eq!((active.counts.ok, active.agreement.as_ref()), (20, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_say_who_was_right_whenever_they_come() {
    let server = Server::start(vec![classifier(1)]).await;
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    // Always says "one"; the first answer comes when it is let go.
    let ones = candidate(2, move |inputs| {
        gate.lock().recv().ok();
        let data: bytes::Bytes = raw(&[0.0, 0.8, 0.0, 0.0]);
        Tensor::new("scores", Datatype::Fp32, inputs[0].shape().to_vec(), data)
            .map(|y| vec![y])
            .map_err(|e| RunError::Engine(e.to_string()))
    });
    let shadow = beside(&server, ones, ShadowSettings::default()).await;
    let ask = async |class: usize| {
        let said = server.post("/v2/models/digits/infer", &asks(class)).await.json();
        said["parameters"]["prediction_id"].as_str().unwrap().to_owned()
    };
    let label = async |id: &str, truth: &str| {
        let body = json!({"prediction_id": id, "label": truth}).to_string();
        let answer = server.post("/v1/feedback", &body).await.json();
        assert_eq!((&answer["matched"], &answer["compared"]), (&json!(1), &json!({"digits@2": 1})));
    };
    // Before the candidate answers ...
    let (win, loss) = (ask(2).await, ask(3).await);
    label(&win, "one").await;
    label(&loss, "three").await;
    // ... and after.
    let (right, wrong, unlabelled) = (ask(1).await, ask(2).await, ask(0).await);
    drop(release);
    until("answered", || shadow.answered().0 == 5).await;
    server.monitor.tick();
    label(&right, "one").await;
    label(&wrong, "three").await;
    assert!(!unlabelled.is_empty());
    server.monitor.flush();
    let told = labels(&server);
    let (matched, correct) = told.iter().fold((0, 0), |(m, c), l| (m + l.matched, c + l.correct));
    assert_eq!((matched, correct), (4, 2), "each label once");
    let versus: Vec<_> = told.iter().filter_map(|l| l.versus.as_ref()).collect();
    assert!(versus.iter().all(|v| v.bundle.to_string() == "digits@2" && v.attempt.to_string() == "r1/2"));
    let sum = versus
        .iter()
        .fold([0; 4], |s, v| [s[0] + v.wins, s[1] + v.losses, s[2] + v.both_right, s[3] + v.both_wrong]);
    assert_eq!(sum, [1, 1, 1, 1], "{versus:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_candidate_that_panics_or_answers_in_another_form_costs_only_itself() {
    let server = Server::start(vec![classifier(1)]).await;
    let shadow = beside(&server, candidate(2, |_| panic!("told to")), ShadowSettings::default()).await;
    for n in 1..=6u64 {
        assert_eq!(server.post("/v2/models/digits/infer", &asks(1)).await.status, 200);
        until("failed", || shadow.answered() == (n, n)).await;
    }
    let shadow = beside(&server, candidate(3, |_| Ok(vec![])), ShadowSettings::default()).await;
    assert_eq!(server.post("/v2/models/digits/infer", &asks(1)).await.status, 200);
    until("answered", || shadow.answered() == (1, 0)).await;
    server.monitor.flush();
    let told = windows(&server, Role::Shadow);
    let of = |counter| told.iter().find(|w| w.bundle.counter == counter).unwrap();
    assert_eq!((of(2).counts.errors["engine"], of(2).counts.ok), (6, 0));
    let agreement = of(2).agreement.as_ref().unwrap();
    assert_eq!((agreement.n, agreement.errors), (0, 6));
    let agreement = of(3).agreement.as_ref().unwrap();
    assert_eq!((agreement.n, agreement.disagree), (1, 1), "no answer is another answer");
    let active: u64 = windows(&server, Role::Primary).iter().map(|w| w.counts.ok).sum();
    assert_eq!(active, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_a_quota_and_pressure_bound_what_is_mirrored() {
    let server = Server::start(vec![classifier(1)]).await;
    let settings = ShadowSettings { share: 0.25, ..ShadowSettings::default() };
    let shadow = beside(&server, candidate(2, |inputs| Ok(scores(inputs))), settings).await;
    let ask = async |n: usize| {
        for _ in 0..n {
            let before = shadow.mirrored();
            assert_eq!(server.post("/v2/models/digits/infer", &asks(0)).await.status, 200);
            if shadow.mirrored() > before {
                until("answered", || shadow.answered().0 == shadow.mirrored()).await;
            }
        }
    };
    ask(100).await;
    assert!((23..=27).contains(&shadow.mirrored()), "{} of 100", shadow.mirrored());
    assert_eq!(shadow.shed(), [].into(), "what was not chosen was not shed");
    shadow.set(ShadowSettings { max_rows: Some(shadow.mirrored() + 10), ..ShadowSettings::default() });
    let before = shadow.mirrored();
    ask(15).await;
    assert_eq!((shadow.mirrored() - before, shadow.shed()), (10, [(ShedReason::Quota, 5)].into()));
    shadow.set(ShadowSettings::default());
    for reason in [ShedReason::Heat, ShedReason::Memory, ShedReason::Latency] {
        shadow.shed_for(Some(reason));
        assert_eq!(shadow.shedding(), Some(reason));
        ask(3).await;
        assert_eq!(shadow.shed()[&reason], 3);
    }
    shadow.shed_for(None);
    ask(1).await;
    assert_eq!(shadow.mirrored() - before, 11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_without_classes_agree_within_the_tolerance() {
    let server = Server::start(vec![echo_bundle(Datatype::Fp32)]).await;
    let mut off = Arc::into_inner(echo_bundle(Datatype::Fp32)).unwrap();
    off.bundle.counter = 2;
    off.digest = BundleDigest::of(b"another");
    off.model = Arc::new(Function(|inputs: &[Tensor]| {
        // The first number of every row is 0.01 higher.
        let values = crate::monitor::classes::numbers(&inputs[0]).unwrap_or_default();
        let data = values.iter().enumerate().map(|(n, v)| *v as f32 + if n % 2 == 0 { 0.01 } else { 0.0 });
        let data: Vec<u8> = data.flat_map(f32::to_le_bytes).collect();
        Tensor::new("y", Datatype::Fp32, inputs[0].shape().to_vec(), data.into())
            .map(|y| vec![y])
            .map_err(|e| RunError::Engine(e.to_string()))
    }));
    let shadow = beside(&server, Arc::new(off), ShadowSettings::default()).await;
    let body = json_infer("x", Datatype::Fp32, &[3, 2], &json!([1, 2, 3, 4, 5, 6]));
    let path = "/v2/models/echo-fp32/infer";
    assert_eq!(server.post(path, &body).await.status, 200);
    until("answered", || shadow.answered().0 == 1).await;
    shadow.set(ShadowSettings { tolerance: 0.02, ..ShadowSettings::default() });
    assert_eq!(server.post(path, &body).await.status, 200);
    until("answered", || shadow.answered().0 == 2).await;
    server.monitor.flush();
    let agreement = windows(&server, Role::Shadow)[0].agreement.clone().unwrap();
    assert_eq!((agreement.n, agreement.disagree, agreement.classes.len()), (6, 3, 0));
}

/// `models/digits`, in the real engine.
fn digits(counter: u64) -> Arc<ServedBundle> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../models/digits/v{counter}"));
    let mut manifest = manifest(
        "digits",
        counter,
        &[spec("image", Datatype::Fp32, &[-1, 64])],
        &[spec("probabilities", Datatype::Fp32, &[-1, 10]), spec("label", Datatype::Int64, &[-1])],
    );
    manifest.prediction =
        Some(Prediction { class: Some("label".into()), scores: Some("probabilities".into()) });
    let names = std::fs::read_to_string(folder.join("labels.txt")).unwrap();
    manifest.labels = names.lines().map(str::to_owned).collect();
    let model = TractEngine::new().load(&folder.join("model.onnx"), &manifest.interface).unwrap();
    bundle(manifest, Arc::from(model))
}

/// Held-out images and what they show.
fn holdout() -> (Vec<Vec<f32>>, Vec<u32>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits/holdout/holdout.json");
    let read: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let images = serde_json::from_value(read["images"].clone()).unwrap();
    (images, serde_json::from_value(read["labels"].clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_better_bundle_wins_on_labelled_images_in_the_real_engine() {
    let (one, two) = (digits(1), digits(2));
    let (images, truths) = holdout();
    let n = 150;
    let said = |bundle: &ServedBundle, image: &[f32]| {
        let input = Tensor::new("image", Datatype::Fp32, vec![1, 64], raw(image)).unwrap();
        let outputs = bundle.model.run(&[input]).unwrap();
        let label = outputs.iter().find(|o| o.name() == "label").unwrap();
        crate::monitor::classes::numbers(label).unwrap()[0] as u32
    };
    let mut wanted = [0u64; 4];
    let mut disagree = 0;
    for (image, truth) in images.iter().zip(&truths).take(n) {
        let (mine, theirs) = (said(&one, image), said(&two, image));
        disagree += u64::from(mine != theirs);
        wanted[match (mine == *truth, theirs == *truth) {
            (false, true) => 0,
            (true, false) => 1,
            (true, true) => 2,
            (false, false) => 3,
        }] += 1;
    }
    assert!(wanted[0] > 0 && wanted[2] > 0, "{wanted:?}");
    let server = Server::start(vec![one]).await;
    let shadow = beside(&server, two, ShadowSettings::default()).await;
    for (index, (image, truth)) in images.iter().zip(&truths).take(n).enumerate() {
        let body = json_infer("image", Datatype::Fp32, &[1, 64], &json!(image));
        let said = server.post("/v2/models/digits/infer", &body).await.json();
        let id = said["parameters"]["prediction_id"].as_str().unwrap().to_owned();
        let label = json!({"prediction_id": id, "label": truth}).to_string();
        assert_eq!(server.post("/v1/feedback", &label).await.json()["matched"], 1);
        if index % 16 == 15 {
            until("caught up", || shadow.answered().0 > index as u64).await;
        }
    }
    until("caught up", || shadow.answered().0 == n as u64).await;
    server.monitor.flush();
    let mut sum = [0u64; 4];
    for versus in labels(&server).iter().filter_map(|l| l.versus.as_ref()) {
        let each = [versus.wins, versus.losses, versus.both_right, versus.both_wrong];
        sum.iter_mut().zip(each).for_each(|(sum, n)| *sum += n);
    }
    assert_eq!(sum, wanted, "wins, losses, both right, both wrong");
    let agreement: Vec<_> = windows(&server, Role::Shadow).into_iter().filter_map(|w| w.agreement).collect();
    let total = agreement.iter().fold((0, 0), |(n, d), a| (n + a.n, d + a.disagree));
    assert_eq!(total, (n as u64, disagree));
}

/// What the request path pays: measured over HTTP with and without a shadow, in turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mirroring_costs_the_request_path_little() {
    let server = Server::start(vec![digits(2)]).await;
    let mut client = server.connect().await;
    let body = json_infer("image", Datatype::Fp32, &[1, 64], &json!(vec![1.0; 64]));
    let (mut alone, mut mirrored) = (Vec::new(), Vec::new());
    for round in 0..20 {
        let slot = "digits".parse().unwrap();
        let shadow = match round % 2 {
            0 => None,
            _ => Some(beside(&server, digits(1), ShadowSettings::default()).await),
        };
        for _ in 0..150 {
            let started = Instant::now();
            let said = client.call("POST", "/v2/models/digits/infer", "", body.as_bytes()).await;
            let took = started.elapsed();
            assert_eq!(said.status, 200);
            if shadow.is_some() { mirrored.push(took) } else { alone.push(took) }
        }
        if let Some(shadow) = shadow {
            assert!(shadow.mirrored() > 0);
            server.state.slots().set_shadow(&slot, None);
        }
    }
    alone.sort_unstable();
    mirrored.sort_unstable();
    let at = |times: &[Duration], share: usize| times[times.len() * share / 100];
    println!(
        "request p50 / p95: alone {:?} / {:?}, mirrored {:?} / {:?}",
        at(&alone, 50),
        at(&alone, 95),
        at(&mirrored, 50),
        at(&mirrored, 95)
    );
    // In the request path itself: admission and hand-over.
    let model = candidate(2, |inputs| Ok(scores(inputs)));
    let active = server.state.slots().lease("digits").unwrap();
    let shadow = Shadow::beside(&server.monitor, &active, model, ShadowSettings::default());
    let input = [Tensor::new("image", Datatype::Fp32, vec![1, 4], raw(&[1.0; 4])).unwrap()];
    let rounds = MAX_REQUESTS as u32; // nobody takes them away
    let started = Instant::now();
    for _ in 0..rounds {
        let mirror = shadow.admit(&input, 1).unwrap();
        mirror.offer(None, crate::serving::shadow::ActiveAnswer::Classes(vec![]), 0);
    }
    let each = started.elapsed() / rounds;
    let started = Instant::now();
    assert!((0..10_000).all(|_| shadow.admit(&input, 1).is_none()));
    println!("admitted and handed over: {each:?}; shed: {:?}", started.elapsed() / 10_000);
    // The monitoring budget is 20 us a request; unoptimised code on a busy machine gets more.
    assert!(each < Duration::from_micros(100), "{each:?}");
}
