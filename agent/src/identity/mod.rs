//! Who this device is: its key, its certificate, its first contact.
//!
//! [`enroll`] turns a join code into an [`Identity`]; [`renew`] keeps its certificate alive;
//! [`tls`] is what both HTTPS and MQTT connect with; [`time`] decides which time certificates are
//! judged by.

pub mod enroll;
pub mod folder;
pub mod https;
pub mod renew;
pub mod signer;
#[cfg(test)]
pub(crate) mod test_server;
pub mod time;
pub mod tls;

use edgefleet_shared::{
    ids::DeviceId,
    time::Timestamp,
    trust::{DeviceTrust, TrustError},
};
pub use folder::{ControllerFile, FolderError, load};
use rustls::ClientConfig;
pub use signer::DeviceSigner;
use std::{fmt, sync::Arc};
pub use time::TrustedClock;
use tls::TlsError;

/// An enrolled device.
#[derive(Clone)]
pub struct Identity {
    pub controller: ControllerFile,
    pub signer: Arc<dyn DeviceSigner>,
    /// PEM, leaf first.
    pub certificate: String,
    /// PEM of the controller's CA.
    pub ca: String,
    /// The signed trust documents known at enrolment, the pinned one first.
    pub trust: Vec<Vec<u8>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} at {})", self.controller.device, self.controller.url)
    }
}

impl Identity {
    pub fn device(&self) -> &DeviceId {
        &self.controller.device
    }

    /// What MQTT and device HTTPS connect with.
    ///
    /// # Errors
    /// [`TlsError`] if the stored certificates cannot be used.
    pub fn tls(&self, clock: &Arc<TrustedClock>) -> Result<Arc<ClientConfig>, TlsError> {
        tls::enrolled(&self.ca, Some((&self.certificate, self.signer.clone())), clock)
    }

    /// Walks the stored chain from the pinned document to the newest.
    ///
    /// # Errors
    /// [`TrustError`] if the chain does not hold.
    pub fn first_trust(&self) -> Result<DeviceTrust, TrustError> {
        let mut documents = self.trust.iter();
        let first = documents.next().ok_or(TrustError::TrustPin)?;
        let mut trust = DeviceTrust::pinned(first, self.controller.trust_pin)?;
        documents.try_for_each(|document| trust.advance(document))?;
        Ok(trust)
    }

    /// Start and end of the device certificate.
    ///
    /// # Errors
    /// [`TlsError::NotPem`] if it cannot be read.
    pub fn validity(&self) -> Result<(Timestamp, Timestamp), TlsError> {
        let what = "the device certificate";
        let leaf = tls::certificates(&self.certificate, what)?.swap_remove(0);
        let (_, leaf) = x509_parser::parse_x509_certificate(&leaf)
            .map_err(|e| TlsError::NotPem { what, reason: e.to_string() })?;
        let at = |secs: i64| Timestamp::from_secs(u64::try_from(secs).unwrap_or(0));
        let validity = leaf.validity();
        Ok((at(validity.not_before.timestamp()), at(validity.not_after.timestamp())))
    }
}
