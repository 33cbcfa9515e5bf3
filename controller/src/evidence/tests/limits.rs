//! Properties over hostile input: bounded size, finite numbers, order where it is promised.

use crate::evidence::{
    Arm, ArmSizes, Disagreement, Evidence, Gate, GateSettings, HardFailure, Observation, Reporting, Vote,
};
use edgefleet_shared::ids::DeviceId;
use proptest::prelude::*;

const LIMIT: usize = 32 * 1024;

fn all_gates() -> GateSettings {
    GateSettings { gates: Gate::ALL.into(), ..GateSettings::default() }
}

fn device() -> impl Strategy<Value = DeviceId> {
    (0u32..100_000).prop_map(|i| format!("{:0>64}", format!("d{i}")).parse().unwrap())
}

fn arm() -> impl Strategy<Value = Arm> {
    prop_oneof![Just(Arm::Canary), Just(Arm::Control)]
}

/// Small, large and absurd counts.
fn count() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..50, 0u64..1_000_000, Just(u64::MAX), Just(u64::MAX / 2)]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("pi4".to_owned()), ".{0,60}", "[\\x00-\\x1f\"\\\\]{0,60}"]
}

fn observation() -> impl Strategy<Value = Observation> {
    let joined = (arm(), 0u16..4, name(), name())
        .prop_map(|(arm, cohort, stratum, site)| Observation::Joined { arm, cohort, stratum, site });
    let left = (arm(), 0u16..4, name(), name()).prop_map(|(arm, cohort, stratum, site)| Observation::Left {
        arm,
        cohort,
        stratum,
        site,
    });
    let first = (device(), arm(), name(), name(), count()).prop_map(|(device, arm, stratum, site, hour)| {
        Observation::FirstBad { device, arm, cohort: 0, stratum, site, hour }
    });
    let hour = (device(), arm(), any::<bool>()).prop_map(|(device, arm, bad)| Observation::DeviceHour {
        device,
        arm,
        bad,
    });
    let vote = (device(), name(), prop_oneof![Just(Vote::Slower), Just(Vote::NotSlower), Just(Vote::Tie)])
        .prop_map(|(device, stratum, vote)| Observation::Latency { device, stratum, vote });
    let exceeded =
        (device(), count(), count()).prop_map(|(device, n, x)| Observation::Exceeded { device, n, x });
    let class = (count(), count()).prop_map(|(n, disagree)| Disagreement { n, disagree });
    let shadow = (device(), name(), count(), count(), prop::collection::btree_map(name(), class, 0..5))
        .prop_map(|(device, stratum, n, disagree, classes)| Observation::Shadow {
            device,
            stratum,
            n,
            disagree,
            classes,
        });
    let labels = (device(), name(), count(), count(), count(), count()).prop_map(
        |(device, stratum, both_right, both_wrong, wins, losses)| {
            let source = "controller".to_owned();
            Observation::Labels { device, stratum, source, both_right, both_wrong, wins, losses }
        },
    );
    let reporting =
        || (any::<u32>(), any::<u32>()).prop_map(|(expected, received)| Reporting { expected, received });
    let telemetry =
        (reporting(), reporting()).prop_map(|(canary, control)| Observation::Telemetry { canary, control });
    let drift = (device(), arm(), prop::collection::btree_map(name(), count(), 0..6))
        .prop_map(|(device, arm, classes)| Observation::Drift { device, arm, classes });
    let hard = (
        device(),
        prop_oneof![Just(HardFailure::Lost), Just(HardFailure::Refused), Just(HardFailure::RolledBack)],
    )
        .prop_map(|(device, failure)| Observation::Hard { device, failure });
    prop_oneof![joined, left, first, hour, vote, exceeded, shadow, labels, telemetry, drift, hard]
}

fn assert_finite(evidence: &Evidence, settings: &GateSettings) {
    for report in evidence.assess(settings, &ArmSizes { canaries: 20, compared: 20, controls: 60 }).gates {
        let mut numbers =
            vec![report.e_harm, report.e_harm_without_one, report.harm_threshold, report.e_safe];
        numbers.extend([report.e_safe_without_one, report.safe_threshold, report.observations]);
        numbers.extend(report.effect.iter().flat_map(|e| [e.estimate, e.low, e.high]));
        numbers.extend(report.worst.iter().flat_map(|s| [s.bad, s.of]));
        assert!(numbers.iter().all(|n| n.is_finite()), "{report:?}");
        assert!(report.e_harm_without_one <= report.e_harm && report.e_safe_without_one <= report.e_safe);
        if let Some(effect) = &report.effect {
            assert!(effect.low <= effect.high, "{report:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn hostile_input_gives_finite_numbers_and_a_small_document(
        observations in prop::collection::vec(observation(), 0..200),
    ) {
        let settings = all_gates();
        let mut evidence = Evidence::default();
        observations.iter().for_each(|o| evidence.observe(o, &settings));
        assert_finite(&evidence, &settings);
        let text = serde_json::to_string(&evidence).unwrap();
        prop_assert!(text.len() < LIMIT, "{} bytes", text.len());
        // What is stored goes on as if never stored.
        let mut read: Evidence = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&read, &evidence);
        observations.iter().for_each(|o| { read.observe(o, &settings); evidence.observe(o, &settings); });
        let arms = ArmSizes { canaries: 20, compared: 20, controls: 60 };
        prop_assert_eq!(read.assess(&settings, &arms), evidence.assess(&settings, &arms));
    }

    #[test]
    fn order_does_not_matter_to_the_gates_that_are_sums(
        windows in prop::collection::vec((0usize..10, 0u64..400, 0u64..30, 0u64..30), 0..60), seed in any::<u64>(),
    ) {
        let mut told = Vec::new();
        for (i, n, a, b) in windows {
            let device: DeviceId = format!("d-{i}").parse().unwrap();
            let stratum = "pi4".to_owned();
            let classes = Default::default();
            told.push(Observation::Shadow { device: device.clone(), stratum: stratum.clone(), n, disagree: a.min(n), classes });
            let (source, vote) = ("controller".to_owned(), if a > b { Vote::Slower } else { Vote::NotSlower });
            told.push(Observation::Labels { device: device.clone(), stratum: stratum.clone(), source, both_right: n, both_wrong: 0, wins: a, losses: b });
            told.push(Observation::DeviceHour { device: device.clone(), arm: Arm::Canary, bad: a > 25 });
            told.push(Observation::Latency { device, stratum, vote });
        }
        let run = |told: &[Observation]| {
            let settings = all_gates();
            let mut evidence = Evidence::default();
            told.iter().for_each(|o| evidence.observe(o, &settings));
            let assessed = evidence.assess(&settings, &ArmSizes { canaries: 20, compared: 20, controls: 60 });
            assessed.gates.into_iter().map(|g| (g.verdict, g.e_harm.ln(), g.e_safe.ln(), g.e_safe_without_one.ln())).collect::<Vec<_>>()
        };
        let there = run(&told);
        let mut random = crate::evidence::random::Random::new(seed);
        told.sort_by_cached_key(|_| random.next());
        for (a, b) in there.iter().zip(run(&told)) {
            prop_assert_eq!(a.0, b.0);
            for (x, y) in [(a.1, b.1), (a.2, b.2), (a.3, b.3)] {
                prop_assert!((x - y).abs() <= 1e-6 * x.abs().max(1.0), "{x} {y}");
            }
        }
    }
}

#[test]
fn the_document_stays_small_with_100_000_devices_with_the_longest_names() {
    let settings = all_gates();
    let mut evidence = Evidence::default();
    for i in 0..100_000_u32 {
        let device: DeviceId = format!("{:0>64}", format!("d{i}")).parse().unwrap();
        let arm = if i % 4 == 0 { Arm::Canary } else { Arm::Control };
        let (stratum, site) = (format!("{i:0>60}"), format!("site-{i}"));
        evidence.observe(
            &Observation::Joined { arm, cohort: 0, stratum: stratum.clone(), site: site.clone() },
            &settings,
        );
        if i % 2 == 0 {
            continue;
        }
        let hour = u64::from(u32::MAX) - u64::from(i % 977);
        let n = 700 + u64::from(i) % 13;
        for told in [
            Observation::DeviceHour { device: device.clone(), arm: Arm::Canary, bad: i % 11 == 0 },
            Observation::FirstBad {
                device: device.clone(),
                arm,
                cohort: 0,
                stratum: stratum.clone(),
                site,
                hour,
            },
            Observation::Latency { device: device.clone(), stratum: stratum.clone(), vote: Vote::Slower },
            Observation::Exceeded { device: device.clone(), n, x: n / 7 },
            Observation::Hard { device: device.clone(), failure: HardFailure::Lost },
            Observation::Hard { device: device.clone(), failure: HardFailure::Refused },
            Observation::Hard { device: device.clone(), failure: HardFailure::RolledBack },
            Observation::Drift { device: device.clone(), arm, classes: [(stratum.clone(), n)].into() },
            Observation::Shadow {
                device: device.clone(),
                stratum: stratum.clone(),
                n,
                disagree: n / 3,
                classes: [(stratum.clone(), Disagreement { n, disagree: n / 3 })].into(),
            },
            Observation::Labels {
                device,
                stratum,
                source: "controller".into(),
                both_right: n,
                both_wrong: 1,
                wins: n / 3,
                losses: n / 7,
            },
        ] {
            evidence.observe(&told, &settings);
        }
    }
    assert_finite(&evidence, &settings);
    let size = serde_json::to_string(&evidence).unwrap().len();
    println!("{size} bytes");
    assert!(size < LIMIT, "{size} bytes");
}
