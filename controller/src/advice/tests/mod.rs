//! Every rule has a stream that makes it speak and one that nearly does.

mod fixtures;
mod following;
mod stream;

use super::*;
use edgefleet_shared::time::Timestamp;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Rules whose finding somebody was told of and that is still open, and everything that was ever told.
pub(super) fn replay(stream: &[(Timestamp, Evidence)]) -> (BTreeSet<RuleId>, Vec<FindingChange>) {
    let (mut tracked, mut told) = (Vec::new(), Vec::new());
    for (now, evidence) in stream {
        let judged = advise(evidence, &AdviceSettings::default(), *now);
        let (next, changes) = reconcile(&tracked, &judged, *now);
        told.extend(changes);
        let (again, nothing) = reconcile(&next, &judged, *now);
        assert!(nothing.is_empty() && again == next, "the same judgement again changes nothing: {nothing:?}");
        tracked = next;
    }
    let open = tracked.iter().filter(|one| one.standing == Standing::Open).map(|one| one.finding.rule);
    (open.collect(), told)
}

/// What every rule says on its stream, for who shows it.
pub(crate) fn findings() -> Vec<Finding> {
    let opened = |fixture: fixtures::Fixture| {
        let told = replay(&fixture.hit).1.into_iter();
        told.filter(|change| matches!(change, FindingChange::Opened { .. }))
            .map(|change| change.finding().clone())
    };
    fixtures::all().into_iter().flat_map(opened).collect()
}

#[test]
fn every_rule_speaks_on_its_stream_and_is_silent_on_the_near_miss() {
    let (mut covered, mut wrong) = (BTreeSet::new(), Vec::new());
    for fixture in fixtures::all() {
        let (open, told) = replay(&fixture.hit);
        let texts = |told: &[FindingChange]| -> Vec<String> {
            told.iter()
                .map(|change| format!("{}: {}", change.finding().rule, change.finding().text.what))
                .collect()
        };
        if open != BTreeSet::from([fixture.rule]) {
            wrong.push(format!(
                "{} ({}): open {open:?}, told {:#?}",
                fixture.rule,
                fixture.name,
                texts(&told)
            ));
        }
        for change in &told {
            let finding = change.finding();
            let text = &finding.text;
            assert!(!text.what.is_empty() && !text.why.is_empty() && !text.to_do.is_empty(), "{finding:?}");
            assert!(!text.what.contains("NaN") && !text.to_do.contains("NaN"), "{text:?}");
            assert!(!finding.numbers.is_empty());
            let json = serde_json::to_string(finding).unwrap();
            assert!(json.len() < 64 << 10, "{} bytes", json.len());
            assert_eq!(serde_json::from_str::<Finding>(&json).unwrap().key(), finding.key());
        }
        let (open, told) = replay(&fixture.near);
        if !open.is_empty() || !told.is_empty() {
            wrong.push(format!("{} ({}), near miss: told {:#?}", fixture.rule, fixture.name, texts(&told)));
        }
        covered.insert(fixture.rule);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(covered.len(), RULES.len(), "a rule without a fixture");
    assert!(rules_are_complete());
}

#[test]
fn no_evidence_is_no_advice() {
    assert!(replay(&[(stream::hour(1), Evidence::default())]).1.is_empty());
    assert!(replay(&[(stream::hour(1), stream::quiet())]).1.is_empty());
}

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(1.0),
        Just(-1.0),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(1e300),
        0.0..1.0f64,
        any::<f64>()
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_claim_makes_a_rule_panic(
        numbers in prop::collection::vec(any_number(), 40), counts in prop::collection::vec(any::<u64>(), 30),
        small in prop::collection::vec(0u64..3_000, 30), wild in any::<bool>(),
    ) {
        let n = |at: usize| numbers[at % numbers.len()];
        let c = |at: usize| if wild { counts[at % counts.len()] } else { small[at % small.len()] };
        let mut evidence = stream::quiet();
        for slice in &mut evidence.slices {
            stream::disturb(slice, &n, &c);
        }
        evidence.shadow = Some(Shadow {
            candidate: "digits@2".parse().unwrap(), since: stream::hour(0), devices: c(1) as u32, compared: c(2),
            disagree: c(3), wins: c(4), losses: c(5), both_right: c(6), both_wrong: c(7), cost: Some(n(1)),
            fleet: small[8] as u32, bad_rate: n(2),
        });
        evidence.nodes = Some(NodeTimes {
            nodes: (0..12).map(|at| (at.to_string(), n(at))).collect(), setups_us: Default::default(), infer_ms: n(3),
        });
        evidence.engines = vec![EngineMedians {
            hardware: "pi".into(), devices: 1,
            medians_us: [("tract/int8".to_owned(), n(4)), ("tract/f32".to_owned(), n(5))].into(),
        }];
        evidence.thresholds = [("*".to_owned(), n(6))].into();
        evidence.versions = Some(Versions {
            assigned: Timestamp::from_secs(c(9) % 4_000_000_000), wanted: c(10),
            behind: [("offline".to_owned(), c(11))].into(), examples: vec![],
        });
        let now = Timestamp::from_secs(c(12) % 4_000_000_000);
        let judged = advise(&evidence, &AdviceSettings::default(), now);
        let (tracked, changes) = reconcile(&[], &judged, now);
        for change in &changes {
            prop_assert!(serde_json::to_string(change).is_ok());
            prop_assert!(change.finding().numbers.values().all(|x| x.is_finite()));
        }
        let (_, later) = reconcile(&tracked, &[], stream::hour(9_000_000));
        prop_assert!(later.len() <= tracked.len());
    }
}
