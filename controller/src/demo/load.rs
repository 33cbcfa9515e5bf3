//! Replays held-out images to an agent through the Open Inference Protocol and tells it the truth.
//!
//! Every image belongs to one device, and its label counts once for each bundle that answers and once for
//! each candidate that is compared with it: labels that came again would be evidence of nothing new.

use super::DemoError;
use edgefleet_shared::telemetry::Sketch;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

/// Who says what the truth is: plans count labels of `local:` and this.
pub const SOURCE: &str = "demo";

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
    /// Images whose label told how a candidate did beside the active bundle, by candidate.
    pub compared: BTreeMap<String, u64>,
}

/// The bundle in the shadow whose answers need labels; shared by all loads.
pub type Trial = Arc<Mutex<Option<String>>>;

/// What one load sends and to whom.
pub struct Source {
    /// `http://host:port`
    pub base: String,
    pub model: &'static str,
    pub holdout: Arc<Holdout>,
    /// Indices of the images that are this device's.
    pub images: Vec<usize>,
    /// Between two requests.
    pub pause: Duration,
    pub trial: Trial,
}

/// Load on one agent until stopped.
pub struct Load {
    pub seen: Arc<Mutex<AgentLoad>>,
    stop: Arc<AtomicBool>,
    blurred: Arc<Mutex<Blurred>>,
    task: JoinHandle<()>,
}

/// Whether pictures lose their focus on the way, and what those that did truly show, by prediction.
#[derive(Debug, Default)]
struct Blurred {
    /// Every picture of the data and no labels, instead of the device's own.
    whole: bool,
    on: bool,
    truths: BTreeMap<String, u32>,
}

impl Load {
    /// Sends one image after the other, over and over.
    pub fn start(source: Source) -> Self {
        let seen = Arc::new(Mutex::new(AgentLoad::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let blurred = Arc::new(Mutex::new(Blurred::default()));
        let task = tokio::spawn(run(source, seen.clone(), stop.clone(), blurred.clone()));
        Self { seen, stop, blurred, task }
    }

    /// From now on any picture of the data, drawn by lot, and nobody tells the truth: what devices see is then what
    /// the bundle's baseline was made from, in the same mixture.
    pub fn show_everything(&self) {
        self.blurred.lock().whole = true;
    }

    /// From the next picture on. Nobody tells the truth about blurred ones, but it is remembered.
    pub fn blur(&self, on: bool) {
        self.blurred.lock().on = on;
    }

    /// What a blurred picture shows, by its prediction.
    pub fn truth(&self, prediction: &str) -> Option<u32> {
        self.blurred.lock().truths.get(prediction).copied()
    }

    pub async fn stop(self) -> AgentLoad {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.task.await;
        self.seen.lock().clone()
    }
}

async fn run(
    source: Source,
    seen: Arc<Mutex<AgentLoad>>,
    stop: Arc<AtomicBool>,
    blurred: Arc<Mutex<Blurred>>,
) {
    let Source { base, model, holdout, images, pause, trial } = source;
    // (bundle, image): labelled for it as the active bundle, and as the candidate.
    let (mut told, mut compared) = (BTreeSet::new(), BTreeSet::new());
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).no_proxy().build();
    let Ok(client) = client else { return };
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut draw = images.first().map_or(0, |own| *own as u64);
    for own in images.into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        ticks.tick().await;
        let started = Instant::now();
        let (is_blurred, is_whole) = {
            let blurred = blurred.lock();
            (blurred.on, blurred.whole)
        };
        draw = drawn(draw);
        let at = if is_whole { (draw >> 33) as usize % holdout.images.len() } else { own };
        let image = &holdout.images[at];
        let answer = match is_blurred {
            true => infer(&client, &base, model, &out_of_focus(image)).await,
            false => infer(&client, &base, model, image).await,
        };
        let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let truth = holdout.labels[at];
        let (prediction, bundle) = {
            let mut seen = seen.lock();
            seen.requests += 1;
            match answer {
                Ok(answer) => {
                    seen.bundle.clone_from(&answer.bundle);
                    let own = seen.by_bundle.entry(answer.bundle.clone()).or_default();
                    own.requests += 1;
                    own.correct += u64::from(answer.label == i64::from(truth));
                    own.latency.record_us(took);
                    (answer.prediction, answer.bundle)
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
        if is_blurred {
            blurred.lock().truths.insert(prediction, truth);
            continue;
        }
        if is_whole {
            continue;
        }
        let first = told.insert((bundle, at));
        let wanted = trial.lock().clone().is_some_and(|candidate| !compared.contains(&(candidate, at)));
        if !(first || wanted) {
            continue;
        }
        match label(&client, &base, &prediction, truth).await {
            Ok(candidates) => {
                for candidate in candidates {
                    *seen.lock().compared.entry(candidate.clone()).or_default() += 1;
                    compared.insert((candidate, at));
                }
            }
            Err(error) => {
                let mut seen = seen.lock();
                seen.failed += 1;
                if seen.failures.len() < 5 {
                    seen.failures.push(format!("feedback: {error}"));
                }
            }
        }
    }
}

/// The next number of a sequence that looks drawn by lot: its upper half does. Knuth's MMIX generator (The Art of
/// Computer Programming, volume 2, 3.3.4, line 26).
fn drawn(before: u64) -> u64 {
    before.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

/// Rounds of a 3 by 3 mean: as far out of focus as a lens that came loose.
const ROUNDS: usize = 2;

/// A square picture, blurred; what is beyond its border counts as what is on it.
fn out_of_focus(image: &[f32]) -> Vec<f32> {
    let side = image.len().isqrt().max(1);
    let mut picture = image.to_vec();
    for _ in 0..ROUNDS {
        let before = picture.clone();
        let at = |row: usize, column: usize| before.get(row * side + column).copied().unwrap_or(0.0);
        let near = |x: usize| [x.saturating_sub(1), x, (x + 1).min(side - 1)];
        for (place, pixel) in picture.iter_mut().enumerate() {
            let (row, column) = (place / side, place % side);
            let all = near(row).into_iter().flat_map(|r| near(column).map(|c| at(r, c)));
            *pixel = all.sum::<f32>() / 9.0;
        }
    }
    picture
}

/// Tells the truth about one prediction. Returns the candidates it is compared with too.
async fn label(
    client: &reqwest::Client,
    base: &str,
    prediction: &str,
    truth: u32,
) -> Result<Vec<String>, reqwest::Error> {
    let label = json!({"prediction_id": prediction, "label": truth.to_string(), "source": SOURCE});
    let sent = client.post(format!("{base}/v1/feedback")).json(&label).send().await?;
    let answer: Value = sent.error_for_status()?.json().await?;
    Ok(answer["compared"].as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default())
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
