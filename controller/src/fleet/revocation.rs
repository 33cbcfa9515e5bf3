//! Certificates that must be refused although they have not expired.
//!
//! The embedded broker and the API ask [`Fleet::admits`]. A broker beside us cannot: it gets a revocation list.

use super::{Fleet, FleetError, ca::Revoked, certificate::Serial, devices::CertificateRecord};
use crate::store::{Expect, Kind, Repository, Transaction};
use edgefleet_shared::{ids::DeviceId, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const REVOKED: Kind = Kind::new("revoked-serial");

/// A certificate that must not be accepted although it has not expired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedSerial {
    pub device: DeviceId,
    pub serial: Serial,
    pub at: Timestamp,
    pub not_after: Timestamp,
}

impl Fleet {
    /// The revoked ones that have not expired.
    ///
    /// # Errors
    /// Store errors.
    pub async fn revoked_serials(&self) -> Result<Vec<RevokedSerial>, FleetError> {
        let now = self.now();
        let all = Repository::<RevokedSerial>::new(Arc::clone(&self.store), REVOKED).list_all("").await?;
        Ok(all.into_iter().map(|(_, found)| found.value).filter(|one| one.not_after > now).collect())
    }

    /// The revocation list as PEM, for Mosquitto's `crlfile`. Write it anew after every removal and daily.
    ///
    /// # Errors
    /// Store errors, [`FleetError::Ca`].
    pub async fn revocation_list(&self) -> Result<String, FleetError> {
        let revoked = self.revoked_serials().await?;
        let revoked: Vec<_> =
            revoked.into_iter().map(|one| Revoked { serial: one.serial, at: one.at }).collect();
        let now = self.now();
        Ok(self.ca.revocation_list(&revoked, now.as_millis(), now)?)
    }

    /// Adds the revocation of `certificates` that have not expired.
    pub(super) fn revoke_in(
        &self,
        mut transaction: Transaction,
        device: &DeviceId,
        certificates: &[CertificateRecord],
    ) -> Result<Transaction, FleetError> {
        let at = self.now();
        for certificate in certificates.iter().filter(|certificate| certificate.not_after > at) {
            let CertificateRecord { serial, not_after, .. } = certificate.clone();
            let revoked = RevokedSerial { device: device.clone(), serial, at, not_after };
            let id = revoked.serial.to_string();
            transaction = transaction.put_json(REVOKED, id, Expect::Any, &revoked)?;
        }
        Ok(transaction)
    }
}
