//! When a bundle whose choice does not hold is tried anew, and when that is given up. Pure.

use super::Key;
use std::time::Duration;

/// Pause after the first failure; each is twice the last.
const FIRST_PAUSE: Duration = Duration::from_secs(120);
/// Failures after which nothing but a change is worth another try: the last pause before is an hour.
const MOST_TRIES: u32 = 7;

/// What became of the tries of one slot. Times count from any fixed moment.
#[derive(Clone, Debug, Default)]
pub struct Retry(Option<Failed>);

#[derive(Clone, Debug)]
struct Failed {
    /// What it was tried with.
    key: Key,
    tries: u32,
    next: Duration,
}

impl Retry {
    /// Whether a bundle may be tried under `key`: at once under another than it failed with.
    pub fn is_due(&self, key: &Key, now: Duration) -> bool {
        match &self.0 {
            Some(failed) if failed.key == *key => failed.tries < MOST_TRIES && now >= failed.next,
            Some(_) | None => true,
        }
    }

    /// Nothing passed. Returns the pause until the next try; `None` if there is none.
    pub fn failed(&mut self, key: Key, now: Duration) -> Option<Duration> {
        let before = self.0.take().filter(|failed| failed.key == key).map_or(0, |failed| failed.tries);
        let tries = before.saturating_add(1);
        let pause = FIRST_PAUSE.saturating_mul(1 << before.min(MOST_TRIES));
        self.0 = Some(Failed { key, tries, next: now.saturating_add(pause) });
        (tries < MOST_TRIES).then_some(pause)
    }

    pub fn passed(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Policy, *};
    use edgefleet_shared::digest::BundleDigest;

    fn key(engine: &str, threads: usize) -> Key {
        Key {
            bundle: BundleDigest::of(b"b"),
            engines: vec![engine.into()],
            cpu: "cpu".into(),
            policy: Policy { threads, ..Policy::default() },
        }
    }

    #[test]
    fn failures_are_tried_again_ever_later_until_something_changes() {
        let mut retry = Retry::default();
        let (minute, mut tries) = (Duration::from_secs(60), Vec::new());
        for at in (0..10_000).map(|n| minute * n) {
            if retry.is_due(&key("a", 1), at) {
                tries.push(at.as_secs() / 60);
                retry.failed(key("a", 1), at);
            }
        }
        assert_eq!(tries, [0, 2, 6, 14, 30, 62, 126]);
        for other in [key("b", 1), key("a", 2)] {
            assert!(retry.is_due(&other, minute));
        }
        assert_eq!(retry.failed(key("b", 1), minute), Some(FIRST_PAUSE), "a change begins anew");
        retry.passed();
        assert!(retry.is_due(&key("b", 1), minute));
    }
}
