//! How a device comes in and stays in: enrolment, approval, renewal.
//!
//! Every path issues a certificate only over a key whose possession the signing request proves, and writes the
//! serial number before anybody sees the certificate: what is not in the device's document is not admitted.

use super::{
    Actor, Fleet, FleetError,
    attributes::{check_word, tame},
    ca::Issued,
    certificate::{DeviceCertificate, DevicePublicKey, Serial, key_of_request},
    devices::{
        CertificateRecord, DEVICE, DEVICE_KEY, Device, DeviceState, KeyOwner, NewKey, STATUS, Status,
        describe,
    },
    invites::{INVITE, Invite, InviteRefusal},
    secret::random_id,
};
use crate::store::{Expect, Repository, Revision, StoreError, Transaction, Versioned, audit::AuditDraft};
use base64::{Engine, engine::general_purpose::STANDARD};
use edgefleet_shared::{
    digest::EnvelopeDigest,
    enroll::{ENROLL_SCHEMA, EnrollRequest, EnrollResponse, Enrolled, RenewRequest, RenewResponse},
    ids::{DeviceId, IdError},
    time::Timestamp,
};
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const MAX_SECRET_BYTES: usize = 128;
/// How long a device waits before it asks again whether it was approved.
const PENDING_RETRY_SECS: u64 = 15;

/// What enrolment has done since the start, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub enrolled: u64,
    pub pending: u64,
    pub refused: u64,
    pub renewed: u64,
}

#[derive(Default)]
pub(super) struct CounterCells {
    enrolled: AtomicU64,
    pending: AtomicU64,
    refused: AtomicU64,
    renewed: AtomicU64,
}

/// What one try of an enrolment came to.
enum Outcome {
    Done(EnrollResponse),
    /// Another writer was faster.
    Again,
}

impl Fleet {
    pub fn counters(&self) -> Counters {
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let cells = &self.counters;
        Counters {
            enrolled: get(&cells.enrolled),
            pending: get(&cells.pending),
            refused: get(&cells.refused),
            renewed: get(&cells.renewed),
        }
    }

    /// Lets a device in, or tells it to wait for a person. Repeating a request whose answer was lost gives the
    /// same device again and takes nothing more from the invite.
    ///
    /// A new key for a known `device` always waits for approval. A known key keeps its device.
    ///
    /// # Errors
    /// [`FleetError::Invite`], [`FleetError::Certificate`], [`FleetError::TooManyFailures`],
    /// [`FleetError::Removed`], [`FleetError::Denied`], [`FleetError::KeyInUse`], [`FleetError::NoDevice`].
    pub async fn enroll(&self, request: &EnrollRequest, from: IpAddr) -> Result<EnrollResponse, FleetError> {
        let result = self.enroll_guarded(request, from).await;
        let cell = match &result {
            Ok(EnrollResponse::Enrolled(_)) => &self.counters.enrolled,
            Ok(EnrollResponse::Pending { .. }) => &self.counters.pending,
            Err(_) => &self.counters.refused,
        };
        cell.fetch_add(1, Ordering::Relaxed);
        match &result {
            Ok(EnrollResponse::Enrolled(enrolled)) => {
                tracing::info!(device = %enrolled.device, invite = %request.invite, %from, "device.enroll");
            }
            Ok(EnrollResponse::Pending { .. }) => {
                tracing::info!(invite = %request.invite, %from, "a device waits for approval");
            }
            Err(error) => {
                tracing::warn!(invite = %request.invite, %from, code = error.code(), "an enrolment was refused");
            }
        }
        result
    }

    async fn enroll_guarded(
        &self,
        request: &EnrollRequest,
        from: IpAddr,
    ) -> Result<EnrollResponse, FleetError> {
        let now = self.now();
        if let Some(retry_after_secs) = self.failed.blocked(from, now) {
            return Err(FleetError::TooManyFailures { retry_after_secs });
        }
        if request.schema != ENROLL_SCHEMA {
            return Err(FleetError::Schema { found: request.schema, known: ENROLL_SCHEMA });
        }
        if let Some(name) = &request.name {
            check_word("a device's name", name)?;
        }
        let invite = self.invites.find_json(request.invite.as_str()).await?;
        let known = request.secret.len() <= MAX_SECRET_BYTES
            && invite.is_some_and(|invite| invite.value.secret.matches(&request.secret));
        if !known {
            self.failed.record(from, now);
            return Err(InviteRefusal::Unknown.into());
        }
        // After the secret, so that a stranger cannot make us check signatures.
        let key = key_of_request(&request.csr)?;
        let _queue = self.enrolling.lock().await;
        for _ in 0..super::MAX_ATTEMPTS {
            match self.try_enroll(request, &key).await? {
                Outcome::Done(response) => return Ok(response),
                Outcome::Again => {}
            }
        }
        Err(FleetError::Contended)
    }

    async fn try_enroll(
        &self,
        request: &EnrollRequest,
        key: &DevicePublicKey,
    ) -> Result<Outcome, FleetError> {
        let found = self.invites.find_json(request.invite.as_str()).await?;
        let invite = found.ok_or(InviteRefusal::Unknown)?;
        let owners = Repository::<KeyOwner>::new(Arc::clone(&self.store), DEVICE_KEY);
        if let Some(owner) = owners.find_json(&key.digest().to_hex()).await? {
            let device = self.devices.get_json(owner.value.device.as_str()).await?;
            return self.enroll_known_key(request, key, &invite.value, device).await;
        }
        let now = self.now();
        invite.value.admit(now)?;
        match &request.device {
            Some(id) => self.ask_for_new_key(id, key, &invite, now).await,
            None => self.enroll_new(request, key, &invite, now).await,
        }
    }

    /// The key is somebody's already.
    async fn enroll_known_key(
        &self,
        request: &EnrollRequest,
        key: &DevicePublicKey,
        invite: &Invite,
        found: Versioned<Device>,
    ) -> Result<Outcome, FleetError> {
        let device = &found.value;
        let id = &device.id;
        if request.device.as_ref().is_some_and(|asked| asked != id) {
            return Err(FleetError::KeyInUse);
        }
        // Its own invite stays good for repeating the request after it was used up or expired.
        if device.invite != invite.id && device.new_key.as_ref().is_none_or(|new| new.invite != invite.id) {
            invite.admit(self.now())?;
        } else if let Some(at) = invite.revoked {
            return Err(InviteRefusal::Revoked { at }.into());
        }
        match device.state {
            DeviceState::Removed => Err(FleetError::Removed(id.clone())),
            DeviceState::Denied => Err(FleetError::Denied(id.clone())),
            DeviceState::Pending => Ok(Outcome::Done(pending())),
            DeviceState::Enrolled if device.key == key.digest() => {
                let actor = Actor::invite(&invite.id);
                match self.issue(&actor, "device.reenroll", found, key).await? {
                    Some((device, issued)) => Ok(Outcome::Done(self.enrolled(device, issued, invite)?)),
                    None => Ok(Outcome::Again),
                }
            }
            DeviceState::Enrolled => match &device.new_key {
                Some(new) if new.key == key.digest() => Ok(Outcome::Done(pending())),
                // A key this device had before, or one that was denied.
                _ => Err(FleetError::KeyInUse),
            },
        }
    }

    /// A known device shows a key nobody has: a person decides.
    async fn ask_for_new_key(
        &self,
        id: &DeviceId,
        key: &DevicePublicKey,
        invite: &Versioned<Invite>,
        now: Timestamp,
    ) -> Result<Outcome, FleetError> {
        let found = self.devices.find_json(id.as_str()).await?;
        let Versioned { revision, value } = found.ok_or_else(|| FleetError::NoDevice(id.clone()))?;
        match value.state {
            DeviceState::Removed => return Err(FleetError::Removed(id.clone())),
            DeviceState::Denied => return Err(FleetError::Denied(id.clone())),
            DeviceState::Pending => return Err(FleetError::Pending(id.clone())),
            DeviceState::Enrolled => {}
        }
        let new_key = NewKey { key: key.digest(), invite: invite.value.id.clone(), asked: now };
        let next = Device { new_key: Some(new_key), ..value.clone() };
        let action = "device.request-key";
        let committed =
            self.take_in(Transaction::new(), invite, key, (&next, Some((revision, &value))), action).await?;
        Ok(committed.map_or(Outcome::Again, |revision| {
            self.index.put(Versioned { revision, value: next });
            Outcome::Done(pending())
        }))
    }

    async fn enroll_new(
        &self,
        request: &EnrollRequest,
        key: &DevicePublicKey,
        invite: &Versioned<Invite>,
        now: Timestamp,
    ) -> Result<Outcome, FleetError> {
        let id = random_id("dev-")?;
        let id: DeviceId = id.parse().map_err(|error: IdError| FleetError::Invalid {
            what: "a new device id",
            reason: error.to_string(),
        })?;
        let approval = invite.value.approval;
        let issued = if approval { None } else { Some(self.ca.issue_device(&id, key, now)?) };
        let device = Device {
            name: request.name.clone().unwrap_or_else(|| id.to_string()),
            labels: invite.value.labels.clone(),
            state: if approval { DeviceState::Pending } else { DeviceState::Enrolled },
            key: key.digest(),
            certificates: issued.iter().map(|issued| record(issued, now)).collect(),
            new_key: None,
            invite: invite.value.id.clone(),
            created: now,
            enrolled: (!approval).then_some(now),
            removed: None,
            id,
        };
        let action = if approval { "device.request" } else { "device.enroll" };
        let mut status = Status::unknown(device.id.clone());
        status.facts = tame(request.facts.clone());
        let transaction = Transaction::new().put_json(STATUS, device.id.as_str(), Expect::Absent, &status)?;
        let Some(revision) = self.take_in(transaction, invite, key, (&device, None), action).await? else {
            return Ok(Outcome::Again);
        };
        self.index.put(Versioned { revision, value: device.clone() });
        self.index.update_status(&device.id, |known| *known = status);
        match issued {
            Some(issued) => Ok(Outcome::Done(self.enrolled(device, issued, &invite.value)?)),
            None => Ok(Outcome::Done(pending())),
        }
    }

    /// Adds to `transaction` a use of the invite, the owner of the key and the device (as it will be, and as it
    /// was), and commits it. `None` if somebody was faster.
    async fn take_in(
        &self,
        transaction: Transaction,
        invite: &Versioned<Invite>,
        key: &DevicePublicKey,
        (device, before): (&Device, Option<(Revision, &Device)>),
        action: &str,
    ) -> Result<Option<Revision>, FleetError> {
        let used = Invite { used: invite.value.used + 1, ..invite.value.clone() };
        let owner = KeyOwner { device: device.id.clone() };
        let expect = before.map_or(Expect::Absent, |(revision, _)| Expect::Revision(revision));
        let transaction = transaction
            .put_json(INVITE, used.id.as_str(), Expect::Revision(invite.revision), &used)?
            .put_json(DEVICE_KEY, key.digest().to_hex(), Expect::Absent, &owner)?
            .put_json(DEVICE, device.id.as_str(), expect, device)?;
        let audit = AuditDraft {
            before: before.map(|(_, device)| describe(device)),
            after: Some(describe(device)),
            note: Some(format!("use {} of {} of {}", used.used, used.uses, used.id)),
            ..self.draft(&Actor::invite(&used.id), action, format!("device/{}", device.id))
        };
        match self.audit.commit(transaction, &[audit]).await {
            Ok(recorded) => Ok(Some(recorded.committed.revision)),
            Err(StoreError::StaleRevision { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Issues and records one more certificate for a device. `None` if somebody was faster.
    async fn issue(
        &self,
        actor: &Actor,
        action: &str,
        found: Versioned<Device>,
        key: &DevicePublicKey,
    ) -> Result<Option<(Device, Issued)>, FleetError> {
        let now = self.now();
        let Versioned { revision, value } = found;
        let issued = self.ca.issue_device(&value.id, key, now)?;
        let (next, gone) = value.with_certificate(record(&issued, now));
        let transaction =
            Transaction::new().put_json(DEVICE, next.id.as_str(), Expect::Revision(revision), &next)?;
        let transaction = self.revoke_in(transaction, &next.id, &gone)?;
        let audit = AuditDraft {
            before: Some(describe(&value)),
            after: Some(describe(&next)),
            ..self.draft(actor, action, format!("device/{}", next.id))
        };
        match self.audit.commit(transaction, &[audit]).await {
            Ok(recorded) => {
                let revision = recorded.committed.revision;
                self.index.put(Versioned { revision, value: next.clone() });
                Ok(Some((next, issued)))
            }
            Err(StoreError::StaleRevision { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// A new certificate over mTLS, for the key of the certificate that was shown.
    ///
    /// # Errors
    /// [`FleetError::OtherKey`], [`FleetError::CertificateRefused`], [`FleetError::Certificate`].
    pub async fn renew(
        &self,
        peer: &DeviceCertificate,
        request: &RenewRequest,
    ) -> Result<RenewResponse, FleetError> {
        if request.schema != ENROLL_SCHEMA {
            return Err(FleetError::Schema { found: request.schema, known: ENROLL_SCHEMA });
        }
        self.renew_as(&peer.device, &peer.serial, &peer.key, &request.csr).await
    }

    /// A new certificate for a device that was off for too long: the old one (however expired) says who it is,
    /// the request's signature proves that it still has the key.
    ///
    /// # Errors
    /// As [`Self::renew`], and [`FleetError::TooManyFailures`].
    pub async fn renew_expired(
        &self,
        request: &RenewRequest,
        from: IpAddr,
    ) -> Result<RenewResponse, FleetError> {
        let now = self.now();
        if let Some(retry_after_secs) = self.failed.blocked(from, now) {
            return Err(FleetError::TooManyFailures { retry_after_secs });
        }
        let result = self.try_renew_expired(request).await;
        if result.as_ref().is_err_and(|error| !matches!(error, FleetError::Store(_) | FleetError::Contended))
        {
            self.failed.record(from, now);
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    async fn try_renew_expired(&self, request: &RenewRequest) -> Result<RenewResponse, FleetError> {
        if request.schema != ENROLL_SCHEMA {
            return Err(FleetError::Schema { found: request.schema, known: ENROLL_SCHEMA });
        }
        let Some(pem) = &request.certificate else {
            return Err(FleetError::Invalid {
                what: "the request",
                reason: "the old certificate is missing".into(),
            });
        };
        let old = DeviceCertificate::issued_by(pem, self.ca.certificate())?;
        self.renew_as(&old.device, &old.serial, &old.key, &request.csr).await
    }

    async fn renew_as(
        &self,
        id: &DeviceId,
        serial: &Serial,
        shown: &DevicePublicKey,
        csr: &str,
    ) -> Result<RenewResponse, FleetError> {
        // Memory first: a stranger's certificate costs no signature check.
        if self.admits(id, serial).is_err() {
            return Err(FleetError::CertificateRefused(id.clone()));
        }
        let key = key_of_request(csr)?;
        if key != *shown {
            return Err(FleetError::OtherKey);
        }
        for _ in 0..super::MAX_ATTEMPTS {
            let found = self.devices.get_json(id.as_str()).await?;
            let device = &found.value;
            let current = device.state == DeviceState::Enrolled
                && device.key == key.digest()
                && device.certificates.iter().any(|certificate| certificate.serial == *serial);
            if !current {
                return Err(FleetError::CertificateRefused(id.clone()));
            }
            if let Some((_, issued)) = self.issue(&Actor::device(id), "device.renew", found, &key).await? {
                self.counters.renewed.fetch_add(1, Ordering::Relaxed);
                return Ok(RenewResponse { certificate: issued.pem, ca: self.ca.certificate_pem() });
            }
        }
        Err(FleetError::Contended)
    }

    fn enrolled(
        &self,
        device: Device,
        issued: Issued,
        invite: &Invite,
    ) -> Result<EnrollResponse, FleetError> {
        let pin: &EnvelopeDigest = &invite.trust_pin;
        let trust = self.trust.since(pin).ok_or(FleetError::TrustChain)?;
        let endpoints = self.endpoints();
        Ok(EnrollResponse::Enrolled(Box::new(Enrolled {
            device: device.id,
            certificate: issued.pem,
            ca: self.ca.certificate_pem(),
            trust: trust.iter().map(|document| STANDARD.encode(document)).collect(),
            mqtt_host: endpoints.mqtt_host.clone(),
            mqtt_port: endpoints.mqtt_port,
            issued: self.now(),
        })))
    }
}

fn pending() -> EnrollResponse {
    EnrollResponse::Pending { retry_after_secs: PENDING_RETRY_SECS }
}

fn record(issued: &Issued, now: Timestamp) -> CertificateRecord {
    CertificateRecord { serial: issued.serial.clone(), issued: now, not_after: issued.not_after }
}
