//! Errors: first bad windows (relative, against the controls) and device-hours (absolute).
//!
//! A device counts once: it leaves the risk set at its first bad window. Counting windows instead would
//! let 2 % chronically bad devices abort 16 to 20 % of harmless rollouts (DECISIONS 21).
//!
//! **Late and reordered reports** are taken in order of arrival, with the numbers at risk known then. The
//! filtration is that of arrivals: the factor stays a supermartingale as long as, among devices that have
//! not reported a bad window yet, the next report comes from a canary with probability at most `th(rho)`.
//! Delays with one distribution for both arms (randomised assignment, blind ingest) keep that; a canary
//! whose reports travel faster looks worse for a while by at most the share of reports in flight, which
//! the margin (1.25) absorbs. A late clean hour moves nothing.
//!
//! **Outages**: devices of a site that fail together are not independent draws. Of the bad windows of one
//! site and hour only the first `max(1, min(devices / 20, 5))` are drawn; all leave the risk set. The
//! choice looks at order and place and never at the arm, so it is a predictable thinning: still valid.

use super::bounded::{Influence, Slices, hash};
use super::logrank::LogRank;
use super::mixture::{SAFE_RATIOS, ln_bernoulli};
use super::observation::Arm;
use edgefleet_shared::ids::DeviceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Risk sets: one per stratum and cohort; further strata of a cohort share one. A cohort has the same shares in
/// every stratum, so sharing is valid and costs only power; cohorts never share.
const STRATA: usize = 256;
/// Sites are told apart by a hash into so many places; those that share one share an outage allowance.
const SITES: u32 = 64;
const EXAMPLES: usize = 5;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")] // many of them, in a document that is saved often
struct AtRisk {
    canaries: u32,
    controls: u32,
}

impl From<(u32, u32)> for AtRisk {
    fn from((canaries, controls): (u32, u32)) -> Self {
        Self { canaries, controls }
    }
}
impl From<AtRisk> for (u32, u32) {
    fn from(at_risk: AtRisk) -> Self {
        (at_risk.canaries, at_risk.controls)
    }
}

/// Where a device is at risk: its stratum, and the stage whose canaries it came with. A later stage brings
/// fresh canaries; controls that have been at risk since an earlier one without a bad window are the
/// healthier ones, and comparing the two would blame the candidate for that.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) cohort: u16,
    pub(super) stratum: &'a str,
    pub(super) site: &'a str,
}

impl Place<'_> {
    fn risk_set(self) -> u32 {
        hash(self.stratum) ^ u32::from(self.cohort).wrapping_mul(0x9e37_79b9)
    }
}

impl AtRisk {
    fn of(&mut self, arm: Arm) -> &mut u32 {
        match arm {
            Arm::Canary => &mut self.canaries,
            Arm::Control => &mut self.controls,
        }
    }
}

/// Devices of a site and how many draws its last two hours with bad windows have used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Site {
    devices: u32,
    hours: [(u32, u8); 2],
}

impl Site {
    fn may_draw(&mut self, hour: u32) -> bool {
        let allowed = (self.devices / 20).clamp(1, 5) as u8;
        if self.hours[0].0 != hour {
            self.hours.swap(0, 1);
            if self.hours[0].0 != hour {
                self.hours[0] = (hour, 0);
            }
        }
        let used = &mut self.hours[0].1;
        let may = *used < allowed;
        *used += u8::from(may);
        may
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Errors {
    strata: BTreeMap<u32, AtRisk>,
    rest: BTreeMap<u16, AtRisk>,
    sites: BTreeMap<u32, Site>,
    relative: LogRank,
    /// Draws per arm, the sum of the odds (canaries over controls at risk) of all draws, and events that
    /// were part of an outage already drawn.
    pub(super) canary_events: u32,
    pub(super) control_events: u32,
    odds: f64,
    pub(super) merged: u32,
    pub(super) canary_hours: u64,
    pub(super) canary_bad_hours: u64,
    pub(super) control_hours: u64,
    pub(super) control_bad_hours: u64,
    clean: Influence,
    pub(super) slices: Slices,
    pub(super) examples: Vec<DeviceId>,
}

impl Errors {
    pub(super) fn join(&mut self, arm: Arm, place: Place<'_>) {
        let key = place.risk_set();
        let known = self.strata.contains_key(&key) || self.strata.len() < STRATA;
        let at_risk = match known {
            true => self.strata.entry(key).or_default(),
            false => self.rest.entry(place.cohort).or_default(),
        };
        let n = at_risk.of(arm);
        *n = n.saturating_add(1);
        let site = self.sites.entry(hash(place.site) % SITES).or_default();
        site.devices = site.devices.saturating_add(1);
        if arm == Arm::Canary {
            self.slices.add(place.stratum, 0.0, 1.0);
        }
    }

    /// Takes a device out of the risk set; the numbers just before, or `None` if none was at risk.
    pub(super) fn leave(&mut self, arm: Arm, place: Place<'_>) -> Option<(u32, u32)> {
        let at_risk = match self.strata.get_mut(&place.risk_set()) {
            Some(at_risk) => at_risk,
            None => self.rest.get_mut(&place.cohort)?,
        };
        let before = (at_risk.canaries, at_risk.controls);
        let n = at_risk.of(arm);
        *n = n.checked_sub(1)?;
        if let Some(site) = self.sites.get_mut(&(hash(place.site) % SITES)) {
            site.devices = site.devices.saturating_sub(1);
        }
        Some(before)
    }

    pub(super) fn first_bad(
        &mut self,
        device: &DeviceId,
        arm: Arm,
        place: Place<'_>,
        hour: u64,
        margin: f64,
    ) {
        let hour = u32::try_from(hour).unwrap_or(u32::MAX);
        let Some((canaries, controls)) = self.leave(arm, place) else { return };
        let may_draw = self.sites.entry(hash(place.site) % SITES).or_default().may_draw(hour);
        if arm == Arm::Canary {
            self.slices.add(place.stratum, 1.0, 0.0);
            if !self.examples.contains(device) {
                self.examples.truncate(EXAMPLES - 1);
                self.examples.insert(0, device.clone());
            }
        }
        if !may_draw {
            self.merged = self.merged.saturating_add(1);
            return;
        }
        let (n_c, n_b) = (f64::from(canaries), f64::from(controls));
        self.relative.draw(arm == Arm::Canary, 1.0, n_c, n_b, margin);
        if canaries > 0 && controls > 0 {
            let count = match arm {
                Arm::Canary => &mut self.canary_events,
                Arm::Control => &mut self.control_events,
            };
            *count = count.saturating_add(1);
            self.odds += n_c / n_b;
        }
    }

    pub(super) fn device_hour(&mut self, device: &DeviceId, arm: Arm, bad: bool) {
        let (hours, bad_hours) = match arm {
            Arm::Canary => (&mut self.canary_hours, &mut self.canary_bad_hours),
            Arm::Control => (&mut self.control_hours, &mut self.control_bad_hours),
        };
        *hours = hours.saturating_add(1);
        *bad_hours = bad_hours.saturating_add(u64::from(bad));
        if arm == Arm::Canary && !bad {
            self.clean.add(device, 1.0);
        }
    }

    /// ln E and its leave-one-out bound.
    pub(super) fn ln_harm(&self) -> (f64, f64) {
        (self.relative.ln_harm(), self.relative.ln_harm_without_one())
    }

    /// The same against "at least `margin` times the controls' rate".
    pub(super) fn ln_safe_relative(&self) -> (f64, f64) {
        (self.relative.ln_safe(), self.relative.ln_safe_without_one())
    }

    /// Against "at least `max_rate` of canary device-hours are bad": the Bernoulli mixture of 6.4 (d) on
    /// hours, an e-process whenever P(bad hour | past) >= max_rate (DECISIONS 22). Removing a device takes
    /// at most `clean.most()` clean hours; its bad hours, if any, would only raise the value.
    pub(super) fn ln_safe_absolute(&self, max_rate: f64) -> (f64, f64) {
        let bad = self.canary_bad_hours as f64;
        let clean = self.canary_hours as f64 - bad;
        let at = |clean: f64| ln_bernoulli(bad, clean.max(0.0), max_rate, &SAFE_RATIOS);
        (at(clean), at(clean - self.clean.most()))
    }

    /// Devices with clean hours, exact up to 16.
    pub(super) fn devices_with_hours(&self) -> u32 {
        self.clean.devices()
    }

    /// Mean odds of the draws; 1 before the first.
    pub(super) fn mean_odds(&self) -> f64 {
        let events = f64::from(self.canary_events) + f64::from(self.control_events);
        if events > 0.0 { self.odds / events } else { 1.0 }
    }
}
