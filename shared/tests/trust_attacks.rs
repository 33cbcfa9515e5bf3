//! What an attacker with the network, the broker or one stolen key can make a device accept: nothing
//! that both owners did not sign. Every row of the attack tables is a test here.

use edgefleet_shared::{
    desired::{Assigned, DESIRED_SCHEMA, Desired, SlotDesired},
    digest::{BundleDigest, EnvelopeDigest},
    ids::{AttemptId, DeviceId},
    reported::RefusalCode,
    time::Timestamp,
    trust::{
        Accepted, DeviceTrust, Envelope, Release, Role, RoleName, SigningKey, Trust, TrustError,
        documents::Roles,
        envelope::{DESIRED_TYPE, MAX_ENVELOPE_BYTES, RELEASE_TYPE, TRUST_TYPE},
        open, seal,
    },
};
use std::{collections::BTreeMap, time::Duration};

const DAY: Duration = Duration::from_secs(86_400);

/// 2026-11-23, the day the fleet of these tests lives in.
fn today() -> Timestamp {
    "2026-11-23T08:00:00Z".parse().unwrap()
}
fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate_pkcs8().unwrap()).unwrap()
}
fn device() -> DeviceId {
    "dev-1".parse().unwrap()
}

/// Three holders of the trust role (2 of 3), two publishers (2 of 2), one controller.
struct World {
    roots: [SigningKey; 3],
    publishers: [SigningKey; 2],
    controller: SigningKey,
}

impl World {
    fn new() -> Self {
        Self { roots: [key(), key(), key()], publishers: [key(), key()], controller: key() }
    }
    fn trust(&self, version: u64) -> Trust {
        let role = |keys: &[&SigningKey], threshold| Role {
            keys: keys.iter().map(|k| k.public().id()).collect(),
            threshold,
        };
        let all = self.roots.iter().chain(&self.publishers).chain([&self.controller]);
        Trust {
            version,
            issued: today() - DAY,
            expires: today() + 365 * DAY,
            keys: all.map(|k| (k.public().id(), k.public())).collect(),
            roles: Roles {
                trust: role(&self.roots.each_ref(), 2),
                publisher: role(&self.publishers.each_ref(), 2),
                controller: role(&[&self.controller], 1),
            },
            floors: BTreeMap::new(),
        }
    }
    fn seal_trust(&self, trust: &Trust) -> Vec<u8> {
        seal(TRUST_TYPE, trust, &self.roots.each_ref())
    }
    /// With what a change of floors needs besides.
    fn seal_floors(&self, trust: &Trust) -> Vec<u8> {
        let all: Vec<_> = self.roots.iter().chain(&self.publishers).collect();
        seal(TRUST_TYPE, trust, &all)
    }
    /// A device that enrolled with trust 1 and has seen nothing else.
    fn enrolled(&self) -> DeviceTrust {
        let raw = self.seal_trust(&self.trust(1));
        DeviceTrust::pinned(&raw, EnvelopeDigest::of(&raw)).unwrap()
    }
    fn release(&self, counter: u64) -> Release {
        Release {
            bundle: format!("digits@{counter}").parse().unwrap(),
            manifest: BundleDigest::of(format!("manifest {counter}").as_bytes()),
            length: 10,
            hardware: vec![],
            issued: today() - 2 * DAY,
        }
    }
    fn sealed_release(&self, counter: u64) -> Vec<u8> {
        seal(RELEASE_TYPE, &self.release(counter), &self.publishers.each_ref())
    }
    fn assigned(&self, release: &[u8], counter: u64) -> Assigned {
        Assigned {
            bundle: format!("digits@{counter}").parse().unwrap(),
            release: EnvelopeDigest::of(release),
            release_size: release.len() as u64,
            attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
        }
    }
    fn desired(&self, generation: u64, release: &[u8], counter: u64) -> Desired {
        let active = self.assigned(release, counter);
        let slot = SlotDesired {
            active,
            candidate: None,
            probation_secs: 60,
            slower_percent: None,
            thresholds: vec![],
            shadow: None,
            window: None,
        };
        Desired {
            schema: DESIRED_SCHEMA,
            device: device(),
            generation,
            issued: today(),
            expires: today() + 10 * DAY,
            nonce: None,
            trust_version: 1,
            slots: [("digits".parse().unwrap(), slot)].into(),
            settings: Default::default(),
        }
    }
    fn seal_desired(&self, desired: &Desired) -> Vec<u8> {
        seal(DESIRED_TYPE, desired, &[&self.controller])
    }
    fn simple(&self, generation: u64) -> Vec<u8> {
        self.seal_desired(&self.desired(generation, b"release", 1))
    }
}

/// The device must refuse `raw` and remember nothing of it.
fn refused(state: &DeviceTrust, raw: &[u8], clock: Timestamp) -> TrustError {
    let mut after = state.clone();
    let error = after.accept(raw, &device(), clock).expect_err("was accepted");
    assert_eq!(after, *state, "a refusal changed the state");
    error
}

#[test]
fn what_both_signed_is_accepted_even_with_the_clock_at_1970() {
    let world = World::new();
    let release = world.sealed_release(1);
    let mut state = world.enrolled();
    let desired = world.seal_desired(&world.desired(1, &release, 1));
    let (seen, accepted) = state.accept(&desired, &device(), Timestamp::EPOCH).unwrap();
    assert_eq!(accepted, Accepted::New);
    let assigned = &seen.slots[&"digits".parse().unwrap()].active;
    assert_eq!(state.check_release(&release, assigned, "any").unwrap(), world.release(1));
    assert_eq!(state.accept(&desired, &device(), Timestamp::EPOCH).unwrap().1, Accepted::Known);
}

#[test]
fn an_older_generation_is_a_replay_even_after_a_restart() {
    let world = World::new();
    let mut state = world.enrolled();
    let old = world.simple(4);
    state.accept(&old, &device(), today()).unwrap();
    state.accept(&world.simple(5), &device(), today()).unwrap();
    // A restart is a round trip through the stored form.
    let stored: DeviceTrust = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    assert_eq!(stored, state);
    assert_eq!(refused(&stored, &old, today()), TrustError::Replayed { current: 5, found: 4 });
}

#[test]
fn going_back_is_legal_and_going_below_the_floor_is_not() {
    let world = World::new();
    let mut state = world.enrolled();
    let mut second = world.trust(2);
    second.floors.insert("digits".parse().unwrap(), 2);
    for counter in [3, 2] {
        let release = world.sealed_release(counter);
        assert!(state.check_release(&release, &world.assigned(&release, counter), "x").is_ok());
    }
    let revoked = world.sealed_release(1);
    assert!(state.check_release(&revoked, &world.assigned(&revoked, 1), "x").is_ok(), "before the floor");
    state.advance(&world.seal_floors(&second)).unwrap();
    for (counter, legal) in [(3, true), (2, true), (1, false)] {
        let release = world.sealed_release(counter);
        let found = state.check_release(&release, &world.assigned(&release, counter), "x");
        assert_eq!(found.is_ok(), legal, "digits@{counter}: {found:?}");
        assert!(legal || matches!(found, Err(TrustError::BelowFloor { floor: 2, found: 1, .. })));
    }
}

#[test]
fn a_floor_may_rise_but_neither_fall_nor_vanish() {
    let world = World::new();
    let mut state = world.enrolled();
    let model = || "digits".parse().unwrap();
    let with = |version, floor: Option<u64>| {
        let mut trust = world.trust(version);
        trust.floors = floor.map(|floor| (model(), floor)).into_iter().collect();
        world.seal_floors(&trust)
    };
    state.advance(&with(2, Some(5))).unwrap();
    for (floor, legal) in [(Some(4), false), (None, false), (Some(5), true), (Some(6), true)] {
        let found = state.clone().advance(&with(3, floor));
        assert_eq!(found.is_ok(), legal, "{floor:?}: {found:?}");
    }
}

#[test]
fn a_floor_is_changed_by_the_publishers_of_the_version_before_and_by_nobody_alone() {
    let world = World::new();
    let state = world.enrolled();
    let mut raised = world.trust(2);
    raised.floors.insert("digits".parse().unwrap(), 2);
    // The same floor in a document that also brings publishers of its own.
    let foreign = [key(), key()];
    let mut seized = raised.clone();
    seized.keys.extend(foreign.iter().map(|k| (k.public().id(), k.public())));
    seized.roles.publisher.keys = foreign.iter().map(|k| k.public().id()).collect();
    let [one, two, three] = &world.roots;
    let [anna, ben] = &world.publishers;
    let cases: [(&str, &Trust, Vec<&SigningKey>, Option<RoleName>); 6] = [
        ("trust keys alone", &raised, vec![one, two, three], Some(RoleName::Publisher)),
        ("one publisher of two", &raised, vec![one, two, anna], Some(RoleName::Publisher)),
        ("publishers alone", &raised, vec![anna, ben], Some(RoleName::Trust)),
        (
            "publishers it brings itself",
            &seized,
            vec![one, two, &foreign[0], &foreign[1]],
            Some(RoleName::Publisher),
        ),
        ("both owners", &raised, vec![one, two, anna, ben], None),
        ("both owners, the publishers leaving", &seized, vec![one, two, anna, ben], None),
    ];
    for (what, document, keys, missing) in cases {
        let mut after = state.clone();
        match (after.advance(&seal(TRUST_TYPE, document, &keys)), missing) {
            (Ok(()), None) => {}
            (Err(TrustError::Threshold { role, .. }), Some(wanted)) => {
                assert_eq!(role, wanted, "{what}");
                assert_eq!(after, state, "{what}: a refusal changed the state");
            }
            (found, _) => panic!("{what}: {found:?}"),
        }
    }
    // Whatever leaves the floors alone needs the trust role only, before and after.
    let mut state = state;
    state.advance(&world.seal_floors(&raised)).unwrap();
    raised.version = 3;
    state.advance(&world.seal_trust(&raised)).unwrap();
}

#[test]
fn an_expired_desired_state_installs_nothing() {
    let world = World::new();
    let state = world.enrolled();
    let late = today() + 11 * DAY;
    assert!(matches!(refused(&state, &world.simple(1), late), TrustError::Expired { .. }));
    let mut state = state;
    assert!(state.accept(&world.simple(1), &device(), today() + 9 * DAY).is_ok());
}

#[test]
fn an_expired_trust_document_installs_nothing_but_can_still_be_followed() {
    let world = World::new();
    let mut first = world.trust(1);
    first.expires = today() - Duration::from_secs(3_600);
    let raw = world.seal_trust(&first);
    let mut state = DeviceTrust::pinned(&raw, EnvelopeDigest::of(&raw)).unwrap();
    assert!(matches!(
        refused(&state, &world.simple(1), today()),
        TrustError::Expired { what: "trust document", .. }
    ));
    state.advance(&world.seal_trust(&world.trust(2))).expect("the chain is walkable for ever");
    assert!(state.accept(&world.simple(1), &device(), today()).is_ok());
}

#[test]
fn a_release_needs_the_threshold_of_different_publisher_keys() {
    let world = World::new();
    let state = world.enrolled();
    let (one, two, foreign) = (&world.publishers[0], &world.publishers[1], key());
    let check = |raw: &[u8]| state.check_release(raw, &world.assigned(raw, 1), "x");
    for (what, keys, good) in [
        ("both publishers", vec![one, two], true),
        ("one of two", vec![one], false),
        ("one and a foreign key", vec![one, &foreign], false),
        ("the controller itself", vec![&world.controller], false),
        ("a publisher and the controller", vec![one, &world.controller], false),
        ("holders of the trust role", world.roots.iter().collect(), false),
        ("nobody", vec![], false),
    ] {
        let found = check(&seal(RELEASE_TYPE, &world.release(1), &keys));
        assert_eq!(found.is_ok(), good, "{what}: {found:?}");
        assert!(good || matches!(found, Err(TrustError::Threshold { threshold: 2, .. })), "{what}");
    }
}

#[test]
fn the_same_key_twice_counts_once() {
    let world = World::new();
    let state = world.enrolled();
    let sealed = seal(RELEASE_TYPE, &world.release(1), &[&world.publishers[0]]);
    let mut envelope = Envelope::parse(&sealed).unwrap();
    envelope.signatures.push(envelope.signatures[0].clone());
    let raw = envelope.to_bytes();
    let found = state.check_release(&raw, &world.assigned(&raw, 1), "x");
    assert!(matches!(found, Err(TrustError::Threshold { good: 1, threshold: 2, .. })), "{found:?}");
    // Nor under a second name: the id must be the key's own.
    envelope.signatures[1].keyid = world.publishers[1].public().id();
    let raw = envelope.to_bytes();
    assert!(state.check_release(&raw, &world.assigned(&raw, 1), "x").is_err());
}

#[test]
fn a_trust_document_cannot_list_one_key_under_two_names() {
    let world = World::new();
    let mut trust = world.trust(2);
    let stolen = world.publishers[0].public();
    trust.keys.insert(world.publishers[1].public().id(), stolen);
    let found = world.enrolled().advance(&world.seal_trust(&trust));
    assert!(matches!(found, Err(TrustError::TrustInvalid { .. })), "{found:?}");
}

#[test]
fn a_threshold_of_zero_or_beyond_the_keys_is_unusable() {
    let world = World::new();
    for threshold in [0, 4, usize::MAX] {
        let mut trust = world.trust(2);
        trust.roles.trust.threshold = threshold;
        let found = world.enrolled().advance(&world.seal_trust(&trust));
        assert!(matches!(found, Err(TrustError::TrustInvalid { .. })), "{threshold}: {found:?}");
    }
    let mut doubled = world.trust(2);
    let again = doubled.roles.controller.keys[0].clone();
    doubled.roles.controller.keys.push(again);
    doubled.roles.controller.threshold = 2;
    assert!(world.enrolled().advance(&world.seal_trust(&doubled)).is_err(), "one key, listed twice");
}

#[test]
fn a_desired_state_by_anyone_but_the_controller_is_refused() {
    let world = World::new();
    let state = world.enrolled();
    let desired = world.desired(1, b"release", 1);
    let foreign = key();
    for (who, signer) in
        [("foreign", &foreign), ("publisher", &world.publishers[0]), ("trust", &world.roots[0])]
    {
        let found = refused(&state, &seal(DESIRED_TYPE, &desired, &[signer]), today());
        assert!(matches!(found, TrustError::Threshold { good: 0, .. }), "{who}: {found}");
    }
}

#[test]
fn the_controller_cannot_swap_the_release_behind_a_name() {
    let world = World::new();
    let state = world.enrolled();
    let (one, two) = (world.sealed_release(1), world.sealed_release(2));
    // Says digits@1, points at the envelope of digits@2.
    let wrong_name = world.assigned(&two, 1);
    // Points at digits@1, receives digits@2.
    let wrong_bytes = world.assigned(&one, 2);
    for assigned in [wrong_name, wrong_bytes] {
        let found = state.check_release(&two, &assigned, "x");
        assert!(matches!(found, Err(TrustError::ReleaseMismatch { .. })), "{found:?}");
    }
}

#[test]
fn a_document_of_one_kind_never_passes_as_another() {
    let world = World::new();
    let mut state = world.enrolled();
    let desired = world.desired(1, b"release", 1);
    let as_release = seal(RELEASE_TYPE, &desired, &[&world.controller]);
    assert!(matches!(refused(&state, &as_release, today()), TrustError::WrongType { .. }));
    let as_trust = seal(DESIRED_TYPE, &world.trust(2), &world.roots.each_ref());
    assert!(matches!(state.advance(&as_trust), Err(TrustError::WrongType { .. })));
    let as_desired = seal(DESIRED_TYPE, &world.release(1), &world.publishers.each_ref());
    let found = state.check_release(&as_desired, &world.assigned(&as_desired, 1), "x");
    assert!(matches!(found, Err(TrustError::WrongType { .. })));
    // Relabelling a signed envelope breaks its signature: the type is signed too.
    let mut relabelled = Envelope::parse(&world.sealed_release(1)).unwrap();
    relabelled.payload_type = DESIRED_TYPE.to_owned();
    assert!(matches!(refused(&state, &relabelled.to_bytes(), today()), TrustError::Threshold { .. }));
}

#[test]
fn a_bit_flipped_anywhere_in_an_envelope_is_noticed() {
    let world = World::new();
    let state = world.enrolled();
    let desired = world.simple(1);
    let release = world.sealed_release(1);
    let trust = world.seal_trust(&world.trust(2));
    // 2 of 3 signed: every signature is needed, so that no flip hides in a spare one.
    let trust = {
        let mut envelope = Envelope::parse(&trust).unwrap();
        envelope.signatures.truncate(2);
        envelope.to_bytes()
    };
    assert!(state.clone().advance(&trust).is_ok());
    for (what, sound) in [("desired", &desired), ("release", &release), ("trust", &trust)] {
        for at in 0..sound.len() {
            for bit in 0..8 {
                let mut bad = sound.clone();
                bad[at] ^= 1 << bit;
                let taken = match what {
                    "desired" => state.clone().accept(&bad, &device(), today()).is_ok(),
                    "trust" => state.clone().advance(&bad).is_ok(),
                    // The digest alone would catch it, so the signature is asked by itself.
                    _ => open::<Release>(&bad, RELEASE_TYPE, &state.trust, RoleName::Publisher).is_ok(),
                };
                assert!(!taken, "{what}: bit {bit} of byte {at} flipped and accepted");
            }
        }
    }
}

#[test]
fn every_truncation_of_an_envelope_is_refused() {
    let world = World::new();
    let state = world.enrolled();
    let sound = world.simple(1);
    for cut in 0..sound.len() {
        assert!(state.clone().accept(&sound[..cut], &device(), today()).is_err(), "cut at {cut}");
    }
}

#[test]
fn the_next_trust_needs_the_old_threshold_and_the_new_one() {
    let world = World::new();
    let heirs = World::new();
    // Trust 2 hands the trust role over to three new people, still 2 of 3.
    let mut next = world.trust(2);
    next.keys.extend(heirs.roots.iter().map(|k| (k.public().id(), k.public())));
    next.roles.trust.keys = heirs.roots.iter().map(|k| k.public().id()).collect();
    let ([a, b, c], [x, y, z]) = (&world.roots, &heirs.roots);
    for (what, keys, good) in [
        ("new keys only", vec![x, y, z], false),
        ("old keys only", vec![a, b, c], false),
        ("one old, all new", vec![a, x, y, z], false),
        ("all old, one new", vec![a, b, c, x], false),
        ("two old, two new", vec![a, b, x, y], true),
        ("two other old, two other new", vec![b, c, y, z], true),
    ] {
        let mut state = world.enrolled();
        let before = state.clone();
        let found = state.advance(&seal(TRUST_TYPE, &next, &keys));
        assert_eq!(found.is_ok(), good, "{what}: {found:?}");
        assert!(good || state == before, "{what}: a refusal changed the state");
    }
}

#[test]
fn two_of_three_is_two_of_three() {
    let world = World::new();
    let next = world.trust(2);
    let [a, b, c] = &world.roots;
    let foreign = key();
    for (what, keys, good) in [
        ("three", vec![a, b, c], true),
        ("two", vec![a, c], true),
        ("one", vec![b], false),
        ("one and a foreign one", vec![b, &foreign], false),
    ] {
        let found = world.enrolled().advance(&seal(TRUST_TYPE, &next, &keys));
        assert_eq!(found.is_ok(), good, "{what}: {found:?}");
    }
}

#[test]
fn trust_goes_up_one_by_one_and_never_back() {
    let world = World::new();
    let mut state = world.enrolled();
    state.advance(&world.seal_trust(&world.trust(2))).unwrap();
    for version in [0, 1, 2, 4, u64::MAX] {
        let before = state.clone();
        let found = state.advance(&world.seal_trust(&world.trust(version)));
        assert!(matches!(found, Err(TrustError::TrustOrder { current: 2, .. })), "{version}: {found:?}");
        assert_eq!(state, before);
    }
    state.advance(&world.seal_trust(&world.trust(3))).unwrap();
}

#[test]
fn a_revoked_controller_key_assigns_nothing_any_more() {
    let world = World::new();
    let mut state = world.enrolled();
    let successor = key();
    let mut second = world.trust(2);
    second.keys.remove(&world.controller.public().id());
    second.keys.insert(successor.public().id(), successor.public());
    second.roles.controller.keys = vec![successor.public().id()];
    state.advance(&world.seal_trust(&second)).unwrap();
    assert!(matches!(refused(&state, &world.simple(7), today()), TrustError::Threshold { good: 0, .. }));
    let by_successor = seal(DESIRED_TYPE, &world.desired(7, b"release", 1), &[&successor]);
    assert!(state.accept(&by_successor, &device(), today()).is_ok());
}

#[test]
fn a_device_starts_from_the_trust_it_stored_and_not_from_its_pin() {
    // tough's first hole: withholding trust 2 at a restart brought revoked keys back.
    let world = World::new();
    let mut state = world.enrolled();
    let mut second = world.trust(2);
    second.roles.controller.keys = vec![world.publishers[0].public().id()];
    state.advance(&world.seal_trust(&second)).unwrap();
    let stored: DeviceTrust = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    assert!(matches!(refused(&stored, &world.simple(1), today()), TrustError::Threshold { .. }));
}

#[test]
fn a_withheld_trust_document_is_noticed_before_anything_is_installed() {
    let world = World::new();
    let mut state = world.enrolled();
    let mut desired = world.desired(1, b"release", 1);
    desired.trust_version = 2;
    let raw = world.seal_desired(&desired);
    let found = refused(&state, &raw, today());
    assert_eq!(found, TrustError::TrustBehind { have: 1, wanted: 2 });
    assert_eq!(RefusalCode::from(&found), RefusalCode::TrustBehind);
    state.advance(&world.seal_trust(&world.trust(2))).unwrap();
    assert!(state.accept(&raw, &device(), today()).is_ok());
}

#[test]
fn wrong_clocks_neither_open_a_hole_nor_brick_the_device() {
    let world = World::new();
    let years = |n: u32| n * 365 * DAY;
    let sound = world.simple(1);
    for (what, clock, taken) in [
        ("1970", Timestamp::EPOCH, true),
        ("two years behind", today() - years(2), true),
        ("right", today(), true),
        ("within 400 days above the floor it is believed", today() + 399 * DAY, false),
        ("two years ahead", today() + years(2), true),
        ("ten years ahead", today() + years(10), true),
    ] {
        let mut state = world.enrolled();
        assert_eq!(state.accept(&sound, &device(), clock).is_ok(), taken, "{what}");
        // Whatever happened, the device takes it once its clock is right: the local clock left no trace.
        assert!(state.accept(&sound, &device(), today()).is_ok(), "{what}, then right again");
        assert_eq!(state.floor, today(), "{what}: only signed times raise the floor");
    }
}

/// Years in a drawer, then on again with a clock that is right: what is signed now tells the time, and
/// what has expired by it is refused.
#[test]
fn after_years_without_news_a_fresh_document_makes_the_right_clock_count_again() {
    let world = World::new();
    let now = today() + 730 * DAY;
    let mut state = world.enrolled();
    let mut second = world.trust(2);
    (second.issued, second.expires) = (now - 60 * DAY, now + 300 * DAY);
    state.advance(&world.seal_trust(&second)).unwrap();
    let desired = |issued| {
        let mut desired = world.desired(1, b"release", 1);
        (desired.issued, desired.expires) = (issued, issued + 10 * DAY);
        world.seal_desired(&desired)
    };
    let stale = refused(&state, &desired(now - 20 * DAY), now);
    assert!(matches!(stale, TrustError::Expired { what: "desired state", .. }), "{stale}");
    // Also where the trust document that came is itself too old to make the clock plausible.
    assert!(matches!(
        refused(&world.enrolled(), &desired(now - 20 * DAY), now),
        TrustError::Expired { what: "desired state", .. }
    ));
    state.accept(&desired(now - DAY), &device(), now).unwrap();
    assert_eq!(state.floor, now - DAY);
}

#[test]
fn at_1970_an_expired_document_is_still_refused_by_the_signed_floor() {
    let world = World::new();
    let mut state = world.enrolled();
    let mut later = world.desired(2, b"release", 1);
    (later.issued, later.expires) = (today() + 30 * DAY, today() + 40 * DAY);
    state.accept(&world.seal_desired(&later), &device(), Timestamp::EPOCH).unwrap();
    // Generation 3, signed long ago and kept back: a freeze attempt against a device without a clock.
    let kept_back = world.simple(3);
    assert!(matches!(refused(&state, &kept_back, Timestamp::EPOCH), TrustError::Expired { .. }));
}

#[test]
fn a_publisher_whose_clock_runs_ahead_does_not_freeze_the_fleet() {
    let world = World::new();
    let mut state = world.enrolled();
    let mut release = world.release(1);
    release.issued = today() + 3_000 * DAY;
    let raw = seal(RELEASE_TYPE, &release, &world.publishers.each_ref());
    assert!(state.check_release(&raw, &world.assigned(&raw, 1), "x").is_ok());
    assert!(state.accept(&world.simple(1), &device(), today()).is_ok());
}

#[test]
fn a_controller_far_ahead_is_bounded_by_the_trust_document() {
    let world = World::new();
    let state = world.enrolled();
    let mut far = world.desired(1, b"release", 1);
    (far.issued, far.expires) = (today() + 3_650 * DAY, today() + 3_660 * DAY);
    // Else one wrong clock would raise every floor by ten years.
    let found = refused(&state, &world.seal_desired(&far), today());
    assert!(matches!(found, TrustError::Expired { what: "trust document", .. }), "{found}");
}

#[test]
fn after_state_loss_only_an_answer_to_the_nonce_counts() {
    let world = World::new();
    let mut state = DeviceTrust { nonce: Some("n-42".into()), ..world.enrolled() };
    assert_eq!(refused(&state, &world.simple(9), today()), TrustError::NonceMissing);
    let answer = |nonce: &str| {
        world.seal_desired(&Desired { nonce: Some(nonce.into()), ..world.desired(9, b"release", 1) })
    };
    assert_eq!(refused(&state, &answer("n-41"), today()), TrustError::NonceMissing);
    assert_eq!(state.accept(&answer("n-42"), &device(), today()).unwrap().1, Accepted::New);
    assert_eq!(state.nonce, None);
    // The same generation, signed without the nonce later on, is the same content.
    let mut resigned = world.desired(9, b"release", 1);
    resigned.issued = today() + DAY;
    let raw = world.seal_desired(&resigned);
    assert_eq!(state.accept(&raw, &device(), today()).unwrap().1, Accepted::Resigned);
}

#[test]
fn one_generation_with_two_contents_is_equivocation() {
    let world = World::new();
    let mut state = world.enrolled();
    state.accept(&world.simple(5), &device(), today()).unwrap();
    let other = world.seal_desired(&world.desired(5, b"another release", 2));
    assert_eq!(refused(&state, &other, today()), TrustError::Equivocation { generation: 5 });
}

#[test]
fn signing_anew_moves_only_the_expiry() {
    let world = World::new();
    let mut state = world.enrolled();
    let first = world.simple(5);
    state.accept(&first, &device(), today()).unwrap();
    let mut again = world.desired(5, b"release", 1);
    (again.issued, again.expires) = (today() + 7 * DAY, today() + 17 * DAY);
    let again = world.seal_desired(&again);
    assert_eq!(state.accept(&again, &device(), today()).unwrap().1, Accepted::Resigned);
    assert_eq!(state.issued, today() + 7 * DAY);
    // The older signature of the same content is known, and takes nothing back.
    assert_eq!(state.accept(&first, &device(), today()).unwrap().1, Accepted::Known);
    assert_eq!((state.issued, state.floor), (today() + 7 * DAY, today() + 7 * DAY));
}

#[test]
fn a_document_for_another_device_is_refused() {
    let world = World::new();
    let mut desired = world.desired(1, b"release", 1);
    desired.device = "dev-2".parse().unwrap();
    let found = refused(&world.enrolled(), &world.seal_desired(&desired), today());
    assert_eq!(found, TrustError::WrongDevice { found: "dev-2".into() });
}

#[test]
fn a_release_for_other_hardware_is_refused() {
    let world = World::new();
    let state = world.enrolled();
    let release = Release { hardware: vec!["pi5".into(), "pi4".into()], ..world.release(1) };
    let raw = seal(RELEASE_TYPE, &release, &world.publishers.each_ref());
    assert!(state.check_release(&raw, &world.assigned(&raw, 1), "pi4").is_ok());
    let found = state.check_release(&raw, &world.assigned(&raw, 1), "jetson");
    assert!(matches!(found, Err(TrustError::WrongHardware { .. })));
}

#[test]
fn an_unknown_schema_is_refused_with_its_number() {
    let world = World::new();
    let mut desired = world.desired(1, b"release", 1);
    desired.schema = 2;
    let found = refused(&world.enrolled(), &world.seal_desired(&desired), today());
    assert_eq!(found, TrustError::UnknownSchema { found: 2 });
}

#[test]
fn an_oversized_document_is_refused_unread() {
    let state = World::new().enrolled();
    let huge = vec![b' '; MAX_ENVELOPE_BYTES + 1];
    assert!(matches!(refused(&state, &huge, today()), TrustError::TooLarge { .. }));
    assert!(matches!(state.clone().advance(&huge), Err(TrustError::TooLarge { .. })));
}

#[test]
fn a_pin_fits_one_document_only() {
    let (world, stranger) = (World::new(), World::new());
    let raw = world.seal_trust(&world.trust(1));
    let other = stranger.seal_trust(&stranger.trust(1));
    assert_eq!(DeviceTrust::pinned(&other, EnvelopeDigest::of(&raw)), Err(TrustError::TrustPin));
    // A document that matches its pin but is not signed by its own keys is unusable too.
    let unsigned = seal(TRUST_TYPE, &world.trust(1), &[]);
    assert!(matches!(
        DeviceTrust::pinned(&unsigned, EnvelopeDigest::of(&unsigned)),
        Err(TrustError::Threshold { .. })
    ));
}

#[test]
fn junk_is_refused_without_a_panic_and_its_words_stay_short() {
    let world = World::new();
    let state = world.enrolled();
    let long = "x".repeat(100_000);
    for junk in [
        String::new(),
        "null".into(),
        "[]".into(),
        "{}".into(),
        r#"{"payloadType":"a","payload":"!","signatures":[]}"#.into(),
        format!(r#"{{"payloadType":"{long}","payload":"","signatures":[]}}"#),
        format!(
            r#"{{"payloadType":"{DESIRED_TYPE}","payload":"","signatures":[{{"keyid":"{long}","sig":""}}]}}"#
        ),
        format!(r#"{{"payloadType":"{TRUST_TYPE}","payload":"","signatures":[]}}"#),
    ] {
        let said = refused(&state, junk.as_bytes(), today()).to_string();
        assert!(said.len() < 500, "{} bytes of complaint", said.len());
        let said = state.clone().advance(junk.as_bytes()).unwrap_err().to_string();
        assert!(said.len() < 500, "{} bytes of complaint", said.len());
    }
}
