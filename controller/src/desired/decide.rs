//! Pure: does the stored desired state still do, must it be signed anew, or is there a new one?

use edgefleet_shared::{desired::Desired, time::Timestamp};
use std::time::Duration;

/// How long a desired state lives. Research A4: expiry is the main cause of outages, so it is long
/// enough for two weeks without a controller, and only new installs depend on it.
pub(super) const LIFETIME: Duration = Duration::from_secs(14 * 86_400);
/// Signed anew when less than this is left.
pub(super) const RENEW_BEFORE: Duration = Duration::from_secs(7 * 86_400);
/// A device that claims to be this far ahead is not believed (DECISIONS 19).
pub(super) const MAX_GENERATION_JUMP: u64 = 1 << 32;

/// What a device says about itself that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason {
    /// Highest generation it accepted.
    pub reported: Option<u64>,
    /// Present if it lost its state.
    pub nonce: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The stored envelope still holds.
    Keep,
    /// Same generation and content, later `issued`.
    Resign(Desired),
    New(Desired),
    /// The device reports a generation that cannot be: keep it out until a person looks.
    Quarantine {
        stored: u64,
        reported: u64,
    },
}

/// `stored` is the last signed state (its `generation` 0 if there is none), `wanted` the content
/// from [`super::compose()`].
///
/// A device ahead of the store (restored from a backup) is met at max(stored, reported) + 1; one that
/// lost its state gets a fresh generation that answers its nonce.
pub fn decide(stored: Option<&Desired>, wanted: Desired, reason: &Reason, now: Timestamp) -> Decision {
    let generation = stored.map_or(0, |desired| desired.generation);
    let reported = reason.reported.unwrap_or(0);
    if reported.saturating_sub(generation) > MAX_GENERATION_JUMP {
        return Decision::Quarantine { stored: generation, reported };
    }
    let sign = |generation: u64, nonce: Option<String>| Desired {
        generation,
        issued: now,
        expires: now + LIFETIME,
        nonce,
        ..wanted.clone()
    };
    let Some(stored) = stored else {
        return Decision::New(sign(reported + 1, reason.nonce.clone()));
    };
    let same = Desired { generation: stored.generation, ..wanted.clone() }.content_digest()
        == stored.content_digest();
    if reported > generation || !same {
        return Decision::New(sign(generation.max(reported) + 1, reason.nonce.clone()));
    }
    if reason.nonce.is_some() && stored.nonce != reason.nonce {
        // The device starts from nothing: any generation is new to it, and it must see its nonce.
        return Decision::New(sign(generation + 1, reason.nonce.clone()));
    }
    if stored.expires <= now + RENEW_BEFORE && now > stored.issued {
        return Decision::Resign(sign(generation, stored.nonce.clone()));
    }
    Decision::Keep
}

#[cfg(test)]
mod tests {
    use super::super::compose::{compose, tests::intent};
    use super::*;
    use edgefleet_shared::desired::Settings;

    const NOW: u64 = 1_800_000_000;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(NOW + secs)
    }
    fn wanted(bundle: &str) -> Desired {
        let device = "dev-1".parse().unwrap();
        compose(&device, &[intent("dev-1", "digits", bundle, "r-1")], &Settings::default(), 1)
    }
    fn stored(bundle: &str, generation: u64) -> Desired {
        Desired { generation, issued: at(0), expires: at(0) + LIFETIME, ..wanted(bundle) }
    }
    fn generation(decision: &Decision) -> Option<u64> {
        match decision {
            Decision::New(desired) | Decision::Resign(desired) => Some(desired.generation),
            Decision::Keep | Decision::Quarantine { .. } => None,
        }
    }
    fn says(reported: u64) -> Reason {
        Reason { reported: Some(reported), nonce: None }
    }

    #[test]
    fn equal_content_keeps_its_generation_until_it_must_be_signed_anew() {
        let old = stored("digits@1", 4);
        assert_eq!(decide(Some(&old), wanted("digits@1"), &says(4), at(60)), Decision::Keep);
        let late = at(8 * 86_400);
        let Decision::Resign(signed) = decide(Some(&old), wanted("digits@1"), &says(4), late) else {
            panic!("not signed anew")
        };
        assert_eq!((signed.generation, signed.issued, signed.expires), (4, late, late + LIFETIME));
        assert_eq!(signed.content_digest(), old.content_digest());
    }

    #[test]
    fn a_change_or_a_device_that_is_ahead_gets_the_next_generation() {
        let old = stored("digits@1", 4);
        for (decision, wanted_generation) in [
            (decide(Some(&old), wanted("digits@2"), &says(4), at(1)), Some(5)),
            (decide(Some(&old), wanted("digits@2"), &says(9), at(1)), Some(10)),
            (decide(Some(&old), wanted("digits@1"), &says(9), at(1)), Some(10)),
            (decide(Some(&old), wanted("digits@1"), &says(2), at(1)), None),
            (decide(None, wanted("digits@1"), &says(7), at(1)), Some(8)),
            (decide(None, wanted("digits@1"), &Reason::default(), at(1)), Some(1)),
        ] {
            assert_eq!(generation(&decision), wanted_generation, "{decision:?}");
        }
    }

    #[test]
    fn a_lost_state_is_answered_with_its_nonce_once() {
        let old = stored("digits@1", 4);
        let lost = Reason { reported: Some(0), nonce: Some("n1".into()) };
        let Decision::New(answer) = decide(Some(&old), wanted("digits@1"), &lost, at(1)) else {
            panic!("not answered")
        };
        assert_eq!((answer.generation, answer.nonce.as_deref()), (5, Some("n1")));
        assert_eq!(decide(Some(&answer), wanted("digits@1"), &lost, at(2)), Decision::Keep);
    }

    #[test]
    fn an_impossible_generation_is_quarantined() {
        let old = stored("digits@1", 4);
        let decision = decide(Some(&old), wanted("digits@1"), &says(5 + MAX_GENERATION_JUMP), at(1));
        assert!(matches!(decision, Decision::Quarantine { stored: 4, .. }));
    }
}
