//! Where alerts go and which ones: what the server's settings say of one receiver.

use super::event::{AlertEvent, AlertKind, Severity};
use lettre::message::Mailbox;
use reqwest::Url;
use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

/// Longest name of a channel: it stands in ids and labels.
const MAX_NAME: usize = 32;

/// One receiver.
#[derive(Clone, Debug)]
pub struct Channel {
    pub name: ChannelName,
    pub wants: Wants,
    /// Alerts of one source within so long after the first are told together; 0: each alone.
    pub digest: Duration,
    pub way: Way,
}

/// How a channel is called: 1 to 32 of `a-z`, `0-9` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChannelName(String);

impl ChannelName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ChannelName {
    type Err = ChannelNameError;
    fn from_str(text: &str) -> Result<Self, ChannelNameError> {
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(good) {
            return Ok(Self(text.to_owned()));
        }
        Err(ChannelNameError { text: text.chars().take(40).collect() })
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text that names no channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no name of a channel: 1 to {MAX_NAME} of a-z, 0-9 and -")]
pub struct ChannelNameError {
    text: String,
}

/// Which alerts a channel gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Empty: all.
    pub kinds: BTreeSet<AlertKind>,
    /// `None`: all.
    pub min_severity: Option<Severity>,
}

impl Wants {
    pub fn wants(&self, event: &AlertEvent) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && self.min_severity.is_none_or(|least| event.severity >= least)
    }
}

/// The kinds that `pattern` means: one word, or `rollout.*`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn kinds_of(pattern: &str) -> Result<Vec<AlertKind>, String> {
    let Some(family) = pattern.strip_suffix('*') else {
        return pattern.parse().map(|kind| vec![kind]).map_err(|error| format!("{error}"));
    };
    let found: Vec<_> =
        AlertKind::ALL.iter().copied().filter(|kind| kind.as_str().starts_with(family)).collect();
    if found.is_empty() { Err(format!("no kind of alert begins with `{family}`")) } else { Ok(found) }
}

/// How it gets them.
#[derive(Clone, Debug)]
pub enum Way {
    Webhook(Webhook),
    Email(Email),
}

impl Way {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Email(_) => "email",
        }
    }
    /// Where it goes, without anything secret: the path of a webhook's address often is.
    pub fn target(&self) -> String {
        match self {
            Self::Webhook(webhook) => webhook.url.origin().ascii_serialization(),
            Self::Email(email) => {
                let to: Vec<_> = email.to.iter().map(|one| one.email.to_string()).collect();
                format!("{} by {}:{}", to.join(", "), email.host, email.port)
            }
        }
    }
}

/// Bytes that are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Clone)]
pub struct Webhook {
    pub url: Url,
    pub secret: Secret,
    /// A CA besides the system's, PEM.
    pub ca: Option<Vec<u8>>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("origin", &self.url.origin().ascii_serialization())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmtpTls {
    /// Encrypted after `STARTTLS`, or not at all sent.
    StartTls,
    /// Encrypted from the first byte.
    Tls,
    None,
}

impl FromStr for SmtpTls {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "starttls" => Ok(Self::StartTls),
            "tls" => Ok(Self::Tls),
            "none" => Ok(Self::None),
            _ => Err("not `starttls`, `tls` or `none`".to_owned()),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Email {
    pub host: String,
    pub port: u16,
    pub tls: SmtpTls,
    /// User and password.
    pub login: Option<(String, Secret)>,
    pub from: Mailbox,
    pub to: Vec<Mailbox>,
    pub ca: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::time::Timestamp;

    #[test]
    fn a_channel_gets_what_it_wants() {
        let of = |kind, severity| AlertEvent::new(kind, severity, Timestamp::EPOCH, "x", "", "");
        let all = Wants::default();
        assert!(all.wants(&of(AlertKind::Test, Severity::Info)));
        let kinds = kinds_of("rollout.*").unwrap().into_iter().collect();
        let some = Wants { kinds, min_severity: Some(Severity::Warning) };
        assert!(some.wants(&of(AlertKind::RolloutPaused, Severity::Critical)));
        assert!(some.wants(&of(AlertKind::RolloutPaused, Severity::Warning)));
        assert!(!some.wants(&of(AlertKind::RolloutFinished, Severity::Info)));
        assert!(!some.wants(&of(AlertKind::FindingOpened, Severity::Critical)));
        assert!(kinds_of("rolout.*").is_err() && kinds_of("rollout").is_err());
    }

    #[test]
    fn nothing_secret_is_shown() {
        let url = "https://user:pw@hooks.example.com/T0/very-secret?key=1".parse().unwrap();
        let way = Way::Webhook(Webhook { url, secret: Secret::new("0123456789abcdef"), ca: None });
        assert_eq!(way.target(), "https://hooks.example.com");
        let shown = format!("{way:?} {:?}", Secret::new("hunter2"));
        for secret in ["pw", "very-secret", "key=1", "0123", "hunter2"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}
