//! How long to wait before the next connection. Pure: randomness comes in as a number.
//!
//! MQTT 3.1.1 does not say "somebody else connected as you": the connection just closes. Two agents
//! with one identity therefore look like a session that the broker ends soon after it began, although
//! the broker answers at once. A second such end within `SUSPICIOUS`, with no failed attempt in
//! between (a broker that restarts refuses for a while), is taken for a takeover.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// Least wait after a takeover, so that two agents with one identity do not fight.
pub const AFTER_TAKEOVER: Duration = Duration::from_secs(60);
/// A session that lived longer than this was a good one.
const SUSPICIOUS: Duration = Duration::from_secs(300);

/// How a connection, or the attempt at one, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// No session came about: refused, unreachable, TLS failed.
    NeverConnected,
    /// The broker closed the session, without an error, after this long.
    ClosedByBroker { lived: Duration },
    /// The session broke after this long.
    Broke { lived: Duration },
}

/// What is known of the recent past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    closings: u32,
}

/// The wait and whether it is because of a takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    pub pause: Duration,
    pub takeover: bool,
}

impl Backoff {
    /// The wait after `ended`. `random` is uniform in 0.0..1.0; half of every wait is random, so that
    /// a fleet does not come back as one.
    pub fn after(&mut self, ended: Ended, random: f64) -> Wait {
        match ended {
            Ended::NeverConnected => {
                self.failures = self.failures.saturating_add(1);
                self.closings = 0;
            }
            Ended::ClosedByBroker { lived } if lived < SUSPICIOUS => {
                self.failures = 1;
                self.closings = self.closings.saturating_add(1);
            }
            Ended::ClosedByBroker { .. } => (self.failures, self.closings) = (1, 1),
            Ended::Broke { lived } => {
                // A session that breaks at once, time after time, is a failure like any other.
                self.failures = if lived < FIRST * 10 { self.failures.saturating_add(1) } else { 1 };
                self.closings = 0;
            }
        }
        let takeover = self.closings >= 2;
        let whole = match takeover {
            // 60 to 120 s, then 120 to 240 s, at most 300.
            true => AFTER_TAKEOVER * 2 * 2u32.saturating_pow((self.closings - 2).min(8)),
            false => FIRST * 2u32.saturating_pow(self.failures.saturating_sub(1).min(16)),
        }
        .min(LONGEST);
        Wait { pause: whole.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0)), takeover }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failed_attempts_double_from_one_second_to_five_minutes() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> =
            (0..12).map(|_| backoff.after(Ended::NeverConnected, 1.0).pause.as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        assert_eq!(backoff.after(Ended::Broke { lived: SECOND * 60 }, 1.0).pause, SECOND);
    }

    #[test]
    fn a_second_silent_close_is_a_takeover_unless_the_broker_was_away() {
        let closed = |secs| Ended::ClosedByBroker { lived: SECOND * secs };
        let mut backoff = Backoff::default();
        assert!(!backoff.after(closed(5), 0.0).takeover);
        let wait = backoff.after(closed(1), 0.0);
        assert!(wait.takeover && wait.pause >= AFTER_TAKEOVER, "{wait:?}");
        assert!(backoff.after(closed(1), 0.0).pause >= AFTER_TAKEOVER * 2);
        // A good long session in between.
        assert!(!backoff.after(closed(301), 0.0).takeover);
        // The broker restarts twice.
        let mut backoff = Backoff::default();
        for _ in 0..3 {
            assert!(!backoff.after(closed(1), 0.0).takeover);
            backoff.after(Ended::NeverConnected, 0.0);
        }
    }

    proptest! {
        #[test]
        fn every_wait_is_between_half_a_second_and_five_minutes(
            ends in prop::collection::vec((0u8..3, 0u64..1_000), 0..60), random in 0.0f64..1.0,
        ) {
            let mut backoff = Backoff::default();
            for (kind, secs) in ends {
                let lived = SECOND * u32::try_from(secs).unwrap();
                let wait = backoff.after(match kind {
                    0 => Ended::NeverConnected,
                    1 => Ended::ClosedByBroker { lived },
                    _ => Ended::Broke { lived },
                }, random);
                prop_assert!(wait.pause >= FIRST / 2 && wait.pause <= LONGEST);
                prop_assert!(!wait.takeover || wait.pause >= AFTER_TAKEOVER);
            }
        }
    }
}
