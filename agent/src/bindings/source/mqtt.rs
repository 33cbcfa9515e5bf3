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
