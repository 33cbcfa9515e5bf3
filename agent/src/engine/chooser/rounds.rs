//! Takes turns: who runs next, when it is enough, and what the medians are. Pure.

use std::time::Duration;

/// When to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Untimed runs of each before the first round: caches and lazy preparations. Fewer where they take
    /// more than a quarter of the time; where they take all of it, the last of them count.
    pub warm_up: usize,
    /// Rounds in which each runs once.
    pub most: usize,
    /// No new round after this much time inside models.
    pub time: Duration,
}

impl Budget {
    /// Enough for a median that holds within some percent, short enough for a device that waits.
    pub const DEFAULT: Self = Self { warm_up: 3, most: 50, time: Duration::from_secs(4) };
}

/// Alternating rounds over `contestants`; each round begins with another one, so that nobody always
/// runs in the wake of the same neighbour.
#[derive(Clone, Debug)]
pub struct Rounds {
    budget: Budget,
    times: Vec<Vec<f64>>,
    /// Of the last round that does not count.
    warming: Vec<Option<f64>>,
    /// Dropped out.
    out: Vec<bool>,
    /// Counts turns, warm-up included.
    turn: usize,
    /// The first round that counts; `None` while warming up.
    first: Option<usize>,
    spent: Duration,
}

impl Rounds {
    pub fn new(contestants: usize, budget: Budget) -> Self {
        Self {
            budget,
            times: vec![Vec::new(); contestants],
            warming: vec![None; contestants],
            out: vec![false; contestants],
            turn: 0,
            first: (budget.warm_up == 0).then_some(0),
            spent: Duration::ZERO,
        }
    }

    /// Who runs next; `None` when it is enough. A round once begun is ended.
    pub fn whose_turn(&mut self) -> Option<usize> {
        let contestants = self.times.len();
        loop {
            if contestants == 0 || self.out.iter().all(|out| *out) {
                return None;
            }
            let (round, place) = (self.turn / contestants, self.turn % contestants);
            if place == 0 && self.is_enough(round) {
                return None;
            }
            let who = (place + round) % contestants;
            if self.out[who] {
                self.turn += 1;
                continue;
            }
            return Some(who);
        }
    }

    /// Before round `round`: whether there is to be none.
    fn is_enough(&mut self, round: usize) -> bool {
        let over = self.spent >= self.budget.time;
        match self.first {
            // One timed round at least, however long it takes.
            Some(first) => round >= first.saturating_add(self.budget.most) || (round > first && over),
            None if round > 0 && over => {
                for (times, last) in self.times.iter_mut().zip(&mut self.warming) {
                    times.extend(last.take());
                }
                true
            }
            None => {
                let warm = round >= self.budget.warm_up || self.spent >= self.budget.time / 4;
                self.first = (round > 0 && warm).then_some(round);
                false
            }
        }
    }

    /// What the run of [`whose_turn`](Self::whose_turn) took.
    pub fn record(&mut self, who: usize, took: Duration) {
        let ms = took.as_secs_f64() * 1e3;
        if let (Some(times), Some(warming)) = (self.times.get_mut(who), self.warming.get_mut(who)) {
            match self.first {
                Some(_) => times.push(ms),
                None => *warming = Some(ms),
            }
        }
        self.spent = self.spent.saturating_add(took);
        self.turn += 1;
    }

    /// It failed and runs no more; its times do not count.
    pub fn drop_out(&mut self, who: usize) {
        if let (Some(out), Some(times)) = (self.out.get_mut(who), self.times.get_mut(who)) {
            *out = true;
            times.clear();
            self.warming[who] = None;
        }
        self.turn += 1;
    }

    /// Times of each in milliseconds, in the order they were taken; empty for one that dropped out.
    pub fn times(&self) -> &[Vec<f64>] {
        &self.times
    }

    /// Inside models, warm-up included.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Median of each in milliseconds; infinite for one without a time.
    pub fn medians(&self) -> Vec<f64> {
        self.times.iter().map(|times| median(times)).collect()
    }
}

/// Infinite for none.
pub(crate) fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::INFINITY,
        (len, middle) if len % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}
