//! Slots of engine packs: what runs on nothing else must not lose its engine.

use super::{
    tests::{Slot, engine_slot, refusal, wants},
    *,
};
use edgefleet_shared::reported::Phase;

fn pack() -> Slot {
    Slot::named(engine_slot())
}

fn withdraws(slot: &Slot) -> bool {
    slot.effects.contains(&Effect::Withdraw { ticket: slot.ticket() })
}

fn still_needed(slot: &mut Slot, message: &str) {
    let refusal = Refusal { message: message.into(), ..refusal(RefusalCode::NoArtifact) };
    slot.on(Event::StillNeeded { ticket: slot.ticket(), refusal });
}

#[test]
fn a_pack_that_is_not_wanted_stays_until_nothing_needs_it() {
    let mut slot = pack();
    slot.committed(1, 1).committed(2, 2);
    slot.on(Event::Removed { generation: 9 });
    assert!(withdraws(&slot) && !slot.effects.contains(&Effect::Deactivate));
    assert_eq!((slot.active(), slot.previous(), slot.state.phase()), (Some(2), None, Phase::Committed));
    assert_eq!(slot.effects[0], Effect::Persist, "a start must not forget it");

    still_needed(&mut slot, "a");
    let said = |slot: &Slot| slot.state.report().last_error.map(|error| error.message);
    assert_eq!(said(&slot), Some("a".into()));
    assert!(slot.effects.contains(&Effect::Report));
    // Asked again by the timer, at each start and at each new wish; told once.
    slot.on(Event::TimerFired { ticket: slot.ticket() });
    assert!(withdraws(&slot));
    still_needed(&mut slot, "a");
    assert!(!slot.effects.contains(&Effect::Report), "{:?}", slot.effects);
    slot.on(Event::Started);
    assert!(slot.effects.iter().any(|e| matches!(e, Effect::Activate(pack) if pack.name.counter == 2)));
    assert!(!withdraws(&slot), "what needs it is not loaded yet");
    assert!(slot.effects.iter().any(|e| matches!(e, Effect::StartTimer { .. })));
    slot.on(Event::Removed { generation: 10 });
    assert!(withdraws(&slot));
    assert_eq!(said(&slot), Some("a".into()));

    let late = Event::Withdrawn { ticket: slot.ticket() - 1 };
    assert_eq!(slot.on(late).active(), Some(2));
    let ticket = slot.ticket();
    slot.on(Event::Withdrawn { ticket });
    assert_eq!((slot.active(), slot.state.phase(), said(&slot)), (None, Phase::Idle, None));
    assert!(slot.effects.contains(&Effect::CollectGarbage) && slot.state.report().active.is_none());
}

#[test]
fn a_pack_that_is_wanted_again_before_it_went_costs_nothing() {
    let mut slot = pack();
    slot.committed(1, 1).on(Event::Removed { generation: 9 });
    still_needed(&mut slot, "a");
    slot.on(Event::Desired { generation: 10, slot: Box::new(wants(1, 1)) });
    assert_eq!((slot.active(), slot.state.phase()), (Some(1), Phase::Committed));
    assert!(!slot.downloads() && slot.state.report().last_error.is_none());
    // Late words of what was asked before change nothing.
    for event in [Event::Withdrawn { ticket: slot.ticket() }, Event::TimerFired { ticket: slot.ticket() }] {
        slot.on(event);
        assert!(slot.active() == Some(1) && !withdraws(&slot));
    }
}

#[test]
fn going_back_to_the_pack_before_is_tested_as_any_pack_is() {
    let mut slot = pack();
    slot.committed(1, 1).committed(2, 2);
    slot.desire(1, 3).fetched(1);
    assert!(slot.tests(), "what serves by now may run on the newer alone: {:?}", slot.effects);
    slot.failed(RefusalCode::NoArtifact);
    assert_eq!((slot.active(), slot.state.phase()), (Some(2), Phase::Incompatible));
    // A model that was here before is switched to at once.
    let mut model = Slot::new();
    model.committed(1, 1).committed(2, 2);
    model.desire(1, 3);
    model.on(Event::ReleaseChecked { ticket: model.ticket(), release: super::tests::release(1) });
    assert!(model.effects.iter().any(|e| matches!(e, Effect::Switch { .. })));
}

#[test]
fn a_pack_that_fails_by_itself_goes_back_unasked() {
    let mut slot = pack();
    slot.provisional(1, 1);
    slot.on(Event::HealthBad { code: RefusalCode::Unhealthy, reason: "bad".into() });
    assert!(slot.effects.contains(&Effect::Deactivate), "{:?}", slot.effects);
    assert_eq!((slot.active(), slot.state.phase()), (None, Phase::RolledBackLocal));
}
