//! Asks agents over connections that are kept, and judges every answer by the bundle it names.

use super::source::models;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

/// Outputs of two runtimes on one machine differ in the last digits.
const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-4;
const MAX_BODY: usize = 1 << 20;

/// One HTTP/1.1 connection. It is never opened again: an agent that closes it fails the request.
pub struct KeepAlive {
    stream: BufReader<TcpStream>,
    host: String,
}

impl KeepAlive {
    /// # Errors
    /// If nobody listens at `host` (`address:port`).
    pub async fn connect(host: &str) -> Result<Self> {
        let stream = TcpStream::connect(host).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), host: host.to_owned() })
    }

    /// Status and body.
    ///
    /// # Errors
    /// If the connection ends before the answer does, or the agent announces that it will.
    pub async fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await?;
        let (mut status, mut length) = (None, None);
        loop {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line).await? > 0, "the connection was closed");
            let line = line.trim_end();
            if line.is_empty() {
                break;
            }
            let Some((name, value)) = line.split_once(':') else {
                status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
                continue;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse::<usize>().ok(),
                "connection" if value.trim().eq_ignore_ascii_case("close") => {
                    bail!("the agent ends the connection")
                }
                _ => {}
            }
        }
        let length = length.context("an answer without content-length")?;
        ensure!(length <= MAX_BODY, "an answer of {length} bytes");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status.context("an answer without a status")?, body))
    }
}

/// What a bundle must answer to each question.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    questions: Vec<Vec<u8>>,
    /// Bundle -> for each question: probabilities and label.
    answers: BTreeMap<String, Vec<(Vec<f64>, i64)>>,
}

/// A judged answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub bundle: String,
    pub label: i64,
}

impl Oracle {
    /// `bundle` answers as the golden samples in `folder` (below `models/`) say. All bundles of an
    /// oracle have samples with the same inputs.
    ///
    /// # Errors
    /// If the samples cannot be read or their inputs are others.
    pub fn with(mut self, bundle: &str, folder: &str) -> Result<Self> {
        let mut files: Vec<_> =
            fs::read_dir(models().join(folder))?.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
        files.sort();
        let samples = files.iter().map(|path| sample(path)).collect::<Result<Vec<_>>>()?;
        let questions: Vec<_> = samples.iter().map(|(question, ..)| question.clone()).collect();
        ensure!(!questions.is_empty(), "no samples in {folder}");
        ensure!(self.questions.is_empty() || self.questions == questions, "{folder} has other inputs");
        self.questions = questions;
        self.answers.insert(bundle.to_owned(), samples.into_iter().map(|(_, p, label)| (p, label)).collect());
        Ok(self)
    }

    pub fn questions(&self) -> usize {
        self.questions.len()
    }

    /// Asks question `n` (any number) and judges the answer.
    ///
    /// # Errors
    /// If there is no answer, it is an error, or it is not what the bundle it names must answer.
    pub async fn ask(&self, connection: &mut KeepAlive, n: usize) -> Result<Answer> {
        let n = n % self.questions.len().max(1);
        let question = self.questions.get(n).context("an oracle without questions")?;
        let (status, body) = connection.ask("POST", "/v2/models/digits/infer", question).await?;
        let text = || String::from_utf8_lossy(&body).chars().take(300).collect::<String>();
        ensure!(status == 200, "status {status}: {}", text());
        self.judge(n, &serde_json::from_slice(&body)?).with_context(text)
    }

    fn judge(&self, n: usize, answer: &Value) -> Result<Answer> {
        let bundle = answer["parameters"]["bundle"].as_str().context("the answer names no bundle")?;
        let expected = self.answers.get(bundle).with_context(|| format!("{bundle} should not serve"))?;
        let (probabilities, label) = expected.get(n).context("no such question")?;
        let output = |name: &str| {
            let outputs = answer["outputs"].as_array().into_iter().flatten();
            outputs.into_iter().find(|o| o["name"] == name).map(|o| numbers(&o["data"])).unwrap_or_default()
        };
        let found = output("probabilities");
        ensure!(found.len() == probabilities.len(), "{} probabilities", found.len());
        for (found, wanted) in found.iter().zip(probabilities) {
            let off = (found - wanted).abs();
            ensure!(off <= ATOL + RTOL * wanted.abs(), "{bundle} answered {found} where {wanted} is right");
        }
        let found = output("label");
        ensure!(found == [*label as f64], "{bundle} answered class {found:?} where {label} is right");
        Ok(Answer { bundle: bundle.to_owned(), label: *label })
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn sample(path: &Path) -> Result<(Vec<u8>, Vec<f64>, i64)> {
    let sample: Value = serde_json::from_slice(&fs::read(path)?)?;
    let question = serde_json::to_vec(&json!({ "inputs": sample["inputs"] }))?;
    let output = |name: &str| {
        let outputs = sample["outputs"].as_array().into_iter().flatten();
        outputs.into_iter().find(|o| o["name"] == name).map(|o| numbers(&o["data"])).unwrap_or_default()
    };
    let label = output("label").first().copied().context("a sample without label")?;
    Ok((question, output("probabilities"), label as i64))
}
