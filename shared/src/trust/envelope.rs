//! DSSE envelopes: signatures over exact bytes, checked before the payload is parsed.
//!
//! Source: Dead Simple Signing Envelope 1.0 (secure-systems-lab/dsse), pre-authentication encoding
//! `"DSSEv1" SP len(type) SP type SP len(payload) SP payload`. No JSON canonicalisation anywhere.

use super::{
    documents::{Role, RoleName, Trust},
    keys::{KeyId, SigningKey},
};
use crate::time::Timestamp;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;

/// Largest signed document in bytes, envelope included.
pub const MAX_ENVELOPE_BYTES: usize = 128 * 1024;
/// More signatures than this are not even looked at.
const MAX_SIGNATURES: usize = 16;

pub const TRUST_TYPE: &str = "application/vnd.edgefleet.trust.v1+json";
pub const RELEASE_TYPE: &str = "application/vnd.edgefleet.release.v1+json";
pub const DESIRED_TYPE: &str = "application/vnd.edgefleet.desired.v1+json";
/// What a rollout decided and from which numbers; for the audit log, devices do not read it.
pub const VERDICT_TYPE: &str = "application/vnd.edgefleet.verdict.v1+json";
pub const COMMAND_TYPE: &str = "application/vnd.edgefleet.command.v1+json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Base64 of the document.
    pub payload: String,
    pub signatures: Vec<Signature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    pub keyid: KeyId,
    pub sig: String,
}

/// Why a signed document was refused. Nothing in it was acted upon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("document has {found} bytes, {limit} are allowed")]
    TooLarge { found: usize, limit: usize },
    #[error("not a signed document: {reason}")]
    Malformed { reason: String },
    #[error("a `{wanted}` was expected, this is `{found}`")]
    WrongType { wanted: &'static str, found: String },
    #[error("{good} of {threshold} valid {role} signatures (keys present: {present})")]
    Threshold { role: RoleName, good: usize, threshold: usize, present: String },
    #[error("trust {found} cannot follow trust {current}")]
    TrustOrder { current: u64, found: u64 },
    #[error("trust document {version} is unusable: {reason}")]
    TrustInvalid { version: u64, reason: String },
    #[error("trust {wanted} is needed, this device has only {have}")]
    TrustBehind { have: u64, wanted: u64 },
    #[error("trust document does not match its pin")]
    TrustPin,
    #[error("{what} expired at {expired}, it is {now}")]
    Expired { what: &'static str, expired: Timestamp, now: Timestamp },
    #[error("document is for device `{found}`")]
    WrongDevice { found: String },
    #[error("schema {found} is not understood")]
    UnknownSchema { found: u32 },
    #[error("generation {found} is older than {current}")]
    Replayed { current: u64, found: u64 },
    #[error("generation {generation} came twice with different content")]
    Equivocation { generation: u64 },
    #[error("this device lost its state and takes only an assignment that answers its nonce")]
    NonceMissing,
    #[error("release `{found}` is not the `{wanted}` that was assigned")]
    ReleaseMismatch { wanted: String, found: String },
    #[error("release counter {found} of `{model}` is below the floor {floor}")]
    BelowFloor { model: String, floor: u64, found: u64 },
    #[error("release is for hardware {wanted}, this device is `{found}`")]
    WrongHardware { wanted: String, found: String },
}

/// The bytes that are signed.
pub fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Signs `document` with every key and returns the envelope's bytes.
pub fn seal<T: Serialize>(payload_type: &str, document: &T, keys: &[&SigningKey]) -> Vec<u8> {
    let payload = serde_json::to_vec(document).unwrap_or_default(); // plain data: cannot fail
    let mut envelope = Envelope {
        payload_type: payload_type.to_owned(),
        payload: BASE64.encode(&payload),
        signatures: vec![],
    };
    for key in keys {
        envelope.add_signature(key, &payload);
    }
    envelope.to_bytes()
}

impl Envelope {
    /// # Errors
    /// [`TrustError::TooLarge`] or [`TrustError::Malformed`]; signatures are not checked here.
    pub fn parse(raw: &[u8]) -> Result<Self, TrustError> {
        if raw.len() > MAX_ENVELOPE_BYTES {
            return Err(TrustError::TooLarge { found: raw.len(), limit: MAX_ENVELOPE_BYTES });
        }
        serde_json::from_slice(raw).map_err(|e| TrustError::Malformed { reason: e.to_string() })
    }
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default() // plain data: cannot fail
    }
    /// # Errors
    /// [`TrustError::Malformed`] if it is not base64.
    pub fn payload(&self) -> Result<Vec<u8>, TrustError> {
        BASE64.decode(&self.payload).map_err(|e| TrustError::Malformed { reason: format!("payload: {e}") })
    }
    /// Adds a signature over `payload`, replacing an earlier one of the same key.
    pub fn add_signature(&mut self, key: &SigningKey, payload: &[u8]) {
        let keyid = key.public().id();
        let sig = BASE64.encode(key.sign(&pre_authentication(&self.payload_type, payload)));
        self.signatures.retain(|s| s.keyid != keyid);
        self.signatures.push(Signature { keyid, sig });
    }
    /// Keys of `role` with a valid signature over `payload`; each counted once.
    pub fn valid_keys(&self, trust: &Trust, role: &Role, payload: &[u8]) -> BTreeSet<KeyId> {
        let message = pre_authentication(&self.payload_type, payload);
        self.signatures
            .iter()
            .take(MAX_SIGNATURES)
            .filter(|s| role.keys.contains(&s.keyid))
            .filter_map(|s| Some((s, trust.keys.get(&s.keyid)?)))
            .filter(|(s, key)| key.id() == s.keyid)
            .filter(|(s, key)| BASE64.decode(&s.sig).is_ok_and(|sig| key.verifies(&message, &sig)))
            .map(|(s, _)| s.keyid.clone())
            .collect()
    }
}

/// Checks that enough keys of `role` in `trust` signed exactly these bytes, then parses them.
///
/// # Errors
/// [`TrustError`]; the payload is not parsed unless the threshold is met.
pub fn open<T: DeserializeOwned>(
    raw: &[u8],
    payload_type: &'static str,
    trust: &Trust,
    role: RoleName,
) -> Result<T, TrustError> {
    let envelope = Envelope::parse(raw)?;
    if envelope.payload_type != payload_type {
        let found = envelope.payload_type.chars().take(100).collect();
        return Err(TrustError::WrongType { wanted: payload_type, found });
    }
    let payload = envelope.payload()?;
    require(&envelope, trust, role, &payload)?;
    serde_json::from_slice(&payload).map_err(|e| TrustError::Malformed { reason: e.to_string() })
}

/// Fails unless the threshold of `role` in `trust` is met for `payload`.
pub(super) fn require(
    envelope: &Envelope,
    trust: &Trust,
    role: RoleName,
    payload: &[u8],
) -> Result<(), TrustError> {
    let wanted = trust.role(role);
    let good = envelope.valid_keys(trust, wanted, payload).len();
    if wanted.threshold >= 1 && good >= wanted.threshold {
        return Ok(());
    }
    // The names were not checked yet: bounded, because the text goes into reports.
    let name = |s: &Signature| s.keyid.as_str().chars().take(32).collect::<String>();
    let present: Vec<_> = envelope.signatures.iter().take(MAX_SIGNATURES).map(name).collect();
    Err(TrustError::Threshold { role, good, threshold: wanted.threshold, present: present.join(", ") })
}
