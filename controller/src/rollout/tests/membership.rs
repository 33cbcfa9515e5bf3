//! Who is drawn.

use super::{super::*, fleet::ids};
use edgefleet_shared::{ids::DeviceId, time::Timestamp};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn plan() -> Plan {
    let mut plan = Plan::new("digits".parse().unwrap(), "digits@2".parse().unwrap());
    plan.assign.strata = vec!["hw".into()];
    plan.settle();
    plan
}

fn attributes(n: usize, kinds: usize) -> Vec<BTreeMap<String, String>> {
    (0..n).map(|n| BTreeMap::from([("hw".to_owned(), format!("hw{}", n % kinds.max(1)))])).collect()
}

fn members(plan: &Plan, devices: &[DeviceId], attributes: &[BTreeMap<String, String>]) -> Membership {
    let candidates: Vec<_> = devices
        .iter()
        .zip(attributes)
        .map(|(device, attributes)| Candidate { device, attributes, incumbent: None })
        .collect();
    plan_members(plan, &Seed::new([3; 32]), &candidates)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn everybody_has_one_place_and_strata_and_arms_are_balanced(n in 1usize..2_500, kinds in 1usize..9, turn in 0usize..50) {
        let plan = plan();
        let (mut devices, mut attrs) = (ids(n), attributes(n, kinds));
        let drawn = members(&plan, &devices, &attrs);
        devices.rotate_left(turn % n);
        attrs.rotate_left(turn % n);
        prop_assert_eq!(&drawn, &members(&plan, &devices, &attrs), "the order of candidates shows");
        let all: BTreeSet<_> = drawn.members.iter().map(|m| &m.device).collect();
        prop_assert_eq!((all.len(), drawn.members.len()), (n, n));
        prop_assert!(drawn.members.iter().enumerate().all(|(rank, m)| m.rank == rank as u64));
        // Arms are disjoint; controls wait for the last stage and belong to a canary of their stratum.
        let last = plan.last_stage() as u16;
        for member in drawn.members.iter().filter(|m| m.arm == Arm::Control) {
            prop_assert_eq!((member.stage, member.shadow), (last, None));
            let canary = drawn.members.iter().find(|c| c.arm == Arm::Canary && c.match_of == member.match_of).unwrap();
            prop_assert_eq!((canary.stratum, canary.stage), (member.stratum, member.cohort));
            prop_assert!(canary.rank < member.rank);
        }
        // Every stage's cut holds each stratum's share to within one device.
        for stage in 0..last {
            let within = |m: &&Member| m.arm != Arm::Control && (m.stage <= stage);
            let cut = drawn.members.iter().filter(within).count();
            for (number, stratum) in drawn.summary.strata.iter().enumerate() {
                let found = drawn.members.iter().filter(within).filter(|m| usize::from(m.stratum) == number).count();
                let share = cut as f64 * stratum.devices as f64 / n as f64;
                // Controls stand aside, so the last of large cuts may shift by the devices they stand for.
                let slack = 1.0 + drawn.summary.strata.len() as f64 + if n < 200 { stratum.controls as f64 } else { 0.0 };
                prop_assert!((found as f64 - share).abs() <= slack, "stage {stage}, stratum {number}: {found} for {share} of {cut}");
            }
        }
        // Shadow devices are the first canaries.
        for member in drawn.members.iter().filter(|m| m.shadow.is_some()) {
            prop_assert!(member.arm == Arm::Canary || n < 20, "{member:?}");
        }
    }
}

#[test]
fn sizes_are_exact_and_small_fleets_go_one_three_ten_and_the_rest() {
    for (n, wanted) in [
        (1_000, [10u64, 10, 40, 200, 750]),
        (10_000, [50, 50, 450, 2_000, 7_500]),
        (40, [3, 1, 2, 7, 30]),
        (8, [3, 1, 2, 2, 3]),
        (200, [3, 10, 0, 40, 150]),
    ] {
        let drawn = members(&plan(), &ids(n), &attributes(n, 1));
        let sizes: Vec<_> = drawn.summary.stages.iter().map(|stage| stage.devices).collect();
        assert_eq!(sizes, wanted, "{n}");
    }
    for (n, canary_stage, controls) in [
        (1_000, 1, [0, 30, 40, 200, 0]),
        // No more than have something to compare with, and no more than evidence needs.
        (10_000, 1, [0, 150, 450, 500, 0]),
        (40, 3, [0, 2, 4, 9, 0]),
        (30, 3, [0, 1, 2, 7, 0]),
        (12, 3, [0, 1, 0, 0, 0]),
    ] {
        let drawn = members(&plan(), &ids(n), &attributes(n, 1));
        let found: Vec<_> = drawn.summary.stages.iter().map(|stage| stage.against).collect();
        assert_eq!(
            (drawn.summary.canary_stage, found.as_slice()),
            (Some(canary_stage), &controls[..]),
            "{n}"
        );
        for (stage, size) in drawn.summary.stages.iter().enumerate() {
            let matched =
                |m: &&Member| usize::from(m.stage) == stage && m.arm == Arm::Canary && m.match_of.is_some();
            assert_eq!(size.compared, drawn.members.iter().filter(matched).count() as u64, "{n} {stage}");
        }
        let held: u64 = drawn.summary.stages.iter().map(|stage| stage.controls).sum();
        assert_eq!(held, controls.iter().sum::<u64>(), "{n}");
    }
}

#[test]
fn only_controls_that_are_alive_are_compared_with_a_canary() {
    let plan = plan();
    let drawn = members(&plan, &ids(300), &attributes(300, 1));
    let control = drawn.members.iter().find(|member| member.arm == Arm::Control).unwrap();
    let created = Timestamp::from_secs(1_000_000);
    let mut attempt = Attempt::new(&"rol-1".parse().unwrap(), control, "hw0", created);
    let now = created + std::time::Duration::from_secs(86_400);
    let silence = plan.timeouts.silence.as_secs();
    for seen in [None, Some(created), Some(Timestamp::from_secs(now.as_secs() - silence))] {
        assert_eq!(
            attempt.hear(&DeviceSaid::CanaryActivated { last_seen: seen }, &plan, now),
            [],
            "{seen:?}"
        );
    }
    let seen = Some(Timestamp::from_secs(now.as_secs() - silence + 1));
    let moves = attempt.hear(&DeviceSaid::CanaryActivated { last_seen: seen }, &plan, now);
    let joined = |moved: &Move| {
        matches!(moved, Move::Observed { observation: crate::evidence::Observation::Joined { .. } })
    };
    assert!(moves.len() == 1 && joined(&moves[0]), "{moves:?}");
    assert_eq!(attempt.hear(&DeviceSaid::CanaryActivated { last_seen: Some(now) }, &plan, now), []);
}

#[test]
fn named_devices_go_first_and_excluded_ones_never() {
    let mut plan = plan();
    let devices = ids(100);
    plan.stages.insert(0, Stage { devices: devices[90..92].to_vec(), ..Stage::named("lab") });
    plan.assign.exclude = vec![devices[5].clone()];
    plan.assign.max_devices = Some(60);
    let drawn = members(&plan, &devices, &attributes(100, 2));
    assert_eq!(drawn.members.len(), 60);
    assert!(drawn.members.iter().all(|m| m.device != devices[5]));
    let lab: Vec<_> =
        drawn.members.iter().filter(|m| m.stage == 0).map(|m| (&m.device, m.arm, m.rank)).collect();
    assert_eq!(lab, [(&devices[90], Arm::None, 0), (&devices[91], Arm::None, 1)]);
}

#[test]
fn late_joiners_come_last() {
    let plan = plan();
    let devices = ids(300);
    let drawn = members(&plan, &devices[..299], &attributes(299, 2));
    let attributes = BTreeMap::from([("hw".to_owned(), "hw1".to_owned())]);
    let late = join_late(
        &plan,
        &Seed::new([3; 32]),
        &drawn.summary,
        &Candidate { device: &devices[299], attributes: &attributes, incumbent: None },
    );
    assert_eq!((usize::from(late.stage), late.arm), (plan.last_stage(), Arm::None));
    assert!(late.rank > 1_000_000_000);
    assert_eq!(drawn.summary.strata[usize::from(late.stratum)].name, "hw1");
}

#[test]
fn many_strata_are_pooled_and_the_document_stays_small() {
    let n = 3_000;
    let drawn = members(&plan(), &ids(n), &attributes(n, 300));
    assert!(drawn.summary.strata.len() <= 65);
    assert_eq!(drawn.summary.strata.iter().map(|s| s.devices).sum::<u64>(), n as u64);
}
