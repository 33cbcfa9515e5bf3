//! The source folder of a bundle, as its author writes it: `bundle.toml` and the files it names.
//!
//! Everything is read and checked before anything is built; unknown keys are refused and every mistake
//! is named with file, line and key, all at once.

use super::{
    golden_json::{self, MAX_GOLDEN_JSON_BYTES},
    mistakes::{Mistakes, SourceMistake},
    toml_reader::{Reader, Table},
};
use edgefleet_shared::bundle::{
    Baseline, Compat, GoldenSample, Interface, Limits, ModelCard, PipelineSpec, Precision, Prediction,
    TensorSpec,
    baseline::MAX_BASELINE_BYTES,
    engine::TARGETS,
    manifest::{MAX_BLOB_BYTES, MAX_MANIFEST_BYTES},
};
use edgefleet_shared::tensor::Datatype;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    path::{Component, Path, PathBuf},
};

/// Name of the description inside a source folder.
pub const SOURCE_FILE: &str = "bundle.toml";
/// Schema of `bundle.toml` that this program reads.
const SOURCE_SCHEMA: i64 = 1;
const MAX_SOURCE_BYTES: u64 = 1 << 20;
const MAX_LABEL_BYTES: u64 = 4 << 20;
const MAX_GOLDEN_SAMPLES: usize = 64;

/// A source folder, checked.
#[derive(Clone, Debug)]
pub struct BundleSource {
    pub card: ModelCard,
    /// Of an engine pack, which has nothing of what a model has.
    pub engine: Option<EngineSource>,
    pub artifacts: Vec<ArtifactSource>,
    pub interface: Interface,
    pub pipeline: Option<PipelineSpec>,
    pub prediction: Option<Prediction>,
    pub labels: Vec<String>,
    pub golden: Vec<GoldenSource>,
    /// JSON of the held-out data's histograms, exact bytes.
    pub baseline: Option<Vec<u8>>,
    /// What to make it from where it is not there yet.
    pub baseline_data: Option<BaselineData>,
    pub limits: Limits,
    pub lineage: BTreeMap<String, String>,
    pub compat: Compat,
}

/// Held-out rows that a baseline is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaselineData {
    pub data: PathBuf,
    /// A file, or the name of the labels in the data.
    pub labels: Option<OsString>,
}

/// The libraries of an engine pack.
#[derive(Clone, Debug)]
pub struct EngineSource {
    pub api: u32,
    pub libraries: Vec<LibrarySource>,
}

/// A library to copy into the bundle.
#[derive(Clone, Debug)]
pub struct LibrarySource {
    pub path: PathBuf,
    pub target: String,
}

/// A model file to copy into the bundle.
#[derive(Clone, Debug)]
pub struct ArtifactSource {
    pub path: PathBuf,
    pub format: String,
    pub precision: Precision,
    pub targets: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct GoldenSource {
    pub name: String,
    pub sample: GoldenSample,
    pub rtol: f64,
    pub atol: f64,
}

/// Why a source folder cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("could not read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is not usable as it is:\n{wrong}", dir.display())]
    Wrong { dir: PathBuf, wrong: Mistakes },
}

/// Reads `dir/bundle.toml` and what it names.
///
/// # Errors
/// [`SourceError`]; `Wrong` holds every mistake.
pub fn read(dir: &Path) -> Result<BundleSource, SourceError> {
    let path = dir.join(SOURCE_FILE);
    let bytes = read_bounded(&path, MAX_SOURCE_BYTES)
        .map_err(|source| SourceError::Read { path: path.clone(), source })?;
    let refuse = |wrong| SourceError::Wrong { dir: dir.to_owned(), wrong: Mistakes(wrong) };
    let file = Path::new(SOURCE_FILE);
    let text = String::from_utf8(bytes).map_err(|e| {
        let reason = format!("is not UTF-8 from byte {} on", e.utf8_error().valid_up_to());
        refuse(vec![SourceMistake { file: file.to_owned(), line: None, key: String::new(), reason }])
    })?;
    let reader = Reader::new(file, &text);
    let document = reader.parse();
    let mut files = Vec::new();
    let source = read_top(dir, Table::top(&reader, &document), &mut files);
    let mut wrong = reader.into_mistakes();
    wrong.extend(files);
    match source {
        Some(source) if wrong.is_empty() => Ok(source),
        _ => Err(refuse(wrong)),
    }
}

/// `None` if something needed is missing; the mistakes are in the reader and in `files` then.
fn read_top(dir: &Path, top: Table<'_>, files: &mut Vec<SourceMistake>) -> Option<BundleSource> {
    if let Some(found) = top.integer("schema", 1..=i64::MAX)
        && found != SOURCE_SCHEMA
    {
        top.wrong("schema", format!("is {found}, this program reads {SOURCE_SCHEMA}"));
    }
    match top.string("kind") {
        None | Some("model") => {}
        Some("engine") => return read_engine(dir, top),
        Some(other) => top.wrong("kind", format!("is {other:?}, not \"model\" or \"engine\"")),
    }
    let card = top.need_table("model").and_then(read_card);
    let artifacts: Vec<_> =
        top.need_tables("artifact").into_iter().filter_map(|table| read_artifact(dir, table)).collect();
    let inputs = read_specs(top.need_tables("input"));
    let outputs = read_specs(top.need_tables("output"));
    let interface = Interface { inputs, outputs };
    let pipeline = top.table("pipeline").and_then(|table| read_pipeline(dir, table));
    // What clients send and get, and so what golden samples hold.
    let external = pipeline.as_ref().map_or_else(
        || interface.clone(),
        |spec| Interface { inputs: spec.inputs.clone(), outputs: spec.outputs.clone() },
    );
    let prediction = top.table("prediction").map(|table| read_prediction(table, &external));
    let labels = top.table("labels").map(|table| read_labels(dir, table)).unwrap_or_default();
    let golden =
        top.need_table("golden").map(|table| read_golden(dir, table, &external, files)).unwrap_or_default();
    let (baseline, baseline_data) =
        top.table("baseline").map(|table| read_baseline(dir, table)).unwrap_or_default();
    let limits = top.need_table("limits").and_then(read_limits);
    let (lineage, compat) = read_origin(&top);
    top.finish();
    Some(BundleSource {
        card: card?,
        engine: None,
        artifacts,
        interface,
        pipeline,
        prediction,
        labels,
        golden,
        baseline,
        baseline_data,
        limits: limits?,
        lineage,
        compat,
    })
}

/// `kind = "engine"`: a card, the version of the interface, and one library per target.
fn read_engine(dir: &Path, top: Table<'_>) -> Option<BundleSource> {
    let card = top.need_table("model").and_then(read_card);
    let api = top.need_table("engine").and_then(|table| {
        let api = table.integer("api", 0..=i64::from(u32::MAX));
        table.finish();
        u32::try_from(api?).ok()
    });
    let mut targets = BTreeSet::new();
    let mut libraries = Vec::new();
    // `api = 0` and no library: a withdrawal.
    let tables = if api == Some(0) { vec![] } else { top.need_tables("library") };
    for table in tables {
        let path = table.need_string("path").and_then(|text| blob_file(dir, &table, text));
        let target = table.need_string("target");
        match target {
            Some(target) if !TARGETS.contains(&target) => {
                table.wrong("target", format!("is {target:?}, not one of {TARGETS:?}"));
            }
            Some(target) if !targets.insert(target) => {
                table.wrong("target", format!("is {target:?}, which is named twice"));
            }
            Some(_) | None => {}
        }
        if let (Some(path), Some(target)) = (path, target) {
            libraries.push(LibrarySource { path, target: target.to_owned() });
        }
        table.finish();
    }
    let (lineage, compat) = read_origin(&top);
    top.finish();
    Some(BundleSource {
        card: card?,
        engine: Some(EngineSource { api: api?, libraries }),
        artifacts: vec![],
        interface: Interface::default(),
        pipeline: None,
        prediction: None,
        labels: vec![],
        golden: vec![],
        baseline: None,
        baseline_data: None,
        limits: Limits::default(),
        lineage,
        compat,
    })
}

/// Where it comes from and what it is for, which every kind of bundle may say.
fn read_origin(top: &Table<'_>) -> (BTreeMap<String, String>, Compat) {
    let lineage = top.table("lineage").map(Table::all_strings).unwrap_or_default().into_iter().collect();
    let compat = top.table("compat").map(|table| {
        let hardware = table.strings("hardware");
        table.finish();
        Compat { hardware }
    });
    (lineage, compat.unwrap_or_default())
}

/// The file of `path` below the folder, of a size that a blob may have.
fn blob_file(dir: &Path, table: &Table<'_>, text: &str) -> Option<PathBuf> {
    let path = inside(dir, table, "path", text)?;
    match std::fs::metadata(&path) {
        Ok(meta) if !meta.is_file() => table.wrong("path", "is not a file"),
        Ok(meta) if meta.len() == 0 || meta.len() > MAX_BLOB_BYTES => {
            table.wrong("path", format!("has {} bytes, not 1 to {MAX_BLOB_BYTES}", meta.len()));
        }
        Ok(_) => {}
        Err(e) => table.wrong("path", format!("cannot be read: {e}")),
    }
    Some(path)
}

fn read_card(table: Table<'_>) -> Option<ModelCard> {
    let name = table.need_parsed("name");
    let counter = table.integer("counter", 1..=i64::MAX);
    let version = table.need_string("version");
    let text = |key| table.string(key).unwrap_or_default().to_owned();
    let card = ModelCard {
        task: text("task"),
        description: text("description"),
        license: text("license"),
        owner: text("owner"),
        version: version.unwrap_or_default().to_owned(),
        counter: counter.unwrap_or_default().unsigned_abs(),
        name: match name {
            Some(name) => name,
            None => {
                table.finish();
                return None;
            }
        },
    };
    table.finish();
    Some(card)
}

fn read_artifact(dir: &Path, table: Table<'_>) -> Option<ArtifactSource> {
    let format = table.string("format").unwrap_or("onnx");
    if format != "onnx" {
        table.wrong("format", format!("is {format:?}, the one format so far is \"onnx\""));
    }
    let precision = match table.need_string("precision") {
        Some("f32") => Some(Precision::F32),
        Some("f16") => Some(Precision::F16),
        Some("int8-qdq") => Some(Precision::Int8Qdq),
        Some(other) => {
            table.wrong("precision", format!("is {other:?}, not \"f32\", \"f16\" or \"int8-qdq\""));
            None
        }
        None => None,
    };
    let targets = table.strings("targets");
    let path = table.need_string("path").and_then(|text| blob_file(dir, &table, text));
    let format = format.to_owned();
    table.finish();
    Some(ArtifactSource { path: path?, format, precision: precision?, targets })
}

fn read_specs(tables: Vec<Table<'_>>) -> Vec<TensorSpec> {
    let mut names = BTreeSet::new();
    let mut specs = Vec::new();
    for table in tables {
        let name = table.need_string("name");
        if let Some(name) = name {
            if name.is_empty() || name.len() > 256 {
                table.wrong("name", format!("has {} bytes, not 1 to 256", name.len()));
            }
            if !names.insert(name) {
                table.wrong("name", format!("is {name:?}, which is named twice"));
            }
        }
        let datatype = table.need_string("datatype").and_then(|text| {
            let parsed = serde_json::from_value::<Datatype>(serde_json::Value::String(text.to_owned()));
            parsed
                .map_err(|_| {
                    let reason =
                        format!("is {text:?}, not BOOL, [U]INT8 to 64, FP16, BF16, FP32, FP64 or BYTES");
                    table.wrong("datatype", reason);
                })
                .ok()
        });
        let shape = table.integers("shape");
        if let Some(shape) = &shape
            && (shape.len() > 8 || shape.iter().any(|dim| *dim < -1 || *dim > 1 << 31))
        {
            let reason = format!("is {shape:?}; at most 8 dimensions, each -1 (open) or 0 to 2147483648");
            table.wrong("shape", reason);
        }
        if let (Some(name), Some(datatype), Some(shape)) = (name, datatype, shape) {
            specs.push(TensorSpec { name: name.to_owned(), datatype, shape });
        }
        table.finish();
    }
    specs
}

fn read_prediction(table: Table<'_>, interface: &Interface) -> Prediction {
    let output = |key: &'static str| {
        let name = table.string(key)?;
        if !interface.outputs.iter().any(|spec| spec.name == name) {
            table.wrong(key, format!("is {name:?}, which is no output"));
        }
        Some(name.to_owned())
    };
    let prediction = Prediction { class: output("class"), scores: output("scores") };
    if prediction.class.is_none() && prediction.scores.is_none() {
        table.wrong("class", "or `scores` is needed, or leave `[prediction]` out");
    }
    table.finish();
    prediction
}

/// The section of the manifest as it is, in a JSON file of its own.
fn read_pipeline(dir: &Path, table: Table<'_>) -> Option<PipelineSpec> {
    let bytes = read_named(dir, &table, MAX_MANIFEST_BYTES);
    let parsed = bytes.and_then(|bytes| {
        let parsed = serde_json::from_slice::<PipelineSpec>(&bytes);
        parsed.map_err(|e| table.wrong("path", format!("is no pipeline: {e}"))).ok()
    });
    for (field, reason) in parsed.iter().flat_map(PipelineSpec::mistakes) {
        table.wrong("path", format!("{field}: {reason}"));
    }
    table.finish();
    parsed
}

fn read_labels(dir: &Path, table: Table<'_>) -> Vec<String> {
    let text = read_named(dir, &table, MAX_LABEL_BYTES);
    let mut labels = Vec::new();
    match text.map(String::from_utf8) {
        Some(Ok(text)) => labels = text.lines().map(|line| line.trim_end().to_owned()).collect(),
        Some(Err(_)) => table.wrong("path", "is not UTF-8"),
        None => {}
    }
    let mut seen = BTreeSet::new();
    for (index, label) in labels.iter().enumerate() {
        if label.is_empty() {
            table.wrong("path", format!("has an empty label in line {}", index + 1));
        } else if !seen.insert(label) {
            table.wrong("path", format!("has the label {label:?} again in line {}", index + 1));
        }
    }
    table.finish();
    labels
}

fn read_golden(
    dir: &Path,
    table: Table<'_>,
    interface: &Interface,
    files: &mut Vec<SourceMistake>,
) -> Vec<GoldenSource> {
    let tolerance = |key| {
        let value = table.number(key)?;
        if value < 0.0 {
            table.wrong(key, format!("is {value}, not 0 or more"));
        }
        Some(value)
    };
    let (rtol, atol) = (tolerance("rtol").unwrap_or(0.0), tolerance("atol").unwrap_or(0.0));
    let text = table.need_string("dir");
    let folder = text.and_then(|text| inside(dir, &table, "dir", text));
    let names = match folder.as_deref().map(json_files) {
        None => vec![],
        Some(Err(e)) => {
            table.wrong("dir", format!("cannot be read: {e}"));
            vec![]
        }
        Some(Ok(names)) => {
            if names.is_empty() {
                table.wrong("dir", "holds no *.json; put 3 to 20 real inputs with their outputs there");
            } else if names.len() > MAX_GOLDEN_SAMPLES {
                table.wrong("dir", format!("holds {} samples, at most {MAX_GOLDEN_SAMPLES}", names.len()));
            }
            names
        }
    };
    table.finish();
    let mut golden = Vec::new();
    for name in names.into_iter().take(MAX_GOLDEN_SAMPLES) {
        let shown = Path::new(text.unwrap_or_default()).join(format!("{name}.json"));
        let mut note = |key: String, reason: String| {
            files.push(SourceMistake { file: shown.clone(), line: None, key, reason })
        };
        let parsed = match read_bounded(&dir.join(&shown), MAX_GOLDEN_JSON_BYTES) {
            Ok(json) => golden_json::parse(&json, interface),
            Err(e) => Err(vec![(String::new(), format!("cannot be read: {e}"))]),
        };
        match parsed {
            Ok(parsed) => golden.push(GoldenSource {
                name,
                sample: parsed.sample,
                rtol: parsed.rtol.unwrap_or(rtol),
                atol: parsed.atol.unwrap_or(atol),
            }),
            Err(wrong) => wrong.into_iter().for_each(|(key, reason)| note(key, reason)),
        }
    }
    golden
}

/// Stems of the `*.json` files of a folder, sorted, so that the order never depends on the file system.
fn json_files(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.insert(stem.to_owned());
        }
    }
    Ok(names.into_iter().collect())
}

/// `path`: a baseline that is there already; `data`: held-out rows to make it from, with `labels`.
fn read_baseline(dir: &Path, table: Table<'_>) -> (Option<Vec<u8>>, Option<BaselineData>) {
    let made = table.string("data").and_then(|text| {
        let data = inside(dir, &table, "data", text)?;
        if !data.is_file() {
            table.wrong("data", "is not a file");
        }
        // A file of the folder, or the name of what holds them in the data.
        let labels = table.string("labels").map(|labels| match dir.join(labels) {
            file if file.is_file() && inside(dir, &table, "labels", labels).is_some() => file.into(),
            _ => labels.into(),
        });
        if table.string("path").is_some() {
            table.wrong("path", "and `data` exclude each other");
        }
        Some(BaselineData { data, labels })
    });
    if made.is_some() || table.string("data").is_some() {
        table.finish();
        return (None, made);
    }
    let bytes = read_named(dir, &table, MAX_BASELINE_BYTES);
    if let Some(Err(e)) = bytes.as_deref().map(Baseline::parse) {
        table.wrong("path", format!("is of no use: {e}"));
    }
    table.finish();
    (bytes, None)
}

fn read_limits(table: Table<'_>) -> Option<Limits> {
    let peak = table.integer("peak_memory_bytes", 1..=i64::MAX);
    let p95 = table.number("p95_latency_ms");
    if p95.is_some_and(|value| value <= 0.0) {
        table.wrong("p95_latency_ms", "must be above 0");
    }
    let batch = table.integer("batch_max", 1..=65_536);
    table.finish();
    Some(Limits {
        peak_memory_bytes: peak?.unsigned_abs(),
        p95_latency_ms: p95?,
        batch_max: usize::try_from(batch?).ok()?,
    })
}

/// The content of the file that `path` of `table` names.
fn read_named(dir: &Path, table: &Table<'_>, limit: u64) -> Option<Vec<u8>> {
    let path = table.need_string("path").and_then(|text| inside(dir, table, "path", text))?;
    read_bounded(&path, limit).map_err(|e| table.wrong("path", format!("cannot be read: {e}"))).ok()
}

/// A path below the source folder. Others are refused: a bundle must build the same on every machine.
fn inside(dir: &Path, table: &Table<'_>, key: &str, text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if text.is_empty() || !plain {
        table.wrong(key, format!("is {text:?}; write a path below the folder of {SOURCE_FILE}"));
        return None;
    }
    Some(dir.join(path))
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let reason = format!("it has more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
