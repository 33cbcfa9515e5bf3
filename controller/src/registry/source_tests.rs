use super::*;
use std::fs;

fn digits(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/digits").join(version)
}

/// A copy of `digits/v1` in which a test may break things.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("golden")).unwrap();
    for name in ["bundle.toml", "model.onnx", "labels.txt", "baseline.json", "golden/00-zero.json"] {
        fs::copy(digits("v1").join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// Mistakes after replacing `from` by `to` in `bundle.toml`.
fn after(from: &str, to: &str) -> Vec<String> {
    let dir = copy();
    let path = dir.path().join(SOURCE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is not in the file");
    fs::write(&path, text.replacen(from, to, 1)).unwrap();
    mistakes(dir.path())
}

fn mistakes(dir: &Path) -> Vec<String> {
    match read(dir) {
        Ok(_) => vec![],
        Err(SourceError::Wrong { wrong, .. }) => wrong.0.iter().map(ToString::to_string).collect(),
        Err(other) => panic!("{other}"),
    }
}

/// Those with steps around the model: golden samples are of what clients send, not of the model's tensors.
#[test]
fn sample_models_with_a_pipeline_are_read_without_a_mistake() {
    for (name, artifacts, samples, labels) in
        [("exercise", 2, 7, 7), ("faces", 1, 5, 1), ("orientation", 1, 8, 2), ("penguins", 1, 10, 3)]
    {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name).join("v1");
        let source = read(&folder).unwrap();
        let found = (source.artifacts.len(), source.golden.len(), source.labels.len());
        assert_eq!(found, (artifacts, samples, labels), "{name}");
        assert!(source.pipeline.is_some(), "{name}");
    }
}

#[test]
fn the_sample_models_are_read_without_a_mistake() {
    for version in ["v1", "v2", "v3"] {
        let source = read(&digits(version)).unwrap();
        assert_eq!((source.golden.len(), source.labels.len()), (8, 10), "{version}");
        assert_eq!(source.golden[0].name, "00-zero");
        assert_eq!(source.golden[0].rtol, 1e-3);
        assert!(source.baseline.is_some());
    }
}

#[test]
fn each_mistake_is_named_with_line_and_key() {
    for (from, to, wanted) in [
        ("schema = 1", "schema = 2", "bundle.toml:1: `schema` is 2, this program reads 1"),
        ("schema = 1", "", "bundle.toml:1: `schema` is missing"),
        ("name = \"digits\"", "name = \"Digits\"", "bundle.toml:4: `model.name` is \"Digits\": a model name"),
        ("counter = 1", "counter = 0", "bundle.toml:5: `model.counter` is 0, not 1 to"),
        ("counter = 1", "counter = \"1\"", "bundle.toml:5: `model.counter` is a TOML string, not an integer"),
        ("version =", "verison =", "bundle.toml:6: `model.verison` is not known here; known are counter,"),
        ("path = \"model.onnx\"", "path = \"../model.onnx\"", "bundle.toml:13: `artifact[0].path` is \"../"),
        ("path = \"model.onnx\"", "path = \"/model.onnx\"", "bundle.toml:13: `artifact[0].path` is \"/model"),
        ("path = \"model.onnx\"", "path = \"no.onnx\"", "bundle.toml:13: `artifact[0].path` cannot be read"),
        ("format = \"onnx\"", "format = \"pickle\"", "bundle.toml:14: `artifact[0].format` is \"pickle\""),
        ("\"f32\"", "\"f64\"", "bundle.toml:15: `artifact[0].precision` is \"f64\", not"),
        ("datatype = \"FP32\"", "datatype = \"float\"", "bundle.toml:19: `input[0].datatype` is \"float\""),
        ("shape = [-1, 64]", "shape = [-2, 64]", "bundle.toml:20: `input[0].shape` is [-2, 64]; at most 8"),
        ("shape = [-1, 64]", "shape = [-1, 63]", "golden/00-zero.json: `inputs[0].shape` is [1, 64], which"),
        (
            "name = \"label\"",
            "name = \"probabilities\"",
            "`output[1].name` is \"probabilities\", which is named",
        ),
        ("class = \"label\"", "class = \"lable\"", "`prediction.class` is \"lable\", which is no output"),
        ("rtol = 1e-3", "rtol = -1", "`golden.rtol` is -1, not 0 or more"),
        ("rtol = 1e-3", "rtol = nan", "`golden.rtol` is NaN, not a finite number"),
        ("dir = \"golden\"", "dir = \"silver\"", "`golden.dir` cannot be read"),
        ("path = \"labels.txt\"", "path = \"model.onnx\"", "`labels.path` is not UTF-8"),
        ("path = \"baseline.json\"", "path = \"labels.txt\"", "`baseline.path` is"),
        ("p95_latency_ms = 50.0", "p95_latency_ms = 0", "`limits.p95_latency_ms` must be above 0"),
        ("batch_max = 32", "batch_max = 65537", "`limits.batch_max` is 65537, not 1 to 65536"),
        ("recipe = \"", "recipe = 5 #", "`lineage.recipe` is a TOML integer, not a string"),
        ("hardware = []", "hardware = [1]", "`compat.hardware` is a TOML array, not an array of strings"),
        ("[limits]", "[limit]", "`limit` is not known here"),
        ("counter = 1", "counter = = 1", "bundle.toml:5: "),
    ] {
        let found = after(from, to);
        assert!(
            found.iter().any(|text| text.contains(wanted)),
            "{from} -> {to}: {wanted:?} not in {found:#?}"
        );
    }
}

#[test]
fn all_mistakes_come_in_one_go_in_the_order_of_lines() {
    let dir = copy();
    let text = "schema = 1\n[model]\nname = \"a b\"\n[limits]\nbatch_max = 0\nfoo = 1\n";
    fs::write(dir.path().join(SOURCE_FILE), text).unwrap();
    let found = mistakes(dir.path());
    for key in [
        "model.name",
        "model.counter",
        "artifact",
        "input",
        "output",
        "golden",
        "limits.foo",
        "limits.batch_max",
    ] {
        assert!(found.iter().any(|text| text.contains(&format!("`{key}`"))), "{key}: {found:#?}");
    }
    let lines: Vec<usize> = found.iter().filter_map(|text| text.split(':').nth(1)?.parse().ok()).collect();
    assert!(lines.is_sorted(), "{found:#?}");
}

#[test]
fn label_files_must_not_be_ambiguous() {
    let dir = copy();
    fs::write(dir.path().join("labels.txt"), "a\n\na\n").unwrap();
    let found = mistakes(dir.path());
    assert!(found[0].contains("empty label in line 2"), "{found:?}");
    assert!(found[1].contains("\"a\" again in line 3"), "{found:?}");
}

#[test]
fn a_folder_without_bundle_toml_is_an_error_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path()), Err(SourceError::Read { .. })));
}

/// `digits/v1` whose golden sample is what clients send around a pipeline.
fn with_pipeline(section: &str) -> tempfile::TempDir {
    let dir = copy();
    let path = dir.path().join(SOURCE_FILE);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[pipeline]\npath = \"pipeline.json\"\n")).unwrap();
    fs::write(dir.path().join("pipeline.json"), section).unwrap();
    dir
}

#[test]
fn golden_samples_and_the_prediction_are_those_outside_of_the_pipeline() {
    let tensors = r#""inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}]"#;
    let steps = r#""pre": [{"op": "clip", "min": 0, "max": 16, "to": "image"}]"#;
    let dir = with_pipeline(&format!("{{{tensors}, {steps}}}"));
    let said = mistakes(dir.path()).join("\n");
    assert!(said.contains("lacks `pixels`, which the interface has"), "{said}");
    assert!(said.contains("`prediction.scores` is \"probabilities\", which is no output"), "{said}");
}

#[test]
fn a_mistake_in_the_pipeline_is_named_with_its_step() {
    for (section, said) in [
        ("[]", "`pipeline.path` is no pipeline: invalid"),
        (
            r#"{"inputs": [], "outputs": [], "pre": [{"op": "blur"}]}"#,
            "`pre` step 1 (`blur`): unknown variant",
        ),
        (
            r#"{"inputs": [], "outputs": [], "pre": [{"op": "crop"}]}"#,
            "pipeline.pre step 1 (crop): needs either",
        ),
    ] {
        let wrong = mistakes(with_pipeline(section).path()).join("\n");
        assert!(wrong.contains(said), "{wrong}\nlacks {said}");
    }
}

const PACK: &str = r#"schema = 1
kind = "engine"
[model]
name = "onnxruntime"
counter = 3
version = "1.32.0"
[engine]
api = 32
[[library]]
target = "x86_64-linux-gnu"
path = "lib.so"
"#;

fn pack(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lib.so"), "code").unwrap();
    fs::write(dir.path().join(SOURCE_FILE), text).unwrap();
    dir
}

#[test]
fn an_engine_pack_is_read_and_built() {
    use edgefleet_shared::bundle::{Kind, Manifest};
    let dir = pack(PACK);
    let engine = read(dir.path()).unwrap().engine.unwrap();
    assert_eq!((engine.api, engine.libraries.len()), (32, 1));
    let built = crate::registry::builder::build(dir.path(), &dir.path().join("out")).unwrap();
    assert_eq!((built.name.to_string(), built.blobs, built.bytes), ("onnxruntime@3".into(), 1, 4));
    let manifest = Manifest::parse(&fs::read(built.dir.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest.kind, Kind::Engine);
    assert_eq!(manifest.engine.unwrap().targets(), ["x86_64-linux-gnu"]);
    let (text, _) = PACK.split_once("[[library]]").unwrap();
    let none = pack(&text.replace("api = 32", "api = 0"));
    assert!(read(none.path()).unwrap().engine.unwrap().libraries.is_empty(), "a withdrawal");
}

#[test]
fn every_mistake_of_an_engine_pack_is_named() {
    for (from, to, words) in [
        ("kind = \"engine\"", "kind = \"motor\"", "not \"model\" or \"engine\""),
        ("api = 32", "api = -1", "api"),
        ("api = 32", "api = 0", "library"),
        ("x86_64-linux-gnu", "armv7", "not one of"),
        ("lib.so", "../lib.so", "below the folder"),
        ("lib.so", "missing.so", "cannot be read"),
        ("[engine]", "[labels]\npath = \"x\"\n[engine]", "labels"),
    ] {
        let wrong = mistakes(pack(&PACK.replacen(from, to, 1)).path());
        assert!(wrong.iter().any(|line| line.contains(words)), "{to}: {wrong:?}");
    }
}
