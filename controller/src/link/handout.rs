//! Sends desired states: when intents change, when a device connects or says something unexpected,
//! and before they expire.

use crate::{
    broker::{Broker, Message, Qos},
    clock,
    desired::{DesiredError, DesiredStates, Reason},
};
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::DeviceId,
    message::{MESSAGE_SCHEMA, TrustHead},
    topics::{Channel, TRUST_HEAD},
};
use std::sync::Arc;

/// The newest trust document.
pub trait TrustInfo: Send + Sync {
    fn head(&self) -> (u64, EnvelopeDigest);
}

pub struct HandOut {
    states: DesiredStates,
    broker: Arc<dyn Broker>,
    trust: Arc<dyn TrustInfo>,
}

impl HandOut {
    pub fn new(states: DesiredStates, broker: Arc<dyn Broker>, trust: Arc<dyn TrustInfo>) -> Self {
        Self { states, broker, trust }
    }

    pub fn states(&self) -> &DesiredStates {
        &self.states
    }

    /// Brings `device` up to date and publishes if something changed or `always`.
    ///
    /// Errors are logged here: the next connect, report or pass of the driver tries again.
    pub async fn send(&self, device: &DeviceId, reason: &Reason, always: bool) {
        let (trust_version, _) = self.trust.head();
        let outgoing = match self.states.refresh(device, reason, trust_version, clock::now()).await {
            Ok(Some(outgoing)) => outgoing,
            Ok(None) => return,
            Err(error @ DesiredError::Quarantined { .. }) => {
                tracing::warn!(%device, %error, "desired.withhold");
                return;
            }
            Err(error) => {
                tracing::error!(%device, %error, "desired.refresh");
                return;
            }
        };
        if outgoing.was_behind {
            tracing::warn!(
                %device,
                generation = outgoing.generation,
                "controller-state-behind: the device knew a later generation; going on beyond it"
            );
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
        let (version, digest) = self.trust.head();
        let head = TrustHead { schema: MESSAGE_SCHEMA, version, digest };
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
