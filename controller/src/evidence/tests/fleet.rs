//! A virtual fleet that knows nothing of the gates (DECISIONS 27): device rates from a beta distribution,
//! lognormal device speed, 2 % chronically bad devices, outages of whole sites, a day cycle, devices that
//! are away, reports that come late.

use crate::evidence::random::Random;
use crate::evidence::{Arm, BeforeAfter, GateSettings, Observation, Reporting, latency_vote};
use edgefleet_shared::ids::DeviceId;
use std::collections::BTreeMap;

const SITES: u64 = 4;
const CLASSES: usize = 10;

pub(super) struct Fleet {
    random: Random,
    devices: Vec<Device>,
}

struct Device {
    id: DeviceId,
    arm: Arm,
    stratum: String,
    site: String,
    rate: f64,
    speed: f64,
    chronic: bool,
    /// Chance to be online in an hour, and to report late.
    online: f64,
    seen_bad: bool,
    mix: Vec<f64>,
    odd: f64,
}

/// First parameter of the beta distribution of device rates: the spread is 1/sqrt(SHAPE) of the mean.
const SHAPE: u32 = 4;

/// Beta with whole first parameter and the given mean, as a ratio of gammas (the second by its normal
/// limit: it is in the hundreds).
fn beta(random: &mut Random, shape: u32, mean: f64) -> f64 {
    let a: f64 = (0..shape).map(|_| random.exponential()).sum();
    let b = f64::from(shape) * (1.0 / mean.max(1e-6) - 1.0);
    let b = (b + b.sqrt() * random.normal()).max(1e-3);
    a / (a + b)
}

/// What the candidate does, as multiples of what it replaces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) errors: f64,
    pub(super) slowness: f64,
    pub(super) disagree: f64,
    pub(super) losses: f64,
    pub(super) silence: f64,
    /// Share of all answers that turn into class 0.
    pub(super) confusion: f64,
}

impl Candidate {
    pub(super) const SAME: Self =
        Self { errors: 1.0, slowness: 1.0, disagree: 0.005, losses: 1.0, silence: 1.0, confusion: 0.0 };
}

impl Fleet {
    /// Randomised within strata; `bad_rate`: mean share of bad device-hours of a device that is not chronic.
    pub(super) fn new(seed: u64, canaries: usize, controls: usize, bad_rate: f64) -> Self {
        let mut random = Random::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
        let n = canaries + controls;
        let mut order: Vec<(u64, usize)> = (0..n).map(|i| (random.next(), i)).collect();
        order.sort_unstable();
        let mut devices: Vec<_> = (0..n)
            .map(|i| Device {
                id: format!("d-{i}").parse().unwrap(),
                arm: Arm::Control,
                stratum: format!("hw{}", i % 2),
                site: format!("site{}", i as u64 / 2 % SITES),
                rate: beta(&mut random, SHAPE, bad_rate),
                speed: (0.3 * random.normal()).exp(),
                chronic: random.chance(0.02),
                online: if random.chance(0.1) { 0.4 } else { 0.95 },
                seen_bad: false,
                mix: (0..CLASSES).map(|_| (0.3 * random.normal()).exp()).collect(),
                odd: (0.5 * random.normal() - 0.125).exp(),
            })
            .collect();
        // Equal shares in both strata: every other device of the shuffled order of each.
        for stratum in 0..2 {
            let members = order.iter().filter(|(_, i)| i % 2 == stratum);
            members.take(canaries / 2).for_each(|(_, i)| devices[*i].arm = Arm::Canary);
        }
        Self { random, devices }
    }

    pub(super) fn joins(&self) -> Vec<Observation> {
        let join = |d: &Device| Observation::Joined {
            arm: d.arm,
            cohort: 0,
            stratum: d.stratum.clone(),
            site: d.site.clone(),
        };
        self.devices.iter().map(join).collect()
    }

    /// Device-hours and first bad windows of `hours`, by hour of arrival, shuffled within it.
    pub(super) fn errors(
        &mut self,
        hours: u64,
        candidate: Candidate,
        clean_hours: bool,
    ) -> Vec<Vec<Observation>> {
        let mut arrivals: Vec<Vec<(u64, usize, u64, bool)>> = vec![Vec::new(); hours as usize + 13];
        let random = &mut self.random;
        for hour in 0..hours {
            let outage = (0..SITES).find(|_| random.chance(0.000_5)).map(|site| format!("site{site}"));
            let day = 1.0 + 0.8 * (hour as f64 * std::f64::consts::TAU / 24.0).sin();
            for (i, d) in self.devices.iter().enumerate() {
                let harm = if d.arm == Arm::Canary { candidate.errors } else { 1.0 };
                let rate = if d.chronic { 0.5 } else { (d.rate * day * harm).min(1.0) };
                if !random.chance(d.online) {
                    continue;
                }
                let bad = random.chance(rate) || outage.as_ref() == Some(&d.site);
                let late = if random.chance(0.1) { 1 + random.next() % 12 } else { 0 };
                if bad || clean_hours {
                    arrivals[(hour + late) as usize].push((random.next(), i, hour, bad));
                }
            }
        }
        let devices = &mut self.devices;
        let mut tell = |(_, i, hour, bad): (u64, usize, u64, bool)| {
            let d = &mut devices[i];
            let first = bad && !d.seen_bad;
            d.seen_bad |= bad;
            let (device, arm) = (d.id.clone(), d.arm);
            let over = clean_hours.then(|| Observation::DeviceHour { device: device.clone(), arm, bad });
            let (stratum, site) = (d.stratum.clone(), d.site.clone());
            let first =
                first.then_some(Observation::FirstBad { device, arm, cohort: 0, stratum, site, hour });
            over.into_iter().chain(first).collect::<Vec<_>>()
        };
        arrivals.iter_mut().for_each(|arrived| arrived.sort_unstable());
        arrivals.into_iter().map(|arrived| arrived.into_iter().flat_map(&mut tell).collect()).collect()
    }

    /// One vote per canary, each beside three controls drawn at random.
    pub(super) fn votes(&mut self, candidate: Candidate, settings: &GateSettings) -> Vec<Observation> {
        let random = &mut self.random;
        let spans: Vec<BeforeAfter> = self
            .devices
            .iter()
            .map(|d| {
                let before_ms = 12.0 * d.speed * (0.05 * random.normal()).exp();
                let slow = if d.arm == Arm::Canary { candidate.slowness } else { 1.0 };
                // A chronically bad device also jumps about.
                let noise = if d.chronic { 1.0 } else { 0.05 };
                BeforeAfter { before_ms, after_ms: before_ms * slow * (noise * random.normal()).exp() }
            })
            .collect();
        let controls: Vec<usize> =
            (0..spans.len()).filter(|i| self.devices[*i].arm == Arm::Control).collect();
        let canaries = self.devices.iter().enumerate().filter(|(_, d)| d.arm == Arm::Canary);
        canaries
            .map(|(i, d)| {
                let own: Vec<_> =
                    (0..3).map(|_| spans[controls[random.next() as usize % controls.len()]]).collect();
                let vote = latency_vote(spans[i], &own, settings.latency.factor);
                Observation::Latency { device: d.id.clone(), stratum: d.stratum.clone(), vote }
            })
            .collect()
    }

    /// One hour of shadow windows of the canaries; a device's own share spreads around the candidate's.
    pub(super) fn shadow(&mut self, candidate: Candidate, per_device: u64) -> Vec<Observation> {
        let random = &mut self.random;
        let mut all = Vec::new();
        for d in self.devices.iter().filter(|d| d.arm == Arm::Canary) {
            if random.chance(d.online) {
                let disagree = random.binomial(per_device, (candidate.disagree * d.odd).min(1.0));
                let (device, stratum) = (d.id.clone(), d.stratum.clone());
                all.push(Observation::Shadow {
                    device,
                    stratum,
                    n: per_device,
                    disagree,
                    classes: BTreeMap::new(),
                });
            }
        }
        all
    }

    /// One hour of labelled inputs of the canaries: 4 % discordant, losses to wins as the candidate says.
    pub(super) fn labels(&mut self, candidate: Candidate, per_device: u64) -> Vec<Observation> {
        let random = &mut self.random;
        let mut all = Vec::new();
        for d in self.devices.iter().filter(|d| d.arm == Arm::Canary) {
            let pairs = random.binomial(per_device, (0.04 * d.odd).min(1.0));
            let losses = random.binomial(pairs, candidate.losses / (1.0 + candidate.losses));
            all.push(Observation::Labels {
                device: d.id.clone(),
                stratum: d.stratum.clone(),
                source: "controller".into(),
                both_right: per_device - pairs,
                both_wrong: 0,
                wins: pairs - losses,
                losses,
            });
        }
        all
    }

    /// Who has reported by the end of the stage: 3 % of devices have not, for reasons of their own.
    pub(super) fn reporting(&mut self, candidate: Candidate) -> Observation {
        let (mut canary, mut control) = (Reporting::default(), Reporting::default());
        for d in &self.devices {
            let (group, share) = match d.arm {
                Arm::Canary => (&mut canary, 0.03 * candidate.silence),
                Arm::Control => (&mut control, 0.03),
            };
            group.expected += 1;
            group.received += u32::from(!self.random.chance(share));
        }
        Observation::Telemetry { canary, control }
    }

    /// One hour of answers: every device sees its own mix of classes.
    pub(super) fn answers(&mut self, candidate: Candidate, per_device: u64) -> Vec<Observation> {
        let random = &mut self.random;
        let mut order: Vec<_> = self.devices.iter().map(|d| (random.next(), d)).collect();
        order.sort_by_key(|(at, _)| *at);
        let mut all = Vec::new();
        for (_, d) in order {
            let sum: f64 = d.mix.iter().sum();
            let mut classes: Vec<u64> = d.mix.iter().map(|w| random.binomial(per_device, w / sum)).collect();
            if d.arm == Arm::Canary
                && let Some((first, rest)) = classes.split_first_mut()
            {
                for class in rest {
                    let moved = random.binomial(*class, candidate.confusion);
                    *class -= moved;
                    *first += moved;
                }
            }
            let classes = classes.into_iter().enumerate().map(|(i, n)| (format!("c{i}"), n)).collect();
            all.push(Observation::Drift { device: d.id.clone(), arm: d.arm, classes });
        }
        all
    }
}
