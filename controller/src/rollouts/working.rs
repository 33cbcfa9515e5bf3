//! The documents of one transaction: loaded once, changed in memory, saved together or not at all.

use super::{
    documents::{ATTEMPT, Documents, ROLLOUT, attempt_id, match_prefix},
    roster::Roster,
};
use crate::{
    alerts::{self, sources},
    rollout::{Arm, Attempt, DeviceSaid, Event, Move, Refused, Rollout, StateName, compare},
    store::{Expect, Revision, StoreError, Transaction, Versioned},
};
use edgefleet_shared::{
    ids::{DeviceId, RolloutId},
    time::Timestamp,
};
use std::collections::{BTreeMap, VecDeque, btree_map::Entry};

/// A document, the revision it was read at, and whether it is another one now.
pub(super) struct Loaded<T> {
    pub(super) revision: Option<Revision>,
    pub(super) value: T,
    pub(super) changed: bool,
}

impl<T> Loaded<T> {
    fn expect(&self) -> Expect {
        self.revision.map_or(Expect::Absent, Expect::Revision)
    }
}

impl<T> From<Versioned<T>> for Loaded<T> {
    fn from(found: Versioned<T>) -> Self {
        Self { revision: Some(found.revision), value: found.value, changed: false }
    }
}

/// What somebody has to know after the transaction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Aftermath {
    /// Rollouts that are not what they were: the driver looks at them again.
    pub rollouts: Vec<RolloutId>,
    /// When each changed attempt wants to hear the clock next.
    pub deadlines: Vec<(RolloutId, DeviceId, Option<Timestamp>)>,
}

/// Rollouts and attempts under change.
pub struct Working<'a> {
    documents: &'a Documents,
    roster: &'a dyn Roster,
    rollouts: BTreeMap<RolloutId, Option<Loaded<Rollout>>>,
    /// The states in which they came, for those who want to hear of another.
    before: BTreeMap<RolloutId, StateName>,
    attempts: BTreeMap<String, Option<Loaded<Attempt>>>,
}

impl<'a> Working<'a> {
    pub fn new(documents: &'a Documents, roster: &'a dyn Roster) -> Self {
        let (rollouts, before, attempts) = Default::default();
        Self { documents, roster, rollouts, before, attempts }
    }

    pub(super) fn documents(&self) -> &'a Documents {
        self.documents
    }

    pub fn is_changed(&self) -> bool {
        self.rollouts.values().flatten().any(|one| one.changed)
            || self.attempts.values().flatten().any(|one| one.changed)
    }

    /// The rollout, loaded at most once.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rollout(&mut self, id: &RolloutId) -> Result<Option<&Rollout>, StoreError> {
        Ok(self.load_rollout(id).await?.map(|found| &found.value))
    }

    async fn load_rollout(&mut self, id: &RolloutId) -> Result<Option<&mut Loaded<Rollout>>, StoreError> {
        match self.rollouts.entry(id.clone()) {
            Entry::Occupied(entry) => Ok(entry.into_mut().as_mut()),
            Entry::Vacant(entry) => {
                let found = self.documents.rollouts.find_json(id.as_str()).await?;
                self.before.extend(found.iter().map(|found| (id.clone(), found.value.state.name())));
                Ok(entry.insert(found.map(Loaded::from)).as_mut())
            }
        }
    }

    pub(super) async fn attempt(
        &mut self,
        rollout: &RolloutId,
        device: &DeviceId,
    ) -> Result<Option<&mut Loaded<Attempt>>, StoreError> {
        match self.attempts.entry(attempt_id(rollout, device)) {
            Entry::Occupied(entry) => Ok(entry.into_mut().as_mut()),
            Entry::Vacant(entry) => {
                let found = self.documents.attempts.find_json(entry.key()).await?;
                Ok(entry.insert(found.map(Loaded::from)).as_mut())
            }
        }
    }

    /// Takes a new attempt in; one that is there already stays as it is.
    pub(super) async fn enlist(&mut self, attempt: Attempt) -> Result<bool, StoreError> {
        let key = attempt_id(&attempt.rollout, &attempt.device);
        if self.attempt(&attempt.rollout, &attempt.device).await?.is_some() {
            return Ok(false);
        }
        self.attempts.insert(key, Some(Loaded { revision: None, value: attempt, changed: true }));
        Ok(true)
    }

    /// Applies an event to a rollout. `Ok(false)`: there is no such rollout.
    pub(super) async fn apply(
        &mut self,
        id: &RolloutId,
        event: &Event,
        now: Timestamp,
    ) -> Result<Result<bool, Refused>, StoreError> {
        let Some(found) = self.load_rollout(id).await? else { return Ok(Ok(false)) };
        match found.value.apply(event, now) {
            Ok(_) => {
                found.changed = true;
                Ok(Ok(true))
            }
            Err(refused) => Ok(Err(refused)),
        }
    }

    /// What `device` said, and everything that follows from it for its rollout and the devices it is
    /// compared with.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hear(
        &mut self,
        rollout: &RolloutId,
        device: &DeviceId,
        said: &DeviceSaid,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let Some(found) = self.load_rollout(rollout).await? else { return Ok(()) };
        let plan = found.value.plan.clone();
        let Some(attempt) = self.attempt(rollout, device).await? else { return Ok(()) };
        let moves = attempt.value.hear(said, &plan, now);
        attempt.changed = true;
        self.follow(rollout, moves, now).await
    }

    /// Carries moves to the rollout, and to other devices of the same match.
    pub(super) async fn follow(
        &mut self,
        rollout: &RolloutId,
        moves: Vec<Move>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut left: VecDeque<Move> = moves.into();
        while let Some(next) = left.pop_front() {
            match next {
                Move::ControlsJoin { match_of } => {
                    let plan = match self.rollout(rollout).await? {
                        Some(found) => found.plan.clone(),
                        None => return Ok(()),
                    };
                    for device in self.matched(rollout, match_of).await? {
                        // A connected device may be about to say something at any time.
                        let last_seen = match self.roster.is_online(&device) {
                            true => Some(now),
                            false => self.roster.last_seen(&device),
                        };
                        let said = DeviceSaid::CanaryActivated { last_seen };
                        let Some(control) = self.attempt(rollout, &device).await? else { continue };
                        if control.value.arm == Arm::Control {
                            left.extend(control.value.hear(&said, &plan, now));
                            control.changed = true;
                        }
                    }
                }
                Move::CompareDue { match_of } => left.extend(self.compare(rollout, match_of).await?),
                moved @ (Move::Change(_) | Move::Observed { .. }) => {
                    // Facts of the world are never refused.
                    if let Err(refused) = self.apply(rollout, &Event::Moved { moved }, now).await? {
                        tracing::error!(%rollout, %refused, "rollout.move");
                    }
                }
            }
        }
        Ok(())
    }

    async fn matched(&self, rollout: &RolloutId, number: u32) -> Result<Vec<DeviceId>, StoreError> {
        let all = self.documents.matches.list_all(&match_prefix(rollout, number)).await?;
        Ok(all.into_iter().map(|(_, place)| place.value.device).collect())
    }

    async fn compare(&mut self, rollout: &RolloutId, number: u32) -> Result<Vec<Move>, StoreError> {
        let plan = match self.rollout(rollout).await? {
            Some(found) => found.plan.clone(),
            None => return Ok(vec![]),
        };
        let (mut canary, mut controls) = (None, Vec::new());
        for device in self.matched(rollout, number).await? {
            match self.attempt(rollout, &device).await? {
                Some(found) if found.value.arm == Arm::Canary => canary = Some(device),
                Some(found) => controls.push(found.value.clone()),
                None => {}
            }
        }
        let Some(canary) = canary else { return Ok(vec![]) };
        let Some(canary) = self.attempt(rollout, &canary).await? else { return Ok(vec![]) };
        canary.changed = true;
        Ok(compare(&mut canary.value, &controls.iter().collect::<Vec<_>>(), &plan))
    }

    /// Adds everything that changed to `transaction`.
    ///
    /// # Errors
    /// [`StoreError`] if a document has no JSON form; it always has.
    pub fn stage(&self, mut transaction: Transaction) -> Result<Transaction, StoreError> {
        for (id, rollout) in &self.rollouts {
            let Some(rollout) = rollout.as_ref().filter(|one| one.changed) else { continue };
            transaction = transaction.put_json(ROLLOUT, id.as_str(), rollout.expect(), &rollout.value)?;
            let before = self.before.get(id).copied();
            if let Some(event) = before.and_then(|name| sources::rollout_changed(name, &rollout.value)) {
                transaction = alerts::outbox(transaction, &event)?;
            }
        }
        for (id, attempt) in &self.attempts {
            let Some(attempt) = attempt.as_ref().filter(|one| one.changed) else { continue };
            transaction = transaction.put_json(ATTEMPT, id.as_str(), attempt.expect(), &attempt.value)?;
        }
        Ok(transaction)
    }

    /// To be told once the transaction is durable.
    pub fn aftermath(&self) -> Aftermath {
        let rollouts = self.rollouts.iter().filter(|(_, one)| one.as_ref().is_some_and(|one| one.changed));
        let attempts = self.attempts.values().flatten().filter(|one| one.changed);
        Aftermath {
            rollouts: rollouts.map(|(id, _)| id.clone()).collect(),
            deadlines: attempts
                .map(|one| (one.value.rollout.clone(), one.value.device.clone(), one.value.deadline))
                .collect(),
        }
    }
}
