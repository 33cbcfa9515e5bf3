//! Clients as devices are (rumqttc, MQTT 3.1.1) and as attackers are (bytes over TLS).

use crate::{home::Home, pki::Issued};
use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, MqttOptions, Outgoing, Packet, QoS, SubscribeReasonCode,
    TlsConfiguration, Transport,
};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{sync::Arc, time::Duration};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Device {
    pub client: AsyncClient,
    seen: UnboundedReceiver<Result<Packet, String>>,
    /// Messages passed over while waiting for something else.
    pub inbox: Vec<(String, bytes::Bytes)>,
    task: JoinHandle<()>,
    pub session_present: bool,
}

pub struct Dial<'a> {
    pub client_id: &'a str,
    pub tls: ClientConfig,
    pub will: Option<LastWill>,
    pub clean: bool,
}

impl Device {
    pub async fn connect(home: &Home, id: &str) -> Self {
        Self::connect_as(home, id, &home.pki.device(id)).await.unwrap()
    }

    pub async fn connect_as(home: &Home, id: &str, issued: &Issued) -> Result<Self, String> {
        let tls = home.pki.client(Some(issued));
        Self::dial(home, Dial { client_id: id, tls, will: None, clean: true }).await
    }

    pub async fn connect_with_will(
        home: &Home,
        id: &str,
        topic: &str,
        payload: &str,
    ) -> Result<Self, String> {
        let tls = home.pki.client(Some(&home.pki.device(id)));
        let will = LastWill::new(topic, payload, QoS::AtLeastOnce, true);
        Self::dial(home, Dial { client_id: id, tls, will: Some(will), clean: true }).await
    }

    pub async fn dial(home: &Home, dial: Dial<'_>) -> Result<Self, String> {
        let mut options = MqttOptions::new(dial.client_id, "localhost", home.address.port());
        options
            .set_max_packet_size(2 << 20, 2 << 20)
            .set_clean_session(dial.clean)
            .set_keep_alive(Duration::from_secs(30))
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(dial.tls))));
        if let Some(will) = dial.will {
            options.set_last_will(will);
        }
        let (client, mut events) = AsyncClient::new(options, 64);
        let present =
            timeout(PATIENCE, connack(&mut events)).await.map_err(|_| "no CONNACK".to_owned())??;
        let (sender, seen) = unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(packet)) => drop(sender.send(Ok(packet))),
                    Ok(Event::Outgoing(Outgoing::Disconnect)) => {
                        return drop(sender.send(Err("said goodbye".into())));
                    }
                    Ok(Event::Outgoing(_)) => {}
                    Err(error) => return drop(sender.send(Err(error.to_string()))),
                }
            }
        });
        Ok(Self { client, seen, inbox: vec![], task, session_present: present })
    }

    /// Next packet that `wanted` maps to something; messages before it go to the inbox.
    async fn wait<T>(&mut self, what: &str, wanted: impl Fn(&Packet) -> Option<T>) -> Result<T, String> {
        loop {
            let packet = match timeout(PATIENCE, self.seen.recv()).await {
                Err(_) => panic!("no {what} within {PATIENCE:?}"),
                Ok(None) => return Err("the connection had ended".into()),
                Ok(Some(packet)) => packet?,
            };
            let found = wanted(&packet);
            if let Packet::Publish(publish) = packet {
                self.inbox.push((publish.topic, publish.payload));
            }
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }

    /// Whether the broker granted it.
    pub async fn subscribe(&mut self, filter: &str) -> bool {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        let codes = self
            .wait("SUBACK", |packet| match packet {
                Packet::SubAck(ack) => Some(ack.return_codes.clone()),
                _ => None,
            })
            .await
            .unwrap();
        codes.iter().all(|code| matches!(code, SubscribeReasonCode::Success(_)))
    }

    /// Publishes with QoS 1 and waits for the PUBACK.
    pub async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) -> Result<(), String> {
        self.send(topic, payload, false).await
    }

    pub async fn publish_retained(&mut self, topic: &str, payload: &str) {
        self.send(topic, payload, true).await.unwrap();
    }

    async fn send(&mut self, topic: &str, payload: impl Into<Vec<u8>>, retain: bool) -> Result<(), String> {
        self.client.publish(topic, QoS::AtLeastOnce, retain, payload).await.map_err(|e| e.to_string())?;
        self.wait("PUBACK", |packet| matches!(packet, Packet::PubAck(_)).then_some(())).await
    }

    /// Waits for a message on `topic` and returns everything received up to it, the last one being it.
    pub async fn messages_until(&mut self, topic: &str) -> Vec<(String, bytes::Bytes)> {
        let already = self.inbox.iter().position(|(received, _)| received == topic);
        if let Some(at) = already {
            return self.inbox.drain(..=at).collect();
        }
        let wanted = |packet: &Packet| match packet {
            Packet::Publish(publish) if publish.topic == topic => Some(()),
            _ => None,
        };
        self.wait(&format!("message on {topic}"), wanted).await.unwrap();
        std::mem::take(&mut self.inbox)
    }

    /// Waits for the end of the connection, whoever ends it.
    pub async fn ended(&mut self) -> String {
        self.wait("end of the connection", |_| None::<()>).await.unwrap_err()
    }

    pub fn is_connected(&self) -> bool {
        !self.task.is_finished()
    }

    /// Closes the socket without a DISCONNECT.
    pub async fn vanish(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn say_goodbye(mut self) {
        self.client.disconnect().await.unwrap();
        self.ended().await;
    }
}

async fn connack(events: &mut EventLoop) -> Result<bool, String> {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(ack))) => return Ok(ack.session_present),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// A TLS connection that speaks bytes.
pub struct Raw(pub TlsStream<TcpStream>);

impl Raw {
    pub async fn open(home: &Home, issued: &Issued) -> Self {
        let tcp = TcpStream::connect(home.address).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let connector = TlsConnector::from(Arc::new(home.pki.client(Some(issued))));
        let name = ServerName::try_from("localhost").unwrap();
        Self(connector.connect(name, tcp).await.unwrap())
    }

    /// Opens and sends an MQTT CONNECT of `level` (4 is 3.1.1) with a clean session; returns CONNACK.
    pub async fn connect(home: &Home, id: &str, level: u8) -> (Self, Vec<u8>) {
        let mut raw = Self::open(home, &home.pki.device(id)).await;
        raw.send(&connect_packet(id, level)).await.unwrap();
        let mut reply = vec![0; 256];
        let length = timeout(PATIENCE, raw.0.read(&mut reply)).await.unwrap().unwrap_or(0);
        reply.truncate(length);
        (raw, reply)
    }

    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Reads until the peer closes; fails the test if it does not.
    pub async fn closed(&mut self, after: &str) {
        let mut sink = vec![0; 4096];
        let drained = async { while matches!(self.0.read(&mut sink).await, Ok(1..)) {} };
        assert!(timeout(PATIENCE, drained).await.is_ok(), "still open after {after}");
    }
}

pub fn connect_packet(id: &str, level: u8) -> Vec<u8> {
    let mut body = vec![0, 4];
    body.extend(b"MQTT");
    body.extend([level, 2, 0, 30]);
    if level == 5 {
        body.push(0);
    }
    body.extend(u16::try_from(id.len()).unwrap().to_be_bytes());
    body.extend(id.as_bytes());
    let mut packet = vec![0x10, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    packet
}

/// SUBSCRIBE with QoS 1, packet id 1.
pub fn subscribe_packet(filter: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
    body.extend(filter.as_bytes());
    body.push(1);
    let mut packet = vec![0x82, u8::try_from(body.len()).unwrap()];
    packet.extend(body);
    packet
}
