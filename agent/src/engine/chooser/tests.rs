use super::*;
use edgefleet_shared::{bundle::BlobRef, digest::BlobDigest};
use proptest::prelude::*;
use std::time::Duration;

fn artifact(precision: Precision) -> Artifact {
    let blob = BlobRef { digest: BlobDigest::of(b"x"), size: 1 };
    Artifact { format: "onnx".into(), precision, blob, targets: vec![] }
}

fn names(artifacts: &[Precision], engines: &[EngineName], policy: &Policy) -> (Vec<String>, Vec<String>) {
    let artifacts: Vec<Artifact> = artifacts.iter().copied().map(artifact).collect();
    let artifacts: Vec<&Artifact> = artifacts.iter().collect();
    let threads = |engine| if engine == EngineName::Tract { 1 } else { 64 };
    let (kept, refused) = offered(&artifacts, engines, policy, threads);
    let refused = refused.iter().map(|r| format!("{}: {}", r.setup, r.reason)).collect();
    (kept.iter().map(ToString::to_string).collect(), refused)
}

fn policy(prefer: &[&str], forbid: &[&str], pin: &[&str], threads: usize) -> Policy {
    let all = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
    Policy { prefer: all(prefer), forbid: all(forbid), pin: all(pin), threads, rows: 1 }
}

#[test]
fn tract_comes_first_and_each_engine_gets_the_variants_and_threads_it_gains_from() {
    use Precision::{F32, Int8Qdq};
    let both = EngineName::ALL;
    let (kept, refused) = names(&[Int8Qdq, F32], &both, &policy(&[], &[], &[], 2));
    let wanted = [
        "tract/f32/1",
        "onnxruntime/f32/1",
        "onnxruntime/f32/2",
        "onnxruntime/int8-qdq/1",
        "onnxruntime/int8-qdq/2",
    ];
    assert_eq!(kept, wanted);
    assert_eq!(refused, ["tract/int8-qdq/1: tract gains nothing from this variant"]);
    // Nothing else is there: then it is run as it is.
    assert_eq!(names(&[Int8Qdq], &[EngineName::Tract], &policy(&[], &[], &[], 1)).0, ["tract/int8-qdq/1"]);
}

#[test]
fn settings_prefer_forbid_and_pin() {
    let both = EngineName::ALL;
    let f32 = [Precision::F32];
    let (kept, _) = names(&f32, &both, &policy(&["onnxruntime"], &[], &[], 1));
    assert_eq!(kept, ["onnxruntime/f32/1", "tract/f32/1"]);
    let (kept, refused) = names(&f32, &both, &policy(&[], &["onnxruntime"], &[], 1));
    assert_eq!(kept, ["tract/f32/1"]);
    assert_eq!(refused, ["onnxruntime/f32/1: the settings forbid `onnxruntime/*`"]);
    let (kept, _) = names(&f32, &both, &policy(&[], &[], &["onnxruntime/*/2"], 2));
    assert_eq!(kept, ["onnxruntime/f32/2"]);
    // What is pinned is run, also if it gains nothing.
    let variants = [Precision::F32, Precision::Int8Qdq];
    let (kept, _) = names(&variants, &both, &policy(&[], &[], &["tract/int8-qdq"], 1));
    assert_eq!(kept, ["tract/int8-qdq/1"]);
    assert_eq!(names(&f32, &both, &policy(&[], &["*"], &[], 1)).0, [""; 0]);
}

#[test]
fn what_runs_stays_unless_another_is_more_than_a_tenth_faster() {
    for (medians, keep, wanted) in [
        (&[10.0, 9.1][..], 0, 0),
        (&[10.0, 9.0], 0, 0),
        (&[10.0, 8.9], 0, 1),
        (&[9.1, 10.0], 1, 1),
        (&[8.9, 10.0], 1, 0),
        (&[10.0, 8.0, 7.0, 7.5], 0, 2),
        (&[f64::INFINITY, 5.0], 0, 1),
        (&[f64::NAN, 5.0], 0, 1),
        (&[5.0, f64::NAN], 1, 0),
        (&[f64::NAN], 0, 0),
        (&[5.0], 7, 0),
        (&[], 0, 0),
    ] {
        assert_eq!(best(medians, keep, GAIN), wanted, "{medians:?}");
    }
    assert_eq!(best(&[10.0, 9.4], 0, TIE), 1);
    assert_eq!(best(&[10.0, 9.6], 0, TIE), 0);
}

/// Runs rounds in virtual time: contestant `who` takes `micros[who]`.
fn contest(micros: &[u64], budget: Budget) -> Rounds {
    let mut rounds = Rounds::new(micros.len(), budget);
    while let Some(who) = rounds.whose_turn() {
        rounds.record(who, Duration::from_micros(micros[who]));
    }
    rounds
}

#[test]
fn a_slow_engine_loses_and_a_broken_one_drops_out() {
    let rounds = contest(&[9_000, 3_000], Budget::DEFAULT);
    assert_eq!((rounds.medians(), best(&rounds.medians(), 0, GAIN)), (vec![9.0, 3.0], 1));
    assert_eq!(rounds.times()[0].len(), 50);
    let mut rounds = Rounds::new(2, Budget::DEFAULT);
    while let Some(who) = rounds.whose_turn() {
        match who {
            0 => rounds.record(0, Duration::from_millis(5)),
            _ => rounds.drop_out(1),
        }
    }
    assert_eq!((rounds.times()[0].len(), rounds.medians()[1]), (50, f64::INFINITY));
}

#[test]
fn the_budget_bounds_the_time_but_never_below_one_round() {
    let budget = Budget { warm_up: 1, most: 50, time: Duration::from_secs(1) };
    let rounds = contest(&[300_000, 100_000], budget);
    assert_eq!(rounds.times().iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    let rounds = contest(&[9_000_000, 1], budget);
    assert_eq!(rounds.times().iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn slow_ones_warm_up_less_and_where_that_takes_all_the_time_it_counts() {
    let budget = Budget { warm_up: 3, most: 50, time: Duration::from_secs(2) };
    for (micros, spent_ms, counted) in [
        // Three rounds of warming up, then to the end of the time.
        ([10_000, 10_000], 2_000, 97),
        // More than a quarter: one.
        ([400_000, 200_000], 2_400, 3),
        // All of it: no other.
        ([1_500_000, 700_000], 2_200, 1),
    ] {
        let budget = Budget { most: 200, ..budget };
        let rounds = contest(&micros, budget);
        let counts: Vec<usize> = rounds.times().iter().map(Vec::len).collect();
        assert_eq!((rounds.spent().as_millis(), counts), (spent_ms, vec![counted; 2]), "{micros:?}");
    }
}

proptest! {
    #[test]
    fn turns_alternate_and_all_run_equally_often(
        micros in proptest::collection::vec(1u64..200_000, 1..6),
        most in 1usize..30,
        warm_up in 0usize..4,
    ) {
        let budget = Budget { warm_up, most, time: Duration::from_secs(2) };
        let mut rounds = Rounds::new(micros.len(), budget);
        let mut order = Vec::new();
        while let Some(who) = rounds.whose_turn() {
            order.push(who);
            rounds.record(who, Duration::from_micros(micros[who]));
        }
        let counts: Vec<usize> = rounds.times().iter().map(Vec::len).collect();
        prop_assert!(counts.iter().all(|count| *count == counts[0] && *count >= 1 && *count <= most));
        for round in order.chunks(micros.len()) {
            let mut seen = round.to_vec();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..micros.len()).collect::<Vec<_>>());
        }
        prop_assert!(best(&rounds.medians(), 0, GAIN) < micros.len());
    }

    #[test]
    fn the_chosen_one_is_never_further_behind_the_fastest_than_the_margin(
        medians in proptest::collection::vec(0.001f64..1e4, 1..8)
    ) {
        let fastest = medians.iter().copied().fold(f64::INFINITY, f64::min);
        for (margin, keep) in [(GAIN, 0), (TIE, 0), (GAIN, medians.len() - 1)] {
            prop_assert!(medians[best(&medians, keep, margin)] * (1.0 - margin) <= fastest);
        }
    }
}

fn key() -> Key {
    Key { bundle: BundleDigest::of(b"b"), engines: vec![], cpu: "cpu".into(), policy: Policy::default() }
}

#[test]
fn a_selection_puts_the_chosen_first_keeps_reasons_and_survives_the_disk() {
    let setup = |engine, threads| Setup { engine, precision: Precision::F32, threads };
    let passed = |engine, threads, median_ms| Passed {
        setup: setup(engine, threads),
        engine: "1".into(),
        median_ms: Some(median_ms),
        batch: None,
    };
    let all = vec![
        passed(EngineName::Tract, 1, 9.0),
        passed(EngineName::Onnxruntime, 1, 5.0),
        passed(EngineName::Onnxruntime, 2, 4.0),
    ];
    let refused = Refused {
        setup: setup(EngineName::Tract, 2),
        code: Some(RefusalCode::GoldenMismatch),
        reason: "wrong".into(),
    };
    let selection = select(key(), all.clone(), vec![refused.clone()], (50, 1), None);
    let order: Vec<f64> = selection.passed.iter().filter_map(|p| p.median_ms).collect();
    assert_eq!(order, [4.0, 5.0, 9.0]);
    assert_eq!(selection.refused, [refused]);
    let former = |at: usize| select(key(), all[..2].to_vec(), vec![], (9, 1), Some(all[at].setup));
    assert_eq!(former(0).chosen().unwrap().setup, all[1].setup);
    let mut close = all[..2].to_vec();
    close[1].median_ms = Some(8.2);
    assert_eq!(
        select(key(), close.clone(), vec![], (9, 1), Some(all[0].setup)).chosen().unwrap().setup,
        all[0].setup
    );
    assert_eq!(select(key(), close.clone(), vec![], (9, 1), None).chosen().unwrap().setup, all[1].setup);
    let mut liked = key();
    liked.policy.prefer = vec!["tract".parse().unwrap()];
    assert_eq!(select(liked, close, vec![], (9, 1), None).chosen().unwrap().setup, all[0].setup);
    let json = serde_json::to_vec(&selection).unwrap();
    assert_eq!(serde_json::from_slice::<Selection>(&json).unwrap(), selection);
    assert_eq!(select(key(), vec![], vec![], (0, 1), None).chosen(), None);
}

#[test]
fn where_batches_are_served_they_decide_and_both_are_remembered() {
    let passed = |engine, single: f64, batch: Option<f64>| Passed {
        setup: Setup { engine, precision: Precision::F32, threads: 1 },
        engine: "1".into(),
        median_ms: Some(single),
        batch: batch.map(|median_ms| Batch { rows: 8, median_ms }),
    };
    let chosen = |batches: Option<(f64, f64)>| {
        let all = vec![
            passed(EngineName::Tract, 1.0, batches.map(|b| b.0)),
            passed(EngineName::Onnxruntime, 2.0, batches.map(|b| b.1)),
        ];
        select(key(), all, vec![], (9, 1), None)
    };
    assert_eq!(chosen(None).chosen().unwrap().setup.engine, EngineName::Tract);
    let selection = chosen(Some((8.0, 6.0)));
    let best = selection.chosen().unwrap().clone();
    assert_eq!((best.setup.engine, best.median_ms), (EngineName::Onnxruntime, Some(2.0)));
    let json = serde_json::to_vec(&selection).unwrap();
    assert_eq!(serde_json::from_slice::<Selection>(&json).unwrap(), selection);
    let expected = selection.expected(&best.setup);
    assert_eq!(expected, Some(Expected { rows: 1, ms: 2.0, batch: Some((8, 6.0)) }));
}

#[test]
fn the_oldest_choices_are_forgotten_first() {
    assert_eq!(outdated(vec![("a", 5), ("b", 50), ("c", 1)], 2), ["b"]);
    assert!(outdated(vec![("a", 5)], 2).is_empty());
}
