//! A driver and devices as simple as can be, whose messages may be lost, repeated and reordered.

use super::super::{
    assignment::{Candidate, Seed, plan_members},
    attempt::{Attempt, AttemptState, Deferral, DeviceSaid},
    checker::{check_rollout, check_step, check_together},
    compare::compare,
    effect::Effect,
    event::{Cursor, Event, Move, Refused},
    handout::{GroupCount, Turn, pick},
    plan::{Mode, Plan},
    rollout::{Release, Rollout, State},
    stage::Bucket,
};
use edgefleet_shared::{
    digest::EnvelopeDigest,
    ids::{AttemptId, DeviceId},
    reported::{Phase, Refusal, RefusalCode},
    time::Timestamp,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Good,
    /// Goes back by itself in probation.
    Crashes,
    Refuses,
    FailsTrial,
    /// The download breaks off so many times.
    Drops(u8),
    Defers,
}

/// What a device runs and is told to run.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) kind: Kind,
    pub(super) online: bool,
    pub(super) left: bool,
    /// Generation and what it names, as the controller keeps it.
    pub(super) desired: (u64, Option<(u32, Mode)>),
    accepted: (u64, Option<(u32, Mode)>),
    phase: Phase,
    /// The candidate's attempt that answers requests.
    pub(super) runs: Option<u32>,
    drops: u8,
    deferred: bool,
    outbox: VecDeque<DeviceSaid>,
    last_seen: Timestamp,
}

#[derive(Clone)]
pub(super) struct Fleet {
    pub(super) rollout: Rollout,
    pub(super) attempts: Vec<Attempt>,
    pub(super) devices: Vec<Device>,
    by_rank: BTreeMap<u64, usize>,
    pub(super) now: Timestamp,
    /// Every device that ever ran the candidate.
    pub(super) ever: usize,
}

pub(super) fn ids(n: usize) -> Vec<DeviceId> {
    (0..n).map(|n| format!("dev-{n:05}").parse().unwrap()).collect()
}

impl Fleet {
    pub(super) fn new(plan: Plan, kinds: &[Kind]) -> Self {
        let now = Timestamp::from_secs(1_800_000_000);
        let release = Release {
            bundle: plan.rollout.bundle.clone(),
            envelope: EnvelopeDigest::of(b"release"),
            envelope_size: 7,
            download: 1_000,
        };
        let rollout =
            Rollout::draft("r-1".parse().unwrap(), 1, release, plan, Seed::new([7; 32]), "author", now);
        let devices = ids(kinds.len())
            .into_iter()
            .zip(kinds)
            .map(|(id, kind)| Device {
                id,
                kind: *kind,
                online: true,
                left: false,
                desired: (1, None),
                accepted: (1, None),
                phase: Phase::Committed,
                runs: None,
                drops: 0,
                deferred: false,
                outbox: VecDeque::new(),
                last_seen: now,
            })
            .collect();
        Self { rollout, attempts: vec![], devices, by_rank: BTreeMap::new(), now, ever: 0 }
    }

    pub(super) fn started(plan: Plan, kinds: &[Kind]) -> Self {
        let mut fleet = Self::new(plan, kinds);
        fleet.event(&Event::Submit { by: "author".into() }).unwrap();
        if fleet.rollout.state == State::PendingApproval {
            fleet.event(&Event::Approve { by: "other".into(), reason: String::new() }).unwrap();
        }
        fleet.event(&Event::Start { by: "author".into() }).unwrap();
        fleet
    }

    /// Applies an event and checks the step, whatever comes of it.
    pub(super) fn event(&mut self, event: &Event) -> Result<(), Refused> {
        let before = self.rollout.clone();
        let result = self.rollout.apply(event, self.now);
        if result.is_err() {
            assert_eq!(before, self.rollout, "a refused order changed something: {event:?}");
        }
        let broken = check_step(&before, event, &self.rollout);
        assert!(broken.is_empty(), "{broken:#?}");
        let broken = check_rollout(&self.rollout);
        assert!(broken.is_empty(), "{event:?}: {broken:#?}");
        result.map(|_| ())
    }

    fn moves(&mut self, moves: Vec<Move>) {
        for moved in moves {
            match moved {
                Move::ControlsJoin { match_of } => {
                    for index in 0..self.attempts.len() {
                        if self.attempts[index].match_of == Some(match_of) {
                            let id = self.attempts[index].device.clone();
                            let last_seen = self.devices.iter().find(|d| d.id == id).map(|d| d.last_seen);
                            self.hear(index, &DeviceSaid::CanaryActivated { last_seen });
                        }
                    }
                }
                Move::CompareDue { match_of } => {
                    let all = self.attempts.clone();
                    let controls: Vec<_> = all
                        .iter()
                        .filter(|a| a.match_of == Some(match_of) && a.bucket == Bucket::Held)
                        .collect();
                    let plan = self.rollout.plan.clone();
                    let canary = self
                        .attempts
                        .iter()
                        .position(|a| a.match_of == Some(match_of) && a.arm == super::super::Arm::Canary);
                    let moves = compare(&mut self.attempts[canary.unwrap()], &controls, &plan);
                    self.moves(moves);
                }
                moved => self.event(&Event::Moved { moved }).unwrap(),
            }
        }
    }

    pub(super) fn hear(&mut self, index: usize, said: &DeviceSaid) {
        let plan = self.rollout.plan.clone();
        let moves = self.attempts[index].hear(said, &plan, self.now);
        self.moves(moves);
    }

    /// Performs the oldest pending effect; `again`: as after a crash before it was reported.
    pub(super) fn perform(&mut self, crash: bool) -> bool {
        let Some(pending) = self.rollout.pending.first().cloned() else { return false };
        let plan = self.rollout.plan.clone();
        let effect = pending.id;
        let event = match pending.effect {
            Effect::WriteMembers => {
                let attributes: Vec<_> = self
                    .devices
                    .iter()
                    .enumerate()
                    .map(|(n, _)| BTreeMap::from([("site".to_owned(), format!("s{}", n % 3))]))
                    .collect();
                let candidates: Vec<_> = self
                    .devices
                    .iter()
                    .zip(&attributes)
                    .map(|(d, attributes)| Candidate { device: &d.id, attributes, incumbent: None })
                    .collect();
                let membership = plan_members(&plan, &self.rollout.seed, &candidates);
                let digest = membership.summary.digest.unwrap();
                self.event(&Event::MembersWritten { effect, digest, written: 0, done: None }).unwrap();
                // Devices of this fleet are the same every time: so is the digest, and what is there stays.
                let there = std::mem::take(&mut self.attempts);
                self.attempts = membership
                    .members
                    .iter()
                    .map(|member| {
                        let stratum = &membership.summary.strata[usize::from(member.stratum)].name;
                        Attempt::new(&self.rollout.id, member, stratum, self.now)
                    })
                    .collect();
                if !there.is_empty() {
                    self.attempts = there;
                }
                self.by_rank =
                    self.attempts.iter().enumerate().map(|(index, attempt)| (attempt.rank, index)).collect();
                Event::MembersWritten {
                    effect,
                    digest,
                    written: self.attempts.len() as u64,
                    done: Some(membership.summary),
                }
            }
            Effect::HandOut { stage, mode, at_most, after, again } => {
                let of_stage: Vec<_> = self
                    .by_rank
                    .range(after.map_or(0, |after| after + 1)..)
                    .map(|(_, index)| *index)
                    .filter(|index| {
                        let attempt = &self.attempts[*index];
                        attempt.stage == stage || attempt.shadow == Some(stage)
                    })
                    .collect();
                let mut groups: BTreeMap<String, GroupCount> = BTreeMap::new();
                for attempt in &self.attempts {
                    let Some(group) = &attempt.group else { continue };
                    let row = groups.entry(group.clone()).or_default();
                    row.members += 1;
                    let bucket = if attempt.mode == Mode::Shadow {
                        attempt.shadow_bucket
                    } else {
                        Some(attempt.bucket)
                    };
                    row.in_flight += u64::from(bucket.is_some_and(Bucket::holds_slot));
                }
                let turns: Vec<_> = of_stage
                    .iter()
                    .map(|index| {
                        let attempt = &self.attempts[*index];
                        Turn {
                            rank: attempt.rank,
                            group: attempt.group.as_deref(),
                            ready: attempt.is_ready(stage, again),
                            by_this: attempt.handed_by == Some(effect),
                        }
                    })
                    .collect();
                let picked = pick(&plan, &turns, at_most, &groups);
                let mut controls = 0;
                let mut moves = Vec::new();
                for chosen in &picked.chosen {
                    let index = of_stage[*chosen];
                    let attempt = &mut self.attempts[index];
                    controls += u64::from(attempt.arm == super::super::Arm::Control);
                    let device = self.devices.iter_mut().find(|d| d.id == attempt.device).unwrap();
                    let new = attempt.handed_by != Some(effect);
                    moves.extend(attempt.hand_out(effect, mode, None, device.desired.0 + 1, &plan, self.now));
                    if new {
                        device.desired = (device.desired.0 + 1, Some((attempt.number, mode)));
                    }
                }
                if crash {
                    // Half of the truth is lost: the moves are saved with the attempts, the report is not.
                    self.moves(moves);
                    return true;
                }
                let count = picked.chosen.len() as u64;
                let event = Event::HandedOut {
                    effect,
                    count,
                    controls,
                    cursor: picked.cursor,
                    exhausted: picked.all,
                };
                self.event(&event).unwrap();
                self.moves(moves);
                return true;
            }
            Effect::Revert { before, at_most } => self.sweep(effect, before, at_most, true),
            Effect::Cancel { before, at_most } => self.sweep(effect, before, at_most, false),
            Effect::Verdict { .. } | Effect::Note { .. } => Event::Done { effect },
        };
        if !crash {
            self.event(&event).unwrap();
        }
        true
    }

    fn sweep(&mut self, effect: u64, before: Option<Cursor>, at_most: u64, all: bool) -> Event {
        let plan = self.rollout.plan.clone();
        let mut order: Vec<_> = (0..self.attempts.len())
            .map(|index| {
                (Cursor { stage: self.attempts[index].stage, rank: self.attempts[index].rank }, index)
            })
            .filter(|(cursor, _)| before.is_none_or(|before| *cursor < before))
            .collect();
        order.sort_by_key(|(cursor, _)| std::cmp::Reverse(*cursor));
        let (mut cursor, mut count, mut exhausted) = (before, 0, true);
        for (at, index) in order {
            if count == at_most {
                exhausted = false;
                break;
            }
            cursor = Some(at);
            let attempt = &mut self.attempts[index];
            let device = self.devices.iter_mut().find(|d| d.id == attempt.device).unwrap();
            let next = device.desired.0 + 1;
            let moves = if all {
                attempt.take_back(next, &plan, self.now)
            } else {
                attempt.cancel(next, &plan, self.now)
            };
            if let Some(moves) = moves {
                device.desired = (next, None);
                count += 1;
                self.moves(moves);
            }
        }
        Event::Swept { effect, cursor, count, exhausted }
    }

    /// A device reads what is wanted of it and goes one step.
    pub(super) fn device_steps(&mut self, index: usize) {
        let running = self.rollout.id.clone();
        let device = &mut self.devices[index];
        if device.left {
            return;
        }
        if device.online {
            device.last_seen = self.now;
            if device.desired.0 > device.accepted.0 {
                device.accepted = device.desired;
                device.deferred = false;
                device.phase = if device.accepted.1.is_none() { Phase::Committed } else { Phase::Idle };
                if device.accepted.1.is_none() {
                    device.runs = None;
                }
            }
        }
        let attempt = |number: u32| AttemptId { rollout: running.clone(), number };
        let mut ended = None;
        if let Some((number, mode)) = device.accepted.1 {
            let fail = |phase: Phase, code: RefusalCode| (phase, Some(code));
            let (next, code) = match (device.phase, device.kind) {
                (Phase::Idle, Kind::Defers) if !device.deferred => {
                    device.deferred = true;
                    (Phase::Deferred, None)
                }
                (Phase::Idle | Phase::Deferred, _) if device.online => (Phase::Fetching, None),
                (Phase::Fetching, Kind::Drops(times)) if device.drops < times => {
                    device.drops += 1;
                    fail(Phase::DownloadFailed, RefusalCode::TransferTimeout)
                }
                (Phase::Fetching, Kind::Refuses) => fail(Phase::VerifyFailed, RefusalCode::SignatureInvalid),
                (Phase::Fetching, _) => (Phase::Verified, None),
                (Phase::Verified, _) => (Phase::Testing, None),
                (Phase::Testing, Kind::FailsTrial) => {
                    fail(Phase::PreflightFailed, RefusalCode::GoldenMismatch)
                }
                (Phase::Testing, _) if mode == Mode::Shadow => (Phase::Shadowing, None),
                (Phase::Testing, _) => (Phase::Switching, None),
                (Phase::Switching, _) => {
                    device.runs = Some(number);
                    self.ever += 1;
                    (Phase::Probation, None)
                }
                (Phase::Probation, Kind::Crashes) => {
                    device.runs = None;
                    fail(Phase::RolledBackLocal, RefusalCode::CrashLoop)
                }
                (Phase::Probation, _) => (Phase::Committed, None),
                (same, _) => (same, None),
            };
            if next != device.phase && next.is_terminal() {
                let refusal = code.map(|code| Refusal {
                    code,
                    retry: code.retry(),
                    message: String::new(),
                    subject: None,
                    attempt: None,
                    generation: None,
                    at: self.now,
                });
                ended = Some(DeviceSaid::Ended {
                    generation: device.accepted.0,
                    phase: next,
                    attempt: attempt(number),
                    refusal,
                    took_ms: 1,
                    fetched_bytes: 1_000,
                });
            }
            device.phase = next;
        }
        let phase = if device.phase.is_failure() { Phase::Idle } else { device.phase };
        device.outbox.push_back(DeviceSaid::Report {
            generation: device.accepted.0,
            phase,
            target: device.accepted.1.map(|(number, _)| attempt(number)).filter(|_| !phase.is_terminal()),
            active: device.runs.map(attempt),
            deferral: (phase == Phase::Deferred).then_some(Deferral::Window),
            refusal: None,
        });
        device.outbox.extend(ended);
        // Full reports may be lost, never the ends.
        while device.outbox.len() > 6 {
            let Some(old) = device.outbox.iter().position(|said| matches!(said, DeviceSaid::Report { .. }))
            else {
                break;
            };
            device.outbox.remove(old);
        }
    }

    /// One of the device's messages arrives; `keep`: and will arrive again.
    pub(super) fn deliver(&mut self, index: usize, which: usize, keep: bool) {
        let device = &mut self.devices[index];
        if !device.online || device.outbox.is_empty() {
            return;
        }
        let at = which % device.outbox.len();
        let said = device.outbox[at].clone();
        if !keep {
            device.outbox.remove(at);
        }
        let id = device.id.clone();
        if let Some(attempt) = self.attempts.iter().position(|attempt| attempt.device == id) {
            self.hear(attempt, &said);
        }
    }

    /// What the controller does about deadlines.
    pub(super) fn sweep_clocks(&mut self) {
        for index in 0..self.attempts.len() {
            if self.attempts[index].deadline.is_some_and(|at| at <= self.now) {
                let seen =
                    self.devices.iter().find(|d| d.id == self.attempts[index].device).map(|d| d.last_seen);
                self.hear(index, &DeviceSaid::Clock { last_seen: seen });
            }
        }
    }

    pub(super) fn pass(&mut self, secs: u64) {
        self.now = self.now + Duration::from_secs(secs);
        self.sweep_clocks();
        self.event(&Event::Tick).unwrap();
    }

    /// Everything goes well from here on for `rounds`; the driver and the devices do what they can.
    pub(super) fn run(&mut self, rounds: usize, secs: u64, until: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..rounds {
            if until(self) {
                return true;
            }
            let mut budget = 100;
            while budget > 0 && self.perform(false) {
                budget -= 1;
            }
            for index in 0..self.devices.len() {
                self.device_steps(index);
                while !self.devices[index].outbox.is_empty() && self.devices[index].online {
                    self.deliver(index, 0, false);
                }
            }
            self.pass(secs);
        }
        until(self)
    }

    pub(super) fn check(&self) {
        // What is stored is read back: the fields of a state stand beside those of its document.
        let stored = serde_json::to_string(&self.rollout).unwrap();
        assert_eq!(serde_json::from_str::<Rollout>(&stored).unwrap().state, self.rollout.state, "{stored}");
        for attempt in &self.attempts {
            let stored = serde_json::to_string(attempt).unwrap();
            assert_eq!(serde_json::from_str::<Attempt>(&stored).unwrap().state, attempt.state, "{stored}");
        }
        let half_done = self.rollout.pending.iter().any(|pending| {
            matches!(
                pending.effect,
                Effect::HandOut { .. } | Effect::Revert { .. } | Effect::Cancel { .. } | Effect::WriteMembers
            )
        });
        if !half_done {
            let broken = check_together(&self.rollout, &self.attempts);
            assert!(broken.is_empty(), "{broken:#?}");
        }
        for device in &self.devices {
            let attempt = self.attempts.iter().find(|attempt| attempt.device == device.id);
            let had_turn = attempt.is_some_and(Attempt::is_handed_out);
            assert!(had_turn || device.runs.is_none(), "{} runs it without a turn", device.id);
        }
    }

    pub(super) fn running(&self) -> usize {
        self.devices.iter().filter(|device| device.runs.is_some() && !device.left).count()
    }

    pub(super) fn in_state(&self, wanted: fn(&AttemptState) -> bool) -> usize {
        self.attempts.iter().filter(|attempt| wanted(&attempt.state)).count()
    }
}
