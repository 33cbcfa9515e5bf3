//! Carries each message of the link to the part that understands it. Nothing that comes in here can
//! stop the agent: what is not understood is counted, logged and forgotten.

use super::report::Latest;
use crate::{
    capture::Captures,
    identity::TrustedClock,
    link::{
        LinkEvent, LinkHandle, QoS,
        command::{CommandGate, reply},
        sender::Signal,
    },
    monitor::Monitor,
    store::durable::{DurableSlots, Loaded},
    update::{Blocks, Command},
};
use bytes::Bytes;
use edgefleet_shared::{
    ids::DeviceId,
    message::{self, Action, Labels, MESSAGE_SCHEMA, TrustHead},
    topics::{Channel, MAX_PAYLOAD_BYTES},
    transfer::BlockFrame,
    trust::{DeviceTrust, Trust},
};
use parking_lot::RwLock;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::{Notify, mpsc};
use tracing::{error, info, warn};

pub(super) struct Router {
    pub(super) device: DeviceId,
    pub(super) trust_dir: PathBuf,
    pub(super) clock: Arc<TrustedClock>,
    pub(super) link: LinkHandle,
    pub(super) updater: mpsc::Sender<Command>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) sender: mpsc::Sender<Signal>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) captures: Option<Captures>,
    pub(super) report_now: Arc<Notify>,
    pub(super) latest: Latest,
    pub(super) trouble: Arc<RwLock<Option<String>>>,
    pub(super) gate: CommandGate,
    /// The trust document in force, by its version.
    pub(super) trust: Option<Trust>,
}

impl Router {
    /// Runs until the link ends.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<LinkEvent>) {
        while let Some(event) = events.recv().await {
            match event {
                LinkEvent::Connected { .. } => {
                    *self.trouble.write() = None;
                    self.tell_updater(Command::Connected);
                    self.tell_sender(Signal::Connected);
                    self.report_now.notify_one();
                }
                LinkEvent::Disconnected { reason } => *self.trouble.write() = Some(reason),
                LinkEvent::Desired(raw) => self.tell_updater(Command::Desired(raw)),
                LinkEvent::Blocks(raw) => match BlockFrame::parse(&raw) {
                    Ok(frame) => self.blocks.deliver(frame),
                    Err(e) => self.link.malformed("blocks", &e),
                },
                LinkEvent::Ack(raw) => self.tell_sender(Signal::Ack(raw)),
                LinkEvent::TrustHead(raw) => {
                    match message::parse::<TrustHead>(&raw, MESSAGE_SCHEMA, MAX_PAYLOAD_BYTES) {
                        Ok(head) => self.tell_updater(Command::TrustHead(head)),
                        Err(e) => self.link.malformed("trust/head", &e),
                    }
                }
                LinkEvent::Label(raw) => {
                    match message::parse::<Labels>(&raw, MESSAGE_SCHEMA, MAX_PAYLOAD_BYTES) {
                        Ok(labels) => self.label(&labels),
                        Err(e) => self.link.malformed("label", &e),
                    }
                }
                LinkEvent::Command(raw) => self.command(&raw).await,
            }
        }
    }

    /// Never waits: the updater may be busy with files while blocks for it must be delivered. What
    /// does not fit comes again at the next connect.
    fn tell_updater(&self, command: Command) {
        if self.updater.try_send(command).is_err() {
            error!("the updater does not take messages");
        }
    }

    fn tell_sender(&self, signal: Signal) {
        if self.sender.try_send(signal).is_err() {
            warn!("the telemetry sender does not take messages; it will send again");
        }
    }

    fn label(&self, labels: &Labels) {
        self.monitor.join_from_controller(labels);
        if let Some(captures) = &self.captures {
            labels.labels.iter().for_each(|label| captures.labelled(&label.prediction, 0, &label.label));
        }
    }

    async fn command(&mut self, raw: &Bytes) {
        let Some(trust) = self.trust_in_force().await else {
            return warn!("a command came before this device trusts anyone");
        };
        let admitted = self.gate.admit(raw, &self.device, &trust, self.clock.now());
        self.trust = Some(trust);
        let command = match admitted {
            Ok(command) => command,
            // Not answered: whoever cannot sign commands learns nothing from us.
            Err(e) => {
                self.link.malformed("command", &anyhow::Error::new(e).root_cause().to_string());
                return;
            }
        };
        info!(id = %command.id, action = ?command.action, "command");
        let mut error = None;
        match command.action {
            Action::Ping => {}
            Action::Capture { slot, count } => {
                if !self.captures.as_ref().is_some_and(|captures| captures.command(&slot, count)) {
                    error = Some(format!("slot `{slot}` has no capture policy here"));
                }
            }
            Action::Report => {
                // What was counted so far goes along: the asker wants all of it.
                self.monitor.flush();
                self.tell_updater(Command::Report);
                self.tell_sender(Signal::Again);
                self.report_now.notify_one();
            }
        }
        let answer = reply(&self.device, &command.id, error);
        if let Err(reason) = self.link.publish(Channel::Reply, answer, false, QoS::AtLeastOnce).await {
            warn!(%reason, id = %command.id, "the answer to a command was not sent");
        }
    }

    /// What the updater has made durable; read again when its version moved.
    async fn trust_in_force(&mut self) -> Option<Trust> {
        let version = self.latest.borrow().as_ref().map(|report| report.trust_version);
        if let Some(trust) = self.trust.take()
            && Some(trust.version) == version
        {
            return Some(trust);
        }
        let dir = self.trust_dir.clone();
        let read = tokio::task::spawn_blocking(move || DurableSlots::<DeviceTrust>::open(&dir, "trust"));
        match read.await.ok()?.ok()?.1 {
            Loaded::Value(state) => Some(state.trust),
            Loaded::Absent | Loaded::Lost(_) => None,
        }
    }
}
