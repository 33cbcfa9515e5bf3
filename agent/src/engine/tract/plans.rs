//! Prepared plans, one per set of concrete input shapes.

use parking_lot::Mutex;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
};
use tract_onnx::{prelude::*, tract_hir::infer::InferenceFact};

use super::words::excerpt;
use crate::engine::panic_text;

/// All dimensions of all inputs, in the order of the interface. Ranks are fixed by the interface, so
/// the flat list names one set of shapes.
pub(super) type Dims = Vec<usize>;

/// Most plans kept. Clients settle on a few batch sizes; a client that sweeps through sizes pays for
/// the preparation itself.
const MAX_PLANS: usize = 16;
/// Weights are packed once per plan: above this sum, older plans go first. Two always stay: batch 1
/// and the size in use.
const MAX_PLAN_BYTES: usize = 64 << 20;

pub(super) type Plan = Arc<TypedSimplePlan>;
/// A plan that could not be made is remembered too, with tract's words.
type Slot = Arc<OnceLock<Result<Plan, String>>>;

/// The model as parsed, before shapes: cloning it is cheap, its constants are shared.
pub(super) struct Template {
    pub(super) model: InferenceModel,
    /// By interface order: position among the model's inputs, type, rank.
    pub(super) inputs: Vec<(usize, DatumType, usize)>,
}

impl Template {
    /// Concretises, optimises and plans. Slow: milliseconds to seconds.
    pub(super) fn plan(&self, dims: &[usize]) -> Result<Plan, String> {
        let result = catch_unwind(AssertUnwindSafe(|| self.try_plan(dims)));
        match result {
            Ok(plan) => plan.map_err(|e| format!("{e:#}")),
            Err(panic) => Err(format!("it panicked: {}", panic_text(&*panic))),
        }
    }

    fn try_plan(&self, mut dims: &[usize]) -> TractResult<Plan> {
        let mut model = self.model.clone();
        for (position, kind, rank) in &self.inputs {
            let (shape, rest) = dims.split_at(*rank);
            dims = rest;
            model.set_input_fact(*position, InferenceFact::dt_shape(*kind, shape))?;
        }
        let model = model.into_typed()?.into_decluttered()?.into_optimized()?;
        TypedSimplePlan::new_with_options(model, &RunOptions::default())
    }
}

/// Least recently used out first.
pub(super) struct PlanCache {
    /// `None` once nothing is variable: then there is one plan and no need to make others.
    template: Option<Template>,
    /// Most recently used last. A handful of entries: a scan beats a map.
    slots: Mutex<Vec<(Dims, Slot)>>,
    capacity: usize,
}

impl PlanCache {
    /// `weight_bytes` estimates what one plan holds.
    pub(super) fn new(template: Option<Template>, weight_bytes: usize) -> Self {
        let capacity = (MAX_PLAN_BYTES / weight_bytes.max(1)).clamp(2, MAX_PLANS);
        Self { template, slots: Mutex::new(Vec::new()), capacity }
    }

    pub(super) fn insert(&self, dims: Dims, plan: Plan) {
        let slot = Arc::new(OnceLock::from(Ok(plan)));
        self.slots.lock().push((dims, slot));
    }

    /// The plan for `dims`, made now if there is none; others who want the same one wait for it.
    pub(super) fn get(&self, dims: &[usize]) -> Result<Plan, String> {
        let slot = self.slot(dims);
        let made = slot.get_or_init(|| match &self.template {
            Some(template) => template.plan(dims).map_err(|words| excerpt(&words)),
            None => Err("the model has fixed shapes".into()),
        });
        made.clone()
    }

    fn slot(&self, dims: &[usize]) -> Slot {
        let mut slots = self.slots.lock();
        if let Some(at) = slots.iter().position(|(known, _)| known == dims) {
            let entry = slots.remove(at);
            let slot = entry.1.clone();
            slots.push(entry);
            return slot;
        }
        if slots.len() >= self.capacity {
            slots.remove(0);
        }
        let slot = Slot::default();
        slots.push((dims.to_vec(), slot.clone()));
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(cache: &PlanCache) -> Vec<usize> {
        cache.slots.lock().iter().map(|(dims, _)| dims[0]).collect()
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_the_plan_used_longest_ago() {
        let cache = PlanCache::new(None, 1);
        for batch in 1..=MAX_PLANS {
            assert!(cache.get(&[batch, 64]).is_err());
        }
        let _ = cache.get(&[1, 64]);
        let _ = cache.get(&[99, 64]);
        let kept = kept(&cache);
        assert_eq!(kept.len(), MAX_PLANS);
        assert!(kept.contains(&1) && kept.contains(&99) && !kept.contains(&2), "{kept:?}");
    }

    #[test]
    fn heavy_models_keep_fewer_plans_but_always_two() {
        for (weight_bytes, capacity) in [(0, MAX_PLANS), (16 << 20, 4), (1 << 30, 2)] {
            assert_eq!(PlanCache::new(None, weight_bytes).capacity, capacity);
        }
    }
}
