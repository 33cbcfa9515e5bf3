//! When which attempt wants to hear the clock: in memory, rebuilt at start from the stored attempts.

use edgefleet_shared::{
    ids::{DeviceId, RolloutId},
    time::Timestamp,
};
use std::collections::{BTreeMap, BTreeSet};

type Key = (RolloutId, DeviceId);

#[derive(Default)]
pub(super) struct Deadlines {
    by_time: BTreeSet<(Timestamp, Key)>,
    by_key: BTreeMap<Key, Timestamp>,
}

impl Deadlines {
    /// `None` takes the deadline away.
    pub(super) fn set(&mut self, rollout: RolloutId, device: DeviceId, at: Option<Timestamp>) {
        let key = (rollout, device);
        if let Some(old) = self.by_key.remove(&key) {
            self.by_time.remove(&(old, key.clone()));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key.clone()));
            self.by_key.insert(key, at);
        }
    }

    /// Takes out up to `limit` that have come, earliest first.
    pub(super) fn due(&mut self, now: Timestamp, limit: usize) -> Vec<Key> {
        let mut due = Vec::new();
        while due.len() < limit {
            let Some((at, _)) = self.by_time.first() else { break };
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.by_time.pop_first() {
                self.by_key.remove(&key);
                due.push(key);
            }
        }
        due
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_one_deadline_and_they_come_in_order() {
        let key =
            |n: u32| ("r-1".parse::<RolloutId>().unwrap(), format!("dev-{n}").parse::<DeviceId>().unwrap());
        let at = Timestamp::from_secs;
        let mut deadlines = Deadlines::default();
        for (n, when) in [(1, Some(30)), (2, Some(20)), (3, Some(10)), (1, Some(5)), (3, None)] {
            let (rollout, device) = key(n);
            deadlines.set(rollout, device, when.map(at));
        }
        assert_eq!(deadlines.next(), Some(at(5)));
        assert_eq!(deadlines.due(at(4), 10), []);
        assert_eq!(deadlines.due(at(40), 1), [key(1)]);
        assert_eq!(deadlines.due(at(40), 10), [key(2)]);
        assert_eq!(deadlines.next(), None);
    }
}
