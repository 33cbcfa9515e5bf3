//! The sample models against their page: what `models/digits/README.md` claims of each, with the real bytes in
//! the real engine. The figures there were measured by another engine, ONNX Runtime.

mod support;

use edgefleet_agent::{
    engine::{LoadedModel, golden, tract::TractEngine},
    monitor::profile::{BundleBaseline, Profiler},
};
use edgefleet_shared::bundle::Baseline;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};
use support::{Source, blurred, floats, inverted, models};

/// Versions whose golden samples are their own.
const SOUND: [u32; 4] = [1, 2, 5, 6];

fn folder() -> PathBuf {
    models().join("digits")
}

/// The tables between the markers of README.md, as rows of cells, by the first cell of their header.
fn tables() -> BTreeMap<String, Vec<Vec<String>>> {
    let page = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let (_, rest) = page.split_once("<!-- measured: begin -->").unwrap();
    let (measured, _) = rest.split_once("<!-- measured: end -->").unwrap();
    let mut tables = BTreeMap::new();
    for block in measured.split("\n\n").filter(|block| block.trim_start().starts_with('|')) {
        let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect();
        let mut rows = block.trim().lines().map(cells).collect::<Vec<Vec<String>>>();
        let name = rows.remove(0).remove(0);
        rows.remove(0);
        tables.insert(name, rows);
    }
    tables
}

struct Answers {
    truth: Vec<i64>,
    /// By version, one per image of the holdout.
    labels: BTreeMap<String, Vec<i64>>,
}

impl Answers {
    fn new() -> Self {
        let text = std::fs::read(folder().join("holdout/holdout.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let images: Vec<Vec<f32>> = serde_json::from_value(json["images"].clone()).unwrap();
        let truth = serde_json::from_value(json["labels"].clone()).unwrap();
        let answer = |version: u32| {
            let source = Source::digits(version);
            let (model, _) = TractEngine::new().load_bytes(source.model, &source.interface).unwrap();
            let one = |image: &Vec<f32>| {
                let outputs = model.run(&[floats("image", &[1, 64], image.clone())]).unwrap();
                let label = outputs.iter().find(|output| output.name() == "label").unwrap();
                i64::from_le_bytes(label.data()[..8].try_into().unwrap())
            };
            (format!("v{version}"), images.iter().map(one).collect())
        };
        Self { truth, labels: SOUND.map(answer).into() }
    }

    fn count(&self, keep: impl Fn(usize) -> bool) -> String {
        (0..self.truth.len()).filter(|at| keep(*at)).count().to_string()
    }

    fn right(&self, version: &str, at: usize) -> bool {
        self.labels[version][at] == self.truth[at]
    }
}

#[test]
fn every_figure_of_the_page_is_what_the_engine_answers() {
    let (tables, answers) = (tables(), Answers::new());
    let versions: Vec<_> = answers.labels.keys().cloned().collect();

    let overall = &tables["version"];
    assert_eq!(overall.iter().map(|row| row[0].clone()).collect::<Vec<_>>(), versions);
    for row in overall {
        let (version, right) = (&row[0], answers.count(|at| answers.right(&row[0], at)));
        let bytes = std::fs::metadata(folder().join(version).join("model.onnx")).unwrap().len();
        assert_eq!(row[1], bytes.to_string(), "bytes of {version}");
        assert_eq!(row[2], format!("{right} of {}", answers.truth.len()), "{version}");
        let share = right.parse::<f64>().unwrap() / answers.truth.len() as f64;
        assert_eq!(row[3], format!("{share:.4}"), "{version}");
    }

    let pairs = &tables["active"];
    assert_eq!(pairs.len(), 3);
    for row in pairs {
        let (active, candidate) = (&row[0], &row[1]);
        let only =
            |one: &str, other: &str| answers.count(|at| answers.right(one, at) && !answers.right(other, at));
        let other = answers.count(|at| answers.labels[active][at] != answers.labels[candidate][at]);
        let share = other.parse::<f64>().unwrap() / answers.truth.len() as f64;
        assert_eq!(row[2..4], [only(active, candidate), only(candidate, active)], "{active} {candidate}");
        assert_eq!(row[4], format!("{other} ({share:.3})"), "{active} {candidate}");
    }

    let digits = &tables["digit"];
    assert_eq!(digits.len(), 10);
    for (digit, row) in (0i64..).zip(digits) {
        let of = |at: usize| answers.truth[at] == digit;
        let mut wanted = vec![digit.to_string(), answers.count(of)];
        wanted.extend(versions.iter().map(|v| answers.count(|at| of(at) && answers.right(v, at))));
        assert_eq!(row, &wanted);
    }
}

/// What makes it plausible: nothing that a push, a preflight or a look at the mean would see.
#[test]
fn the_version_that_is_wrong_on_nines_is_right_on_its_golden_samples_and_on_all_other_digits() {
    let source = Source::digits(5);
    let (model, _) = TractEngine::new().load_bytes(source.model, &source.interface).unwrap();
    for (name, sample) in &source.golden {
        let found = model.run(&sample.inputs).unwrap();
        let result = golden::compare(name, &sample.outputs, &found, 1e-3, 1e-4);
        assert!(result.passed, "{result:?}");
        let truth: u8 = name[..2].parse().unwrap();
        assert_eq!(found[1].data()[0], truth, "{name}: the sample itself must be right");
    }
    let answers = Answers::new();
    for version in ["v2", "v5"] {
        let others = answers.count(|at| answers.truth[at] != 9 && answers.right(version, at));
        assert!(others.parse::<u32>().unwrap() >= 437, "{version}: {others} of 450");
    }
    let sixes = answers.count(|at| answers.truth[at] == 9 && answers.labels["v5"][at] == 6);
    assert!(sixes.parse::<u32>().unwrap() >= 35, "{sixes} of 50");
}

mod alone {
    use super::*;

    /// Median of runs in turns, so that a busy machine slows both.
    #[test]
    fn the_slow_version_computes_far_longer_than_the_one_it_copies() {
        let load = |version| {
            let source = Source::digits(version);
            TractEngine::new().load_bytes(source.model, &source.interface).unwrap().0
        };
        let (fast, slow) = (load(2), load(6));
        let input = [floats("image", &[1, 64], vec![8.0; 64])];
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..201 {
            for (model, times) in [&fast, &slow].into_iter().zip(&mut times) {
                let started = Instant::now();
                model.run(&input).unwrap();
                times.push(started.elapsed().as_secs_f64() * 1e6);
            }
        }
        let [fast, slow] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        eprintln!("v2 {fast:.1} us, v6 {slow:.1} us");
        assert!(slow > 20.0 * fast, "v2 {fast:.1} us, v6 {slow:.1} us: an engine found a short cut");
    }
}

/// With the bundle's own baseline: what captures are chosen by.
#[test]
fn shifted_pictures_are_foreign_and_ordinary_ones_are_not() {
    let text = std::fs::read(folder().join("holdout/holdout.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let images: Vec<Vec<f32>> = serde_json::from_value(json["images"].clone()).unwrap();
    let baseline = Baseline::parse(&std::fs::read(folder().join("v2/baseline.json")).unwrap()).unwrap();
    let manifest = Source::digits(2).write().manifest;
    let count = |baseline: BundleBaseline, change: &dyn Fn(&[f32]) -> Vec<f32>| {
        let profiler = Profiler::new(&manifest, baseline);
        let sign = |image: &Vec<f32>| {
            let look = profiler.look(&[floats("image", &[1, 64], change(image))]);
            profiler.signs(&look, &[], 0)
        };
        let signs: Vec<_> = images.iter().map(sign).collect();
        let share = |n: usize| n as f64 / signs.len() as f64;
        (
            share(signs.iter().filter(|s| s.is_foreign).count()),
            share(signs.iter().filter(|s| s.is_out_of_range).count()),
        )
    };
    let known = || BundleBaseline::Sound(Arc::new(baseline.clone()));
    let (foreign, outside) = count(known(), &<[f32]>::to_vec);
    println!("ordinary: foreign {foreign}, out of range {outside}");
    assert!(foreign <= 0.01 && outside <= 0.01, "{foreign} {outside}");
    for (name, change) in
        [("blurred", &blurred as &dyn Fn(&[f32]) -> Vec<f32>), ("inverted", &|image| inverted(image))]
    {
        let (foreign, outside) = count(known(), change);
        println!("{name}: foreign {foreign}, out of range {outside}");
        assert!(foreign >= 0.95 && outside >= 0.95, "{name}: {foreign} {outside}");
        assert_eq!(count(BundleBaseline::Absent, change), (0.0, 0.0), "nothing is known without a baseline");
    }
    // Of a batch, the row itself.
    let profiler = Profiler::new(&manifest, known());
    let both = [images[0].clone(), inverted(&images[1])].concat();
    let look = profiler.look(&[floats("image", &[2, 64], both)]);
    let signs = [0, 1, 2].map(|row| profiler.signs(&look, &[], row));
    assert_eq!(signs.map(|s| s.is_foreign), [false, true, false]);
    assert_eq!(signs.map(|s| s.is_out_of_range), [false, true, false]);
}
