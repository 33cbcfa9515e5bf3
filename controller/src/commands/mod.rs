//! Commands to devices: signed, with a deadline, answered or given up.

use crate::{
    broker::{Broker, BrokerError, Message, Qos},
    clock,
    signing::signer::{OnlineKey, SignerError},
};
use edgefleet_shared::{
    digest::encode_hex,
    ids::{DeviceId, MessageId},
    message::{Action, Command, Label, Labels, MESSAGE_SCHEMA, Reply},
    topics::Channel,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::broadcast;

/// How long a device has to answer.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Labels in one message: far below the payload limit.
const LABELS_PER_MESSAGE: usize = 500;

/// Why a device did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("could not sign the command")]
    Sign(#[from] SignerError),
    #[error("could not send the command")]
    Broker(#[from] BrokerError),
    #[error("device {device} did not answer within {seconds} s; it may be offline")]
    NoAnswer { device: DeviceId, seconds: u64 },
    #[error("device {device} refused: {reason}")]
    Refused { device: DeviceId, reason: String },
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Commands {
    key: OnlineKey,
    broker: Arc<dyn Broker>,
    replies: broadcast::Sender<Reply>,
}

impl Commands {
    pub fn new(key: OnlineKey, broker: Arc<dyn Broker>, replies: broadcast::Sender<Reply>) -> Self {
        Self { key, broker, replies }
    }

    /// Sends `action` and waits for the answer.
    ///
    /// # Errors
    /// [`CommandError`].
    pub async fn send(&self, device: &DeviceId, action: Action) -> Result<(), CommandError> {
        let mut replies = self.replies.subscribe();
        let random: [u8; 16] = rand::random();
        // Hexadecimal digits are letters and digits, so this always parses.
        let Ok(id) = encode_hex(&random).parse::<MessageId>() else {
            return Err(CommandError::NoAnswer { device: device.clone(), seconds: 0 });
        };
        let nonce: [u8; 16] = rand::random();
        let command = Command {
            schema: MESSAGE_SCHEMA,
            id: id.clone(),
            device: device.clone(),
            nonce: encode_hex(&nonce),
            deadline: clock::now() + ANSWER_LIMIT * 3,
            action,
        };
        let message = Message {
            topic: Channel::Command.of(device),
            payload: self.key.sign_command(&command)?.into(),
            retain: false,
            qos: Qos::AtLeastOnce,
        };
        self.broker.publish(message).await?;
        let answer = tokio::time::timeout(ANSWER_LIMIT, async {
            loop {
                match replies.recv().await {
                    Ok(reply) if reply.id == id && reply.device == *device => return Some(reply),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        match answer.await {
            Ok(Some(reply)) if reply.ok => Ok(()),
            Ok(Some(reply)) => {
                let reason = reply.error.unwrap_or_else(|| "no reason given".to_owned());
                Err(CommandError::Refused { device: device.clone(), reason })
            }
            Ok(None) | Err(_) => {
                Err(CommandError::NoAnswer { device: device.clone(), seconds: ANSWER_LIMIT.as_secs() })
            }
        }
    }

    /// Passes truths on to the device that made the predictions. Not acknowledged: counts come back
    /// in its telemetry.
    ///
    /// # Errors
    /// [`CommandError::Broker`].
    pub async fn label(&self, device: &DeviceId, labels: Vec<Label>) -> Result<(), CommandError> {
        for chunk in labels.chunks(LABELS_PER_MESSAGE) {
            let labels =
                Labels { schema: MESSAGE_SCHEMA, source: "controller".into(), labels: chunk.to_vec() };
            let message = Message {
                topic: Channel::Label.of(device),
                payload: serde_json::to_vec(&labels).unwrap_or_default().into(), // plain data: cannot fail
                retain: false,
                qos: Qos::AtLeastOnce,
            };
            self.broker.publish(message).await?;
        }
        Ok(())
    }
}
