//! What a plan would do to this fleet: shown before anything is started.
//!
//! Pure: plan, membership and what is known of the fleet in; numbers and sentences out.

mod find;
mod pace;
#[cfg(test)]
mod tests;
mod warn;

use crate::{
    evidence::{
        Gate, GateSettings,
        power::{GatePower, StageForecast},
    },
    registry::ability::Ability,
    rollout::{Arm, FreezePeriod, Member, Membership, Mode, Plan, PlanMistake, Share, Span, Stratum},
    transfer::Limits,
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, SlotName},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of the fleet. `None`: not known; the preview then says what it assumed.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetFacts {
    pub now: Timestamp,
    /// Devices the selectors chose; the plan may reach fewer.
    pub selected: u64,
    /// Which of them can run the bundle.
    pub able: Option<Ability>,
    /// Bytes a device fetches for the bundle.
    pub download: u64,
    pub links: Limits,
    /// Selected devices that are connected now.
    pub online: Option<u64>,
    /// Of telemetry of the incumbents: share of device-hours with a bad window ...
    pub bad_rate: Option<f64>,
    /// ... requests per device and hour, which a shadow sees too ...
    pub requests_per_hour: Option<f64>,
    /// ... labelled inputs per device and hour ...
    pub labels_per_hour: Option<f64>,
    /// ... and standard deviation of the logarithm of a device's p95 from one hour to the next.
    pub latency_spread: Option<f64>,
    /// The freeze calendar.
    pub freezes: Vec<FreezePeriod>,
}

/// The whole of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preview {
    pub slot: SlotName,
    pub bundle: BundleName,
    /// What makes the plan unusable, each with its place; the rest is then as far as it goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mistakes: Vec<Mistake>,
    /// What a person should know before agreeing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What was not known and taken for granted, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub assumed: Vec<String>,
    /// Devices the plan reaches.
    pub devices: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub online: Option<u64>,
    /// Which of the selected devices can run the bundle, as far as they say what they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub able: Option<Ability>,
    /// Drawn by lot to be compared, up to the stage they are compared in.
    pub canaries: u64,
    pub controls: u64,
    /// Those that have any devices, and the attributes that make them.
    pub strata: Vec<Stratum>,
    pub strata_by: Vec<String>,
    pub stages: Vec<StagePreview>,
    /// Chance that a harmless bundle is stopped by statistics, over the whole rollout.
    pub false_alarms: f64,
    /// Of a harmless bundle, if devices behave as simulated.
    pub expected: Span,
    /// If every stage needs its longest soak.
    pub longest: Span,
    /// Bytes devices fetch in all, and one of them.
    pub bytes: u64,
    pub bytes_per_device: u64,
}

/// As [`PlanMistake`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mistake {
    pub path: String,
    pub problem: String,
}

impl From<&PlanMistake> for Mistake {
    fn from(mistake: &PlanMistake) -> Self {
        Self { path: mistake.path.clone(), problem: mistake.problem.clone() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagePreview {
    pub name: String,
    pub mode: Mode,
    /// Devices that have their turn in it.
    pub devices: u64,
    /// Devices that had it before, or have it then.
    pub reached: u64,
    /// A person has to agree before it begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
    /// A few of them, in the order of their turns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<DeviceId>,
    /// From the first hand-out until enough have it for the soak to begin.
    pub delivery: Span,
    pub limited_by: LimitedBy,
    pub soak: Span,
    /// As the simulation of its gates says: it ends as soon as all are safe, and waits for those that are not.
    pub expected_soak: Span,
    pub max_soak: Span,
    pub bytes: u64,
    pub gates: Vec<GatePreview>,
}

/// What sets the pace of a stage's hand-outs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitedBy {
    /// Nobody has to wait for another device.
    Nothing,
    Rate,
    Concurrency,
    /// Redundancy groups: few of each may be under way at a time.
    Groups,
    Bandwidth,
    BytesPerDay,
    Spread,
}

/// What a gate can find in a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GatePreview {
    pub gate: Gate,
    /// Can never decide here: a person has to vouch for it.
    pub powerless: bool,
    pub sentence: String,
    /// (size of harm, share of simulated runs in which it was found).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub detection: Vec<(f64, f64)>,
    /// Smallest harm found in at least 80 % of runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smallest_found: Option<f64>,
    /// Median hours until a harmless bundle is called safe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours_to_safe: Option<f64>,
}

impl GatePreview {
    /// Its figures were found by simulation: there are none for drift, whose sizes of harm have no scale.
    pub fn is_simulated(&self) -> bool {
        !self.detection.is_empty()
    }
}

/// Share of a stage's devices that have to be finished before its soak begins, where the plan says nothing;
/// the last stage waits for all of them.
const COVERAGE: Share = Share::Percent(90.0);
const ALL: Share = Share::Percent(100.0);
/// No stage that asks gates ends earlier, however good they look; a shorter soak is its own bound.
const LEAST_SOAK: Span = Span::hours(1);
/// Devices of a stage that are named.
const NAMED: usize = 5;

/// Redundancy groups among `turns`: devices of each, and how many of them may be under way at a time.
fn groups(plan: &Plan, membership: &Membership, turns: &[&Member]) -> Vec<(u64, u64)> {
    let Some((_, share)) = plan.group_rule() else { return Vec::new() };
    let mut sizes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for group in membership.members.iter().filter_map(|member| member.group.as_deref()) {
        sizes.entry(group).or_default().1 += 1;
    }
    for group in turns.iter().filter_map(|member| member.group.as_deref()) {
        sizes.entry(group).or_default().0 += 1;
    }
    sizes
        .into_values()
        .map(|(here, all)| (here, share.of(all).max(1)))
        .filter(|(here, _)| *here > 0)
        .collect()
}

/// What `plan` would do to `membership`.
///
/// `mistakes`: what the plan's check found. `power`: [`forecast`](crate::evidence::power::forecast) with a seed
/// of the caller's choice; asked once per stage that has gates.
pub fn preview(
    plan: &Plan,
    mistakes: &[PlanMistake],
    membership: &Membership,
    facts: &FleetFacts,
    power: impl Fn(&StageForecast, &GateSettings) -> Vec<GatePower>,
) -> Preview {
    let mut settled = plan.clone();
    settled.settle();
    let plan = &settled;
    let members = membership.members.len() as u64;
    let limits = &plan.limits;
    let concurrency = limits.concurrency.of(members).max(limits.concurrency_min).max(1);
    let last_canaries = membership.summary.canary_stage.unwrap_or(u16::MAX);
    let arms = |arm| {
        let compared = |member: &&Member| member.arm == arm && member.cohort <= last_canaries;
        membership.members.iter().filter(compared).count() as u64
    };

    let mut stages = Vec::new();
    let (mut reached, mut successes) = (0, 0);
    // Who shadowed it has the bytes already.
    let mut fetched = std::collections::BTreeSet::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        let here = |member: &&Member| match stage.mode {
            Mode::Shadow => member.shadow.map(usize::from) == Some(index),
            Mode::Active => usize::from(member.stage) == index,
        };
        let turns: Vec<_> = membership.members.iter().filter(here).collect();
        let devices = turns.len() as u64;
        let new = turns.iter().filter(|member| fetched.insert(member.rank)).count() as u64;
        let bytes = facts.download.saturating_mul(new);
        let delivery = pace::deliver(&pace::Turns {
            plan,
            links: &facts.links,
            mode: stage.mode,
            devices,
            download: bytes.checked_div(devices).unwrap_or(0),
            concurrency,
            groups: groups(plan, membership, &turns),
            spread: stage.spread,
            wanted: stage.coverage.unwrap_or(if plan.is_last(index) { ALL } else { COVERAGE }).of(devices),
            successes,
        });
        if stage.mode == Mode::Active {
            reached += devices;
            successes += devices;
        }
        let waits = |span| Span::secs(plan.wait(span).as_secs_f64().ceil() as u64);
        let gates = find::gates(plan, index, membership, facts, &power);
        let (soak, max_soak) = (waits(stage.soak), waits(stage.max_soak()));
        stages.push(StagePreview {
            name: stage.name.clone(),
            mode: stage.mode,
            devices,
            reached,
            approval: stage.approval,
            first: turns.iter().take(NAMED).map(|member| member.device.clone()).collect(),
            delivery: Span::secs(delivery.secs.ceil() as u64),
            limited_by: delivery.limited_by,
            soak,
            expected_soak: find::expected_soak(&gates, waits(LEAST_SOAK), soak, max_soak),
            max_soak,
            bytes,
            gates,
        });
    }
    let total = |soak: fn(&StagePreview) -> Span| {
        Span::secs(stages.iter().map(|s| s.delivery.as_secs().saturating_add(soak(s).as_secs())).sum())
    };
    let mut preview = Preview {
        slot: plan.rollout.slot.clone(),
        bundle: plan.rollout.bundle.clone(),
        mistakes: mistakes.iter().map(Mistake::from).collect(),
        warnings: Vec::new(),
        assumed: find::assumed(plan, facts),
        devices: members,
        online: facts.online,
        able: facts.able.clone(),
        canaries: arms(Arm::Canary),
        controls: arms(Arm::Control),
        strata: membership.summary.strata.iter().filter(|stratum| stratum.devices > 0).cloned().collect(),
        strata_by: plan.assign.strata.clone(),
        false_alarms: plan.gates.alpha,
        expected: total(|stage| stage.expected_soak),
        longest: total(|stage| stage.max_soak),
        bytes: stages.iter().map(|stage| stage.bytes).sum(),
        bytes_per_device: facts.download,
        stages,
    };
    preview.warnings = warn::warnings(plan, membership, facts, &preview);
    preview
}
