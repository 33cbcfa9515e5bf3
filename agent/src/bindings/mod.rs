//! Inputs that reach a model without a client, and where its answers go: MQTT, folders, lines of JSON.
//!
//! [`config`] says what there is, `read` takes it from the settings with every mistake named. A binding is one task:
//! a source ([`source`]) fills a bounded queue that drops its oldest (or, where inputs can wait by themselves, is read
//! one by one), `worker` asks the model on the same path as every client ([`crate::serving::local`]) and hands the
//! answer to the sink ([`sink`]). [`counts`] is what status and metrics show of it.

pub mod config;
mod counts;
pub mod lines;
mod mqtt;
pub mod pace;
mod queue;
mod read;
pub mod recording;
mod sink;
mod source;
mod worker;

pub use config::{Binding, Sink, Source};
pub(crate) use read::read;

use crate::serving::http::ServingState;
use counts::{BindingStatus, Counts};
use edgefleet_shared::ids::DeviceId;
use sink::Outlet;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::Worker;

/// All bindings of an agent, not yet at work.
pub struct Bindings {
    all: Vec<(Arc<Binding>, Arc<Counts>)>,
    state: ServingState,
    device: DeviceId,
    body_limit: usize,
}

impl Bindings {
    /// Adds them to status and metrics of `state`. `body_limit`: bytes of the largest input.
    pub fn new(bindings: Vec<Binding>, state: ServingState, device: DeviceId, body_limit: usize) -> Self {
        let all: Vec<_> = bindings
            .into_iter()
            .map(|binding| {
                let counts = Arc::new(Counts::new(&binding));
                (Arc::new(binding), counts)
            })
            .collect();
        state.add_status(Arc::new(BindingStatus(all.clone())));
        Self { all, state, device, body_limit }
    }

    /// Works until `stop`. An input in work then is given up; one of a folder stays there. Ends earlier only by a
    /// panic of a binding: then the agent is to be started whole.
    pub async fn run(self, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        for (binding, counts) in self.all {
            let one = live(binding, counts, self.state.clone(), self.device.clone(), self.body_limit);
            let stop = stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = one => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            if ended.is_err() {
                return;
            }
        }
        stop.cancelled().await;
    }
}

/// One binding, until its source has no more.
async fn live(
    binding: Arc<Binding>,
    counts: Arc<Counts>,
    state: ServingState,
    device: DeviceId,
    body_limit: usize,
) {
    let names = mqtt::Names { device: &device, binding: &binding.name, slot: &binding.slot };
    let (outlet, connection) = Outlet::open(&binding.sink, &names, &counts);
    let worker = Worker::new(binding.clone(), counts.clone(), state, outlet);
    let connected = async {
        match connection {
            Some(connection) => connection.hold().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = source::feed(&binding, &names, worker, body_limit) => {
            tracing::info!(binding = binding.name, "{}", counts.report());
        }
        () = connected => {}
    }
}
