//! Devices: their documents, and what people do with them.
//!
//! An id is made by the controller and never used again: a removed device stays as a tombstone. `name` is a
//! label for people, changeable and **not** unique (a factory flashes one host name on a thousand devices).

use super::{
    Actor, Fleet, FleetError, Page,
    attributes::{Labels, check_labels, check_word},
    certificate::Serial,
    index::Known,
};
use crate::store::{Expect, Kind, Revision, StoreError, Transaction, Versioned, audit::AuditDraft};
use edgefleet_shared::{
    digest::BlobDigest,
    ids::{DeviceId, InviteId},
    reported::{Facts, Reported},
    selector::Selector,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

pub(super) const DEVICE: Kind = Kind::new("device");
pub(super) const DEVICE_KEY: Kind = Kind::new("device-key");
pub(super) const STATUS: Kind = Kind::new("device-status");

/// Certificates of a device that stay usable: the newest and those it may still hold because an answer was
/// lost on the way.
const MAX_CERTIFICATES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Waits for a person.
    Pending,
    Enrolled,
    /// A person said no.
    Denied,
    /// Tombstone.
    Removed,
}

impl DeviceState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Enrolled => "enrolled",
            Self::Denied => "denied",
            Self::Removed => "removed",
        }
    }
}
impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A certificate that was issued to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    pub serial: Serial,
    pub issued: Timestamp,
    pub not_after: Timestamp,
}

/// A known device asks to be recognised by another key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKey {
    pub key: BlobDigest,
    pub invite: InviteId,
    pub asked: Timestamp,
}

/// One device, as stored. Changes with people's decisions and certificates, not with reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub id: DeviceId,
    pub name: String,
    pub labels: Labels,
    pub state: DeviceState,
    /// SHA-256 of its public key (SubjectPublicKeyInfo).
    pub key: BlobDigest,
    /// Newest last; only these are admitted.
    pub certificates: Vec<CertificateRecord>,
    /// Present while a new key waits for approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_key: Option<NewKey>,
    /// The one it came with.
    pub invite: InviteId,
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<Timestamp>,
}

/// What a device last said or was seen doing. Written by ingestion, never by people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub device: DeviceId,
    pub online: bool,
    /// Why it is on- or offline.
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    pub facts: Facts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Box<Reported>>,
}

impl Status {
    pub(super) fn unknown(device: DeviceId) -> Self {
        let reason = "never connected".to_owned();
        Self { device, online: false, reason, last_seen: None, facts: Facts::default(), reported: None }
    }
}

/// Id of a public key -> who has or had it. Never deleted: a key is not passed on either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyOwner {
    pub(super) device: DeviceId,
}

/// What to change about a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DevicePatch {
    pub name: Option<String>,
    /// `None` as a value takes the label away.
    pub labels: BTreeMap<String, Option<String>>,
}

/// What a removal achieved.
#[derive(Clone, Debug)]
pub struct Removal {
    pub device: Known,
    /// `false`: the broker could not confirm that the session ended; the next connect is refused all the same.
    pub session_ended: bool,
}

/// Which devices to list.
#[derive(Clone, Debug, Default)]
pub struct DeviceQuery {
    /// A device is listed if one of them selects it; none selects all.
    pub selectors: Vec<Selector>,
    /// `None`: all but removed ones.
    pub state: Option<DeviceState>,
    pub after: Option<DeviceId>,
    pub limit: usize,
}

impl Device {
    /// The same device with one more certificate, and those that have to go.
    pub(super) fn with_certificate(&self, record: CertificateRecord) -> (Self, Vec<CertificateRecord>) {
        let mut next = self.clone();
        next.certificates.push(record);
        let surplus = next.certificates.len().saturating_sub(MAX_CERTIFICATES);
        let gone = next.certificates.drain(..surplus).collect();
        (next, gone)
    }
}

impl Fleet {
    /// # Errors
    /// [`FleetError::NoDevice`].
    pub fn device(&self, id: &DeviceId) -> Result<Known, FleetError> {
        self.index.get(id).ok_or_else(|| FleetError::NoDevice(id.clone()))
    }

    /// A device that may be told something.
    ///
    /// # Errors
    /// [`FleetError::NoDevice`], or the one of the state that it is in.
    pub fn enrolled_device(&self, id: &DeviceId) -> Result<Known, FleetError> {
        let known = self.device(id)?;
        match known.device.state {
            DeviceState::Enrolled => Ok(known),
            DeviceState::Pending => Err(FleetError::Pending(id.clone())),
            DeviceState::Denied => Err(FleetError::Denied(id.clone())),
            DeviceState::Removed => Err(FleetError::Removed(id.clone())),
        }
    }

    /// One page of devices in the order of their ids, from memory.
    pub fn list_devices(&self, query: &DeviceQuery) -> Page<Known> {
        let keep = |known: &Known| {
            let state = match query.state {
                Some(state) => known.device.state == state,
                None => known.device.state != DeviceState::Removed,
            };
            let selected = query.selectors.is_empty() || query.selectors.iter().any(|one| known.matches(one));
            state && selected
        };
        let (items, more) = self.index.page(query.after.as_ref(), query.limit, keep);
        let next = items.last().filter(|_| more).map(|known| known.device.id.to_string());
        Page { items, next }
    }

    /// Changes name and labels. `expected`: the revision the caller saw, if it insists.
    ///
    /// # Errors
    /// [`FleetError::Stale`], [`FleetError::Label`], [`FleetError::NoDevice`], [`FleetError::Removed`].
    pub async fn patch_device(
        &self,
        actor: &Actor,
        id: &DeviceId,
        patch: &DevicePatch,
        expected: Option<Revision>,
    ) -> Result<Known, FleetError> {
        let change = |device: &Device, _| {
            let mut next = device.clone();
            if let Some(name) = &patch.name {
                check_word("a device's name", name)?;
                next.name.clone_from(name);
            }
            for (key, value) in &patch.labels {
                match value {
                    Some(value) => next.labels.insert(key.clone(), value.clone()),
                    None => next.labels.remove(key),
                };
            }
            check_labels(&next.labels)?;
            Ok(next)
        };
        let known = self.change_device(actor, id, expected, "device.update", change).await?;
        let sessions = self.sessions.read().clone();
        if let Some(sessions) = sessions.filter(|_| !patch.labels.is_empty()) {
            sessions.relabelled(id).await;
        }
        Ok(known)
    }

    /// Lets a pending device in, or a known one use its new key. Sessions with the old key end.
    ///
    /// # Errors
    /// [`FleetError::NotPending`], [`FleetError::NoDevice`], [`FleetError::Removed`].
    pub async fn approve_device(&self, actor: &Actor, id: &DeviceId) -> Result<Known, FleetError> {
        let before = self.device(id)?;
        let change = |device: &Device, now| match (device.state, &device.new_key) {
            (DeviceState::Enrolled, Some(new)) => {
                Ok(Device { key: new.key, new_key: None, certificates: vec![], ..device.clone() })
            }
            (DeviceState::Pending, _) => {
                Ok(Device { state: DeviceState::Enrolled, enrolled: Some(now), ..device.clone() })
            }
            _ => Err(FleetError::NotPending(id.clone())),
        };
        let known = self.change_device(actor, id, None, "device.approve", change).await?;
        if before.device.new_key.is_some() {
            self.end_session(id, false).await;
        }
        Ok(known)
    }

    /// Refuses a pending device for good, or a known one its new key.
    ///
    /// # Errors
    /// [`FleetError::NotPending`], [`FleetError::NoDevice`], [`FleetError::Removed`].
    pub async fn deny_device(&self, actor: &Actor, id: &DeviceId) -> Result<Known, FleetError> {
        let change = |device: &Device, _| match (device.state, &device.new_key) {
            (DeviceState::Enrolled, Some(_)) => Ok(Device { new_key: None, ..device.clone() }),
            (DeviceState::Pending, _) => Ok(Device { state: DeviceState::Denied, ..device.clone() }),
            _ => Err(FleetError::NotPending(id.clone())),
        };
        self.change_device(actor, id, None, "device.deny", change).await
    }

    /// Takes a device out of the fleet: its certificates are revoked, its session ends, its id stays taken.
    /// Repeating it ends the session again and changes nothing else.
    ///
    /// # Errors
    /// [`FleetError::NoDevice`], [`FleetError::Stale`], store errors. Once it returns `Ok` the device is
    /// refused everywhere in this process.
    pub async fn remove_device(
        &self,
        actor: &Actor,
        id: &DeviceId,
        expected: Option<Revision>,
    ) -> Result<Removal, FleetError> {
        let before = self.device(id)?;
        let device = if before.device.state == DeviceState::Removed {
            before
        } else {
            let change = |device: &Device, now| {
                Ok(Device {
                    state: DeviceState::Removed,
                    certificates: vec![],
                    new_key: None,
                    removed: Some(now),
                    ..device.clone()
                })
            };
            self.change_device(actor, id, expected, "device.remove", change).await?
        };
        tracing::info!(device = %id, by = actor.name(), "device.remove");
        let session_ended = self.end_session(id, true).await;
        self.record_presence(id, false, "removed").await?;
        Ok(Removal { device: self.index.get(id).unwrap_or(device), session_ended })
    }

    /// Reads, changes and writes a device with its audit entry, again if another writer was faster.
    /// Certificates of the stored device that `change` takes away are revoked in the same transaction.
    async fn change_device(
        &self,
        actor: &Actor,
        id: &DeviceId,
        expected: Option<Revision>,
        action: &str,
        change: impl Fn(&Device, Timestamp) -> Result<Device, FleetError> + Send + Sync,
    ) -> Result<Known, FleetError> {
        for _ in 0..super::MAX_ATTEMPTS {
            let found = self.devices.find_json(id.as_str()).await?;
            let Versioned { revision, value } = found.ok_or_else(|| FleetError::NoDevice(id.clone()))?;
            if let Some(expected) = expected.filter(|expected| *expected != revision) {
                return Err(FleetError::Stale { expected, found: revision });
            }
            if value.state == DeviceState::Removed {
                return Err(FleetError::Removed(id.clone()));
            }
            let next = change(&value, self.now())?;
            if next == value {
                return self.device(id);
            }
            let gone: Vec<_> =
                value.certificates.iter().filter(|one| !next.certificates.contains(one)).cloned().collect();
            let transaction =
                Transaction::new().put_json(DEVICE, id.as_str(), Expect::Revision(revision), &next)?;
            let transaction = self.revoke_in(transaction, id, &gone)?;
            let audit = AuditDraft {
                before: Some(describe(&value)),
                after: Some(describe(&next)),
                ..self.draft(actor, action, format!("device/{id}"))
            };
            match self.audit.commit(transaction, &[audit]).await {
                Ok(recorded) => {
                    let revision = recorded.committed.revision;
                    return Ok(self.index.put(Versioned { revision, value: next }));
                }
                Err(StoreError::StaleRevision { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(FleetError::Contended)
    }

    async fn end_session(&self, id: &DeviceId, for_good: bool) -> bool {
        let sessions = self.sessions.read().clone();
        let Some(sessions) = sessions else { return true };
        let ended = if for_good { sessions.revoke(id).await } else { sessions.kick(id).await };
        if let Err(error) = &ended {
            tracing::error!(device = %id, error = %error, "the broker did not end the session of a device");
        }
        ended.is_ok()
    }
}

/// For the audit log.
pub(super) fn describe(device: &Device) -> String {
    let labels: Vec<_> = device.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let serials: Vec<_> = device.certificates.iter().map(|one| one.serial.as_str()).collect();
    let new_key = device.new_key.as_ref().map(|new| format!(", new key {}", new.key.short()));
    format!(
        "{} `{}`, labels [{}], key {}, certificates [{}]{}",
        device.state,
        device.name,
        labels.join(", "),
        device.key.short(),
        serials.join(", "),
        new_key.unwrap_or_default()
    )
}
