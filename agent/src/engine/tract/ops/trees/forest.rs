//! Decision trees as flat arrays, and the walk through them.
//!
//! All trees lie in one array of nodes: splits first, in the order of a walk that goes the "true" way first,
//! then leaves. A leaf is a split that leads to itself, so several trees can be walked in step without a
//! branch per tree: the processor works on four chains of loads at once, which is what the walk waits for.

use super::Real;
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

/// Trees walked in step.
const LANES: usize = 4;
/// Nodes of all trees; more would not fit the indices together with the leaves.
const MAX_NODES: usize = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
    /// In a set of values; the set is in [`Split::set`].
    Member,
}

/// A split as the file describes it, children not yet checked.
pub(super) struct Split {
    pub(super) feature: u32,
    pub(super) threshold: f64,
    pub(super) mode: Mode,
    /// Where NaN goes: with the "true" ones.
    pub(super) missing_is_true: bool,
    pub(super) set: Vec<f64>,
    /// If the test fails, if it holds.
    pub(super) next: [Child; 2],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Child {
    Split(usize),
    Leaf(usize),
}

/// A leaf's part in one target.
#[derive(Clone, Copy)]
pub(super) struct Vote {
    pub(super) leaf: usize,
    pub(super) target: u32,
    pub(super) weight: f64,
}

/// Trees as read, before they are known to be trees.
pub(super) struct Grove {
    pub(super) splits: Vec<Split>,
    pub(super) leaves: usize,
    pub(super) roots: Vec<Child>,
    pub(super) votes: Vec<Vote>,
    pub(super) targets: usize,
}

#[derive(Clone, Copy, Debug)]
struct Node<T> {
    threshold: T,
    feature: u32,
    next: [u32; 2],
}

/// A test that differs from node to node.
#[derive(Clone, Copy, Debug)]
struct Test {
    mode: Mode,
    missing_is_true: bool,
    set: (u32, u32),
}

#[derive(Debug)]
enum Tests {
    /// [`Mode::Leq`] or [`Mode::Lt`].
    All(Mode),
    /// One per node.
    Each(Vec<Test>),
}

#[derive(Debug)]
pub(super) struct Forest<T> {
    nodes: Vec<Node<T>>,
    /// Nodes from here on are leaves.
    first_leaf: u32,
    roots: Vec<u32>,
    tests: Tests,
    /// Values of all sets, each sorted.
    sets: Vec<T>,
    /// `votes[starts[leaf]..starts[leaf + 1]]` are a leaf's.
    starts: Vec<u32>,
    votes: Vec<(u32, T)>,
    /// Columns a row must have.
    pub(super) features: usize,
    pub(super) targets: usize,
}

impl<T: Real> Forest<T> {
    /// # Errors
    /// Children that are not there, and splits that are reached twice: no tree, perhaps an endless walk.
    pub(super) fn plant(grove: &Grove) -> TractResult<Self> {
        let total = grove.splits.len().checked_add(grove.leaves).filter(|n| *n <= MAX_NODES);
        ensure!(total.is_some() && grove.votes.len() <= MAX_NODES, "more than {MAX_NODES} nodes or votes");
        let order = grove.order()?;
        let mut place = vec![u32::MAX; grove.splits.len()];
        for (at, split) in order.iter().enumerate() {
            place[*split] = at as u32;
        }
        let first_leaf = order.len() as u32;
        let find = |child: &Child| match child {
            Child::Split(at) => place[*at],
            Child::Leaf(at) => first_leaf + *at as u32,
        };
        let mut nodes: Vec<Node<T>> = Vec::with_capacity(order.len() + grove.leaves);
        let (mut each, mut sets) = (Vec::with_capacity(order.len()), Vec::new());
        for split in order.iter().map(|at| &grove.splits[*at]) {
            let next = [find(&split.next[0]), find(&split.next[1])];
            nodes.push(Node { threshold: T::from_f64(split.threshold), feature: split.feature, next });
            let from = sets.len() as u32;
            sets.extend(split.set.iter().map(|value| T::from_f64(*value)));
            sets[from as usize..].sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
            let set = (from, sets.len() as u32);
            each.push(Test { mode: split.mode, missing_is_true: split.missing_is_true, set });
        }
        for leaf in 0..grove.leaves as u32 {
            let itself = first_leaf + leaf;
            nodes.push(Node { threshold: T::from_f64(0.0), feature: 0, next: [itself, itself] });
        }
        let mode = each.first().map_or(Mode::Leq, |test| test.mode);
        let common = matches!(mode, Mode::Leq | Mode::Lt);
        let alike = |test: &Test| common && test.mode == mode && !test.missing_is_true;
        let tests = if each.iter().all(alike) {
            Tests::All(mode)
        } else {
            let idle = Test { mode: Mode::Leq, missing_is_true: false, set: (0, 0) };
            each.resize(nodes.len(), idle);
            Tests::Each(each)
        };
        let mut votes = grove.votes.clone();
        votes.sort_by_key(|vote| vote.leaf);
        let mut starts = vec![0u32; grove.leaves + 1];
        for vote in &votes {
            starts[vote.leaf + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        Ok(Self {
            first_leaf,
            roots: grove.roots.iter().map(find).collect(),
            tests,
            sets,
            starts,
            votes: votes.iter().map(|vote| (vote.target, T::from_f64(vote.weight))).collect(),
            features: grove.splits.iter().map(|split| split.feature as usize + 1).max().unwrap_or(1),
            targets: grove.targets,
            nodes,
        })
    }

    pub(super) fn trees(&self) -> usize {
        self.roots.len()
    }

    /// Puts the leaf that each tree leads to into `found`, in the order of the trees. `row` must have
    /// [`Forest::features`] elements at least; its precision is the one of all comparisons.
    pub(super) fn leaves<X: Real + From<T>>(&self, row: &[X], found: &mut Vec<u32>) {
        found.clear();
        match &self.tests {
            // The two that exporters write are worth code of their own; the others are tested node by node.
            Tests::All(Mode::Lt) => self.walk(row, |_, x, t| x < t, found),
            Tests::All(_) => self.walk(row, |_, x, t| x <= t, found),
            Tests::Each(tests) => self.walk(row, |at, x, t| self.holds(&tests[at], x, t), found),
        }
    }

    /// What a leaf of [`Forest::leaves`] votes for, and with which weight.
    pub(super) fn votes(&self, leaf: u32) -> &[(u32, T)] {
        let leaf = (leaf - self.first_leaf) as usize;
        &self.votes[self.starts[leaf] as usize..self.starts[leaf + 1] as usize]
    }

    fn holds<X: Real + From<T>>(&self, test: &Test, x: X, threshold: X) -> bool {
        if test.missing_is_true && x.is_nan() {
            return true;
        }
        match test.mode {
            Mode::Leq => x <= threshold,
            Mode::Lt => x < threshold,
            Mode::Gte => x >= threshold,
            Mode::Gt => x > threshold,
            Mode::Eq => x == threshold,
            Mode::Neq => x != threshold,
            Mode::Member => {
                let set = &self.sets[test.set.0 as usize..test.set.1 as usize];
                let at = set.partition_point(|value| X::from(*value) < x);
                set.get(at).is_some_and(|value| X::from(*value) == x)
            }
        }
    }

    fn walk<X: Real + From<T>>(&self, row: &[X], holds: impl Fn(usize, X, X) -> bool, found: &mut Vec<u32>) {
        let step = |at: u32| {
            let node = &self.nodes[at as usize];
            let threshold = X::from(node.threshold);
            node.next[usize::from(holds(at as usize, row[node.feature as usize], threshold))]
        };
        let (groups, rest) = self.roots.as_chunks::<LANES>();
        for group in groups {
            let [mut a, mut b, mut c, mut d] = *group;
            while a.min(b).min(c.min(d)) < self.first_leaf {
                (a, b, c, d) = (step(a), step(b), step(c), step(d));
            }
            found.extend_from_slice(&[a, b, c, d]);
        }
        for root in rest {
            let mut at = *root;
            while at < self.first_leaf {
                at = step(at);
            }
            found.push(at);
        }
    }
}

impl Grove {
    /// The splits in the order of the walk, each once; those that no root reaches are left out.
    fn order(&self) -> TractResult<Vec<usize>> {
        let mut seen = vec![false; self.splits.len()];
        let mut order = Vec::with_capacity(self.splits.len());
        let mut open: Vec<Child> = self.roots.iter().rev().copied().collect();
        while let Some(child) = open.pop() {
            match child {
                Child::Leaf(at) => ensure!(at < self.leaves, "a tree leads to leaf {at}, of {}", self.leaves),
                Child::Split(at) => {
                    let Some(split) = self.splits.get(at) else {
                        bail!("a tree leads to node {at}, of {}", self.splits.len());
                    };
                    let again = std::mem::replace(&mut seen[at], true);
                    ensure!(!again, "node {at} is reached twice: no tree, a walk might never end");
                    order.push(at);
                    open.extend(split.next);
                }
            }
        }
        let beyond = self.votes.iter().find(|v| v.leaf >= self.leaves || v.target as usize >= self.targets);
        if let Some(vote) = beyond {
            let (leaves, targets) = (self.leaves, self.targets);
            bail!("leaf {} votes for target {}, of {leaves} and {targets}", vote.leaf, vote.target);
        }
        Ok(order)
    }
}
