//! The effects `Revert` and `Cancel`: through the devices from the newest hand-out to the oldest.

use super::{
    documents::{Documents, Place, turn_prefix},
    roster::Roster,
    turns::next_generation,
    working::{Aftermath, Working},
};
use crate::{
    desired::{INTENT, Intent, intent_id},
    rollout::{Attempt, Cursor, EffectId, Event, Rollout, Severity, SweepKind},
    store::{Expect, StoreError, Transaction},
};
use edgefleet_shared::{ids::DeviceId, time::Timestamp};
use std::collections::BTreeSet;

/// Most devices in one transaction.
const MOST: u64 = 500;

/// What was swept: the devices whose desired state is another one now.
pub(super) struct Swept {
    pub(super) devices: Vec<DeviceId>,
    pub(super) aftermath: Aftermath,
}

/// One piece of a sweep of `rollout`, which `working` has loaded. Idempotent: an attempt that went through it once
/// has nothing left to take back.
///
/// # Errors
/// [`StoreError`]; nothing happened then.
pub(super) async fn sweep(
    mut working: Working<'_>,
    roster: &dyn Roster,
    rollout: &Rollout,
    effect: EffectId,
    kind: SweepKind,
    (before, at_most): (Option<Cursor>, u64),
    now: Timestamp,
) -> Result<Swept, StoreError> {
    let documents = working.documents();
    let at_most = at_most.clamp(1, MOST);
    let mut transaction = Transaction::new();
    let (mut devices, mut cursor, mut seen) = (Vec::new(), before, 0);
    // One that ran it in the shadow and then had its turn stands in both stages, and is taken back whole.
    let mut met = BTreeSet::new();
    let stages = u16::try_from(rollout.plan.stages.len()).unwrap_or(u16::MAX);
    let exhausted = 'all: {
        for stage in (0..stages).rev().filter(|stage| before.is_none_or(|at| *stage <= at.stage)) {
            let places = documents.turns.list_all(&turn_prefix(&rollout.id, stage)).await?;
            for (_, place) in places.into_iter().rev() {
                let Place { device, rank } = place.value;
                let here = Cursor { stage, rank };
                if before.is_some_and(|at| here >= at) {
                    continue;
                }
                if seen == at_most {
                    break 'all false;
                }
                seen += 1;
                cursor = Some(here);
                if !met.insert(device.clone()) {
                    continue;
                }
                let taken = take(documents, roster, &mut working, rollout, &device, kind, now).await?;
                if let Some((key, expect, intent)) = taken {
                    transaction = transaction.put_json(INTENT, key, expect, &intent)?;
                    devices.push(device);
                }
            }
        }
        true
    };
    let event = Event::Swept { effect, cursor, count: devices.len() as u64, exhausted };
    if let Err(refused) = working.apply(&rollout.id, &event, now).await? {
        tracing::error!(rollout = %rollout.id, %refused, "rollout.sweep");
    }
    documents.store.commit(working.stage(transaction)?).await?;
    Ok(Swept { devices, aftermath: working.aftermath() })
}

async fn take(
    documents: &Documents,
    roster: &dyn Roster,
    working: &mut Working<'_>,
    rollout: &Rollout,
    device: &DeviceId,
    kind: SweepKind,
    now: Timestamp,
) -> Result<Option<(String, Expect, Intent)>, StoreError> {
    let generation = next_generation(documents, roster, device).await?;
    let Some(found) = working.attempt(&rollout.id, device).await? else { return Ok(None) };
    let before = found.value.clone();
    let moves = match kind {
        SweepKind::Revert => found.value.take_back(generation, &rollout.plan, now),
        SweepKind::Cancel => found.value.cancel(generation, &rollout.plan, now),
    };
    let Some(moves) = moves else { return Ok(None) };
    found.changed = true;
    working.follow(&rollout.id, moves, now).await?;
    let key = intent_id(device, &rollout.plan.rollout.slot);
    let Some(intent) = documents.intents.find_json(&key).await? else { return Ok(None) };
    if intent.value.trial.as_ref() != Some(&rollout.id) {
        return Ok(None); // a later rollout has the slot; what it wants stays
    }
    let next = given_back(&intent.value, &before, rollout);
    if next == intent.value {
        return Ok(None);
    }
    Ok(Some((key, Expect::Revision(intent.revision), next)))
}

/// What the slot had before its turn. A critical rollout's way back does not wait for a window, and nobody's
/// way back is on probation longer than a minute, or judged beside what it replaces: it ran here before.
fn given_back(intent: &Intent, attempt: &Attempt, rollout: &Rollout) -> Intent {
    let own = |assigned: &edgefleet_shared::desired::Assigned| assigned.attempt.rollout == rollout.id;
    let mut next = intent.clone();
    if next.candidate.as_ref().is_some_and(own) {
        next.candidate = None;
    }
    if next.active.as_ref().is_some_and(own) {
        next.active = attempt.before.clone();
        next.probation_secs = next.probation_secs.min(60);
        next.slower_percent = None;
        next.slow_us = None;
        if rollout.plan.rollout.severity == Severity::Critical {
            next.window = None;
        }
    }
    next
}
