//! What the API shows of the fleet's values, and what it takes. Field names are part of the contract.

use crate::{
    fleet::{
        devices::DeviceState,
        index::Known,
        invites::{Invite, InviteState},
        roles::Role,
        tokens::Token,
    },
    store::audit::AuditEntry,
};
use edgefleet_shared::{
    ids::{DeviceId, InviteId, SlotName},
    reported::{Facts, Installed, Phase, Progress, RefusalCode, Reported, SlotReport},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Part of a listing.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Listing<T> {
    pub items: Vec<T>,
    /// Send it as `cursor` for the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A device as people see it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    #[schema(value_type = String, example = "dev-k3v7q2m5x4ab")]
    pub id: DeviceId,
    /// For people; not unique.
    #[schema(example = "press-7-camera")]
    pub name: String,
    /// Set at the controller only.
    #[schema(example = json!({"site": "plant-7"}))]
    pub labels: BTreeMap<String, String>,
    pub state: DeviceState,
    /// A known device waits for approval of a new key.
    pub new_key_pending: bool,
    pub online: bool,
    /// Why it is on- or offline.
    pub presence: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen: Option<Timestamp>,
    /// Claims of the device about itself.
    #[schema(value_type = Object)]
    pub facts: Facts,
    /// Certificates it may use now, newest last.
    pub certificates: Vec<CertificateView>,
    /// The invite it came with.
    #[schema(value_type = String)]
    pub invite: InviteId,
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub enrolled: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub removed: Option<Timestamp>,
    /// What each slot serves and where it is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub slots: BTreeMap<String, SlotView>,
    /// Its last report: generation, slots with phase, bundles and last error, last refusal. Only where one
    /// device is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub reported: Option<Box<Reported>>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CertificateView {
    /// Hexadecimal.
    pub serial: String,
    #[schema(value_type = String, format = DateTime)]
    pub issued: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
}

/// One slot in short.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SlotView {
    #[schema(value_type = String, example = "committed")]
    pub phase: Phase,
    /// The bundle that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "digits@2")]
    pub active: Option<String>,
    /// What it is moving to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub progress: Option<Progress>,
    /// Why the last attempt failed, as a word for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub error: Option<RefusalCode>,
}

impl SlotView {
    fn of((slot, report): (&SlotName, &SlotReport)) -> (String, Self) {
        let name = |installed: &Option<Installed>| installed.as_ref().map(|one| one.bundle.to_string());
        let view = Self {
            phase: report.phase,
            active: name(&report.active),
            target: name(&report.target),
            progress: report.progress,
            error: report.last_error.as_ref().map(|error| error.code),
        };
        (slot.to_string(), view)
    }
}

impl DeviceView {
    /// For lists: without the report.
    pub fn brief(known: &Known) -> Self {
        let (device, status) = (&known.device, &known.status);
        let certificates = device.certificates.iter().map(|one| CertificateView {
            serial: one.serial.to_string(),
            issued: one.issued,
            not_after: one.not_after,
        });
        Self {
            id: device.id.clone(),
            name: device.name.clone(),
            labels: device.labels.clone(),
            state: device.state,
            new_key_pending: device.new_key.is_some(),
            online: status.online,
            presence: status.reason.clone(),
            last_seen: status.last_seen,
            facts: status.facts.clone(),
            certificates: certificates.collect(),
            invite: device.invite.clone(),
            created: device.created,
            enrolled: device.enrolled,
            removed: device.removed,
            slots: status.reported.iter().flat_map(|report| &report.slots).map(SlotView::of).collect(),
            reported: None,
        }
    }

    pub fn full(known: &Known) -> Self {
        Self { reported: known.status.reported.clone(), ..Self::brief(known) }
    }
}

/// What to change about a device. What is not named stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels to set; `null` takes one away.
    #[serde(default)]
    #[schema(example = json!({"site": "plant-7", "quarantined": null}))]
    pub labels: BTreeMap<String, Option<String>>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RemovedDevice {
    pub device: DeviceView,
    /// `false`: the broker could not confirm the end of the session; the next connect is refused all the same.
    pub session_ended: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    /// Given to every device that comes with it.
    #[serde(default)]
    #[schema(example = json!({"site": "plant-7"}))]
    pub labels: BTreeMap<String, String>,
    /// How many devices it may bring.
    #[schema(minimum = 1, maximum = 1_000_000, example = 50)]
    pub uses: u32,
    #[schema(minimum = 1, maximum = 31_622_400, example = 86_400)]
    pub ttl_secs: u64,
    /// Devices wait until a person approves them.
    #[serde(default)]
    pub approval: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InviteView {
    #[schema(value_type = String, example = "inv-k3v7q2m5x4ab")]
    pub id: InviteId,
    pub state: InviteState,
    pub labels: BTreeMap<String, String>,
    pub uses: u32,
    pub used: u32,
    pub approval: bool,
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked: Option<Timestamp>,
    pub created_by: String,
}

impl InviteView {
    pub fn of(invite: Invite, now: Timestamp) -> Self {
        Self {
            state: invite.state(now),
            id: invite.id,
            labels: invite.labels,
            uses: invite.uses,
            used: invite.used,
            approval: invite.approval,
            created: invite.created,
            expires: invite.expires,
            revoked: invite.revoked,
            created_by: invite.created_by,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewInviteView {
    pub invite: InviteView,
    /// Give it to the devices. It is not shown again.
    #[schema(example = "ef1-eyJ1IjoiaHR0cHM6Ly...")]
    pub code: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    #[schema(example = "ci")]
    pub name: String,
    pub role: Role,
    /// Absent: does not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<Timestamp>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub id: String,
    pub name: String,
    pub role: Role,
    #[schema(value_type = String, format = DateTime)]
    pub created: Timestamp,
    pub created_by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub revoked: Option<Timestamp>,
}

impl From<Token> for TokenView {
    fn from(token: Token) -> Self {
        let Token { id, name, role, created, created_by, expires, revoked, secret: _ } = token;
        Self { id, name, role, created, created_by, expires, revoked }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewTokenView {
    pub token: TokenView,
    /// The text for `Authorization: Bearer`. It is not shown again.
    pub text: String,
}

/// One link of the audit chain.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// 1 for the first.
    pub seq: u64,
    #[schema(format = DateTime)]
    pub at: String,
    #[schema(example = "token:k3v7q2m5x4ab (ci)")]
    pub who: String,
    #[schema(example = "device.remove")]
    pub action: String,
    #[schema(example = "device/dev-k3v7q2m5x4ab")]
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// SHA-256 of the entry before; 64 zeros for the first.
    pub prev_hash: String,
    pub hash: String,
}

impl From<AuditEntry> for AuditView {
    fn from(entry: AuditEntry) -> Self {
        let AuditEntry { seq, at, who, action, subject, before, after, note, prev_hash, hash } = entry;
        let (prev_hash, hash) = (prev_hash.to_string(), hash.to_string());
        Self { seq, at, who, action, subject, before, after, note, prev_hash, hash }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    #[schema(example = "0.1.0")]
    pub version: String,
    /// Version of the HTTP interface.
    #[schema(example = "v1")]
    pub api: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    #[schema(example = "ok")]
    pub status: String,
}

/// `POST /api/v1/enroll`; the program's own type is `edgefleet_shared::enroll::EnrollRequest`.
#[derive(ToSchema)]
#[allow(dead_code)] // describes a type of another crate
pub struct EnrollRequest {
    #[schema(example = 1)]
    schema: u32,
    invite: String,
    secret: String,
    /// PEM PKCS#10 over an ECDSA P-256 key. Only its key is taken.
    csr: String,
    /// Set when a known device enrols again.
    #[schema(required = false)]
    device: Option<String>,
    #[schema(required = false)]
    name: Option<String>,
    #[schema(value_type = Object)]
    facts: (),
}

#[derive(ToSchema)]
#[allow(dead_code)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum EnrollResponse {
    Enrolled(Enrolled),
    /// A person has to approve first: send the same request again later.
    Pending {
        retry_after_secs: u64,
    },
}

#[derive(ToSchema)]
#[allow(dead_code)]
pub struct Enrolled {
    device: String,
    /// PEM.
    certificate: String,
    /// PEM of the controller's authority.
    ca: String,
    /// Signed trust documents from the pinned one to the newest, base64.
    trust: Vec<String>,
    mqtt_host: String,
    mqtt_port: u16,
    #[schema(format = DateTime)]
    issued: String,
}

#[derive(ToSchema)]
#[allow(dead_code)]
pub struct RenewRequest {
    #[schema(example = 1)]
    schema: u32,
    csr: String,
    /// The old certificate, PEM; for `renew-expired` only.
    #[schema(required = false)]
    certificate: Option<String>,
}

#[derive(ToSchema)]
#[allow(dead_code)]
pub struct RenewResponse {
    certificate: String,
    ca: String,
}
