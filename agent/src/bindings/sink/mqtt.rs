//! Publishes one answer after the other. Delivered means: acknowledged by the broker with QoS 1, written to the
//! connection with QoS 0. An answer whose acknowledgement a broken line swallowed is published again.

use super::DeliverError;
use crate::bindings::{
    counts::{Counts, Side},
    mqtt::Heard,
};
use bytes::Bytes;
use rumqttc::{AsyncClient, Event, Outgoing, Packet, QoS};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};

/// Bytes of the largest answer.
pub(super) const MAX_PAYLOAD: usize = 16 << 20;
/// For a session to come about, and for an acknowledgement.
const PATIENCE: Duration = Duration::from_secs(5);

/// The session that lives now, if one does; `session` tells it from others.
#[derive(Default)]
struct State {
    client: Option<AsyncClient>,
    session: u64,
    /// Messages given to this connection, and those it got rid of; acknowledgements come in order.
    sent: u64,
    confirmed: u64,
}

pub(super) struct Publisher {
    topic: String,
    qos: QoS,
    retain: bool,
    state: Arc<watch::Sender<State>>,
}

/// Follows the session for a [`Publisher`].
pub(super) struct Announcer {
    qos: QoS,
    state: Arc<watch::Sender<State>>,
    counts: Arc<Counts>,
}

pub(super) fn pair(topic: String, qos: QoS, retain: bool, counts: Arc<Counts>) -> (Publisher, Announcer) {
    let state = Arc::new(watch::Sender::new(State::default()));
    (Publisher { topic, qos, retain, state: state.clone() }, Announcer { qos, state, counts })
}

impl Publisher {
    pub(super) async fn deliver(&self, answer: Bytes) -> Result<(), DeliverError> {
        if answer.len() > MAX_PAYLOAD {
            let found = answer.len();
            let why = format!("the answer has {found} bytes, a message may have {MAX_PAYLOAD}");
            return Err(DeliverError::Never(why));
        }
        let later = |why: &str| DeliverError::Later(why.to_owned());
        let mut state = self.state.subscribe();
        // One at a time: what the broker does not acknowledge stays in the client's memory.
        let free = |state: &State| state.client.is_some() && state.confirmed >= state.sent;
        let client = match timeout(PATIENCE, state.wait_for(free)).await {
            Ok(Ok(state)) => state.client.clone(),
            Ok(Err(_)) | Err(_) => None,
        };
        let client = client.ok_or_else(|| match self.state.borrow().client {
            None => later("there is no connection to the broker"),
            Some(_) => later("the broker does not acknowledge"),
        })?;
        let (mut session, mut ordinal) = (0, 0);
        // Counted before it is sent, or its acknowledgement could come first.
        self.state.send_modify(|state| {
            state.sent += 1;
            (session, ordinal) = (state.session, state.sent);
        });
        if client.try_publish(&self.topic, self.qos, self.retain, answer).is_err() {
            self.state.send_modify(|state| state.sent -= u64::from(state.session == session));
            return Err(later("the connection to the broker takes no more messages"));
        }
        let over =
            |state: &State| state.session != session || state.client.is_none() || state.confirmed >= ordinal;
        match timeout(PATIENCE, state.wait_for(over)).await {
            Ok(Ok(state)) if state.session == session && state.confirmed >= ordinal => Ok(()),
            Ok(_) => Err(later("the connection to the broker broke")),
            Err(_) => Err(later("the broker does not acknowledge")),
        }
    }
}

impl Heard for Announcer {
    fn connected(&mut self, client: &AsyncClient) {
        self.state.send_modify(|state| {
            *state =
                State { client: Some(client.clone()), session: state.session + 1, sent: 0, confirmed: 0 };
        });
        self.counts.up(Side::Sink);
    }

    fn heard(&mut self, event: Event) -> Result<(), String> {
        let confirms = match event {
            Event::Outgoing(Outgoing::Publish(_)) => self.qos == QoS::AtMostOnce,
            Event::Incoming(Packet::PubAck(_)) => self.qos == QoS::AtLeastOnce,
            _ => false,
        };
        if confirms {
            self.state.send_modify(|state| state.confirmed += 1);
        }
        Ok(())
    }

    fn ended(&mut self) {
        self.state.send_modify(|state| state.client = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::config::{Binding, BodyKind, Sink, Source};
    use rumqttc::MqttOptions;

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_acknowledges_nothing_is_sent_one_answer() {
        let binding = Binding {
            name: "door".into(),
            slot: "digits".parse().unwrap(),
            body: BodyKind::Json,
            answer: crate::serving::local::Form::Compact,
            tells_errors: true,
            queue: 1,
            between: None,
            source: Source::Stdin,
            sink: Sink::None,
        };
        let counts = Arc::new(Counts::new(&binding));
        let (publisher, mut announcer) = pair("t".into(), QoS::AtLeastOnce, false, counts);
        let (client, _connection) = AsyncClient::new(MqttOptions::new("a", "127.0.0.1", 1), 16);
        announcer.connected(&client);
        for _ in 0..3 {
            let refused = publisher.deliver(Bytes::from_static(b"x")).await.unwrap_err();
            assert_eq!(refused, DeliverError::Later("the broker does not acknowledge".into()));
        }
        assert_eq!(publisher.state.borrow().sent, 1, "the others never came to the client");
        announcer.connected(&client);
        assert!(publisher.deliver(Bytes::from_static(b"x")).await.is_err());
        assert_eq!(publisher.state.borrow().sent, 1, "a new session begins anew");
    }
}
