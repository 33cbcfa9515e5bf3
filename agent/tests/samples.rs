//! The sample bundles with steps around their models, `models/*/v1`: with every engine, from the committed files,
//! they answer what Python answered, and are as right on the holdout as their pages say.

mod support;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use edgefleet_agent::engine::{
    Engine, LoadedModel, golden, onnxruntime::OnnxRuntime, piped, tract::TractEngine,
};
use edgefleet_shared::{
    bundle::{GoldenSample, Interface, PipelineSpec, TensorSpec},
    tensor::{Datatype, Tensor},
};
use serde_json::Value;
use std::path::{Path, PathBuf};
use support::{floats, values};

/// tract, and ONNX Runtime unless this machine was said to have none.
fn engines() -> Vec<Box<dyn Engine>> {
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(TractEngine::new())];
    engines.extend(
        support::ort::library().map(|path| Box::new(OnnxRuntime::open(&path, 1).unwrap()) as Box<dyn Engine>),
    );
    engines
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn texts<T: AsRef<[u8]>>(name: &str, each: &[T]) -> Tensor {
    let mut raw = Vec::new();
    for one in each {
        raw.extend(u32::try_from(one.as_ref().len()).unwrap().to_le_bytes());
        raw.extend(one.as_ref());
    }
    Tensor::new(name, Datatype::Bytes, vec![each.len()], Bytes::from(raw)).unwrap()
}

fn decoded(text: &Value) -> Vec<u8> {
    BASE64.decode(text.as_str().unwrap()).unwrap()
}

/// A source folder, read as `edgefleet model build` does.
struct Sample {
    folder: PathBuf,
    toml: toml::Table,
    inner: Interface,
    pipeline: PipelineSpec,
    labels: Vec<String>,
}

impl Sample {
    fn read(name: &str) -> Self {
        let folder = support::models().join(name);
        let read = |file: &str| std::fs::read_to_string(folder.join("v1").join(file)).unwrap();
        let toml: toml::Table = read("bundle.toml").parse().unwrap();
        let specs = |side: &str| toml[side].clone().try_into::<Vec<TensorSpec>>().unwrap();
        Self {
            inner: Interface { inputs: specs("input"), outputs: specs("output") },
            pipeline: serde_json::from_str(&read("pipeline.json")).unwrap(),
            labels: read("labels.txt").lines().map(str::to_owned).collect(),
            toml,
            folder,
        }
    }

    fn load(&self, engine: &dyn Engine, file: &str) -> Box<dyn LoadedModel> {
        let model = engine.load(&self.folder.join("v1").join(file), &self.inner).unwrap();
        piped::around(model, Some(&self.pipeline), &self.inner, &self.labels).unwrap()
    }

    fn golden(&self) -> Vec<(String, GoldenSample)> {
        let side = |list: &Value| list.as_array().unwrap().iter().map(golden_tensor).collect::<Vec<_>>();
        let files = std::fs::read_dir(self.folder.join("v1/golden")).unwrap();
        files
            .map(|file| {
                let path = file.unwrap().path();
                let sample = json(&path);
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                (name, GoldenSample { inputs: side(&sample["inputs"]), outputs: side(&sample["outputs"]) })
            })
            .collect()
    }

    fn tolerance(&self, key: &str) -> f64 {
        self.toml["golden"][key].as_float().unwrap()
    }

    /// The cell of the page's tables in the row that starts with `row`; the first cell is 0.
    fn claimed(&self, row: &str, cell: usize) -> String {
        let page = std::fs::read_to_string(self.folder.join("README.md")).unwrap();
        let (_, measured) = page.split_once("<!-- measured: begin -->").unwrap();
        let start = format!("| {row} |");
        let line = measured.lines().find(|line| line.starts_with(&start)).unwrap();
        line.trim_matches('|').split('|').nth(cell).unwrap().trim().to_owned()
    }

    fn holdout(&self) -> Value {
        json(&self.folder.join("holdout/holdout.json"))
    }
}

fn golden_tensor(entry: &Value) -> Tensor {
    let data = entry["data"].as_array().unwrap();
    let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).unwrap();
    let name = entry["name"].as_str().unwrap();
    match entry["datatype"].as_str().unwrap() {
        "BYTES" => {
            let one =
                |v: &Value| v.as_str().map_or_else(|| decoded(&v["base64"]), |text| text.as_bytes().into());
            texts(name, &data.iter().map(one).collect::<Vec<Vec<u8>>>())
        }
        "FP32" => floats(name, &shape, data.iter().map(|v| v.as_f64().unwrap() as f32)),
        "INT64" => {
            let raw: Vec<u8> = data.iter().flat_map(|v| v.as_i64().unwrap().to_le_bytes()).collect();
            Tensor::new(name, Datatype::Int64, shape, Bytes::from(raw)).unwrap()
        }
        other => panic!("no golden sample has {other}"),
    }
}

fn output<'a>(answer: &'a [Tensor], name: &str) -> &'a Tensor {
    answer.iter().find(|tensor| tensor.name() == name).unwrap()
}

fn class(model: &dyn LoadedModel, inputs: &[Tensor]) -> i64 {
    let answer = model.run(inputs).unwrap();
    i64::from_le_bytes(output(&answer, "class").data()[..8].try_into().unwrap())
}

/// "133 of 134", as the pages have it.
fn right(model: &dyn LoadedModel, rows: &[(Vec<Tensor>, i64)]) -> String {
    let hits = rows.iter().filter(|(inputs, truth)| class(model, inputs) == *truth).count();
    format!("{hits} of {}", rows.len())
}

/// Every sample, with tolerances that hold for that variant.
fn check_golden(sample: &Sample, engine: &dyn Engine, file: &str, atol: f64) {
    let model = sample.load(engine, file);
    let samples = sample.golden();
    assert!(samples.len() >= 3);
    for (name, expected) in samples {
        let found = model.run(&expected.inputs).unwrap();
        let result = golden::compare(&name, &expected.outputs, &found, sample.tolerance("rtol"), atol);
        assert!(result.passed, "{} {file} with {}: {result:?}", sample.folder.display(), engine.name());
    }
}

#[test]
fn exercises_are_told_apart_from_a_watch_as_well_as_the_page_says() {
    let sample = Sample::read("exercise");
    let holdout = sample.holdout();
    let unit = holdout["unit"].as_f64().unwrap();
    let labels: Vec<i64> = serde_json::from_value(holdout["labels"].clone()).unwrap();
    let windows = holdout["windows"].as_array().unwrap().iter().map(|window| {
        let raw = decoded(window);
        let physical = |pair: &[u8]| (f64::from(i16::from_le_bytes([pair[0], pair[1]])) * unit) as f32;
        vec![floats("motion", &[1, 192, 6], raw.chunks_exact(2).map(physical))]
    });
    let rows: Vec<_> = windows.zip(labels).collect();
    for engine in engines() {
        check_golden(&sample, &*engine, "model.onnx", 1e-5);
        check_golden(&sample, &*engine, "model-int8.onnx", sample.tolerance("atol"));
        for (variant, file) in [("f32", "model.onnx"), ("int8", "model-int8.onnx")] {
            let found = right(&*sample.load(&*engine, file), &rows);
            assert_eq!(found, sample.claimed(variant, 2), "{variant} with {}", engine.name());
        }
    }
}

#[test]
fn penguins_are_told_apart_with_categories_and_missing_entries() {
    let sample = Sample::read("penguins");
    let holdout = sample.holdout();
    let measures = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"];
    let bird = |bird: &Value| {
        let word = |key: &str| texts(key, &[bird[key].as_str().unwrap()]);
        let numbers = measures.iter().map(|key| bird[*key].as_f64().unwrap() as f32);
        let inputs = vec![word("island"), word("sex"), floats("measures", &[1, 4], numbers)];
        (inputs, bird["species"].as_i64().unwrap())
    };
    let rows: Vec<_> = holdout["birds"].as_array().unwrap().iter().map(bird).collect();
    for engine in engines() {
        check_golden(&sample, &*engine, "model.onnx", sample.tolerance("atol"));
        let model = sample.load(&*engine, "model.onnx");
        assert_eq!(right(&*model, &rows), sample.claimed("v1", 2), "{}", engine.name());
        // An island that was never there is the client's mistake, and it is told.
        let mut unknown = rows[0].0.clone();
        unknown[0] = texts("island", &["Atlantis"]);
        let refused = model.run(&unknown).unwrap_err().to_string();
        assert!(refused.contains("Atlantis"), "{refused}");
    }
}

#[test]
fn printed_lines_in_jpeg_are_seen_upright_or_upside_down() {
    let sample = Sample::read("orientation");
    let holdout = sample.holdout();
    let labels: Vec<i64> = serde_json::from_value(holdout["labels"].clone()).unwrap();
    let photos = holdout["photos"].as_array().unwrap().iter().map(|p| vec![texts("photo", &[decoded(p)])]);
    let rows: Vec<_> = photos.zip(labels).collect();
    for engine in engines() {
        check_golden(&sample, &*engine, "model.onnx", sample.tolerance("atol"));
        // Pixels differ by a level or two from Pillow's (docs/pipelines.md): one picture in doubt may tip over.
        let [found, claimed] = [right(&*sample.load(&*engine, "model.onnx"), &rows), sample.claimed("v1", 2)]
            .map(|text| {
                let (hits, of) = text.split_once(" of ").unwrap();
                assert_eq!(of, rows.len().to_string());
                hits.parse::<i32>().unwrap()
            });
        assert!((found - claimed).abs() <= 1, "{found}, not {claimed}, with {}", engine.name());
    }
}

#[test]
fn faces_are_found_where_they_were_marked_and_nowhere_else() {
    let sample = Sample::read("faces");
    let holdout = sample.holdout();
    let least = holdout["match"].as_f64().unwrap();
    for engine in engines() {
        check_golden(&sample, &*engine, "model.onnx", sample.tolerance("atol"));
        let model = sample.load(&*engine, "model.onnx");
        let (mut marked, mut found, mut answered) = (0, 0, 0);
        for scene in holdout["scenes"].as_array().unwrap() {
            let answer = model.run(&[texts("photo", &[decoded(&scene["photo"])])]).unwrap();
            let boxes = values(output(&answer, "boxes"));
            let mut faces: Vec<[f64; 4]> = serde_json::from_value(scene["faces"].clone()).unwrap();
            marked += faces.len();
            answered += boxes.len() / 6;
            for one in boxes.chunks_exact(6) {
                let edges = [0, 1, 2, 3].map(|at| f64::from(one[at]));
                let best = (0..faces.len())
                    .filter(|at| overlap(edges, faces[*at]) >= least)
                    .max_by(|a, b| overlap(edges, faces[*a]).total_cmp(&overlap(edges, faces[*b])));
                if let Some(at) = best {
                    faces.swap_remove(at);
                    found += 1;
                }
            }
        }
        let counts = [marked, found, answered].map(|count| count.to_string());
        assert_eq!(counts, [2, 3, 4].map(|cell| sample.claimed("all", cell)), "{}", engine.name());
    }
}

/// Intersection over union.
fn overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let side = |at: usize| (a[at + 2].min(b[at + 2]) - a[at].max(b[at])).max(0.0);
    let area = |e: [f64; 4]| (e[2] - e[0]) * (e[3] - e[1]);
    let inside = side(0) * side(1);
    inside / (area(a) + area(b) - inside)
}
