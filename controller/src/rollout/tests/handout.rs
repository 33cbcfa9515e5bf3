//! How fast turns are given: evenly, within caps, groups and budgets.

use super::{
    super::*,
    fleet::{Fleet, Kind},
};
use edgefleet_shared::time::Timestamp;
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};

fn single(n: usize, change: impl FnOnce(&mut Plan)) -> Fleet {
    let mut plan =
        Plan::single_stage("digits".parse().unwrap(), "digits@2".parse().unwrap(), vec!["".parse().unwrap()]);
    change(&mut plan);
    Fleet::started(plan, &vec![Kind::Good; n])
}

/// Turns given by each second, the driver performing at once, nobody ever answering.
fn turns_by_second(fleet: &mut Fleet, secs: u64, step: u64) -> Vec<u64> {
    let mut turns = Vec::new();
    for _ in 0..secs / step {
        while fleet.perform(false) {}
        turns.push(fleet.rollout.stages[0].handed_out);
        fleet.now = fleet.now + Duration::from_secs(step);
        fleet.event(&Event::Tick).unwrap();
    }
    turns
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    /// Bottlerocket's wave bug: seats of a wave all fell to its beginning.
    #[test]
    fn turns_are_spread_over_the_window(seats in 4usize..120, secs in 300u64..4_000) {
        let mut fleet = single(seats, |plan| {
            plan.limits = super::super::plan::Limits { concurrency: Share::Percent(100.0), concurrency_min: 10_000, ..super::super::plan::Limits::none() };
            plan.stages[0].spread = Some(Span::secs(secs));
        });
        let turns = turns_by_second(&mut fleet, secs, 1);
        for (second, given) in turns.iter().enumerate() {
            let even = seats as f64 * second as f64 / secs as f64;
            prop_assert!((*given as f64 - even).abs() <= 2.0, "{given} of {seats} after {second} of {secs} s, {even} would be even");
        }
    }

    #[test]
    fn the_rate_is_even_whatever_the_ticks(per_min in 5.0f64..600.0, step in 1u64..5) {
        let mut fleet = single(400, |plan| {
            plan.limits.start_per_min = per_min;
            plan.limits.cap_per_min = 1_000.0;
            plan.limits.concurrency_min = 10_000;
        });
        let turns = turns_by_second(&mut fleet, 60, step);
        for (n, given) in turns.iter().enumerate() {
            let even = (per_min / 60.0 * (n as u64 * step) as f64 + 1.0).min(400.0);
            prop_assert!((*given as f64 - even).abs() <= 2.0, "{given} after {n} steps of {step} s, {even} would be even");
        }
    }
}

/// The driver sleeps until a turn is due; looking five times a second for an hour is no way to wait.
#[test]
fn between_two_turns_of_a_spread_nobody_is_woken_beyond_the_minutely_look() {
    let (seats, secs) = (12, 3_600);
    let mut fleet = single(seats, |plan| {
        plan.limits.concurrency_min = 10_000;
        plan.stages[0].spread = Some(Span::secs(secs));
    });
    let end = fleet.now + Duration::from_secs(secs);
    let mut ticks = 0;
    while fleet.now < end {
        while fleet.perform(false) {}
        fleet.now = fleet.rollout.wake.expect("nothing has ended").max(fleet.now);
        fleet.event(&Event::Tick).unwrap();
        ticks += 1;
    }
    while fleet.perform(false) {}
    assert_eq!(fleet.rollout.stages[0].handed_out, seats as u64);
    // One a minute, and a few around each turn.
    assert!(ticks <= 60 + 4 * seats, "{ticks} ticks");
}

#[test]
fn a_late_tick_makes_no_wave() {
    let mut tokens = Tokens::new(Timestamp::EPOCH);
    tokens.earn(60.0, Timestamp::from_secs(3_600));
    assert!(tokens.credit <= 6.0, "{}", tokens.credit);
}

#[test]
fn the_rate_doubles_with_every_thousand_successes_up_to_its_cap() {
    let plan = Plan::new("d".parse().unwrap(), "d@1".parse().unwrap());
    let mut tokens = Tokens::new(Timestamp::EPOCH);
    for (successes, rate) in
        [(0, 50.0), (999, 50.0), (1_000, 100.0), (3_500, 400.0), (5_000, 1_000.0), (u64::MAX, 1_000.0)]
    {
        tokens.successes = successes;
        assert_eq!(tokens.per_min(&plan), rate, "{successes}");
    }
}

#[test]
fn never_more_than_the_cap_is_under_way_and_no_more_bytes_than_the_day_has() {
    let mut fleet = single(100, |plan| plan.limits.concurrency_min = 7);
    let turns = turns_by_second(&mut fleet, 120, 1);
    assert_eq!(turns.last(), Some(&7));
    assert!(
        fleet.rollout.waiting.iter().any(|w| matches!(w.what, What::Concurrency { in_flight: 7, cap: 7 }))
    );
    let mut fleet = single(100, |plan| {
        plan.limits.concurrency_min = 100;
        plan.limits.bytes_per_day = Some(12_500);
    });
    let turns = turns_by_second(&mut fleet, 600, 1);
    assert_eq!(turns.last(), Some(&12));
    assert!(fleet.rollout.waiting.iter().any(|w| matches!(w.what, What::BytesPerDay { used: 12_000, .. })));
}

#[test]
fn groups_keep_their_share_and_a_repeated_effect_hands_out_nobody_more() {
    let mut plan = Plan::new("d".parse().unwrap(), "d@1".parse().unwrap());
    plan.assign.max_in_flight_per.insert("site".into(), Share::Percent(20.0));
    let groups = BTreeMap::from([
        ("a".to_owned(), GroupCount { members: 10, in_flight: 1 }),
        ("b".to_owned(), GroupCount { members: 3, in_flight: 0 }),
    ]);
    let turn = |rank, group, by_this: bool| Turn { rank, group: Some(group), ready: !by_this, by_this };
    let turns = [turn(0, "a", false), turn(1, "a", false), turn(2, "b", false), turn(3, "b", false)];
    let picked = pick(&plan, &turns, 4, &groups);
    assert_eq!((picked.chosen, picked.cursor, picked.all), (vec![0, 2], Some(0), false));
    let again = [turn(0, "a", true), turn(1, "a", false), turn(2, "b", true), turn(3, "b", false)];
    let picked = pick(&plan, &again, 2, &groups);
    assert_eq!((picked.chosen, picked.cursor), (vec![0, 2], Some(0)));
}
