//! A broker beside the controller (Mosquitto and others that speak MQTT 3.1.1), as an MQTT client with
//! the controller's certificate.
//!
//! rumqttc has traps (broker research 6), met like this:
//! * it loses what is in flight when the broker has no session, and can livelock replaying it: every
//!   connection gets a **fresh** client and clean session, so the loss is plain. [`Upstream::Down`] means
//!   "all unanswered messages are gone"; callers send state again on [`Upstream::Up`];
//! * it does not subscribe again: done at every CONNACK;
//! * its packet limit is 10 KiB and a larger publish breaks the connection: set on both sides;
//! * offline publishes fill its channel and then block: refused with [`BrokerError::Offline`] instead.
//!
//! A broker cannot be told to end somebody's session over MQTT 3.1.1. So [`Broker::kick`] connects under
//! the device's name with a certificate minted for that purpose, which displaces the device; and
//! [`Broker::revoke`] first has the fleet publish a revocation list ([`ExternalControl::refuse`]).
//! Nor does Mosquitto end a session when its certificate expires: the fleet kicks at that time, and the
//! device cannot come back with the old certificate.

use super::{Broker, BrokerError, BrokerEvent, BrokerKind, MAX_PACKET_BYTES, Message, Qos, Upstream};
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use edgefleet_shared::{
    ids::DeviceId,
    topics::{self, Channel, DEVICE_RULES, Direction, MAX_PAYLOAD_BYTES},
};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, QoS, SubscribeFilter,
    TlsConfiguration, Transport,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
    time_provider::TimeProvider,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests waiting for the event loop.
const REQUESTS: usize = 256;
const INFLIGHT: u16 = 64;
/// How long a publish may wait for a place among the requests.
const PUBLISH: Duration = Duration::from_secs(5);
/// Within this time a kicked device is gone and a revoked one stays gone.
const REVOCATION: Duration = Duration::from_secs(5);
/// A revoked device that comes back within this time shows that the list is not loaded yet.
const SETTLE: Duration = Duration::from_millis(700);
const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(15);

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A certificate with its key, to connect as.
pub struct ClientIdentity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// What the fleet does for an external broker.
#[async_trait]
pub trait ExternalControl: Send + Sync {
    /// Mints a short-lived certificate under the device's name. It must not be on the revocation list.
    fn takeover_identity(&self, device: &DeviceId) -> Result<ClientIdentity, Source>;
    /// Puts every certificate of the device on the revocation list and has the broker load it.
    async fn refuse(&self, device: &DeviceId) -> Result<(), Source>;
    /// The reverse; certificates issued later may be all that becomes valid.
    async fn admit(&self, device: &DeviceId) -> Result<(), Source>;
}

/// How to reach the external broker.
pub struct ExternalParams {
    pub host: String,
    pub port: u16,
    /// Common name of the controller's certificate, also the client id.
    pub name: DeviceId,
    pub identity: ClientIdentity,
    /// Who may have signed the broker's certificate.
    pub roots: RootCertStore,
    pub time: Arc<dyn TimeProvider>,
    pub control: Arc<dyn ExternalControl>,
    /// Capacity of the event channel, at least 4; see [`super::EVENT_CAPACITY`].
    pub event_capacity: usize,
}

/// Client of an external broker. See the module.
pub struct ExternalBroker {
    shared: Arc<Shared>,
    control: Arc<dyn ExternalControl>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

struct Shared {
    dial: Dial,
    /// Present while connected.
    client: ArcSwapOption<AsyncClient>,
}

/// What every connection to this broker has in common.
struct Dial {
    host: String,
    port: u16,
    roots: Arc<RootCertStore>,
    time: Arc<dyn TimeProvider>,
    name: DeviceId,
    tls: Arc<ClientConfig>,
}

impl Dial {
    fn options(&self, id: &DeviceId, tls: Arc<ClientConfig>) -> MqttOptions {
        let mut options = MqttOptions::new(id.as_str(), &self.host, self.port);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(true)
            .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES)
            .set_inflight(INFLIGHT)
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
        options
    }

    fn connect(&self, id: &DeviceId, tls: Arc<ClientConfig>) -> (AsyncClient, EventLoop) {
        let (client, mut events) = AsyncClient::new(self.options(id, tls), REQUESTS);
        events.network_options.set_tcp_nodelay(true);
        (client, events)
    }
}

/// TLS settings of a client that shows `identity` and trusts `roots`.
fn client_config(
    identity: ClientIdentity,
    roots: Arc<RootCertStore>,
    time: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain, identity.key)
}

impl ExternalBroker {
    /// Starts connecting and goes on until [`Broker::stop`]; whether it worked is an event.
    ///
    /// # Errors
    /// [`BrokerError::Start`] if the controller's key does not fit its certificate.
    pub fn start(params: ExternalParams) -> Result<(Self, mpsc::Receiver<BrokerEvent>), BrokerError> {
        let roots = Arc::new(params.roots);
        let tls = client_config(params.identity, Arc::clone(&roots), Arc::clone(&params.time)).map_err(
            |source| BrokerError::Start {
                action: format!("using the certificate of `{}`", params.name),
                source: source.into(),
            },
        )?;
        let dial = Dial {
            host: params.host,
            port: params.port,
            roots,
            time: params.time,
            name: params.name,
            tls: Arc::new(tls),
        };
        let shared = Arc::new(Shared { dial, client: ArcSwapOption::empty() });
        let (events, receiver) = mpsc::channel(params.event_capacity.max(4));
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(stopping.clone().run_until_cancelled_owned(Arc::clone(&shared).keep_connected(events)));
        Ok((Self { shared, control: params.control, stopping, tasks }, receiver))
    }

    /// Displaces the device's session. `settle`: stay until the device has not come back for
    /// [`SETTLE`]; it can only come back if the broker does not refuse it yet.
    async fn take_over(&self, device: &DeviceId, settle: bool) -> Result<(), BrokerError> {
        let revocation = |action, source| BrokerError::Revocation { device: device.clone(), action, source };
        let identity = self
            .control
            .takeover_identity(device)
            .map_err(|source| revocation("minting a certificate under its name", source))?;
        let dial = &self.shared.dial;
        let tls = client_config(identity, Arc::clone(&dial.roots), Arc::clone(&dial.time))
            .map_err(|source| revocation("using the certificate minted under its name", source.into()))?;
        let tls = Arc::new(tls);
        let deadline = Instant::now() + REVOCATION;
        while Instant::now() < deadline {
            let (client, mut events) = dial.connect(device, Arc::clone(&tls));
            if tokio::time::timeout_at(deadline, connected(&mut events)).await.is_err() {
                break;
            }
            let quiet = !settle || tokio::time::timeout(SETTLE, broken(&mut events)).await.is_err();
            if quiet {
                // A clean goodbye; the connection closes either way when `events` is dropped.
                if client.disconnect().await.is_ok() {
                    let _ = tokio::time::timeout(SETTLE, broken(&mut events)).await;
                }
                return Ok(());
            }
        }
        Err(BrokerError::StillConnected { device: device.clone(), seconds: REVOCATION.as_secs() })
    }
}

/// Resolves at CONNACK. Retries: the broker may be reloading.
async fn connected(events: &mut EventLoop) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "takeover.retry");
                tokio::time::sleep(FIRST_BACK_OFF).await;
            }
        }
    }
}

/// Resolves when the connection is gone.
async fn broken(events: &mut EventLoop) {
    while events.poll().await.is_ok() {}
}

impl Drop for ExternalBroker {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

#[async_trait]
impl Broker for ExternalBroker {
    async fn publish(&self, message: Message) -> Result<(), BrokerError> {
        message.check()?;
        let client = self.shared.client.load_full().ok_or(BrokerError::Offline)?;
        let qos = match message.qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
        };
        let Message { topic, payload, retain, .. } = message;
        let publish = client.publish(topic.clone(), qos, retain, payload);
        match tokio::time::timeout(PUBLISH, publish).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(BrokerError::Offline), // its event loop is gone
            Err(_) => Err(BrokerError::Busy { topic, seconds: PUBLISH.as_secs() }),
        }
    }

    async fn kick(&self, device: &DeviceId) -> Result<(), BrokerError> {
        self.take_over(device, false).await
    }

    async fn revoke(&self, device: &DeviceId) -> Result<(), BrokerError> {
        self.control.refuse(device).await.map_err(|source| BrokerError::Revocation {
            device: device.clone(),
            action: "publishing the revocation list",
            source,
        })?;
        self.take_over(device, true).await
    }

    async fn allow(&self, device: &DeviceId) -> Result<(), BrokerError> {
        self.control.admit(device).await.map_err(|source| BrokerError::Revocation {
            device: device.clone(),
            action: "taking it off the revocation list",
            source,
        })
    }

    async fn stop(&self) {
        if let Some(client) = self.shared.client.swap(None) {
            let _ = client.try_disconnect(); // a courtesy: the connection closes anyway
        }
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn kind(&self) -> BrokerKind {
        BrokerKind::External
    }

    fn ready(&self) -> Result<(), String> {
        match &*self.shared.client.load() {
            Some(_) => Ok(()),
            None => Err(BrokerError::Offline.to_string()),
        }
    }

    fn connected(&self) -> Option<usize> {
        None
    }
}

impl Shared {
    async fn keep_connected(self: Arc<Self>, events: mpsc::Sender<BrokerEvent>) {
        let (mut told, mut back_off) = (None, FIRST_BACK_OFF);
        loop {
            let ended = self.one_connection(&events, &mut told).await;
            self.client.store(None);
            let Some(reason) = ended else { return };
            tracing::warn!(broker = %self.dial.host, reason, "upstream.down");
            if told == Some(true) {
                back_off = FIRST_BACK_OFF;
            }
            if told.replace(false) != Some(false) {
                let down = BrokerEvent::Upstream(Upstream::Down { reason });
                if events.send(down).await.is_err() {
                    return;
                }
            }
            // Half to full: controllers that lost the same broker do not return in step.
            tokio::time::sleep(back_off.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
        }
    }

    /// Why the connection ended; `None` if nobody receives events any more.
    async fn one_connection(
        &self,
        events: &mpsc::Sender<BrokerEvent>,
        told: &mut Option<bool>,
    ) -> Option<String> {
        let (client, mut connection) = self.dial.connect(&self.dial.name, Arc::clone(&self.dial.tls));
        loop {
            let event = match connection.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    if let Err(error) = client.try_subscribe_many(device_channels()) {
                        return Some(error.to_string());
                    }
                    self.client.store(Some(Arc::new(client.clone())));
                    *told = Some(true);
                    BrokerEvent::Upstream(Upstream::Up)
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    match device_message(&publish.topic, publish.payload, publish.retain) {
                        Some(event) => event,
                        None => continue,
                    }
                }
                Ok(_) => continue,
                Err(error) => return Some(chain(&error)),
            };
            events.send(event).await.ok()?;
        }
    }
}

/// Everything devices publish.
fn device_channels() -> impl Iterator<Item = SubscribeFilter> {
    DEVICE_RULES
        .into_iter()
        .filter(|(_, direction)| *direction == Direction::Publish)
        .map(|(channel, _)| SubscribeFilter::new(channel.of_all(), QoS::AtLeastOnce))
}

fn device_message(topic: &str, payload: Bytes, retained: bool) -> Option<BrokerEvent> {
    let (device, channel) = topics::parse(topic)?;
    // The broker's ACL says the same; a wrong ACL must not let `controller` speak for a device.
    let theirs = DEVICE_RULES.contains(&(channel, Direction::Publish)) && !super::is_controller(&device);
    // Only these two are ever stored on purpose; another channel retained would be replayed for ever.
    let stale = retained && !matches!(channel, Channel::Reported | Channel::Presence);
    (theirs && !stale && payload.len() <= MAX_PAYLOAD_BYTES).then_some(BrokerEvent::Message {
        device,
        channel,
        payload,
        retained,
    })
}

fn chain(error: &ConnectionError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_devices_may_publish_becomes_an_event() {
        for (topic, retained, expected) in [
            ("edgefleet/v1/devices/dev-1/telemetry", false, true),
            ("edgefleet/v1/devices/dev-1/telemetry", true, false),
            ("edgefleet/v1/devices/dev-1/reported", true, true),
            ("edgefleet/v1/devices/dev-1/presence", true, true),
            ("edgefleet/v1/devices/dev-1/desired", false, false),
            ("edgefleet/v1/devices/controller-1/reported", false, false),
            ("edgefleet/v1/devices/Dev/reported", false, false),
            ("edgefleet/v1/trust/head", false, false),
        ] {
            let event = device_message(topic, Bytes::from_static(b"x"), retained);
            assert_eq!(event.is_some(), expected, "{topic} retained={retained}");
        }
        let oversize = Bytes::from(vec![0; MAX_PAYLOAD_BYTES + 1]);
        assert!(device_message("edgefleet/v1/devices/dev-1/fetch", oversize, false).is_none());
    }

    #[test]
    fn the_controller_subscribes_to_the_five_channels_of_devices() {
        let filters: Vec<_> = device_channels().map(|filter| filter.path).collect();
        assert_eq!(
            filters,
            ["reported", "presence", "telemetry", "fetch", "reply"]
                .map(|channel| { format!("edgefleet/v1/devices/+/{channel}") })
        );
    }
}
