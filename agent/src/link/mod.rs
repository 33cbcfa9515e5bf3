//! The MQTT session with the controller.
//!
//! [`Link`] owns a task that connects, subscribes, passes messages on and comes back after every
//! loss. Nothing here is believed to have arrived: the broker's acknowledgement means "the broker has
//! it". Whoever publishes says the whole state again after [`LinkEvent::Connected`]; telemetry waits
//! for the controller's own acknowledgement ([`sender`]).
//!
//! Every session gets a client of its own. `rumqttc` 0.25 keeps packets of a lost session and can
//! livelock on them, does not subscribe again and cuts packets at 10 KiB; with nothing carried over,
//! none of that can happen.

pub mod backoff;
pub mod budget;
pub mod command;
pub mod sender;
mod session;

use bytes::Bytes;
use edgefleet_shared::{
    ids::{BootId, DeviceId},
    message::{MESSAGE_SCHEMA, Presence},
    topics::{Channel, MAX_PAYLOAD_BYTES},
};
use parking_lot::RwLock;
use rumqttc::AsyncClient;
pub use rumqttc::QoS;
use rustls::ClientConfig;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

/// Events that may wait for their consumer: a window of blocks and the control messages.
const EVENTS: usize = 64;
/// Longest time a publish waits for room in the queue of a live session.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(10);

/// Where and as whom to connect.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    pub host: String,
    pub port: u16,
    pub device: DeviceId,
    pub boot: BootId,
    pub keep_alive: Duration,
}

/// What came from the controller, or became of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connected and subscribed. Counted from 1.
    Connected {
        session: u64,
    },
    Disconnected {
        reason: String,
    },
    Desired(Bytes),
    Blocks(Bytes),
    Command(Bytes),
    Ack(Bytes),
    Label(Bytes),
    TrustHead(Bytes),
}

/// Why a message was not handed to the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkDown {
    #[error("not connected")]
    Offline,
    #[error("the connection did not take a message within {} s", PUBLISH_PATIENCE.as_secs())]
    Stuck,
    #[error("a message of {found} bytes on `{channel}`, at most {MAX_PAYLOAD_BYTES} are allowed")]
    TooLarge { channel: Channel, found: usize },
}

/// Counters of the link since the start.
#[derive(Debug, Default)]
pub struct LinkStats {
    pub connects: AtomicU64,
    pub takeovers: AtomicU64,
    /// Messages that could not be understood, on any topic.
    pub malformed: AtomicU64,
    /// Messages nobody took in time.
    pub overflowed: AtomicU64,
}

struct Shared {
    config: LinkConfig,
    /// The client of the session that lives now, if one does.
    current: RwLock<Option<AsyncClient>>,
    stats: LinkStats,
    tls: watch::Sender<Arc<ClientConfig>>,
    /// `Some(reason)` asks the task to say good-bye and end.
    stop: watch::Sender<Option<String>>,
}

/// Publishes, reconnects, closes. Cheap to clone.
#[derive(Clone)]
pub struct LinkHandle(Arc<Shared>);

/// The task behind a [`LinkHandle`].
pub struct Link;

impl Link {
    /// Starts connecting, for ever, until [`LinkHandle::close`]. The task ends by itself when the
    /// receiver is dropped.
    pub fn start(
        config: LinkConfig,
        tls: Arc<ClientConfig>,
    ) -> (LinkHandle, mpsc::Receiver<LinkEvent>, JoinHandle<()>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            config,
            current: RwLock::new(None),
            stats: LinkStats::default(),
            tls: watch::Sender::new(tls),
            stop: watch::Sender::new(None),
        });
        let task = tokio::spawn(session::keep_connected(shared.clone(), events));
        (LinkHandle(shared), receiver, task)
    }
}

impl LinkHandle {
    /// Hands a message to the session that lives now. `Ok` means it is on its way, not that it came.
    ///
    /// # Errors
    /// [`LinkDown`], within 10 s.
    pub async fn publish(
        &self,
        channel: Channel,
        payload: impl Into<Bytes>,
        retain: bool,
        qos: QoS,
    ) -> Result<(), LinkDown> {
        let payload = payload.into();
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(LinkDown::TooLarge { channel, found: payload.len() });
        }
        let client = self.0.current.read().clone().ok_or(LinkDown::Offline)?;
        let topic = channel.of(&self.0.config.device);
        match tokio::time::timeout(PUBLISH_PATIENCE, client.publish_bytes(topic, qos, retain, payload)).await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(LinkDown::Offline), // the session ended meanwhile
            Err(_) => Err(LinkDown::Stuck),
        }
    }

    pub fn is_connected(&self) -> bool {
        self.0.current.read().is_some()
    }

    /// Ends the session and connects again at once, as whoever `tls` says.
    pub fn reconnect(&self, tls: Arc<ClientConfig>) {
        self.0.tls.send_replace(tls);
    }

    /// Publishes `offline` with this reason, disconnects and ends the task; await its handle.
    pub fn close(&self, reason: &str) {
        self.0.stop.send_replace(Some(reason.to_owned()));
    }

    /// Counts and logs a message that could not be understood. Never more than that.
    pub fn malformed(&self, channel: &str, error: &dyn std::fmt::Display) {
        self.0.stats.malformed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(channel, %error, "a message from the controller was not understood");
    }

    pub fn stats(&self) -> &LinkStats {
        &self.0.stats
    }
}

impl LinkConfig {
    fn presence(&self, online: bool, reason: &str) -> Vec<u8> {
        let presence = Presence {
            schema: MESSAGE_SCHEMA,
            device: self.device.clone(),
            boot: self.boot,
            online,
            reason: reason.to_owned(),
        };
        serde_json::to_vec(&presence).unwrap_or_default() // plain data: cannot fail
    }
}
