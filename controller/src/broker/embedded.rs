//! The broker inside the controller: mqtt5's session and routing code behind our own TLS accept loop.
//!
//! mqtt5's `MqttBroker` is not used: it insists on a listener of its own, and its TLS listener lets one
//! silent peer block all others. Its parts (router, file storage, connection handler) are put together
//! here, so there is no plain-text port.
//!
//! * Only MQTT 3.1.1; QoS 0 and 1; no shared subscriptions.
//! * Retained messages are on disk before the PUBACK and survive kill -9. Sessions are **not** kept:
//!   `clean_session=false` is answered with "no session", because a device reads its desired state again
//!   on every connect, and a reconnecting fleet must not cost a disk write per device.
//! * Certificates named [`super::CONTROLLER_PREFIX`]... may subscribe to anything (debugging with
//!   `mosquitto_sub`) and publish nothing: the controller itself publishes in-process.
//! * Memory per device is bounded by [`QUEUE`] plus [`LANE_MESSAGES`] messages in each of the two
//!   delivery lanes and [`INFLIGHT_MESSAGES`] in flight.

use super::{
    Broker, BrokerError, BrokerEvent, BrokerKind, DisconnectReason, MAX_PACKET_BYTES, Message, Qos,
    limits::{Gate, Place, connection_budget, descriptor_limit},
    registry::Registry,
    routes::Routes,
    session::{Hooks, Hub, Session},
    tls::PeerCertificate,
};
use crate::clock::Clock;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use edgefleet_shared::{
    ids::DeviceId,
    time::Timestamp,
    topics::{self, Channel, MAX_PAYLOAD_BYTES},
};
use mqtt5::broker::{
    auth::AuthProvider,
    client_handler::ClientHandler,
    config::BrokerConfig,
    events::BrokerEventHandler,
    resource_monitor::{ResourceLimits, ResourceMonitor},
    storage::{DynamicStorage, FileBackend, QueueLimits, StorageBackend},
    sys_topics::BrokerStats,
    tls_acceptor::TlsStreamWrapper,
    transport::BrokerTransport,
};
use mqtt5_protocol::{QoS, packet::publish::PublishPacket};
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{broadcast, mpsc},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Time for the TLS handshake; mqtt5 gives CONNECT another 10 s.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time in which an ended session must be gone.
const SESSION_END: Duration = Duration::from_secs(5);
/// Messages in each delivery lane (QoS 0, QoS 1) of one client.
const LANE_MESSAGES: usize = 16;
/// Unacknowledged QoS 1 messages to one client.
const INFLIGHT_MESSAGES: u16 = 16;
/// Overflow queue of one client.
const QUEUE: QueueLimits = QueueLimits { max_messages: 512, max_bytes: 4 * 1024 * 1024 };
/// A device needs six; debuggers a few more.
const SUBSCRIPTIONS: usize = 32;
/// How often what gone clients left behind is swept.
const SWEEP: Duration = Duration::from_secs(600);
/// Longest sleep before a certificate's end is compared with the clock again (clocks jump).
const EXPIRY_LOOK: Duration = Duration::from_secs(60);

/// Answer of [`Admission::admit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    /// The reason is logged, the client learns "not authorized".
    Refuse(String),
}

/// The fleet's say about a certificate that our CA issued: is the device known, is the serial revoked.
pub trait Admission: Send + Sync {
    /// `certificate_serial`: big-endian, without leading zero bytes. Called at every CONNECT, on the connection's task: in-memory look-ups only.
    fn admit(&self, identity: &DeviceId, certificate_serial: &[u8]) -> Verdict;
}

/// How to start the embedded broker.
pub struct EmbeddedParams {
    /// Folder for retained messages; locked against a second process.
    pub data_dir: PathBuf,
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Made by [`super::tls::mqtt_server_config`]; a stored value is used from the next handshake on.
    pub tls: Arc<ArcSwap<rustls::ServerConfig>>,
    pub admission: Arc<dyn Admission>,
    pub clock: Clock,
    /// Wanted limit; the descriptor limit of the process lowers it.
    pub max_connections: Option<usize>,
    /// Devices behind one NAT share an address.
    pub max_connections_per_address: Option<usize>,
    /// Capacity of the event channel, at least 4; see [`super::EVENT_CAPACITY`].
    pub event_capacity: usize,
}

/// The embedded broker. Dropping it stops accepting; call [`Broker::stop`] to end cleanly.
pub struct EmbeddedBroker {
    hub: Arc<Hub>,
    storage: Arc<DynamicStorage>,
    address: SocketAddr,
    max_connections: usize,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl EmbeddedBroker {
    /// Opens storage and port. Stored `reported` and `presence` messages are the first events; devices
    /// are accepted after the receiver has taken them.
    ///
    /// # Errors
    /// [`BrokerError::Start`] naming the folder or the address.
    pub async fn start(params: EmbeddedParams) -> Result<(Self, mpsc::Receiver<BrokerEvent>), BrokerError> {
        let storage = open_storage(&params.data_dir).await?;
        let routes =
            Routes::load(Arc::clone(&storage), QUEUE).await.map_err(|source| BrokerError::Start {
                action: format!("loading retained messages from `{}`", params.data_dir.display()),
                source: source.into(),
            })?;
        let bind_error = |source: std::io::Error| BrokerError::Start {
            action: format!("listening on {}", params.listen),
            source: source.into(),
        };
        let listener = TcpListener::bind(params.listen).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;

        let (events, receiver) = mpsc::channel(params.event_capacity.max(4));
        let hub =
            Arc::new(Hub { routes, registry: Registry::default(), events, admission: params.admission });
        let max_connections = connection_budget(params.max_connections, descriptor_limit());
        let stopping = CancellationToken::new();
        let acceptor = Acceptor {
            hub: Arc::clone(&hub),
            tls: params.tls,
            clock: params.clock,
            gate: Gate::new(max_connections, params.max_connections_per_address),
            parts: Arc::new(Parts::new(address)),
            tasks: TaskTracker::new(),
        };
        let tasks = acceptor.tasks.clone();
        tasks.spawn(stopping.clone().run_until_cancelled_owned(acceptor.run(listener)));
        tasks
            .spawn(stopping.clone().run_until_cancelled_owned(sweep(Arc::clone(&hub), Arc::clone(&storage))));
        tracing::info!(%address, max_connections, "broker.start");
        Ok((Self { hub, storage, address, max_connections, stopping, tasks }, receiver))
    }

    /// Where it really listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections it takes before refusing more.
    pub fn max_connections(&self) -> usize {
        self.max_connections
    }

    async fn end(&self, device: &DeviceId, reason: DisconnectReason) -> Result<(), BrokerError> {
        let Some(session) = self.hub.registry.session(device) else { return Ok(()) };
        session.end(reason);
        tokio::time::timeout(SESSION_END, session.ended()).await.map_err(|_| BrokerError::StillConnected {
            device: device.clone(),
            seconds: SESSION_END.as_secs(),
        })
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.stopping.cancel();
        for session in self.hub.registry.stop() {
            session.end(DisconnectReason::Stopped);
        }
    }
}

#[async_trait]
impl Broker for EmbeddedBroker {
    async fn publish(&self, message: Message) -> Result<(), BrokerError> {
        message.check()?;
        let qos = match message.qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
        };
        let packet = PublishPacket::new(message.topic, message.payload, qos).with_retain(message.retain);
        self.hub.routes.to_devices(&packet).await;
        Ok(())
    }

    async fn kick(&self, device: &DeviceId) -> Result<(), BrokerError> {
        self.end(device, DisconnectReason::Kicked).await
    }

    async fn revoke(&self, device: &DeviceId) -> Result<(), BrokerError> {
        self.hub.registry.revoke(device);
        self.end(device, DisconnectReason::Revoked).await
    }

    async fn allow(&self, device: &DeviceId) -> Result<(), BrokerError> {
        self.hub.registry.allow(device);
        Ok(())
    }

    async fn stop(&self) {
        self.stopping.cancel();
        for session in self.hub.registry.stop() {
            session.end(DisconnectReason::Stopped);
        }
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(4), self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "broker connections did not end in time");
        }
        if let Err(error) = self.storage.shutdown().await {
            tracing::error!(%error, "broker storage was not closed cleanly");
        }
    }

    fn kind(&self) -> BrokerKind {
        BrokerKind::Embedded
    }

    fn ready(&self) -> Result<(), String> {
        if self.stopping.is_cancelled() { Err("the broker is stopping".into()) } else { Ok(()) }
    }

    fn connected(&self) -> Option<usize> {
        Some(self.hub.registry.connected())
    }
}

async fn open_storage(dir: &Path) -> Result<Arc<DynamicStorage>, BrokerError> {
    let backend = FileBackend::with_queue_limits(dir, QUEUE).await.map_err(|source| BrokerError::Start {
        action: format!("opening its storage `{}`", dir.display()),
        source: source.into(),
    })?;
    Ok(Arc::new(DynamicStorage::File(backend)))
}

/// The parts of mqtt5 that all connections share and that need no thought.
struct Parts {
    config: BrokerConfig,
    stats: Arc<BrokerStats>,
    monitor: Arc<ResourceMonitor>,
    /// mqtt5's own stop signal; ours is per session.
    never_stops: broadcast::Sender<()>,
}

impl Parts {
    fn new(address: SocketAddr) -> Self {
        let mut config = BrokerConfig::default()
            .with_bind_address(address)
            .with_max_packet_size(MAX_PACKET_BYTES)
            .with_maximum_qos(1)
            .with_max_subscriptions_per_client(SUBSCRIPTIONS)
            .with_max_retained_message_size(MAX_PAYLOAD_BYTES)
            .with_client_channel_capacity(LANE_MESSAGES)
            .with_max_outbound_inflight(INFLIGHT_MESSAGES)
            .with_drain_batch(LANE_MESSAGES)
            .with_session_expiry(Duration::ZERO);
        config.shared_subscription_available = false;
        config.topic_alias_maximum = 0;
        config.sys_topics_enabled = false;
        // Rates are the application's business; 0 means no limit.
        let monitor = ResourceMonitor::new(ResourceLimits {
            max_message_rate_per_client: 0,
            max_bandwidth_per_client: 0,
            ..ResourceLimits::default()
        });
        Self {
            config,
            stats: Arc::new(BrokerStats::new()),
            monitor: Arc::new(monitor),
            never_stops: broadcast::channel(1).0,
        }
    }
}

/// The accept loop and what it hands to every connection.
struct Acceptor {
    hub: Arc<Hub>,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    clock: Clock,
    gate: Arc<Gate>,
    parts: Arc<Parts>,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        self.replay_retained().await;
        loop {
            match listener.accept().await {
                Ok((tcp, peer)) => self.admit(tcp, peer),
                Err(error) => {
                    // Out of descriptors or memory: wait for some to come back instead of spinning.
                    tracing::warn!(%error, "could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(&self, tcp: TcpStream, peer: SocketAddr) {
        let address: IpAddr = peer.ip().to_canonical();
        match self.gate.enter(address) {
            Ok(place) => {
                let connection = Connection {
                    hub: Arc::clone(&self.hub),
                    acceptor: TlsAcceptor::from(self.tls.load_full()),
                    clock: Arc::clone(&self.clock),
                    parts: Arc::clone(&self.parts),
                    peer,
                    _place: place,
                };
                self.tasks.spawn(connection.serve(tcp));
            }
            Err(full) => tracing::debug!(%peer, %full, "connection.refused"),
        }
    }

    /// What an external broker does after subscribing: the stored state of every device, once.
    async fn replay_retained(&self) {
        for channel in [Channel::Reported, Channel::Presence] {
            for packet in self.hub.routes.stored(&channel.of_all()).await {
                let Some((device, channel)) = topics::parse(&packet.topic_name) else { continue };
                let payload = packet.payload;
                let event = BrokerEvent::Message { device, channel, payload, retained: true };
                if self.hub.events.send(event).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// One accepted socket before it is a [`Session`].
struct Connection {
    hub: Arc<Hub>,
    acceptor: TlsAcceptor,
    clock: Clock,
    parts: Arc<Parts>,
    peer: SocketAddr,
    _place: Place,
}

impl Connection {
    /// Two steps in boxes of their own: what the handshake needs is freed before the session, hours long,
    /// begins. In one future a connection kept 9 KiB for nothing.
    async fn serve(self, tcp: TcpStream) {
        if let Some(session) = Box::pin(self.open(tcp)).await {
            session.await;
        }
    }

    /// Handshake and admission of the certificate. Returns the session's whole life.
    async fn open(&self, tcp: TcpStream) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let peer = self.peer;
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%peer, %error, "could not set TCP_NODELAY");
        }
        let tls = match tokio::time::timeout(HANDSHAKE, self.acceptor.accept(tcp)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "handshake.failed");
                return None;
            }
            Err(_) => {
                tracing::debug!(%peer, "handshake.timeout");
                return None;
            }
        };
        let certificate = match PeerCertificate::of(tls.get_ref().1) {
            Ok(certificate) => certificate,
            Err(error) => {
                tracing::warn!(%peer, %error, "certificate.refused");
                return None;
            }
        };
        // rustls still accepts the last second.
        if certificate.not_after <= (self.clock)() {
            tracing::debug!(%peer, device = %certificate.identity, "certificate.expired");
            return None;
        }
        let expired = until(Arc::clone(&self.clock), certificate.not_after);
        let session = Session::new(certificate, peer, Arc::clone(&self.hub));
        let hooks = Arc::new(Hooks(Arc::clone(&session)));
        let mut config = self.parts.config.clone();
        config.event_handler = Some(Arc::clone(&hooks) as Arc<dyn BrokerEventHandler>);
        let handler = ClientHandler::new(
            BrokerTransport::tls(TlsStreamWrapper::new(tls)),
            peer,
            Arc::new(config),
            Arc::clone(self.hub.routes.of(session.identity())),
            hooks as Arc<dyn AuthProvider>,
            None, // no storage: sessions end with their connection
            Arc::clone(&self.parts.stats),
            Arc::clone(&self.parts.monitor),
            self.parts.never_stops.subscribe(),
        );
        let running = Box::pin(handler.run());
        Some(Box::pin(session.drive(running, expired)))
    }
}

/// Resolves when the clock has passed `end`.
async fn until(clock: Clock, end: Timestamp) {
    loop {
        let left = end.since(clock());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(EXPIRY_LOOK)).await;
    }
}

async fn sweep(hub: Arc<Hub>, storage: Arc<DynamicStorage>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        if let Err(error) = storage.cleanup_expired().await {
            tracing::warn!(%error, "could not clean the broker's storage");
        }
        hub.routes.sweep().await;
    }
}
