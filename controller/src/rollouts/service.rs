//! The orders of people: make a rollout, start, pause, approve, go back.

use super::{
    documents::{Documents, ROLLOUT},
    driver::Looks,
    history::{History, history},
    members,
    roster::Roster,
    verdicts::{SignedVerdict, log_of},
    working::{Aftermath, Working},
};
use crate::{
    desired::intent_id,
    evidence::Gate,
    fleet::Actor,
    rollout::{
        Attempt, DeviceSaid, Event, Membership, Plan, PlanMistake, Refused, Release, Rollout, Seed,
        plan::OnOverlap,
    },
    store::{
        Expect, Page, Scan, StoreError, Transaction, Versioned,
        audit::{AuditDraft, AuditLog},
    },
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, RolloutId, SlotName},
    time::Timestamp,
};
use std::{collections::BTreeSet, sync::Arc};

/// Above this many devices a rollout must be confirmed.
pub(crate) const CONFIRM_ABOVE: usize = 10;
/// Verdicts shown at a time.
const MAX_VERDICTS: usize = 1_000;

/// What to roll out, once the registry has said what that is.
#[derive(Clone, Debug)]
pub struct NewRolloutRequest {
    pub plan: Plan,
    pub release: Release,
    /// The caller has seen the number of devices.
    pub confirmed: bool,
    /// Begin, as far as approvals allow; otherwise it stays ready.
    pub start: bool,
    pub reason: String,
}

/// Why no rollout was made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("no enrolled device matches `{selectors}`")]
    NobodySelected { selectors: String },
    #[error("{bundle} would go to {devices} devices; that needs a confirmation")]
    Unconfirmed { bundle: BundleName, devices: usize },
    #[error("rollout {rollout} still moves slot `{slot}` of {devices} of these devices to {bundle}")]
    Conflict { rollout: RolloutId, slot: SlotName, bundle: BundleName, devices: usize },
    #[error("{devices} of these devices run {newest}, a later release than {bundle}")]
    Downgrade { bundle: BundleName, newest: BundleName, devices: usize },
    #[error("the plan has {} mistake(s): {}", mistakes.len(), sentences(mistakes))]
    Plan { mistakes: Vec<PlanMistake> },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn sentences(mistakes: &[PlanMistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why an order was not taken.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("there is no rollout {id}")]
    NoSuchRollout { id: RolloutId },
    #[error("rollout {rollout} still moves slot `{slot}` of {devices} of its devices to {bundle}")]
    Conflict { rollout: RolloutId, slot: SlotName, bundle: BundleName, devices: usize },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Rollouts {
    documents: Documents,
    audit: Arc<AuditLog>,
    roster: Arc<dyn Roster>,
    looks: Looks,
    /// Held from the look at what runs to the commit: two starts must not both find the devices free.
    starting: Arc<tokio::sync::Mutex<()>>,
}

impl Rollouts {
    pub fn new(documents: Documents, audit: Arc<AuditLog>, roster: Arc<dyn Roster>) -> Self {
        Self { documents, audit, roster, looks: Looks::default(), starting: Arc::default() }
    }

    pub(super) fn looks(&self) -> &Looks {
        &self.looks
    }

    /// Documents for one transaction.
    pub fn working(&self) -> Working<'_> {
        Working::new(&self.documents, &*self.roster)
    }

    /// Something that all rollouts depend on changed.
    pub fn look_again(&self) {
        self.looks.all();
    }

    /// After a transaction that changed rollouts.
    pub fn after(&self, aftermath: Aftermath) {
        self.looks.after(aftermath);
    }

    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The rollout as it would be made, with everybody's place; nothing is changed.
    ///
    /// # Errors
    /// [`StartError`], as [`Self::start`] would give it, except for a missing confirmation.
    pub async fn prepare(
        &self,
        request: &NewRolloutRequest,
        id: RolloutId,
        by: &str,
        now: Timestamp,
    ) -> Result<(Rollout, Membership), StartError> {
        let plan = request.plan.clone();
        plan.check().map_err(|mistakes| StartError::Plan { mistakes })?;
        // A seed that is no seed is a mistake of the plan, named above.
        let seed = Seed::of_plan(&plan).unwrap_or_else(|| Seed::new(rand::random()));
        let mut draft = Rollout::draft(id, 0, request.release.clone(), plan, seed, by, now);
        draft.reason.clone_from(&request.reason);
        let membership = members::membership(&self.documents, &*self.roster, &draft).await?;
        if membership.members.is_empty() {
            let selectors: Vec<_> = draft.plan.select.iter().map(ToString::to_string).collect();
            return Err(StartError::NobodySelected { selectors: selectors.join("` or `") });
        }
        if draft.plan.rollout.allow_downgrade.is_none() {
            self.no_downgrade(&draft, &membership).await?;
        }
        Ok((draft, membership))
    }

    /// What is known of the bundle that most of these devices run.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn history(
        &self,
        draft: &Rollout,
        membership: &Membership,
        now: Timestamp,
    ) -> Result<History, StoreError> {
        history(&self.documents, &draft.plan.rollout.slot, membership, now).await
    }

    async fn no_downgrade(&self, draft: &Rollout, membership: &Membership) -> Result<(), StartError> {
        let bundle = &draft.release.bundle;
        let (mut newest, mut devices) = (bundle.clone(), 0);
        for member in &membership.members {
            let key = intent_id(&member.device, &draft.plan.rollout.slot);
            let active = self.documents.intents.find_json(&key).await?.and_then(|found| found.value.active);
            let Some(active) =
                active.filter(|a| a.bundle.model == bundle.model && a.bundle.counter > bundle.counter)
            else {
                continue;
            };
            devices += 1;
            if active.bundle.counter > newest.counter {
                newest = active.bundle;
            }
        }
        match devices {
            0 => Ok(()),
            devices => Err(StartError::Downgrade { bundle: bundle.clone(), newest, devices }),
        }
    }

    /// Records the rollout; the driver carries it out.
    ///
    /// # Errors
    /// [`StartError`]; nothing is changed then.
    pub async fn start(
        &self,
        request: NewRolloutRequest,
        id: RolloutId,
        actor: &Actor,
        now: Timestamp,
    ) -> Result<Rollout, StartError> {
        let by = actor.name();
        let _starting = self.starting.lock().await;
        let (mut rollout, membership) = self.prepare(&request, id.clone(), by, now).await?;
        let devices = membership.members.len();
        if devices > CONFIRM_ABOVE && !request.confirmed {
            return Err(StartError::Unconfirmed { bundle: rollout.release.bundle, devices });
        }
        let all = self.list().await?;
        if rollout.plan.gates.used().contains(&Gate::Latency) {
            let known = self.history(&rollout, &membership, now).await?;
            rollout.slow_us = known.p95_ms.map(|ms| (ms * 1e3) as u64);
        }
        rollout.seq = all.iter().map(|rollout| rollout.seq).max().unwrap_or(0) + 1;
        let other = overlapping(&self.documents, &*self.roster, &rollout).await?;
        let mut begin = request.start;
        if let Some((other, count)) = &other {
            match rollout.plan.rollout.on_overlap {
                OnOverlap::Supersede => {}
                OnOverlap::Queue => begin = false,
                OnOverlap::Refuse => {
                    return Err(StartError::Conflict {
                        rollout: other.id.clone(),
                        slot: rollout.plan.rollout.slot,
                        bundle: other.release.bundle.clone(),
                        devices: *count,
                    });
                }
            }
        }
        rollout.apply(&Event::Submit { by: by.to_owned() }, now)?;
        if begin && rollout.state == crate::rollout::State::Ready {
            rollout.apply(&Event::Start { by: by.to_owned() }, now)?;
        }
        let draft = AuditDraft {
            at: now.to_string(),
            who: by.to_owned(),
            action: "rollout.create".to_owned(),
            subject: format!("rollout/{id}"),
            before: None,
            after: serde_json::to_string(&rollout.plan).ok(),
            note: Some(request.reason).filter(|reason| !reason.is_empty()),
        };
        let transaction = Transaction::new().put_json(ROLLOUT, id.as_str(), Expect::Absent, &rollout)?;
        self.audit.commit(transaction, &[draft]).await?;
        if matches!(rollout.state, crate::rollout::State::Assigning { .. }) {
            supersede(&self.documents, &*self.roster, &self.looks, &rollout, now).await?;
        }
        self.looks.after(Aftermath { rollouts: vec![id], deadlines: vec![] });
        Ok(rollout)
    }

    /// Carries a person's order or approval to a rollout, with an entry in the audit log.
    ///
    /// # Errors
    /// [`OrderError`]; nothing is changed then.
    pub async fn order(
        &self,
        id: &RolloutId,
        actor: &Actor,
        action: &str,
        event: &Event,
        now: Timestamp,
    ) -> Result<Rollout, OrderError> {
        let _starting = match event {
            Event::Start { .. } => Some(self.starting.lock().await),
            _ => None,
        };
        loop {
            let mut working = self.working();
            if matches!(event, Event::Start { .. })
                && let Some(rollout) = working.rollout(id).await?
                && rollout.plan.rollout.on_overlap == OnOverlap::Refuse
                && let Some((other, devices)) = overlapping(&self.documents, &*self.roster, rollout).await?
            {
                let (slot, bundle) = (other.plan.rollout.slot, other.release.bundle);
                return Err(OrderError::Conflict { rollout: other.id, slot, bundle, devices });
            }
            if !working.apply(id, event, now).await?? {
                return Err(OrderError::NoSuchRollout { id: id.clone() });
            }
            let Some(rollout) = working.rollout(id).await?.cloned() else {
                return Err(OrderError::NoSuchRollout { id: id.clone() });
            };
            let draft = AuditDraft {
                at: now.to_string(),
                who: actor.name().to_owned(),
                action: action.to_owned(),
                subject: format!("rollout/{id}"),
                before: None,
                after: serde_json::to_string(event).ok(),
                note: None,
            };
            match self.audit.commit(working.stage(Transaction::new())?, &[draft]).await {
                Ok(_) => {
                    self.looks.after(working.aftermath());
                    return Ok(rollout);
                }
                Err(StoreError::StaleRevision { .. }) => {} // a device was faster
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How many devices the selectors choose.
    pub fn selected(&self, rollout: &Rollout) -> u64 {
        self.roster.select(&rollout.plan.select).len() as u64
    }

    /// How many of the members are connected now.
    pub fn online(&self, membership: &Membership) -> u64 {
        membership.members.iter().filter(|member| self.roster.is_online(&member.device)).count() as u64
    }

    /// A device left the fleet.
    ///
    /// # Errors
    /// [`StoreError`]; may be called again.
    pub async fn left_fleet(&self, device: &DeviceId, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let mut working = self.working();
            for (_, intent) in self.documents.intents.list_all(&format!("{device}/")).await? {
                if let Some(trial) = &intent.value.trial {
                    working.hear(trial, device, &DeviceSaid::LeftFleet, now).await?;
                }
            }
            if !working.is_changed() {
                return Ok(());
            }
            match self.documents.store.commit(working.stage(Transaction::new())?).await {
                Ok(_) => {
                    self.looks.after(working.aftermath());
                    return Ok(());
                }
                Err(StoreError::StaleRevision { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// # Errors
    /// [`OrderError`].
    pub async fn show(&self, id: &RolloutId) -> Result<Rollout, OrderError> {
        let found = self.documents.rollouts.find_json(id.as_str()).await?;
        Ok(found.ok_or_else(|| OrderError::NoSuchRollout { id: id.clone() })?.value)
    }

    /// All rollouts, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self) -> Result<Vec<Rollout>, StoreError> {
        let all = self.documents.rollouts.list_all("").await?;
        Ok(all.into_iter().map(|(_, rollout)| rollout.value).collect())
    }

    /// One page of rollouts, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn page(
        &self,
        after: Option<RolloutId>,
        limit: usize,
    ) -> Result<Page<Versioned<Rollout>>, StoreError> {
        let mut scan = Scan::all().limit(limit);
        scan.after = after.map(|id| id.to_string());
        self.documents.rollouts.list(scan).await
    }

    /// Attempts of a rollout by device.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn attempts(
        &self,
        id: &RolloutId,
        after: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<Attempt>, StoreError> {
        let mut scan = Scan::all().prefix(format!("{id}/")).limit(limit);
        scan.after = after.map(|device| super::attempt_id(id, device));
        let page = self.documents.attempts.list(scan).await?;
        Ok(page.entries.into_iter().map(|(_, attempt)| attempt.value).collect())
    }

    /// The last verdicts, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn last_verdicts(
        &self,
        id: &RolloutId,
        limit: usize,
    ) -> Result<Vec<SignedVerdict>, StoreError> {
        let head = self.documents.store.log_head(&log_of(id)).await?;
        let from = head.saturating_sub(limit as u64).saturating_add(1);
        self.verdicts(id, from, limit).await
    }

    /// What was decided, oldest first, from number `from` (1 is the first) on.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn verdicts(
        &self,
        id: &RolloutId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<SignedVerdict>, StoreError> {
        let entries = self.documents.store.log_read(&log_of(id), from, limit.min(MAX_VERDICTS)).await?;
        let parse = |body: &[u8]| serde_json::from_slice(body);
        entries
            .iter()
            .map(|entry| {
                parse(&entry.body).map_err(|source| StoreError::Unreadable {
                    kind: ROLLOUT,
                    id: log_of(id),
                    source,
                })
            })
            .collect()
    }
}

/// Ends the other open rollouts of its slot that have devices of `rollout`, if its plan says so. Their devices
/// come over one by one as they are written; this stops the others handing out more. A rollout that still waits
/// for a person or a time takes nobody's place: it is called when the writing begins.
pub(super) async fn supersede(
    documents: &Documents,
    roster: &dyn Roster,
    looks: &Looks,
    rollout: &Rollout,
    now: Timestamp,
) -> Result<(), StoreError> {
    if rollout.plan.rollout.on_overlap != OnOverlap::Supersede {
        return Ok(());
    }
    let mut told = BTreeSet::new();
    while let Some((other, _)) = overlapping(documents, roster, rollout).await? {
        // One that is going back already goes on doing so.
        if !told.insert(other.id.clone()) {
            return Ok(());
        }
        let event = Event::SupersededBy { rollout: rollout.id.clone() };
        loop {
            let mut working = Working::new(documents, roster);
            if let Err(refused) = working.apply(&other.id, &event, now).await? {
                tracing::warn!(rollout = %other.id, %refused, "rollout.event");
                break;
            }
            match documents.store.commit(working.stage(Transaction::new())?).await {
                Ok(_) => {
                    looks.after(working.aftermath());
                    break;
                }
                Err(StoreError::StaleRevision { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Whether `rollout`, which is about to write its members, has to wait for another one. Those that are about to
/// as well go by their number, so that no two wait for each other.
pub(super) async fn has_to_wait(
    documents: &Documents,
    roster: &dyn Roster,
    rollout: &Rollout,
) -> Result<bool, StoreError> {
    let before = |other: &Rollout| {
        !matches!(other.state, crate::rollout::State::Assigning { .. }) || other.seq < rollout.seq
    };
    Ok(rollout.plan.rollout.on_overlap != OnOverlap::Supersede
        && overlap(documents, roster, rollout, before).await?.is_some())
}

/// The first open rollout of the slot that has some of the devices `rollout` selects, with their number.
pub(super) async fn overlapping(
    documents: &Documents,
    roster: &dyn Roster,
    rollout: &Rollout,
) -> Result<Option<(Rollout, usize)>, StoreError> {
    overlap(documents, roster, rollout, |_| true).await
}

async fn overlap(
    documents: &Documents,
    roster: &dyn Roster,
    rollout: &Rollout,
    counts: impl Fn(&Rollout) -> bool,
) -> Result<Option<(Rollout, usize)>, StoreError> {
    let mut open = Vec::new();
    for (_, other) in documents.rollouts.list_all("").await? {
        let other = other.value;
        let same_slot = other.plan.rollout.slot == rollout.plan.rollout.slot;
        if other.is_active() && other.id != rollout.id && same_slot && counts(&other) {
            open.push(other);
        }
    }
    if open.is_empty() {
        return Ok(None);
    }
    let meant: BTreeSet<_> = roster.select(&rollout.plan.select).into_iter().map(|one| one.device).collect();
    for other in open {
        // Members that are not written yet are those its selectors choose.
        let selected: BTreeSet<_> =
            roster.select(&other.plan.select).into_iter().map(|one| one.device).collect();
        let mut count = 0;
        for device in meant.intersection(&selected) {
            let attempt = documents.attempts.find_json(&super::attempt_id(&other.id, device)).await?;
            count += usize::from(attempt.is_none_or(|found| is_moving(&found.value)));
        }
        if count > 0 {
            return Ok(Some((other, count)));
        }
    }
    Ok(None)
}

/// Whether this rollout still wants something of the device.
fn is_moving(attempt: &Attempt) -> bool {
    use crate::rollout::Bucket as B;
    !matches!(
        attempt.bucket,
        B::Committed | B::Failed | B::Cancelled | B::Superseded | B::Removed | B::Reverted
    )
}
