//! Runs the folders that `operators/cases.py` wrote through an engine; one JSON line per test on stdout.
//!
//! `operator_cases FOLDER [LIBRARY]`: with tract, or with the ONNX Runtime of `LIBRARY`.
//!
//! A test passes if one of its models (as it is, or with inputs held as constants) loads, runs and answers
//! within the test's tolerance or within [`ROUNDING`]; it is wrong if any answers anything else without an
//! error; otherwise it is refused, or failed while running, and the line says in which words.

use anyhow::{Context, bail};
use edgefleet_agent::engine::{
    Engine, Engines, golden,
    setup::{EngineName, Setup},
};
use edgefleet_shared::{
    bundle::{Interface, Precision, TensorSpec},
    tensor::{Datatype, Tensor},
};
use serde::{Deserialize, Serialize};
use std::{
    io::Write,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

/// No test of a single operator needs a tenth of this, unoptimised.
const DEADLINE: Duration = Duration::from_secs(120);

/// Steps of the datatype, beside the output's largest expected element or beside 1, that are rounding. The
/// tests' own bounds (1e-7 beside 1e-3 of the element) call a Fourier transform wrong whose zeros are 2e-6
/// beside elements of 20, and a recurrent state of 1e-6 that is the difference of two numbers near 1.
const ROUNDING: f64 = 8.0;

#[derive(Deserialize)]
struct Case {
    name: String,
    op: String,
    rtol: f64,
    atol: f64,
    sets: Vec<Set>,
    beyond: Option<String>,
    variants: Vec<Variant>,
}

#[derive(Deserialize)]
struct Variant {
    file: String,
    fixed: Vec<String>,
}

#[derive(Deserialize)]
struct Set {
    inputs: Vec<Part>,
    outputs: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    offset: usize,
    length: usize,
}

#[derive(Serialize)]
struct Line {
    name: String,
    op: String,
    /// `passed`, `refused`, `failed` (while running), `wrong` or `hung`.
    verdict: &'static str,
    words: String,
}

enum Verdict {
    Passed,
    Wrong(String),
    Failed(String),
    Refused(String),
}

fn tensor(part: &Part, data: &bytes::Bytes) -> anyhow::Result<Tensor> {
    let end = part.offset.checked_add(part.length).filter(|end| *end <= data.len());
    let Some(end) = end else { bail!("`{}` lies beyond data.bin", part.name) };
    Ok(Tensor::new(part.name.clone(), part.datatype, part.shape.clone(), data.slice(part.offset..end))?)
}

/// See [`ROUNDING`]; 0 for what is exact.
fn rounding(tensor: &Tensor) -> f64 {
    let (step, size) = match tensor.datatype() {
        Datatype::Fp16 => (f64::powi(2.0, -10), 2),
        Datatype::Fp32 => (f64::from(f32::EPSILON), 4),
        Datatype::Fp64 => (f64::EPSILON, 8),
        _ => return 0.0,
    };
    let number = |raw: &[u8]| -> Option<f64> {
        Some(match size {
            2 => f64::from(half::f16::from_le_bytes(raw.try_into().ok()?)),
            4 => f64::from(f32::from_le_bytes(raw.try_into().ok()?)),
            _ => f64::from_le_bytes(raw.try_into().ok()?),
        })
    };
    let numbers = tensor.data().chunks_exact(size).filter_map(number);
    numbers.map(f64::abs).filter(|x| x.is_finite()).fold(1.0, f64::max) * step * ROUNDING
}

fn specs(parts: &[&Part]) -> Vec<TensorSpec> {
    let shape = |part: &Part| part.shape.iter().map(|dim| *dim as i64).collect();
    let spec =
        |part: &&Part| TensorSpec { name: part.name.clone(), datatype: part.datatype, shape: shape(part) };
    parts.iter().map(spec).collect()
}

fn run(
    engine: &dyn Engine,
    folder: &Path,
    file: &str,
    case: &Case,
    fixed: &[String],
) -> anyhow::Result<Verdict> {
    let data = bytes::Bytes::from(std::fs::read(folder.join("data.bin"))?);
    for set in &case.sets {
        let inputs: Vec<&Part> = set.inputs.iter().filter(|part| !fixed.contains(&part.name)).collect();
        let outputs: Vec<&Part> = set.outputs.iter().collect();
        let interface = Interface { inputs: specs(&inputs), outputs: specs(&outputs) };
        let model = match engine.load(&folder.join(file), &interface) {
            Ok(model) => model,
            Err(error) => return Ok(Verdict::Refused(error.to_string())),
        };
        let given: Vec<Tensor> =
            inputs.iter().map(|part| tensor(part, &data)).collect::<anyhow::Result<_>>()?;
        let wanted: Vec<Tensor> =
            outputs.iter().map(|part| tensor(part, &data)).collect::<anyhow::Result<_>>()?;
        // Twice: an answer must not depend on what was asked before.
        for _ in 0..2 {
            let found = match model.run(&given) {
                Ok(found) => found,
                Err(error) => return Ok(Verdict::Failed(error.to_string())),
            };
            for wanted in &wanted {
                let atol = case.atol.max(rounding(wanted));
                let one = std::slice::from_ref(wanted);
                let result = golden::compare(&case.name, one, &found, case.rtol, atol);
                if !result.passed {
                    return Ok(Verdict::Wrong(result.mismatch.unwrap_or_default()));
                }
            }
        }
    }
    Ok(Verdict::Passed)
}

fn judge(engine: &dyn Engine, folder: &Path) -> anyhow::Result<Line> {
    let case: Case = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let line = |verdict, words: String| Line { name: case.name.clone(), op: case.op.clone(), verdict, words };
    if let Some(why) = &case.beyond {
        return Ok(line("refused", format!("{why}, which the protocol cannot name")));
    }
    let mut verdict = Verdict::Refused("it has no model".into());
    for variant in &case.variants {
        let next = run(engine, folder, &variant.file, &case, &variant.fixed)?;
        verdict = match (verdict, next) {
            (_, Verdict::Wrong(words)) => {
                verdict = Verdict::Wrong(format!("{}: {words}", variant.file));
                break;
            }
            (Verdict::Passed, _) | (_, Verdict::Passed) => Verdict::Passed,
            (_, next) if variant.fixed.is_empty() => next,
            (before, _) => before,
        };
    }
    Ok(match verdict {
        Verdict::Passed => line("passed", String::new()),
        Verdict::Wrong(words) => line("wrong", words),
        Verdict::Failed(words) => line("failed", words),
        Verdict::Refused(words) => line("refused", words),
    })
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().context("usage: operator_cases FOLDER [LIBRARY]")?;
    let library = arguments.next().map(PathBuf::from);
    let engine = match &library {
        Some(_) => EngineName::Onnxruntime,
        None => EngineName::Tract,
    };
    let setup = Setup { engine, precision: Precision::F32, threads: 1 };
    let engine = Engines::new(library.as_deref()).engine(setup)?;
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
        .with_context(|| format!("could not read {root}"))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    folders.sort();
    let mut stdout = std::io::stdout().lock();
    for folder in folders {
        let (send, receive) = mpsc::channel();
        let (engine, at) = (engine.clone(), folder.clone());
        std::thread::spawn(move || {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| judge(&*engine, &at)));
            // The receiver may have given up on this test.
            let _ = send.send(caught);
        });
        let name = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let lost = |verdict, words: &str| Line {
            name: name.clone(),
            op: String::new(),
            verdict,
            words: words.to_owned(),
        };
        let line = match receive.recv_timeout(DEADLINE) {
            Ok(Ok(line)) => line.with_context(|| format!("test {}", folder.display()))?,
            Ok(Err(_)) => lost("wrong", "it panicked"),
            Err(_) => lost("hung", "no answer in time"),
        };
        writeln!(stdout, "{}", serde_json::to_string(&line)?)?;
    }
    Ok(())
}
