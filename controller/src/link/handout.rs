//! Sends desired states: when intents change, when a device connects or says something unexpected,
//! and before they expire.

use crate::{
    broker::{Broker, Message, Qos},
    clock,
    desired::{DesiredError, DesiredStates, Reason},
    findings::{FindingCode, Findings},
    signing::trust_store::TrustStore,
};
use edgefleet_shared::{
    ids::DeviceId,
    topics::{Channel, TRUST_HEAD},
};
use std::{collections::BTreeMap, sync::Arc};

pub struct HandOut {
    states: DesiredStates,
    broker: Arc<dyn Broker>,
    trust: Arc<TrustStore>,
    findings: Arc<Findings>,
}

impl HandOut {
    pub fn new(
        states: DesiredStates,
        broker: Arc<dyn Broker>,
        trust: Arc<TrustStore>,
        findings: Arc<Findings>,
    ) -> Self {
        Self { states, broker, trust, findings }
    }

    pub fn states(&self) -> &DesiredStates {
        &self.states
    }

    /// Brings `device` up to date and publishes if something changed or `always`.
    ///
    /// Errors are logged here: the next connect, report or pass of the driver tries again.
    pub async fn send(&self, device: &DeviceId, reason: &Reason, always: bool) {
        if self.findings.isolates(device) {
            tracing::debug!(%device, "desired.withhold: two agents share this identity");
            return;
        }
        let trust_version = self.trust.head().version;
        let outgoing = match self.states.refresh(device, reason, trust_version, clock::now()).await {
            Ok(Some(outgoing)) => outgoing,
            Ok(None) => return,
            Err(DesiredError::Quarantined { device, reason: why }) => {
                let numbers = numbers(&[("reported", reason.reported)]);
                let code = FindingCode::ImpossibleGeneration;
                return self.findings.note(&device, code, why, numbers, clock::now()).await;
            }
            Err(error) => {
                tracing::error!(%device, %error, "desired.refresh");
                return;
            }
        };
        if outgoing.was_behind {
            let known = reason.reported.unwrap_or_default();
            let message = format!(
                "knew generation {known}, the controller an earlier one; it went on with {}",
                outgoing.generation
            );
            let numbers = numbers(&[("reported", reason.reported), ("now", Some(outgoing.generation))]);
            let code = FindingCode::ControllerStateBehind;
            self.findings.note(device, code, message, numbers, clock::now()).await;
        }
        if !outgoing.changed && !always {
            return;
        }
        let message = Message {
            topic: Channel::Desired.of(device),
            payload: outgoing.envelope.into(),
            retain: true,
            qos: Qos::AtLeastOnce,
        };
        if let Err(error) = self.broker.publish(message).await {
            tracing::warn!(%device, %error, "desired.publish");
        }
    }

    /// Tells every device where the chain of trust ends.
    pub async fn announce_trust(&self) {
        let head = self.trust.head();
        let message = Message {
            topic: TRUST_HEAD.to_owned(),
            payload: serde_json::to_vec(&head).unwrap_or_default().into(), // plain data: cannot fail
            retain: true,
            qos: Qos::AtLeastOnce,
        };
        if let Err(error) = self.broker.publish(message).await {
            tracing::warn!(%error, "trust.announce");
        }
    }

    /// Removes what the broker keeps for a device that is gone.
    pub async fn clear(&self, device: &DeviceId) {
        for channel in [Channel::Desired, Channel::Reported, Channel::Presence] {
            let message = Message {
                topic: channel.of(device),
                payload: bytes::Bytes::new(),
                retain: true,
                qos: Qos::AtLeastOnce,
            };
            if let Err(error) = self.broker.publish(message).await {
                tracing::warn!(%device, %error, "desired.clear");
            }
        }
    }
}

fn numbers(named: &[(&str, Option<u64>)]) -> BTreeMap<String, u64> {
    named.iter().filter_map(|(name, number)| Some(((*name).to_owned(), (*number)?))).collect()
}
