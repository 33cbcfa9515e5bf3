//! The controller's online key, behind a trait so that it may live in a PKCS#11 token or a KMS.
//!
//! Signing blocks: a file's key takes microseconds; a remote one bounds its own wait.

use super::key_file::{self, KeyFileError};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::{
    desired::Desired,
    message::Command,
    trust::{
        Envelope, KeyId, PublicKey, SigningKey,
        envelope::{COMMAND_TYPE, DESIRED_TYPE, Signature, VERDICT_TYPE, pre_authentication},
    },
};
use serde::Serialize;
use std::{path::Path, sync::Arc};

/// Why nothing was signed. Worth repeating later: a key file does not fail here, a remote one may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    #[error("the key `{key}` could not sign: {reason}")]
    Unavailable { key: KeyId, reason: String },
    #[error("the document cannot be written as JSON: {reason}")]
    Document { reason: String },
}

/// Something that signs with one Ed25519 key.
pub trait Signer: Send + Sync {
    fn public(&self) -> PublicKey;

    /// A signature over exactly `message`, 64 bytes.
    ///
    /// # Errors
    /// [`SignerError::Unavailable`].
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError>;
}

/// A key read from a file.
pub struct FileSigner(SigningKey);

impl FileSigner {
    /// # Errors
    /// [`KeyFileError`].
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        key_file::read_private(path).map(Self)
    }
}

impl From<SigningKey> for FileSigner {
    fn from(key: SigningKey) -> Self {
        Self(key)
    }
}

impl Signer for FileSigner {
    fn public(&self) -> PublicKey {
        self.0.public()
    }
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(message))
    }
}

/// Signs what the controller says to devices.
#[derive(Clone)]
pub struct OnlineKey {
    signer: Arc<dyn Signer>,
}

impl OnlineKey {
    pub fn new(signer: Arc<dyn Signer>) -> Self {
        Self { signer }
    }
    pub fn id(&self) -> KeyId {
        self.signer.public().id()
    }

    /// The envelope's bytes, ready for `desired`.
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn sign_desired(&self, desired: &Desired) -> Result<Vec<u8>, SignerError> {
        self.sign_document(DESIRED_TYPE, desired)
    }

    /// The envelope's bytes, ready for `command`.
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn sign_command(&self, command: &Command) -> Result<Vec<u8>, SignerError> {
        self.sign_document(COMMAND_TYPE, command)
    }

    /// The envelope's bytes of a rollout's verdict, for the audit log.
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn sign_verdict<T: Serialize>(&self, verdict: &T) -> Result<Vec<u8>, SignerError> {
        self.sign_document(VERDICT_TYPE, verdict)
    }

    fn sign_document<T: Serialize>(&self, payload_type: &str, document: &T) -> Result<Vec<u8>, SignerError> {
        let payload =
            serde_json::to_vec(document).map_err(|e| SignerError::Document { reason: e.to_string() })?;
        self.sign_payload(payload_type, &payload)
    }

    fn sign_payload(&self, payload_type: &str, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        let sig = self.signer.sign(&pre_authentication(payload_type, payload))?;
        let signature = Signature { keyid: self.id(), sig: BASE64.encode(sig) };
        let envelope = Envelope {
            payload_type: payload_type.to_owned(),
            payload: BASE64.encode(payload),
            signatures: vec![signature],
        };
        Ok(envelope.to_bytes())
    }
}
