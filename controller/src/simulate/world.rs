//! The virtual world: time, devices, documents, and the loop over what happens.

use super::{
    device::{Unit, Wanted, What},
    documents::Documents,
    fleet::Fleet,
    members::Members,
    outcome::Outcome,
    queue::{Item, Queue},
    rng::{Rng, mix},
    settings::{AUTHOR, Check, People, Settings, before, bundle, rollout_id},
};
use crate::rollout::{
    DeviceSaid, Event, Pending, Plan, Release, Rollout, Seed, State, VerdictRecord, check_rollout, check_step,
};
use edgefleet_shared::{desired::Assigned, digest::EnvelopeDigest, time::Timestamp};
use std::collections::VecDeque;

/// 2026-11-02T00:00:00Z, a Monday.
const START: u64 = 1_793_577_600_000;
/// Ticks at one and the same second beyond which a rollout is said to spin.
const SPINNING: u32 = 2_000;
/// More broken rules say nothing new.
const MOST_FOUND: usize = 20;

pub(super) struct World {
    pub settings: Settings,
    pub fleet: Fleet,
    pub units: Vec<Unit>,
    /// The newest desired state of every device.
    pub wanted: Vec<Wanted>,
    pub before: Assigned,
    pub queue: Queue,
    /// Milliseconds since 1970.
    pub now: u64,
    pub rng: Rng,
    pub members: Members,
    pub docs: Documents,
    /// Effects to perform, in order.
    pub todo: VecDeque<Pending>,
    /// Effects of the transaction under way.
    pub fresh: Vec<Pending>,
    /// Devices whose desired state the transaction under way has changed.
    pub published: Vec<u32>,
    pub verdicts: Vec<VerdictRecord>,
    pub notes: Vec<crate::rollout::Note>,
    /// Broken rules, with the time.
    pub found: Vec<String>,
    pub counts: Tally,
    wake_at: Option<u64>,
    spins: (u64, u32),
    pub done_ids: std::collections::BTreeSet<u64>,
}

/// What the simulation did, for its report.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Things that happened in virtual time.
    pub events: u64,
    /// Messages of devices heard by the controller.
    pub messages: u64,
    /// Events applied to the rollout.
    pub applied: u64,
    pub ticks: u64,
    pub effects: u64,
    /// Saves that met a newer revision.
    pub conflicts: u64,
    /// Drivers that died.
    pub crashes: u64,
    /// Steps that the checker looked at.
    pub checked: u64,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        let fleet = Fleet::new(settings.devices, settings.per_site, settings.seed, &settings.faults);
        let devices = settings.devices as usize;
        let now = Timestamp::from_millis(START);
        let release = Release {
            bundle: bundle(2),
            envelope: EnvelopeDigest::of(b"digits@2"),
            envelope_size: 1_000,
            download: super::device::DOWNLOAD,
        };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&mix(settings.seed ^ 0x5eed).to_be_bytes());
        let seed = Seed::of_plan(&settings.plan).unwrap_or(Seed::new(seed));
        let rollout = Rollout::draft(rollout_id(), 7, release, settings.plan.clone(), seed, AUTHOR, now);
        Self {
            units: vec![Unit::default(); devices],
            wanted: vec![Wanted { generation: 1, what: What::Incumbent }; devices],
            before: before(),
            queue: Queue::default(),
            now: START,
            rng: Rng::new(mix(settings.seed ^ 0x90a1d)),
            members: Members::default(),
            docs: Documents::new(rollout, settings.store),
            todo: VecDeque::new(),
            fresh: Vec::new(),
            published: Vec::new(),
            verdicts: Vec::new(),
            notes: Vec::new(),
            found: Vec::new(),
            counts: Tally::default(),
            wake_at: None,
            spins: (0, 0),
            done_ids: std::collections::BTreeSet::new(),
            fleet,
            settings,
        }
    }

    pub(super) fn time(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }
    pub(super) fn plan(&self) -> &Plan {
        &self.docs.rollout.plan
    }

    /// From the draft to the end, or to where nothing can happen any more.
    pub(super) fn run(mut self) -> Outcome {
        for device in 0..self.settings.devices {
            self.units[device as usize].seen = 1;
        }
        self.event(Event::Submit { by: AUTHOR.to_owned() });
        if matches!(self.docs.rollout.state, State::Ready) {
            self.event(Event::Start { by: AUTHOR.to_owned() });
        }
        if self.settings.people != People::Absent {
            self.queue.push(self.now + 3_600_000, Item::Person);
        }
        if let Some(every) = self.settings.look_every {
            self.queue.push(self.now + every, Item::Look);
        }
        self.plan_troubles();
        let horizon = START + self.settings.days * 86_400_000;
        let mut idle = true;
        while let Some((at, item)) = self.queue.pop() {
            if at > horizon || self.found.len() >= MOST_FOUND || self.is_over() {
                idle = false;
                break;
            }
            self.now = self.now.max(at);
            self.counts.events += 1;
            self.happens(at, item);
        }
        Outcome::of(self, idle)
    }

    fn is_over(&self) -> bool {
        let rollout = &self.docs.rollout;
        match rollout.state {
            State::Completed { .. } if self.settings.tail => rollout.wake.is_none(),
            State::Aborted | State::Superseded { .. } => {
                rollout.sweep.as_ref().is_none_or(|sweep| sweep.exhausted)
            }
            _ => rollout.is_terminal(),
        }
    }

    fn happens(&mut self, at: u64, item: Item) {
        match item {
            // Another was planned for an earlier time since.
            Item::Wake if self.wake_at != Some(at) => {}
            Item::Wake => {
                self.wake_at = None;
                let due = self.docs.rollout.wake.is_some_and(|wake| wake.as_millis() <= self.now);
                if due {
                    self.counts.ticks += 1;
                    self.event(Event::Tick);
                    self.spinning();
                } else {
                    self.plan_wake();
                }
            }
            Item::Look => {
                if let Some(every) = self.settings.look_every {
                    self.counts.ticks += 1;
                    self.event(Event::Tick);
                    if !self.docs.rollout.is_terminal() {
                        self.queue.push(self.now + every, Item::Look);
                    }
                }
            }
            Item::Deadline { member } => self.deadline(member),
            Item::Desired { device } => self.desired(device),
            Item::Step { device, epoch } => self.step(device, epoch),
            Item::Window { device } => self.window_over(device),
            Item::Deliver { device, said } => {
                self.units[device as usize].heard = (self.now / 1_000) as u32;
                self.counts.messages += 1;
                self.hears(device, &said);
                // Fractions lose their last bit on the way through JSON: equality is for documents in memory.
                if self.settings.twice && self.docs.is_plain() {
                    let member = self.members.of_device(device);
                    let before = (
                        self.docs.rollout.clone(),
                        member.and_then(|member| self.docs.attempt(member).cloned()),
                    );
                    self.hears(device, &said);
                    if before
                        != (self.docs.rollout.clone(), member.and_then(|m| self.docs.attempt(m).cloned()))
                    {
                        self.find(format!("hearing it once more changed something: {said:?}"));
                    }
                }
            }
            Item::Person => self.person(),
            Item::Trouble { number } => self.trouble(number),
        }
    }

    /// One event by itself: a transaction, then the effects.
    pub(super) fn event(&mut self, event: Event) {
        self.transact(|world| world.apply(&event));
        self.settle();
    }

    /// A device says something: attempt and rollout change together.
    fn hears(&mut self, device: u32, said: &DeviceSaid) {
        let Some(member) = self.members.of_device(device) else { return };
        if self.docs.attempt(member).is_none() && !self.is_compared(member) {
            return; // before its turn nothing it says is about this rollout
        }
        self.transact(|world| world.attempt_hears(member, said));
        self.settle();
    }

    /// Applies an event to the rollout; part of a transaction.
    pub(super) fn apply(&mut self, event: &Event) {
        self.counts.applied += 1;
        let now = self.time();
        let check = match self.settings.check {
            Check::Off => false,
            Check::Sampled(one_in) => self.rng.below(one_in.max(1)) == 0,
            Check::EveryStep => true,
        };
        let before = check.then(|| self.docs.rollout.clone());
        match self.docs.rollout.apply(event, now) {
            Ok(effects) => self.fresh.extend(effects),
            Err(refused) => {
                // Orders of people may be refused; then nothing may have changed.
                if let Some(before) = &before
                    && *before != self.docs.rollout
                {
                    self.find(format!("refused ({refused}) and changed nevertheless by {event:?}"));
                }
                return;
            }
        }
        if let Some(before) = before {
            self.counts.checked += 1;
            for broken in check_step(&before, event, &self.docs.rollout)
                .into_iter()
                .chain(check_rollout(&self.docs.rollout))
            {
                self.find(format!("{broken} after {event:?}"));
            }
        }
    }

    pub(super) fn find(&mut self, what: String) {
        if self.found.len() < MOST_FOUND {
            let at = self.time();
            self.found.push(format!("{at}: {what}"));
        }
    }

    /// Performs what is to be done, in order, until nothing is left, and plans the next tick.
    pub(super) fn settle(&mut self) {
        while let Some(pending) = self.todo.pop_front() {
            self.perform(&pending);
        }
        self.plan_wake();
    }

    fn plan_wake(&mut self) {
        let Some(wake) = self.docs.rollout.wake else { return };
        let at = wake.as_millis().max(self.now + 1);
        if self.wake_at.is_none_or(|planned| planned > at) {
            self.wake_at = Some(at);
            self.queue.push(at, Item::Wake);
        }
    }

    /// A rollout that wants one tick after the other in the same second will never end.
    fn spinning(&mut self) {
        let second = self.now / 1_000;
        self.spins = if self.spins.0 == second { (second, self.spins.1 + 1) } else { (second, 0) };
        if self.spins.1 == SPINNING {
            self.find(format!("{SPINNING} ticks within one second"));
            self.found.resize(MOST_FOUND, String::new());
        }
    }

    /// Whether the device takes part in a comparison, so that its windows matter.
    pub(super) fn is_compared(&self, member: u32) -> bool {
        let place = self.members.place(member);
        place.match_of.is_some() || place.shadow.is_some() || (self.settings.all_windows && place.is_canary())
    }
}
