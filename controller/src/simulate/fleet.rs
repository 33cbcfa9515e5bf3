//! The virtual fleet: what every device is, drawn once from the seed.
//!
//! Everything is small (a million devices): texts are shared, rates are `f32`.

use super::{
    rng::{Rng, fate, mix},
    scenario::{Behaviour, Faults},
};
use edgefleet_shared::ids::DeviceId;
use std::collections::BTreeMap;

pub(super) const HOUR: u64 = 3_600_000;
pub(super) const DAY: u64 = 24 * HOUR;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Steady,
    /// Away from this hour (UTC) for so many hours.
    Nightly {
        from: u8,
        hours: u8,
    },
    /// Away for some minutes of most hours.
    Flaky,
    Never,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub site: u16,
    pub hardware: u8,
    pub link: Link,
    /// Bandwidth is divided by it.
    pub slow: f32,
    /// Chance that an hour is bad, with the incumbent.
    pub bad_hours: f32,
    /// Usual p95, milliseconds.
    pub p95: f32,
    /// Error of its clock, hours.
    pub clock: i8,
}

/// What the candidate does on one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    pub crashes: bool,
    pub silences: bool,
    pub darkens: bool,
    pub refuses: bool,
    pub unfit: bool,
    pub download_breaks: bool,
    pub mishap: bool,
}

pub(super) struct Fleet {
    seed: u64,
    outages: f64,
    ids: Vec<DeviceId>,
    traits: Vec<Traits>,
    /// One map for all devices of a kind: `site * HARDWARE + hardware`.
    attributes: Vec<BTreeMap<String, String>>,
}

const HARDWARE: [&str; 3] = ["gateway", "pi4", "pi5"];
const MOST_SITES: u32 = 60_000;

impl Fleet {
    /// `per_site`: mean devices of a site.
    pub(super) fn new(devices: u32, per_site: u32, seed: u64, faults: &Faults) -> Self {
        let sites = (devices / per_site.max(1)).clamp(1, MOST_SITES);
        let mut rng = Rng::new(mix(seed ^ 0x00f1_ee70));
        let mut traits = Vec::with_capacity(devices as usize);
        let mut ids = Vec::with_capacity(devices as usize);
        for device in 0..devices {
            traits.push(draw(&mut rng, sites, faults));
            ids.push(id_of(device));
        }
        let mut attributes = Vec::with_capacity(sites as usize * HARDWARE.len());
        for site in 0..sites {
            for hardware in HARDWARE {
                let pairs = [
                    ("hardware", hardware.to_owned()),
                    ("site", format!("s{site}")),
                    ("region", format!("r{}", site % 8)),
                ];
                attributes.push(pairs.map(|(key, value)| (key.to_owned(), value)).into());
            }
        }
        Self { seed, outages: faults.outages, ids, traits, attributes }
    }

    pub(super) fn len(&self) -> u32 {
        self.ids.len() as u32
    }
    pub(super) fn id(&self, device: u32) -> &DeviceId {
        &self.ids[device as usize]
    }
    pub(super) fn traits(&self, device: u32) -> &Traits {
        &self.traits[device as usize]
    }
    pub(super) fn attributes(&self, device: u32) -> &BTreeMap<String, String> {
        let traits = self.traits(device);
        &self.attributes[usize::from(traits.site) * HARDWARE.len() + usize::from(traits.hardware)]
    }
    /// The device an id stands for.
    pub(super) fn number(&self, id: &DeviceId) -> Option<u32> {
        let number = u32::from_str_radix(id.as_str().strip_prefix('d')?, 36).ok()?;
        (number < self.len()).then_some(number)
    }

    pub(super) fn fate(&self, device: u32, behaviour: &Behaviour, faults: &Faults) -> Fate {
        let happens = |what: u64, p: f64| fate(self.seed, u64::from(device), what) < p;
        Fate {
            crashes: happens(1, behaviour.crashes),
            silences: happens(2, behaviour.silences),
            darkens: happens(3, behaviour.darkens),
            refuses: happens(4, behaviour.bad_signature),
            unfit: happens(5, behaviour.unfit),
            download_breaks: happens(6, faults.broken_downloads),
            mishap: happens(7, faults.mishaps),
        }
    }

    /// Whether the whole site is in trouble in this hour: outages last one to three hours.
    pub(super) fn outage(&self, site: u16, at: u64) -> bool {
        let hour = at / HOUR;
        (0..3).any(|ago| {
            let drawn = fate(self.seed, u64::from(site) | 1 << 40, hour - ago);
            let starts = self.outages / 24.0;
            // The lower the number the longer it lasts.
            drawn < starts && drawn * 3.0 < starts * (3 - ago) as f64
        })
    }

    /// Traffic of a site over the day, around 1: nights are quiet.
    pub(super) fn traffic(&self, site: u16, at: u64) -> f64 {
        let zone = u64::from(site) % 24 * HOUR;
        let day = ((at + zone) % DAY) as f64 / DAY as f64;
        1.0 - 0.7 * (std::f64::consts::TAU * day).cos()
    }

    /// When it was connected last, at or before `at`.
    pub(super) fn last_connected(&self, device: u32, at: u64) -> Option<u64> {
        match self.traits(device).link {
            Link::Steady => Some(at),
            Link::Never => None,
            Link::Nightly { from, hours } => {
                let since = (at + DAY - u64::from(from) * HOUR) % DAY;
                Some(if since < u64::from(hours) * HOUR { at - since } else { at })
            }
            Link::Flaky => {
                let (from, until) = self.gap(device, at);
                Some(if (from..until).contains(&at) { from } else { at })
            }
        }
    }

    /// When a flaky device is away in the hour of `at`: up to twelve minutes.
    fn gap(&self, device: u32, at: u64) -> (u64, u64) {
        let who = u64::from(device) | 1 << 41;
        let hour = at / HOUR;
        let (begins, lasts) = (fate(self.seed, who, hour), fate(self.seed, who, hour | 1 << 50));
        let from = hour * HOUR + ((0.01 + begins * 0.78) * HOUR as f64) as u64;
        (from, from + (lasts * 0.2 * HOUR as f64) as u64)
    }

    /// When a device that wants to say something at `at` is connected next; `None`: never.
    pub(super) fn connected(&self, device: u32, at: u64) -> Option<u64> {
        match self.traits(device).link {
            Link::Steady => Some(at),
            Link::Never => None,
            Link::Nightly { from, hours } => {
                let since = (at + DAY - u64::from(from) * HOUR) % DAY;
                let away = u64::from(hours) * HOUR;
                Some(if since < away { at + away - since } else { at })
            }
            Link::Flaky => {
                let (from, until) = self.gap(device, at);
                Some(if (from..until).contains(&at) { until } else { at })
            }
        }
    }
}

fn id_of(device: u32) -> DeviceId {
    let mut digits = [0u8; 8];
    let (mut rest, mut at) = (device, digits.len());
    loop {
        at -= 1;
        let digit = (rest % 36) as u8;
        digits[at] = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        rest /= 36;
        if rest == 0 {
            break;
        }
    }
    at -= 1;
    digits[at] = b'd';
    // Digits and lower-case letters only: an id by its grammar.
    String::from_utf8_lossy(&digits[at..])
        .parse()
        .unwrap_or_else(|_| unreachable!("a base 36 number is an id"))
}

fn draw(rng: &mut Rng, sites: u32, faults: &Faults) -> Traits {
    let link = {
        let at = rng.unit();
        let edges = [faults.offline, faults.nightly, faults.flaky];
        if at < edges[0] {
            Link::Never
        } else if at < edges[0] + edges[1] {
            Link::Nightly { from: rng.below(24) as u8, hours: 6 + rng.below(6) as u8 }
        } else if at < edges.iter().sum() {
            Link::Flaky
        } else {
            Link::Steady
        }
    };
    let bad_hours = if rng.chance(faults.chronic) {
        rng.between(0.1, 0.5)
    } else if faults.bad_hours > 0.0 {
        // Most devices are far below the mean, a few far above.
        rng.beta(0.5, 0.5 * (1.0 - faults.bad_hours) / faults.bad_hours)
    } else {
        0.0
    };
    Traits {
        // Sites of unequal size.
        site: (f64::from(sites) * rng.unit().powf(1.3)) as u16,
        hardware: [0, 1, 1, 1, 2, 2][rng.below(6) as usize],
        link,
        slow: if rng.chance(faults.slow_link) { 100.0 } else { rng.between(0.5, 2.0) as f32 },
        bad_hours: bad_hours as f32,
        p95: (12.0 * rng.lognormal(0.3)) as f32,
        clock: if rng.chance(faults.clock_jumps) { rng.below(24) as i8 - 12 } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_lead_back_to_their_devices() {
        let fleet = Fleet::new(3_000, 50, 1, &Faults::usual());
        for device in [0, 1, 35, 36, 1_296, 2_999] {
            assert_eq!(fleet.number(fleet.id(device)), Some(device));
        }
        assert_eq!(fleet.number(&"d2bd".parse().unwrap()), None);
    }

    #[test]
    fn a_device_that_is_away_comes_back_unless_it_never_was_there() {
        let fleet = Fleet::new(2_000, 50, 3, &Faults::harsh());
        for device in 0..fleet.len() {
            for at in (20_000 * DAY..20_002 * DAY).step_by(7 * 60_000) {
                match fleet.connected(device, at) {
                    None => assert_eq!(fleet.traits(device).link, Link::Never),
                    Some(next) => {
                        assert!((at..at + 13 * HOUR).contains(&next));
                        assert_eq!(fleet.connected(device, next), Some(next), "{:?}", fleet.traits(device));
                    }
                }
            }
        }
    }

    #[test]
    fn outages_are_as_frequent_as_asked() {
        let fleet = Fleet::new(10, 50, 3, &Faults { outages: 0.5, ..Faults::none() });
        let bad = (0..200 * 24).filter(|hour| fleet.outage(0, DAY * 20_000 + hour * HOUR)).count();
        // 100 outages of two hours on average, some of which overlap.
        assert!((150..=220).contains(&bad), "{bad}");
    }
}
