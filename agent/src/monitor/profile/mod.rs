//! What the inputs and answers of a bundle are like: one `ProfileContent` at a time, histogram by histogram.
//!
//! [`plan`] says from the manifest which channels there are, [`read`] takes their numbers from a request's tensors,
//! [`score`] from the answer, [`counter`] adds them up; all pure, and the same code on the device and where a
//! baseline is made, so that both read an input alike. [`Profiler`] holds what does not change while a bundle serves,
//! [`ProfileBuilder`] what does.

pub mod baseline;
mod builder;
pub mod calibration;
mod counter;
mod distinct;
pub mod plan;
mod read;
mod score;
mod signs;

pub use builder::ProfileBuilder;
use distinct::Distinct;
use plan::What;
pub use plan::{ChannelPlan, PlannedChannel};
pub use read::{Look, number};
pub use score::Scores;
pub use signs::InputSigns;

use super::{Class, Subject};
use crate::pipeline::Pictures;
use edgefleet_shared::{
    bundle::{Baseline, Manifest},
    tensor::Tensor,
};
use std::{collections::HashMap, sync::Arc};

/// Rows below which a histogram is kept back, so that no row can be guessed from it.
pub const MIN_ROWS: u64 = 20;

/// The baseline of a bundle as it was found.
#[derive(Clone, Debug, Default)]
pub enum BundleBaseline {
    /// The bundle has none.
    #[default]
    Absent,
    Sound(Arc<Baseline>),
    /// It cannot be read. The bundle serves all the same; its profiles say so.
    Broken,
}

impl BundleBaseline {
    fn get(&self) -> Option<&Baseline> {
        match self {
            Self::Sound(baseline) => Some(baseline),
            Self::Absent | Self::Broken => None,
        }
    }
}

/// How the tensors of one bundle are read as channels. Immutable.
pub struct Profiler {
    plan: ChannelPlan,
    baseline: BundleBaseline,
    /// By channel: names of categories that are told apart, and their numbers.
    categories: Vec<Categories>,
    /// What an ordinary input is like.
    knowledge: signs::Knowledge,
}

/// Categories of one channel; the number after the last is [`OTHER`](edgefleet_shared::telemetry::channel::OTHER).
#[derive(Default)]
struct Categories {
    names: Vec<String>,
    numbers: HashMap<Vec<u8>, u32>,
}

impl Categories {
    fn new(mut names: Vec<String>) -> Self {
        use edgefleet_shared::telemetry::channel::{MAX_CATEGORIES, MAX_CATEGORY_BYTES, OTHER};
        names.retain(|name| name.len() <= MAX_CATEGORY_BYTES && name != OTHER);
        names.sort_unstable();
        names.dedup();
        names.truncate(MAX_CATEGORIES);
        let numbers =
            (0u32..).zip(&names).map(|(number, name)| (name.clone().into_bytes(), number)).collect();
        Self { names, numbers }
    }
    /// NaN of nothing: a category that is missing.
    fn number(&self, text: &[u8]) -> f64 {
        if text.is_empty() {
            return f64::NAN;
        }
        f64::from(self.numbers.get(text).copied().unwrap_or(self.names.len() as u32))
    }
}

/// What one answered request adds to a profile.
pub(super) struct Seen<'a> {
    pub(super) look: &'a Look,
    pub(super) scores: Scores,
    /// Of the pipeline, by step.
    pub(super) pictures: &'a [Pictures],
    /// The device remembers answers.
    pub(super) remembers: bool,
}

impl Profiler {
    /// `manifest`: as it is in the bundle, or as clients see it.
    pub fn new(manifest: &Manifest, baseline: BundleBaseline) -> Self {
        let plan = ChannelPlan::of(manifest);
        let known = |channel: &PlannedChannel| {
            let shipped = baseline.get().and_then(|baseline| baseline.channel(&channel.id));
            let shipped = shipped.into_iter().flat_map(|channel| channel.categories.keys().cloned());
            Categories::new(shipped.chain(channel.categories.iter().cloned()).collect())
        };
        let categories: Vec<_> = plan.channels().iter().map(known).collect();
        let names: Vec<_> = categories.iter().map(|known| known.names.as_slice()).collect();
        let knowledge = signs::Knowledge::new(&plan, &names, baseline.get());
        Self { plan, baseline, categories, knowledge }
    }

    /// The same with these categories besides those it knows, by channel; for making a baseline.
    pub fn with_categories(manifest: &Manifest, mut found: HashMap<usize, Vec<String>>) -> Self {
        let mut profiler = Self::new(manifest, BundleBaseline::Absent);
        for (number, known) in profiler.categories.iter_mut().enumerate() {
            let names = std::mem::take(&mut known.names).into_iter();
            *known = Categories::new(names.chain(found.remove(&number).unwrap_or_default()).collect());
        }
        profiler
    }

    pub fn plan(&self) -> &ChannelPlan {
        &self.plan
    }

    /// Takes the numbers of its channels from a request's tensors. They may be anything: whoever runs the model
    /// refuses those that do not fit.
    pub fn look(&self, inputs: &[Tensor]) -> Look {
        read::look(&self.plan, &self.categories, inputs)
    }

    /// The same from the answer.
    pub fn scores(&self, outputs: &[Tensor], classes: &[Class]) -> Scores {
        score::scores(&self.plan, outputs, classes)
    }

    /// The channels of a request's inputs, value by value; NaN where there is none.
    fn each_input(&self, seen: &Seen<'_>, mut put: impl FnMut(usize, f64)) {
        let plan = &self.plan;
        for row in seen.look.values.chunks_exact(plan.of_inputs.max(1)) {
            for of in plan.inputs.iter().filter(|of| !matches!(of.what, What::Decoded { .. })) {
                (of.first..of.first + of.count).for_each(|channel| put(channel, row[channel]));
            }
        }
        for of in &plan.inputs {
            let What::Decoded { step } = of.what else { continue };
            for picture in seen.pictures.iter().filter(|p| p.step == step).flat_map(|p| &p.appearances) {
                (of.first..).zip(picture).for_each(|(channel, value)| put(channel, *value));
            }
        }
    }

    /// What one row's channels say, row after row: equal for inputs that look alike.
    fn each_row(&self, seen: &Seen<'_>, distinct: &mut Distinct) {
        let plan = &self.plan;
        let decoded = |row: usize| {
            let all = seen.pictures.iter().filter_map(move |picture| picture.appearances.get(row));
            all.flatten().copied()
        };
        for (number, row) in seen.look.values.chunks_exact(plan.of_inputs.max(1)).enumerate() {
            distinct.take(row.iter().copied().chain(decoded(number * seen.look.stride)));
        }
    }

    /// The same of an answer.
    fn each_answer(&self, scores: &Scores, mut put: impl FnMut(usize, f64)) {
        let plan = &self.plan;
        if let Some(channel) = plan.confidence {
            scores.classes.iter().for_each(|class| put(channel, f64::from(class.confidence)));
        }
        if let Some(channel) = plan.entropy {
            scores.entropy.iter().for_each(|entropy| put(channel, f64::from(*entropy)));
        }
        let width: usize = plan.outputs.iter().map(|of| of.count).sum();
        let Some(first) = plan.outputs.first().map(|of| of.first) else { return };
        for row in scores.numbers.chunks_exact(width.max(1)) {
            (first..).zip(row).for_each(|(channel, value)| put(channel, *value));
        }
    }

    /// An empty profile.
    pub fn builder(self: &Arc<Self>, subject: Arc<Subject>, now: super::Moment) -> ProfileBuilder {
        ProfileBuilder::new(self.clone(), subject, now)
    }
}

#[cfg(test)]
mod tests;
