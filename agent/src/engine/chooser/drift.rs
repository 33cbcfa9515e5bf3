//! Whether a bundle has become slower than what its choice rests on, for so long that the choice is worth
//! making anew. Pure: times come in, counted from any fixed moment.
//!
//! Nothing flaps: a single window counts for nothing, a calm one ends the wait, what was seen when a choice
//! was made anew is usual from then on, and each pause between two such choices is twice the last.

use std::time::Duration;

/// The median of what is served against what was measured: beyond this it has drifted.
const MEDIAN_FACTOR: f64 = 2.0;
/// The same for the 95th percentile, against the measured median.
const TAIL_FACTOR: f64 = 4.0;
/// Below this share of both factors it is calm again, and what was seen before counts for nothing.
const CALM: f64 = 0.75;
/// What a busy scheduler adds by itself, milliseconds: less is no drift.
const NOISE_MS: f64 = 1.0;
/// It must last so long ...
const HOLD: Duration = Duration::from_secs(600);
/// ... in so many windows ...
const MIN_WINDOWS: u32 = 5;
/// ... the newest of which is not older than this: then nobody knows any more.
const STALE: Duration = Duration::from_secs(1800);
/// Passes of a window below which it says nothing.
pub const MIN_PASSES: usize = 20;
/// First and longest pause between two choices made for drift alone.
const PAUSE: (Duration, Duration) = (Duration::from_secs(6 * 3600), Duration::from_secs(7 * 24 * 3600));

/// What the choice rests on: medians of the setup that runs, by rows of one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    pub rows: usize,
    pub ms: f64,
    /// The same for a batch.
    pub batch: Option<(usize, f64)>,
}

impl Expected {
    /// Of a pass with so many rows: on the line between the two, beyond them per row.
    fn of(&self, rows: usize) -> f64 {
        let rows = rows.max(1) as f64;
        let (few, ms) = (self.rows.max(1) as f64, self.ms);
        match self.batch {
            Some((many, batch_ms)) if many as f64 > few && rows > few => {
                let many = many as f64;
                match rows <= many {
                    true => ms + (batch_ms - ms) * (rows - few) / (many - few),
                    false => batch_ms * rows / many,
                }
            }
            Some(_) | None => ms * rows / few,
        }
    }
}

/// Served passes as multiples of what was expected of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub p50: f64,
    pub p95: f64,
}

impl Seen {
    /// Of passes as `(rows, microseconds)`; `None` of too few, or where nothing was expected.
    pub fn of(passes: &[(u32, u32)], expected: &Expected) -> Option<Self> {
        if passes.len() < MIN_PASSES {
            return None;
        }
        let mut all: Vec<f64> = Vec::with_capacity(passes.len());
        for (rows, us) in passes {
            let (ms, expected) = (f64::from(*us) / 1e3, expected.of(*rows as usize));
            if !(expected.is_finite() && expected > 0.0) {
                return None;
            }
            all.push(if ms - expected < NOISE_MS { 1.0 } else { ms / expected });
        }
        all.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| all.get((all.len() - 1) * percent / 100).copied();
        Some(Self { p50: at(50)?, p95: at(95)? })
    }
}

/// What is known of one bundle in one slot.
#[derive(Clone, Debug)]
pub struct Drift {
    /// Seen when the choice was last made anew; 1 and 1 before.
    usual: Seen,
    newest: Option<(Duration, Seen)>,
    since: Option<Duration>,
    windows: u32,
    not_before: Duration,
    pause: Duration,
}

impl Default for Drift {
    fn default() -> Self {
        Self {
            usual: Seen { p50: 1.0, p95: 1.0 },
            newest: None,
            since: None,
            windows: 0,
            not_before: Duration::ZERO,
            pause: PAUSE.0,
        }
    }
}

impl Drift {
    /// Takes in one window.
    pub fn see(&mut self, now: Duration, seen: Seen) {
        if self.newest.is_some_and(|(at, _)| now.saturating_sub(at) > STALE) {
            self.forget();
        }
        self.newest = Some((now, seen));
        let median = seen.p50 / (self.usual.p50 * MEDIAN_FACTOR);
        let tail = seen.p95 / (self.usual.p95 * TAIL_FACTOR);
        match median.max(tail) {
            far if far > 1.0 => {
                self.since.get_or_insert(now);
                self.windows = self.windows.saturating_add(1);
            }
            near if near < CALM => self.forget(),
            // Between: neither begins nor ends a wait.
            _ => {}
        }
    }

    fn forget(&mut self) {
        (self.since, self.windows) = (None, 0);
    }

    /// Whether the choice is worth making anew now.
    pub fn is_due(&self, now: Duration) -> bool {
        let fresh = self.newest.is_some_and(|(at, _)| now.saturating_sub(at) <= STALE);
        let held = self.since.is_some_and(|since| now.saturating_sub(since) >= HOLD);
        fresh && held && self.windows >= MIN_WINDOWS && now >= self.not_before
    }

    /// The choice was made anew. `before` and `after`: the median it rested on and rests on now, where the same
    /// setup was chosen again; `None` if another was, of which nothing was seen yet.
    pub fn chosen_again(&mut self, now: Duration, same: Option<(f64, f64)>) {
        let one = |usual: f64| if usual.is_finite() { usual.max(1.0) } else { 1.0 };
        self.usual = match (same, self.newest) {
            (Some((before, after)), Some((_, seen))) => {
                Seen { p50: one(seen.p50 * before / after), p95: one(seen.p95 * before / after) }
            }
            _ => Seen { p50: 1.0, p95: 1.0 },
        };
        self.newest = None;
        self.not_chosen(now);
    }

    /// The choice was to be made anew, and none came of it: what was seen is no more usual than before.
    pub fn not_chosen(&mut self, now: Duration) {
        self.forget();
        self.not_before = now.saturating_add(self.pause);
        self.pause = self.pause.saturating_mul(2).min(PAUSE.1);
    }

    /// The bundle was measured anew for another reason: what was seen until now was held against other numbers.
    pub fn measured_anew(&mut self) {
        *self = Self { not_before: self.not_before, pause: self.pause, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn seen(p50: f64, p95: f64) -> Seen {
        Seen { p50, p95 }
    }

    /// The minutes at which a choice is made anew, by what is seen at each; `again` tells the same setup.
    fn redone(minutes: u32, same: Option<(f64, f64)>, at: impl Fn(u32) -> Option<Seen>) -> Vec<u32> {
        let (mut drift, mut all) = (Drift::default(), Vec::new());
        for minute in 0..minutes {
            if let Some(seen) = at(minute) {
                drift.see(MINUTE * minute, seen);
            }
            if drift.is_due(MINUTE * minute) {
                drift.chosen_again(MINUTE * minute, same);
                all.push(minute);
            }
        }
        all
    }

    #[test]
    fn only_a_drift_that_lasts_is_one() {
        let day = 24 * 60;
        assert_eq!(redone(day, Some((1.0, 1.0)), |_| Some(seen(1.9, 3.9))), [0u32; 0]);
        assert_eq!(redone(30, Some((1.0, 1.0)), |_| Some(seen(2.1, 2.1))), [10]);
        assert_eq!(redone(30, Some((1.0, 1.0)), |_| Some(seen(1.0, 4.1))), [10]);
        // Calm every ninth minute, or nobody asks: never long enough.
        let calm = |minute| Some(if minute % 9 == 0 { seen(1.1, 1.1) } else { seen(9.0, 9.0) });
        assert_eq!(redone(day, Some((1.0, 1.0)), calm), [0u32; 0]);
        assert_eq!(redone(day, None, |minute| (minute % 40 == 0).then_some(seen(9.0, 9.0))), [0u32; 0]);
        // A little below the factor does not end the wait, half of it does.
        let wavers = |minute| Some(if minute % 2 == 0 { seen(2.1, 2.1) } else { seen(1.8, 1.8) });
        assert_eq!(redone(30, None, wavers), [10]);
    }

    #[test]
    fn what_is_always_slower_than_its_golden_sample_is_tried_once() {
        assert_eq!(redone(30 * 24 * 60, Some((1.0, 1.0)), |_| Some(seen(5.0, 9.0))), [10]);
        // It became slower once more.
        let worse = |minute| Some(if minute < 1_000 { seen(5.0, 9.0) } else { seen(11.0, 11.0) });
        assert_eq!(redone(30 * 24 * 60, Some((1.0, 1.0)), worse), [10, 1_010]);
        // The new measurement says the same: that is what it takes here now.
        let measured = |minute| Some(if minute <= 10 { seen(3.0, 3.0) } else { seen(1.0, 1.0) });
        assert_eq!(redone(30 * 24 * 60, Some((1.0, 3.0)), measured), [10]);
    }

    #[test]
    fn choices_that_help_nothing_come_ever_more_rarely() {
        // Another setup each time, and always as slow.
        let all = redone(60 * 24 * 60, None, |_| Some(seen(5.0, 9.0)));
        let pauses: Vec<u32> = all.windows(2).map(|pair| (pair[1] - pair[0]) / 60).collect();
        assert_eq!(pauses[..6], [6, 12, 24, 48, 96, 168]);
    }

    #[test]
    fn a_choice_that_could_not_be_made_leaves_the_drift_one() {
        let mut drift = Drift::default();
        let mut tried = Vec::new();
        for minute in 0..2 * 24 * 60 {
            drift.see(MINUTE * minute, seen(5.0, 9.0));
            if drift.is_due(MINUTE * minute) {
                drift.not_chosen(MINUTE * minute);
                tried.push(minute);
            }
        }
        assert_eq!(tried, [10, 370, 1_090, 2_530], "6, 12 and 24 hours later");
    }

    #[test]
    fn what_was_seen_of_another_setup_is_no_drift_of_this_one() {
        let mut drift = Drift::default();
        (0..10).for_each(|minute| drift.see(MINUTE * minute, seen(5.0, 9.0)));
        drift.measured_anew();
        drift.see(MINUTE * 10, seen(5.0, 9.0));
        assert!(!drift.is_due(MINUTE * 10));
        (11..=20).for_each(|minute| drift.see(MINUTE * minute, seen(5.0, 9.0)));
        assert!(drift.is_due(MINUTE * 20));
    }

    #[test]
    fn passes_are_held_against_what_their_rows_should_take() {
        let expected = Expected { rows: 1, ms: 2.0, batch: Some((8, 9.0)) };
        for (rows, ms) in [(1, 2.0), (8, 9.0), (16, 18.0), (4, 5.0), (0, 2.0)] {
            assert_eq!(expected.of(rows), ms, "{rows}");
        }
        assert_eq!(Expected { rows: 4, ms: 8.0, batch: None }.of(2), 4.0);
        let passes = |rows: u32, us: u32| vec![(rows, us); MIN_PASSES];
        assert_eq!(Seen::of(&passes(1, 6_000), &expected), Some(seen(3.0, 3.0)));
        assert_eq!(Seen::of(&passes(8, 9_000), &expected), Some(seen(1.0, 1.0)));
        assert_eq!(Seen::of(&passes(1, 6_000)[1..], &expected), None);
        // Tiny models: a scheduler is no drift.
        let tiny = Expected { rows: 1, ms: 0.01, batch: None };
        assert_eq!(Seen::of(&passes(1, 900), &tiny), Some(seen(1.0, 1.0)));
        assert_eq!(Seen::of(&passes(1, 900), &Expected { ms: f64::NAN, ..tiny }), None);
        let mut tail = passes(1, 2_000);
        tail.extend(vec![(1, 40_000); 4]);
        assert_eq!(Seen::of(&tail, &expected), Some(seen(1.0, 20.0)));
    }

    proptest! {
        #[test]
        fn whatever_is_seen_there_are_few_choices(values in proptest::collection::vec((0.1f64..50.0, 0.1f64..90.0), 1..200)) {
            let days = 14;
            let all = redone(days * 24 * 60, None, |minute| {
                values.get(minute as usize % values.len()).map(|(p50, p95)| seen(*p50, *p95))
            });
            prop_assert!(all.len() <= 7, "{all:?}");
            for pair in all.windows(2) {
                prop_assert!(pair[1] - pair[0] >= 6 * 60);
            }
        }
    }
}
