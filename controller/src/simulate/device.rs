//! One virtual device: reads its desired state, fetches, tests, shadows, switches, watches, reports.
//!
//! Written after the agent's phases, not with its code: what a device does is input here, not what is tested.

use super::{
    fleet::{Fate, Link},
    queue::Item,
    world::World,
};
use crate::rollout::DeviceSaid;
use edgefleet_shared::{
    ids::AttemptId,
    maintenance::Zone,
    reported::{Phase, Refusal, RefusalCode},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Doing {
    #[default]
    Idle,
    Fetching,
    Testing,
    Shadowing,
    /// Ready, and waits for its maintenance window.
    Deferred,
    Probation,
}

/// What changes on a device.
#[derive(Clone, Debug, Default)]
pub(super) struct Unit {
    /// Newest generation it has read.
    pub seen: u32,
    /// Number of the attempt it works on.
    pub target: u32,
    /// Number of the attempt whose bundle answers; 0: the incumbent.
    pub active: u32,
    /// Next telemetry record.
    pub seq: u32,
    /// Seconds since 1970 up to which its windows go.
    pub from: u32,
    /// Last sign of life the controller got, seconds since 1970.
    pub heard: u32,
    /// When its last full report arrives, milliseconds since 1970.
    pub reported: u64,
    pub epoch: u16,
    pub boot: u8,
    pub doing: Doing,
    pub shadow: bool,
    pub has_bundle: bool,
    /// Its one broken download is behind it.
    pub broke: bool,
    /// Not heard of any more.
    pub dark: bool,
    /// Sends windows.
    pub watched: bool,
    /// The end of the window under way, milliseconds.
    pub window_due: u64,
}

/// What the newest desired state of a device asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub generation: u32,
    pub what: What,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum What {
    #[default]
    Incumbent,
    Active(u32),
    Shadow(u32),
}

/// Size of the candidate, bytes.
pub(super) const DOWNLOAD: u64 = 8 << 20;
/// Usual bandwidth of a device, bytes per second (4 Mbit/s).
const BANDWIDTH: f64 = 500_000.0;
const TEST_MS: u64 = 5_000;

impl World {
    pub(super) fn fate(&self, device: u32) -> Fate {
        self.fleet.fate(device, &self.settings.behaviour, &self.settings.faults)
    }

    /// The device reads its newest desired state.
    pub(super) fn desired(&mut self, device: u32) {
        let wanted = self.wanted[device as usize];
        let unit = &mut self.units[device as usize];
        if unit.seen >= wanted.generation || unit.dark {
            return;
        }
        unit.seen = wanted.generation;
        unit.epoch = unit.epoch.wrapping_add(1);
        match wanted.what {
            What::Incumbent => {
                let back = unit.active != 0;
                unit.target = 0;
                unit.doing = Doing::Idle;
                if back {
                    self.cut_window(device);
                    self.units[device as usize].active = 0;
                }
                let before = self.before_attempt();
                self.report(device, Phase::Committed);
                self.ended(device, Phase::Committed, before, None);
            }
            What::Active(number) | What::Shadow(number) => {
                unit.target = number;
                unit.shadow = matches!(wanted.what, What::Shadow(_));
                if unit.has_bundle {
                    unit.doing = Doing::Testing;
                    self.step_after(device, TEST_MS);
                } else {
                    unit.doing = Doing::Fetching;
                    let secs = DOWNLOAD as f64 / BANDWIDTH * f64::from(self.fleet.traits(device).slow);
                    self.step_after(device, (secs * 1_000.0) as u64);
                }
                if !self.settings.terse {
                    let phase = self.phase(device);
                    self.report(device, phase);
                }
            }
        }
    }

    fn step_after(&mut self, device: u32, millis: u64) {
        let epoch = self.units[device as usize].epoch;
        self.queue.push(self.now + millis, Item::Step { device, epoch });
    }

    /// What the device is at is done.
    pub(super) fn step(&mut self, device: u32, epoch: u16) {
        if self.units[device as usize].epoch != epoch || self.units[device as usize].dark {
            return;
        }
        let fate = self.fate(device);
        match self.units[device as usize].doing {
            Doing::Idle | Doing::Shadowing => {}
            Doing::Fetching => self.fetched(device, fate),
            Doing::Testing if fate.unfit => self.fail(device, RefusalCode::OverMemory),
            Doing::Testing if self.units[device as usize].shadow => {
                self.units[device as usize].doing = Doing::Shadowing;
                self.cut_window(device);
                self.report(device, Phase::Shadowing);
            }
            Doing::Testing | Doing::Deferred => self.switch(device, fate),
            Doing::Probation => self.probation_over(device, fate),
        }
    }

    fn fetched(&mut self, device: u32, fate: Fate) {
        match self.fleet.connected(device, self.now) {
            // Cut off in the middle: the rest when it is back.
            Some(back) if back > self.now => return self.step_after(device, back - self.now + 10_000),
            Some(_) => {}
            None => return,
        }
        let unit = &mut self.units[device as usize];
        if fate.download_breaks && !unit.broke {
            unit.broke = true;
            return self.fail(device, RefusalCode::TransferTimeout);
        }
        if fate.refuses {
            return self.fail(device, RefusalCode::SignatureInvalid);
        }
        unit.has_bundle = true;
        unit.doing = Doing::Testing;
        if !self.settings.terse {
            self.report(device, Phase::Testing);
        }
        self.step_after(device, TEST_MS);
    }

    fn switch(&mut self, device: u32, fate: Fate) {
        let window = self.docs.rollout.plan.window.as_ref().and_then(|window| window.on_device(false).ok());
        // Each site has a zone of its own, from twelve hours behind to eleven ahead.
        let local = Zone::Offset(i32::from(self.fleet.traits(device).site % 24) * 3_600 - 12 * 3_600);
        if let Some(window) = window
            && let Some(rules) =
                if window.zone == Zone::DeviceLocal { &local } else { &window.zone }.without_files()
            && !window.is_open(self.time(), &rules)
        {
            self.units[device as usize].doing = Doing::Deferred;
            self.report(device, Phase::Deferred);
            if let Some(next) = window.next_open(self.time(), &rules) {
                self.step_after(device, next.as_millis().saturating_sub(self.now) + 1_000);
            }
            return;
        }
        self.cut_window(device);
        let unit = &mut self.units[device as usize];
        unit.active = unit.target;
        unit.doing = Doing::Probation;
        self.report(device, Phase::Probation);
        if fate.darkens {
            self.units[device as usize].dark = true;
            return;
        }
        let probation = self.docs.rollout.plan.wait(self.docs.rollout.plan.probation).as_millis() as u64;
        let share = if fate.crashes || fate.mishap { self.rng.unit() } else { 1.0 };
        self.step_after(device, (probation as f64 * share) as u64);
    }

    fn probation_over(&mut self, device: u32, fate: Fate) {
        if fate.crashes || fate.mishap {
            self.cut_window(device);
            let unit = &mut self.units[device as usize];
            unit.active = 0;
            unit.boot = unit.boot.wrapping_add(1);
            return self.fail(device, RefusalCode::CrashLoop);
        }
        let unit = &mut self.units[device as usize];
        unit.doing = Doing::Idle;
        let attempt = AttemptId { rollout: self.docs.rollout.id.clone(), number: unit.target };
        if !self.settings.terse {
            self.report(device, Phase::Committed);
        }
        self.ended(device, Phase::Committed, attempt, None);
    }

    fn fail(&mut self, device: u32, code: RefusalCode) {
        let unit = &mut self.units[device as usize];
        unit.doing = Doing::Idle;
        let attempt = AttemptId { rollout: self.docs.rollout.id.clone(), number: unit.target };
        let refusal = Refusal {
            code,
            retry: code.retry(),
            message: "virtual".to_owned(),
            subject: None,
            attempt: Some(attempt.clone()),
            generation: Some(u64::from(unit.seen)),
            at: self.time(),
        };
        self.ended(device, code.phase(), attempt, Some(refusal));
    }

    fn phase(&self, device: u32) -> Phase {
        match self.units[device as usize].doing {
            Doing::Idle => Phase::Idle,
            Doing::Fetching => Phase::Fetching,
            Doing::Testing => Phase::Testing,
            Doing::Shadowing => Phase::Shadowing,
            Doing::Deferred => Phase::Deferred,
            Doing::Probation => Phase::Probation,
        }
    }

    /// The attempt that brought the incumbent.
    pub(super) fn before_attempt(&self) -> AttemptId {
        self.before.attempt.clone()
    }

    pub(super) fn attempt_id(&self, number: u32) -> AttemptId {
        if number == 0 {
            return self.before_attempt();
        }
        AttemptId { rollout: self.docs.rollout.id.clone(), number }
    }

    fn report(&mut self, device: u32, phase: Phase) {
        let unit = &self.units[device as usize];
        let said = DeviceSaid::Report {
            generation: u64::from(unit.seen),
            phase,
            target: Some(self.attempt_id(unit.target)),
            active: Some(self.attempt_id(unit.active)),
            deferral: (phase == Phase::Deferred).then_some(crate::rollout::Deferral::Window),
            refusal: None,
        };
        self.send(device, said, 0);
    }

    fn ended(&mut self, device: u32, phase: Phase, attempt: AttemptId, refusal: Option<Refusal>) {
        let generation = u64::from(self.units[device as usize].seen);
        let said = DeviceSaid::Ended {
            generation,
            phase,
            attempt,
            refusal,
            took_ms: 20_000,
            fetched_bytes: DOWNLOAD,
        };
        self.send(device, said, 0);
    }

    /// Puts a message on its way: it arrives when the device is connected, perhaps late, perhaps twice.
    pub(super) fn send(&mut self, device: u32, said: DeviceSaid, held_back: u64) {
        if self.units[device as usize].dark {
            return;
        }
        let faults = &self.settings.faults;
        let (duplicates, reordered, overtaken) =
            (faults.duplicates, faults.reordered, faults.overtaken_reports);
        let is_report = matches!(said, DeviceSaid::Report { .. });
        let overtakes = self.rng.chance(if is_report { overtaken } else { reordered });
        let mut at = self.now + held_back + 50 + self.rng.below(2_000);
        if overtakes {
            at += self.rng.below(600_000);
        }
        let Some(mut arrives) = self.fleet.connected(device, at) else { return };
        // One session keeps the order of full reports; repeats follow at once. Ends and telemetry are sent again
        // until they are acknowledged, whenever that is.
        if is_report && !overtakes {
            let last = &mut self.units[device as usize].reported;
            arrives = arrives.max(*last + 1);
            *last = arrives + 1;
        }
        if self.rng.chance(duplicates) {
            let later = if is_report && !overtakes { 1 } else { 1 + self.rng.below(3_600_000) };
            let again = self.fleet.connected(device, arrives + later).unwrap_or(arrives + later);
            self.queue.push(again, Item::Deliver { device, said: Box::new(said.clone()) });
        }
        self.queue.push(arrives, Item::Deliver { device, said: Box::new(said) });
    }

    /// The device will read its desired state as soon as it is connected.
    pub(super) fn publish(&mut self, device: u32) {
        if self.fleet.traits(device).link == Link::Never {
            return;
        }
        let at = self.now + 200 + self.rng.below(4_000);
        if let Some(at) = self.fleet.connected(device, at) {
            self.queue.push(at, Item::Desired { device });
        }
    }
}
