//! Asks the model, one input at a time, and hands the answers over.

use super::{
    config::{Binding, BodyKind},
    counts::{Counts, Side},
    pace::Rate,
    queue::{Item, Queue},
    sink::{DeliverError, Outlet},
};
use crate::serving::{
    http::ServingState,
    local::{AskError, Body, Room, ask},
};
use bytes::Bytes;
use serde_json::json;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Longest pause before a busy model is asked again.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// Before an answer that was not taken is offered again.
const DELIVERY_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Worker {
    binding: Arc<Binding>,
    counts: Arc<Counts>,
    state: ServingState,
    outlet: Outlet,
    rate: Rate,
    started: Instant,
}

/// What became of an input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Answered(Bytes),
    /// It never will be.
    Failed(String),
    NotServed(String),
    /// A newer one is wanted in its place.
    GivenUp,
}

impl Worker {
    pub(super) fn new(
        binding: Arc<Binding>,
        counts: Arc<Counts>,
        state: ServingState,
        outlet: Outlet,
    ) -> Self {
        let rate = Rate::new(binding.between);
        Self { binding, counts, state, outlet, rate, started: Instant::now() }
    }

    pub(super) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Memory for inputs, out of what all requests may hold; without any, why.
    pub(super) fn rooms(&self) -> impl Fn(usize) -> Result<Room, String> + Send + Sync + use<> {
        let state = self.state.clone();
        move |bytes| Room::of(&state, bytes).map_err(|refusal| refusal.to_string())
    }

    /// A payload as the binding takes it.
    pub(super) fn body(&self, payload: Bytes) -> Body {
        body(&self.binding, payload)
    }

    /// Works until the queue is closed and empty.
    pub(super) async fn drain(mut self, queue: &Queue) {
        while let Some(item) = queue.pop().await {
            self.counts.queued.store(queue.len(), Ordering::Relaxed);
            let wait = self.rate.wait(self.started.elapsed());
            if !wait.is_zero() {
                sleep(wait).await;
            }
            let verdict = self.ask(&item, || queue.is_full()).await;
            if verdict != Verdict::GivenUp {
                self.conclude(item.id.as_deref(), verdict, false).await;
            }
        }
    }

    /// Keeps the rate, then asks until there is an answer: for inputs that wait where they are.
    pub(super) async fn ask_patiently(&mut self, item: &Item) -> Verdict {
        let wait = self.rate.wait(self.started.elapsed());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        self.ask(item, || false).await
    }

    /// Asks again while the model has no room, unless `is_crowded` says that newer inputs need this one's place.
    async fn ask(&self, item: &Item, is_crowded: impl Fn() -> bool) -> Verdict {
        let (slot, form) = (self.binding.slot.as_str(), self.binding.answer);
        let started = Instant::now();
        loop {
            match ask(&self.state, slot, item.body.clone(), item.id.clone(), form).await {
                Ok(answer) => {
                    self.counts.answered(started.elapsed());
                    return Verdict::Answered(answer);
                }
                Err(AskError::Busy { retry_after, .. }) => {
                    sleep(retry_after.min(BUSY_PAUSE)).await;
                    if is_crowded() {
                        self.counts.dropped(1);
                        return Verdict::GivenUp;
                    }
                }
                Err(AskError::NotServed(why)) => return Verdict::NotServed(why),
                Err(AskError::Failed(why)) => return Verdict::Failed(why),
            }
        }
    }

    /// Delivers an answer or, if that is wanted, why there is none. `is_kept`: the input still exists, so the answer is
    /// offered until it is taken.
    pub(super) async fn conclude(&mut self, id: Option<&str>, verdict: Verdict, is_kept: bool) {
        let answer = match verdict {
            Verdict::GivenUp => return,
            Verdict::Answered(answer) => answer,
            Verdict::Failed(why) | Verdict::NotServed(why) => {
                self.counts.failed(&why);
                if !self.binding.tells_errors {
                    return;
                }
                refusal(&self.binding, id, &why)
            }
        };
        loop {
            match self.outlet.deliver(id, answer.clone()).await {
                Ok(()) => return self.counts.up(Side::Sink),
                Err(DeliverError::Never(why)) => return self.counts.undelivered(&why),
                Err(DeliverError::Later(why)) => {
                    self.counts.down(Side::Sink, &why);
                    if !is_kept {
                        return self.counts.undelivered(&why);
                    }
                    sleep(DELIVERY_PAUSE).await;
                }
            }
        }
    }
}

/// A payload as the binding takes it.
pub(super) fn body(binding: &Binding, payload: Bytes) -> Body {
    match binding.body {
        BodyKind::Json => Body::Json(payload),
        BodyKind::Bytes => Body::Raw(payload),
    }
}

fn refusal(binding: &Binding, id: Option<&str>, why: &str) -> Bytes {
    let mut refusal = json!({"slot": binding.slot, "error": why});
    if let Some(id) = id {
        refusal["id"] = id.into();
    }
    refusal.to_string().into()
}
