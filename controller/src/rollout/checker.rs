//! The invariants of fleet-control 6.2 and of the issue, written apart from the machine: it shares no
//! decision with it, only the documents.

use super::{
    assignment::Arm,
    attempt::{Attempt, AttemptState},
    effect::Effect,
    event::{Event, Move},
    plan::Mode,
    rollout::{MAX_DOCUMENT, Rollout, State, StateName},
    stage::{Bucket, Counts, StageState},
};
use std::collections::{BTreeMap, BTreeSet};

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {detail}")]
pub struct Violation {
    pub rule: &'static str,
    pub detail: String,
}

#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn must(&mut self, holds: bool, rule: &'static str, detail: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Violation { rule, detail: detail() });
        }
    }
}

/// What must hold of a rollout by itself. Costs a serialisation of the document.
pub fn check_rollout(rollout: &Rollout) -> Vec<Violation> {
    let mut found = Found::default();
    let size = serde_json::to_vec(rollout).map_or(usize::MAX, |bytes| bytes.len());
    found.must(size <= MAX_DOCUMENT, "document size", || format!("{size} bytes, at most {MAX_DOCUMENT}"));
    let open = usize::from(rollout.stage);
    for (n, stage) in rollout.stages.iter().enumerate() {
        if n < open {
            let over = matches!(stage.state, StageState::Passed | StageState::Skipped);
            found.must(over, "stage order", || format!("stage {n} is {:?}, stage {open} is open", stage.state));
        }
        if n > open {
            let untouched = stage.handed_out == 0 && stage.state == StageState::Waiting;
            found.must(untouched, "stage order", || {
                format!("stage {n} handed out {} while stage {open} is open", stage.handed_out)
            });
        }
    }
    let in_flight: u64 = rollout.stages.iter().map(|stage| stage.counts.get(Bucket::InFlight)).sum();
    let mut outstanding = 0;
    let mut hand_outs = 0;
    let mut ids = BTreeSet::new();
    for pending in &rollout.pending {
        let known = pending.id < rollout.next_effect && ids.insert(pending.id);
        found.must(known, "effect ids", || format!("{} twice or from the future", pending.id));
        if let Effect::HandOut { at_most, stage, mode, .. } = &pending.effect {
            outstanding += at_most;
            hand_outs += 1;
            found.must(usize::from(*stage) <= open, "stage order", || format!("a turn in stage {stage} of {open}"));
            let plan = rollout.plan.stages.get(usize::from(*stage)).map(|stage| stage.mode);
            found.must(plan == Some(*mode), "mode", || format!("{mode:?} in stage {stage}"));
        }
    }
    found.must(hand_outs <= 1, "one hand-out at a time", || format!("{hand_outs} are pending"));
    let members: u64 = rollout.membership.stages.iter().map(|stage| stage.devices).sum();
    let limits = &rollout.plan.limits;
    let cap = limits.concurrency.of(members).max(limits.concurrency_min);
    found.must(in_flight + outstanding <= cap, "concurrency", || {
        format!("{in_flight} under way and {outstanding} about to be, at most {cap}")
    });
    if let Some(budget) = limits.bytes_per_day {
        found.must(rollout.tokens.bytes <= budget, "byte budget", || {
            format!("{} of {budget} bytes", rollout.tokens.bytes)
        });
    }
    let may_hand_out = matches!(rollout.state, State::Running | State::Completed { .. });
    found.must(may_hand_out || outstanding == 0, "turns stop", || {
        format!("{outstanding} turns are pending while it is {}", rollout.state.name())
    });
    if let State::Reverted { unreachable } = rollout.state {
        let left: u64 = rollout.stages.iter().map(|stage| stage.counts.get(Bucket::Reverting)).sum();
        let swept = rollout.sweep.as_ref().is_some_and(|sweep| sweep.exhausted);
        // Devices may come back after the end: fewer than listed is well.
        found.must(swept, "revert reaches everybody", || format!("{left} left of {unreachable}, sweep not done"));
    }
    if !rollout.is_terminal() {
        let says = !super::explain::explain(rollout, rollout.clock).is_empty();
        found.must(says, "says what it waits on", || {
            format!("{} in stage {open}: {:?}", rollout.state.name(), rollout.open_stage_state())
        });
        // A draft that has heard nothing has no time to wake yet.
        let wakes = rollout.wake.is_some() || rollout.state == State::Draft;
        found.must(wakes, "comes back", || format!("{} without a time to wake", rollout.state.name()));
    }
    found.0
}

fn may_follow(before: StateName, after: StateName) -> bool {
    use StateName::{
        Aborted, Assigning, Completed, Draft, Expired, Paused, PendingApproval, Ready, Reverted, Reverting, Running,
        Scheduled, Superseded,
    };
    let to: &[StateName] = match before {
        Draft => &[PendingApproval, Ready, Scheduled, Assigning, Aborted, Expired],
        PendingApproval => &[Draft, Ready, Scheduled, Assigning, Aborted, Expired],
        Ready => &[Scheduled, Assigning, Aborted, Superseded, Expired],
        Scheduled => &[Assigning, Aborted, Superseded, Expired],
        Assigning => &[Running, Paused, Completed, Aborted, Superseded],
        Running => &[Paused, Reverting, Reverted, Aborted, Completed, Superseded],
        Paused => &[Running, Reverting, Reverted, Aborted, Completed, Superseded],
        Reverting => &[Reverted],
        Completed => &[Paused],
        Reverted | Aborted | Superseded | Expired => &[],
    };
    before == after || to.contains(&after)
}

/// What must hold of one step.
pub fn check_step(before: &Rollout, event: &Event, after: &Rollout) -> Vec<Violation> {
    let mut found = Found::default();
    let (from, to) = (before.state.name(), after.state.name());
    found.must(may_follow(from, to), "transitions", || format!("{from} to {to} by {event:?}"));
    if from == StateName::Completed && to == StateName::Paused {
        found.must(!before.reopened && after.reopened, "terminal is terminal", || "reopened a second time".into());
    }
    found.must(after.clock >= before.clock, "time", || format!("{} after {}", after.clock, before.clock));
    found.must(after.stage >= before.stage, "stage order", || format!("{} after {}", after.stage, before.stage));
    for (n, (old, new)) in before.stages.iter().zip(&after.stages).enumerate() {
        if new.handed_out != old.handed_out {
            let told = matches!(event, Event::HandedOut { effect, count, .. }
                if old.handed_out + count == new.handed_out && before.pending.iter().any(|p| p.id == *effect));
            found.must(told, "turns are counted once", || format!("stage {n}: {} to {}", old.handed_out, new.handed_out));
        }
        let told = matches!(
            event,
            Event::HandedOut { .. } | Event::Moved { moved: Move::Change(_) } | Event::MembersWritten { .. } | Event::Joined { .. }
        );
        found.must(told || old.counts == new.counts, "counters", || format!("stage {n} changed by {event:?}"));
    }
    let fixed = before.plan == after.plan && before.seed == after.seed && before.id == after.id;
    found.must(fixed, "the plan is frozen", || format!("changed by {event:?}"));
    found.0
}

/// What must hold of one attempt.
pub fn check_attempt(attempt: &Attempt) -> Vec<Violation> {
    let mut found = Found::default();
    let who = || format!("{} is {:?}", attempt.device, attempt.state);
    let untouched = matches!(attempt.state, AttemptState::Planned | AttemptState::Held);
    found.must(untouched != attempt.handed_at.is_some() || gone_before_its_turn(attempt), "turns", who);
    if attempt.activated_at.is_some() {
        found.must(attempt.handed_at.is_some() && attempt.mode == Mode::Active, "activation needs a turn", who);
    }
    if matches!(attempt.state, AttemptState::Committed { .. }) {
        found.must(attempt.activated_at.is_some(), "committed means activated", who);
    }
    if attempt.state == AttemptState::Held {
        found.must(attempt.arm == Arm::Control, "only controls are held", who);
    }
    found.0
}

fn gone_before_its_turn(attempt: &Attempt) -> bool {
    matches!(attempt.state, AttemptState::Removed | AttemptState::Superseded { .. })
}

/// What must hold between a rollout and all its attempts, once every move has been applied and no hand-out or
/// sweep is half done.
pub fn check_together<'a>(rollout: &Rollout, attempts: impl IntoIterator<Item = &'a Attempt>) -> Vec<Violation> {
    let mut found = Found::default();
    let mut counted = vec![Counts::default(); rollout.stages.len()];
    let mut groups: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut devices = BTreeSet::new();
    for attempt in attempts {
        found.0.extend(check_attempt(attempt));
        found.must(devices.insert(&attempt.device), "one attempt a device", || attempt.device.to_string());
        if let Some(counts) = counted.get_mut(usize::from(attempt.stage)) {
            counts.add(attempt.bucket, 1);
        }
        if let Some((counts, bucket)) =
            attempt.shadow.and_then(|n| counted.get_mut(usize::from(n))).zip(attempt.shadow_bucket)
        {
            counts.add(bucket, 1);
        }
        if attempt.handed_at.is_some() {
            found.must(attempt.turn_stage() <= rollout.stage, "stage order", || {
                format!("{} of stage {} had its turn in stage {}", attempt.device, attempt.turn_stage(), rollout.stage)
            });
        }
        if let Some(group) = attempt.group.as_deref() {
            let row = groups.entry(group).or_default();
            row.0 += 1;
            let bucket = if attempt.mode == Mode::Shadow { attempt.shadow_bucket } else { Some(attempt.bucket) };
            row.1 += u64::from(bucket == Some(Bucket::InFlight));
        }
        if matches!(rollout.state, State::Reverted { .. }) {
            let back = !matches!(
                attempt.state,
                AttemptState::Committed { .. } | AttemptState::Probation | AttemptState::Activating | AttemptState::Lost
            );
            found.must(back, "revert reaches everybody", || format!("{} is {:?}", attempt.device, attempt.state));
        }
    }
    // Members that were written but never reported belong to a rollout that ended before.
    let known = rollout.membership.digest.is_some();
    for (n, (mine, told)) in counted.iter().zip(&rollout.stages).enumerate().filter(|_| known) {
        found.must(told.counts.is_settled(), "counters", || format!("stage {n} below zero: {:?}", told.counts));
        found.must(*mine == told.counts, "counters", || {
            format!("stage {n}: the rollout says {:?}, its attempts {mine:?}", told.counts)
        });
    }
    if let Some((_, share)) = rollout.plan.group_rule() {
        for (group, (members, in_flight)) in groups {
            let cap = share.of(members).max(1);
            found.must(in_flight <= cap, "redundancy groups", || format!("{in_flight} of `{group}`, at most {cap}"));
        }
    }
    found.0
}
