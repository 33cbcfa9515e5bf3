//! The seam between serving and the worker pool.

use crate::engine::{LoadedModel, RunError};
use edgefleet_shared::tensor::Tensor;
use futures::future::BoxFuture;
use std::{sync::Arc, time::Duration};

/// Runs one request on some worker.
pub trait Inference: Send + Sync {
    /// Inputs and outputs as in [`LoadedModel::run`].
    fn run(
        &self,
        model: Arc<dyn LoadedModel>,
        inputs: Vec<Tensor>,
    ) -> BoxFuture<'_, Result<Answer, InferenceError>>;

    /// Requests that wait for a worker.
    fn waiting(&self) -> usize;
}

/// What came of a request and where its time went.
#[derive(Debug)]
pub struct Answer {
    pub outputs: Vec<Tensor>,
    /// Waiting for a worker.
    pub queue: Duration,
    /// In the engine.
    pub infer: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferenceError {
    #[error("the queue for inference is full")]
    QueueFull { retry_after: Duration },
    #[error("the agent is stopping")]
    Stopped,
    #[error(transparent)]
    Run(#[from] RunError),
}
