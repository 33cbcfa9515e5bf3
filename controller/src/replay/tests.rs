//! A quick replay of the committed rows: the same code as `docs/monitoring.md`, fewer devices and days.

use super::{
    outcome::run,
    rows::{DataSet, parse},
    scenario::{Clean, Effort, Place, SCENARIOS, Scenario, Time},
};
use crate::{advice::RuleId, estimate::Estimator};

const QUICK: Effort = Effort { devices: 4, rows: 100, quiet_days: 4, runs: 1, seed: 3, audit_per_mille: 40 };

fn sets() -> Vec<DataSet> {
    parse(include_str!("../../../models/monitoring/rows.json")).expect("the committed rows")
}

#[test]
fn one_blurred_camera_is_found_within_hours_and_named_as_one_device() {
    let scenario =
        SCENARIOS.iter().find(|one| one.condition == "blur" && one.place == Place::OneDevice).unwrap();
    let found = run(scenario, &sets(), QUICK).unwrap();
    assert!(found.finding_after[0].is_some_and(|hours| hours <= 6), "{found:#?}");
    assert!(found.wrong.is_empty(), "{:?}", found.wrong);
    assert!(found.false_findings <= 1, "{found:#?}");
}

#[test]
fn under_concept_drift_the_estimate_stands_still_and_audits_find_it() {
    let scenario = SCENARIOS.iter().find(|one| one.condition == "concept").unwrap();
    let found = run(scenario, &sets(), QUICK).unwrap();
    assert!(found.error_before[&Estimator::Cbpe] < 0.05, "{found:#?}");
    assert!(found.error_after[&Estimator::Cbpe] > 0.3, "it must fail here: {found:#?}");
    assert!(
        found.told.contains_key(&RuleId::A04) && found.told.contains_key(&RuleId::A23),
        "{:?}",
        found.told
    );
}

#[test]
fn nothing_is_said_of_a_fleet_without_shift() {
    let by_construction = |one: &&Scenario| one.is_harmless() && one.clean == Clean::Reference;
    for scenario in SCENARIOS.iter().filter(by_construction) {
        let found = run(scenario, &sets(), QUICK).unwrap();
        assert!(found.false_findings == 0 && found.false_incidents == 0, "{found:#?}");
    }
}

#[test]
fn each_scenario_names_its_rule_before_it_runs() {
    for scenario in SCENARIOS {
        assert_eq!(scenario.right.is_empty(), scenario.is_harmless(), "{}", scenario.name());
        assert!(scenario.time == Time::Lasting || scenario.place == Place::Everywhere);
    }
}

#[test]
fn odd_rows_are_refused() {
    for text in ["", "[{}]", r#"[{"name":"x","classes":["a"],"channels":[],"conditions":{}}]"#] {
        assert!(parse(text).is_err(), "{text}");
    }
    let odd = r#"[{"name":"x","classes":["a"],"channels":[],"conditions":{"clean":[[[1.0],0,0]]}}]"#;
    assert!(parse(odd).unwrap_err().to_string().contains("fewer than 100 rows"));
}
