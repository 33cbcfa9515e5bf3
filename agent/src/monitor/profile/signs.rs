//! Whether an input is unlike what the bundle's baseline knows, row by row, for captures. Pure; allocates nothing.
//!
//! A number is as rare as the share of the baseline beyond it. Within the outer steps of the baseline's edges, and past
//! its ends, the tail is taken for exponential: it thins out as it does from the last edge but one to the last.

use super::{
    Look, Profiler,
    plan::{ChannelPlan, SUMMARY, TensorPlan, Test, What},
};
use crate::pipeline::Pictures;
use edgefleet_shared::{
    bundle::{Baseline, BaselineChannel},
    telemetry::channel::OTHER,
};
use std::f64::consts::LN_2;

/// What the monitor says of one row's inputs; `false` where it knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputSigns {
    /// Hardly anything in the baseline is as far out, in any channel.
    pub is_foreign: bool,
    /// A number is clearly beyond all that the baseline has, or beyond what the pipeline declares.
    pub is_out_of_range: bool,
}

/// Rows of a baseline below which its tails say nothing.
const MIN_ROWS: u64 = 50;
/// One ordinary row in so many may be called foreign, all its channels together.
const ONE_IN: f64 = 1_000.0;
/// How far beyond the baseline's ends a number is out of range, as a share of the distance between them: the next row
/// of ordinary data often exceeds them by a little.
const MARGIN: f64 = 0.1;
/// Edges are rounded to seven digits.
const ROUNDING: f64 = 1e-6;

/// One input channel of a baseline. Rarities are `-ln` of a share.
#[derive(Clone, Debug)]
enum Tails {
    Number {
        low: Tail,
        high: Tail,
        least: f64,
        greatest: f64,
        missing: f64,
    },
    /// By number of the category, `other` last.
    Categories {
        rarity: Vec<f64>,
        missing: f64,
    },
}

#[derive(Clone, Copy, Debug)]
struct Tail {
    /// Where it begins, and how rare that is.
    at: f64,
    rarity: f64,
    /// Further out by this, rarer by one.
    scale: f64,
}

impl Tail {
    /// Of a number `beyond` its beginning; both ends together are twice as common as one.
    fn rarity(&self, beyond: f64) -> f64 {
        self.rarity + beyond / self.scale - LN_2
    }
}

/// All of them; empty without a baseline.
#[derive(Clone, Debug, Default)]
pub(super) struct Knowledge {
    channels: Vec<Option<Tails>>,
    /// Rarity from which a row is foreign: of so many channels one is rare by chance.
    foreign_from: f64,
}

impl Knowledge {
    pub(super) fn new(plan: &ChannelPlan, names: &[&[String]], baseline: Option<&Baseline>) -> Self {
        let Some(baseline) = baseline else { return Self::default() };
        let planned = plan.channels().iter().zip(names).take(plan.of_inputs);
        let channels: Vec<_> =
            planned.map(|(channel, names)| Tails::new(baseline.channel(&channel.id)?, names)).collect();
        let known = channels.iter().flatten().count().max(1);
        Self { foreign_from: (ONE_IN * known as f64).ln(), channels }
    }

    fn take(&self, channel: usize, value: f64, signs: &mut InputSigns) {
        let Some(Some(tails)) = self.channels.get(channel) else { return };
        let rarity = match tails {
            Tails::Number { missing, .. } | Tails::Categories { missing, .. } if !value.is_finite() => {
                *missing
            }
            Tails::Number { low, high, least, greatest, .. } => {
                signs.is_out_of_range |= value < *least || value > *greatest;
                if value < low.at {
                    low.rarity(low.at - value)
                } else if value > high.at {
                    high.rarity(value - high.at)
                } else {
                    0.0
                }
            }
            Tails::Categories { rarity, .. } => rarity.get(value as usize).copied().unwrap_or(0.0),
        };
        signs.is_foreign |= rarity > self.foreign_from;
    }
}

impl Tails {
    /// `None` of a channel with too few rows, or of one nothing is known of.
    fn new(known: &BaselineChannel, names: &[String]) -> Option<Self> {
        let rows = known.n.checked_add(known.missing)?;
        if rows < MIN_ROWS {
            return None;
        }
        // Of what was never met: as if the next row would be the first one.
        let rarity = |n: u64| -((n as f64 + 1.0) / (rows as f64 + 2.0)).ln();
        let missing = rarity(known.missing);
        if !known.categories.is_empty() {
            let count = |name: &str| rarity(known.categories.get(name).copied().unwrap_or(0));
            let rarity = names.iter().map(String::as_str).chain([OTHER]).map(count).collect();
            return Some(Self::Categories { rarity, missing });
        }
        let (first, last) = (*known.edges.first()?, *known.edges.last()?);
        if known.bins.len() != known.edges.len() + 1 {
            return None;
        }
        let slack = ROUNDING * first.abs().max(last.abs());
        let (least, greatest) =
            (first - MARGIN * (last - first) - slack, last + MARGIN * (last - first) + slack);
        // A value that never changed: another one is as foreign as anything.
        let smallest = (0.02 * (last - first)).max(0.01 * first.abs().max(last.abs())).max(f64::MIN_POSITIVE);
        let tail = |from: f64, to: f64, bins: [Option<&u64>; 2]| {
            let beyond = bins.into_iter().flatten().fold(0u64, |sum, n| sum.saturating_add(*n)).max(1) as f64;
            let scale =
                ((to - from).abs() / beyond.ln().max(1.0)).max(if from == to { smallest } else { 0.0 });
            Tail { at: from, rarity: (known.n as f64 / beyond).ln().max(0.0), scale }
        };
        let (edges, bins) = (&known.edges, &known.bins);
        let inner = edges.len().saturating_sub(2);
        Some(Self::Number {
            low: tail(*edges.get(1).unwrap_or(&first), first, [bins.first(), bins.get(1)]),
            high: tail(*edges.get(inner).unwrap_or(&last), last, [bins.last(), bins.get(bins.len() - 2)]),
            least,
            greatest,
            missing,
        })
    }
}

impl Profiler {
    /// What row `row` of a request is like beside the baseline. `pictures`: those its pipeline decoded, if it ran.
    pub fn signs(&self, look: &Look, pictures: &[Pictures], row: usize) -> InputSigns {
        let (plan, mut signs) = (&self.plan, InputSigns::default());
        let (stride, width) = (look.stride.max(1), plan.of_inputs);
        // Rows between those that were looked at: nothing is known.
        let place = (row / stride) * width;
        let cells = look.values.get(place..place + width).filter(|_| row.is_multiple_of(stride));
        for of in &plan.inputs {
            let channels = of.first..of.first + of.count;
            if let What::Decoded { step } = of.what {
                let found = pictures.iter().find(|p| p.step == step).and_then(|p| p.appearances.get(row));
                let found = found.into_iter().flatten();
                channels.zip(found).for_each(|(channel, x)| self.knowledge.take(channel, *x, &mut signs));
            } else if let Some(cells) = cells.and_then(|cells| cells.get(channels.clone())) {
                signs.is_out_of_range |= breaks(of, cells);
                channels.zip(cells).for_each(|(channel, x)| self.knowledge.take(channel, *x, &mut signs));
            }
        }
        signs
    }
}

/// Whether a row has a number that a step of the pipeline declares out of range.
fn breaks(of: &TensorPlan, cells: &[f64]) -> bool {
    of.rules.iter().any(|rule| {
        let Test::Outside { min, max } = rule.test else { return false };
        let outside = |x: &f64| x < &min || x > &max;
        match of.what {
            What::Features { .. } => cells.iter().any(outside),
            // Least and greatest of a row are among what is said of it.
            What::Summary { .. } => cells.chunks_exact(SUMMARY.len()).any(|of| of[2..4].iter().any(outside)),
            What::Categories { .. } | What::Picture { .. } | What::Decoded { .. } => false,
        }
    })
}
