//! What a person should know about a plan before agreeing to it.

use super::{FleetFacts, LimitedBy, Preview};
use crate::{
    evidence::Gate,
    rollout::{Membership, Plan, Span},
};
use std::collections::BTreeSet;

/// Deliveries longer than this are worth a word about their limit.
const LONG: Span = Span::days(1);

/// One sentence each, the weightiest first.
pub(super) fn warnings(
    plan: &Plan,
    membership: &Membership,
    facts: &FleetFacts,
    preview: &Preview,
) -> Vec<String> {
    let mut all = Vec::new();
    if preview.devices == 0 {
        all.push("nobody is selected: the rollout would do nothing".to_owned());
        return all;
    }
    powerless(preview, &mut all);
    slow(preview, &mut all);
    members(plan, membership, facts, preview, &mut all);
    times(plan, facts, preview, &mut all);
    rights(plan, &mut all);
    all
}

fn powerless(preview: &Preview, all: &mut Vec<String>) {
    for stage in &preview.stages {
        let blind: Vec<_> = stage.gates.iter().filter(|g| g.powerless).map(|g| g.gate.name()).collect();
        if !blind.is_empty() {
            all.push(format!(
                "stage `{}` is too small for {}: it ends by its other gates and a named person's approval, never by silence",
                stage.name,
                blind.join(", ")
            ));
        }
    }
}

/// Stages that a harmless bundle is not expected to pass within their soak.
fn slow(preview: &Preview, all: &mut Vec<String>) {
    for stage in &preview.stages {
        let late = stage
            .gates
            .iter()
            .filter(|gate| gate.is_simulated() && gate.hours_to_safe.is_none())
            .map(|gate| gate.gate.name());
        let late: Vec<_> = late.collect();
        if !late.is_empty() {
            all.push(format!(
                "stage `{}` is likely to need more than its soak of {}: {} would not be called safe by then",
                stage.name,
                stage.soak,
                late.join(", ")
            ));
        }
    }
}

fn members(
    plan: &Plan,
    membership: &Membership,
    facts: &FleetFacts,
    preview: &Preview,
    all: &mut Vec<String>,
) {
    let known: BTreeSet<_> = membership.members.iter().map(|member| &member.device).collect();
    for stage in &plan.stages {
        let missing: Vec<_> =
            stage.devices.iter().filter(|device| !known.contains(device)).map(ToString::to_string).collect();
        if !missing.is_empty() {
            all.push(format!(
                "stage `{}` names devices that are not selected: {}",
                stage.name,
                missing.join(", ")
            ));
        }
    }
    if let Some(able) = facts.able.as_ref().filter(|able| !able.is_full()) {
        let fate =
            if able.lacking.is_empty() { "" } else { "; those that cannot will refuse it as incompatible" };
        all.push(format!("{able}, as far as they say what they are{fate}"));
    }
    if facts.selected > preview.devices {
        let left = facts.selected - preview.devices;
        all.push(format!("{left} of {} selected devices are left out by the plan", facts.selected));
    }
    if let Some(online) = facts.online.filter(|online| *online < preview.devices) {
        all.push(format!(
            "{} of {} devices are offline now; they get it when they come back, and no stage waits for those silent for {}",
            preview.devices - online,
            preview.devices,
            plan.timeouts.seen
        ));
    }
    // The named devices of a lab are a stratum of their own, and no part of a comparison.
    let strata: Vec<_> = preview.strata.iter().filter(|stratum| stratum.name != "(named)").collect();
    let unseen = strata.iter().filter(|stratum| stratum.canaries == 0).count();
    if preview.canaries > 0 && unseen > 0 {
        let all_of = strata.len();
        all.push(format!(
            "{unseen} of {all_of} strata have no canary: what goes wrong only there is seen later"
        ));
    }
}

fn times(plan: &Plan, facts: &FleetFacts, preview: &Preview, all: &mut Vec<String>) {
    for stage in &preview.stages {
        if stage.delivery <= LONG {
            continue;
        }
        let why = match stage.limited_by {
            LimitedBy::Concurrency => format!(
                "at most {} devices at a time watch it for {}; `limits.concurrency` and `probation` set that",
                plan.limits.concurrency.of(preview.devices).max(plan.limits.concurrency_min),
                plan.probation
            ),
            LimitedBy::Rate => "`limits.start_per_min`, `growth` and `cap_per_min` set that".to_owned(),
            LimitedBy::Groups => "`assign.max_in_flight_per` sets that".to_owned(),
            LimitedBy::Bandwidth => "the controller's and the devices' byte budgets set that".to_owned(),
            LimitedBy::BytesPerDay => "`limits.bytes_per_day` sets that".to_owned(),
            // Asked for in so many words, or nobody waits at all.
            LimitedBy::Spread | LimitedBy::Nothing => continue,
        };
        all.push(format!("stage `{}` takes {} to deliver: {why}", stage.name, rounded(stage.delivery)));
    }
    let start = plan.start_at.map_or(facts.now, |at| at.max(facts.now));
    let end = start + std::time::Duration::from_secs(preview.expected.as_secs());
    let freezes = facts.freezes.iter().filter(|freeze| {
        let ours = freeze.slots.is_empty() || freeze.slots.contains(&plan.rollout.slot);
        ours && freeze.from < end && freeze.until > start
    });
    for freeze in freezes {
        all.push(format!(
            "freeze `{}` holds from {} until {}: nothing is handed out meanwhile, and the times here do not count it",
            freeze.name, freeze.from, freeze.until
        ));
    }
    if plan.window.is_some() {
        all.push(
            "devices switch inside their maintenance window only: each stage may take one window longer"
                .to_owned(),
        );
    }
    if plan.time_scale != 1.0 {
        all.push(format!("waiting times run {} times as fast; statistics do not", plan.time_scale));
    }
}

fn rights(plan: &Plan, all: &mut Vec<String>) {
    let used = plan.gates.used();
    if used.contains(&Gate::Accuracy) && used.contains(&Gate::Agreement) {
        all.push(
            "accuracy decides, so agreement only informs: a better model must be allowed to disagree"
                .to_owned(),
        );
    }
    if let Some(reason) = &plan.rollout.allow_downgrade {
        all.push(format!("an older release may replace a newer one: {reason}"));
    }
    if let Some(reason) = &plan.override_freeze {
        all.push(format!("freezes are overridden: {reason}"));
    }
}

/// Lengths of days need no seconds.
fn rounded(span: Span) -> Span {
    let step = if span.as_secs() >= 86_400 { 3_600 } else { 60 };
    Span::secs(span.as_secs().div_ceil(step) * step)
}
