//! How much telemetry may go over the wire now. Pure: time comes in.

use edgefleet_shared::desired::{Metered, TelemetrySettings};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// What may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// Anything, in messages of at most so many bytes together.
    Upto(u64),
    /// Terminal reports and losses, which always go.
    Essential,
}

/// Bytes of the 24 hours since the first message of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    since: Option<Duration>,
    spent: u64,
}

impl Budget {
    /// `now`: since any fixed moment. `metered`: the link is paid by volume.
    pub fn allows(&mut self, settings: &TelemetrySettings, metered: bool, now: Duration) -> Allowance {
        if self.since.is_some_and(|since| now.saturating_sub(since) >= DAY) {
            *self = Self::default();
        }
        let policy = if metered { settings.metered } else { Metered::Send };
        match (policy, settings.bytes_per_day) {
            (Metered::Essential, _) => Allowance::Essential,
            (Metered::Send, 0) => Allowance::Upto(u64::MAX),
            (Metered::Send, bound) => match bound.saturating_sub(self.spent) {
                0 => Allowance::Essential,
                left => Allowance::Upto(left),
            },
        }
    }

    /// What is left is too little for the next record: it waits for the next day, or for a larger bound.
    pub fn exhaust(&mut self, settings: &TelemetrySettings, now: Duration) {
        self.since.get_or_insert(now);
        self.spent = self.spent.max(settings.bytes_per_day);
    }

    /// A message went out; a repeat costs as much.
    pub fn spend(&mut self, bytes: usize, now: Duration) {
        self.since.get_or_insert(now);
        self.spent = self.spent.saturating_add(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_spent_day_leaves_the_essentials_and_the_next_one_begins_anew() {
        let settings = TelemetrySettings { bytes_per_day: 1_000, ..TelemetrySettings::default() };
        let mut budget = Budget::default();
        let hour = |n: u64| Duration::from_secs(3_600 * n);
        budget.spend(999, hour(5));
        assert_eq!(budget.allows(&settings, true, hour(6)), Allowance::Upto(1));
        budget.spend(500, hour(7));
        assert_eq!(budget.allows(&settings, false, hour(28)), Allowance::Essential);
        assert_eq!(budget.allows(&settings, false, hour(29)), Allowance::Upto(1_000));
        let boundless = TelemetrySettings::default();
        assert_eq!(budget.allows(&boundless, false, hour(29)), Allowance::Upto(u64::MAX));
        budget.exhaust(&settings, hour(30));
        assert_eq!(budget.allows(&settings, false, hour(31)), Allowance::Essential);
        let larger = TelemetrySettings { bytes_per_day: 5_000, ..settings };
        assert_eq!(budget.allows(&larger, false, hour(31)), Allowance::Upto(4_000));
    }

    #[test]
    fn a_metered_link_does_as_it_is_told_and_others_do_not_care() {
        for (metered, wanted) in
            [(Metered::Send, Allowance::Upto(u64::MAX)), (Metered::Essential, Allowance::Essential)]
        {
            let settings = TelemetrySettings { metered, ..TelemetrySettings::default() };
            assert_eq!(Budget::default().allows(&settings, true, DAY), wanted);
            assert_eq!(Budget::default().allows(&settings, false, DAY), Allowance::Upto(u64::MAX));
        }
    }

    proptest! {
        /// Whatever the controller asks for, and however often it changes its mind.
        #[test]
        fn no_day_costs_more_than_the_largest_bound_of_it(
            messages in prop::collection::vec((0u64..20_000, 1usize..5_000, 0u64..40_000, any::<bool>()), 1..300),
        ) {
            let (mut budget, mut now, mut day, mut sent) = (Budget::default(), Duration::ZERO, None, 0);
            let mut largest = 0;
            for (pause, bytes, bound, is_metered) in messages {
                now += Duration::from_secs(pause);
                if day.is_some_and(|day| now.saturating_sub(day) >= DAY) {
                    (day, sent, largest) = (None, 0, 0);
                }
                let bound = bound.max(1);
                largest = largest.max(bound);
                let settings = TelemetrySettings { bytes_per_day: bound, metered: Metered::Essential, hold_secs: 0 };
                match budget.allows(&settings, is_metered, now) {
                    Allowance::Upto(left) => {
                        prop_assert!(!is_metered && left <= bound);
                        let bytes = bytes.min(left as usize);
                        budget.spend(bytes, now);
                        day.get_or_insert(now);
                        sent += bytes as u64;
                        prop_assert!(sent <= largest, "{sent} of {largest}");
                    }
                    Allowance::Essential => prop_assert!(is_metered || sent >= bound),
                }
            }
        }
    }

    #[test]
    fn extreme_settings_and_times_do_no_harm() {
        for bytes_per_day in [0, 1, u64::MAX] {
            let settings = TelemetrySettings { bytes_per_day, ..TelemetrySettings::default() };
            let mut budget = Budget::default();
            for now in [Duration::MAX, Duration::ZERO, Duration::MAX] {
                budget.allows(&settings, true, now);
                budget.spend(usize::MAX, now);
                budget.exhaust(&settings, now);
                budget.spend(usize::MAX, now);
            }
        }
    }
}
