//! A profile in the making. Pure: time comes in, nothing goes out but the finished profile.

use super::{
    BundleBaseline, MIN_ROWS, Profiler, Seen,
    counter::{Counter, rounded},
    distinct::Distinct,
};
use crate::monitor::{Class, Moment, Subject};
use edgefleet_shared::{
    bundle::{BaselineQuality, ChannelKind},
    telemetry::{ClassQuality, Profile, ProfileContent, Quality, Repeats, channel::OTHER, window::MAX_KEYS},
};
use std::{collections::BTreeMap, sync::Arc};

/// Told in every profile of a bundle whose baseline cannot be read.
const BROKEN_BASELINE: &str = "baseline";

/// Adds up what was seen until [`ProfileBuilder::cut`].
pub struct ProfileBuilder {
    profiler: Arc<Profiler>,
    subject: Arc<Subject>,
    start: Moment,
    rows: u64,
    counters: Vec<Counter>,
    quality: Sums,
    /// By number of the plan.
    faults: Vec<u64>,
    /// Operations that refused a request.
    refused: BTreeMap<String, u64>,
    distinct: Distinct,
    remembered: u64,
}

/// [`Quality`] by index of the class.
#[derive(Default)]
struct Sums {
    total: Quality,
    classes: BTreeMap<u32, ClassQuality>,
    other: ClassQuality,
}

impl Sums {
    fn take(&mut self, class: &Class, known: &BaselineQuality) {
        let confidence = f64::from(class.confidence);
        if !confidence.is_finite() {
            return;
        }
        let p = known.calibration.probability(confidence);
        self.total.n += 1;
        self.total.expected_correct += p;
        self.total.variance += p * (1.0 - p);
        self.total.above += u64::from(confidence >= known.atc_threshold);
        let full = self.classes.len() >= MAX_KEYS - 1 && !self.classes.contains_key(&class.index);
        let class = if full { &mut self.other } else { self.classes.entry(class.index).or_default() };
        class.n += 1;
        class.expected_correct += p;
    }
}

impl ProfileBuilder {
    pub(super) fn new(profiler: Arc<Profiler>, subject: Arc<Subject>, now: Moment) -> Self {
        let baseline = profiler.baseline.get();
        let channels = profiler.plan.channels().iter().zip(&profiler.categories);
        let counter = |(channel, known): (&super::PlannedChannel, &super::Categories)| {
            if channel.is_category() {
                return Counter::categories(known.names.len());
            }
            let shipped = baseline.and_then(|baseline| baseline.channel(&channel.id));
            Counter::numbers(match shipped {
                Some(shipped) => shipped.edges.clone(),
                None => channel.fixed_edges(),
            })
        };
        let counters = channels.map(counter).collect();
        let faults = vec![0; profiler.plan.faults.len()];
        Self {
            profiler,
            subject,
            start: now,
            rows: 0,
            counters,
            quality: Sums::default(),
            faults,
            refused: BTreeMap::new(),
            distinct: Distinct::default(),
            remembered: 0,
        }
    }

    /// One answered request.
    pub(in crate::monitor) fn take(&mut self, seen: &Seen<'_>) {
        self.rows = self.rows.saturating_add(seen.look.rows);
        let counters = &mut self.counters;
        self.profiler.each_input(seen, |channel, value| counters[channel].take(value));
        let before = self.distinct.rows();
        self.profiler.each_row(seen, &mut self.distinct);
        self.remembered += if seen.remembers { self.distinct.rows() - before } else { 0 };
        for (sum, n) in self.faults.iter_mut().zip(&seen.look.faults) {
            *sum += n;
        }
        self.answer(&seen.scores);
    }

    /// What an answer says of itself: all there is of a shadow's.
    pub(in crate::monitor) fn answer(&mut self, scores: &super::Scores) {
        let counters = &mut self.counters;
        self.profiler.each_answer(scores, |channel, value| counters[channel].take(value));
        if let Some(known) = self.profiler.baseline.get().and_then(|baseline| baseline.quality.as_ref()) {
            scores.classes.iter().for_each(|class| self.quality.take(class, known));
        }
    }

    /// Rows of a shadow, whose inputs its active bundle has counted.
    pub(in crate::monitor) fn count_rows(&mut self, rows: u64) {
        self.rows = self.rows.saturating_add(rows);
    }

    /// A request that a step before the model refused.
    pub(in crate::monitor) fn refused(&mut self, op: &str) {
        if let Some(sum) = self.refused.get_mut(op) {
            *sum += 1;
        } else if self.refused.len() < MAX_KEYS {
            self.refused.insert(op.to_owned(), 1);
        }
    }

    pub fn started_ms(&self) -> u64 {
        self.start.mono_ms
    }

    /// Whether there are rows enough to send; `last`: none will follow.
    pub fn is_ready(&self, last: bool) -> bool {
        let something = self.rows > 0 || !self.refused.is_empty();
        something && (last || self.rows >= MIN_ROWS)
    }

    /// The profile of the time since the last cut; `None` if there was nothing.
    pub fn cut(&mut self, now: Moment) -> Option<Profile> {
        let start = std::mem::replace(&mut self.start, now);
        let content = self.content();
        let something = content.rows > 0 || !content.faults.is_empty();
        let Subject { slot, bundle, digest, role, attempt, .. } = &*self.subject;
        something.then(|| Profile {
            slot: slot.clone(),
            bundle: bundle.clone(),
            digest: *digest,
            role: *role,
            attempt: attempt.clone(),
            mono_start_ms: start.mono_ms,
            mono_end_ms: now.mono_ms,
            wall_start: start.wall,
            wall_end: now.wall,
            clock: now.clock,
            content,
        })
    }

    fn content(&mut self) -> ProfileContent {
        let rows = std::mem::take(&mut self.rows);
        let plan = &self.profiler.plan;
        let described = plan.channels().iter().zip(&self.profiler.categories);
        let counted = described.zip(&mut self.counters).filter(|(_, counter)| !counter.is_empty());
        let mut channels: Vec<_> = counted
            // Categories of which none is known say nothing.
            .filter(|((channel, known), _)| channel.kind != ChannelKind::Category || !known.names.is_empty())
            .map(|((channel, known), counter)| counter.cut(&channel.id, &known.names))
            .collect();
        channels.sort_by(|a, b| a.id.cmp(&b.id));
        let Sums { mut total, classes, other } = std::mem::take(&mut self.quality);
        let named = classes.into_iter().map(|(index, class)| (self.subject.class_name(index), class));
        for (name, class) in named.chain([(OTHER.to_owned(), other)]).filter(|(_, class)| class.n > 0) {
            let sum = total.classes.entry(name).or_default();
            sum.n += class.n;
            sum.expected_correct += class.expected_correct;
        }
        // A sum of so many shares of one is not known to more digits.
        let brief = |sum: f64, n: u64| rounded(sum, 5).min(n as f64);
        for class in total.classes.values_mut() {
            class.expected_correct = brief(class.expected_correct, class.n);
        }
        total.expected_correct = brief(total.expected_correct, total.n);
        total.variance = brief(total.variance, total.n).min(0.25 * total.n as f64);
        let sums = std::mem::replace(&mut self.faults, vec![0; plan.faults.len()]);
        let named = plan.faults.iter().cloned().zip(sums);
        let refused = std::mem::take(&mut self.refused);
        let mut faults = BTreeMap::new();
        for (name, n) in named.chain(refused).filter(|(_, n)| *n > 0) {
            *faults.entry(name).or_default() += n;
        }
        if rows > 0 && matches!(self.profiler.baseline, BundleBaseline::Broken) {
            faults.insert(BROKEN_BASELINE.to_owned(), 1);
        }
        let distinct = std::mem::take(&mut self.distinct);
        let remembered = std::mem::take(&mut self.remembered);
        let repeats = (distinct.rows() > 0).then(|| Repeats {
            rows: distinct.rows(),
            distinct: distinct.estimate(),
            remembered,
        });
        ProfileContent { rows, channels, quality: (total.n > 0).then_some(total), faults, repeats }
    }
}
