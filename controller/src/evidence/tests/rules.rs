//! The rules of DECISIONS 21 to 26, as tables.

use crate::evidence::{
    Arm, ArmSizes, Assessment, Disagreement, Evidence, Gate, GateReport, GateSettings, HardFailure,
    Observation, Reporting, Verdict, Vote,
};
use edgefleet_shared::ids::DeviceId;
use std::collections::{BTreeMap, BTreeSet};

const ARMS: ArmSizes = ArmSizes { canaries: 20, compared: 20, controls: 60 };

fn device(i: usize) -> DeviceId {
    format!("d-{i}").parse().unwrap()
}

fn asking(gates: &[Gate]) -> GateSettings {
    GateSettings { gates: gates.iter().copied().collect(), ..GateSettings::default() }
}

fn after(settings: &GateSettings, observations: impl IntoIterator<Item = Observation>) -> Evidence {
    let mut evidence = Evidence::default();
    observations.into_iter().for_each(|o| evidence.observe(&o, settings));
    evidence
}

fn shadow(i: usize, n: u64, disagree: u64) -> Observation {
    Observation::Shadow { device: device(i), stratum: "pi4".into(), n, disagree, classes: BTreeMap::new() }
}

fn labels(i: usize, wins: u64, losses: u64) -> Observation {
    Observation::Labels {
        device: device(i),
        stratum: "pi4".into(),
        source: "controller".into(),
        both_right: 20,
        both_wrong: 2,
        wins,
        losses,
    }
}

fn first_bad(i: usize, arm: Arm, site: &str, hour: u64) -> Observation {
    Observation::FirstBad {
        device: device(i),
        arm,
        cohort: 0,
        stratum: "pi4".into(),
        site: site.into(),
        hour,
    }
}

fn joined(arm: Arm, count: usize, site: &str) -> impl Iterator<Item = Observation> {
    let site = site.to_owned();
    (0..count).map(move |_| Observation::Joined { arm, cohort: 0, stratum: "pi4".into(), site: site.clone() })
}

/// A candidate without a fault, on every gate of a plan.
fn clean_day(labelled: bool) -> Vec<Observation> {
    let mut all: Vec<_> = joined(Arm::Canary, 20, "a").chain(joined(Arm::Control, 60, "a")).collect();
    for hour in 0..24 {
        for i in 0..80 {
            let arm = if i < 20 { Arm::Canary } else { Arm::Control };
            all.push(Observation::DeviceHour { device: device(i), arm, bad: false });
            let classes = [("cat".to_owned(), 5), ("dog".to_owned(), 5)].into();
            all.push(Observation::Drift { device: device(i), arm, classes });
            if i < 20 {
                all.push(shadow(i, 30, 0));
            }
            if i < 20 && labelled && hour < 2 {
                all.push(labels(i, 0, 0));
            }
        }
    }
    for i in 0..20 {
        all.push(Observation::Latency { device: device(i), stratum: "pi4".into(), vote: Vote::NotSlower });
    }
    let all_in = |n| Reporting { expected: n, received: n };
    all.push(Observation::Telemetry { canary: all_in(20), control: all_in(60) });
    all
}

fn gate(assessment: &Assessment, gate: Gate) -> &GateReport {
    assessment.gate(gate).unwrap_or_else(|| panic!("no {gate}"))
}

#[test]
fn a_candidate_without_a_fault_passes_every_gate() {
    for labelled in [false, true] {
        let skipped = if labelled { Gate::Agreement } else { Gate::Accuracy };
        let gates: Vec<_> = Gate::ALL.into_iter().filter(|g| *g != skipped).collect();
        let settings = asking(&gates);
        let assessment = after(&settings, clean_day(labelled)).assess(&settings, &ARMS);
        for report in &assessment.gates {
            assert_eq!(report.verdict, Verdict::Pass, "{report:?}");
        }
        assert_eq!((assessment.verdict, assessment.gates.len()), (Verdict::Pass, 6));
    }
}

#[test]
fn nothing_seen_is_never_a_pass() {
    let settings = asking(&Gate::ALL[1..]);
    let assessment = Evidence::default().assess(&settings, &ARMS);
    assert!(assessment.gates.iter().all(|g| g.verdict != Verdict::Pass), "{assessment:?}");
    assert_eq!(assessment.verdict, Verdict::Inconclusive);
}

/// A gate that could not fail even if every canary got slower must not be waited for.
#[test]
fn latency_is_powerless_below_the_canaries_that_could_prove_harm() {
    let settings = asking(&[Gate::Errors, Gate::Latency, Gate::Agreement, Gate::Drift, Gate::Telemetry]);
    let needed = settings.canaries_needed(Gate::Latency);
    assert!(needed > settings.min_canaries && needed < 20, "{needed}");
    for (canaries, verdict) in [(needed - 1, Verdict::Powerless), (needed, Verdict::Fail)] {
        let vote = |i| Observation::Latency { device: device(i), stratum: "pi4".into(), vote: Vote::Slower };
        let evidence = after(&settings, (0..canaries as usize).map(vote));
        let assessment = evidence.assess(&settings, &ArmSizes { canaries, compared: canaries, controls: 60 });
        assert_eq!(gate(&assessment, Gate::Latency).verdict, verdict, "{canaries} of {needed}");
    }
}

#[test]
fn small_fleets_are_told_that_device_level_gates_are_powerless() {
    let settings = asking(&Gate::ALL);
    for (canaries, controls, powerless) in [(9, 60, true), (10, 19, true), (10, 20, false), (3, 0, true)] {
        let evidence = after(&settings, clean_day(true));
        let assessment = evidence.assess(&settings, &ArmSizes { canaries, compared: canaries, controls });
        for gate_ in [Gate::Errors, Gate::Latency, Gate::Drift, Gate::Telemetry] {
            let report = gate(&assessment, gate_);
            let powerless = powerless || canaries < settings.canaries_needed(gate_);
            assert_eq!(report.verdict == Verdict::Powerless, powerless, "{canaries} {controls}: {report:?}");
        }
        assert_eq!(gate(&assessment, Gate::Accuracy).verdict, Verdict::Pass);
        let powerless = powerless || canaries < settings.canaries_needed(Gate::Latency);
        assert_eq!(assessment.verdict == Verdict::Powerless, powerless);
    }
}

#[test]
fn one_or_two_devices_never_decide() {
    let settings = asking(&[Gate::Agreement]);
    for (devices, verdict) in [(1, Verdict::Inconclusive), (2, Verdict::Inconclusive), (3, Verdict::Fail)] {
        let windows = (0..50 * devices).map(|w| shadow(w % devices, 100, 50));
        let assessment = after(&settings, windows).assess(&settings, &ARMS);
        assert_eq!(assessment.verdict, verdict, "{devices} disagreeing: {assessment:?}");
        let windows = (0..50 * devices).map(|w| shadow(w % devices, 100, 0));
        let assessment = after(&settings, windows).assess(&settings, &ARMS);
        assert_eq!(assessment.verdict == Verdict::Pass, devices == 3, "{devices} agreeing");
    }
}

#[test]
fn one_device_against_the_fleet_does_not_decide() {
    let settings = asking(&[Gate::Agreement]);
    // Nineteen devices disagree as much as they may; one disagrees always.
    let windows = (0..2000).map(|w| match w % 20 {
        0 => shadow(0, 300, 300),
        _ => shadow(1 + w % 19, 10, u64::from(w % 10 == 1)),
    });
    let assessment = after(&settings, windows).assess(&settings, &ARMS);
    let report = gate(&assessment, Gate::Agreement);
    assert!(report.e_harm > 1e6 && report.devices >= 3, "{report:?}");
    assert_eq!(report.verdict, Verdict::Inconclusive, "{report:?}");
    assert_eq!(report.examples[0], device(0));
}

#[test]
fn a_first_bad_window_of_nobody_at_risk_moves_nothing() {
    let settings = asking(&[Gate::Errors]);
    let joins: Vec<_> = joined(Arm::Canary, 1, "a").chain(joined(Arm::Control, 5, "a")).collect();
    let twice = (0..2).map(|hour| first_bad(0, Arm::Canary, "a", hour));
    let once = after(&settings, joins.clone().into_iter().chain(twice.clone().take(1)));
    assert_eq!(after(&settings, joins.into_iter().chain(twice)), once);
}

#[test]
fn with_labels_in_the_plan_a_better_model_may_disagree() {
    let windows: Vec<_> = (0..200).flat_map(|w| [shadow(w % 10, 100, 12), labels(w % 10, 6, 2)]).collect();
    for (gates, planned, wanted) in [
        (vec![Gate::Agreement], vec![], Verdict::Fail),
        (vec![Gate::Agreement, Gate::Accuracy], vec![], Verdict::Pass),
        (vec![Gate::Agreement, Gate::Hard], vec![Gate::Accuracy], Verdict::Pass),
    ] {
        let settings = GateSettings { planned: planned.into_iter().collect(), ..asking(&gates) };
        let assessment = after(&settings, windows.clone()).assess(&settings, &ARMS);
        assert_eq!(assessment.verdict, wanted, "{assessment:?}");
        if wanted == Verdict::Pass {
            let agreement = gate(&assessment, Gate::Agreement);
            assert_eq!((agreement.verdict, agreement.e_harm > 1e6), (Verdict::NotAsked, true));
        }
    }
}

#[test]
fn labels_of_unnamed_sources_are_ignored_and_counted() {
    let settings = asking(&[Gate::Accuracy]);
    let foreign = (0..200).map(|w| match labels(w % 10, 0, 5) {
        Observation::Labels { device, stratum, both_right, both_wrong, wins, losses, .. } => {
            Observation::Labels {
                device,
                stratum,
                source: "anyone".into(),
                both_right,
                both_wrong,
                wins,
                losses,
            }
        }
        other => other,
    });
    let assessment = after(&settings, foreign).assess(&settings, &ARMS);
    let report = gate(&assessment, Gate::Accuracy);
    assert_eq!((report.observations, report.verdict), (0.0, Verdict::Inconclusive));
    assert!((report.e_harm - 1.0).abs() < 1e-9, "{report:?}");
    assert!(report.sentence.contains("5400 labels of sources"), "{}", report.sentence);
}

#[test]
fn one_rare_class_gone_wrong_is_found_by_itself() {
    let windows = || {
        (0..400).map(|w| {
            let seven = Disagreement { n: 3, disagree: 2 };
            let rest = Disagreement { n: 297, disagree: 1 };
            let classes = [("7".to_owned(), seven), ("rest".to_owned(), rest)].into();
            Observation::Shadow {
                device: device(w % 20),
                stratum: "pi4".into(),
                n: 300,
                disagree: 3,
                classes,
            }
        })
    };
    let settings = asking(&[Gate::Agreement]);
    let assessment = after(&settings, windows()).assess(&settings, &ARMS);
    assert_eq!(assessment.verdict, Verdict::Fail);
    assert!(
        assessment.gates[0].sentence.contains("Worst class: `7`, 66.7 %"),
        "{}",
        assessment.gates[0].sentence
    );
    let mut whole = settings.clone();
    whole.agreement.per_class = false;
    assert_eq!(after(&whole, windows()).assess(&whole, &ARMS).verdict, Verdict::Pass);
}

#[test]
fn hard_failures_follow_their_table() {
    use HardFailure::{Lost, Refused, RolledBack};
    for (canaries, events, verdict, alarm) in [
        (20, vec![], Verdict::Pass, false),
        (20, vec![(0, RolledBack), (0, RolledBack), (1, Lost)], Verdict::Pass, false),
        (20, vec![(0, RolledBack), (1, RolledBack)], Verdict::Fail, false),
        (20, vec![(0, Lost), (1, Lost)], Verdict::Fail, false),
        (1000, vec![(0, Lost), (1, Lost)], Verdict::Pass, false),
        (20, vec![(0, Refused)], Verdict::Pass, true),
        (1000, vec![(0, Refused)], Verdict::Pass, false),
        (1000, vec![(0, Refused), (1, Refused)], Verdict::Pass, true),
        (0, vec![], Verdict::Inconclusive, false),
    ] {
        let settings = asking(&[Gate::Hard]);
        let told =
            events.iter().map(|(i, failure)| Observation::Hard { device: device(*i), failure: *failure });
        let arms = ArmSizes { canaries, compared: canaries, controls: 60 };
        let assessment = after(&settings, told).assess(&settings, &arms);
        assert_eq!(assessment.verdict, verdict, "{canaries} {events:?}");
        assert_eq!(assessment.alarms().count() == 1, alarm, "{canaries} {events:?}");
    }
}

#[test]
fn an_outage_of_a_site_is_drawn_once() {
    let settings = asking(&[Gate::Errors]);
    let mut all: Vec<_> = joined(Arm::Canary, 10, "a").chain(joined(Arm::Canary, 10, "b")).collect();
    all.extend(joined(Arm::Control, 60, "c"));
    // Every canary of one site fails in the same hour.
    let outage = (0..10).map(|i| first_bad(i, Arm::Canary, "a", 7));
    let together = after(&settings, all.clone().into_iter().chain(outage)).assess(&settings, &ARMS);
    let report = gate(&together, Gate::Errors);
    assert_eq!((report.verdict, report.observations), (Verdict::Inconclusive, 1.0), "{report:?}");
    assert!(report.sentence.contains("9 more belonged to outages"), "{}", report.sentence);
    // Ten hours with one failure each are ten draws, and harm.
    let one_by_one = (0..10).map(|i| first_bad(i, Arm::Canary, "a", 7 + i as u64));
    let apart = after(&settings, all.into_iter().chain(one_by_one)).assess(&settings, &ARMS);
    let report = gate(&apart, Gate::Errors);
    assert_eq!(
        (report.verdict, report.observations, report.examples.len()),
        (Verdict::Fail, 10.0, 5),
        "{report:?}"
    );
    assert_eq!(report.worst[0].bad, 10.0);
}

#[test]
fn exceedances_raise_an_alarm_and_never_a_verdict() {
    let settings = asking(&[Gate::Latency]);
    let told = (0..40).map(|i| Observation::Exceeded { device: device(i % 4), n: 1000, x: 400 });
    let assessment = after(&settings, told).assess(&settings, &ARMS);
    assert_eq!((assessment.verdict, assessment.alarms().count()), (Verdict::Inconclusive, 1));
}

#[test]
fn weights_sum_to_one_over_the_gates_that_decide() {
    let all: BTreeSet<_> = Gate::ALL.into();
    for gates in [vec![Gate::Errors], vec![Gate::Errors, Gate::Latency, Gate::Agreement], Gate::ALL.to_vec()]
    {
        let settings = asking(&gates);
        let sum: f64 = Gate::ALL.into_iter().map(|g| settings.weight(g)).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{gates:?}: {sum}");
        // A stage that asks less does not spend more: the plan's gates share alpha in every stage.
        let stage = GateSettings { planned: all.clone(), ..settings };
        assert!((stage.weight(Gate::Errors) - asking(&Gate::ALL).weight(Gate::Errors)).abs() < 1e-12);
    }
    assert_eq!(asking(&Gate::ALL).weight(Gate::Agreement), 0.0);
    assert!((asking(&[Gate::Errors]).harm_threshold(Gate::Errors) - 100.0).abs() < 1e-9);
}

#[test]
fn every_mistake_in_the_settings_is_named_at_once() {
    assert_eq!(GateSettings::default().validate(), Ok(()));
    let mut wrong = GateSettings { alpha: 0.0, min_devices: 2, per_window: 301, ..asking(&[Gate::Accuracy]) };
    wrong.errors.margin = f64::NAN;
    wrong.drift.psi_fail = 0.05;
    wrong.accuracy.sources.clear();
    wrong.latency.harm_weight = 0.0;
    let mistakes = wrong.validate().unwrap_err();
    let fields: Vec<_> = mistakes.iter().map(|m| m.field).collect();
    assert_eq!(
        fields,
        [
            "alpha",
            "min_devices",
            "per_window",
            "errors.margin",
            "drift.psi_fail",
            "accuracy.sources",
            "latency.harm_weight"
        ]
    );
    let mute = GateSettings { planned: [Gate::Accuracy].into(), ..asking(&[Gate::Agreement]) };
    assert_eq!(mute.validate().unwrap_err()[0].field, "gates");
    assert_eq!(mistakes[1].to_string(), "`min_devices` is 2; it must be between 3 and 1000");
}

#[test]
fn settings_have_defaults_and_refuse_unknown_keys() {
    let read = |text: &str| serde_json::from_str::<GateSettings>(text);
    assert_eq!(read("{}").unwrap(), GateSettings::default());
    let some = read(r#"{"gates": ["errors", "accuracy"], "errors": {"margin": 1.5}}"#).unwrap();
    assert_eq!((some.errors.margin, some.errors.max_bad_rate, some.gates.len()), (1.5, 0.02, 2));
    for unknown in [r#"{"alpa": 0.1}"#, r#"{"errors": {"margn": 2}}"#, r#"{"gates": ["speed"]}"#] {
        assert!(read(unknown).is_err(), "{unknown}");
    }
}
