//! Measures many with no more than two of them in memory: the fastest so far against the next. Pure; the
//! caller loads, runs and unloads as it is told.
//!
//! Every duel gets an equal share of the time that is left, so that a slow pair takes nothing from the
//! others. Times of a duel are scaled such that the one both duels have in common took as long in each:
//! what the device did meanwhile falls out. When the time for everything ends, whoever had no duel yet has
//! no times; which those are follows from the order and the times alone.

use super::rounds::{Budget, Rounds, median};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, time::Duration};

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Answered by [`Duels::loaded`] or [`Duels::failed`].
    Load(usize),
    Unload(usize),
    /// Answered by [`Duels::ran`] or [`Duels::failed`].
    Run(usize),
}

/// What one turn took: the small input and, where batches count, the large one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub small: Duration,
    pub batch: Option<Duration>,
}

/// Medians of one contestant, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    pub small_ms: f64,
    /// Of a whole batch.
    pub batch_ms: Option<f64>,
    /// Turns they rest on.
    pub rounds: usize,
}

impl Times {
    /// Of the use that decides.
    fn decisive(&self) -> f64 {
        self.batch_ms.unwrap_or(self.small_ms)
    }
}

pub struct Duels {
    budget: Budget,
    /// For everything, loading included.
    wall: Duration,
    /// What one run of each took alone.
    alone: Vec<Duration>,
    waiting: VecDeque<usize>,
    champion: Option<usize>,
    duel: Option<Duel>,
    unload: Option<usize>,
    times: Vec<Option<Times>>,
    spent: Duration,
}

struct Duel {
    /// The champion and the challenger.
    pair: [usize; 2],
    rounds: Rounds,
    turns: [Vec<Turn>; 2],
}

impl Duels {
    /// Contestants come in the order in which they are to be looked at; `alone` says what one turn of each
    /// took before. `budget` is for all duels together, `wall` for the loading too. The first duel takes
    /// place in any case.
    pub fn new(alone: Vec<Duration>, budget: Budget, wall: Duration) -> Self {
        let times = vec![None; alone.len()];
        let waiting = (0..alone.len()).collect();
        let (champion, duel, unload) = (None, None, None);
        Self { budget, wall, alone, waiting, champion, duel, unload, times, spent: Duration::ZERO }
    }

    /// `elapsed`: since the begin. `None`: it is over.
    pub fn step(&mut self, elapsed: Duration) -> Option<Step> {
        if let Some(duel) = &mut self.duel {
            // Both have run: what there is must do.
            let late = elapsed >= self.wall && duel.turns.iter().all(|turns| !turns.is_empty());
            match duel.rounds.whose_turn().filter(|_| !late) {
                Some(side) => return Some(Step::Run(duel.pair[side])),
                None => self.settle(),
            }
        }
        if let Some(loser) = self.unload.take() {
            return Some(Step::Unload(loser));
        }
        let next = *self.waiting.front()?;
        if let Some(champion) = self.champion
            && self.times.iter().any(Option::is_some)
            && elapsed.saturating_add(self.alone[champion]).saturating_add(self.alone[next]) > self.wall
        {
            return None;
        }
        Some(Step::Load(next))
    }

    pub fn loaded(&mut self, who: usize) {
        self.waiting.retain(|waiting| *waiting != who);
        let Some(champion) = self.champion else {
            self.champion = Some(who);
            return;
        };
        let duels = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX).saturating_add(1);
        let time = self.budget.time.saturating_sub(self.spent) / duels;
        let rounds = Rounds::new(2, Budget { time, ..self.budget });
        self.duel = Some(Duel { pair: [champion, who], rounds, turns: [vec![], vec![]] });
    }

    pub fn ran(&mut self, who: usize, turn: Turn) {
        let Some(duel) = &mut self.duel else { return };
        if let Some(side) = duel.pair.iter().position(|one| *one == who) {
            duel.turns[side].push(turn);
            duel.rounds.record(side, turn.small.saturating_add(turn.batch.unwrap_or_default()));
        }
    }

    /// It could not be loaded or run. The other of its duel is the champion then, with the times it had.
    pub fn failed(&mut self, who: usize) {
        self.waiting.retain(|waiting| *waiting != who);
        self.times[who] = None;
        match self.duel.take() {
            Some(duel) if duel.pair.contains(&who) => {
                self.spent = self.spent.saturating_add(duel.rounds.spent());
                self.champion = duel.pair.into_iter().find(|one| *one != who);
                self.unload = Some(who);
            }
            other => self.duel = other,
        }
    }

    fn settle(&mut self) {
        let Some(Duel { pair: [champion, challenger], rounds, turns }) = self.duel.take() else { return };
        self.spent = self.spent.saturating_add(rounds.spent());
        let counted = |side: usize| {
            // Where the time ended early, all there is.
            let counted = match rounds.times()[side].len() {
                0 => turns[side].len(),
                counted => counted,
            };
            let turns = &turns[side][turns[side].len().saturating_sub(counted)..];
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let small: Vec<f64> = turns.iter().map(|turn| ms(turn.small)).collect();
            let batch: Vec<f64> = turns.iter().filter_map(|turn| turn.batch.map(ms)).collect();
            let batch_ms = (!batch.is_empty()).then(|| median(&batch));
            Times { small_ms: median(&small), batch_ms, rounds: turns.len() }
        };
        let (ours, theirs) = (counted(0), counted(1));
        let before = *self.times[champion].get_or_insert(ours);
        let scaled = |before: f64, now: f64, other: f64| match now > 0.0 {
            true => other * before / now,
            false => other,
        };
        self.times[challenger] = Some(Times {
            small_ms: scaled(before.small_ms, ours.small_ms, theirs.small_ms),
            batch_ms: theirs.batch_ms.map(|batch| match (before.batch_ms, ours.batch_ms) {
                (Some(before), Some(now)) => scaled(before, now, batch),
                _ => batch,
            }),
            rounds: theirs.rounds,
        });
        let (winner, loser) = match theirs.decisive() < ours.decisive() {
            true => (challenger, champion),
            false => (champion, challenger),
        };
        self.champion = Some(winner);
        self.unload = Some(loser);
    }

    /// Of each; `None` for one that failed, or whose turn did not come.
    pub fn times(&self) -> &[Option<Times>] {
        &self.times
    }
}

/// The order in which to look at setups that took `alone_ms`: `keep` first, then the fastest, so that what
/// is not reached is what matters least.
pub fn order(alone_ms: &[f64], keep: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..alone_ms.len()).collect();
    all.sort_by(|a, b| {
        let rank = |at: usize| (at != keep, alone_ms[at]);
        rank(*a).0.cmp(&rank(*b).0).then(rank(*a).1.total_cmp(&rank(*b).1)).then(a.cmp(b))
    });
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Plays everything in virtual time. `speed(who, at)`: what a run takes; `None` fails. Returns the most
    /// that were in memory at once and the time it all took.
    fn play(
        duels: &mut Duels,
        load: Duration,
        speed: impl Fn(usize, Duration) -> Option<Duration>,
    ) -> (usize, Duration) {
        let (mut now, mut loaded, mut most) = (Duration::ZERO, Vec::new(), 0);
        while let Some(step) = duels.step(now) {
            match step {
                Step::Load(who) => {
                    assert!(!loaded.contains(&who));
                    now += load;
                    loaded.push(who);
                    most = most.max(loaded.len());
                    duels.loaded(who);
                }
                Step::Unload(who) => loaded.retain(|one| *one != who),
                Step::Run(who) => {
                    assert!(loaded.contains(&who));
                    match speed(who, now) {
                        None => duels.failed(who),
                        Some(took) => {
                            now += took;
                            duels.ran(who, Turn { small: took, batch: None });
                        }
                    }
                }
            }
        }
        (most, now)
    }

    const WALL: Duration = Duration::from_secs(45);

    fn millis(all: &[u64]) -> Vec<Duration> {
        all.iter().copied().map(Duration::from_millis).collect()
    }

    fn small_ms(duels: &Duels) -> Vec<Option<f64>> {
        duels
            .times()
            .iter()
            .map(|times| times.map(|times| (times.small_ms * 100.0).round() / 100.0))
            .collect()
    }

    #[test]
    fn two_at_most_are_in_memory_and_a_slow_one_takes_no_time_from_the_others() {
        let alone = millis(&[10, 2000, 4, 6]);
        let mut duels = Duels::new(alone.clone(), Budget::DEFAULT, WALL);
        let (most, took) = play(&mut duels, Duration::from_millis(100), |who, _| Some(alone[who]));
        assert_eq!(most, 2);
        assert_eq!(small_ms(&duels), [Some(10.0), Some(2000.0), Some(4.0), Some(6.0)]);
        let rounds: Vec<usize> = duels.times().iter().flatten().map(|times| times.rounds).collect();
        assert_eq!((rounds[1], rounds[2], rounds[3]), (1, 50, 50), "{rounds:?}");
        assert!(took < Duration::from_secs(7), "{took:?}");
    }

    #[test]
    fn models_of_many_seconds_end_within_the_wall_and_the_same_ones_are_left_out_each_time() {
        let alone = millis(&[12_000, 6_000, 7_000, 20_000]);
        let run = || {
            let mut duels = Duels::new(alone.clone(), Budget::DEFAULT, WALL);
            let (_, took) = play(&mut duels, Duration::from_secs(1), |who, _| Some(alone[who]));
            (small_ms(&duels), took)
        };
        let (times, took) = run();
        assert_eq!(times, [Some(12_000.0), Some(6_000.0), Some(7_000.0), None]);
        assert!(took <= WALL, "{took:?}");
        assert_eq!(run(), (times, took));
    }

    #[test]
    fn a_device_that_slows_down_meanwhile_does_not_change_who_is_faster() {
        // Everything takes twice as long after the first second.
        let alone = millis(&[10, 9, 8]);
        let mut duels = Duels::new(alone.clone(), Budget::DEFAULT, WALL);
        play(&mut duels, Duration::from_millis(500), |who, now| {
            Some(if now > Duration::from_millis(2_100) { alone[who] * 2 } else { alone[who] })
        });
        assert_eq!(small_ms(&duels), [Some(10.0), Some(9.0), Some(8.0)]);
    }

    #[test]
    fn one_that_fails_is_out_and_the_others_go_on() {
        let alone = millis(&[5, 3, 4]);
        for broken in 0..3 {
            let mut duels = Duels::new(alone.clone(), Budget::DEFAULT, WALL);
            let (most, _) = play(&mut duels, Duration::ZERO, |who, _| (who != broken).then_some(alone[who]));
            assert_eq!(most, 2);
            let found: Vec<usize> = (0..3).filter(|who| duels.times()[*who].is_some()).collect();
            let others: Vec<usize> = (0..3).filter(|who| *who != broken).collect();
            assert_eq!(found, others);
        }
        let mut alone = Duels::new(millis(&[5]), Budget::DEFAULT, WALL);
        play(&mut alone, Duration::ZERO, |_, _| unreachable!());
        assert_eq!(alone.times(), [None], "nothing to compare with");
    }

    #[test]
    fn what_runs_is_looked_at_first_and_the_slow_last() {
        assert_eq!(order(&[9.0, 2.0, f64::NAN, 2.0, 1.0], 0), [0, 4, 1, 3, 2]);
        assert_eq!(order(&[9.0, 2.0, 1.0], 1), [1, 2, 0]);
    }

    proptest! {
        #[test]
        fn the_fastest_has_the_least_time_and_the_wall_holds(
            micros in proptest::collection::vec(1u64..5_000_000, 2..7),
        ) {
            let alone: Vec<Duration> = micros.iter().map(|us| Duration::from_micros(*us)).collect();
            let mut duels = Duels::new(alone.clone(), Budget::DEFAULT, WALL);
            let (most, took) = play(&mut duels, Duration::from_millis(50), |who, _| Some(alone[who]));
            prop_assert!(most <= 2 && took <= WALL + Duration::from_secs(10));
            let measured: Vec<(usize, f64)> = duels.times().iter().enumerate()
                .filter_map(|(who, times)| times.map(|times| (who, times.small_ms))).collect();
            prop_assert!(measured.len() >= 2);
            for (who, ms) in measured {
                prop_assert!((ms - micros[who] as f64 / 1e3).abs() < 1e-6 * ms.max(1.0));
            }
        }
    }
}
