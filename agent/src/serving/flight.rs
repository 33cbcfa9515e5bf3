//! One inference from tensors to tensors, whichever way it came: counted, run in the pool, mirrored to the shadow.

use super::{
    cache::Key,
    error::ApiError,
    oip::Urgency,
    shadow::{ActiveAnswer, Mirror},
    slots::Active,
    state::ServingState,
    stats::Spent,
};
use crate::{
    capture::Capturing,
    engine::{
        RunError,
        pool::{Answer, Order, PoolError},
    },
    monitor::{Class, ErrorCode, Observation, Outcome, Recorder},
};
use axum::http::StatusCode;
use edgefleet_shared::tensor::Tensor;
use std::{sync::Arc, time::Instant};

/// One request in the counts, whatever becomes of it: a client that goes away drops it early.
pub(super) struct InFlight {
    pub(super) active: Arc<Active>,
    state: ServingState,
    started: Instant,
    rows: u64,
    pub(super) outcome: Outcome,
    pub(super) spent: Spent,
    classes: Vec<Class>,
}

impl InFlight {
    pub(super) fn new(active: Arc<Active>, state: &ServingState, started: Instant) -> Self {
        active.stats.enter();
        Self {
            active,
            state: state.clone(),
            started,
            rows: 0,
            outcome: Outcome::Failed(ErrorCode::Cancelled),
            spent: Spent::default(),
            classes: Vec::new(),
        }
    }

    /// Runs the model, or remembers what it said, and tells monitor and shadow of it. The timeout counts from the
    /// start of the request; after it nobody waits any more, and a request still in the queue is dropped.
    ///
    /// # Errors
    /// With what is to be counted.
    pub(super) async fn compute(
        &mut self,
        inputs: Vec<Tensor>,
        Urgency { timeout, priority }: Urgency,
    ) -> Result<Answered, Failed> {
        let (active, state) = (self.active.clone(), self.state.clone());
        self.rows = rows(&active, &inputs);
        let too_late = || {
            let us = timeout.unwrap_or_default().as_micros();
            let why = format!("the request was not answered within its timeout of {us} us");
            let error = ApiError::new(StatusCode::GATEWAY_TIMEOUT, why);
            (Outcome::Failed(ErrorCode::Cancelled), error)
        };
        let deadline = timeout.and_then(|timeout| self.started.checked_add(timeout));
        // Timers are coarse: what is late already is not even queued.
        if deadline.is_some_and(|at| at <= Instant::now()) {
            return Err(too_late());
        }
        let mut pictures = Vec::new();
        let look = active.recorder.look(&inputs);
        let capturing = state.0.captures.get().and_then(|c| c.begin(&active, &inputs, self.rows));
        let mut mirror = None;
        let asked = Instant::now();
        let cache = state.0.cache.as_ref().map(|cache| (cache, Key::of(&active.served.digest, &inputs)));
        let known = cache.as_ref().and_then(|(cache, key)| cache.get(key));
        self.spent.cache = cache.is_some().then(|| (known.is_some(), asked.elapsed()));
        let outputs = match known {
            Some(outputs) => outputs,
            None => {
                mirror = active.shadow().and_then(|shadow| shadow.admit(&inputs, self.rows));
                let batching = active.batching(&state.0.config);
                let order = Order { priority, deadline, batching, rows: 0 };
                let running = state.0.pool.run_as(order, active.served.model.clone(), inputs);
                let answer = match deadline {
                    None => running.await,
                    Some(at) => match tokio::time::timeout_at(at.into(), running).await {
                        Ok(answer) => answer,
                        Err(_) => return Err(too_late()),
                    },
                };
                let answer = answer.map_err(|error| match error {
                    PoolError::TooLate => too_late(),
                    error => not_run(error, &active.recorder),
                })?;
                let Answer { outputs, queue, infer, shared_rows, leads, aside } = answer;
                (self.spent.steps, pictures) = (aside.steps, aside.pictures);
                (self.spent.queue, self.spent.infer) = (queue, infer);
                (self.spent.shared_rows, self.spent.is_shared) = (shared_rows as u64, !leads);
                // Of a pass with others: no answer to these inputs alone.
                if let Some((cache, key)) = cache.filter(|_| shared_rows == 0) {
                    cache.put(key, &outputs);
                }
                outputs
            }
        };
        if let Some(reader) = &active.classes {
            self.classes = reader.read(&outputs);
        }
        active.recorder.profile(look.as_ref(), &outputs, &self.classes, &pictures);
        let shadow = mirror.as_ref().map(Mirror::recorder);
        let prediction = state.0.monitor.remember(&active.recorder, &self.classes, shadow);
        if let Some(mut mirror) = mirror {
            mirror.tell_disagreements(capturing.as_ref().and_then(Capturing::late));
            let answer = match &active.classes {
                Some(_) if !self.classes.is_empty() => ActiveAnswer::Classes(self.classes.clone()),
                _ => ActiveAnswer::Numbers(outputs.clone()),
            };
            let sequence = prediction.as_ref().map(|id| id.sequence);
            mirror.offer(sequence, answer, state.0.monitor.now().mono_ms);
        }
        if let (Some(capturing), Some(first)) = (capturing, &prediction) {
            let now = state.0.monitor.now();
            let signs = |row| active.recorder.signs(look.as_ref(), &pictures, row);
            capturing.answered(&active, first, &self.classes, &outputs, now, signs);
        }
        let prediction_count = prediction.is_some().then_some(self.classes.len());
        let prediction_id = prediction.map(|id| id.to_string());
        Ok(Answered { outputs, prediction_id, prediction_count })
    }
}

/// What the model returned, and under which ids its rows can be labelled.
pub(super) struct Answered {
    pub(super) outputs: Vec<Tensor>,
    /// Of row 0.
    pub(super) prediction_id: Option<String>,
    pub(super) prediction_count: Option<usize>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.spent.total = self.started.elapsed();
        let now = self.state.0.monitor.now();
        self.active.stats.leave();
        self.active.stats.record(self.rows, self.outcome, self.spent, now.wall.as_millis());
        let seen = Observation {
            rows: self.rows,
            outcome: self.outcome,
            queue: self.spent.queue,
            infer: self.spent.infer,
            steps: self.spent.steps,
            pass_rows: self.spent.pass_rows(self.rows),
            total: self.spent.total,
            classes: &self.classes,
        };
        self.active.recorder.record(&seen, now.mono_ms);
    }
}

/// What a request that failed counts as, and what its client is told.
pub(super) type Failed = (Outcome, ApiError);

/// The client's mistake.
pub(super) fn bad(error: impl Into<ApiError>) -> Failed {
    let error = error.into();
    let ours = error.status == StatusCode::INTERNAL_SERVER_ERROR;
    let outcome = match error.status {
        StatusCode::SERVICE_UNAVAILABLE => Outcome::Rejected,
        _ => Outcome::Failed(if ours { ErrorCode::Engine } else { ErrorCode::BadInput }),
    };
    (outcome, error)
}

fn not_run(error: PoolError, recorder: &Recorder) -> Failed {
    match error {
        PoolError::QueueFull { retry_after, .. } => {
            (Outcome::Rejected, ApiError::busy(error.to_string(), retry_after))
        }
        PoolError::TooLate | PoolError::Stopped => {
            let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
            (Outcome::Failed(ErrorCode::Stopped), error)
        }
        PoolError::Run(RunError::BadInput(message)) => {
            recorder.refused(&message);
            bad(ApiError::bad(message))
        }
        PoolError::Run(RunError::Engine(message)) => {
            (Outcome::Failed(ErrorCode::Engine), ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message))
        }
    }
}

/// Heavy work goes to a thread of its own, so that it does not hold up other connections.
pub(super) async fn run<T: Send + 'static>(
    is_heavy: bool,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !is_heavy {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the request could not be handled: {error}"),
        )),
    }
}

/// Inputs in the request: the first dimension of a batched model.
fn rows(active: &Active, inputs: &[Tensor]) -> u64 {
    let batched = active.served.manifest.interface.inputs.iter().find(|spec| spec.shape.first() == Some(&-1));
    let tensor = batched.and_then(|spec| inputs.iter().find(|tensor| tensor.name() == spec.name));
    tensor.and_then(|tensor| tensor.shape().first()).map_or(1, |rows| *rows as u64)
}
