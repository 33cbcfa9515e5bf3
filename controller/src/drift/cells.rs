//! Two summaries of one channel, cell by cell: bins of numbers or names of categories.

use edgefleet_shared::{
    bundle::baseline::BaselineChannel,
    telemetry::{Channel, Moments},
};
use std::collections::{BTreeMap, BTreeSet};

/// One side of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Rows with a value.
    pub rows: u64,
    /// Rows these are worth if each were independent of the one before.
    pub effective: f64,
    pub missing: u64,
    pub bins: &'a [u64],
    pub categories: &'a BTreeMap<String, u64>,
    pub moments: &'a Moments,
}

impl<'a> From<&'a Channel> for Side<'a> {
    fn from(channel: &'a Channel) -> Self {
        Self {
            rows: channel.n,
            effective: channel.effective_n(),
            missing: channel.missing,
            bins: &channel.bins,
            categories: &channel.categories,
            moments: &channel.moments,
        }
    }
}

impl<'a> From<&'a BaselineChannel> for Side<'a> {
    /// Rows of a held-out data set are taken to be independent.
    fn from(channel: &'a BaselineChannel) -> Self {
        Self {
            rows: channel.n,
            effective: channel.n as f64,
            missing: channel.missing,
            bins: &channel.bins,
            categories: &channel.categories,
            moments: &channel.moments,
        }
    }
}

impl Side<'_> {
    pub(super) fn std(&self) -> Option<f64> {
        self.moments.std().filter(|std| std.is_finite())
    }
}

/// Counts of both sides by cell, in the order of the bins or of the names.
#[derive(Clone, Debug, PartialEq)]
pub struct Cells {
    pairs: Vec<(f64, f64)>,
    ordered: bool,
}

impl Cells {
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        Self { pairs: pairs.to_vec(), ordered: true }
    }

    /// `None` if the two cannot be compared: bins of different baselines, or no bins and no categories.
    pub fn between(now: &Side<'_>, reference: &Side<'_>) -> Option<Self> {
        if !now.categories.is_empty() || !reference.categories.is_empty() {
            let names: BTreeSet<_> = now.categories.keys().chain(reference.categories.keys()).collect();
            let count =
                |side: &Side<'_>, name: &String| side.categories.get(name).copied().unwrap_or(0) as f64;
            let pairs = names.into_iter().map(|name| (count(now, name), count(reference, name))).collect();
            return Some(Self { pairs, ordered: false });
        }
        if now.bins.is_empty() || now.bins.len() != reference.bins.len() {
            return None;
        }
        let pairs = now.bins.iter().zip(reference.bins).map(|(a, b)| (*a as f64, *b as f64)).collect();
        Some(Self { pairs, ordered: true })
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.pairs.iter().copied()
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    pub(super) fn totals(&self) -> (f64, f64) {
        self.pairs.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
    }

    /// Cells that hold anything.
    pub(super) fn occupied(&self) -> usize {
        self.pairs.iter().filter(|(a, b)| a + b > 0.0).count()
    }

    /// Fewer, fuller cells: as many rows as the sides are `worth` are spread over them, and none expects fewer than
    /// five of either side (Cochran's rule). Neighbours join in bins, the rarest join each other in categories.
    pub(super) fn fuller(&self, worth: (f64, f64)) -> Vec<(f64, f64)> {
        let (n, m) = self.totals();
        if n <= 0.0 || m <= 0.0 {
            return Vec::new();
        }
        let mut scaled: Vec<_> = self.pairs().map(|(a, b)| (a * worth.0 / n, b * worth.1 / m)).collect();
        if !self.ordered {
            scaled.sort_by(|x, y| (x.0 + x.1).total_cmp(&(y.0 + y.1)));
        }
        let smaller = worth.0.min(worth.1) / (worth.0 + worth.1);
        let is_full = |cell: &(f64, f64)| (cell.0 + cell.1) * smaller >= 5.0;
        let mut fuller: Vec<(f64, f64)> = Vec::with_capacity(scaled.len());
        let mut open = (0.0, 0.0);
        for cell in scaled {
            open = (open.0 + cell.0, open.1 + cell.1);
            if is_full(&open) {
                fuller.push(open);
                open = (0.0, 0.0);
            }
        }
        match fuller.last_mut() {
            Some(last) => *last = (last.0 + open.0, last.1 + open.1),
            None => fuller.push(open),
        }
        fuller
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::evidence::random::Random;
    use edgefleet_shared::telemetry::channel::bin_of;

    pub(crate) fn channel(rows: &[f64], edges: &[f64]) -> Channel {
        let mut channel = Channel::new("input/x".parse().unwrap());
        channel.bins = vec![0; edges.len() + 1];
        for x in rows {
            channel.n += 1;
            channel.bins[bin_of(edges, *x)] += 1;
            channel.moments.take(*x);
        }
        channel
    }

    pub(crate) fn normal_rows(seed: u64, n: usize, mean: f64, std: f64) -> Vec<f64> {
        let mut random = Random::new(seed);
        (0..n).map(|_| mean + std * random.normal()).collect()
    }

    #[test]
    fn sparse_cells_join_until_each_expects_five() {
        let cells = Cells::of(&[(1.0, 1.0), (2.0, 1.0), (50.0, 50.0), (46.0, 45.0), (1.0, 3.0)]);
        let fuller = cells.fuller((100.0, 100.0));
        assert!(fuller.iter().all(|(a, b)| a + b >= 10.0), "{fuller:?}");
        let sum: f64 = fuller.iter().map(|(a, b)| a + b).sum();
        assert!((sum - 200.0).abs() < 1e-9, "none is lost");
    }

    #[test]
    fn categories_meet_by_name_and_bins_of_two_baselines_do_not() {
        let mut a = channel(&[], &[]);
        let mut b = a.clone();
        a.categories = [("x".to_owned(), 3), ("y".to_owned(), 1)].into();
        b.categories = [("y".to_owned(), 5)].into();
        assert_eq!(Cells::between(&Side::from(&a), &Side::from(&b)).unwrap().pairs, [(3.0, 0.0), (1.0, 5.0)]);
        let (one, two) = (channel(&[1.0], &[0.0]), channel(&[1.0], &[0.0, 1.0]));
        assert!(Cells::between(&Side::from(&one), &Side::from(&two)).is_none());
    }
}
