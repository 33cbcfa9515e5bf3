//! `model init`: from an ONNX file to a source folder to edit.

use super::onnx::{self, MAX_ONNX_BYTES, OnnxError, OnnxSummary, OnnxTensor};
use super::source::{SOURCE_FILE, read_bounded};
use bytes::Bytes;
use edgefleet_shared::tensor::Datatype;
use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

/// What `model init` made.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    pub dir: PathBuf,
    pub name: String,
    pub summary: OnnxSummary,
}

/// Why no source folder was made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("could not read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` cannot be described:{}", path.display(), list(wrong))]
    Onnx { path: PathBuf, wrong: Vec<OnnxError> },
    #[error("`{}` exists already; choose another folder with --out", path.display())]
    Exists { path: PathBuf },
    #[error("could not write `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
}

fn list(wrong: &[OnnxError]) -> String {
    wrong.iter().map(|error| format!("\n  {error}")).collect()
}

/// Inspects `model` and writes `dir/{bundle.toml, model.onnx, golden/README.md}`. `name` overrides the
/// model name guessed from the file name.
///
/// # Errors
/// [`InitError`]; an existing `bundle.toml` is never overwritten.
pub fn init(model: &Path, dir: &Path, name: Option<&str>) -> Result<Started, InitError> {
    let bytes = read_bounded(model, MAX_ONNX_BYTES)
        .map_err(|source| InitError::Read { path: model.to_owned(), source })?;
    let bytes = Bytes::from(bytes);
    let size = bytes.len() as u64;
    let summary =
        onnx::inspect(bytes.clone()).map_err(|wrong| InitError::Onnx { path: model.to_owned(), wrong })?;
    let target = dir.join(SOURCE_FILE);
    if target.exists() {
        return Err(InitError::Exists { path: target });
    }
    let write = |path: PathBuf, content: &[u8]| {
        fs::write(&path, content).map_err(|source| InitError::Write { path, source })
    };
    let golden = dir.join("golden");
    fs::create_dir_all(&golden).map_err(|source| InitError::Write { path: golden.clone(), source })?;
    let stem = model.file_stem().and_then(|stem| stem.to_str()).unwrap_or("model");
    let name = name.map_or_else(|| model_name(stem), str::to_owned);
    write(dir.join("model.onnx"), &bytes)?;
    write(golden.join("README.md"), golden_readme(&summary).as_bytes())?;
    write(target, bundle_toml(&name, &summary, size).as_bytes())?;
    Ok(Started { dir: dir.to_owned(), name, summary })
}

/// A name of the narrow grammar from any file name.
fn model_name(stem: &str) -> String {
    let name: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.') { c } else { '-' })
        .take(64)
        .collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// A TOML basic string, whatever a hostile file puts into its names.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c)); // writing to a String cannot fail
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Text that may stand in a comment.
fn comment(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}

fn bundle_toml(name: &str, summary: &OnnxSummary, size: u64) -> String {
    let opsets: Vec<_> = summary
        .opsets
        .iter()
        .map(|(domain, version)| {
            format!("{} {version}", if domain.is_empty() { "ai.onnx" } else { domain.as_str() })
        })
        .collect();
    let operators: Vec<_> = summary.operators.iter().map(|(op, count)| format!("{op} {count}x")).collect();
    let (class, scores) = guess_prediction(summary);
    let task = if class.is_some() || scores.is_some() { "classification" } else { "" };
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# Made by `edgefleet model init`. Lines marked `guess` are worth a look; then put golden samples\n\
         # into golden/ and run `edgefleet model build .`\n\
         # The file says: graph {}, by {}, IR {}, opset {}\n\
         # Operators: {}\n\
         schema = 1\n\n\
         [model]\n\
         name = {}\n\
         counter = 1                 # grows with every release\n\
         version = \"0.1.0\"           # your own version text\n\
         task = {}                   # guess\n\
         description = \"\"\n\
         license = \"\"\n\
         owner = \"\"\n\n\
         [[artifact]]\n\
         path = \"model.onnx\"\n\
         format = \"onnx\"\n\
         precision = {}           # guess: f32, f16 or int8-qdq",
        comment(&summary.graph),
        comment(&summary.producer),
        summary.ir_version,
        comment(&opsets.join(", ")),
        comment(&operators.join(", ")),
        quoted(name),
        quoted(task),
        quoted(guess_precision(summary)),
    );
    for (header, tensors) in [("input", &summary.inputs), ("output", &summary.outputs)] {
        for tensor in tensors {
            let _ = writeln!(
                out,
                "\n[[{header}]]\nname = {}\ndatatype = \"{}\"\nshape = {:?}{}",
                quoted(&tensor.name),
                tensor.datatype,
                tensor.shape,
                shape_comment(tensor),
            );
        }
    }
    if class.is_some() || scores.is_some() {
        out.push_str("\n[prediction]                # guess: how an answer is read as a class\n");
        for (key, tensor) in [("class", class), ("scores", scores)] {
            if let Some(tensor) = tensor {
                let _ = writeln!(out, "{key} = {}", quoted(&tensor.name));
            }
        }
    }
    let open_batch = summary.inputs.iter().all(|tensor| tensor.shape.first() == Some(&-1));
    let _ = write!(
        out,
        "\n# [labels]                  # class names, one a line\n\
         # path = \"labels.txt\"\n\n\
         [golden]\n\
         dir = \"golden\"              # 3 to 20 real inputs with their outputs, see golden/README.md\n\
         rtol = 1e-3\n\
         atol = 1e-4\n\n\
         # [baseline]                # histograms of the training data\n\
         # path = \"baseline.json\"\n\n\
         [limits]\n\
         peak_memory_bytes = {}  # guess: 64 MiB and four times the file\n\
         p95_latency_ms = 50.0       # guess\n\
         batch_max = {}              # guess\n\n\
         [lineage]\n\
         # recipe = \"train.py\"\n\n\
         [compat]\n\
         hardware = []               # hardware classes; empty = any\n",
        (64u64 << 20).saturating_add(size.saturating_mul(4)),
        if open_batch { 32 } else { 1 },
    );
    out
}

fn shape_comment(tensor: &OnnxTensor) -> String {
    if !tensor.shape_known {
        return "  # the file does not say; write the real shape, -1 is open".to_owned();
    }
    let open: Vec<_> = tensor
        .open
        .iter()
        .map(|(index, name)| {
            format!("{index}{}", if name.is_empty() { String::new() } else { format!(" ({name})") })
        })
        .collect();
    if open.is_empty() { String::new() } else { format!("  # open: dimension {}", comment(&open.join(", "))) }
}

/// An integer output of one value per row and a floating one of several.
fn guess_prediction(summary: &OnnxSummary) -> (Option<&OnnxTensor>, Option<&OnnxTensor>) {
    let class = summary.outputs.iter().find(|tensor| {
        matches!(tensor.datatype, Datatype::Int64 | Datatype::Int32)
            && matches!(tensor.shape[..], [_] | [_, 1])
    });
    let scores = summary.outputs.iter().find(|tensor| {
        matches!(tensor.datatype, Datatype::Fp32 | Datatype::Fp64 | Datatype::Fp16)
            && matches!(tensor.shape[..], [_, classes] if classes > 1)
    });
    (class, scores)
}

fn guess_precision(summary: &OnnxSummary) -> &'static str {
    if summary.operators.contains_key("QuantizeLinear") {
        "int8-qdq"
    } else if summary.inputs.iter().any(|tensor| tensor.datatype == Datatype::Fp16) {
        "f16"
    } else {
        "f32"
    }
}

fn golden_readme(summary: &OnnxSummary) -> String {
    let entry = |tensor: &OnnxTensor| {
        let shape: Vec<_> = tensor.shape.iter().map(|dim| if *dim == -1 { 1 } else { *dim }).collect();
        let (name, datatype) = (serde_json::Value::from(tensor.name.as_str()), tensor.datatype);
        format!(r#"    {{"name": {name}, "datatype": "{datatype}", "shape": {shape:?}, "data": [...]}}"#)
    };
    let side = |tensors: &[OnnxTensor]| tensors.iter().map(entry).collect::<Vec<_>>().join(",\n");
    format!(
        "# Golden samples\n\nPut 3 to 20 real inputs here, one `NAME.json` each, with the outputs you saw where the model was\n\
         trained. Every device runs them before it takes the bundle. `data` is flat or nested, row by row; open\n\
         dimensions take any size, 1 is a good one.\n\n```json\n{{\n  \"inputs\": [\n{}\n  ],\n  \"outputs\": [\n{}\n  ]\n}}\n```\n",
        side(&summary.inputs),
        side(&summary.outputs),
    )
}

#[cfg(test)]
mod tests {
    use super::super::{builder, source};
    use super::*;

    fn models() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
    }

    #[test]
    fn what_init_writes_builds_once_golden_samples_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("d");
        let started = init(&models().join("digits/v1/model.onnx"), &out, Some("digits")).unwrap();
        assert_eq!(started.summary.inputs.len(), 1);
        let source::SourceError::Wrong { wrong, .. } = source::read(&out).unwrap_err() else { panic!() };
        assert_eq!(wrong.0.len(), 1, "only the golden samples are missing: {wrong}");
        assert_eq!(wrong.0[0].key, "golden.dir");
        let golden = models().join("digits/v1/golden/00-zero.json");
        fs::copy(golden, out.join("golden/00-zero.json")).unwrap();
        builder::build(&out, &out.join("build")).unwrap();
        assert!(matches!(
            init(&models().join("digits/v1/model.onnx"), &out, None),
            Err(InitError::Exists { .. })
        ));
    }

    #[test]
    fn hostile_files_are_refused_without_a_trace() {
        for name in ["corrupt.onnx", "not-onnx.onnx", "missing.onnx"] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            assert!(init(&models().join("fixtures").join(name), &out, None).is_err(), "{name}");
            assert!(!out.exists(), "{name}");
        }
    }

    #[test]
    fn odd_files_are_described_and_what_is_written_is_sound_toml() {
        for name in
            ["wrong-shape", "unsupported-op", "out-of-memory", "out-of-memory-load", "datatypes", "slow"]
        {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            init(&models().join("fixtures").join(format!("{name}.onnx")), &out, None).unwrap();
            let source::SourceError::Wrong { wrong, .. } = source::read(&out).unwrap_err() else { panic!() };
            assert_eq!(wrong.0.len(), 1, "{name}: {wrong}");
        }
    }

    #[test]
    fn hostile_names_cannot_break_out_of_their_quotes() {
        let tensor = OnnxTensor {
            name: "a\"\n[model]\u{7}\\".into(),
            datatype: Datatype::Fp32,
            shape: vec![-1],
            open: vec![(0, "x\nschema = 9".into())],
            shape_known: true,
        };
        let summary = OnnxSummary {
            ir_version: 8,
            producer: "p\nq".into(),
            graph: "g\nschema = 2".into(),
            opsets: [("d\nx".to_owned(), 1)].into(),
            inputs: vec![tensor.clone()],
            outputs: vec![tensor],
            operators: [("O\np".to_owned(), 1)].into(),
        };
        let text = bundle_toml(&model_name("Ä b/c"), &summary, 10);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["input"][0]["name"].as_str(), Some("a\"\n[model]\u{7}\\"));
        assert_eq!(table["model"]["name"].as_str(), Some("--b-c"));
        assert_eq!(table["schema"].as_integer(), Some(1));
    }
}
