//! Messages of a topic filter. What comes faster than the model answers pushes older messages out.

use crate::{
    bindings::{
        config::{Binding, Broker},
        counts::{Counts, Side},
        mqtt::{Heard, Names, Session},
        queue::{Item, Queue},
        worker::body,
    },
    serving::local::Room,
};
use bytes::Bytes;
use rumqttc::{AsyncClient, Event, Packet, QoS, SubscribeReasonCode};
use std::sync::{Arc, atomic::Ordering};

/// Bytes of a topic that becomes the id of an answer.
const MAX_ID: usize = 1_024;

pub(super) struct Subscriber<'a> {
    pub(super) binding: &'a Binding,
    pub(super) filter: &'a str,
    pub(super) qos: QoS,
    pub(super) queue: &'a Queue,
    pub(super) counts: &'a Arc<Counts>,
    /// Memory for messages that wait.
    pub(super) room: &'a (dyn Fn(usize) -> Result<Room, String> + Send + Sync),
}

impl Subscriber<'_> {
    /// Never ends.
    pub(super) async fn listen(mut self, broker: &Broker, names: &Names<'_>, body_limit: usize) {
        let session = Session {
            broker: broker.clone(),
            client_id: format!("edgefleet-{}-{}-in", names.device, names.binding),
            side: Side::Source,
            counts: self.counts.clone(),
            payload_in: body_limit,
            payload_out: 0, // it publishes nothing
        };
        session.hold(&mut self).await;
    }
}

impl Subscriber<'_> {
    /// Queues a message. Older ones go when there is no memory for it, and it goes itself when that is not enough.
    fn take(&self, id: Option<String>, payload: Bytes) {
        let room = loop {
            match (self.room)(payload.len()) {
                Ok(room) => break room,
                Err(_) => self.counts.dropped(1),
            }
            if !self.queue.drop_oldest() {
                return;
            }
        };
        let item = Item { id, body: body(self.binding, room.hold(payload)) };
        self.counts.dropped(self.queue.push(item));
    }
}

impl Heard for Subscriber<'_> {
    fn connected(&mut self, client: &AsyncClient) {
        client.try_subscribe(self.filter, self.qos).ok(); // the queue of a new session is empty
    }

    fn heard(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Incoming(Packet::SubAck(ack)) => {
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return Err(format!("the broker refuses a subscription to `{}`", self.filter));
                }
                self.counts.up(Side::Source);
            }
            Event::Incoming(Packet::Publish(message)) => {
                self.counts.received.fetch_add(1, Ordering::Relaxed);
                // Tells cameras apart; a topic may have 64 KiB, which no answer shall carry.
                let id = (message.topic.len() <= MAX_ID).then_some(message.topic);
                self.take(id, message.payload);
                self.counts.queued.store(self.queue.len(), Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    }

    fn ended(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bindings::config::{BodyKind, Sink, Source},
        serving::{http::ServingConfig, local::Form, state_for_tests},
    };

    #[test]
    fn messages_that_wait_count_against_the_memory_of_all_requests() {
        let binding = Binding {
            name: "door".into(),
            slot: "digits".parse().unwrap(),
            body: BodyKind::Bytes,
            answer: Form::Compact,
            tells_errors: true,
            queue: 8,
            between: None,
            source: Source::Stdin,
            sink: Sink::None,
        };
        let state = state_for_tests(ServingConfig { body_budget_bytes: 25, ..ServingConfig::default() });
        let room = |bytes| Room::of(&state, bytes).map_err(|refusal| refusal.to_string());
        let (queue, counts) = (Queue::new(8, 1_000), Arc::new(Counts::new(&binding)));
        let subscriber = Subscriber {
            binding: &binding,
            filter: "#",
            qos: QoS::AtMostOnce,
            queue: &queue,
            counts: &counts,
            room: &room,
        };
        for (bytes, waiting) in [(10, 1), (10, 2), (10, 2), (5, 3), (26, 0), (25, 1), (1, 1)] {
            subscriber.take(None, Bytes::from(vec![0; bytes]));
            assert_eq!(queue.len(), waiting, "{bytes}");
        }
        assert!(room(24).is_ok() && room(25).is_err());
        while queue.drop_oldest() {}
        assert!(room(25).is_ok());
    }
}
