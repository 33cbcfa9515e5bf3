//! Pure: when to try again, and when to give up.

use edgefleet_shared::time::Timestamp;
use std::time::Duration;

/// After the first failure.
const FIRST: Duration = Duration::from_secs(5);
/// Between two tries, at most.
const LONGEST: Duration = Duration::from_secs(30 * 60);
/// After this a receiver is not told any more: a day covers a night and a repair.
pub(super) const GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// What to do after a try that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    At(Timestamp),
    GiveUp,
}

/// Doubles from 5 s to 30 min, shortened by up to a half so that receivers that come back are not met by
/// everything at once; no shorter than what the receiver asked for.
///
/// `tries`: those that failed so far, 1 or more. `since`: when the alert was raised. `jitter`: 0.0 to 1.0.
pub(super) fn after_failure(
    tries: u32,
    since: Timestamp,
    now: Timestamp,
    jitter: f64,
    asked: Option<Duration>,
) -> Next {
    let doubled = FIRST.saturating_mul(1u32.checked_shl(tries.saturating_sub(1).min(31)).unwrap_or(u32::MAX));
    let wait = doubled.min(LONGEST).mul_f64(1.0 - 0.5 * jitter.clamp(0.0, 1.0));
    let wait = wait.max(asked.unwrap_or_default().min(LONGEST));
    let at = now + wait;
    if at > since + GIVE_UP_AFTER { Next::GiveUp } else { Next::At(at) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_secs(1_800_000_000 + secs)
    }

    #[test]
    fn waits_double_to_half_an_hour_and_end_after_a_day() {
        for (tries, secs) in [(1, 5), (2, 10), (3, 20), (9, 1_280), (10, 1_800), (4_000_000_000, 1_800)] {
            assert_eq!(after_failure(tries, at(0), at(0), 0.0, None), Next::At(at(secs)), "{tries}");
        }
        assert_eq!(after_failure(2, at(0), at(0), 1.0, None), Next::At(at(5)));
        let asked = |secs| after_failure(1, at(0), at(0), 0.0, Some(Duration::from_secs(secs)));
        assert_eq!((asked(60), asked(1)), (Next::At(at(60)), Next::At(at(5))));
        assert_eq!(asked(1_000_000), Next::At(at(1_800)), "a receiver cannot put it off for ever");
        assert_eq!(after_failure(60, at(0), at(86_390), 0.0, None), Next::GiveUp);
    }

    proptest! {
        #[test]
        fn tries_are_spread_and_end(jitter in 0.0f64..=1.0, seed in 0u64..1_000_000) {
            let (mut now, mut tries) = (at(seed), 0u32);
            loop {
                tries += 1;
                match after_failure(tries, at(seed), now, jitter, None) {
                    Next::At(next) => {
                        prop_assert!(next > now && next.since(now) <= LONGEST);
                        now = next;
                    }
                    Next::GiveUp => break,
                }
            }
            prop_assert!((50..=120).contains(&tries), "{tries} tries in a day");
        }
    }
}
