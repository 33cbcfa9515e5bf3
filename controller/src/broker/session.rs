//! One connection to the embedded broker: its rights, its events and its end.
//!
//! mqtt5 asks an authentication provider and tells an event handler; both are made per connection here,
//! so that every answer rests on this connection's certificate and never on a client id in a packet.
//!
//! Two of mqtt5's habits shape the code. A publish that the provider denies is answered with a PUBACK
//! in the form of MQTT 5 even to a 3.1.1 client, so topics are checked in the publish hook, where a
//! refused message is acknowledged like any other and dropped (as Mosquitto does). And it would route what
//! a device sends to other clients, waiting up to seconds for a slow one, so the hook takes every message
//! and [`Routes`] decides.

use super::{
    BrokerEvent, DisconnectReason,
    embedded::{Admission, Verdict},
    is_controller,
    registry::Registry,
    routes::Routes,
    tls::PeerCertificate,
};
use bytes::Bytes;
use edgefleet_shared::{
    ids::DeviceId,
    topics::{self, Channel, Direction, MAX_PAYLOAD_BYTES},
};
use mqtt5::broker::{
    auth::{AuthProvider, AuthResult},
    events::{
        BrokerEventHandler, ClientConnectEvent, ClientDisconnectEvent, ClientPublishEvent, PublishAction,
    },
};
use mqtt5_protocol::{
    QoS,
    packet::{connect::ConnectPacket, publish::PublishPacket},
    types::{ReasonCode, WillMessage},
};
use parking_lot::Mutex;
use std::{
    fmt::Display,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long an ended session may take to say goodbye before its socket is closed under it. A peer that
/// does not read would otherwise hold its session for a write time-out of minutes.
const GRACE: Duration = Duration::from_secs(1);

/// What all connections share.
pub(super) struct Hub {
    pub(super) routes: Routes,
    pub(super) registry: Registry,
    pub(super) events: mpsc::Sender<BrokerEvent>,
    pub(super) admission: Arc<dyn Admission>,
}

pub(super) struct Session {
    certificate: PeerCertificate,
    peer: SocketAddr,
    hub: Arc<Hub>,
    /// Why this side ends it; cancelled `ending` says that it is set.
    reason: OnceLock<DisconnectReason>,
    ending: CancellationToken,
    /// The socket is closed.
    ended: CancellationToken,
    /// A newer connection has its identity (or the broker stops): it may publish nothing any more,
    /// its last will included.
    mute: AtomicBool,
    /// CONNACK was sent.
    connected: AtomicBool,
    said_goodbye: AtomicBool,
    will: Mutex<Option<WillMessage>>,
}

impl Session {
    pub(super) fn new(certificate: PeerCertificate, peer: SocketAddr, hub: Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            certificate,
            peer,
            hub,
            reason: OnceLock::new(),
            ending: CancellationToken::new(),
            ended: CancellationToken::new(),
            mute: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            said_goodbye: AtomicBool::new(false),
            will: Mutex::new(None),
        })
    }

    pub(super) fn identity(&self) -> &DeviceId {
        &self.certificate.identity
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Asks the connection to end; the first reason counts.
    pub(super) fn end(&self, reason: DisconnectReason) {
        if matches!(reason, DisconnectReason::TakenOver | DisconnectReason::Stopped) {
            self.mute.store(true, Ordering::SeqCst);
        }
        let _ = self.reason.set(reason);
        self.ending.cancel();
    }

    /// Resolves when the socket is closed.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    fn is_mute(&self) -> bool {
        self.mute.load(Ordering::SeqCst)
    }

    /// Runs the connection to its end, whoever ends it, and sends its last events.
    ///
    /// `running`: the connection handler of mqtt5 at work.
    pub(super) async fn drive<E: Display>(
        self: Arc<Self>,
        mut running: Pin<Box<impl Future<Output = Result<(), E>>>>,
        expired: impl Future<Output = ()>,
    ) {
        let finished = tokio::select! {
            result = &mut running => {
                if let Err(error) = result {
                    tracing::debug!(device = %self.identity(), peer = %self.peer, %error, "session.end");
                }
                true
            }
            () = self.ending.cancelled() => false,
            () = expired => {
                self.end(DisconnectReason::CertificateExpired);
                false
            }
        };
        if !finished {
            // Polled together: the handler may hold the very lock that `forget` waits for.
            let goodbye = async {
                tokio::select! {
                    _ = &mut running => {}
                    () = async { self.forget().await; std::future::pending().await } => {}
                }
            };
            let forced = tokio::time::timeout(GRACE, goodbye).await.is_err();
            drop(running);
            if forced {
                self.forget().await;
            }
        } else {
            drop(running);
        }
        let will = self.last_will().await;
        self.ended.cancel();
        self.say_farewell(will).await;
    }

    /// Removes what the router holds for this connection.
    ///
    /// `disconnect_client`, the router's own kick, keeps subscriptions, and with them a growing queue,
    /// until the client returns.
    async fn forget(self: &Arc<Self>) {
        let id = self.identity().as_str();
        let router = self.hub.routes.of(self.identity());
        let slot = router.lock_session(id).await;
        if self.hub.registry.owns(self) {
            router.unregister_client(id).await;
            router.queue_handle(id).clear(None);
        }
        drop(slot);
    }

    /// The last will, if it applies. mqtt5 sends wills as well, but only within the device's own router,
    /// where nobody may read them.
    async fn last_will(&self) -> Option<BrokerEvent> {
        let applies = self.connected.load(Ordering::SeqCst)
            && !self.said_goodbye.load(Ordering::SeqCst)
            && !self.is_mute();
        let will = self.will.lock().take().filter(|_| applies)?;
        let (device, channel) = topics::parse(&will.topic)?;
        let payload = Bytes::from(will.payload);
        let stored =
            PublishPacket::new(will.topic, payload.clone(), QoS::AtLeastOnce).with_retain(will.retain);
        self.hub.routes.keep(&stored).await;
        Some(BrokerEvent::Message { device, channel, payload, retained: false })
    }

    async fn say_farewell(self: &Arc<Self>, will: Option<BrokerEvent>) {
        let Ok(permits) = self.hub.events.reserve_many(2).await else { return };
        let said_goodbye = self.said_goodbye.load(Ordering::SeqCst);
        let device = self.identity().clone();
        let reason = self.reason.get().copied().unwrap_or(if said_goodbye {
            DisconnectReason::Client
        } else {
            DisconnectReason::Network
        });
        let farewell = BrokerEvent::Disconnected { device, unexpected: !said_goodbye, reason };
        self.hub.registry.release(self, permits, will.into_iter().chain([farewell]));
    }

    /// Whether CONNECT is acceptable; on success this is the current connection of its identity.
    fn authenticate(self: &Arc<Self>, connect: &ConnectPacket) -> Result<(), (ReasonCode, String)> {
        let identity = self.identity();
        if connect.protocol_version != 4 {
            let version = connect.protocol_version;
            return Err((
                ReasonCode::UnsupportedProtocolVersion,
                format!("protocol level {version}, not 3.1.1"),
            ));
        }
        if connect.client_id != identity.as_str() {
            return Err((ReasonCode::ClientIdentifierNotValid, "the client id is not its identity".into()));
        }
        if let Some(will) = &connect.will {
            let allowed = !is_controller(identity)
                && topics::device_may(identity, Direction::Publish, &will.topic)
                && will.payload.len() <= MAX_PAYLOAD_BYTES;
            if !allowed {
                return Err((ReasonCode::NotAuthorized, "its last will is not allowed".into()));
            }
        }
        if let Verdict::Refuse(reason) = self.hub.admission.admit(identity, &self.certificate.serial) {
            return Err((ReasonCode::NotAuthorized, reason));
        }
        self.will.lock().clone_from(&connect.will);
        match self.hub.registry.claim(self) {
            Ok(displaced) => {
                if let Some(displaced) = displaced {
                    displaced.end(DisconnectReason::TakenOver);
                }
                Ok(())
            }
            Err(refused) => Err((ReasonCode::NotAuthorized, refused.to_string())),
        }
    }

    fn may_subscribe(&self, filter: &str) -> bool {
        if is_controller(self.identity()) {
            // `$share/...` and `$SYS/...` are not part of the protocol.
            return !filter.starts_with('$');
        }
        topics::device_may(self.identity(), Direction::Subscribe, filter)
    }

    /// Takes a publish: stores what debuggers may read, tells the controller, drops what is not allowed.
    async fn received(self: &Arc<Self>, publish: ClientPublishEvent) {
        let device = self.identity();
        let allowed =
            !is_controller(device) && topics::device_may(device, Direction::Publish, &publish.topic);
        let Some((_, channel)) = topics::parse(&publish.topic).filter(|_| allowed && !self.is_mute()) else {
            tracing::warn!(%device, topic = %publish.topic, "publish.refused");
            return;
        };
        if publish.payload.len() > MAX_PAYLOAD_BYTES {
            return self.end(DisconnectReason::Oversize);
        }
        // Only these two are of use to others: a debugger's `mosquitto_sub`, or the next start of the
        // controller. The rest is the controller's alone and never stored by the broker.
        if matches!(channel, Channel::Reported | Channel::Presence) {
            let packet = PublishPacket::new(&*publish.topic, publish.payload.clone(), QoS::AtLeastOnce)
                .with_retain(publish.retain);
            self.hub.routes.keep(&packet).await;
        }
        let event = BrokerEvent::Message {
            device: device.clone(),
            channel,
            payload: publish.payload,
            retained: false,
        };
        tokio::select! {
            permit = self.hub.events.reserve() => if let Ok(permit) = permit {
                self.hub.registry.tell(self, permit, event);
            },
            () = self.ending.cancelled() => {}
        }
    }

    async fn announce(self: &Arc<Self>) {
        self.connected.store(true, Ordering::SeqCst);
        if is_controller(self.identity()) {
            return;
        }
        tokio::select! {
            permits = self.hub.events.reserve_many(2) => if let Ok(permits) = permits {
                self.hub.registry.announce(self, permits);
            },
            () = self.ending.cancelled() => {}
        }
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A [`Session`] as mqtt5 wants to see it.
pub(super) struct Hooks(pub(super) Arc<Session>);

impl AuthProvider for Hooks {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        peer: SocketAddr,
    ) -> Answer<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move {
            Ok(match self.0.authenticate(connect) {
                Ok(()) => AuthResult::success_with_user(self.0.identity().to_string()),
                Err((code, reason)) => {
                    tracing::info!(device = %self.0.identity(), %peer, reason, "session.refused");
                    AuthResult::fail(code)
                }
            })
        })
    }

    /// Topics were checked before: a will's at CONNECT, a publish's in the hook below.
    fn authorize_publish<'a>(&'a self, _: &str, _: Option<&'a str>, _: &'a str) -> Answer<'a, bool> {
        Box::pin(std::future::ready(true))
    }

    fn authorize_subscribe<'a>(&'a self, _: &str, _: Option<&'a str>, filter: &'a str) -> Answer<'a, bool> {
        Box::pin(async move { self.0.may_subscribe(filter) })
    }
}

impl BrokerEventHandler for Hooks {
    fn on_client_connect<'a>(&'a self, _: ClientConnectEvent) -> Answer<'a, ()> {
        Box::pin(self.0.announce())
    }

    /// Never `Continue`: mqtt5 must not route what a device sends.
    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        Box::pin(async move {
            self.0.received(event).await;
            PublishAction::Handled
        })
    }

    fn on_client_disconnect<'a>(&'a self, event: ClientDisconnectEvent) -> Answer<'a, ()> {
        self.0.said_goodbye.store(!event.unexpected, Ordering::SeqCst);
        Box::pin(async {})
    }
}
