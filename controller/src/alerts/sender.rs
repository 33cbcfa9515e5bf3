//! One try at one channel, whatever its way.

use super::{
    channel::{Channel, Way},
    delivery::{Delivery, Outcome},
    email::MailSender,
    webhook::HttpSender,
};
use edgefleet_shared::time::Timestamp;
use std::time::Duration;

/// Longest sentence about a failure, characters.
const MAX_ERROR: usize = 300;

/// How a try went, and what it means for the next one.
#[derive(Clone)]
pub(super) struct Tried {
    pub(super) outcome: Outcome,
    /// The receiver wants to be left alone for so long.
    pub(super) asked: Option<Duration>,
    /// No other try will do better.
    pub(super) hopeless: bool,
}

impl Tried {
    pub(super) fn of(outcome: Outcome) -> Self {
        Self { outcome, asked: None, hopeless: false }
    }
}

// One of each channel, a handful in all.
#[allow(clippy::large_enum_variant)]
pub(super) enum Sender {
    Http(HttpSender),
    Mail(MailSender),
}

impl Sender {
    /// # Errors
    /// What is wrong with the channel's settings.
    pub(super) fn new(channel: &Channel) -> Result<Self, String> {
        Ok(match &channel.way {
            Way::Webhook(webhook) => Self::Http(HttpSender::new(webhook.clone())?),
            Way::Email(email) => Self::Mail(MailSender::new(email.clone())?),
        })
    }

    pub(super) async fn send(&self, delivery: &Delivery, now: Timestamp) -> Tried {
        match self {
            Self::Http(http) => http.send(delivery, now).await,
            Self::Mail(mail) => mail.send(delivery, now).await,
        }
    }
}

/// Foreign text, fit for a log and a terminal.
pub(super) fn one_line(text: &str) -> String {
    let plain = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MAX_ERROR).collect()
}
