use super::*;
use crate::monitor::Moment;
use bytes::Bytes;
use edgefleet_shared::{
    bundle::{BaselineChannel, BaselineQuality, Calibration, ChannelKind, baseline::BASELINE_SCHEMA},
    digest::BundleDigest,
    ids::AttemptId,
    reported::ClockQuality,
    telemetry::{Moments, ProfileContent, Role, channel::bin_of},
    tensor::Datatype,
    time::Timestamp,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn at(mono_ms: u64) -> Moment {
    Moment { mono_ms, wall: Timestamp::from_secs(1_800_000_000), clock: ClockQuality::Plausible }
}

fn manifest(inputs: Value, outputs: Value, more: Value) -> Manifest {
    let mut manifest = json!({
        "schema": 1,
        "model": {"name": "m", "counter": 1, "version": "1"},
        "interface": {"inputs": inputs, "outputs": outputs},
    });
    for (key, value) in more.as_object().unwrap() {
        manifest[key] = value.clone();
    }
    serde_json::from_value(manifest).unwrap()
}

fn spec(name: &str, datatype: &str, shape: &[i64]) -> Value {
    json!({"name": name, "datatype": datatype, "shape": shape})
}

fn classifier(input: Value) -> Manifest {
    let outputs = json!([spec("p", "FP32", &[-1, 3])]);
    let more = json!({"prediction": {"scores": "p"}, "labels": ["a", "b", "c"]});
    manifest(json!([input]), outputs, more)
}

fn ids(manifest: &Manifest) -> Vec<String> {
    ChannelPlan::of(manifest).channels().iter().map(|channel| channel.id.to_string()).collect()
}

fn floats(name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    let raw: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Tensor::new(name, Datatype::Fp32, shape.to_vec(), Bytes::from(raw)).unwrap()
}

fn texts(name: &str, values: &[&str]) -> Tensor {
    let raw: Vec<u8> =
        values.iter().flat_map(|v| [&(v.len() as u32).to_le_bytes()[..], v.as_bytes()].concat()).collect();
    Tensor::new(name, Datatype::Bytes, vec![values.len()], Bytes::from(raw)).unwrap()
}

fn subject() -> Arc<Subject> {
    let names: Vec<String> = ["a", "b", "c"].map(String::from).into();
    Arc::new(Subject {
        slot: "m".parse().unwrap(),
        bundle: "m@1".parse().unwrap(),
        digest: BundleDigest::of(b"m"),
        role: Role::Primary,
        attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
        classes: Arc::new(names.as_slice().into()),
    })
}

/// Counts these requests, each with its answer, and cuts.
fn content(profiler: Profiler, requests: &[(Vec<Tensor>, Vec<Tensor>, Vec<Class>)]) -> ProfileContent {
    let profiler = Arc::new(profiler);
    let mut builder = profiler.builder(subject(), at(0));
    for (inputs, outputs, classes) in requests {
        let (look, scores) = (profiler.look(inputs), profiler.scores(outputs, classes));
        builder.take(&Seen { look: &look, scores, pictures: &[], remembers: false });
    }
    let content = builder.cut(at(1_000)).map(|profile| profile.content).unwrap_or_default();
    assert!(content.is_sound(), "{content:?}");
    content
}

fn sample(name: &str) -> Manifest {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
    let section: Value = serde_json::from_slice(&std::fs::read(dir.join("pipeline.json")).unwrap()).unwrap();
    let more = json!({"pipeline": section, "prediction": {"class": "class", "scores": "probabilities"}});
    manifest(json!([]), json!([]), more)
}

#[test]
fn small_inputs_have_a_channel_for_each_number_and_large_ones_say_what_rows_are_like() {
    let with_scores = |channels: &[&str]| -> Vec<String> {
        channels.iter().copied().chain(["confidence", "entropy"]).map(String::from).collect()
    };
    let summary = ["mean", "std", "min", "max", "zeros"].map(|name| format!("input/x/{name}"));
    let summary: Vec<&str> = summary.iter().map(String::as_str).collect();
    let looks = ["luma", "contrast", "sharpness", "saturation", "width", "height"];
    let looks = looks.map(|name| format!("input/image/{name}"));
    let looks: Vec<&str> = looks.iter().map(String::as_str).collect();
    for (input, wanted) in [
        (spec("x", "FP32", &[-1, 3]), with_scores(&["input/x/0", "input/x/1", "input/x/2"])),
        (spec("x", "INT64", &[-1]), with_scores(&["input/x"])),
        (spec("an odd näme", "BOOL", &[1]), with_scores(&["input/an_odd_n_me"])),
        (spec("x", "FP32", &[-1, 17]), with_scores(&summary)),
        (spec("x", "FP16", &[-1, -1]), with_scores(&summary)),
        (spec("image", "UINT8", &[-1, 224, 224, 3]), with_scores(&looks)),
        (spec("image", "FP32", &[-1, 3, -1, -1]), with_scores(&looks)),
        (spec("image", "FP32", &[-1, 28, 28]), with_scores(&looks)),
        (spec("image", "FP32", &[-1, 64]), with_scores(&looks)),
        (
            spec("image", "FP32", &[-1, 65]),
            with_scores(
                &summary
                    .iter()
                    .map(|s| s.replace("/x/", "/image/"))
                    .collect::<Vec<_>>()
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>(),
            ),
        ),
        (spec("x", "BYTES", &[-1]), with_scores(&["input/x"])),
        (spec("x", "BYTES", &[-1, 40]), with_scores(&[])),
    ] {
        assert_eq!(ids(&classifier(input.clone())), wanted, "{input}");
    }
}

#[test]
fn the_sample_models_have_the_channels_their_authors_would_name() {
    let wanted = [
        "input/island",
        "input/sex",
        "input/measures/0",
        "input/measures/1",
        "input/measures/2",
        "input/measures/3",
        "confidence",
        "entropy",
    ];
    assert_eq!(ids(&sample("penguins/v1")), wanted);
    let exercise = ids(&sample("exercise/v1"));
    assert_eq!(exercise.len(), 6 * 5 + 2);
    assert_eq!(
        (exercise[0].as_str(), exercise[29].as_str()),
        ("input/motion/0/mean", "input/motion/5/zeros")
    );
    let plan = ChannelPlan::of(&sample("orientation/v1"));
    let kinds: Vec<_> = plan.channels().iter().map(|channel| channel.kind).collect();
    assert!(kinds.contains(&ChannelKind::Image) || kinds.contains(&ChannelKind::Input), "{plan:?}");
}

#[test]
fn there_are_never_more_channels_than_a_profile_may_have_and_scores_are_among_them() {
    let inputs: Vec<Value> = (0..64).map(|n| spec(&format!("x{n}"), "FP32", &[-1, 16])).collect();
    let outputs = json!([spec("p", "FP32", &[-1, 3])]);
    let found = ids(&manifest(json!(inputs), outputs, json!({"prediction": {"scores": "p"}})));
    assert!(found.len() <= 128 && found.contains(&"entropy".to_owned()), "{}", found.len());
    let same = json!([spec("a b", "FP32", &[-1]), spec("a_b", "FP32", &[-1])]);
    assert_eq!(ids(&manifest(same, json!([]), json!({}))), ["input/a_b", "input/a_b-2"]);
}

#[test]
fn numbers_of_a_window_are_told_apart_by_column() {
    let manifest = classifier(spec("x", "FP32", &[-1, 100, 2]));
    let values = (0..400).map(|n| if n % 2 == 0 { (n / 2 % 100) as f32 } else { 0.0 });
    let look = Profiler::new(&manifest, BundleBaseline::Absent).look(&[floats("x", &[2, 100, 2], values)]);
    assert_eq!((look.rows, look.stride), (2, 1));
    // numpy: arange(100).std() = 28.86607...
    let wanted = [49.5, 28.866_070_047_722_12, 0.0, 99.0, 0.01, 0.0, 0.0, 0.0, 0.0, 1.0];
    for row in look.values.chunks_exact(10) {
        for (found, wanted) in row.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-9, "{row:?}");
        }
    }
}

#[test]
fn a_large_request_costs_no_more_than_a_small_one() {
    let profiler = Profiler::new(&classifier(spec("x", "FP32", &[-1, 16])), BundleBaseline::Absent);
    let look = profiler.look(&[floats("x", &[1_000, 16], (0..16_000).map(|n| n as f32))]);
    assert_eq!((look.rows, look.stride), (1_000, 4));
    assert_eq!(look.values.len(), 250 * 16);
    assert_eq!(look.values[16], 64.0);
}

#[test]
fn what_the_pipeline_does_not_take_as_it_is_is_told() {
    let measures: Vec<f32> =
        vec![40.0, 17.0, f32::NAN, 4_000.0, -1.0, 18.0, 200.0, 4_100.0, 1.0, 2.0, 3.0, 4.0];
    let inputs = vec![
        texts("island", &["Dream", "Atlantis", ""]),
        texts("sex", &["male", "female", "male"]),
        floats("measures", &[3, 4], measures),
    ];
    let found =
        content(Profiler::new(&sample("penguins/v1"), BundleBaseline::Absent), &[(inputs, vec![], vec![])]);
    let faults: Vec<_> = found.faults.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    assert_eq!(faults, [("null:measures", 2), ("unknown-category:island", 2)]);
    let island = found.channel("input/island").unwrap();
    assert_eq!((island.n, island.missing), (2, 1));
    assert_eq!(island.categories, [("Dream".to_owned(), 1), ("other".to_owned(), 1)].into());
    let third = found.channel("input/measures/2").unwrap();
    assert_eq!((third.n, third.missing, third.moments.mean), (2, 1, 101.5));
}

#[test]
fn bins_are_the_baselines_and_without_one_those_of_shares() {
    let manifest = classifier(spec("x", "FP32", &[-1]));
    let edges = vec![0.0, 1.0, 2.0];
    let channel = BaselineChannel {
        id: "input/x".parse().unwrap(),
        kind: ChannelKind::Input,
        n: 0,
        missing: 0,
        edges: edges.clone(),
        bins: vec![0; 4],
        moments: Moments::default(),
        categories: Default::default(),
    };
    let calibration = Calibration { confidence: vec![0.0, 1.0], probability: vec![0.5, 0.9] };
    let quality = BaselineQuality {
        n: 10,
        accuracy: 0.8,
        atc_threshold: 0.75,
        calibration,
        ece_before: 0.1,
        ece_after: 0.1,
        confusion: vec![],
    };
    let baseline = Baseline {
        schema: BASELINE_SCHEMA,
        rows: 10,
        dataset: String::new(),
        channels: vec![channel],
        classes: Default::default(),
        quality: Some(quality),
    };
    let values = [-1.0, 0.5, 0.5, f32::INFINITY, 7.0];
    let outputs = floats("p", &[5, 3], [0.7, 0.2, 0.1].repeat(5));
    let classes: Vec<Class> =
        [0.72, 0.8, 0.9, 0.72, f32::NAN].map(|confidence| Class { index: 1, confidence }).into();
    let request = [(vec![floats("x", &[5], values)], vec![outputs], classes)];
    let found = content(Profiler::new(&manifest, BundleBaseline::Sound(Arc::new(baseline))), &request);
    let x = found.channel("input/x").unwrap();
    let mut bins = vec![0; 4];
    [-1.0, 0.5, 0.5, 7.0].iter().for_each(|x| bins[bin_of(&edges, *x)] += 1);
    assert_eq!((&x.bins, x.n, x.missing, x.longest_run), (&bins, 4, 1, 2));
    assert_eq!(found.faults, [("not-finite:x".to_owned(), 1)].into());
    let quality = found.quality.unwrap();
    assert_eq!((quality.n, quality.above, quality.classes["b"].n), (4, 2, 4));
    assert!((quality.expected_correct - (0.788 + 0.82 + 0.86 + 0.788)).abs() < 1e-6, "{quality:?}");

    let found = content(Profiler::new(&manifest, BundleBaseline::Broken), &request);
    assert!(found.channel("input/x").unwrap().bins.is_empty());
    let confidence = found.channel("confidence").unwrap();
    assert_eq!(
        (confidence.bins.len(), confidence.bins[15], confidence.missing),
        (22, 2, 1),
        "{confidence:?}"
    );
    assert_eq!((found.quality, found.faults["baseline"]), (None, 1));
}

#[test]
fn answers_that_are_numbers_are_channels() {
    let outputs = json!([spec("y", "FP32", &[-1, 2]), spec("map", "FP32", &[-1, 40])]);
    let manifest = manifest(json!([spec("x", "FP32", &[-1])]), outputs, json!({}));
    let answers = vec![floats("map", &[2, 40], vec![1.0; 80]), floats("y", &[2, 2], [1.0, 2.0, 3.0, 4.0])];
    let profiler = Profiler::new(&manifest, BundleBaseline::Absent);
    let found = content(profiler, &[(vec![floats("x", &[2], [0.0, 0.0])], answers, vec![])]);
    let means: Vec<_> = found.channels.iter().map(|c| (c.id.to_string(), c.n, c.moments.mean)).collect();
    assert!(means.contains(&("output/y/1".into(), 2, 3.0)), "{means:?}");
    assert!(means.contains(&("output/map/mean".into(), 2, 1.0)), "{means:?}");
}

#[test]
fn a_few_rows_wait_for_others_unless_none_follow() {
    let profiler = Arc::new(Profiler::new(&classifier(spec("x", "FP32", &[-1])), BundleBaseline::Absent));
    let mut builder = profiler.builder(subject(), at(5));
    assert!(!builder.is_ready(true) && builder.cut(at(6)).is_none());
    let take = |builder: &mut ProfileBuilder| {
        let look = profiler.look(&[floats("x", &[1], [1.0])]);
        builder.take(&Seen { look: &look, scores: Scores::default(), pictures: &[], remembers: false });
    };
    (0..MIN_ROWS - 1).for_each(|_| take(&mut builder));
    assert!(!builder.is_ready(false) && builder.is_ready(true));
    take(&mut builder);
    assert!(builder.is_ready(false));
    let profile = builder.cut(at(9)).unwrap();
    assert_eq!((profile.mono_start_ms, profile.mono_end_ms, profile.content.rows), (6, 9, MIN_ROWS));
    assert!(builder.cut(at(10)).is_none(), "it begins anew");
}

/// By numpy for values x: corrcoef(x[:-1], x[1:])[0, 1], to two places.
#[test]
fn neighbours_that_resemble_each_other_are_noticed() {
    let of = |values: &[f32]| {
        let requests: Vec<_> =
            values.iter().map(|x| (vec![floats("x", &[1], [*x])], vec![], vec![])).collect();
        let profiler = Profiler::new(&classifier(spec("x", "FP32", &[-1])), BundleBaseline::Absent);
        let found = content(profiler, &requests);
        let channel = found.channel("input/x").unwrap();
        (channel.lag1, channel.longest_run)
    };
    let ramp: Vec<f32> = (0..50).map(|n| n as f32 + 1e6).collect();
    assert_eq!(of(&ramp), (1.0, 1));
    let swing: Vec<f32> = (0..50).map(|n| if n % 2 == 0 { 1.0 } else { -1.0 }).collect();
    assert_eq!(of(&swing), (-1.0, 1));
    assert_eq!(of(&[5.0; 30]), (0.0, 30));
    assert_eq!(of(&[1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 1.0, 5.0]), (-0.4, 3));
}

proptest! {
    /// Whatever clients send to whatever interface: no panic, and a profile that can be true.
    #[test]
    fn any_tensors_give_a_sound_profile(
        shape in prop::collection::vec(-1i64..12, 0..5),
        sent in prop::collection::vec(0usize..12, 0..5),
        kind in 0usize..4,
        bits in prop::collection::vec(any::<u32>(), 64),
        rounds in 1usize..4,
    ) {
        let datatypes = [Datatype::Fp32, Datatype::Uint8, Datatype::Bytes, Datatype::Fp64];
        let datatype = datatypes[kind];
        let manifest = classifier(json!({"name": "image", "datatype": datatype, "shape": shape}));
        let count: usize = sent.iter().product();
        let tensor = match datatype {
            Datatype::Bytes => {
                let words: Vec<String> = (0..count).map(|n| format!("{}", bits[n % 64] % 5)).collect();
                texts("image", &words.iter().map(String::as_str).collect::<Vec<_>>())
            }
            other => {
                let size = other.size().unwrap();
                let raw: Vec<u8> =
                    (0..count * size).map(|n| bits[n / 4 % 64].to_le_bytes()[n % 4]).collect();
                Tensor::new("image", other, sent, Bytes::from(raw)).unwrap()
            }
        };
        let classes = vec![Class { index: bits[0], confidence: f32::from_bits(bits[1]) }];
        let scores = floats("p", &[1, 3], [2, 3, 4].map(|n| f32::from_bits(bits[n])));
        let requests = vec![(vec![tensor], vec![scores], classes); rounds];
        content(Profiler::new(&manifest, BundleBaseline::Absent), &requests);
    }
}
