//! Pure: how much one device may still add to an hour of a bundle ("nobody steers alone").
//!
//! Hours are remembered for as long as their buckets take anything: the latest by number of rows, older ones as closed.
//! A late profile therefore counts once for its hour, and repeating it under another number does not help.

use serde::{Deserialize, Serialize};

/// Rows of one device that count in one hour of a bundle, in its cohort and over the fleet. A profile with more is
/// thinned to what is left of them.
pub const ROWS_PER_DEVICE_HOUR: u64 = 10_000;
/// Hours still open; a device sends each soon after it is over, so two is normal.
const OPEN_HOURS: usize = 8;
/// Closed stretches; normally one. Beyond it, gaps between them close, too.
const CLOSED_RANGES: usize = 64;
/// Hours remembered back from the latest: longer than late buckets are taken at their word.
const KEPT_HOURS: u64 = 31 * 24;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Spent {
    /// Hour since 1970 and rows counted, ascending.
    open: Vec<(u64, u64)>,
    /// Inclusive, ascending, apart.
    closed: Vec<(u64, u64)>,
}

/// What may be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) rows: u64,
    /// Nothing of the device has been counted in this hour before.
    pub(super) first: bool,
    /// Of the device in this hour, with these.
    pub(super) in_hour: u64,
}

impl Spent {
    /// Takes `rows` more of `hour`, as far as they may count.
    pub(super) fn take(&mut self, hour: u64, rows: u64) -> Grant {
        let covered = |(from, to): &(u64, u64)| (*from..=*to).contains(&hour);
        if self.closed.iter().any(covered) {
            return Grant { rows: 0, first: false, in_hour: ROWS_PER_DEVICE_HOUR };
        }
        let at = self.open.partition_point(|(open, _)| *open < hour);
        let first = self.open.get(at).is_none_or(|(open, _)| *open != hour);
        if first {
            self.open.insert(at, (hour, 0));
        }
        let spent = &mut self.open[at].1;
        let rows = rows.min(ROWS_PER_DEVICE_HOUR.saturating_sub(*spent));
        *spent += rows;
        let grant = Grant { rows, first, in_hour: *spent };
        if self.open.len() > OPEN_HOURS {
            let (oldest, _) = self.open.remove(0);
            self.close(oldest);
        }
        grant
    }

    fn close(&mut self, hour: u64) {
        self.closed.push((hour, hour));
        self.closed.sort_unstable();
        let latest = self.open.last().map_or(0, |(hour, _)| *hour);
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(self.closed.len());
        for (from, to) in self.closed.drain(..).filter(|(_, to)| *to + KEPT_HOURS >= latest) {
            match joined.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        while joined.len() > CLOSED_RANGES {
            let gap = |at: &usize| joined[at + 1].0 - joined[*at].1;
            let Some(at) = (0..joined.len() - 1).min_by_key(gap) else { break };
            let (_, to) = joined.remove(at + 1);
            joined[at].1 = to;
        }
        self.closed = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_busy_hour_counts_up_to_the_bound_and_the_next_begins_anew() {
        let mut spent = Spent::default();
        assert_eq!(spent.take(5, 4_000), Grant { rows: 4_000, first: true, in_hour: 4_000 });
        assert_eq!(spent.take(5, 7_000), Grant { rows: 6_000, first: false, in_hour: 10_000 });
        assert_eq!(spent.take(5, 1).rows, 0);
        assert_eq!(spent.take(6, u64::MAX).rows, ROWS_PER_DEVICE_HOUR);
        // A week of late hours, in order and backwards: each counts.
        assert!((1_000..1_168).all(|hour| spent.take(hour, 50).rows == 50));
        assert!((800..900).rev().all(|hour| spent.take(hour, 50).rows == 50));
        assert!((800..900).all(|hour| spent.take(hour, 50).rows == 0), "once");
    }

    proptest! {
        /// Whatever is claimed, in whatever order: no hour takes more, and the memory stays small.
        #[test]
        fn no_hour_takes_more_than_the_bound(claims in prop::collection::vec((0u64..700, 0u64..30_000), 0..600)) {
            let (mut spent, mut counted) = (Spent::default(), BTreeMap::<u64, u64>::new());
            for (hour, rows) in claims {
                let grant = spent.take(hour, rows);
                prop_assert!(grant.rows <= rows);
                *counted.entry(hour).or_default() += grant.rows;
            }
            prop_assert!(counted.values().all(|rows| *rows <= ROWS_PER_DEVICE_HOUR), "{counted:?}");
            prop_assert!(spent.open.len() <= OPEN_HOURS && spent.closed.len() <= CLOSED_RANGES);
        }
    }

    #[test]
    fn scattered_hours_stay_within_the_memory() {
        let mut spent = Spent::default();
        for n in 0..2_000 {
            spent.take(n * 2 % 743, 1);
        }
        assert!(spent.closed.len() <= CLOSED_RANGES);
        assert!(serde_json::to_string(&spent).unwrap().len() < 2_000);
    }
}
