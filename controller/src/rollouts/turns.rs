//! The effect `HandOut`: the next devices of a stage get the bundle, or its shadow.

use super::{
    documents::{Documents, Place, turn_prefix},
    roster::Roster,
    working::{Aftermath, Working},
};
use crate::{
    desired::{INTENT, Intent, intent_id},
    rollout::{
        Arm, Attempt, AttemptState, Bucket, DeviceSaid, Effect, EffectId, Event, GroupCount, Mode, Rollout,
        Severity, Turn, pick,
    },
    store::{Expect, Scan, StoreError, Transaction},
};
use edgefleet_shared::{
    desired::Assigned,
    ids::{AttemptId, DeviceId},
    time::Timestamp,
};
use std::collections::BTreeMap;

/// Places read at a time.
const PAGE: usize = 500;
/// Most devices in one transaction, whatever an effect allows.
const MOST: u64 = 1_000;

/// What was handed out, to whom.
pub(super) struct HandedOut {
    pub(super) devices: Vec<DeviceId>,
    pub(super) aftermath: Aftermath,
}

/// Carries out one `HandOut` of `rollout`, which `working` has loaded: whoever changes it meanwhile, such as a
/// person who stops it, makes the transaction stale. Idempotent: attempts carry the number of the effect that
/// handed them out.
///
/// # Errors
/// [`StoreError`]; nothing happened then.
pub(super) async fn hand_out(
    mut working: Working<'_>,
    roster: &dyn Roster,
    rollout: &Rollout,
    id: EffectId,
    effect: &Effect,
    now: Timestamp,
) -> Result<HandedOut, StoreError> {
    let Effect::HandOut { stage, mode, at_most, after, again } = effect else {
        return Ok(HandedOut { devices: vec![], aftermath: Aftermath::default() });
    };
    let documents = working.documents();
    let at_most = (*at_most).min(MOST);
    let groups = groups(documents, rollout).await?;
    let mut scan = Scan::all().prefix(turn_prefix(&rollout.id, *stage)).limit(PAGE);
    if let (Some(after), false) = (after, again) {
        scan.after = Some(super::documents::turn_id(&rollout.id, *stage, *after));
    }
    // Read on until enough are found: those in between had their turn, or their group is busy.
    let mut waiting = Vec::new();
    let (picked, at_end) = loop {
        let page = documents.turns.list(scan.clone()).await?;
        for (_, place) in page.entries {
            let Place { device, rank } = place.value;
            let Some(found) = working.attempt(&rollout.id, &device).await? else { continue };
            let ready = found.value.is_ready(*stage, *again);
            let by_this = found.value.handed_by == Some(id);
            let held = found.value.bucket == Bucket::Held && found.value.arm == Arm::Control;
            waiting.push(Waiting { device, rank, group: found.value.group.clone(), ready, by_this, held });
        }
        let turns: Vec<_> = waiting.iter().map(Waiting::turn).collect();
        let picked = pick(&rollout.plan, &turns, at_most, &groups);
        match page.next {
            Some(next) if (picked.chosen.len() as u64) < at_most => scan.after = Some(next),
            next => break (picked, next.is_none()),
        }
    };
    let mut transaction = Transaction::new();
    let (mut devices, mut controls) = (Vec::new(), 0);
    for chosen in picked.chosen.iter().filter_map(|at| waiting.get(*at)) {
        let given = give(documents, roster, &mut working, rollout, (&chosen.device, id, *mode), now).await?;
        if let Some((key, expect, intent)) = given {
            transaction = transaction.put_json(INTENT, key, expect, &intent)?;
            controls += u64::from(chosen.held);
            devices.push(chosen.device.clone());
        }
    }
    let exhausted = at_end && picked.all;
    let cursor = if *again { None } else { picked.cursor.max(*after) };
    let event = Event::HandedOut { effect: id, count: devices.len() as u64, controls, cursor, exhausted };
    if let Err(refused) = working.apply(&rollout.id, &event, now).await? {
        tracing::error!(rollout = %rollout.id, %refused, "rollout.hand-out");
    }
    documents.store.commit(working.stage(transaction)?).await?;
    Ok(HandedOut { devices, aftermath: working.aftermath() })
}

/// A place of the stage as it was read.
struct Waiting {
    device: DeviceId,
    rank: u64,
    group: Option<String>,
    ready: bool,
    by_this: bool,
    /// A control, until now.
    held: bool,
}

impl Waiting {
    fn turn(&self) -> Turn<'_> {
        Turn { rank: self.rank, group: self.group.as_deref(), ready: self.ready, by_this: self.by_this }
    }
}

/// What is in flight of each redundancy group; nothing is counted if the plan limits none.
async fn groups(
    documents: &Documents,
    rollout: &Rollout,
) -> Result<BTreeMap<String, GroupCount>, StoreError> {
    let mut all: BTreeMap<String, GroupCount> = BTreeMap::new();
    if rollout.plan.group_rule().is_none() {
        return Ok(all);
    }
    for (_, attempt) in documents.attempts.list_all(&format!("{}/", rollout.id)).await? {
        let Some(group) = attempt.value.group else { continue };
        let count = all.entry(group).or_default();
        count.members += 1;
        let in_flight =
            attempt.value.bucket.holds_slot() || attempt.value.shadow_bucket.is_some_and(Bucket::holds_slot);
        count.in_flight += u64::from(in_flight);
    }
    Ok(all)
}

type NewIntent = (String, Expect, Intent);

/// One device's turn: its attempt in `working`, its intent returned. `None`: it is not this rollout's any more.
async fn give(
    documents: &Documents,
    roster: &dyn Roster,
    working: &mut Working<'_>,
    rollout: &Rollout,
    (device, effect, mode): (&DeviceId, EffectId, Mode),
    now: Timestamp,
) -> Result<Option<NewIntent>, StoreError> {
    let slot = &rollout.plan.rollout.slot;
    if !roster.is_enrolled(device) {
        working.hear(&rollout.id, device, &DeviceSaid::LeftFleet, now).await?;
        return Ok(None);
    }
    let key = intent_id(device, slot);
    let found = documents.intents.find_json(&key).await?;
    let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Revision(found.revision));
    let intent = found.map_or_else(|| Intent::empty(device.clone(), slot.clone()), |found| found.value);
    if let Some(other) = intent.trial.clone().filter(|other| *other != rollout.id) {
        let said = DeviceSaid::SupersededBy { rollout: other };
        working.hear(&rollout.id, device, &said, now).await?;
        return Ok(None);
    }
    if mode == Mode::Shadow && intent.active.is_none() {
        // A shadow needs something to be the shadow of; the device has its turn in the next stage.
        working.hear(&rollout.id, device, &DeviceSaid::Unselected, now).await?;
        return Ok(None);
    }
    let generation = next_generation(documents, roster, device).await?;
    let had = has(documents, device, intent.active.clone()).await?;
    let Some(attempt) = working.attempt(&rollout.id, device).await? else { return Ok(None) };
    // A second turn finds its own bundle there: what it goes back to is what the first turn met.
    let own = intent.active.as_ref().is_some_and(|active| active.attempt.rollout == rollout.id);
    let before = if own { attempt.value.before.clone() } else { had };
    let moves = attempt.value.hand_out(effect, mode, before, generation, &rollout.plan, now);
    attempt.changed = true;
    let (assigned, arm) = (assigned(rollout, &attempt.value), attempt.value.arm);
    working.follow(&rollout.id, moves, now).await?;
    if !roster.is_online(device) {
        // Known to be silent: it keeps its desired state and holds nobody else's place.
        let said = DeviceSaid::Clock { last_seen: roster.last_seen(device) };
        working.hear(&rollout.id, device, &said, now).await?;
    }
    let probation = rollout.plan.wait(rollout.plan.probation);
    let urgent = rollout.plan.rollout.severity == Severity::Critical;
    let window = rollout.plan.window.as_ref().and_then(|window| window.on_device(urgent).ok());
    let next = match mode {
        Mode::Shadow => Intent { candidate: Some(assigned), ..intent },
        Mode::Active => Intent {
            active: Some(assigned),
            candidate: None,
            probation_secs: probation.as_millis().div_ceil(1_000) as u64,
            slower_percent: rollout.plan.hard.slower_percent,
            slow_us: rollout.slow_us.filter(|_| arm == Arm::Canary),
            window,
            ..intent
        },
    };
    Ok(Some((key, expect, Intent { trial: Some(rollout.id.clone()), ..next })))
}

/// What the device has: what is wanted of it, or if it refused that or went back from it, what it had before.
async fn has(
    documents: &Documents,
    device: &DeviceId,
    wanted: Option<Assigned>,
) -> Result<Option<Assigned>, StoreError> {
    let Some(wanted) = wanted else { return Ok(None) };
    let key = super::attempt_id(&wanted.attempt.rollout, device);
    let found = documents.attempts.find_json(&key).await?;
    Ok(match found.map(|found| found.value) {
        Some(attempt) if attempt.state == AttemptState::Failed => attempt.before,
        _ => Some(wanted),
    })
}

fn assigned(rollout: &Rollout, attempt: &Attempt) -> Assigned {
    Assigned {
        bundle: rollout.release.bundle.clone(),
        release: rollout.release.envelope,
        release_size: rollout.release.envelope_size,
        attempt: AttemptId { rollout: rollout.id.clone(), number: attempt.number },
    }
}

/// The generation that the device's next desired state will have.
pub(super) async fn next_generation(
    documents: &Documents,
    roster: &dyn Roster,
    device: &DeviceId,
) -> Result<u64, StoreError> {
    let stored = crate::desired::stored_generation(&*documents.store, device).await?;
    Ok(stored.max(roster.reported_generation(device)).saturating_add(1))
}
