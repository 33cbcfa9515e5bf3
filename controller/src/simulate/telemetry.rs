//! What virtual devices measure: windows, shadow comparisons, labels.
//!
//! Distributions of DECISIONS 27, drawn with the module's own generator and no code of the gates.

use super::{device::Doing, fleet::HOUR, queue::Item, rng::fate, world::World};
use crate::{
    evidence::Gate,
    rollout::{DeviceSaid, RecordKey, WindowSaid},
};
use edgefleet_shared::{ids::BootId, time::Timestamp};
use std::collections::BTreeMap;

const CLASSES: u64 = 10;
/// The class a bad candidate confuses, and what it says instead.
const CONFUSED: (u64, u64) = (7, 1);
/// Requests of a device in an hour of average traffic: one a second.
const REQUESTS: f64 = 3_600.0;
/// Relative error of the p95 of one lognormal request (sd 0.5) of many: `sqrt(0.95 * 0.05) * 0.5 / phi(1.645)`.
const P95_ERROR: f64 = 1.06;
/// What else makes a device's p95 wander from one window to the next.
const P95_WANDERS: f64 = 0.03;
/// Labelled inputs per device and window.
const LABELS: u64 = 20;

impl World {
    /// Begins to watch a device; its windows are spread over their length.
    pub(super) fn watch(&mut self, device: u32) {
        let length = self.window_length(device);
        let phase = self.rng.below(length);
        let unit = &mut self.units[device as usize];
        if !unit.watched {
            unit.watched = true;
            unit.from = (self.now / 1_000) as u32;
            self.plan_window(device, 1 + phase);
        }
    }

    /// Real devices send a window every few minutes; here those do that are about to be compared.
    pub(super) fn look_closer(&mut self, device: u32) {
        if self.units[device as usize].watched {
            self.cut_window(device);
            let length = self.window_length(device);
            self.plan_window(device, length);
        }
    }

    fn plan_window(&mut self, device: u32, after: u64) {
        let due = self.now + after;
        self.units[device as usize].window_due = due;
        self.queue.push(due, Item::Window { device });
    }

    /// Short while canaries are compared with their controls, an hour otherwise.
    fn window_length(&self, device: u32) -> u64 {
        let rollout = &self.docs.rollout;
        let place = self.members.of_device(device).map(|member| self.members.place(member));
        let stage = place
            .filter(|place| place.match_of.is_some() && place.cohort <= rollout.stage)
            .and_then(|place| rollout.stages.get(usize::from(place.cohort)));
        let soon = stage.is_some_and(|stage| {
            let long =
                rollout.plan.wait(rollout.plan.assign.compare) + std::time::Duration::from_secs(2 * 3_600);
            stage.soak_from.is_none_or(|from| self.time().since(from) <= long)
        });
        if soon { self.settings.window_secs * 1_000 } else { HOUR }
    }

    /// The regular end of a window.
    pub(super) fn window_over(&mut self, device: u32) {
        if self.units[device as usize].window_due != self.now {
            return; // planned anew since
        }
        if self.docs.rollout.is_terminal() || !self.units[device as usize].watched {
            self.units[device as usize].watched = false;
            return;
        }
        self.cut_window(device);
        let length = self.window_length(device);
        self.plan_window(device, length);
    }

    /// Ends the window under way and sends it: also before every change of bundle or role.
    pub(super) fn cut_window(&mut self, device: u32) {
        let now = (self.now / 1_000) as u32;
        let unit = &mut self.units[device as usize];
        let (from, length) = (unit.from, now.saturating_sub(unit.from));
        if !unit.watched || unit.dark || length == 0 {
            return;
        }
        unit.from = now;
        let (active, target, shadowing) = (unit.active, unit.target, unit.doing == Doing::Shadowing);
        if active != 0 && self.fate(device).silences {
            return;
        }
        let key = self.next_key(device);
        let requests = self.requests(device, length);
        if requests == 0 {
            return;
        }
        let late =
            if self.rng.chance(self.settings.faults.late_windows) { self.rng.below(12 * HOUR) } else { 0 };
        let window = self.window(device, key, from, length, requests, active);
        self.send(device, DeviceSaid::Window(window), late);
        if shadowing {
            let key = self.next_key(device);
            let said = self.shadow(device, key, target, requests);
            self.send(device, said, late);
            if self.docs.rollout.plan.gates.used().contains(&Gate::Accuracy) {
                let key = self.next_key(device);
                let said = self.labels(key, target);
                self.send(device, said, late);
            }
        }
    }

    fn next_key(&mut self, device: u32) -> RecordKey {
        let unit = &mut self.units[device as usize];
        let seq = u64::from(unit.seq);
        unit.seq += 1;
        let mut boot = [unit.boot; 16];
        boot[..4].copy_from_slice(&device.to_be_bytes());
        RecordKey { boot: BootId::from_random(boot), seq }
    }

    fn requests(&mut self, device: u32, length: u32) -> u64 {
        let mean = REQUESTS
            * self.fleet.traffic(self.fleet.traits(device).site, self.now)
            * f64::from(length)
            * 1_000.0
            / HOUR as f64;
        (mean * self.rng.lognormal(0.2)).round() as u64
    }

    fn window(
        &mut self,
        device: u32,
        key: RecordKey,
        from: u32,
        length: u32,
        requests: u64,
        active: u32,
    ) -> WindowSaid {
        let traits = *self.fleet.traits(device);
        let behaviour = self.settings.behaviour.clone();
        let candidate = active != 0;
        let traffic = self.fleet.traffic(traits.site, self.now);
        let mut good = 1.0 - (f64::from(traits.bad_hours) * traffic).clamp(0.0, 0.95);
        if candidate {
            good = good.powf(behaviour.errors);
        }
        if self.fleet.outage(traits.site, u64::from(from) * 1_000) {
            good = good.min(0.1);
        }
        let bad = self.rng.chance(1.0 - good.powf(f64::from(length) * 1_000.0 / HOUR as f64));
        let slower = if candidate { behaviour.slower } else { 1.0 };
        let spread = P95_WANDERS.hypot(P95_ERROR / (requests as f64).sqrt());
        let p95 = f64::from(traits.p95) * (0.95 + 0.05 * traffic) * self.rng.lognormal(spread) * slower;
        let above = self.rng.binomial(requests, (0.05 * slower * slower).min(0.9));
        let start = u64::from(from).saturating_add_signed(i64::from(traits.clock) * 3_600);
        WindowSaid {
            key,
            attempt: self.attempt_id(active),
            start: Timestamp::from_secs(start),
            requests,
            bad,
            p95_ms: Some(p95),
            exceed: Some((requests, above)),
            classes: self.classes(device, requests, if candidate { behaviour.confuses } else { 0.0 }),
        }
    }

    /// Answers by class: every device has its own mixture.
    fn classes(&mut self, device: u32, n: u64, confuses: f64) -> BTreeMap<String, u64> {
        let weight = |class: u64| 0.5 + fate(self.settings.seed, u64::from(device), 100 + class);
        let mut left_weight: f64 = (0..CLASSES).map(weight).sum();
        let weights: Vec<f64> = (0..CLASSES).map(weight).collect();
        let mut left = n;
        let mut counts = [0; CLASSES as usize];
        for (class, weight) in weights.into_iter().enumerate() {
            let count = if class as u64 + 1 == CLASSES {
                left
            } else {
                self.rng.binomial(left, weight / left_weight)
            };
            counts[class] = count;
            left -= count;
            left_weight -= weight;
        }
        let moved = self.rng.binomial(counts[CONFUSED.0 as usize], confuses);
        counts[CONFUSED.0 as usize] -= moved;
        counts[CONFUSED.1 as usize] += moved;
        counts
            .into_iter()
            .enumerate()
            .filter(|(_, n)| *n > 0)
            .map(|(class, n)| (class.to_string(), n))
            .collect()
    }

    fn shadow(&mut self, device: u32, key: RecordKey, target: u32, n: u64) -> DeviceSaid {
        // Two good models differ now and then, on some devices more than on others.
        let usual = 0.002 + 0.01 * fate(self.settings.seed, u64::from(device), 200);
        let mut classes = BTreeMap::new();
        let mut disagree = 0;
        for (class, count) in self.classes(device, n, 0.0) {
            let wrong = if class == CONFUSED.0.to_string() { self.settings.behaviour.confuses } else { 0.0 };
            let differ = self.rng.binomial(count, (usual + wrong).min(1.0));
            disagree += differ;
            classes.insert(class, (count, differ));
        }
        DeviceSaid::Shadow { key, attempt: self.attempt_id(target), n, disagree, classes }
    }

    fn labels(&mut self, key: RecordKey, target: u32) -> DeviceSaid {
        let wins = self.rng.binomial(LABELS, 0.01);
        let losses = self.rng.binomial(LABELS - wins, 0.01 + self.settings.behaviour.loses);
        let both_wrong = self.rng.binomial(LABELS - wins - losses, 0.02);
        DeviceSaid::Labels {
            key,
            attempt: self.attempt_id(target),
            source: "controller".to_owned(),
            both_right: LABELS - wins - losses - both_wrong,
            both_wrong,
            wins,
            losses,
        }
    }
}
