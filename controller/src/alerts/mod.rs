//! Alerts: what happened reaches people by webhook and mail, at least once, also over restarts.
//!
//! | file | does |
//! |---|---|
//! | `event` | what happened, in words and numbers |
//! | `channel`, `settings` | who wants to hear what, from the server's settings |
//! | `schedule`, `signature` | when to try again and when to give up; how a webhook proves its origin |
//! | `digest` | which alerts go out as one message (pure) |
//! | `delivery`, `queue` | documents of alerts on their way |
//! | `sender`, `webhook`, `outward`, `email` | one try |
//! | `sources` | findings and rollouts in the words of alerts |
//! | `http` | routes |
//!
//! A part that has something to say either adds [`outbox`] to the transaction that makes it true, or calls
//! [`Alerts::raise`]. Nothing is sent before it is durable, and no receiver can hold up another.

mod channel;
mod delivery;
mod digest;
mod email;
mod event;
pub mod http;
pub(crate) mod outward;
mod queue;
mod schedule;
mod sender;
pub mod settings;
mod signature;
pub mod sources;
#[cfg(test)]
mod tests;
mod webhook;

pub use channel::{Channel, ChannelName, ChannelNameError, Email, Secret, SmtpTls, Wants, Way, Webhook};
pub use delivery::RAISED;
pub use delivery::{Delivery, DeliveryState, Outcome};
pub use event::{AlertEvent, AlertKind, Severity, Subject, UnknownWord};
pub use queue::outbox;
pub use settings::AlertSettings;

use crate::{
    api::metrics::{MetricKind, MetricsText},
    clock::Clock,
    store::{FleetStore, StoreError},
};
use edgefleet_shared::time::Timestamp;
use parking_lot::Mutex;
use queue::Queue;
use sender::Sender;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// How often to look for what was raised inside a transaction, which tells nobody.
const LOOK: Duration = Duration::from_secs(2);
/// Longest sleep of a channel; a clock that jumps is noticed after it.
const LONGEST: Duration = Duration::from_secs(60);
/// After so many failures in a row a channel rests, and so does what else is due for it.
const FAILURES_IN_A_ROW: u32 = 3;
const REST: Duration = Duration::from_secs(30);
/// After the store failed.
const AFTER_ERROR: Duration = Duration::from_secs(5);

/// Why alerts cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum AlertsError {
    #[error("alert channel `{name}` cannot be used: {reason}")]
    Channel { name: ChannelName, reason: String },
    #[error("could not read the alerts that wait")]
    Store(#[from] StoreError),
}

/// Why no test was made.
#[derive(Debug, thiserror::Error)]
pub enum TestError {
    #[error("there is no alert channel `{name}`; known are: {known}")]
    NoSuchChannel { name: String, known: String },
    #[error("the server has no alert channels")]
    NoChannels,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where other parts say what happened. Cheap to clone.
#[derive(Clone)]
pub struct Alerts(Arc<Inner>);

struct Inner {
    queue: Queue,
    strands: Vec<Strand>,
    raised: Notify,
    clock: Clock,
}

/// One channel at work.
struct Strand {
    channel: Channel,
    sender: Sender,
    wake: Notify,
    /// When something of a source was last sent. Forgotten with the process: then the first goes at once again.
    told: Mutex<BTreeMap<digest::Source, Timestamp>>,
    waiting: AtomicU64,
    delivered: AtomicU64,
    failed: AtomicU64,
    dead: AtomicU64,
}

/// How one channel took a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Tested {
    pub channel: ChannelName,
    pub way: &'static str,
    pub target: String,
    pub outcome: Outcome,
}

/// A channel and how it does.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelStatus {
    pub name: ChannelName,
    pub way: &'static str,
    pub target: String,
    pub wants: Wants,
    pub waiting: u64,
}

impl Alerts {
    /// # Errors
    /// [`AlertsError`].
    pub async fn open(
        store: Arc<dyn FleetStore>,
        settings: AlertSettings,
        clock: Clock,
    ) -> Result<Self, AlertsError> {
        let mut strands = Vec::new();
        for channel in settings.channels {
            let sender = Sender::new(&channel)
                .map_err(|reason| AlertsError::Channel { name: channel.name.clone(), reason })?;
            strands.push(Strand::new(channel, sender));
        }
        let queue = Queue::new(store);
        let known: Vec<_> = strands.iter().map(|strand| &strand.channel).collect();
        let abandoned = queue.abandon(&known, clock()).await?;
        if abandoned > 0 {
            tracing::warn!(abandoned, "alerts waited for channels that are not configured any more");
        }
        for strand in &strands {
            let name = Some(strand.channel.name.as_str());
            let waiting = queue.list(DeliveryState::Pending, name).await?.len();
            strand.waiting.store(waiting as u64, Relaxed);
        }
        Ok(Self(Arc::new(Inner { queue, strands, raised: Notify::new(), clock })))
    }

    /// Takes an alert in. It is durable when this returns; delivering it is not waited for. An occurrence that
    /// was raised before is not sent again.
    ///
    /// # Errors
    /// [`StoreError`]; nobody will hear of it then.
    pub async fn raise(&self, event: AlertEvent) -> Result<(), StoreError> {
        tracing::info!(id = event.id, kind = %event.kind, severity = %event.severity, title = event.title, "alert.raise");
        self.0.queue.raise(&event).await?;
        self.0.raised.notify_one();
        Ok(())
    }

    /// Delivers until `stop` is cancelled; a try that is under way then is made again by the next process.
    pub async fn run(self, stop: CancellationToken) {
        let mut parts = JoinSet::new();
        for at in 0..self.0.strands.len() {
            let (own, stop) = (self.clone(), stop.clone());
            parts.spawn(async move {
                let Some(strand) = own.0.strands.get(at) else { return };
                tokio::select! {
                    () = own.deliver(strand) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
        tokio::select! {
            () = self.route() => {}
            () = stop.cancelled() => {}
        }
        parts.shutdown().await;
    }

    async fn route(&self) {
        loop {
            if let Err(error) = self.route_once().await {
                tracing::error!(%error, "alert.route");
                tokio::time::sleep(AFTER_ERROR).await;
            }
            tokio::select! {
                () = self.0.raised.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Gives what was raised to its channels.
    async fn route_once(&self) -> Result<(), StoreError> {
        let channels: Vec<_> = self.0.strands.iter().map(|strand| &strand.channel).collect();
        let routed = self.0.queue.route(&channels, (self.0.clock)()).await?;
        for name in &routed.dropped {
            if let Some(strand) = self.strand(name.as_str()) {
                strand.dead.fetch_add(1, Relaxed);
                tracing::error!(channel = %name, "alert.drop: too many wait for it");
            }
        }
        if routed.queued > 0 {
            self.0.strands.iter().for_each(|strand| strand.wake.notify_one());
        }
        Ok(())
    }

    async fn deliver(&self, strand: &Strand) {
        loop {
            let next = match self.pass(strand).await {
                Ok(next) => next.map_or(LONGEST, |at| at.since((self.0.clock)())),
                Err(error) => {
                    tracing::error!(channel = %strand.channel.name, %error, "alert.deliver");
                    AFTER_ERROR
                }
            };
            tokio::select! {
                () = strand.wake.notified() => {}
                () = tokio::time::sleep(next.clamp(Duration::from_millis(100), LONGEST)) => {}
            }
        }
    }

    /// Tries what is due for one channel, the oldest first. Returns when there is something to do again.
    async fn pass(&self, strand: &Strand) -> Result<Option<Timestamp>, StoreError> {
        let name = &strand.channel.name;
        let pending = self.0.queue.list(DeliveryState::Pending, Some(name.as_str())).await?;
        strand.waiting.store(pending.len() as u64, Relaxed);
        let (told, window) = (strand.told.lock().clone(), strand.channel.digest);
        let digest::Plan { now: batches, mut next } = digest::plan(pending, &told, window, (self.0.clock)());
        let mut in_a_row = 0;
        let mut wait_for = |at: Timestamp| next = Some(next.map_or(at, |next| next.min(at)));
        for mut members in batches {
            let now = (self.0.clock)();
            if in_a_row >= FAILURES_IN_A_ROW {
                wait_for(now + REST);
                continue;
            }
            let Some(mut shown) = members.first().cloned() else { continue };
            let source = digest::source_of(&shown.event);
            if let Some(event) = digest::message(&members, shown.raised) {
                if shown.digest.is_none() {
                    self.0.queue.bind(name, &mut members, &event.id).await?;
                }
                shown.event = event;
            }
            let tried = strand.sender.send(&shown, now).await;
            in_a_row = if tried.outcome.ok { 0 } else { in_a_row + 1 };
            let now = (self.0.clock)();
            if let Some(source) = source {
                let mut told = strand.told.lock();
                // What a window is over for is first again.
                told.retain(|_, at| *at + window + window > now);
                told.insert(source, now);
            }
            // One wait for all of a message, so that they stay together.
            let jitter = rand::random();
            for delivery in members {
                let after = self.0.queue.settle(name, &delivery, tried.clone(), now, jitter).await?;
                strand.note(&after);
                if after.state == DeliveryState::Pending {
                    wait_for(after.next);
                }
            }
        }
        Ok(next)
    }

    /// Sends a test to one channel or to all, once and at once, past filters and queue.
    ///
    /// # Errors
    /// [`TestError`]; a channel that fails is no error but a [`Tested`].
    pub async fn test(&self, channel: Option<&str>, by: &str) -> Result<Vec<Tested>, TestError> {
        let strands: Vec<_> = match channel {
            Some(name) => vec![self.strand(name).ok_or_else(|| TestError::NoSuchChannel {
                name: name.chars().take(40).collect(),
                known: self.names(),
            })?],
            None => self.0.strands.iter().collect(),
        };
        if strands.is_empty() {
            return Err(TestError::NoChannels);
        }
        let now = (self.0.clock)();
        let occurrence = format!("{now}/{by}/{:x}", rand::random::<u64>());
        let text = format!("{by} asked whether alerts arrive. Nothing has happened to the fleet.");
        let event =
            AlertEvent::new(AlertKind::Test, Severity::Info, now, &occurrence, "A test of Edgefleet", &text);
        let tests = strands.into_iter().map(|strand| self.test_one(strand, event.clone(), now));
        futures::future::try_join_all(tests).await.map_err(TestError::Store)
    }

    async fn test_one(
        &self,
        strand: &Strand,
        event: AlertEvent,
        now: Timestamp,
    ) -> Result<Tested, StoreError> {
        let name = &strand.channel.name;
        let mut delivery = Delivery::new(name, event, now);
        let tried = strand.sender.send(&delivery, now).await;
        delivery.tries = 1;
        delivery.state = if tried.outcome.ok { DeliveryState::Delivered } else { DeliveryState::Dead };
        delivery.next = (self.0.clock)();
        delivery.last = Some(tried.outcome.clone());
        self.0.queue.put(name, &delivery).await?;
        strand.note(&delivery);
        Ok(Tested {
            channel: name.clone(),
            way: strand.channel.way.word(),
            target: strand.channel.way.target(),
            outcome: tried.outcome,
        })
    }

    /// The newest first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(
        &self,
        state: Option<DeliveryState>,
        channel: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError> {
        let mut all = Vec::new();
        for one in [DeliveryState::Pending, DeliveryState::Delivered, DeliveryState::Dead] {
            if state.is_none_or(|state| state == one) {
                all.extend(self.0.queue.list(one, channel).await?);
            }
        }
        all.sort_by(|a, b| (b.event.at, &b.event.id, &b.channel).cmp(&(a.event.at, &a.event.id, &a.channel)));
        all.truncate(limit);
        Ok(all)
    }

    pub fn channels(&self) -> Vec<ChannelStatus> {
        let status = |strand: &Strand| ChannelStatus {
            name: strand.channel.name.clone(),
            way: strand.channel.way.word(),
            target: strand.channel.way.target(),
            wants: strand.channel.wants.clone(),
            waiting: strand.waiting.load(Relaxed),
        };
        self.0.strands.iter().map(status).collect()
    }

    fn strand(&self, name: &str) -> Option<&Strand> {
        self.0.strands.iter().find(|strand| strand.channel.name.as_str() == name)
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.0.strands.iter().map(|strand| strand.channel.name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// For `/metrics`. Labels are the names of channels, at most 16.
    pub fn metrics(&self, text: &mut MetricsText) {
        let strands = &self.0.strands;
        let family = "edgefleet_alerts_pending";
        text.family(family, MetricKind::Gauge, "Alerts that wait to be delivered, by channel.");
        for strand in strands {
            text.sample(family, &[("channel", strand.channel.name.as_str())], strand.waiting.load(Relaxed));
        }
        let family = "edgefleet_alert_tries_total";
        text.family(family, MetricKind::Counter, "Tries to deliver alerts since the start.");
        for strand in strands {
            let name = strand.channel.name.as_str();
            for (outcome, count) in [("ok", &strand.delivered), ("failed", &strand.failed)] {
                text.sample(family, &[("channel", name), ("outcome", outcome)], count.load(Relaxed));
            }
        }
        let family = "edgefleet_alerts_dead_total";
        text.family(family, MetricKind::Counter, "Alerts given up since the start, by channel.");
        for strand in strands {
            text.sample(family, &[("channel", strand.channel.name.as_str())], strand.dead.load(Relaxed));
        }
    }
}

impl Strand {
    fn new(channel: Channel, sender: Sender) -> Self {
        let zero = AtomicU64::default;
        Self {
            channel,
            sender,
            wake: Notify::new(),
            told: Mutex::default(),
            waiting: zero(),
            delivered: zero(),
            failed: zero(),
            dead: zero(),
        }
    }

    /// Counts and logs what a try did.
    fn note(&self, after: &Delivery) {
        let (channel, id) = (&self.channel.name, after.event.id.as_str());
        let error = after.last.as_ref().and_then(|last| last.error.as_deref()).unwrap_or("");
        match after.state {
            DeliveryState::Delivered => {
                self.delivered.fetch_add(1, Relaxed);
                tracing::info!(%channel, id, tries = after.tries, "alert.delivered");
            }
            DeliveryState::Pending => {
                self.failed.fetch_add(1, Relaxed);
                tracing::warn!(%channel, id, tries = after.tries, next = %after.next, error, "alert.retry");
            }
            DeliveryState::Dead => {
                self.failed.fetch_add(1, Relaxed);
                self.dead.fetch_add(1, Relaxed);
                tracing::error!(%channel, id, tries = after.tries, error, "alert.dead");
            }
        }
        // Tests never wait; everything else that is over did.
        if after.state != DeliveryState::Pending && after.event.kind != AlertKind::Test {
            let _ = self.waiting.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_sub(1)));
        }
    }
}
