//! OpenVINO beside ONNX Runtime: a child process runs `agent/peers/openvino_peer.py`, and the two take turns.
//!
//! The child measures its own requests, so what the pipe costs is in nobody's time.

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgefleet_agent::engine::{Engines, bench::ratio, setup::Setup, subject::Subject};
use edgefleet_shared::tensor::{Datatype, Tensor};
use serde_json::{Value, json};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

const WARM_UP: usize = 3;

pub(crate) struct Peer {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// `python`: one that has the package `openvino`.
    pub(crate) fn start(python: &Path) -> anyhow::Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/openvino_peer.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} with OpenVINO", python.display()))?;
        let asks = child.stdin.take().context("no pipe to the peer")?;
        let answers = BufReader::new(child.stdout.take().context("no pipe from the peer")?);
        Ok(Self { child, asks, answers })
    }

    fn ask(&mut self, question: &Value) -> anyhow::Result<Result<Value, String>> {
        writeln!(self.asks, "{question}")?;
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the peer with OpenVINO ended");
        let answer: Value = serde_json::from_str(&line)?;
        Ok(match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        })
    }

    /// The row of one model, or why there is none.
    pub(crate) fn duel(
        &mut self,
        subject: &Subject,
        engines: &Engines,
        setup: Setup,
        batch: usize,
        rounds: usize,
    ) -> anyhow::Result<Result<Value, String>> {
        let Some(file) = subject.file(setup.precision) else { return Ok(Err("no such variant".into())) };
        let Some(inputs) = subject.batch(batch)? else {
            return Ok(Err("the model takes no batch of that size".into()));
        };
        let engine = engines.engine(setup).map_err(|error| anyhow::anyhow!(error.message))?;
        let model = match subject.load(&*engine, file) {
            Ok(model) => model,
            Err(error) => return Ok(Err(error.message)),
        };
        let told: Vec<Value> = inputs
            .iter()
            .map(|input| {
                json!({
                    "name": input.name(), "datatype": input.datatype().as_str(), "shape": input.shape(),
                    "data": BASE64.encode(input.data()),
                })
            })
            .collect();
        let loaded = match self.ask(&json!({ "model": file, "threads": setup.threads, "inputs": told }))? {
            Ok(loaded) => loaded,
            Err(error) => return Ok(Err(error)),
        };
        let reference = model.run(&inputs)?;
        let (mut ours, mut theirs) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        for round in 0..rounds + WARM_UP {
            let started = Instant::now();
            model.run(&inputs)?;
            let our_ms = started.elapsed().as_secs_f64() * 1e3;
            let their_ms = match self.ask(&json!({ "run": true }))? {
                Ok(answer) => answer["ms"].as_f64().context("the peer gave no time")?,
                Err(error) => return Ok(Err(error)),
            };
            if round >= WARM_UP {
                ours.push(our_ms);
                theirs.push(their_ms);
            }
        }
        Ok(Ok(json!({
            "model": subject.name,
            "threads": setup.threads,
            "batch": batch,
            "engine": "openvino",
            "version": loaded["version"],
            "variant": "f32",
            "rounds": theirs.len(),
            "median_ms": middle(&theirs),
            "min_ms": theirs.iter().copied().fold(f64::INFINITY, f64::min),
            "onnxruntime_beside_it_ms": middle(&ours),
            "ratio_vs_onnxruntime": ratio(&theirs, &ours),
            "max_abs_diff": largest_difference(&reference, &loaded["outputs"])?,
            "load_ms": loaded["load_ms"],
        })))
    }
}

fn middle(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::INFINITY)
}

/// Over all outputs that both have and that hold numbers of floating point.
fn largest_difference(reference: &[Tensor], outputs: &Value) -> anyhow::Result<f64> {
    let mut largest = 0f64;
    for output in outputs.as_array().map_or(&[][..], Vec::as_slice) {
        let Some(wanted) = reference.iter().find(|tensor| output["name"] == tensor.name()) else { continue };
        let mine: Vec<f64> = match wanted.datatype() {
            Datatype::Fp32 => {
                wanted.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
            }
            Datatype::Fp64 => {
                wanted.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
            }
            _ => continue,
        };
        let raw = BASE64.decode(output["data"].as_str().context("an output without data")?)?;
        for (mine, theirs) in mine.iter().zip(raw.as_chunks::<8>().0) {
            largest = largest.max((mine - f64::from_le_bytes(*theirs)).abs());
        }
    }
    Ok(largest)
}
