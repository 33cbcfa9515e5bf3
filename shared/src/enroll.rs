//! First contact: the join code and the two HTTPS messages of enrolment.

use crate::{
    digest::{BlobDigest, EnvelopeDigest},
    ids::{DeviceId, InviteId},
    reported::Facts,
    time::Timestamp,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

pub const ENROLL_SCHEMA: u32 = 1;
const PREFIX: &str = "ef1-";
const MAX_CODE_BYTES: usize = 2048;

/// Everything a new device needs to find its controller and to know it is the right one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinCode {
    /// `https://host:port`
    #[serde(rename = "u")]
    pub url: String,
    /// SHA-256 of the controller's CA certificate (DER).
    #[serde(rename = "c")]
    pub ca_pin: BlobDigest,
    #[serde(rename = "i")]
    pub invite: InviteId,
    #[serde(rename = "s")]
    pub secret: String,
    /// The trust document that was current when the invite was made.
    #[serde(rename = "t")]
    pub trust_pin: EnvelopeDigest,
}

/// Why a text is not a join code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinCodeError {
    #[error("a join code starts with `{PREFIX}`; ask for one with `edgefleet device invite`")]
    Prefix,
    #[error("the join code is damaged or incomplete: {reason}")]
    Damaged { reason: String },
}

impl fmt::Display for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}
impl fmt::Debug for JoinCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinCode({} of {})", self.invite, self.url) // never the secret
    }
}
impl FromStr for JoinCode {
    type Err = JoinCodeError;
    fn from_str(text: &str) -> Result<Self, JoinCodeError> {
        let damaged = |reason: String| JoinCodeError::Damaged { reason };
        if text.len() > MAX_CODE_BYTES {
            return Err(damaged(format!("{} characters, at most {MAX_CODE_BYTES}", text.len())));
        }
        let body = text.trim().strip_prefix(PREFIX).ok_or(JoinCodeError::Prefix)?;
        let json = URL_SAFE_NO_PAD.decode(body).map_err(|e| damaged(e.to_string()))?;
        serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))
    }
}

/// POST `/api/v1/enroll`. The CSR's own signature proves that the device holds the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnrollRequest {
    pub schema: u32,
    pub invite: InviteId,
    pub secret: String,
    /// PEM certificate signing request (PKCS#10).
    pub csr: String,
    /// Set when a device enrols again; needs the same key as before, or an approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub facts: Facts,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum EnrollResponse {
    Enrolled(Box<Enrolled>),
    /// A person has to approve first: ask again with the same request.
    Pending {
        retry_after_secs: u64,
    },
}

/// What an enrolled device keeps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Enrolled {
    pub device: DeviceId,
    /// PEM, leaf first.
    pub certificate: String,
    /// PEM of the controller's CA.
    pub ca: String,
    /// Signed trust documents from the pinned one to the newest, as base64 of their exact bytes.
    pub trust: Vec<String>,
    /// Where the MQTT broker listens: host and port.
    pub mqtt_host: String,
    pub mqtt_port: u16,
    pub issued: Timestamp,
}

/// POST `/api/v1/device/renew` over mTLS, and `/api/v1/renew-expired` with the old certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    pub schema: u32,
    pub csr: String,
    /// The expired certificate (PEM), for `renew-expired` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewResponse {
    pub certificate: String,
    pub ca: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_codes_survive_the_round_trip_and_damage_is_noticed() {
        let code = JoinCode {
            url: "https://controller:8443".into(),
            ca_pin: BlobDigest::of(b"ca"),
            invite: "inv-1".parse().unwrap(),
            secret: "s3cret".into(),
            trust_pin: EnvelopeDigest::of(b"trust"),
        };
        let text = code.to_string();
        assert_eq!(format!(" {text}\n").parse::<JoinCode>().unwrap(), code);
        assert!(!format!("{code:?}").contains("s3cret"));
        assert_eq!("hello".parse::<JoinCode>(), Err(JoinCodeError::Prefix));
        assert!(matches!(text[..text.len() - 9].parse::<JoinCode>(), Err(JoinCodeError::Damaged { .. })));
    }
}
