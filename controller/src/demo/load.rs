//! Replays held-out images to an agent through the Open Inference Protocol and tells it the truth.

use super::DemoError;
use edgefleet_shared::telemetry::Sketch;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Held-out images, never used in training, with their labels.
#[derive(Debug, Deserialize)]
pub struct Holdout {
    pub images: Vec<Vec<f32>>,
    pub labels: Vec<u32>,
}

impl Holdout {
    /// # Errors
    /// [`DemoError::Holdout`] if the file is missing or malformed.
    pub fn load(path: &Path) -> Result<Self, DemoError> {
        let wrong = |reason: String| DemoError::Holdout { path: path.to_owned(), reason };
        let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let holdout: Self = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if holdout.images.is_empty() || holdout.images.len() != holdout.labels.len() {
            return Err(wrong(format!("{} images, {} labels", holdout.images.len(), holdout.labels.len())));
        }
        Ok(holdout)
    }
}

/// What one bundle answered.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    pub requests: u64,
    pub correct: u64,
    pub latency: Sketch,
}

/// What one agent answered.
#[derive(Clone, Debug, Default)]
pub struct AgentLoad {
    pub requests: u64,
    pub failed: u64,
    /// The first few failures, word for word.
    pub failures: Vec<String>,
    pub by_bundle: BTreeMap<String, Answers>,
    /// The bundle that answered last.
    pub bundle: String,
}

/// Load on one agent until stopped.
pub struct Load {
    pub seen: Arc<Mutex<AgentLoad>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Load {
    /// Sends one image every `pause` to `model` at `base` (`http://host:port`), over and over.
    pub fn start(base: String, model: &'static str, holdout: Arc<Holdout>, pause: Duration) -> Self {
        let seen = Arc::new(Mutex::new(AgentLoad::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(run(base, model, holdout, pause, seen.clone(), stop.clone()));
        Self { seen, stop, task }
    }

    pub async fn stop(self) -> AgentLoad {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.task.await;
        self.seen.lock().clone()
    }
}

async fn run(
    base: String,
    model: &'static str,
    holdout: Arc<Holdout>,
    pause: Duration,
    seen: Arc<Mutex<AgentLoad>>,
    stop: Arc<AtomicBool>,
) {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build();
    let Ok(client) = client else { return };
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for at in (0..holdout.images.len()).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        ticks.tick().await;
        let started = Instant::now();
        let answer = infer(&client, &base, model, &holdout.images[at]).await;
        let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let truth = holdout.labels[at];
        let prediction = {
            let mut seen = seen.lock();
            seen.requests += 1;
            match answer {
                Ok(answer) => {
                    seen.bundle.clone_from(&answer.bundle);
                    let own = seen.by_bundle.entry(answer.bundle).or_default();
                    own.requests += 1;
                    own.correct += u64::from(answer.label == i64::from(truth));
                    own.latency.record_us(took);
                    answer.prediction
                }
                Err(error) => {
                    seen.failed += 1;
                    if seen.failures.len() < 5 {
                        seen.failures.push(error);
                    }
                    continue;
                }
            }
        };
        let told = json!({"prediction_id": prediction, "label": truth.to_string()});
        let told = client.post(format!("{base}/v1/feedback")).json(&told).send().await;
        if let Err(error) = told.and_then(reqwest::Response::error_for_status) {
            let mut seen = seen.lock();
            seen.failed += 1;
            if seen.failures.len() < 5 {
                seen.failures.push(format!("feedback: {error}"));
            }
        }
    }
}

struct Answer {
    bundle: String,
    prediction: String,
    label: i64,
}

async fn infer(client: &reqwest::Client, base: &str, model: &str, image: &[f32]) -> Result<Answer, String> {
    let request = json!({
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, image.len()], "data": image}],
        "outputs": [{"name": "label"}],
    });
    let url = format!("{base}/v2/models/{model}/infer");
    let response = client.post(url).json(&request).send().await.map_err(|e| format!("{e:?}"))?;
    let status = response.status();
    let body: Value = response.json().await.map_err(|e| e.to_string())?;
    if !status.is_success() {
        return Err(format!("{status}: {body}"));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let parameters = &body["parameters"];
    let answer = (
        text(&parameters["bundle"]),
        text(&parameters["prediction_id"]),
        body["outputs"][0]["data"][0].as_i64(),
    );
    match answer {
        (Some(bundle), Some(prediction), Some(label)) => Ok(Answer { bundle, prediction, label }),
        _ => Err(format!("an answer without bundle, prediction id or label: {body}")),
    }
}
