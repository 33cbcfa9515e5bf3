use super::*;
use crate::{
    rollout::{Candidate, Seed, plan_members},
    transfer::Limits,
};
use std::{collections::BTreeMap, time::Duration};

fn facts(selected: u64) -> FleetFacts {
    FleetFacts {
        now: Timestamp::from_secs(1_795_417_490),
        selected,
        able: None,
        download: 10 << 20,
        links: Limits::default(),
        online: None,
        bad_rate: None,
        requests_per_hour: None,
        labels_per_hour: None,
        latency_spread: None,
        freezes: Vec::new(),
    }
}

fn plan() -> Plan {
    Plan::new("digits".parse().unwrap(), "digits@2".parse().unwrap())
}

/// `n` devices of two sites and one kind of hardware.
fn membership(plan: &Plan, n: u64) -> Membership {
    let ids: Vec<DeviceId> = (0..n).map(|i| format!("dev-{i:05}").parse().unwrap()).collect();
    let attributes: Vec<BTreeMap<String, String>> = (0..n)
        .map(|i| [("hardware", "pi4"), ("site", ["north", "south"][usize::from(i % 2 == 1)])])
        .map(|all| all.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
        .collect();
    let candidates: Vec<_> = ids
        .iter()
        .zip(&attributes)
        .map(|(device, attributes)| Candidate { device, attributes, incumbent: None })
        .collect();
    plan_members(plan, &Seed::new([7; 32]), &candidates)
}

/// Gates that find 3x: what the simulation would say, without its time.
fn power(stage: &StageForecast, settings: &GateSettings) -> Vec<GatePower> {
    let gates = settings.gates.iter();
    gates
        .map(|gate| GatePower {
            gate: *gate,
            detection: vec![(1.5, 0.1), (2.0, 0.4), (3.0, 0.85), (5.0, 0.99)],
            false_aborts: 0.0,
            smallest_found: Some(3.0),
            hours_to_safe: Some(stage.hours / 2.0),
            powerless: false,
            sentence: format!("finds 3x with {} canaries", stage.canaries),
        })
        .collect()
}

fn seen(plan: &Plan, n: u64, facts: &FleetFacts) -> Preview {
    preview(plan, &[], &membership(plan, n), facts, power)
}

#[test]
fn every_device_has_its_turn_once_and_stages_add_up() {
    for n in [1, 7, 49, 200, 3_000] {
        let preview = seen(&plan(), n, &facts(n));
        let active = preview.stages.iter().filter(|stage| stage.mode == Mode::Active);
        assert_eq!(active.map(|stage| stage.devices).sum::<u64>(), n, "{n}");
        assert_eq!(preview.stages.last().map(|stage| stage.reached), Some(n));
        // Who shadows a bundle does not fetch it again.
        assert_eq!(preview.bytes, n * (10 << 20));
        let parts =
            preview.stages.iter().map(|s| s.delivery.as_secs() + s.expected_soak.as_secs()).sum::<u64>();
        assert_eq!(preview.expected.as_secs(), parts);
        assert!(preview.longest >= preview.expected);
    }
}

#[test]
fn gates_that_cannot_decide_are_declared_powerless_with_their_numbers() {
    for (n, blind) in [(20, true), (3_000, false)] {
        let preview = seen(&plan(), n, &facts(n));
        let canary = preview.stages.iter().find(|stage| stage.name == "canary").unwrap();
        let errors = canary.gates.iter().find(|gate| gate.gate == Gate::Errors).unwrap();
        assert_eq!(errors.powerless, blind, "{n}: {errors:?}");
        assert_eq!(errors.sentence.starts_with("powerless: "), blind);
        assert_eq!(errors.detection.is_empty(), blind, "what cannot be found has no chance of it");
        let warned = preview.warnings.iter().any(|warning| warning.contains("too small for errors"));
        assert_eq!(warned, blind, "{:?}", preview.warnings);
    }
}

#[test]
fn a_gate_without_anything_to_look_at_is_powerless_on_any_fleet() {
    let mut plan = plan();
    plan.stages.remove(0);
    plan.stages[0].gates = vec![Gate::Agreement, Gate::Accuracy];
    let sentences = |facts: &FleetFacts| {
        let preview = seen(&plan, 3_000, facts);
        preview.stages[0].gates.iter().map(|gate| (gate.powerless, gate.sentence.clone())).collect::<Vec<_>>()
    };
    let without = sentences(&facts(3_000));
    assert!(without[0].1.contains("in shadow") && without[1].1.contains("labels"), "{without:?}");
    let with = sentences(&FleetFacts { labels_per_hour: Some(4.0), ..facts(3_000) });
    assert!(with[0].0 && !with[1].0, "{with:?}");
}

#[test]
fn what_matters_is_said_and_nothing_else() {
    let quiet = Plan::single_stage("digits".parse().unwrap(), "digits@2".parse().unwrap(), plan().select);
    assert_eq!(seen(&quiet, 8, &facts(8)).warnings, Vec::<String>::new());
    assert_eq!(seen(&quiet, 8, &facts(8)).assumed, Vec::<String>::new(), "no gate, nothing assumed");

    let mut plan = quiet.clone();
    plan.stages[0].devices = vec!["dev-elsewhere".parse().unwrap()];
    plan.time_scale = 60.0;
    plan.rollout.allow_downgrade = Some("1 is the good one".into());
    let now = facts(10).now;
    let freeze = |name: &str, from: u64, slots: &[&str]| FreezePeriod {
        name: name.into(),
        from: now + Duration::from_secs(from),
        until: now + Duration::from_secs(from + 3_600),
        slots: slots.iter().map(|slot| slot.parse().unwrap()).collect(),
        reason: String::new(),
    };
    let freezes = vec![freeze("sale", 1, &[]), freeze("later", 864_000, &[]), freeze("other", 1, &["other"])];
    let facts = FleetFacts { online: Some(6), freezes, ..facts(10) };
    let warnings = preview(&plan, &[], &membership(&quiet, 8), &facts, power).warnings;
    for wanted in
        ["dev-elsewhere", "2 of 10 selected", "2 of 8 devices are offline", "`sale`", "60 times", "good one"]
    {
        assert!(warnings.iter().any(|warning| warning.contains(wanted)), "{wanted}: {warnings:?}");
    }
    assert!(!warnings.iter().any(|warning| warning.contains("later") || warning.contains("`other`")));
    assert_eq!(seen(&quiet, 0, &facts).warnings.len(), 1, "nobody is selected; nothing else matters");
}

#[test]
fn a_slow_stage_names_its_limit() {
    let preview = seen(&plan(), 3_000, &facts(3_000));
    let all = preview.stages.last().unwrap();
    assert_eq!(all.limited_by, LimitedBy::Concurrency);
    // 2,250 devices, all of them in waves of 60, two hours each.
    assert!((74.0..80.0).contains(&(all.delivery.as_secs() as f64 / 3_600.0)), "{}", all.delivery);
    let said = preview.warnings.iter().any(|warning| warning.contains("`limits.concurrency`"));
    assert!(said, "{:?}", preview.warnings);
}

#[test]
fn mistakes_are_shown_beside_what_can_be_said() {
    let mistake =
        PlanMistake { path: "stages[1].size".into(), problem: "is smaller than the stage before".into() };
    let preview = preview(&plan(), &[mistake], &membership(&plan(), 5), &facts(5), power);
    assert_eq!(preview.mistakes.len(), 1);
    let text = serde_json::to_string(&preview).unwrap();
    assert_eq!(serde_json::from_str::<Preview>(&text).unwrap(), preview);
}

#[test]
fn a_stage_ends_when_its_gates_are_safe_and_waits_for_those_that_are_not() {
    let gate = |gate, powerless, hours_to_safe| GatePreview {
        gate,
        powerless,
        sentence: String::new(),
        // As preview has it: no figures for what cannot decide, or is not simulated.
        detection: if powerless || gate == Gate::Drift { Vec::new() } else { vec![(2.0, 0.5)] },
        smallest_found: None,
        hours_to_safe,
    };
    let hard = || gate(Gate::Hard, false, None);
    let soak = |gates: &[GatePreview]| {
        find::expected_soak(gates, Span::hours(1), Span::hours(24), Span::hours(72)).as_secs() / 3_600
    };
    for (gates, hours) in [
        (vec![], 24),
        (vec![hard()], 24),
        (vec![hard(), gate(Gate::Errors, false, Some(5.0))], 5),
        (vec![gate(Gate::Errors, false, Some(5.0)), gate(Gate::Latency, false, Some(9.0))], 9),
        (vec![gate(Gate::Errors, false, Some(5.0)), gate(Gate::Drift, false, None)], 5),
        (vec![gate(Gate::Errors, false, Some(0.1))], 1),
        (vec![gate(Gate::Errors, false, None), gate(Gate::Latency, false, Some(9.0))], 72),
        (vec![gate(Gate::Errors, true, None), gate(Gate::Latency, false, Some(9.0))], 24),
    ] {
        assert_eq!(soak(&gates), hours, "{gates:?}");
    }
}

/// With the real simulation: figures are there for every gate that can decide, and the same each time.
#[test]
fn figures_come_from_simulating_this_plan_at_this_size() {
    let plan = plan();
    let members = membership(&plan, 1_200);
    let forecast =
        |stage: &StageForecast, gates: &GateSettings| crate::evidence::power::forecast(stage, gates, 7);
    let facts = FleetFacts { requests_per_hour: Some(60.0), ..facts(1_200) };
    let shown = preview(&plan, &[], &members, &facts, forecast);
    let gates = shown.stages.iter().flat_map(|stage| &stage.gates).filter(|gate| gate.gate != Gate::Hard);
    let gates = gates.filter(|gate| gate.gate != Gate::Drift);
    let silent: Vec<_> = gates.filter(|gate| gate.powerless == gate.is_simulated()).collect();
    assert_eq!(silent, Vec::<&GatePreview>::new());
    assert_eq!(preview(&plan, &[], &members, &facts, forecast), shown);
}
