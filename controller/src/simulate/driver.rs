//! What a driver does: transactions, effects, deadlines. It decides nothing.

use super::{
    device::What,
    documents::{Commit, give_back},
    members::Members,
    queue::Item,
    world::World,
};
use crate::rollout::{
    Arm, Attempt, Candidate, Cursor, DeviceSaid, Effect, EffectId, Event, GroupCount, Mode, Move, Pending,
    Plan, Turn, check_attempt, compare, pick, plan_members,
};
use edgefleet_shared::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Devices of a hand-out that are written at once, where documents are written at all.
const PIECE: usize = 50;

impl World {
    /// Changes documents: all of it or nothing. Repeated on the newest revision if another driver was faster.
    /// Effects that follow are put on the list, and new desired states go out, once it is durable.
    pub(super) fn transact(&mut self, run: impl Fn(&mut Self)) {
        if self.docs.is_plain() {
            run(self);
        } else {
            loop {
                let driver = self.rng.below(u64::from(self.docs.drivers())) as u32;
                self.docs.begin(driver);
                let found = self.found.len();
                run(self);
                if self.docs.commit(&mut self.wanted) == Commit::Done {
                    break;
                }
                self.counts.conflicts += 1;
                self.fresh.clear();
                self.published.clear();
                // What a stale copy broke was never written.
                self.found.truncate(found);
            }
            if self.rng.chance(self.docs.crash_chance()) {
                self.crash();
            }
        }
        if let Some(error) = self.docs.unreadable.take() {
            self.find(error);
        }
        self.todo.extend(self.fresh.drain(..));
        for device in std::mem::take(&mut self.published) {
            self.publish(device);
        }
    }

    /// The driver dies. The next one first repeats what is pending; desired states are read at the next connect.
    fn crash(&mut self) {
        self.counts.crashes += 1;
        self.docs.restart();
        self.fresh.clear();
        self.todo = self.docs.rollout.pending.iter().cloned().collect();
    }

    fn dies(&mut self) -> bool {
        let chance = self.docs.crash_chance();
        let dies = !self.docs.is_plain() && self.rng.chance(chance);
        if dies {
            self.crash();
        }
        dies
    }

    /// Changes an attempt and applies what that means; part of a transaction. `None`: nothing was changed.
    fn edit<T>(
        &mut self,
        member: u32,
        change: impl FnOnce(&mut Attempt, &Plan, Timestamp) -> (Vec<Move>, T),
    ) -> T {
        let now = self.time();
        let taken = self.docs.take(member);
        let mut attempt = taken.unwrap_or_else(|| Box::new(self.new_attempt(member)));
        let (moves, answer) = change(&mut attempt, &self.docs.rollout.plan, now);
        if self.settings.check != super::settings::Check::Off {
            for broken in check_attempt(&attempt) {
                self.find(format!("{broken} on {}", attempt.device));
            }
        }
        if attempt.state == crate::rollout::AttemptState::Again {
            self.members.again.insert(member);
        }
        let deadline = attempt.deadline;
        self.docs.put(member, attempt);
        self.plan_deadline(member, deadline);
        for moved in moves {
            self.moves(moved);
        }
        answer
    }

    fn new_attempt(&self, member: u32) -> Attempt {
        let rollout = &self.docs.rollout;
        let label = rollout.plan.group_rule().map(|(label, _)| label);
        let member = self.members.member(member, &self.fleet, label);
        Attempt::new(&rollout.id, &member, self.members.stratum(member.stratum), rollout.created)
    }

    pub(super) fn attempt_hears(&mut self, member: u32, said: &DeviceSaid) {
        self.edit(member, |attempt, plan, now| (attempt.hear(said, plan, now), ()));
    }

    fn moves(&mut self, moved: Move) {
        match moved {
            Move::Change(_) | Move::Observed { .. } => self.apply(&Event::Moved { moved }),
            Move::ControlsJoin { match_of } => {
                for control in self.members.controls(match_of).to_vec() {
                    let last_seen = self.last_seen(self.members.place(control).device);
                    self.attempt_hears(control, &DeviceSaid::CanaryActivated { last_seen });
                    self.look_closer(self.members.place(control).device);
                }
                if let Some(canary) = self.members.canary(match_of) {
                    self.look_closer(self.members.place(canary).device);
                }
            }
            Move::CompareDue { match_of } => {
                let Some(canary) = self.members.canary(match_of) else { return };
                let controls: Vec<Attempt> = self
                    .members
                    .controls(match_of)
                    .iter()
                    .filter_map(|c| self.docs.attempt(*c).cloned())
                    .collect();
                self.edit(canary, |attempt, plan, _| {
                    (compare(attempt, &controls.iter().collect::<Vec<_>>(), plan), ())
                });
            }
        }
    }

    /// At most one entry per member waits in the queue; a deadline that moved away is found out when it fires.
    fn plan_deadline(&mut self, member: u32, deadline: Option<Timestamp>) {
        let Some(deadline) = deadline else { return };
        let at = deadline.as_millis().max(self.now + 1);
        let planned = &mut self.members.planned[member as usize];
        if *planned > at {
            *planned = at;
            self.queue.push(at, Item::Deadline { member });
        }
    }

    pub(super) fn deadline(&mut self, member: u32) {
        if self.members.planned[member as usize] > self.now {
            return;
        }
        self.members.planned[member as usize] = u64::MAX;
        let deadline = self.docs.attempt(member).and_then(|attempt| attempt.deadline);
        let Some(due) = deadline else { return };
        if due.as_millis() > self.now {
            return self.plan_deadline(member, deadline);
        }
        let last_seen = self.last_seen(self.members.place(member).device);
        let said = DeviceSaid::Clock { last_seen };
        self.transact(|world| world.attempt_hears(member, &said));
        if self.docs.attempt(member).and_then(|attempt| attempt.deadline).is_some_and(|next| next <= due) {
            self.find(format!("the deadline {due} of member {member} does not move on"));
        }
        self.settle();
    }

    /// Any sign of life: connected devices are seen all the time.
    fn last_seen(&self, device: u32) -> Option<Timestamp> {
        let unit = &self.units[device as usize];
        let heard = (unit.heard > 0).then(|| Timestamp::from_secs(u64::from(unit.heard)));
        if unit.dark {
            heard
        } else {
            self.fleet.last_connected(device, self.now).map(Timestamp::from_millis)
        }
    }

    pub(super) fn perform(&mut self, pending: &Pending) {
        // Repeated by another driver after a crash, and done meanwhile.
        if !self.docs.rollout.pending.iter().any(|p| p.id == pending.id) || self.dies() {
            return;
        }
        self.counts.effects += 1;
        let id = pending.id;
        match &pending.effect {
            Effect::WriteMembers => self.write_members(id),
            Effect::HandOut { stage, mode, at_most, after, again } => {
                self.hand_out(id, (*stage, *mode), *at_most, *after, *again);
            }
            Effect::Revert { before, at_most } => self.sweep(id, *before, *at_most, true),
            Effect::Cancel { before, at_most } => self.sweep(id, *before, *at_most, false),
            Effect::Verdict { record } => {
                if self.done_ids.insert(id) {
                    self.verdicts.push((**record).clone());
                }
                self.transact(|world| world.apply(&Event::Done { effect: id }));
            }
            Effect::Note { note } => {
                if self.done_ids.insert(id) {
                    self.notes.push(note.clone());
                }
                self.transact(|world| world.apply(&Event::Done { effect: id }));
            }
        }
    }

    fn write_members(&mut self, effect: EffectId) {
        let membership = {
            let incumbent = &self.before.bundle;
            let fleet = &self.fleet;
            let candidates: Vec<_> = (0..fleet.len())
                .map(|n| Candidate {
                    device: fleet.id(n),
                    attributes: fleet.attributes(n),
                    incumbent: Some(incumbent),
                })
                .collect();
            plan_members(&self.docs.rollout.plan, &self.docs.rollout.seed, &candidates)
        };
        if self.members.len() > 0 && self.members.summary != membership.summary {
            self.find("a second driver computed another membership".to_owned());
        }
        self.members = Members::new(membership, &self.fleet, self.docs.rollout.plan.stages.len());
        self.docs.reserve(self.members.len());
        let Some(digest) = self.members.summary.digest else { return };
        let all = u64::from(self.members.len());
        if !self.docs.is_plain() {
            let written = all / 2;
            self.transact(|world| {
                world.apply(&Event::MembersWritten { effect, digest, written, done: None })
            });
            if self.dies() {
                return;
            }
        }
        self.transact(|world| {
            let done = Some(world.members.summary.clone());
            world.apply(&Event::MembersWritten { effect, digest, written: all, done });
        });
        for member in 0..self.members.len() {
            if self.is_compared(member) {
                self.watch(self.members.place(member).device);
            }
        }
    }

    fn hand_out(
        &mut self,
        id: EffectId,
        (stage, mode): (u16, Mode),
        at_most: u64,
        after: Option<u64>,
        again: bool,
    ) {
        let list = if again {
            self.members.again.iter().copied().collect()
        } else {
            let whole =
                if mode == Mode::Shadow { self.members.shadow(stage) } else { self.members.active(stage) };
            let from =
                after.map_or(0, |after| whole.partition_point(|m| self.members.place(*m).rank <= after));
            // Far enough to find that many even where redundancy groups hold some back.
            let groups = self.plan().group_rule().is_some();
            let most = if groups { usize::MAX } else { at_most as usize + PIECE };
            whole[from..].iter().copied().take(most).collect::<Vec<_>>()
        };
        let whole = again
            || list.last()
                == if mode == Mode::Shadow { self.members.shadow(stage) } else { self.members.active(stage) }
                    .last();
        let picked = {
            let rows: Vec<_> = list.iter().map(|member| self.turn(*member, id, stage, again)).collect();
            let turns: Vec<_> = rows
                .iter()
                .map(|(rank, group, ready, by_this)| Turn {
                    rank: *rank,
                    group: group.as_deref(),
                    ready: *ready,
                    by_this: *by_this,
                })
                .collect();
            pick(self.plan(), &turns, at_most, &self.group_counts())
        };
        let chosen: Vec<u32> = picked.chosen.iter().map(|index| list[*index]).collect();
        let controls = chosen.iter().filter(|m| self.members.place(**m).arm == Arm::Control).count() as u64;
        let piece = if self.docs.is_plain() { usize::MAX } else { PIECE };
        for piece in chosen.chunks(piece.min(chosen.len().max(1))) {
            let piece = piece.to_vec();
            self.transact(|world| {
                for member in &piece {
                    world.give_turn(*member, id, mode);
                }
            });
            // A crash in the middle of an effect: the next driver begins it again.
            if self.dies() {
                return;
            }
        }
        let count = chosen.len() as u64;
        let cursor = if again { None } else { picked.cursor.or(after) };
        let exhausted = picked.all && whole;
        self.members.again.retain(|member| {
            self.docs.attempt(*member).is_some_and(|a| a.state == crate::rollout::AttemptState::Again)
        });
        self.transact(|world| {
            world.apply(&Event::HandedOut { effect: id, count, controls, cursor, exhausted })
        });
    }

    fn turn(
        &self,
        member: u32,
        effect: EffectId,
        stage: u16,
        again: bool,
    ) -> (u64, Option<String>, bool, bool) {
        let place = self.members.place(member);
        match self.docs.attempt(member) {
            Some(attempt) => (
                place.rank,
                attempt.group.clone(),
                attempt.is_ready(stage, again),
                attempt.handed_by == Some(effect),
            ),
            None => {
                let label = self.plan().group_rule().map(|(label, _)| label);
                let group = label.and_then(|label| self.fleet.attributes(place.device).get(label).cloned());
                (place.rank, group, !again, false)
            }
        }
    }

    fn group_counts(&self) -> BTreeMap<String, GroupCount> {
        let mut counts = BTreeMap::<String, GroupCount>::new();
        let Some((label, _)) = self.plan().group_rule() else { return counts };
        for member in 0..self.members.len() {
            let Some(group) = self.fleet.attributes(self.members.place(member).device).get(label) else {
                continue;
            };
            let count = counts.entry(group.clone()).or_default();
            count.members += 1;
            let flies = self.docs.attempt(member).is_some_and(|a| {
                a.bucket.holds_slot() || a.shadow_bucket.is_some_and(crate::rollout::Bucket::holds_slot)
            });
            count.in_flight += u64::from(flies);
        }
        counts
    }

    /// A device's turn: attempt and desired state in one write.
    fn give_turn(&mut self, member: u32, effect: EffectId, mode: Mode) {
        let device = self.members.place(member).device;
        if self.docs.attempt(member).is_some_and(|attempt| attempt.handed_by == Some(effect)) {
            // The desired state was written with it; the device may not have been told.
            self.published.push(device);
            return;
        }
        let generation = self.wanted[device as usize].generation + 1;
        let before = give_back(&self.before);
        let number = self.edit(member, |attempt, plan, now| {
            let moves = attempt.hand_out(effect, mode, before, u64::from(generation), plan, now);
            (moves, attempt.number)
        });
        let what = if mode == Mode::Shadow { What::Shadow(number) } else { What::Active(number) };
        self.want(device, generation, what);
    }

    fn want(&mut self, device: u32, generation: u32, what: What) {
        let old = self.wanted[device as usize];
        self.docs.note_wanted(device, old);
        self.wanted[device as usize] = super::device::Wanted { generation, what };
        self.published.push(device);
    }

    /// Takes back from the newest hand-out to the oldest, a piece at a time.
    fn sweep(&mut self, id: EffectId, before: Option<Cursor>, at_most: u64, all: bool) {
        let order = self.members.sweep();
        let place = |member: &u32| {
            let place = self.members.place(*member);
            Cursor { stage: place.stage, rank: place.rank }
        };
        let end = before.map_or(order.len(), |before| order.partition_point(|member| place(member) < before));
        let mut cursor = before;
        let mut piece = Vec::new();
        let mut left = end;
        while left > 0 && (piece.len() as u64) < at_most {
            left -= 1;
            let member = order[left];
            cursor = Some(place(&member));
            if self.docs.attempt(member).is_some_and(Attempt::is_handed_out) {
                piece.push(member);
            }
        }
        let exhausted = left == 0;
        self.transact(|world| {
            let mut count = 0;
            for member in &piece {
                count += u64::from(world.take_back(*member, all));
            }
            world.apply(&Event::Swept { effect: id, cursor, count, exhausted });
        });
    }

    fn take_back(&mut self, member: u32, all: bool) -> bool {
        let device = self.members.place(member).device;
        let generation = self.wanted[device as usize].generation + 1;
        let taken = self.edit(member, |attempt, plan, now| {
            let moves = if all {
                attempt.take_back(u64::from(generation), plan, now)
            } else {
                attempt.cancel(u64::from(generation), plan, now)
            };
            let taken = moves.is_some();
            (moves.unwrap_or_default(), taken)
        });
        if taken {
            self.want(device, generation, What::Incumbent);
        }
        taken
    }
}

/// Members whose turn comes once more; a superset after a lost race.
pub(super) type Again = BTreeSet<u32>;
