//! `infer` and `bench` as people type them.

mod support;

use serde_json::{Value, json};
use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};
use support::Source;

fn agent(arguments: &[&str], input: Option<&str>) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_edgefleet-agent"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.unwrap_or_default().as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn document(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first golden sample of digits as a request, and the label it must get.
fn request() -> (String, i64) {
    let (_, sample) = &Source::digits(2).golden[0];
    let image = support::values(&sample.inputs[0]);
    let request = json!({"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": image}]});
    let label = sample.outputs.iter().find(|tensor| tensor.name() == "label").unwrap();
    (request.to_string(), i64::from_le_bytes(label.data()[..8].try_into().unwrap()))
}

#[test]
fn infer_answers_a_request_with_a_bundle_and_with_a_bare_model() {
    let (request, label) = request();
    let bundle = Source::digits(2).write();
    let model = support::models().join("digits/v2/model.onnx");
    for path in [bundle.folder.path(), &model] {
        let answer = document(&agent(&["infer", text(path), "--input", "-"], Some(&request)));
        let outputs = answer["outputs"].as_array().unwrap();
        let found = outputs.iter().find(|output| output["name"] == "label").unwrap();
        assert_eq!(found["data"], json!([label]), "{answer}");
        assert_eq!(answer["parameters"]["engine"], "tract/f32/1");
    }
    // The same image as NumPy saves it.
    let (_, sample) = &Source::digits(2).golden[0];
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 64), }\n";
    let folder = tempfile::tempdir().unwrap();
    let array = folder.path().join("image.npy");
    let length = (header.len() as u16).to_le_bytes();
    let saved = [&b"\x93NUMPY\x01\0"[..], &length, header.as_bytes(), sample.inputs[0].data()].concat();
    std::fs::write(&array, saved).unwrap();
    let answer = document(&agent(&["infer", text(&model), "--input", text(&array)], None));
    assert!(answer["outputs"].as_array().unwrap().iter().any(|output| output["data"] == json!([label])));
    let output = agent(&["infer", text(&model), "--input", "-"], Some("{\"inputs\":[]}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("`image`"), "{said}");
}

#[test]
fn infer_and_bench_take_the_library_they_are_given() {
    let Some(library) = support::ort::library() else { return };
    let (request, label) = request();
    let bundle = Source::digits(2).write();
    let (folder, library) = (text(bundle.folder.path()), text(&library));
    let arguments = ["infer", folder, "--input", "-", "--ort-lib", library, "--engine", "onnxruntime/f32/2"];
    let answer = document(&agent(&arguments, Some(&request)));
    assert_eq!(answer["parameters"]["engine"], "onnxruntime/f32/2");
    let found =
        answer["outputs"].as_array().unwrap().iter().find(|output| output["name"] == "label").unwrap();
    assert_eq!(found["data"], json!([label]));

    let arguments = ["bench", folder, "--ort-lib", library, "--rounds", "7", "--output", "json"];
    let report = document(&agent(&arguments, None));
    let rows = report["rows"].as_array().unwrap();
    let seen: Vec<String> = rows
        .iter()
        .map(|row| format!("{} {} {}", row["engine"].as_str().unwrap(), row["threads"], row["batch"]))
        .collect();
    let wanted = [
        "tract 1 1",
        "onnxruntime 1 1",
        "tract 1 8",
        "onnxruntime 1 8",
        "onnxruntime 2 1",
        "onnxruntime 2 8",
    ];
    assert_eq!(seen, wanted);
    for row in rows {
        assert_eq!((row["rounds"].as_u64(), row["agrees"].as_bool()), (Some(7), Some(true)), "{row}");
        let number = |name: &str| row[name].as_f64().unwrap();
        assert!(number("min_ms") > 0.0 && number("min_ms") <= number("median_ms"), "{row}");
        assert!(number("median_ms") <= number("p90_ms") && number("p90_ms") <= number("p99_ms"), "{row}");
    }
}

#[test]
fn bench_without_a_library_measures_tract_and_prints_a_table() {
    let model = support::models().join("digits/v1/model.onnx");
    let output = agent(
        &["bench", text(&model), "--rounds", "5", "--batch", "1", "--threads", "1", "--engine", "tract"],
        None,
    );
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("p99 ms") && table.contains("tract"), "{table}");
    let output = agent(&["bench", "/nowhere"], None);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere"));
}
