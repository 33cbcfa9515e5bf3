//! Asking an agent, with the held-out digits.

use crate::binaries::repository;
use anyhow::{Context, Result, ensure};
use reqwest::Client;
use serde::Deserialize;
use serde_json::{Value, json};

/// Images never used in training, with their labels.
#[derive(Debug, Deserialize)]
pub struct Holdout {
    pub images: Vec<Vec<f32>>,
    pub labels: Vec<i64>,
}

impl Holdout {
    /// # Errors
    /// If the sample model is not there.
    pub fn load() -> Result<Self> {
        let path = repository("models/digits/holdout/holdout.json");
        Ok(serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?)
    }
}

/// What an agent said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `digits@2`
    pub bundle: String,
    pub label: i64,
    pub prediction: String,
}

pub fn request(image: &[f32]) -> Value {
    json!({
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, image.len()], "data": image}],
        "outputs": [{"name": "label"}],
    })
}

/// One image to model `digits` at `base` (`http://host:port`).
///
/// # Errors
/// If it does not answer with success; the text has its status and body.
pub async fn infer(client: &Client, base: &str, image: &[f32]) -> Result<Answer> {
    let url = format!("{base}/v2/models/digits/infer");
    let response = client.post(url).json(&request(image)).send().await?;
    let status = response.status();
    let body: Value = response.json().await?;
    ensure!(status.is_success(), "{status}: {body}");
    let text = |key: &str| body["parameters"][key].as_str().map(str::to_owned);
    Ok(Answer {
        bundle: text("bundle").with_context(|| format!("no bundle: {body}"))?,
        prediction: text("prediction_id").with_context(|| format!("no prediction id: {body}"))?,
        label: body["outputs"][0]["data"][0].as_i64().with_context(|| format!("no label: {body}"))?,
    })
}

/// Asks once and expects an answer of `bundle`.
///
/// # Errors
/// If it is another one, or none.
pub async fn answers(base: &str, bundle: &str) -> Result<Answer> {
    let answer = infer(&Client::new(), base, &Holdout::load()?.images[0]).await?;
    ensure!(answer.bundle == bundle, "{} answered, not {bundle}", answer.bundle);
    Ok(answer)
}
