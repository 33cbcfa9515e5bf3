//! What a device remembers of trust, and what it accepts.
//!
//! Pure: the caller passes its clock in and persists the value after every change (two CRC-protected
//! slots). **Clock rule**: the local clock counts from the floor up to 400 days above it
//! ([`believed`]), otherwise the floor is the time; only *signed* `issued` values raise the floor. So a
//! clock in 1970 still gets freeze protection, and a clock years ahead neither blocks installs nor
//! leaves a trace. The price: to a device that heard nothing signed for 400 days, a document that was
//! held back looks fresh until something newer arrives; it was signed for it by both owners, and it can
//! be neither older than what the device has nor below a floor.

use super::{
    documents::{Release, RoleName, Trust},
    envelope::{DESIRED_TYPE, Envelope, RELEASE_TYPE, TRUST_TYPE, TrustError, open, require},
};
use crate::{
    desired::{Assigned, DESIRED_SCHEMA, Desired},
    digest::{BlobDigest, EnvelopeDigest},
    ids::DeviceId,
    time::{Timestamp, believed},
};
use serde::{Deserialize, Serialize};

/// Persisted trust state of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceTrust {
    /// The newest accepted trust document; the next one must continue it.
    pub trust: Trust,
    /// Highest accepted generation; 0 before the first.
    pub generation: u64,
    /// `issued` of the accepted desired state of that generation.
    pub issued: Timestamp,
    /// Digest of its content without `issued` and `expires`.
    pub content: Option<BlobDigest>,
    /// Highest signed time seen.
    pub floor: Timestamp,
    /// Set after the state was lost: only a desired state that answers it is accepted.
    pub nonce: Option<String>,
}

/// What accepting a desired state changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A higher generation: act on it.
    New,
    /// The generation known, signed anew: only its expiry moved.
    Resigned,
    /// Exactly what is known.
    Known,
}

impl DeviceTrust {
    /// First contact: the document must match the pin that came with the join code.
    ///
    /// # Errors
    /// [`TrustError`] if it does not match or is unusable. Expiry is not asked: a device without a
    /// clock must be able to enrol; later documents are checked.
    pub fn pinned(raw: &[u8], pin: EnvelopeDigest) -> Result<Self, TrustError> {
        if EnvelopeDigest::of(raw) != pin {
            return Err(TrustError::TrustPin);
        }
        let trust = parse_trust(raw)?;
        open::<Trust>(raw, TRUST_TYPE, &trust, RoleName::Trust)?;
        Ok(Self {
            floor: trust.issued,
            trust,
            generation: 0,
            issued: Timestamp::EPOCH,
            content: None,
            nonce: None,
        })
    }

    /// The time to judge expiry by.
    pub fn now(&self, clock: Timestamp) -> Timestamp {
        believed(clock, self.floor)
    }

    /// Accepts trust N+1: signed by the threshold of N and of N+1, and if it changes `floors` also by
    /// the publisher threshold of N.
    ///
    /// Of N, because those are the publishers this device knows for certain, while N+1 names its own:
    /// whoever holds the trust keys alone cannot revoke releases in the document that replaces the
    /// publishers. Publisher keys that are lost are therefore replaced in one version, and the floor is
    /// raised by the new ones in the next.
    ///
    /// # Errors
    /// [`TrustError`]; the state is unchanged then. An expired *intermediate* version is fine, the
    /// chain must be walkable for ever; whether the newest has expired is asked when installing.
    pub fn advance(&mut self, raw: &[u8]) -> Result<(), TrustError> {
        let envelope = Envelope::parse(raw)?;
        if envelope.payload_type != TRUST_TYPE {
            let found = envelope.payload_type.chars().take(100).collect();
            return Err(TrustError::WrongType { wanted: TRUST_TYPE, found });
        }
        let payload = envelope.payload()?;
        require(&envelope, &self.trust, RoleName::Trust, &payload)?;
        let next = parse_trust(raw)?;
        if self.trust.version.checked_add(1) != Some(next.version) {
            return Err(TrustError::TrustOrder { current: self.trust.version, found: next.version });
        }
        require(&envelope, &next, RoleName::Trust, &payload)?;
        for (model, floor) in &self.trust.floors {
            if next.floors.get(model).is_none_or(|next| next < floor) {
                let reason = format!("the floor of `{model}` would fall below {floor}");
                return Err(TrustError::TrustInvalid { version: next.version, reason });
            }
        }
        if next.floors != self.trust.floors {
            require(&envelope, &self.trust, RoleName::Publisher, &payload)?;
        }
        self.floor = self.floor.max(next.issued);
        self.trust = next;
        Ok(())
    }

    /// Judges a signed desired state for `device` and remembers it if accepted.
    ///
    /// # Errors
    /// [`TrustError`]; the state is unchanged then.
    pub fn accept(
        &mut self,
        raw: &[u8],
        device: &DeviceId,
        clock: Timestamp,
    ) -> Result<(Desired, Accepted), TrustError> {
        let desired: Desired = open(raw, DESIRED_TYPE, &self.trust, RoleName::Controller)?;
        if desired.schema != DESIRED_SCHEMA {
            return Err(TrustError::UnknownSchema { found: desired.schema });
        }
        if desired.device != *device {
            return Err(TrustError::WrongDevice { found: desired.device.to_string() });
        }
        if desired.trust_version > self.trust.version {
            // Checked after the signature: nobody else can send the device off to fetch trust documents.
            return Err(TrustError::TrustBehind { have: self.trust.version, wanted: desired.trust_version });
        }
        if self.nonce.is_some() && desired.nonce != self.nonce {
            return Err(TrustError::NonceMissing);
        }
        let content = desired.content_digest();
        let accepted = if desired.generation > self.generation {
            Accepted::New
        } else if desired.generation < self.generation {
            return Err(TrustError::Replayed { current: self.generation, found: desired.generation });
        } else if self.content != Some(content) {
            return Err(TrustError::Equivocation { generation: desired.generation });
        } else if desired.issued > self.issued {
            Accepted::Resigned
        } else {
            Accepted::Known
        };
        // The document's own signed time counts as seen: a clock just above it is believed again.
        let now = believed(clock, self.floor.max(desired.issued));
        if desired.expires <= now {
            return Err(TrustError::Expired { what: "desired state", expired: desired.expires, now });
        }
        if self.trust.expires <= now {
            return Err(TrustError::Expired { what: "trust document", expired: self.trust.expires, now });
        }
        self.generation = desired.generation;
        self.issued = self.issued.max(desired.issued);
        self.content = Some(content);
        self.floor = self.floor.max(desired.issued);
        self.nonce = None;
        Ok((desired, accepted))
    }

    /// Judges the release envelope that a desired state assigned, by digest, name and publisher.
    ///
    /// Its `issued` does not raise the floor: a release is older than the desired state that assigns
    /// it, and a publisher whose clock once ran ahead must not stop a fleet from updating.
    ///
    /// # Errors
    /// [`TrustError`]; nothing may be fetched for it then.
    pub fn check_release(
        &self,
        raw: &[u8],
        assigned: &Assigned,
        hardware: &str,
    ) -> Result<Release, TrustError> {
        if EnvelopeDigest::of(raw) != assigned.release {
            return Err(TrustError::ReleaseMismatch {
                wanted: assigned.release.to_string(),
                found: EnvelopeDigest::of(raw).to_string(),
            });
        }
        let release: Release = open(raw, RELEASE_TYPE, &self.trust, RoleName::Publisher)?;
        if release.bundle != assigned.bundle {
            return Err(TrustError::ReleaseMismatch {
                wanted: assigned.bundle.to_string(),
                found: release.bundle.to_string(),
            });
        }
        let floor = self.trust.floors.get(&release.bundle.model).copied().unwrap_or(0);
        if release.bundle.counter < floor {
            return Err(TrustError::BelowFloor {
                model: release.bundle.model.to_string(),
                floor,
                found: release.bundle.counter,
            });
        }
        if !release.hardware.is_empty() && !release.hardware.iter().any(|class| class == hardware) {
            return Err(TrustError::WrongHardware {
                wanted: release.hardware.join(", "),
                found: hardware.to_owned(),
            });
        }
        Ok(release)
    }
}

/// Parses a trust document whose signatures the caller checks with the value itself.
fn parse_trust(raw: &[u8]) -> Result<Trust, TrustError> {
    let envelope = Envelope::parse(raw)?;
    let trust: Trust = serde_json::from_slice(&envelope.payload()?)
        .map_err(|e| TrustError::Malformed { reason: e.to_string() })?;
    trust.check()?;
    Ok(trust)
}
