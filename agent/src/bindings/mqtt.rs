//! A session with a local broker that comes back after every loss.
//!
//! As in [`crate::link`], every session gets a client of its own: nothing of a lost one is carried over. In clear text,
//! so only to addresses of this machine and its site unless the settings say otherwise; names are resolved here, each
//! time, and the address that was judged is the one connected to.

use super::{
    config::{Broker, Qos, is_near},
    counts::{Counts, Side},
};
use crate::{
    link::backoff::{Backoff, Ended},
    store::files,
};
use edgefleet_shared::ids::{DeviceId, SlotName};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, MqttOptions, NetworkOptions, Packet, QoS,
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{net::lookup_host, time::Instant};

/// Longest wait for a broker that is near.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const CONNECT_SECS: u64 = 10;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Messages on their way to the broker.
const QUEUE: usize = 16;
/// Topic and header around the largest payload.
const PACKET_OVERHEAD: usize = 1 << 17;
const MAX_PASSWORD: u64 = 1_024;

/// Who a session is.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) binding: &'a str,
    pub(super) slot: &'a SlotName,
}

/// What a topic may hold in place of a name.
pub(super) const PLACEHOLDERS: [&str; 3] = ["{device}", "{slot}", "{binding}"];

/// `topic` with `names` in place of [`PLACEHOLDERS`], in their order.
pub(super) fn fill(topic: &str, names: [&str; 3]) -> String {
    let mut filled = topic.to_owned();
    for (placeholder, name) in PLACEHOLDERS.into_iter().zip(names) {
        filled = filled.replace(placeholder, name);
    }
    filled
}

impl Names<'_> {
    pub(super) fn fill(&self, topic: &str) -> String {
        fill(topic, [self.device.as_str(), self.slot.as_str(), self.binding])
    }
}

impl From<Qos> for QoS {
    fn from(qos: Qos) -> Self {
        match qos {
            Qos::AtMostOnce => QoS::AtMostOnce,
            Qos::AtLeastOnce => QoS::AtLeastOnce,
        }
    }
}

/// What a session does with what it hears.
pub(super) trait Heard: Send {
    /// The broker took the session.
    fn connected(&mut self, client: &AsyncClient);
    /// `Err` ends the session.
    fn heard(&mut self, event: Event) -> Result<(), String>;
    fn ended(&mut self);
}

/// One side of a binding at its broker.
pub(super) struct Session {
    pub(super) broker: Broker,
    pub(super) client_id: String,
    pub(super) side: Side,
    pub(super) counts: Arc<Counts>,
    /// Bytes of the largest payload from the broker, and to it.
    pub(super) payload_in: usize,
    pub(super) payload_out: usize,
}

impl Session {
    /// Connects again and again, for ever. Tells `counts` when it cannot; when it can, `with` knows.
    pub(super) async fn hold(&self, with: &mut dyn Heard) {
        let mut backoff = Backoff::default();
        loop {
            let (ended, trouble) = self.once(with).await;
            with.ended();
            self.counts.down(self.side, &trouble);
            let pause = backoff.after(ended, rand::random()).pause.min(LONGEST_PAUSE);
            tokio::time::sleep(pause).await;
        }
    }

    async fn once(&self, with: &mut dyn Heard) -> (Ended, String) {
        let options = match self.options().await {
            Ok(options) => options,
            Err(trouble) => return (Ended::NeverConnected, trouble),
        };
        let (client, mut connection) = AsyncClient::new(options, QUEUE);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(CONNECT_SECS);
        connection.set_network_options(network);
        let mut since: Option<Instant> = None;
        let over = |since: Option<Instant>, trouble: String| match since {
            None => (Ended::NeverConnected, trouble),
            Some(since) => (Ended::Broke { lived: since.elapsed() }, trouble),
        };
        loop {
            let heard = match connection.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    since = Some(Instant::now());
                    with.connected(&client);
                    Ok(())
                }
                Ok(event) => with.heard(event),
                Err(error) => Err(explain(&error)),
            };
            if let Err(trouble) = heard {
                return over(since, format!("{}: {trouble}", self.broker));
            }
        }
    }

    async fn options(&self) -> Result<MqttOptions, String> {
        let broker = &self.broker;
        let host = match address(broker).await? {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let mut options = MqttOptions::new(&self.client_id, host, broker.port);
        let packet = |payload: usize| payload.saturating_add(PACKET_OVERHEAD);
        options
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(true)
            .set_max_packet_size(packet(self.payload_in), packet(self.payload_out));
        if let Some(username) = &broker.username {
            let password = match &broker.password_file {
                None => String::new(),
                Some(path) => {
                    let unread = |reason: String| format!("password file `{}`: {reason}", path.display());
                    let bytes = files::read_bounded(path, MAX_PASSWORD).map_err(|e| unread(e.to_string()))?;
                    let text = String::from_utf8(bytes).map_err(|_| unread("is not UTF-8".into()))?;
                    text.trim_end_matches(['\r', '\n']).to_owned()
                }
            };
            options.set_credentials(username, password);
        }
        Ok(options)
    }
}

/// The address to connect to.
async fn address(broker: &Broker) -> Result<IpAddr, String> {
    let found = lookup_host((broker.host.as_str(), broker.port));
    let found = tokio::time::timeout(Duration::from_secs(CONNECT_SECS), found)
        .await
        .map_err(|_| format!("{broker}: the name was not resolved in {CONNECT_SECS} s"))?
        .map_err(|e| format!("{broker}: {e}"))?;
    choose(broker, found.map(|address| address.ip()))
}

/// The first address that may be used.
fn choose(broker: &Broker, found: impl Iterator<Item = IpAddr>) -> Result<IpAddr, String> {
    let mut far = None;
    for address in found {
        if broker.allow_plaintext || is_near(address) {
            return Ok(address);
        }
        far = far.or(Some(address));
    }
    Err(match far {
        None => format!("{broker} has no address"),
        Some(far) => format!(
            "{broker} is {far}, which is neither loopback nor private, and inputs would travel in clear text; \
             write `allow_plaintext = true` if that is meant"
        ),
    })
}

fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword,
        ) => "the broker does not accept user name and password".into(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_leads_away_is_not_followed_in_clear_text() {
        let broker = |allow_plaintext| Broker {
            host: "broker.lan".into(),
            port: 1883,
            username: None,
            password_file: None,
            allow_plaintext,
        };
        for (found, allow, chosen) in [
            (vec!["8.8.8.8", "10.0.0.1"], false, Some("10.0.0.1")),
            (vec!["8.8.8.8"], false, None),
            (vec!["8.8.8.8"], true, Some("8.8.8.8")),
            (vec![], true, None),
        ] {
            let addresses = found.iter().map(|text| text.parse().unwrap());
            let found = choose(&broker(allow), addresses).ok();
            assert_eq!(found, chosen.map(|text| text.parse().unwrap()));
        }
        let text = choose(&broker(false), ["8.8.8.8".parse().unwrap()].into_iter()).unwrap_err();
        assert!(text.contains("broker.lan:1883 is 8.8.8.8, which is neither"), "{text}");
    }

    #[test]
    fn topics_are_filled_with_names() {
        let (device, slot) = ("dev-1".parse().unwrap(), "digits".parse().unwrap());
        let names = Names { device: &device, binding: "door", slot: &slot };
        assert_eq!(names.fill("a/{device}/{slot}/{binding}/{slot}"), "a/dev-1/digits/door/digits");
    }
}
