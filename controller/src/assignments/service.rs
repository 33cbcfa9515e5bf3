//! Carries assignments out: members, intents and attempts in chunks, each chunk one transaction.

use super::record::{
    ATTEMPT, AttemptRecord, AttemptState, ROLLOUT, RolloutCounts, RolloutRecord, RolloutState, attempt_id,
};
use crate::{
    desired::{INTENT, Intent, intent_id},
    store::{
        Expect, FleetStore, Page, Repository, Scan, StoreError, Transaction, Versioned,
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
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Devices in one transaction: three operations each stay far below the store's limit.
const CHUNK: usize = 500;

/// Who is in the fleet.
#[async_trait]
pub trait Roster: Send + Sync {
    /// Up to `limit` enrolled devices after `after` that any of `selectors` selects, in the order of their
    /// ids. Fewer than `limit`: there are no more.
    async fn select(
        &self,
        selectors: &[Selector],
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<DeviceId>, StoreError>;
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
    /// Held from the look at what runs to the commit: two starts must not both find the devices free.
    starting: Arc<tokio::sync::Mutex<()>>,
}

/// The rollouts behind the intents that one chunk replaces, loaded once.
#[derive(Default)]
struct Earlier {
    loaded: BTreeMap<RolloutId, Option<Versioned<RolloutRecord>>>,
    changed: BTreeSet<RolloutId>,
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
            starting: Arc::default(),
        }
    }

    /// How many devices a request would reach, without changing anything.
    ///
    /// # Errors
    /// [`AssignError`], as [`Self::start`] would give it.
    pub async fn preview(&self, request: &AssignRequest) -> Result<Vec<DeviceId>, AssignError> {
        let devices = self.roster.select(&request.selectors, None, usize::MAX).await?;
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
        let _starting = self.starting.lock().await;
        let all = self.list().await?;
        if !request.supersede
            && let Some((rollout, count)) = self.overlapping(&all, &request.slot, &devices).await?
        {
            return Err(AssignError::Conflict {
                rollout: rollout.id.clone(),
                slot: request.slot,
                bundle: rollout.bundle.clone(),
                devices: count,
            });
        }
        let record = RolloutRecord {
            id: id.clone(),
            seq: all.iter().map(|rollout| rollout.seq).max().unwrap_or(0) + 1,
            slot: request.slot,
            bundle: request.bundle,
            release: request.release,
            release_size: request.release_size,
            selectors: request.selectors,
            probation_secs: request.probation_secs,
            created: now,
            by: request.by.clone(),
            reason: request.reason.clone(),
            state: RolloutState::Assigning { after: None, assigned: 0 },
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

    /// The first open rollout of `slot` that still moves some of `devices`, with their number.
    async fn overlapping<'a>(
        &self,
        rollouts: &'a [RolloutRecord],
        slot: &SlotName,
        devices: &[DeviceId],
    ) -> Result<Option<(&'a RolloutRecord, usize)>, StoreError> {
        let meant = |device: &DeviceId| devices.binary_search(device).is_ok();
        for rollout in rollouts.iter().filter(|one| one.slot == *slot && one.is_open()) {
            let mut count = 0;
            let mut scan = Scan::all().prefix(format!("{}/", rollout.id));
            loop {
                let page = self.attempts.list(scan.clone()).await?;
                let moving = page.entries.iter().map(|(_, attempt)| &attempt.value);
                let moving = moving.filter(|one| one.state == AttemptState::Assigned && meant(&one.device));
                count += moving.count();
                match page.next {
                    Some(next) => scan.after = Some(next),
                    None => break,
                }
            }
            // One that is still being written has no attempts yet for those after its cursor.
            if let RolloutState::Assigning { after, .. } = &rollout.state {
                let rest = self.roster.select(&rollout.selectors, after.as_ref(), usize::MAX).await?;
                count += rest.iter().filter(|device| meant(device)).count();
            }
            if count > 0 {
                return Ok(Some((rollout, count)));
            }
        }
        Ok(None)
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
        let RolloutState::Assigning { after, assigned } = found.value.state.clone() else {
            return Ok(vec![]);
        };
        let chunk = self.roster.select(&found.value.selectors, after.as_ref(), CHUNK).await?;
        let mut next = found.value.clone();
        let mut transaction = Transaction::new();
        let mut others = Earlier::default();
        for device in &chunk {
            let attempt = AttemptId { rollout: id.clone(), number: 1 };
            let key = intent_id(device, &found.value.slot);
            let earlier = self.intents.find_json(&key).await?;
            let mut state = AttemptState::Assigned;
            if let Some(earlier) = &earlier {
                // A later rollout got to this device first; what it wants stays.
                if self.seq(&mut others, &earlier.value.rollout).await? > found.value.seq {
                    state = AttemptState::Superseded;
                } else {
                    transaction = self.displace(transaction, &earlier.value, id, &mut others, now).await?;
                }
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
                state: state.clone(),
                refusal: None,
                took_ms: 0,
                fetched_bytes: 0,
                updated: now,
            };
            if state == AttemptState::Assigned {
                let expect = earlier.map_or(Expect::Absent, |e| Expect::Revision(e.revision));
                transaction = transaction.put_json(INTENT, key, expect, &intent)?;
            }
            let key = attempt_id(id, device);
            transaction = transaction.put_json(ATTEMPT, key, Expect::Any, &record)?;
            next.moved(&AttemptState::Assigned, &state);
        }
        // The selection is taken anew for each chunk: what was really assigned counts.
        let assigned = assigned + chunk.len() as u64;
        next.state = match chunk.last() {
            Some(last) if chunk.len() == CHUNK => {
                RolloutState::Assigning { after: Some(last.clone()), assigned }
            }
            _ => RolloutState::Running,
        };
        next.counts.total = match next.state {
            RolloutState::Running => assigned,
            _ => next.counts.total.max(assigned),
        };
        if next.state == RolloutState::Running && next.counts.finished() >= next.counts.total {
            next.state = RolloutState::Completed;
        }
        for other in &others.changed {
            if let Some(Some(other)) = others.loaded.get(other) {
                let expect = Expect::Revision(other.revision);
                transaction = transaction.put_json(ROLLOUT, other.value.id.as_str(), expect, &other.value)?;
            }
        }
        transaction = transaction.put_json(ROLLOUT, id.as_str(), Expect::Revision(found.revision), &next)?;
        self.store.commit(transaction).await?;
        Ok(chunk)
    }

    /// The number of a rollout; 0 if it is not there any more.
    async fn seq(&self, others: &mut Earlier, id: &RolloutId) -> Result<u64, StoreError> {
        if !others.loaded.contains_key(id) {
            others.loaded.insert(id.clone(), self.rollouts.find_json(id.as_str()).await?);
        }
        Ok(others.loaded.get(id).and_then(Option::as_ref).map_or(0, |found| found.value.seq))
    }

    /// Marks the attempt behind an intent that is being replaced as superseded, if it had not ended.
    /// [`Self::seq`] has loaded its rollout.
    async fn displace(
        &self,
        transaction: Transaction,
        earlier: &Intent,
        by: &RolloutId,
        others: &mut Earlier,
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
        let Some(Some(rollout)) = others.loaded.get_mut(&earlier.rollout) else { return Ok(transaction) };
        others.changed.insert(earlier.rollout.clone());
        rollout.value.moved(&attempt.value.state, &AttemptState::Superseded);
        if rollout.value.state == RolloutState::Completed {
            rollout.value.state = RolloutState::Superseded { by: by.clone() };
        }
        attempt.value.state = AttemptState::Superseded;
        attempt.value.updated = now;
        transaction.put_json(ATTEMPT, key, Expect::Revision(attempt.revision), &attempt.value)
    }

    /// Takes a removed device out of the count of the rollouts that still move it.
    ///
    /// # Errors
    /// [`StoreError`]; may be called again.
    pub async fn removed(&self, device: &DeviceId, now: Timestamp) -> Result<(), StoreError> {
        // An attempt that has not ended is the one behind an intent: others were superseded.
        for (_, intent) in self.intents.list_all(&format!("{device}/")).await? {
            while !self.end_removed(device, &intent.value.rollout, now).await? {}
        }
        Ok(())
    }

    /// False if another writer was faster.
    async fn end_removed(
        &self,
        device: &DeviceId,
        rollout: &RolloutId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let key = attempt_id(rollout, device);
        let found = (self.attempts.find_json(&key).await?, self.rollouts.find_json(rollout.as_str()).await?);
        let (Some(mut attempt), Some(mut rollout)) = found else { return Ok(true) };
        if attempt.value.state != AttemptState::Assigned {
            return Ok(true);
        }
        rollout.value.moved(&attempt.value.state, &AttemptState::Removed);
        attempt.value.state = AttemptState::Removed;
        attempt.value.updated = now;
        let (id, expect) = (rollout.value.id.as_str(), Expect::Revision(rollout.revision));
        let transaction = Transaction::new()
            .put_json(ATTEMPT, key, Expect::Revision(attempt.revision), &attempt.value)?
            .put_json(ROLLOUT, id, expect, &rollout.value)?;
        match self.store.commit(transaction).await {
            Ok(_) => Ok(true),
            Err(StoreError::StaleRevision { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Rollouts whose assignment was interrupted, in the order they were started.
    pub async fn unfinished(&self) -> Result<Vec<RolloutId>, StoreError> {
        let mut all = self.list().await?;
        all.retain(|rollout| matches!(rollout.state, RolloutState::Assigning { .. }));
        all.sort_by_key(|rollout| rollout.seq);
        Ok(all.into_iter().map(|rollout| rollout.id).collect())
    }

    pub async fn show(&self, id: &RolloutId) -> Result<RolloutRecord, AssignError> {
        let found = self.rollouts.find_json(id.as_str()).await?;
        found.map(|f| f.value).ok_or_else(|| AssignError::NoSuchRollout { id: id.clone() })
    }

    pub async fn list(&self) -> Result<Vec<RolloutRecord>, StoreError> {
        Ok(self.rollouts.list_all("").await?.into_iter().map(|(_, rollout)| rollout.value).collect())
    }

    /// One page of rollouts in the order of their ids, which is that of their times.
    pub async fn page(
        &self,
        after: Option<RolloutId>,
        limit: usize,
    ) -> Result<Page<Versioned<RolloutRecord>>, StoreError> {
        let after = after.map(|id| id.to_string());
        self.rollouts.list(Scan { after, limit, ..Scan::all() }).await
    }

    /// One page of a rollout's attempts in the order of their devices.
    pub async fn attempts(
        &self,
        id: &RolloutId,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<AttemptRecord>, StoreError> {
        let after = after.map(|device| attempt_id(id, device));
        let scan = Scan { prefix: Some(format!("{id}/")), after, limit };
        let page = self.attempts.list(scan).await?;
        Ok(page.entries.into_iter().map(|(_, attempt)| attempt.value).collect())
    }
}
