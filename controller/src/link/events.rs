//! Routes what devices say.

use super::{
    handout::HandOut,
    lanes::Lanes,
    resend::{Resends, Said},
    takeovers::Takeovers,
};
use crate::{
    broker::{BrokerEvent, Upstream},
    clock,
    desired::Reason,
    findings::{FindingCode, Findings},
    fleet::Fleet,
    ingest::IngestQueue,
    rollouts::Clerk,
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
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

/// Counters for `/metrics`.
#[derive(Debug, Default)]
pub struct EventTotals {
    pub messages: AtomicU64,
    /// Messages that were not what their topic promises.
    pub malformed: AtomicU64,
    pub takeovers: AtomicU64,
    /// Messages of devices that sent faster than they could be taken.
    pub shed: AtomicU64,
}

/// A [`BrokerEvent`] about one device.
enum DeviceEvent {
    Message { channel: Channel, payload: Bytes, retained: bool },
    Connected,
    Gone(String),
    Takeover,
}

/// Everything one event may touch.
pub struct EventLoop {
    pub fleet: Arc<Fleet>,
    pub hand_out: Arc<HandOut>,
    pub ingest: IngestQueue,
    pub clerk: Clerk,
    pub blocks: Arc<BlockServer>,
    pub findings: Arc<Findings>,
    /// Answers to commands, for whoever waits for one.
    pub replies: broadcast::Sender<Reply>,
    pub totals: Arc<EventTotals>,
    pub takeovers: Mutex<Takeovers>,
    pub resends: Mutex<Resends>,
}

impl EventLoop {
    /// Runs until the broker stops or `stop` is cancelled; what was taken until then is finished.
    pub async fn run(self, mut events: mpsc::Receiver<BrokerEvent>, stop: CancellationToken) {
        let this = Arc::new(self);
        let lanes = {
            let this = this.clone();
            Lanes::start(move |device, event| {
                let this = this.clone();
                async move { this.handle(device, event).await }
            })
        };
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = stop.cancelled() => None,
            };
            match event {
                None => break,
                Some(BrokerEvent::Upstream(upstream)) => this.upstream(upstream).await,
                Some(BrokerEvent::Message { device, channel, payload, retained }) => {
                    this.totals.messages.fetch_add(1, Ordering::Relaxed);
                    let bytes = payload.len();
                    let event = DeviceEvent::Message { channel, payload, retained };
                    if !lanes.put(device.clone(), event, bytes).await {
                        this.totals.shed.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(%device, %channel, "message.shed: the device sends too fast");
                    }
                }
                Some(BrokerEvent::Connected { device, .. }) => {
                    lanes.put_always(device, DeviceEvent::Connected).await;
                }
                Some(BrokerEvent::Disconnected { device, reason, .. }) => {
                    lanes.put_always(device, DeviceEvent::Gone(reason.to_string())).await;
                }
                Some(BrokerEvent::Takeover { device }) => {
                    lanes.put_always(device, DeviceEvent::Takeover).await;
                }
            }
        }
        lanes.finish().await;
    }

    async fn upstream(&self, upstream: Upstream) {
        match upstream {
            Upstream::Up => {
                tracing::info!("broker.up");
                self.hand_out.announce_trust().await;
            }
            Upstream::Down { reason } => tracing::warn!(reason, "broker.down"),
        }
    }

    async fn handle(&self, device: DeviceId, event: DeviceEvent) {
        match event {
            DeviceEvent::Message { channel, payload, retained } => {
                self.message(device, channel, payload, retained).await;
            }
            // The device's own presence and report follow; they say more.
            DeviceEvent::Connected => self.fleet.record_seen(&device),
            DeviceEvent::Gone(reason) => self.presence(&device, false, &reason).await,
            DeviceEvent::Takeover => {
                self.totals.takeovers.fetch_add(1, Ordering::Relaxed);
                let now = clock::now();
                if self.takeovers.lock().note(&device, now) {
                    let message = "two agents use this identity in turns".to_owned();
                    let code = FindingCode::DuplicateIdentity;
                    self.findings.note(&device, code, message, BTreeMap::new(), now).await;
                }
            }
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
        let before = known.status.reported.as_ref().filter(|last| last.boot == report.boot);
        if report.seq > 0 && before.is_some_and(|last| last.seq >= report.seq) {
            tracing::debug!(%device, seq = report.seq, "an older report came late, or again");
            return;
        }
        let last = known.status.reported.as_ref().map(|last| last.boot);
        let first = !known.status.online || last != Some(report.boot);
        let (generation, boot) = (report.generation, report.boot);
        self.presence(&device, true, "online").await;
        self.clerk.take(report.clone()).await;
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
