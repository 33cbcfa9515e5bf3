//! Greedy non-maximum suppression: a box goes if one with a higher score overlaps it by more than `iou`.

use super::{Detection, best, pack, unpack};
use crate::pipeline::{
    error::Fault,
    step::{Around, Run, arrays},
    value::Value,
};

pub(super) struct Nms {
    pub iou: f32,
    pub max: usize,
    pub score: f32,
    pub across_classes: bool,
}

impl Run for Nms {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let [array] = arrays(inputs)?;
        let images = unpack(array)?;
        let kept: Vec<_> = images.into_iter().map(|found| self.keep(found)).collect();
        Ok(vec![Value::Array(pack(&kept)?)])
    }
}

impl Nms {
    pub(super) fn keep(&self, found: Vec<Detection>) -> Vec<Detection> {
        let most = found.len();
        let mut kept: Vec<Detection> = Vec::new();
        for candidate in best(found, most) {
            if kept.len() == self.max {
                break;
            }
            let rival = |better: &Detection| self.across_classes || better.class == candidate.class;
            let covered = kept
                .iter()
                .filter(|better| rival(better))
                .any(|better| overlap(&better.edges, &candidate.edges) > self.iou);
            if candidate.score >= self.score && !covered {
                kept.push(candidate);
            }
        }
        kept
    }
}

/// Intersection over union; 0 where both are empty.
pub(super) fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let side = |low: f32, high: f32| (high - low).max(0.0);
    let inside = side(a[0].max(b[0]), a[2].min(b[2])) * side(a[1].max(b[1]), a[3].min(b[3]));
    let area = |e: &[f32; 4]| side(e[0], e[2]) * side(e[1], e[3]);
    let union = area(a) + area(b) - inside;
    if union > 0.0 { inside / union } else { 0.0 }
}
