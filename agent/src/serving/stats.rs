//! What one bundle has answered since it was activated, for `/stats` and `/metrics`.

use crate::{
    engine::aside::Steps,
    monitor::{ErrorCode, Outcome},
};
use edgefleet_shared::telemetry::Sketch;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Distinct batch sizes listed; larger collections of sizes are counted in the totals only.
const MAX_BATCH_SIZES: usize = 64;

/// Where the time of one answered request went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub queue: Duration,
    /// Body to tensors.
    pub input: Duration,
    pub infer: Duration,
    /// Of `infer`: the bundle's own steps, if it has any.
    pub steps: Option<Steps>,
    /// Tensors to body.
    pub output: Duration,
    pub total: Duration,
    /// Rows of other requests in the same pass.
    pub shared_rows: u64,
    /// The pass is counted with another request.
    pub is_shared: bool,
    /// Whether the cache knew the answer, and how long it took to find out; `None`: nobody asked it.
    pub cache: Option<(bool, Duration)>,
}

impl Spent {
    /// Rows of the pass that is counted with this request of `rows`; 0 if it ran none.
    pub(super) fn pass_rows(&self, rows: u64) -> u64 {
        let known = self.cache.is_some_and(|(known, _)| known);
        if known || self.is_shared { 0 } else { rows.saturating_add(self.shared_rows) }
    }
}

/// A count and its time, as the protocol's statistics have them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timed {
    pub count: u64,
    pub ns: u64,
}

impl BatchStats {
    /// As the protocol names them; the first has the number 2.
    pub fn times(&self) -> [(&'static str, Timed); 3] {
        [("compute_input", self.input), ("compute_infer", self.infer), ("compute_output", self.output)]
    }
}

impl Timed {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.ns = self.ns.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

#[derive(Clone, Debug, Default)]
pub struct BatchStats {
    pub input: Timed,
    pub infer: Timed,
    pub output: Timed,
}

/// Answers whose times are kept one by one.
const RECENT: usize = 128;

#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub rows: u64,
    pub executions: u64,
    /// Milliseconds since 1970 of the last answer, 0 if there was none.
    pub last_ms: u64,
    pub success: Timed,
    pub fail: Timed,
    pub queue: Timed,
    pub input: Timed,
    pub infer: Timed,
    pub output: Timed,
    pub cache_hit: Timed,
    pub cache_miss: Timed,
    pub rejected: u64,
    pub errors: [u64; ErrorCode::ALL.len()],
    pub batches: BTreeMap<u64, BatchStats>,
    pub total_us: Sketch,
    pub infer_us: Sketch,
    /// Total times since somebody last took them, microseconds: the newest [`RECENT`].
    recent_us: Vec<u32>,
    recent_at: usize,
    /// Rows and microseconds inside the model of the newest passes since somebody last took them.
    passes: Vec<(u32, u32)>,
    pass_at: usize,
}

impl Totals {
    fn remember_pass(&mut self, rows: u64, infer: Duration) {
        let us = u32::try_from(infer.as_micros()).unwrap_or(u32::MAX);
        let pass = (u32::try_from(rows).unwrap_or(u32::MAX), us);
        if self.passes.len() < RECENT {
            self.passes.push(pass);
        } else if let Some(oldest) = self.passes.get_mut(self.pass_at) {
            *oldest = pass;
            self.pass_at = (self.pass_at + 1) % RECENT;
        }
    }

    /// The times as the protocol names and, counting from 1, numbers them.
    pub fn times(&self) -> [(&'static str, Timed); 8] {
        [
            ("success", self.success),
            ("fail", self.fail),
            ("queue", self.queue),
            ("compute_input", self.input),
            ("compute_infer", self.infer),
            ("compute_output", self.output),
            ("cache_hit", self.cache_hit),
            ("cache_miss", self.cache_miss),
        ]
    }

    fn remember(&mut self, total: Duration) {
        let us = u32::try_from(total.as_micros()).unwrap_or(u32::MAX);
        if self.recent_us.len() < RECENT {
            self.recent_us.push(us);
        } else if let Some(oldest) = self.recent_us.get_mut(self.recent_at) {
            *oldest = us;
            self.recent_at = (self.recent_at + 1) % RECENT;
        }
    }
}

#[derive(Default)]
pub struct Stats {
    totals: Mutex<Totals>,
    in_flight: AtomicU64,
}

impl Stats {
    pub fn record(&self, rows: u64, outcome: Outcome, spent: Spent, wall_ms: u64) {
        let mut totals = self.totals.lock();
        match outcome {
            Outcome::Rejected => totals.rejected += 1,
            Outcome::Failed(code) => {
                totals.errors[code as usize] += 1;
                totals.fail.add(spent.total);
            }
            Outcome::Ok => {
                totals.rows = totals.rows.saturating_add(rows);
                totals.last_ms = wall_ms;
                totals.success.add(spent.total);
                totals.queue.add(spent.queue);
                totals.input.add(spent.input);
                totals.output.add(spent.output);
                match spent.cache {
                    Some((true, time)) => totals.cache_hit.add(time),
                    Some((false, time)) => totals.cache_miss.add(time),
                    None => {}
                }
                totals.total_us.record_us(u64::try_from(spent.total.as_micros()).unwrap_or(u64::MAX));
                totals.remember(spent.total);
                if spent.cache.is_some_and(|(hit, _)| hit) {
                    return;
                }
                totals.infer.add(spent.infer);
                totals.infer_us.record_us(u64::try_from(spent.infer.as_micros()).unwrap_or(u64::MAX));
                // One pass, however many requests were in it.
                if spent.is_shared {
                    return;
                }
                totals.executions += 1;
                let rows = rows.saturating_add(spent.shared_rows);
                totals.remember_pass(rows, spent.infer);
                if totals.batches.len() < MAX_BATCH_SIZES || totals.batches.contains_key(&rows) {
                    let batch = totals.batches.entry(rows).or_default();
                    batch.input.add(spent.input);
                    batch.infer.add(spent.infer);
                    batch.output.add(spent.output);
                }
            }
        }
    }
    pub fn totals(&self) -> Totals {
        self.totals.lock().clone()
    }
    /// 95th percentile of the total times since this was last asked, milliseconds; `None`, and they go on
    /// being gathered, while there are fewer than `least`.
    pub fn take_recent_p95_ms(&self, least: usize) -> Option<f64> {
        let mut times = {
            let mut totals = self.totals.lock();
            if totals.recent_us.len() < least.clamp(1, RECENT) {
                return None;
            }
            totals.recent_at = 0;
            std::mem::take(&mut totals.recent_us)
        };
        times.sort_unstable();
        times.get((times.len() - 1) * 95 / 100).map(|us| f64::from(*us) / 1_000.0)
    }
    /// The newest passes since this was last asked, as rows and microseconds inside the model; `None`, and
    /// they go on being gathered, while there are fewer than `least`.
    pub fn take_recent_passes(&self, least: usize) -> Option<Vec<(u32, u32)>> {
        let mut totals = self.totals.lock();
        if totals.passes.len() < least.clamp(1, RECENT) {
            return None;
        }
        totals.pass_at = 0;
        Some(std::mem::take(&mut totals.passes))
    }
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_passes_are_taken_once_each_with_the_rows_of_all_that_shared_it() {
        let stats = Stats::default();
        let pass = |rows: u64, shared_rows: u64, us: u64, is_shared: bool| {
            let infer = Duration::from_micros(us);
            stats.record(rows, Outcome::Ok, Spent { infer, shared_rows, is_shared, ..Spent::default() }, 1);
        };
        pass(1, 3, 40, false);
        pass(1, 3, 40, true);
        assert_eq!(stats.take_recent_passes(2), None);
        pass(2, 0, 20, false);
        assert_eq!(stats.take_recent_passes(2), Some(vec![(4, 40), (2, 20)]));
        assert_eq!(stats.take_recent_passes(1), None);
        (0..1_000).for_each(|us| pass(1, 0, us, false));
        let newest = stats.take_recent_passes(1).unwrap();
        assert_eq!((newest.len(), newest.iter().map(|(_, us)| *us).min()), (RECENT, Some(872)));
    }
}
