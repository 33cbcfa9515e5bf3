//! Pure: which (boot, seq) of a device have been stored.

use edgefleet_shared::{
    ids::BootId,
    telemetry::{Ack, BootAck, batch::TELEMETRY_SCHEMA},
};
use serde::{Deserialize, Serialize};

/// Boots remembered for each device; the one silent for longest is dropped first. A device with more
/// unfinished boots than this repeats records of the oldest, so the number is generous.
const MAX_BOOTS: usize = 64;
/// Islands beyond the contiguous part, for each boot. A device sends in order, so one is normal.
const MAX_RANGES: usize = 32;

/// What is known of one device's records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Most recently heard of last.
    boots: Vec<BootAck>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Never seen: count it.
    New,
    /// Counted before: only acknowledge it again.
    Repeat,
    /// Too far ahead of a gap to remember: neither count nor acknowledge, it will come again.
    OutOfOrder,
}

impl Seen {
    /// Remembers `(boot, seq)`.
    pub fn note(&mut self, boot: BootId, seq: u64) -> Verdict {
        if seq == 0 {
            return Verdict::OutOfOrder; // sequences start at 1
        }
        let mut entry = match self.boots.iter().position(|known| known.boot == boot) {
            Some(at) => self.boots.remove(at),
            None => BootAck { boot, contiguous: 0, extra: vec![] },
        };
        let verdict = insert(&mut entry, seq);
        if self.boots.len() >= MAX_BOOTS {
            self.boots.remove(0);
        }
        self.boots.push(entry);
        verdict
    }

    /// The acknowledgement for the given boots.
    pub fn ack(&self, boots: &[BootId]) -> Ack {
        let boots = self.boots.iter().filter(|known| boots.contains(&known.boot)).cloned().collect();
        Ack { schema: TELEMETRY_SCHEMA, boots }
    }
}

fn insert(entry: &mut BootAck, seq: u64) -> Verdict {
    if entry.covers(seq) {
        return Verdict::Repeat;
    }
    let mut ranges = std::mem::take(&mut entry.extra);
    ranges.push((seq, seq));
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        if from == entry.contiguous.saturating_add(1) {
            entry.contiguous = to;
            continue;
        }
        match merged.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => merged.push((from, to)),
        }
    }
    let verdict = if merged.len() > MAX_RANGES {
        merged.retain(|range| *range != (seq, seq));
        Verdict::OutOfOrder
    } else {
        Verdict::New
    };
    entry.extra = merged;
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn boot(n: u8) -> BootId {
        BootId::from_random([n; 16])
    }

    proptest! {
        /// Whatever order and however often records come, each is counted at most once, and what is
        /// acknowledged has been counted.
        #[test]
        fn each_record_counts_once_and_nothing_uncounted_is_acknowledged(
            seqs in prop::collection::vec((0u8..2, 1u64..60), 0..400)
        ) {
            let (mut seen, mut counted) = (Seen::default(), BTreeSet::new());
            for (n, seq) in seqs {
                if seen.note(boot(n), seq) == Verdict::New {
                    prop_assert!(counted.insert((n, seq)), "{n} {seq} counted twice");
                }
            }
            for n in 0..2u8 {
                for ack in seen.ack(&[boot(n)]).boots {
                    for seq in 1..70 {
                        prop_assert_eq!(ack.covers(seq), counted.contains(&(n, seq)), "{} {}", n, seq);
                    }
                }
            }
        }
    }

    #[test]
    fn a_hostile_device_cannot_make_the_memory_grow() {
        let mut seen = Seen::default();
        for n in 0..10_000u64 {
            seen.note(boot(1), n * 2 + 2);
            seen.note(boot((n % 251) as u8), u64::MAX - n);
        }
        assert!(seen.boots.len() <= MAX_BOOTS);
        assert!(seen.boots.iter().all(|known| known.extra.len() <= MAX_RANGES));
        assert_eq!(seen.note(boot(7), 0), Verdict::OutOfOrder);
    }
}
