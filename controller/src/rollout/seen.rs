//! Which telemetry records of a device have been taken in: exact for what arrives nearly in order, and never
//! twice for anything.

use super::attempt::RecordKey;
use edgefleet_shared::ids::BootId;
use serde::{Deserialize, Serialize};

/// Boots remembered. The store drops repeats by (device, boot, sequence) already; this is the second line, for
/// the same record told again after a crash between two writes.
const BOOTS: usize = 3;
/// Islands per boot; beyond that the lowest gap counts as seen.
const ISLANDS: usize = 8;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seen(Vec<Boot>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    boot: BootId,
    /// Inclusive, ascending, apart from each other.
    ranges: Vec<(u64, u64)>,
}

impl Seen {
    /// Notes a record; false if it may have been there before.
    pub fn take(&mut self, key: RecordKey) -> bool {
        let Some(at) = self.0.iter().position(|known| known.boot == key.boot) else {
            if self.0.len() == BOOTS {
                self.0.remove(0);
            }
            self.0.push(Boot { boot: key.boot, ranges: vec![(key.seq, key.seq)] });
            return true;
        };
        let ranges = &mut self.0[at].ranges;
        let next = ranges.partition_point(|(_, to)| *to < key.seq);
        if ranges.get(next).is_some_and(|(from, _)| *from <= key.seq) {
            return false;
        }
        ranges.insert(next, (key.seq, key.seq));
        // Join with the neighbours it touches.
        if ranges.get(next + 1).is_some_and(|(from, _)| key.seq.checked_add(1) == Some(*from)) {
            ranges[next].1 = ranges.remove(next + 1).1;
        }
        if next > 0 && ranges[next - 1].1.checked_add(1) == Some(key.seq) {
            ranges[next - 1].1 = ranges.remove(next).1;
        }
        if ranges.len() > ISLANDS {
            let to = ranges.remove(1).1;
            ranges[0].1 = to;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_is_taken_twice_and_what_comes_in_order_is_taken(seqs in prop::collection::vec((0u8..4, 0u64..60), 0..200)) {
            let mut seen = Seen::default();
            let mut taken = std::collections::BTreeSet::new();
            for (boot, seq) in seqs {
                // Boots only go on: an old one that comes back after three others is a different matter.
                let boot = boot % 3;
                let key = RecordKey { boot: BootId::from_random([boot; 16]), seq };
                let new = seen.take(key);
                prop_assert!(!new || taken.insert((boot, seq)), "{boot} {seq} was taken twice");
            }
            prop_assert!(serde_json::to_vec(&seen).unwrap().len() < 1_024);
        }
    }

    #[test]
    fn in_order_everything_is_taken_and_one_range_remains() {
        let mut seen = Seen::default();
        let key = |seq| RecordKey { boot: BootId::from_random([1; 16]), seq };
        assert!((1..=1_000).all(|seq| seen.take(key(seq))));
        assert!((1..=1_000).all(|seq| !seen.take(key(seq))));
        assert_eq!(seen.0[0].ranges, [(1, 1_000)]);
    }
}
