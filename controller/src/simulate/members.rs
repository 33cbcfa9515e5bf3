//! The membership, small: where every device stands, by rank.

use super::fleet::Fleet;
use crate::rollout::{Arm, Member, Membership, MembershipSummary};
use std::{collections::BTreeMap, sync::Arc};

/// A [`Member`] without its texts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub device: u32,
    pub stage: u16,
    pub shadow: Option<u16>,
    pub arm: Arm,
    pub stratum: u16,
    pub match_of: Option<u32>,
    pub cohort: u16,
    pub rank: u64,
}

impl Place {
    pub(super) fn is_canary(self) -> bool {
        self.arm == Arm::Canary
    }
}

#[derive(Default)]
pub(super) struct Members {
    pub summary: MembershipSummary,
    places: Vec<Place>,
    /// Member by device; `u32::MAX`: none.
    of_device: Vec<u32>,
    /// Members with their turn in a stage, by rank.
    active: Vec<Vec<u32>>,
    shadow: Vec<Vec<u32>>,
    /// By stage and rank: the order of sweeps.
    sweep: Vec<u32>,
    /// The canary and its controls.
    matched: BTreeMap<u32, (Option<u32>, Vec<u32>)>,
    pub again: super::driver::Again,
    /// When the queue holds a deadline of the member, milliseconds; `u64::MAX`: it holds none.
    pub planned: Vec<u64>,
}

impl Members {
    pub(super) fn new(membership: Membership, fleet: &Fleet, stages: usize) -> Self {
        let mut members = Self {
            summary: membership.summary,
            of_device: vec![u32::MAX; fleet.len() as usize],
            active: vec![Vec::new(); stages],
            shadow: vec![Vec::new(); stages],
            ..Self::default()
        };
        members.places.reserve_exact(membership.members.len());
        for member in membership.members {
            members.add(&member, fleet);
        }
        members.sweep = members.active.concat();
        members
    }

    pub(super) fn add(&mut self, member: &Member, fleet: &Fleet) {
        let Some(device) = fleet.number(&member.device) else { return };
        let number = self.places.len() as u32;
        self.places.push(Place {
            device,
            stage: member.stage,
            shadow: member.shadow,
            arm: member.arm,
            stratum: member.stratum,
            match_of: member.match_of,
            cohort: member.cohort,
            rank: member.rank,
        });
        self.planned.push(u64::MAX);
        self.of_device[device as usize] = number;
        self.active[usize::from(member.stage)].push(number);
        if let Some(stage) = member.shadow {
            self.shadow[usize::from(stage)].push(number);
        }
        if let Some(match_of) = member.match_of {
            let entry = self.matched.entry(match_of).or_default();
            if member.arm == Arm::Control { entry.1.push(number) } else { entry.0 = Some(number) }
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.places.len() as u32
    }
    pub(super) fn place(&self, member: u32) -> Place {
        self.places[member as usize]
    }
    pub(super) fn of_device(&self, device: u32) -> Option<u32> {
        self.of_device.get(device as usize).copied().filter(|member| *member != u32::MAX)
    }
    pub(super) fn active(&self, stage: u16) -> &[u32] {
        self.active.get(usize::from(stage)).map(Vec::as_slice).unwrap_or_default()
    }
    pub(super) fn shadow(&self, stage: u16) -> &[u32] {
        self.shadow.get(usize::from(stage)).map(Vec::as_slice).unwrap_or_default()
    }
    pub(super) fn sweep(&self) -> &[u32] {
        &self.sweep
    }
    pub(super) fn controls(&self, match_of: u32) -> &[u32] {
        self.matched.get(&match_of).map(|(_, controls)| controls.as_slice()).unwrap_or_default()
    }
    pub(super) fn canary(&self, match_of: u32) -> Option<u32> {
        self.matched.get(&match_of).and_then(|(canary, _)| *canary)
    }

    /// The member with its texts again.
    pub(super) fn member(&self, number: u32, fleet: &Fleet, group_label: Option<&str>) -> Member {
        let place = self.place(number);
        let attributes = fleet.attributes(place.device);
        let text = |key: &str| attributes.get(key).map(|value| Arc::<str>::from(value.as_str()));
        Member {
            device: fleet.id(place.device).clone(),
            stage: place.stage,
            shadow: place.shadow,
            arm: place.arm,
            stratum: place.stratum,
            site: text("site").unwrap_or_else(|| Arc::from("")),
            group: group_label.and_then(text),
            rank: place.rank,
            match_of: place.match_of,
            cohort: place.cohort,
        }
    }

    pub(super) fn stratum(&self, number: u16) -> &str {
        self.summary.strata.get(usize::from(number)).map_or("", |stratum| stratum.name.as_str())
    }
}
