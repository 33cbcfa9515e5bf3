//! The chain of trust documents, from the first to the newest. Pure.

use bytes::Bytes;
use edgefleet_shared::{
    digest::EnvelopeDigest,
    message::{MESSAGE_SCHEMA, TrustHead},
    trust::{DeviceTrust, Trust, TrustError},
};

/// Signed trust documents in order, each checked against the one before as a device does it.
#[derive(Clone, Debug)]
pub struct TrustChain {
    state: DeviceTrust,
    first: u64,
    raw: Vec<Bytes>,
}

impl TrustChain {
    /// Begins with a document that is taken as it is: its own keys must have signed it.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn start(raw: Bytes) -> Result<Self, TrustError> {
        let state = DeviceTrust::pinned(&raw, EnvelopeDigest::of(&raw))?;
        Ok(Self { first: state.trust.version, state, raw: vec![raw] })
    }

    /// Adds the next document: signed by the threshold of the newest one and by its own.
    ///
    /// # Errors
    /// [`TrustError`]; the chain is unchanged then.
    pub fn extend(&mut self, raw: Bytes) -> Result<(), TrustError> {
        self.state.advance(&raw)?;
        self.raw.push(raw);
        Ok(())
    }

    pub fn current(&self) -> &Trust {
        &self.state.trust
    }

    /// The signed bytes of a version.
    pub fn version(&self, version: u64) -> Option<&Bytes> {
        self.raw.get(usize::try_from(version.checked_sub(self.first)?).ok()?)
    }

    /// All signed documents from `version` on, oldest first.
    pub fn since(&self, version: u64) -> &[Bytes] {
        let skip = usize::try_from(version.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.raw.get(skip..).unwrap_or_default()
    }

    /// What `trust/head` announces.
    pub fn head(&self) -> TrustHead {
        let newest = self.raw.last().map(|raw| EnvelopeDigest::of(raw));
        let digest = newest.unwrap_or_else(|| EnvelopeDigest::of(b"")); // never empty by construction
        TrustHead { schema: MESSAGE_SCHEMA, version: self.current().version, digest }
    }
}
