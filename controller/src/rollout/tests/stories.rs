//! Whole rollouts, and the table of transitions.

use super::{
    super::*,
    fleet::{Fleet, Kind},
};
use proptest::prelude::*;

fn by(name: &str) -> (String, String) {
    (name.to_owned(), "because".to_owned())
}
pub(super) fn approve(name: &str) -> Event {
    let (by, reason) = by(name);
    Event::Approve { by, reason }
}
pub(super) fn resume(name: &str) -> Event {
    let (by, reason) = by(name);
    Event::Resume { by, reason }
}
pub(super) fn abort(mode: AbortMode) -> Event {
    let (by, reason) = by("operator");
    Event::Abort { by, reason, mode }
}

/// Without statistics, so that simple devices carry it from end to end.
pub(super) fn plain(stages: &[(&str, f64)]) -> Plan {
    let mut plan = Plan::new("digits".parse().unwrap(), "digits@2".parse().unwrap());
    plan.stages = stages
        .iter()
        .map(|(name, size)| Stage {
            size: Some(Share::Percent(*size)),
            soak: Span::minutes(10),
            ..Stage::named(name)
        })
        .collect();
    plan.limits.start_per_min = 600.0;
    plan.limits.concurrency_min = 20;
    plan
}

fn started(kinds: &[Kind]) -> Fleet {
    Fleet::started(plain(&[("canary", 10.0), ("half", 50.0), ("all", 100.0)]), kinds)
}

fn over(fleet: &Fleet) -> bool {
    fleet.rollout.is_terminal()
}

#[test]
fn a_good_bundle_reaches_everybody_in_the_order_of_the_stages() {
    let mut fleet = started(&[Kind::Good; 80]);
    assert!(fleet.run(2_000, 30, over), "{:?}", fleet.rollout.waiting);
    assert!(matches!(fleet.rollout.state, State::Completed { .. }));
    assert_eq!((fleet.running(), fleet.in_state(|s| matches!(s, AttemptState::Committed { .. }))), (80, 80));
    fleet.check();
}

#[test]
fn a_bundle_that_crashes_stops_in_the_first_stage_and_everybody_goes_back() {
    let mut fleet = started(&[Kind::Crashes; 200]);
    assert!(fleet.run(2_000, 30, over), "{:?}", fleet.rollout.waiting);
    assert_eq!(fleet.rollout.state, State::Reverted { unreachable: 0 });
    assert_eq!((fleet.running(), fleet.rollout.stage), (0, 0));
    assert!(fleet.ever <= 20, "{} devices ran it", fleet.ever);
}

#[test]
fn a_revert_brings_every_device_back_even_those_that_come_late() {
    let mut fleet = started(&[Kind::Good; 60]);
    assert!(fleet.run(1_000, 30, |f| f.rollout.stage == 2 && f.running() > 30));
    for device in &mut fleet.devices[..10] {
        device.online = false;
    }
    fleet.event(&abort(AbortMode::Revert)).unwrap();
    assert!(!fleet.run(50, 30, over), "it ended without the ten that are away");
    assert!(fleet.rollout.waiting.iter().any(|w| matches!(w.what, What::Revert { left: 1.., .. })));
    fleet.devices.iter_mut().for_each(|device| device.online = true);
    assert!(fleet.run(500, 30, over));
    assert_eq!((&fleet.rollout.state, fleet.running()), (&State::Reverted { unreachable: 0 }, 0));
    fleet.check();
}

#[test]
fn one_refused_signature_pauses_early_stages_and_never_reverts_by_itself() {
    let mut kinds = vec![Kind::Good; 79];
    kinds.push(Kind::Refuses);
    let mut fleet = started(&kinds);
    assert!(fleet.run(2_000, 30, |f| over(f) || matches!(f.rollout.state, State::Paused { .. })));
    let refused = fleet.attempts.iter().find(|a| a.failure.is_some_and(|f| f.kind == FailureKind::Verify));
    // One alone stops the canary stage; later one alone is only quarantined.
    match refused.map(|attempt| attempt.stage) {
        Some(0) => assert!(matches!(
            &fleet.rollout.state,
            State::Paused { why: PauseWhy::Gate { rule: Rule::VerifyFailed, .. } }
        )),
        Some(_) => assert!(over(&fleet)),
        None => panic!("the device never had its turn"),
    }
}

#[test]
fn an_inconclusive_stage_pauses_and_reverts_if_nobody_cares() {
    let mut plan = plain(&[("canary", 20.0), ("all", 100.0)]);
    plan.stages[0].gates = vec![crate::evidence::Gate::Agreement];
    for person in [false, true] {
        let mut fleet = Fleet::started(plan.clone(), &[Kind::Good; 60]);
        assert!(
            fleet.run(400, 30, |f| matches!(f.rollout.state, State::Paused { why: PauseWhy::Inconclusive }))
        );
        assert!(matches!(fleet.event(&resume("author")), Err(Refused::OwnApproval { .. })));
        if person {
            fleet.event(&resume("other")).unwrap();
            assert!(fleet.run(2_000, 60, over));
            assert!(matches!(fleet.rollout.state, State::Completed { .. }));
        } else {
            assert!(fleet.run(2_000, 600, over));
            assert_eq!((&fleet.rollout.state, fleet.running()), (&State::Reverted { unreachable: 0 }, 0));
        }
    }
}

#[test]
fn too_few_devices_for_statistics_end_by_a_named_approval_not_by_silence() {
    let mut plan = plain(&[("canary", 10.0), ("all", 100.0)]);
    plan.stages[0].gates = vec![crate::evidence::Gate::Errors];
    let mut fleet = Fleet::started(plan, &[Kind::Good; 50]);
    let asks = |f: &Fleet| f.rollout.approvals.is_open(Scope::Pass { stage: 0 });
    assert!(fleet.run(400, 30, asks), "{:?}", fleet.rollout.waiting);
    fleet.run(20, 30, |_| false);
    assert_eq!(fleet.rollout.stage, 0);
    assert!(matches!(fleet.event(&approve("author")), Err(Refused::OwnApproval { .. })));
    fleet.event(&approve("other")).unwrap();
    assert!(fleet.run(2_000, 30, over));
    assert!(matches!(fleet.rollout.state, State::Completed { .. }));
}

#[test]
fn offline_devices_do_not_block_and_still_get_it_when_they_come() {
    let mut fleet = started(&[Kind::Good; 60]);
    fleet.devices[..12].iter_mut().for_each(|device| device.online = false);
    assert!(fleet.run(3_000, 290, over), "{:?}", fleet.rollout.waiting);
    assert!(
        matches!(fleet.rollout.state, State::Completed { .. }),
        "{:?} {:?}",
        fleet.rollout.state,
        fleet.rollout.stages
    );
    assert_eq!(fleet.running(), 48);
    fleet.devices.iter_mut().for_each(|device| device.online = true);
    assert!(fleet.run(200, 60, |f| f.running() == 60));
    fleet.check();
}

#[test]
fn a_freeze_period_stops_new_turns_and_ends_by_itself() {
    let mut fleet = started(&[Kind::Good; 60]);
    fleet.run(5, 30, |_| false);
    let until = fleet.now + std::time::Duration::from_secs(36_000);
    fleet.event(&Event::Freeze { active: Some(ActiveFreeze { name: "holidays".into(), until }) }).unwrap();
    let before = fleet.rollout.stages.iter().map(|s| s.handed_out).sum::<u64>();
    fleet.run(100, 60, |_| false);
    assert_eq!(fleet.rollout.stages.iter().map(|s| s.handed_out).sum::<u64>(), before);
    assert!(
        fleet
            .rollout
            .waiting
            .iter()
            .any(|w| matches!(&w.what, What::FreezeCalendar { name } if name == "holidays"))
    );
    assert!(fleet.run(3_000, 60, over));
    assert!(matches!(fleet.rollout.state, State::Completed { .. }));
}

#[test]
fn broken_downloads_are_retried_and_hold_no_slot_meanwhile() {
    let mut fleet = started(&[Kind::Drops(4); 30]);
    assert!(fleet.run(5_000, 30, over), "{:?}", fleet.rollout.waiting);
    assert!(matches!(fleet.rollout.state, State::Completed { .. }));
    assert_eq!(fleet.running(), 30);
    fleet.check();
}

#[test]
fn a_halt_leaves_what_runs_and_calls_back_what_does_not() {
    let mut fleet = started(&[Kind::Good; 60]);
    assert!(fleet.run(1_000, 30, |f| f.rollout.stage == 1 && f.running() > 10));
    fleet.event(&abort(AbortMode::Halt)).unwrap();
    fleet.run(100, 30, |_| false);
    let running = fleet.running();
    assert!(running > 10 && running < 60);
    assert_eq!(fleet.rollout.state, State::Aborted);
    fleet.check();
}

/// Orders by state: `true` where the table of fleet-control 6.1 lists the transition.
#[test]
fn what_the_table_does_not_list_is_refused_by_name() {
    type Make = fn() -> Fleet;
    let draft: Make = || Fleet::new(plain(&[("all", 100.0)]), &[Kind::Good; 5]);
    let pending: Make = || {
        let mut plan = plain(&[("all", 100.0)]);
        plan.approval = true;
        let mut fleet = Fleet::new(plan, &[Kind::Good; 5]);
        fleet.event(&Event::Submit { by: "author".into() }).unwrap();
        fleet
    };
    let running: Make = || {
        let mut fleet = started(&[Kind::Good; 60]);
        fleet.run(3, 30, |_| false);
        fleet
    };
    let paused: Make = || {
        let mut fleet = started(&[Kind::Good; 60]);
        fleet.run(3, 30, |_| false);
        fleet.event(&Event::Pause { by: "op".into(), reason: String::new() }).unwrap();
        fleet
    };
    let reverting: Make = || {
        let mut fleet = started(&[Kind::Good; 60]);
        fleet.run(9, 30, |_| false);
        fleet.event(&abort(AbortMode::Revert)).unwrap();
        fleet
    };
    let aborted: Make = || {
        let mut fleet = started(&[Kind::Good; 60]);
        fleet.run(3, 30, |_| false);
        fleet.event(&abort(AbortMode::Halt)).unwrap();
        fleet
    };
    let orders: [(&str, Event); 9] = [
        ("submit", Event::Submit { by: "author".into() }),
        ("approve", approve("other")),
        ("deny", Event::Deny { by: "other".into(), reason: "no".into() }),
        ("start", Event::Start { by: "author".into() }),
        ("pause", Event::Pause { by: "op".into(), reason: "x".into() }),
        ("resume", resume("op")),
        ("abort", abort(AbortMode::Halt)),
        ("skip", Event::Skip { by: "op".into(), reason: "x".into() }),
        ("extend", Event::Extend { by: "op".into(), reason: "x".into(), span: Span::hours(1) }),
    ];
    for (state, make, allowed) in [
        ("draft", draft, "submit abort"),
        ("pending-approval", pending, "approve deny abort"),
        ("running", running, "pause abort skip"),
        ("paused", paused, "resume abort skip"),
        ("reverting", reverting, ""),
        ("aborted", aborted, ""),
    ] {
        for (name, order) in &orders {
            let mut fleet = make();
            assert_eq!(fleet.rollout.state.name().as_str(), state);
            let listed = allowed.split(' ').any(|allowed| allowed == *name);
            assert_eq!(fleet.event(order).is_ok(), listed, "{name} while {state}");
        }
    }
}

#[test]
fn a_superseded_rollout_keeps_its_author_and_names_its_successor() {
    let mut fleet = started(&[Kind::Good; 5]);
    fleet.event(&Event::SupersededBy { rollout: "r-2".parse().unwrap() }).unwrap();
    assert!(matches!(&fleet.rollout.state, State::Superseded { by } if by.as_str() == "r-2"));
    fleet.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_million_seconds_of_nothing_end_every_rollout_somewhere(kinds in prop::collection::vec(kind(), 3..40)) {
        let mut fleet = started(&kinds);
        let done = fleet.run(4_000, 1_800, over);
        prop_assert!(done, "{:?} {:?}", fleet.rollout.state, fleet.rollout.waiting);
        fleet.check();
    }
}

pub(super) fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Good),
        1 => Just(Kind::Crashes),
        1 => Just(Kind::Refuses),
        1 => Just(Kind::FailsTrial),
        2 => (1u8..15).prop_map(Kind::Drops),
        1 => Just(Kind::Defers),
    ]
}
