//! Devices that are played: they take desired states, act as they are told to, and tell.

use crate::rollouts::{Enlisted, Roster};
use edgefleet_shared::{
    desired::{Assigned, Desired},
    ids::{AttemptId, BootId, DeviceId, SlotName},
    reported::{
        CandidateReport, ClockQuality, Facts, Installed, Phase, REPORTED_SCHEMA, Refusal, RefusalCode,
        Reported, SlotReport,
    },
    selector::Selector,
    telemetry::{Record, RecordBody, TerminalReport},
    time::Timestamp,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;

pub(super) const SLOT: &str = "digits";

pub(super) fn slot() -> SlotName {
    SLOT.parse().unwrap()
}

/// What a device makes of a bundle that it did not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    Commits,
    /// Goes back by itself, from anything but the first release.
    GoesBack,
    /// Fetches and does not come to an end.
    Fetches,
    /// Is not heard.
    Silent,
}

#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) manner: Manner,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) enrolled: bool,
    pub(super) active: Option<Assigned>,
    pub(super) generation: u64,
    /// Attempts it was told to activate, in order.
    pub(super) told: Vec<AttemptId>,
    phase: Phase,
    target: Option<Assigned>,
    candidate: Option<Assigned>,
    /// How attempts ended, until it is acknowledged.
    pub(super) ends: Vec<Record>,
    seq: u64,
}

impl Device {
    fn new() -> Self {
        Self {
            manner: Manner::Commits,
            labels: BTreeMap::new(),
            enrolled: true,
            active: None,
            generation: 0,
            told: Vec::new(),
            phase: Phase::Idle,
            target: None,
            candidate: None,
            ends: Vec::new(),
            seq: 0,
        }
    }

    fn take(&mut self, desired: &Desired) {
        if desired.generation <= self.generation {
            return;
        }
        self.generation = desired.generation;
        let wanted = desired.slots.get(&slot());
        self.candidate = wanted.and_then(|slot| slot.candidate.clone());
        let Some(next) = wanted.map(|slot| slot.active.clone()) else {
            (self.active, self.target, self.phase) = (None, None, Phase::Idle);
            return;
        };
        if self.active.as_ref() == Some(&next) {
            (self.target, self.phase) = (None, Phase::Idle);
            return;
        }
        self.told.push(next.attempt.clone());
        self.act(next);
    }

    fn act(&mut self, next: Assigned) {
        match self.manner {
            Manner::GoesBack if next.bundle.counter > 1 => {
                self.phase = Phase::RolledBackLocal;
                self.end(&next, Phase::RolledBackLocal);
                self.target = Some(next);
            }
            Manner::Commits | Manner::GoesBack => {
                self.phase = Phase::Committed;
                self.end(&next, Phase::Committed);
                (self.active, self.target) = (Some(next), None);
            }
            Manner::Fetches | Manner::Silent => (self.phase, self.target) = (Phase::Fetching, Some(next)),
        }
    }

    fn end(&mut self, target: &Assigned, phase: Phase) {
        self.seq += 1;
        let body = RecordBody::Terminal(TerminalReport {
            slot: slot(),
            generation: self.generation,
            phase,
            target: installed(target),
            refusal: refusal(phase),
            took_ms: 5,
            fetched_bytes: 7,
            at: Timestamp::EPOCH,
        });
        self.ends.push(Record { boot: BootId::from_random([1; 16]), seq: self.seq, body });
    }

    fn report(&self, device: &DeviceId) -> Reported {
        let mut slots = BTreeMap::new();
        if self.active.is_some() || self.target.is_some() {
            let candidate = self.candidate.as_ref().map(|one| CandidateReport {
                installed: installed(one),
                phase: Phase::Shadowing,
                progress: None,
                error: None,
                mirrored: 0,
                shed: BTreeMap::new(),
            });
            let report = SlotReport {
                phase: self.phase,
                active: self.active.as_ref().map(installed),
                previous: None,
                target: self.target.as_ref().map(installed),
                progress: None,
                last_error: refusal(self.phase),
                candidate,
                deferred: None,
                engine: None,
            };
            slots.insert(slot(), report);
        }
        Reported {
            schema: REPORTED_SCHEMA,
            device: device.clone(),
            boot: BootId::from_random([1; 16]),
            seq: 0,
            at: Timestamp::EPOCH,
            clock: ClockQuality::Plausible,
            generation: self.generation,
            trust_version: 1,
            nonce: None,
            slots,
            refused: None,
            facts: Facts::default(),
        }
    }
}

fn installed(assigned: &Assigned) -> Installed {
    Installed { bundle: assigned.bundle.clone(), digest: None, attempt: assigned.attempt.clone() }
}

fn refusal(phase: Phase) -> Option<Refusal> {
    (phase == Phase::RolledBackLocal).then(|| Refusal {
        code: RefusalCode::Unknown,
        retry: RefusalCode::Unknown.retry(),
        message: "it crashed".into(),
        subject: None,
        attempt: None,
        generation: None,
        at: Timestamp::EPOCH,
    })
}

/// The whole fleet, and the roster that knows it. Outlives the controller's processes.
#[derive(Default)]
pub(super) struct Devices(Mutex<BTreeMap<DeviceId, Device>>);

impl Devices {
    pub(super) fn add(&self, name: &str) -> DeviceId {
        let id: DeviceId = name.parse().unwrap();
        self.0.lock().insert(id.clone(), Device::new());
        id
    }

    pub(super) fn ids(&self) -> Vec<DeviceId> {
        self.0.lock().keys().cloned().collect()
    }

    pub(super) fn all(&self) -> BTreeMap<DeviceId, Device> {
        self.0.lock().clone()
    }

    pub(super) fn with<T>(&self, id: &DeviceId, change: impl FnOnce(&mut Device) -> T) -> T {
        change(self.0.lock().get_mut(id).unwrap())
    }

    /// A change of manner; what it holds half done goes on in the new one.
    pub(super) fn behave(&self, id: &DeviceId, manner: Manner) {
        self.with(id, |device| {
            device.manner = manner;
            if let Some(target) = device.target.take() {
                device.act(target);
            }
        });
    }

    /// It is shown what is wanted of it and says where it is; `None`: it is silent.
    pub(super) fn meets(&self, id: &DeviceId, desired: Option<&Desired>) -> Option<(Reported, Vec<Record>)> {
        self.with(id, |device| {
            if device.manner == Manner::Silent || !device.enrolled {
                return None;
            }
            if let Some(desired) = desired {
                device.take(desired);
            }
            Some((device.report(id), device.ends.clone()))
        })
    }
}

impl Roster for Devices {
    fn select(&self, selectors: &[Selector]) -> Vec<Enlisted> {
        let all = self.0.lock();
        let meant = all.iter().filter(|(_, device)| {
            device.enrolled && selectors.iter().any(|selector| selector.matches(&device.labels))
        });
        meant.map(|(id, device)| Enlisted { device: id.clone(), attributes: device.labels.clone() }).collect()
    }
    fn last_seen(&self, device: &DeviceId) -> Option<Timestamp> {
        let seen = self.0.lock().get(device).is_some_and(|device| device.manner != Manner::Silent);
        seen.then(crate::clock::now)
    }
    fn reported_generation(&self, device: &DeviceId) -> u64 {
        self.0.lock().get(device).map_or(0, |device| device.generation)
    }
    fn is_enrolled(&self, device: &DeviceId) -> bool {
        self.0.lock().get(device).is_some_and(|device| device.enrolled)
    }
    fn is_online(&self, device: &DeviceId) -> bool {
        self.last_seen(device).is_some()
    }
}
