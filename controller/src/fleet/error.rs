//! Why the fleet refused or failed, as values that the API, the command line and tests can tell apart.

use super::{
    attributes::LabelError, ca::CaError, certificate::CertificateError, data_dir::DataDirError,
    invites::InviteRefusal, secret::NoRandomness,
};
use crate::store::{Revision, StoreError};
use edgefleet_shared::ids::{DeviceId, InviteId};

/// What kind of trouble it is; decides the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The request itself is wrong.
    Invalid,
    /// Who asks may not.
    Forbidden,
    NotFound,
    /// Not in the state the thing is in.
    Conflict,
    /// The thing changed since the caller looked.
    Stale,
    TooMany {
        retry_after_secs: u64,
    },
    Unavailable,
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error(transparent)]
    Invite(#[from] InviteRefusal),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("this controller speaks enrolment schema {known}, the request has {found}")]
    Schema { found: u32, known: u32 },
    #[error("{what} is not acceptable: {reason}")]
    Invalid { what: &'static str, reason: String },
    #[error("too many failed attempts from this address; try again in {retry_after_secs} s")]
    TooManyFailures { retry_after_secs: u64 },
    #[error("device {0} does not exist")]
    NoDevice(DeviceId),
    #[error("device {0} was removed; its id is never used again, enrol it as a new device with a new key")]
    Removed(DeviceId),
    #[error("the enrolment of device {0} was denied")]
    Denied(DeviceId),
    #[error("device {0} waits for approval")]
    Pending(DeviceId),
    #[error("device {0} does not wait for approval")]
    NotPending(DeviceId),
    #[error("this key belongs to another device")]
    KeyInUse,
    #[error("the certificate of device {0} is not one it may still use")]
    CertificateRefused(DeviceId),
    #[error(
        "the signing request is for another key than the certificate's; changing the key needs enrolment"
    )]
    OtherKey,
    #[error("invite {0} does not exist")]
    NoInvite(InviteId),
    #[error("token `{0}` does not exist")]
    NoToken(String),
    #[error("the last token with the role admin cannot be revoked; create another one first")]
    LastAdmin,
    #[error("it changed meanwhile: expected {expected}, found {found}")]
    Stale { expected: Revision, found: Revision },
    #[error("too many others are changing the same thing")]
    Contended,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    File(#[from] DataDirError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    #[error("the trust chain from the pinned document to the newest is not available")]
    TrustChain,
    #[error("the audit log cannot be read")]
    Audit(#[source] crate::store::audit::VerifyError),
}

impl FleetError {
    /// A word for programs; never changes once given out.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invite(refusal) => refusal.code(),
            Self::Certificate(error) => match error {
                CertificateError::TooLarge { .. } => "csr-too-large",
                CertificateError::Malformed { .. } => "csr-malformed",
                CertificateError::NotP256 => "csr-not-p256",
                CertificateError::NoPossession => "csr-signature",
                CertificateError::ForeignIssuer => "certificate-foreign",
                CertificateError::NoDevice => "certificate-no-device",
            },
            Self::Label(_) => "label-invalid",
            Self::Schema { .. } => "unknown-schema",
            Self::Invalid { .. } => "invalid",
            Self::TooManyFailures { .. } => "too-many-failures",
            Self::NoDevice(_) => "device-unknown",
            Self::Removed(_) => "device-removed",
            Self::Denied(_) => "enrolment-denied",
            Self::Pending(_) => "device-pending",
            Self::NotPending(_) => "device-not-pending",
            Self::KeyInUse => "key-in-use",
            Self::CertificateRefused(_) => "certificate-refused",
            Self::OtherKey => "other-key",
            Self::NoInvite(_) => "invite-unknown",
            Self::NoToken(_) => "token-unknown",
            Self::LastAdmin => "last-admin",
            Self::Stale { .. } => "stale-revision",
            Self::Contended => "contended",
            Self::Store(StoreError::Unavailable { .. }) => "store-unavailable",
            Self::Store(_) | Self::Ca(_) | Self::File(_) | Self::Randomness(_) | Self::Audit(_) => "internal",
            Self::TrustChain => "trust-chain-unavailable",
        }
    }

    pub fn class(&self) -> Class {
        match self {
            Self::Invite(_) | Self::Denied(_) | Self::Removed(_) | Self::CertificateRefused(_) => {
                Class::Forbidden
            }
            Self::Certificate(CertificateError::ForeignIssuer) | Self::OtherKey => Class::Forbidden,
            Self::Certificate(_) | Self::Label(_) | Self::Schema { .. } | Self::Invalid { .. } => {
                Class::Invalid
            }
            Self::TooManyFailures { retry_after_secs } => {
                Class::TooMany { retry_after_secs: *retry_after_secs }
            }
            Self::NoDevice(_) | Self::NoInvite(_) | Self::NoToken(_) => Class::NotFound,
            Self::Pending(_) | Self::NotPending(_) | Self::KeyInUse | Self::LastAdmin => Class::Conflict,
            Self::Stale { .. } => Class::Stale,
            Self::Contended | Self::TrustChain | Self::Store(StoreError::Unavailable { .. }) => {
                Class::Unavailable
            }
            Self::Store(_) | Self::Ca(_) | Self::File(_) | Self::Randomness(_) | Self::Audit(_) => {
                Class::Internal
            }
        }
    }

    /// What a person can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Invite(_) => Some("ask for a new join code: `edgefleet device invite`"),
            Self::NoDevice(_) => Some("see what there is with `edgefleet device list`"),
            Self::TooManyFailures { .. } => Some("wait, then try with the right join code"),
            Self::Pending(_) => Some("a person with the role approver or admin has to approve it"),
            Self::Removed(_) => Some("delete the device's key and enrol it again with a new join code"),
            Self::KeyInUse => Some("every device needs its own key; do not copy it with a disk image"),
            Self::OtherKey | Self::CertificateRefused(_) => Some("enrol the device again with a join code"),
            Self::Stale { .. } => Some("read it again and repeat the change with the new ETag"),
            _ => None,
        }
    }
}
