//! Invites: what a join code refers to. Who holds the secret may enrol devices until the budget is used up.

use super::{
    Actor, Fleet, FleetError, Page,
    attributes::{Labels, check_labels},
    secret::{SecretHash, base32, random, random_id},
};
use crate::store::{Expect, Kind, Scan, Transaction, Versioned, audit::AuditDraft};
use edgefleet_shared::{digest::EnvelopeDigest, enroll::JoinCode, ids::InviteId, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub(super) const INVITE: Kind = Kind::new("invite");

/// Most devices one invite may bring.
pub const MAX_USES: u32 = 1_000_000;
/// Longest life of an invite.
pub const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// One invite, as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Invite {
    pub id: InviteId,
    pub secret: SecretHash,
    /// Given to every device that comes with it.
    pub labels: Labels,
    /// Budget and what is used of it.
    pub uses: u32,
    pub used: u32,
    pub created: Timestamp,
    pub expires: Timestamp,
    /// Devices wait until a person approves them.
    pub approval: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
    /// The trust document that was current: where a new device's chain begins.
    pub trust_pin: EnvelopeDigest,
    pub created_by: String,
}

/// What a new invite should be.
#[derive(Clone, Debug)]
pub struct NewInvite {
    pub labels: Labels,
    pub uses: u32,
    pub ttl: Duration,
    pub approval: bool,
}

/// A new invite and the code that cannot be shown again.
#[derive(Debug)]
pub struct CreatedInvite {
    pub invite: Invite,
    pub code: JoinCode,
}

/// Where an invite stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InviteState {
    Open,
    UsedUp,
    Expired,
    Revoked,
}

/// Why an invite does not let a device in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteRefusal {
    /// Unknown id or wrong secret: who does not know the secret learns nothing about the id.
    #[error("the join code is not valid here")]
    Unknown,
    #[error("the join code expired at {at}")]
    Expired { at: Timestamp },
    #[error("the join code has been used {uses} times, its whole budget")]
    UsedUp { uses: u32 },
    #[error("the join code was revoked at {at}")]
    Revoked { at: Timestamp },
}

impl InviteRefusal {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "invite-refused",
            Self::Expired { .. } => "invite-expired",
            Self::UsedUp { .. } => "invite-used-up",
            Self::Revoked { .. } => "invite-revoked",
        }
    }
}

impl Invite {
    pub fn state(&self, now: Timestamp) -> InviteState {
        match self.admit(now) {
            Ok(()) => InviteState::Open,
            Err(InviteRefusal::Revoked { .. }) => InviteState::Revoked,
            Err(InviteRefusal::UsedUp { .. }) => InviteState::UsedUp,
            Err(InviteRefusal::Expired { .. } | InviteRefusal::Unknown) => InviteState::Expired,
        }
    }

    /// Whether one more device may come in.
    ///
    /// # Errors
    /// [`InviteRefusal`].
    pub fn admit(&self, now: Timestamp) -> Result<(), InviteRefusal> {
        if let Some(at) = self.revoked {
            return Err(InviteRefusal::Revoked { at });
        }
        if self.used >= self.uses {
            return Err(InviteRefusal::UsedUp { uses: self.uses });
        }
        if now >= self.expires {
            return Err(InviteRefusal::Expired { at: self.expires });
        }
        Ok(())
    }
}

impl Fleet {
    /// Makes an invite and its join code. The code is returned once and stored nowhere.
    ///
    /// # Errors
    /// [`FleetError::Label`], [`FleetError::Invalid`], store errors.
    pub async fn create_invite(&self, actor: &Actor, new: NewInvite) -> Result<CreatedInvite, FleetError> {
        check_labels(&new.labels)?;
        if new.uses == 0 || new.uses > MAX_USES {
            let reason = format!("{} uses, 1 to {MAX_USES} are allowed", new.uses);
            return Err(FleetError::Invalid { what: "the budget of an invite", reason });
        }
        if new.ttl.is_zero() || new.ttl > MAX_TTL {
            let reason = format!("{} s, 1 s to {} s are allowed", new.ttl.as_secs(), MAX_TTL.as_secs());
            return Err(FleetError::Invalid { what: "the life of an invite", reason });
        }
        let now = self.now();
        let id = random_id("inv-")?;
        let secret = base32(&random::<20>()?);
        let id: InviteId = id.parse().map_err(|error: edgefleet_shared::ids::IdError| {
            FleetError::Invalid { what: "a new invite id", reason: error.to_string() }
        })?;
        let invite = Invite {
            id: id.clone(),
            secret: SecretHash::of(&secret),
            labels: new.labels,
            uses: new.uses,
            used: 0,
            created: now,
            expires: now + new.ttl,
            approval: new.approval,
            revoked: None,
            trust_pin: self.trust.newest(),
            created_by: actor.name().to_owned(),
        };
        let audit = AuditDraft {
            after: Some(describe(&invite)),
            ..self.draft(actor, "invite.create", format!("invite/{id}"))
        };
        let transaction = Transaction::new().put_json(INVITE, id.as_str(), Expect::Absent, &invite)?;
        self.audit.commit(transaction, &[audit]).await?;
        let code = JoinCode {
            url: self.endpoints().url.clone(),
            ca_pin: self.ca.pin(),
            invite: id,
            secret,
            trust_pin: invite.trust_pin,
        };
        Ok(CreatedInvite { invite, code })
    }

    /// One page of invites in the order of their ids.
    ///
    /// # Errors
    /// Store errors.
    pub async fn invites(&self, after: Option<&str>, limit: usize) -> Result<Page<Invite>, FleetError> {
        let scan = Scan { prefix: None, after: after.map(str::to_owned), limit };
        let page = self.invites.list(scan).await?;
        let items = page.entries.into_iter().map(|(_, versioned)| versioned.value).collect();
        Ok(Page { items, next: page.next })
    }

    /// # Errors
    /// [`FleetError::NoInvite`], store errors.
    pub async fn invite(&self, id: &InviteId) -> Result<Invite, FleetError> {
        let found = self.invites.find_json(id.as_str()).await?;
        Ok(found.ok_or_else(|| FleetError::NoInvite(id.clone()))?.value)
    }

    /// Ends an invite. Devices that came with it stay. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`FleetError::NoInvite`], store errors.
    pub async fn revoke_invite(&self, actor: &Actor, id: &InviteId) -> Result<Invite, FleetError> {
        for _ in 0..super::MAX_ATTEMPTS {
            let found = self.invites.find_json(id.as_str()).await?;
            let Versioned { revision, value } = found.ok_or_else(|| FleetError::NoInvite(id.clone()))?;
            if value.revoked.is_some() {
                return Ok(value);
            }
            let next = Invite { revoked: Some(self.now()), ..value.clone() };
            let audit = AuditDraft {
                before: Some(describe(&value)),
                after: Some(describe(&next)),
                ..self.draft(actor, "invite.revoke", format!("invite/{id}"))
            };
            let transaction =
                Transaction::new().put_json(INVITE, id.as_str(), Expect::Revision(revision), &next)?;
            match self.audit.commit(transaction, &[audit]).await {
                Ok(_) => return Ok(next),
                Err(crate::store::StoreError::StaleRevision { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(FleetError::Contended)
    }
}

/// For the audit log: everything but the secret.
fn describe(invite: &Invite) -> String {
    let labels: Vec<_> = invite.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let revoked = invite.revoked.map(|at| format!(", revoked {at}")).unwrap_or_default();
    format!(
        "labels [{}], {} of {} used, expires {}, approval {}{revoked}",
        labels.join(", "),
        invite.used,
        invite.uses,
        invite.expires,
        invite.approval
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invite_says_why_it_is_closed() {
        let at = Timestamp::from_secs;
        let open = Invite {
            id: "inv-1".parse().unwrap(),
            secret: SecretHash::of("s"),
            labels: Labels::new(),
            uses: 2,
            used: 1,
            created: at(100),
            expires: at(200),
            approval: false,
            revoked: None,
            trust_pin: EnvelopeDigest::of(b""),
            created_by: "test".into(),
        };
        assert_eq!(open.state(at(199)), InviteState::Open);
        assert_eq!(open.state(at(200)), InviteState::Expired);
        assert_eq!(Invite { used: 2, ..open.clone() }.state(at(150)), InviteState::UsedUp);
        assert_eq!(Invite { revoked: Some(at(150)), used: 2, ..open }.state(at(500)), InviteState::Revoked);
    }
}
