//! The effect `WriteMembers`: everybody's place, written in chunks before anything is handed out; and devices
//! that join a dynamic last stage late.

use super::{
    documents::{ATTEMPT, Documents, MATCH, Place, ROLLOUT, TURN, match_prefix, turn_id},
    roster::{Enlisted, Roster},
    working::{Aftermath, Working},
};
use crate::{
    desired::{INTENT, Intent, intent_id},
    rollout::{
        Attempt, Candidate, DeviceSaid, EffectId, Event, Member, Membership, Rollout, State, join_late,
        plan_members,
    },
    store::{Expect, Scan, StoreError, Transaction},
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, SlotName},
    time::Timestamp,
};
use std::collections::BTreeMap;

/// Devices in one transaction: up to five operations each stay far below the store's limit.
const CHUNK: usize = 500;
/// Late joiners taken in at a time.
const LATE: usize = 500;

/// What each device's slot has now.
async fn incumbents(
    documents: &Documents,
    slot: &SlotName,
    enlisted: &[Enlisted],
) -> Result<BTreeMap<DeviceId, BundleName>, StoreError> {
    let mut all = BTreeMap::new();
    for one in enlisted {
        let intent = documents.intents.find_json(&intent_id(&one.device, slot)).await?;
        if let Some(active) = intent.and_then(|found| found.value.active) {
            all.insert(one.device.clone(), active.bundle);
        }
    }
    Ok(all)
}

/// The place of every device that the plan selects now.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn membership(
    documents: &Documents,
    roster: &dyn Roster,
    rollout: &Rollout,
) -> Result<Membership, StoreError> {
    let enlisted = roster.select(&rollout.plan.select);
    let incumbents = incumbents(documents, &rollout.plan.rollout.slot, &enlisted).await?;
    let candidates: Vec<_> = enlisted
        .iter()
        .map(|one| Candidate {
            device: &one.device,
            attributes: &one.attributes,
            incumbent: incumbents.get(&one.device),
        })
        .collect();
    Ok(plan_members(&rollout.plan, &rollout.seed, &candidates))
}

/// Writes all members. May be cut off anywhere and called again: what is there stays.
///
/// # Errors
/// [`StoreError`]; `StaleRevision` if another writer was faster, to be repeated.
pub(super) async fn write(
    documents: &Documents,
    roster: &dyn Roster,
    rollout: &Rollout,
    effect: EffectId,
    now: Timestamp,
) -> Result<Aftermath, StoreError> {
    let Membership { members, summary } = membership(documents, roster, rollout).await?;
    let digest = summary.digest.unwrap_or_else(|| edgefleet_shared::digest::BlobDigest::of(b""));
    let begun = match &rollout.state {
        State::Assigning { written, digest: Some(known) } if *known == digest => *written as usize,
        _ => 0,
    };
    let mut aftermath = Aftermath::default();
    let mut written = begun.min(members.len());
    let announced = match &rollout.state {
        State::Assigning { digest, .. } => *digest,
        _ => None,
    };
    if announced != Some(digest) {
        // Announced before the first is written: a driver that comes after a crash and draws another membership
        // (the fleet changed) knows that what it finds is of an older draw.
        if announced.is_some() {
            wipe(documents, rollout).await?;
        }
        let event = Event::MembersWritten { effect, digest, written: 0, done: None };
        enlist(documents, roster, rollout, &[], &[], &event, now).await?;
    }
    loop {
        let chunk = &members[written..members.len().min(written + CHUNK)];
        written += chunk.len();
        let done = (written == members.len()).then(|| summary.clone());
        let last = done.is_some();
        let event = Event::MembersWritten { effect, digest, written: written as u64, done };
        let names: Vec<_> = summary.strata.iter().map(|stratum| stratum.name.as_str()).collect();
        let Some(told) = enlist(documents, roster, rollout, chunk, &names, &event, now).await? else {
            return Ok(aftermath); // ended, or written by another driver
        };
        aftermath.deadlines.extend(told.deadlines);
        aftermath.rollouts = told.rollouts;
        if last {
            return Ok(aftermath);
        }
    }
}

/// Removes the places of a draw that was cut off, as long as the rollout is what the caller read.
async fn wipe(documents: &Documents, rollout: &Rollout) -> Result<(), StoreError> {
    let found = documents.rollouts.get_json(rollout.id.as_str()).await?;
    if found.value != *rollout {
        return Err(StoreError::StaleRevision {
            kind: ROLLOUT,
            id: rollout.id.to_string(),
            expected: Expect::Revision(found.revision),
            found: Some(found.revision),
        });
    }
    let prefix = format!("{}/", rollout.id);
    for kind in [ATTEMPT, TURN, MATCH] {
        loop {
            let page = documents.store.scan(kind, Scan::all().prefix(&prefix).limit(CHUNK)).await?;
            if page.entries.is_empty() {
                break;
            }
            let unchanged =
                Transaction::new().check(ROLLOUT, rollout.id.as_str(), Expect::Revision(found.revision));
            let wiped = page
                .entries
                .into_iter()
                .fold(unchanged, |wiped, (id, _)| wiped.delete(kind, id, Expect::Any));
            documents.store.commit(wiped).await?;
        }
    }
    Ok(())
}

/// One chunk of members with their places, and `event` for the rollout, in one transaction. `None`: the rollout
/// does not want them any more, and nothing is written.
async fn enlist(
    documents: &Documents,
    roster: &dyn Roster,
    rollout: &Rollout,
    members: &[Member],
    strata: &[&str],
    event: &Event,
    now: Timestamp,
) -> Result<Option<Aftermath>, StoreError> {
    let id = &rollout.id;
    let slot = &rollout.plan.rollout.slot;
    let mut working = Working::new(documents, roster);
    let wanted = working.rollout(id).await?.is_some_and(|rollout| match event {
        Event::MembersWritten { effect, .. } => rollout.pending.iter().any(|pending| pending.id == *effect),
        _ => matches!(rollout.state, State::Running | State::Paused { .. } | State::Completed { .. }),
    });
    if !wanted {
        return Ok(None);
    }
    let mut transaction = Transaction::new();
    for member in members {
        let stratum = strata.get(usize::from(member.stratum)).copied().unwrap_or_default();
        if !working.enlist(Attempt::new(id, member, stratum, now)).await? {
            continue; // written before the crash, with everything that belongs to it
        }
        let place = Place { device: member.device.clone(), rank: member.rank };
        for stage in [Some(member.stage), member.shadow].into_iter().flatten() {
            transaction = transaction.put_json(TURN, turn_id(id, stage, member.rank), Expect::Any, &place)?;
        }
        if let Some(number) = member.match_of {
            let key = format!("{}{}", match_prefix(id, number), member.device);
            transaction = transaction.put_json(MATCH, key, Expect::Any, &place)?;
        }
        let key = intent_id(&member.device, slot);
        let found = documents.intents.find_json(&key).await?;
        let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Revision(found.revision));
        let intent = found.map_or_else(|| Intent::empty(member.device.clone(), slot.clone()), |f| f.value);
        if let Some(other) = intent.trial.as_ref().filter(|other| *other != id) {
            let said = DeviceSaid::SupersededBy { rollout: id.clone() };
            working.hear(other, &member.device, &said, now).await?;
        }
        let intent = Intent { trial: Some(id.clone()), ..intent };
        transaction = transaction.put_json(INTENT, key, expect, &intent)?;
    }
    if let Err(refused) = working.apply(id, event, now).await? {
        tracing::error!(rollout = %id, %refused, "rollout.members");
    }
    documents.store.commit(working.stage(transaction)?).await?;
    Ok(Some(working.aftermath()))
}

/// Takes devices in that were selected after the membership was fixed. Returns nothing if there are none.
///
/// # Errors
/// [`StoreError`].
pub(super) async fn join(
    documents: &Documents,
    roster: &dyn Roster,
    rollout: &Rollout,
    now: Timestamp,
) -> Result<Option<Aftermath>, StoreError> {
    let slot = &rollout.plan.rollout.slot;
    let mut late = Vec::new();
    for one in roster.select(&rollout.plan.select) {
        if late.len() == LATE || rollout.plan.assign.exclude.contains(&one.device) {
            continue;
        }
        let known = documents.attempts.find_json(&super::attempt_id(&rollout.id, &one.device)).await?;
        if known.is_none() {
            late.push(one);
        }
    }
    if late.is_empty() {
        return Ok(None);
    }
    let incumbents = incumbents(documents, slot, &late).await?;
    let members: Vec<_> = late
        .iter()
        .map(|one| {
            let candidate = Candidate {
                device: &one.device,
                attributes: &one.attributes,
                incumbent: incumbents.get(&one.device),
            };
            join_late(&rollout.plan, &rollout.seed, &rollout.membership, &candidate)
        })
        .collect();
    let names: Vec<_> = rollout.membership.strata.iter().map(|stratum| stratum.name.as_str()).collect();
    let event = Event::Joined { devices: members.len() as u64 };
    enlist(documents, roster, rollout, &members, &names, &event, now).await
}
