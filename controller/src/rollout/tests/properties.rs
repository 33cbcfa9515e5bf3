//! Random events: the checker looks after every one, and in the end everything comes to an end.

use super::{
    super::*,
    fleet::{Fleet, Kind},
    stories::{abort, approve, kind, plain, resume},
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Act {
    Pass(u64),
    Perform {
        crash: bool,
    },
    Step(usize),
    Deliver {
        device: usize,
        which: usize,
        keep: bool,
    },
    Online(usize, bool),
    Leave(usize),
    Order(u8),
    World(u8),
    /// The driver repeats what it said before.
    Repeat(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => prop_oneof![0u64..60, 60u64..4_000, Just(90_000)].prop_map(Act::Pass),
        8 => prop::bool::weighted(0.2).prop_map(|crash| Act::Perform { crash }),
        12 => any::<usize>().prop_map(Act::Step),
        12 => (any::<usize>(), 0usize..6, prop::bool::weighted(0.3))
            .prop_map(|(device, which, keep)| Act::Deliver { device, which, keep }),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(device, online)| Act::Online(device, online)),
        1 => any::<usize>().prop_map(Act::Leave),
        1 => (0u8..10).prop_map(Act::Order),
        1 => (0u8..6).prop_map(Act::World),
        1 => any::<u8>().prop_map(Act::Repeat),
    ]
}

fn order(n: u8) -> Event {
    let (by, reason) = ("operator".to_owned(), "because".to_owned());
    match n {
        0 | 1 => Event::Pause { by, reason },
        2..=4 => resume("other"),
        5 => Event::Skip { by, reason },
        6 => Event::Extend { by, reason, span: Span::hours(1) },
        7 => approve("other"),
        8 => abort(AbortMode::Revert),
        _ => abort(AbortMode::Halt),
    }
}

fn plan(kind: u8) -> Plan {
    match kind % 4 {
        0 => plain(&[("canary", 20.0), ("half", 50.0), ("all", 100.0)]),
        1 => {
            let mut plan = plain(&[("look", 15.0), ("canary", 20.0), ("all", 100.0)]);
            plan.stages[0].mode = Mode::Shadow;
            plan.assign.max_in_flight_per.insert("site".into(), Share::Percent(20.0));
            plan
        }
        2 => {
            let mut plan = plain(&[("canary", 30.0), ("all", 100.0)]);
            plan.stages[0].gates = vec![crate::evidence::Gate::Errors];
            plan.stages[1].approval = true;
            plan.stages[1].dynamic = true;
            plan.limits.bytes_per_day = Some(30_000);
            plan
        }
        _ => Plan::single_stage(
            "digits".parse().unwrap(),
            "digits@2".parse().unwrap(),
            vec!["".parse().unwrap()],
        ),
    }
}

fn play(fleet: &mut Fleet, act: &Act) {
    let n = fleet.devices.len();
    match act {
        Act::Pass(secs) => fleet.pass(*secs),
        Act::Perform { crash } => drop(fleet.perform(*crash)),
        Act::Step(device) => fleet.device_steps(device % n),
        Act::Deliver { device, which, keep } => fleet.deliver(device % n, *which, *keep),
        Act::Online(device, online) => fleet.devices[device % n].online = *online,
        Act::Leave(device) => {
            let device = device % n;
            if n > 4 && device.is_multiple_of(7) && !fleet.devices[device].left {
                fleet.devices[device].left = true;
                let id = fleet.devices[device].id.clone();
                if let Some(attempt) = fleet.attempts.iter().position(|attempt| attempt.device == id) {
                    fleet.hear(attempt, &DeviceSaid::LeftFleet);
                }
            }
        }
        // A refusal is an answer, too; `event` checks that it changed nothing.
        Act::Order(which) => drop(fleet.event(&order(*which))),
        Act::World(which) => {
            let until = fleet.now + std::time::Duration::from_secs(5_000);
            let event = match which {
                0 => Event::Freeze { active: Some(ActiveFreeze { name: "x".into(), until }) },
                1 | 2 => Event::Freeze { active: None },
                3 => Event::Line {
                    stopped: Some(LineStopped { by: "op".into(), at: fleet.now, reason: "stop".into() }),
                },
                _ => Event::Line { stopped: None },
            };
            fleet.event(&event).unwrap();
        }
        Act::Repeat(which) => {
            let old = u64::from(*which) % fleet.rollout.next_effect;
            if fleet.rollout.pending.iter().all(|pending| pending.id != old) {
                let before = fleet.rollout.stages.clone();
                let event =
                    Event::HandedOut { effect: old, count: 3, controls: 1, cursor: Some(9), exhausted: true };
                fleet.event(&event).unwrap();
                let counts =
                    |stages: &[StageProgress]| stages.iter().map(|s| s.counts.clone()).collect::<Vec<_>>();
                assert_eq!(counts(&before), counts(&fleet.rollout.stages), "an old report counted again");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// No device outside the plan, stage order, budgets, never more than the cap, revert reaches everybody,
    /// terminal is terminal: the checker looks after each event. And every mixture of faults ends, or a
    /// person's decision is what is missing, and said so.
    #[test]
    fn whatever_happens_the_invariants_hold_and_it_ends(
        which in 0u8..4,
        kinds in prop::collection::vec(kind(), 1..36),
        acts in prop::collection::vec(act(), 0..400),
    ) {
        let mut fleet = Fleet::started(plan(which), &kinds);
        for act in &acts {
            play(&mut fleet, act);
            fleet.check();
        }
        fleet.event(&Event::Line { stopped: None }).unwrap();
        fleet.event(&Event::Freeze { active: None }).unwrap();
        fleet.devices.iter_mut().for_each(|device| device.online = true);
        let done = fleet.run(4_000, 3_600, |fleet| fleet.rollout.is_terminal());
        prop_assert!(done, "{:?} {:#?}", fleet.rollout.state, fleet.rollout.waiting);
        fleet.run(50, 3_600, |_| false);
        fleet.check();
        if matches!(fleet.rollout.state, State::Reverted { .. }) {
            prop_assert_eq!(fleet.running(), 0, "a device still runs what was taken back");
        }
    }

    #[test]
    fn hearing_everything_twice_moves_nothing_the_second_time(kinds in prop::collection::vec(kind(), 5..20), acts in prop::collection::vec(act(), 0..200)) {
        let mut fleet = Fleet::started(plan(0), &kinds);
        for act in &acts {
            // Every message stays, and comes again and again.
            let act = match act {
                Act::Deliver { device, which, .. } => Act::Deliver { device: *device, which: *which, keep: true },
                other => other.clone(),
            };
            play(&mut fleet, &act);
            if let Act::Deliver { device, which, .. } = act {
                let before = (fleet.rollout.stages.clone(), fleet.rollout.evidence.clone());
                fleet.deliver(device % fleet.devices.len(), which, true);
                prop_assert_eq!(before, (fleet.rollout.stages.clone(), fleet.rollout.evidence.clone()));
            }
        }
        fleet.check();
    }

    #[test]
    fn a_step_is_a_function_and_survives_its_store(acts in prop::collection::vec(act(), 0..120), kinds in prop::collection::vec(kind(), 5..20)) {
        let mut fleet = Fleet::started(plan(2), &kinds);
        for act in &acts {
            play(&mut fleet, act);
        }
        let stored = serde_json::to_string(&fleet.rollout).unwrap();
        let read: Rollout = serde_json::from_str(&stored).unwrap();
        // serde_json reads a fraction to within its last bit; all else has to be the same.
        prop_assert!((read.tokens.credit - fleet.rollout.tokens.credit).abs() < 1e-9);
        let mut same = read.clone();
        same.tokens.credit = fleet.rollout.tokens.credit;
        same.evidence = fleet.rollout.evidence.clone();
        same.assessment = fleet.rollout.assessment.clone();
        for (read, kept) in same.pending.iter_mut().zip(&fleet.rollout.pending) {
            if let (Effect::Verdict { record: read }, Effect::Verdict { record: kept }) = (&mut read.effect, &kept.effect) {
                read.assessment = kept.assessment.clone();
            }
        }
        for (read, kept) in same.waiting.iter_mut().zip(&fleet.rollout.waiting) {
            if let (What::Rate { per_min: read, .. }, What::Rate { per_min: kept, .. }) = (&mut read.what, &kept.what) {
                *read = *kept;
            }
        }
        prop_assert_eq!(&same, &fleet.rollout);
        let now = fleet.now + std::time::Duration::from_secs(77);
        prop_assert_eq!(step(&read, &Event::Tick, now), step(&read, &Event::Tick, now));
        for attempt in &fleet.attempts {
            let stored = serde_json::to_string(attempt).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Attempt>(&stored).unwrap(), attempt);
        }
    }
}

#[test]
fn the_checker_sees_what_is_wrong() {
    let mut fleet = Fleet::started(plan(0), &[Kind::Good; 20]);
    fleet.run(4, 30, |_| false);
    fleet.check();
    type Break = fn(&mut Fleet);
    let breaks: &[(&str, Break)] = &[
        ("counters", |f| f.rollout.stages[0].counts.add(Bucket::Committed, 1)),
        ("concurrency", |f| f.rollout.stages[0].counts.add(Bucket::InFlight, 100)),
        ("stage order", |f| f.rollout.stages[2].handed_out = 1),
        ("turns stop", |f| {
            f.rollout.pending.push(Pending {
                id: 1,
                effect: Effect::HandOut {
                    stage: 0,
                    mode: Mode::Active,
                    at_most: 1,
                    after: None,
                    again: false,
                },
            });
            f.rollout.state = State::Aborted;
        }),
        ("document size", |f| f.rollout.reason = "x".repeat(MAX_DOCUMENT)),
        ("revert reaches everybody", |f| {
            f.rollout.state = State::Reverted { unreachable: 0 };
            f.attempts[0].state = AttemptState::Committed { late: false };
        }),
        ("activation needs a turn", |f| {
            let last = f.attempts.len() - 1;
            f.attempts[last].activated_at = Some(f.now);
        }),
    ];
    for (rule, change) in breaks {
        let mut broken = fleet.clone();
        change(&mut broken);
        let mut found = check_rollout(&broken.rollout);
        found.extend(check_together(&broken.rollout, &broken.attempts));
        assert!(found.iter().any(|violation| violation.rule == *rule), "{rule}: {found:?}");
    }
    let mut after = fleet.rollout.clone();
    after.state = State::Running;
    let mut before = fleet.rollout.clone();
    before.state = State::Aborted;
    assert!(
        check_step(&before, &Event::Tick, &after).iter().any(|violation| violation.rule == "transitions")
    );
}
