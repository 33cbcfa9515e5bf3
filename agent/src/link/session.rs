//! One MQTT session after the other.

use super::{
    LinkEvent, Shared,
    backoff::{Backoff, Ended, Wait},
};
use edgefleet_shared::topics::{Channel, MAX_PAYLOAD_BYTES, TRUST_HEAD};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, LastWill, MqttOptions, NetworkOptions,
    Packet, QoS, StateError, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use std::{
    error::Error,
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{debug, info, warn};

/// Messages of one session that wait to be written.
const QUEUE: usize = 64;
/// Unacknowledged publishes; Mosquitto and the embedded broker allow at least 20.
const IN_FLIGHT: u16 = 16;
/// DNS, TCP, TLS and CONNACK together.
const CONNECT_SECS: u64 = 20;
/// Topic and header around the largest payload.
const PACKET_OVERHEAD: usize = 1024;
/// How long the consumer of events may be busy before a message is given up.
const CONSUMER_PATIENCE: Duration = Duration::from_secs(10);
/// For the last message and the DISCONNECT.
const GOODBYE: Duration = Duration::from_secs(2);

/// What a device listens to; each by its exact name (a wildcard costs the broker a scan per message).
const LISTENED: [Channel; 5] =
    [Channel::Desired, Channel::Blocks, Channel::Command, Channel::Ack, Channel::Label];

enum End {
    /// Try again after a wait.
    Lost(Ended, String),
    /// Try again at once, with another certificate.
    NewTls,
    Stopped,
}

pub(super) async fn keep_connected(shared: Arc<Shared>, events: mpsc::Sender<LinkEvent>) {
    let mut stop = shared.stop.subscribe();
    let mut tls = shared.tls.subscribe();
    let mut backoff = Backoff::default();
    loop {
        let config = tls.borrow_and_update().clone();
        let end = session(&shared, &events, config, &mut stop, &mut tls).await;
        *shared.current.write() = None;
        let (ended, reason) = match end {
            End::Stopped => return,
            End::NewTls => {
                events.send(LinkEvent::Disconnected { reason: "new certificate".into() }).await.ok();
                continue;
            }
            End::Lost(ended, reason) => (ended, reason),
        };
        let Wait { pause, takeover } = backoff.after(ended, rand::random());
        if takeover {
            shared.stats.takeovers.fetch_add(1, Ordering::Relaxed);
            warn!(pause_ms = pause.as_millis(), "another agent seems to use this device's identity");
        } else {
            info!(%reason, pause_ms = pause.as_millis(), "not connected");
        }
        if events.send(LinkEvent::Disconnected { reason }).await.is_err() {
            return; // nobody listens any more
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopped(&mut stop) => return,
            changed = tls.changed() => if changed.is_err() { return },
        }
    }
}

/// The reason given to [`super::LinkHandle::close`], once it was called.
async fn stopped(stop: &mut watch::Receiver<Option<String>>) -> String {
    stop.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone()).unwrap_or_default()
}

fn options(shared: &Shared, tls: Arc<ClientConfig>) -> MqttOptions {
    let config = &shared.config;
    let mut options = MqttOptions::new(config.device.as_str(), &config.host, config.port);
    let will = config.presence(false, "connection lost");
    options
        .set_keep_alive(config.keep_alive)
        .set_clean_session(true)
        .set_inflight(IN_FLIGHT)
        .set_max_packet_size(MAX_PAYLOAD_BYTES + PACKET_OVERHEAD, MAX_PAYLOAD_BYTES + PACKET_OVERHEAD)
        .set_last_will(LastWill::new(Channel::Presence.of(&config.device), will, QoS::AtLeastOnce, true))
        .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(tls)));
    options
}

async fn session(
    shared: &Shared,
    events: &mpsc::Sender<LinkEvent>,
    config: Arc<ClientConfig>,
    stop: &mut watch::Receiver<Option<String>>,
    tls: &mut watch::Receiver<Arc<ClientConfig>>,
) -> End {
    let (client, mut connection) = AsyncClient::new(options(shared, config), QUEUE);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_SECS);
    connection.set_network_options(network);

    let mut since: Option<Instant> = None;
    loop {
        let event = tokio::select! {
            event = connection.poll() => event,
            reason = stopped(stop) => {
                if since.is_some() {
                    good_bye(shared, &client, &mut connection, &reason).await;
                }
                return End::Stopped;
            }
            changed = tls.changed() => {
                if since.is_some() {
                    client.try_disconnect().ok();
                    drain(&mut connection).await;
                }
                return if changed.is_ok() { End::NewTls } else { End::Stopped };
            }
        };
        match event {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                since = Some(Instant::now());
                let presence = shared.config.presence(true, "connected");
                let topic = Channel::Presence.of(&shared.config.device);
                // The queue of a new session is empty: neither can fail.
                client.try_subscribe_many(filters(shared)).ok();
                client.try_publish(topic, QoS::AtLeastOnce, true, presence).ok();
            }
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    warn!(?ack.return_codes, "the broker refused some of this device's subscriptions");
                }
                *shared.current.write() = Some(client.clone());
                let session = shared.stats.connects.fetch_add(1, Ordering::Relaxed) + 1;
                info!(session, host = %shared.config.host, "connected");
                if events.send(LinkEvent::Connected { session }).await.is_err() {
                    return End::Stopped;
                }
            }
            Ok(Event::Incoming(Packet::Publish(message))) => {
                deliver(shared, events, &message.topic, message.payload).await;
            }
            Ok(_) => {}
            Err(error) => return lost(&error, since),
        }
    }
}

fn filters(shared: &Shared) -> Vec<SubscribeFilter> {
    let own = LISTENED.iter().map(|channel| channel.of(&shared.config.device));
    own.chain([TRUST_HEAD.to_owned()]).map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce)).collect()
}

async fn deliver(shared: &Shared, events: &mpsc::Sender<LinkEvent>, topic: &str, payload: bytes::Bytes) {
    let channel = LISTENED.into_iter().find(|channel| channel.of(&shared.config.device) == topic);
    let event = match channel {
        Some(Channel::Desired) => LinkEvent::Desired(payload),
        Some(Channel::Blocks) => LinkEvent::Blocks(payload),
        Some(Channel::Command) => LinkEvent::Command(payload),
        Some(Channel::Ack) => LinkEvent::Ack(payload),
        Some(Channel::Label) => LinkEvent::Label(payload),
        _ if topic == TRUST_HEAD => LinkEvent::TrustHead(payload),
        _ => return debug!(topic, "a message nobody asked for"),
    };
    // Waiting here slows the sender down, which is right; waiting for ever would starve keep-alive.
    if events.send_timeout(event, CONSUMER_PATIENCE).await.is_err() {
        shared.stats.overflowed.fetch_add(1, Ordering::Relaxed);
        warn!(topic, "a message was given up: the agent was too busy to take it");
    }
}

async fn good_bye(shared: &Shared, client: &AsyncClient, connection: &mut EventLoop, reason: &str) {
    let topic = Channel::Presence.of(&shared.config.device);
    // Ordered behind all that waits, which so gets out as well.
    let offline = client.publish(topic, QoS::AtLeastOnce, true, shared.config.presence(false, reason));
    let farewell = async {
        tokio::join!(
            async {
                offline.await.ok();
                client.disconnect().await.ok();
            },
            drain(connection)
        )
    };
    tokio::time::timeout(GOODBYE, farewell).await.ok();
}

/// Writes what is queued, the DISCONNECT last, and reads on until the broker has closed: closing with
/// acknowledgements unread would reset the connection, and the broker would lose the last words.
async fn drain(connection: &mut EventLoop) {
    let until_closed = async { while connection.poll().await.is_ok() {} };
    tokio::time::timeout(GOODBYE, until_closed).await.ok();
}

fn lost(error: &ConnectionError, since: Option<Instant>) -> End {
    let Some(since) = since else {
        return End::Lost(Ended::NeverConnected, explain(error));
    };
    let lived = since.elapsed();
    let ended = match is_silent_close(error) {
        true => Ended::ClosedByBroker { lived },
        false => Ended::Broke { lived },
    };
    End::Lost(ended, explain(error))
}

/// The broker ended the connection in good order: a takeover, a kick, or its own shutdown. The embedded
/// one says so with a DISCONNECT, which MQTT 3.1.1 does not know in this direction.
fn is_silent_close(error: &ConnectionError) -> bool {
    let closed = |kind| {
        matches!(
            kind,
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
        )
    };
    match error {
        ConnectionError::MqttState(StateError::ConnectionAborted | StateError::WrongPacket) => true,
        ConnectionError::MqttState(StateError::Io(e)) | ConnectionError::Io(e) => closed(e.kind()),
        _ => false,
    }
}

/// The error with its causes, in words that name what a person can change.
fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword,
        ) => return "the broker does not accept this device (revoked, or another CA)".into(),
        ConnectionError::MqttState(StateError::ConnectionAborted | StateError::WrongPacket) => {
            return "the broker closed the connection".into();
        }
        _ => {}
    }
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Told apart, or two agents with one identity would fight as fast as a broken line is retried.
    #[test]
    fn an_end_by_the_broker_is_no_broken_line() {
        let state = |error| ConnectionError::MqttState(error);
        let eof = || io::Error::from(io::ErrorKind::UnexpectedEof);
        for (error, silent) in [
            (state(StateError::ConnectionAborted), true), // Mosquitto: TLS ends in good order
            (state(StateError::WrongPacket), true),       // embedded: DISCONNECT
            (state(StateError::Io(eof())), true),
            (ConnectionError::Io(io::ErrorKind::ConnectionRefused.into()), false),
            (state(StateError::AwaitPingResp), false),
            (ConnectionError::NetworkTimeout, false),
        ] {
            assert_eq!(is_silent_close(&error), silent, "{error}");
        }
    }
}
