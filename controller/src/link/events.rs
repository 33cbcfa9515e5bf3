//! Routes what devices say.

use super::{
    handout::HandOut,
    resend::{Resends, Said},
    takeovers::Takeovers,
};
use crate::{
    broker::{BrokerEvent, Upstream},
    clock,
    desired::Reason,
    fleet::Fleet,
    ingest::IngestQueue,
    transfer::BlockServer,
};
use bytes::Bytes;
use edgefleet_shared::{
    ids::DeviceId,
    message::{self, MESSAGE_SCHEMA, Presence, Reply},
    reported::{REPORTED_SCHEMA, Reported},
    topics::{Channel, MAX_PAYLOAD_BYTES},
};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::{broadcast, mpsc};

/// Counters for `/metrics`.
#[derive(Debug, Default)]
pub struct EventTotals {
    pub messages: AtomicU64,
    /// Messages that were not what their topic promises.
    pub malformed: AtomicU64,
    pub takeovers: AtomicU64,
}

/// Everything one event may touch.
pub struct EventLoop {
    pub fleet: Arc<Fleet>,
    pub hand_out: Arc<HandOut>,
    pub ingest: IngestQueue,
    pub blocks: Arc<BlockServer>,
    /// Answers to commands, for whoever waits for one.
    pub replies: broadcast::Sender<Reply>,
    pub totals: Arc<EventTotals>,
    pub takeovers: Mutex<Takeovers>,
    pub resends: Mutex<Resends>,
}

impl EventLoop {
    /// Runs until the broker stops.
    pub async fn run(self, mut events: mpsc::Receiver<BrokerEvent>) {
        while let Some(event) = events.recv().await {
            self.handle(event).await;
        }
    }

    async fn handle(&self, event: BrokerEvent) {
        match event {
            BrokerEvent::Message { device, channel, payload, retained } => {
                self.totals.messages.fetch_add(1, Ordering::Relaxed);
                self.message(device, channel, payload, retained).await;
            }
            // The device's own presence and report follow; they say more.
            BrokerEvent::Connected { device, .. } => self.fleet.record_seen(&device),
            BrokerEvent::Disconnected { device, reason, .. } => {
                self.presence(&device, false, &reason.to_string()).await;
            }
            BrokerEvent::Takeover { device } => {
                self.totals.takeovers.fetch_add(1, Ordering::Relaxed);
                if self.takeovers.lock().note(&device, clock::now()) {
                    tracing::error!(%device, "duplicate-identity: two agents use this identity in turns; re-enrol one of them");
                }
            }
            BrokerEvent::Upstream(Upstream::Up) => {
                tracing::info!("broker.up");
                self.hand_out.announce_trust().await;
            }
            BrokerEvent::Upstream(Upstream::Down { reason }) => tracing::warn!(reason, "broker.down"),
        }
    }

    async fn message(&self, device: DeviceId, channel: Channel, payload: Bytes, retained: bool) {
        match channel {
            Channel::Reported => self.reported(device, &payload, retained).await,
            Channel::Presence => match message::parse::<Presence>(&payload, MESSAGE_SCHEMA, 4_096) {
                Ok(presence) if presence.device == device => {
                    // A stored "online" of an external broker is old news until the device speaks.
                    let online = presence.online && !retained;
                    self.presence(&device, online, &presence.reason).await;
                }
                Ok(_) => self.malformed(&device, channel, "names another device"),
                Err(error) => self.malformed(&device, channel, &error.to_string()),
            },
            Channel::Telemetry => {
                self.fleet.record_seen(&device);
                if let Err(error) = self.ingest.offer(&device, &payload) {
                    tracing::warn!(%device, %error, "telemetry.defer");
                }
            }
            Channel::Fetch => self.blocks.handle(device, &payload),
            Channel::Reply => match message::parse::<Reply>(&payload, MESSAGE_SCHEMA, 64 * 1024) {
                Ok(reply) if reply.device == device => {
                    // Nobody waiting is fine.
                    let _ = self.replies.send(reply);
                }
                Ok(_) => self.malformed(&device, channel, "names another device"),
                Err(error) => self.malformed(&device, channel, &error.to_string()),
            },
            Channel::Desired | Channel::Blocks | Channel::Command | Channel::Ack | Channel::Label => {
                self.malformed(&device, channel, "devices do not publish here");
            }
        }
    }

    async fn reported(&self, device: DeviceId, payload: &[u8], retained: bool) {
        let report = match message::parse::<Reported>(payload, REPORTED_SCHEMA, MAX_PAYLOAD_BYTES) {
            Ok(report) if report.device == device => report,
            Ok(_) => return self.malformed(&device, Channel::Reported, "names another device"),
            Err(error) => return self.malformed(&device, Channel::Reported, &error.to_string()),
        };
        if retained {
            return;
        }
        let reason = Reason { reported: Some(report.generation), nonce: report.nonce.clone() };
        let Ok(known) = self.fleet.device(&device) else { return };
        let last = known.status.reported.as_ref().map(|last| last.boot);
        let first = !known.status.online || last != Some(report.boot);
        let (generation, boot) = (report.generation, report.boot);
        self.presence(&device, true, "online").await;
        if let Err(error) = self.fleet.record_report(report).await {
            tracing::error!(%device, %error, "report.store");
        }
        // Behind, ahead, without state, or new on the line: (re)send what it should be.
        let stored = self.hand_out.states().stored(&device).await;
        let current = match &stored {
            Ok(Some(record)) => record.desired.generation,
            Ok(None) => 0,
            Err(error) => {
                tracing::error!(%device, %error, "desired.load");
                return;
            }
        };
        let said = Said { boot, generation, current, nonce: reason.nonce.clone() };
        let asks = generation != current || reason.nonce.is_some();
        let due = (first || asks) && self.resends.lock().is_due(&device, said, clock::now());
        if first || due {
            self.hand_out.send(&device, &reason, true).await;
        }
    }

    async fn presence(&self, device: &DeviceId, online: bool, reason: &str) {
        if let Err(error) = self.fleet.record_presence(device, online, reason).await {
            tracing::error!(%device, %error, "presence.store");
        }
    }

    fn malformed(&self, device: &DeviceId, channel: Channel, why: &str) {
        self.totals.malformed.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%device, %channel, why, "message.refuse");
    }
}
