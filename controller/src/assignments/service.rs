//! Carries assignments out: members, intents and attempts in chunks, each chunk one transaction.

use super::record::{
    ATTEMPT, AttemptRecord, AttemptState, ROLLOUT, RolloutCounts, RolloutRecord, RolloutState, attempt_id,
};
use crate::{
    desired::{INTENT, Intent, intent_id},
    store::{
        Expect, FleetStore, Repository, StoreError, Transaction, Versioned,
        audit::{AuditDraft, AuditLog},
    },
};
use async_trait::async_trait;
use edgefleet_shared::{
    desired::Assigned,
    digest::EnvelopeDigest,
    ids::{AttemptId, BundleName, DeviceId, RolloutId, SlotName},
    selector::Selector,
    time::Timestamp,
};
use std::sync::Arc;

/// Devices in one transaction: three operations each stay far below the store's limit.
const CHUNK: usize = 500;

/// Who is in the fleet.
#[async_trait]
pub trait Roster: Send + Sync {
    /// Enrolled devices that any of `selectors` selects, in the order of their ids.
    async fn select(&self, selectors: &[Selector]) -> Result<Vec<DeviceId>, StoreError>;
}

/// What to assign to whom.
#[derive(Clone, Debug)]
pub struct AssignRequest {
    pub slot: SlotName,
    pub bundle: BundleName,
    pub release: EnvelopeDigest,
    pub release_size: u64,
    pub selectors: Vec<Selector>,
    pub probation_secs: u64,
    /// Replace rollouts of this slot that still run on some of these devices.
    pub supersede: bool,
    /// The number of devices the caller has seen and agreed to; `None` to be refused above the limit.
    pub confirmed: bool,
    pub by: String,
    pub reason: Option<String>,
}

/// Above this many devices an assignment by hand must be confirmed.
pub(super) const CONFIRM_ABOVE: usize = 10;

/// Why nothing was assigned.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    #[error("no enrolled device matches `{selectors}`")]
    NobodySelected { selectors: String },
    #[error("{bundle} would go to {devices} devices; that needs a confirmation")]
    Unconfirmed { bundle: BundleName, devices: usize },
    #[error("rollout {rollout} still moves slot `{slot}` of {devices} of these devices to {bundle}")]
    Conflict { rollout: RolloutId, slot: SlotName, bundle: BundleName, devices: usize },
    #[error("there is no rollout {id}")]
    NoSuchRollout { id: RolloutId },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Assignments {
    store: Arc<dyn FleetStore>,
    rollouts: Repository<RolloutRecord>,
    attempts: Repository<AttemptRecord>,
    intents: Repository<Intent>,
    audit: Arc<AuditLog>,
    roster: Arc<dyn Roster>,
}

impl Assignments {
    pub fn new(store: Arc<dyn FleetStore>, audit: Arc<AuditLog>, roster: Arc<dyn Roster>) -> Self {
        Self {
            rollouts: Repository::new(store.clone(), ROLLOUT),
            attempts: Repository::new(store.clone(), ATTEMPT),
            intents: Repository::new(store.clone(), INTENT),
            store,
            audit,
            roster,
        }
    }

    /// How many devices a request would reach, without changing anything.
    ///
    /// # Errors
    /// [`AssignError`], as [`Self::start`] would give it.
    pub async fn preview(&self, request: &AssignRequest) -> Result<Vec<DeviceId>, AssignError> {
        let devices = self.roster.select(&request.selectors).await?;
        if devices.is_empty() {
            let selectors: Vec<_> = request.selectors.iter().map(ToString::to_string).collect();
            return Err(AssignError::NobodySelected { selectors: selectors.join("` or `") });
        }
        Ok(devices)
    }

    /// Records the rollout; [`Self::advance`] then carries it out.
    ///
    /// # Errors
    /// [`AssignError`]; nothing is changed then.
    pub async fn start(
        &self,
        request: AssignRequest,
        id: RolloutId,
        now: Timestamp,
    ) -> Result<RolloutRecord, AssignError> {
        let devices = self.preview(&request).await?;
        if devices.len() > CONFIRM_ABOVE && !request.confirmed {
            return Err(AssignError::Unconfirmed { bundle: request.bundle, devices: devices.len() });
        }
        let open = self.overlapping(&request.slot, &devices).await?;
        if let (false, Some((rollout, count))) = (request.supersede, open.first()) {
            return Err(AssignError::Conflict {
                rollout: rollout.value.id.clone(),
                slot: request.slot,
                bundle: rollout.value.bundle.clone(),
                devices: *count,
            });
        }
        let record = RolloutRecord {
            id: id.clone(),
            slot: request.slot,
            bundle: request.bundle,
            release: request.release,
            release_size: request.release_size,
            selectors: request.selectors,
            probation_secs: request.probation_secs,
            created: now,
            by: request.by.clone(),
            reason: request.reason.clone(),
            state: RolloutState::Assigning { after: None },
            counts: RolloutCounts { total: devices.len() as u64, ..RolloutCounts::default() },
        };
        let draft = AuditDraft {
            at: now.to_string(),
            who: request.by,
            action: "bundle.assign".into(),
            subject: format!("rollout/{id}"),
            before: None,
            after: serde_json::to_string(&record).ok(),
            note: request.reason,
        };
        let transaction = Transaction::new().put_json(ROLLOUT, id.as_str(), Expect::Absent, &record)?;
        self.audit.commit(transaction, &[draft]).await?;
        Ok(record)
    }

    /// Open rollouts of `slot` with unfinished attempts on some of `devices`, with their number.
    async fn overlapping(
        &self,
        slot: &SlotName,
        devices: &[DeviceId],
    ) -> Result<Vec<(Versioned<RolloutRecord>, usize)>, StoreError> {
        let mut found = Vec::new();
        for (_, rollout) in self.rollouts.list_all("").await? {
            if rollout.value.slot != *slot || !rollout.value.is_open() {
                continue;
            }
            let attempts = self.attempts.list_all(&format!("{}/", rollout.value.id)).await?;
            let count = attempts
                .iter()
                .filter(|(_, attempt)| attempt.value.state == AttemptState::Assigned)
                .filter(|(_, attempt)| devices.binary_search(&attempt.value.device).is_ok())
                .count();
            if count > 0 {
                found.push((rollout, count));
            }
        }
        Ok(found)
    }

    /// Writes the next chunk of a rollout that is still assigning and returns the devices it reached;
    /// empty once there is nothing left to do. May be called again after any interruption.
    ///
    /// # Errors
    /// [`AssignError`]; the chunk happened as a whole or not at all.
    pub async fn advance(&self, id: &RolloutId, now: Timestamp) -> Result<Vec<DeviceId>, AssignError> {
        let Some(found) = self.rollouts.find_json(id.as_str()).await? else {
            return Err(AssignError::NoSuchRollout { id: id.clone() });
        };
        let RolloutState::Assigning { after } = found.value.state.clone() else {
            return Ok(vec![]);
        };
        let members = self.roster.select(&found.value.selectors).await?;
        let chunk: Vec<DeviceId> = members
            .into_iter()
            .filter(|device| after.as_ref().is_none_or(|after| device > after))
            .take(CHUNK)
            .collect();
        let mut next = found.value.clone();
        let mut transaction = Transaction::new();
        let mut displaced: Vec<Versioned<RolloutRecord>> = Vec::new();
        let mut written = 0u64;
        for device in &chunk {
            let attempt = AttemptId { rollout: id.clone(), number: 1 };
            let key = intent_id(device, &found.value.slot);
            let earlier = self.intents.find_json(&key).await?;
            if let Some(earlier) = &earlier {
                transaction = self.displace(transaction, &earlier.value, id, &mut displaced, now).await?;
            }
            let intent = Intent {
                device: device.clone(),
                slot: found.value.slot.clone(),
                active: Assigned {
                    bundle: found.value.bundle.clone(),
                    release: found.value.release,
                    release_size: found.value.release_size,
                    attempt: attempt.clone(),
                },
                probation_secs: found.value.probation_secs,
                rollout: id.clone(),
            };
            let record = AttemptRecord {
                device: device.clone(),
                rollout: id.clone(),
                number: attempt.number,
                state: AttemptState::Assigned,
                refusal: None,
                took_ms: 0,
                fetched_bytes: 0,
                updated: now,
            };
            let expect = earlier.map_or(Expect::Absent, |e| Expect::Revision(e.revision));
            transaction = transaction.put_json(INTENT, key, expect, &intent)?.put_json(
                ATTEMPT,
                attempt_id(id, device),
                Expect::Any,
                &record,
            )?;
            written += 1;
        }
        next.state = match chunk.last() {
            Some(last) if chunk.len() == CHUNK => RolloutState::Assigning { after: Some(last.clone()) },
            _ => RolloutState::Running,
        };
        // The selection is taken anew for each chunk: count what was really assigned.
        let before = match &after {
            None => 0,
            Some(_) => self.attempts.list_all(&format!("{id}/")).await?.len() as u64,
        };
        next.counts.total = if next.state == RolloutState::Running {
            before + written
        } else {
            next.counts.total.max(before + written)
        };
        if next.state == RolloutState::Running && next.counts.finished() >= next.counts.total {
            next.state = RolloutState::Completed;
        }
        for rollout in displaced {
            transaction = transaction.put_json(
                ROLLOUT,
                rollout.value.id.as_str(),
                Expect::Revision(rollout.revision),
                &rollout.value,
            )?;
        }
        transaction = transaction.put_json(ROLLOUT, id.as_str(), Expect::Revision(found.revision), &next)?;
        self.store.commit(transaction).await?;
        Ok(chunk)
    }

    /// Marks the attempt behind an intent that is being replaced as superseded, if it had not ended.
    async fn displace(
        &self,
        transaction: Transaction,
        earlier: &Intent,
        by: &RolloutId,
        displaced: &mut Vec<Versioned<RolloutRecord>>,
        now: Timestamp,
    ) -> Result<Transaction, StoreError> {
        if earlier.rollout == *by {
            return Ok(transaction);
        }
        let key = attempt_id(&earlier.rollout, &earlier.device);
        let Some(mut attempt) = self.attempts.find_json(&key).await? else { return Ok(transaction) };
        if attempt.value.state != AttemptState::Assigned {
            return Ok(transaction);
        }
        let at = match displaced.iter().position(|rollout| rollout.value.id == earlier.rollout) {
            Some(at) => at,
            None => {
                let Some(rollout) = self.rollouts.find_json(earlier.rollout.as_str()).await? else {
                    return Ok(transaction);
                };
                displaced.push(rollout);
                displaced.len() - 1
            }
        };
        displaced[at].value.moved(&attempt.value.state, &AttemptState::Superseded);
        if displaced[at].value.state == RolloutState::Completed {
            displaced[at].value.state = RolloutState::Superseded { by: by.clone() };
        }
        attempt.value.state = AttemptState::Superseded;
        attempt.value.updated = now;
        transaction.put_json(ATTEMPT, key, Expect::Revision(attempt.revision), &attempt.value)
    }

    /// Takes a removed device out of the count of every open rollout.
    pub async fn removed(&self, device: &DeviceId, now: Timestamp) -> Result<(), StoreError> {
        for (_, rollout) in self.rollouts.list_all("").await? {
            let key = attempt_id(&rollout.value.id, device);
            let Some(mut attempt) = self.attempts.find_json(&key).await? else { continue };
            if attempt.value.state != AttemptState::Assigned {
                continue;
            }
            let mut next = rollout.value.clone();
            next.moved(&attempt.value.state, &AttemptState::Removed);
            attempt.value.state = AttemptState::Removed;
            attempt.value.updated = now;
            let transaction = Transaction::new()
                .put_json(ATTEMPT, key, Expect::Revision(attempt.revision), &attempt.value)?
                .put_json(ROLLOUT, next.id.as_str(), Expect::Revision(rollout.revision), &next)?;
            self.store.commit(transaction).await?;
        }
        Ok(())
    }

    /// Rollouts whose assignment was interrupted.
    pub async fn unfinished(&self) -> Result<Vec<RolloutId>, StoreError> {
        let all = self.rollouts.list_all("").await?;
        Ok(all
            .into_iter()
            .filter(|(_, rollout)| matches!(rollout.value.state, RolloutState::Assigning { .. }))
            .map(|(_, rollout)| rollout.value.id)
            .collect())
    }

    pub async fn show(&self, id: &RolloutId) -> Result<RolloutRecord, AssignError> {
        let found = self.rollouts.find_json(id.as_str()).await?;
        found.map(|f| f.value).ok_or_else(|| AssignError::NoSuchRollout { id: id.clone() })
    }

    pub async fn list(&self) -> Result<Vec<RolloutRecord>, StoreError> {
        Ok(self.rollouts.list_all("").await?.into_iter().map(|(_, rollout)| rollout.value).collect())
    }

    pub async fn attempts(&self, id: &RolloutId) -> Result<Vec<AttemptRecord>, StoreError> {
        let all = self.attempts.list_all(&format!("{id}/")).await?;
        Ok(all.into_iter().map(|(_, attempt)| attempt.value).collect())
    }
}
