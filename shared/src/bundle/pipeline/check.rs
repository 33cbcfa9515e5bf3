//! What can be wrong with a pipeline's values without knowing any tensor.

use super::{Op, PipelineSpec, Side, Step, TensorSpec, op::Numbers};
use std::collections::BTreeSet;

/// Longest side of an image in pixels, before and after any step.
const MAX_SIDE: u32 = 16_384;
/// Most pixels one image may decode to; 126 MB in colour.
const MAX_PIXELS: u64 = 40 << 20;
/// Longest window in samples.
const MAX_WINDOW: usize = 1 << 16;
/// Most columns, classes, names of one step.
const MAX_ENTRIES: usize = 65_536;
/// Most boxes of an image that are compared with each other: 33 million pairs.
const MAX_BOXES: usize = 8192;
/// Longest template in bytes.
const MAX_TEMPLATE: usize = 4096;
/// Most answers a debounce remembers.
const MAX_MEMORY: usize = 1000;

pub(super) fn mistakes(spec: &PipelineSpec) -> Vec<(String, String)> {
    let mut wrong = Vec::new();
    for (side, specs) in [("inputs", &spec.inputs), ("outputs", &spec.outputs)] {
        tensors(side, specs, &mut wrong);
    }
    for (side, steps) in [(Side::Pre, &spec.pre), (Side::Post, &spec.post)] {
        if steps.len() > super::MAX_STEPS {
            let reason = format!("has {} steps, at most {} are allowed", steps.len(), super::MAX_STEPS);
            wrong.push((format!("pipeline.{side}"), reason));
        }
        for (index, step) in steps.iter().enumerate() {
            let field = format!("pipeline.{side} step {} ({})", index + 1, step.op.name());
            wrong.extend(values(side, step).into_iter().map(|reason| (field.clone(), reason)));
        }
    }
    wrong
}

fn tensors(side: &str, specs: &[TensorSpec], wrong: &mut Vec<(String, String)>) {
    if specs.is_empty() || specs.len() > 64 {
        wrong.push((format!("pipeline.{side}"), format!("has {} entries, not 1 to 64", specs.len())));
    }
    let mut names = BTreeSet::new();
    for spec in specs {
        let field = format!("pipeline.{side}.{}", spec.name);
        if spec.name.is_empty() || spec.name.len() > super::MAX_NAME_BYTES {
            wrong.push((field.clone(), "a tensor name has 1 to 256 bytes".into()));
        }
        if !names.insert(&spec.name) {
            wrong.push((field.clone(), "is named twice".into()));
        }
        if spec.shape.len() > 8 || spec.shape.iter().any(|dim| *dim < -1 || *dim > 1 << 31) {
            wrong.push((field, format!("shape {:?} is out of bounds", spec.shape)));
        }
    }
}

/// Collects what is wrong with one step.
#[derive(Default)]
struct Wrong(Vec<String>);

impl Wrong {
    fn unless(&mut self, good: bool, reason: impl FnOnce() -> String) {
        if !good {
            self.0.push(reason());
        }
    }
    fn count(&mut self, what: &str, found: usize, most: usize) {
        self.unless((1..=most).contains(&found), || format!("`{what}` is {found}, not 1 to {most}"));
    }
    fn side(&mut self, what: &str, found: u32) {
        self.unless((1..=MAX_SIDE).contains(&found), || {
            format!("`{what}` is {found}, not 1 to {MAX_SIDE} pixels")
        });
    }
    fn size(&mut self, what: &str, size: [u32; 2]) {
        size.iter().for_each(|side| self.side(what, *side));
    }
    fn finite(&mut self, what: &str, numbers: &Numbers) {
        let all = numbers.as_slice();
        self.count(what, all.len(), MAX_ENTRIES);
        self.unless(all.iter().all(|n| n.is_finite()), || format!("`{what}` holds NaN or infinity"));
    }
    fn positive(&mut self, what: &str, found: f64) {
        let good = found.is_finite() && found > 0.0;
        self.unless(good, || format!("`{what}` is {found}, not a number above 0"));
    }
    fn divisor(&mut self, what: &str, numbers: &Numbers) {
        self.finite(what, numbers);
        self.unless(!numbers.as_slice().contains(&0.0), || format!("`{what}` holds 0, by which it divides"));
    }
    fn share(&mut self, what: &str, found: f64) {
        self.unless((0.0..=1.0).contains(&found), || format!("`{what}` is {found}, not 0 to 1"));
    }
    fn axis(&mut self, axis: i64) {
        self.unless((-8..8).contains(&axis), || format!("`axis` is {axis}, not -8 to 7"));
    }
}

fn values(side: Side, step: &Step) -> Vec<String> {
    let mut wrong = Wrong::default();
    let w = &mut wrong;
    match &step.op {
        Op::DecodeImage { max_pixels, .. } => {
            w.unless((1..=MAX_PIXELS).contains(max_pixels), || {
                format!("`max_pixels` is {max_pixels}, not 1 to {MAX_PIXELS}")
            });
        }
        Op::Crop { center, area } => {
            w.unless(center.is_some() != area.is_some(), || "needs either `center` or `box`".into());
            if let Some(center) = center {
                w.size("center", *center);
            }
            if let Some([left, top, right, bottom]) = area {
                let good = left < right && top < bottom && *right <= MAX_SIDE && *bottom <= MAX_SIDE;
                w.unless(good, || {
                    format!("`box` [{left}, {top}, {right}, {bottom}] is empty or beyond {MAX_SIDE} pixels")
                });
            }
        }
        Op::Resize { size, shortest, .. } => {
            w.unless(size.is_some() != shortest.is_some(), || "needs either `size` or `shortest`".into());
            if let Some(size) = size {
                w.size("size", *size);
            }
            if let Some(shortest) = shortest {
                w.side("shortest", *shortest);
            }
        }
        Op::Letterbox { size, .. } => w.size("size", *size),
        Op::Color { .. } | Op::Layout { .. } | Op::Cast { .. } | Op::Fft { .. } | Op::Sigmoid {} => {}
        Op::Scale { mul, add } => {
            w.unless(mul.is_finite() && add.is_finite(), || "`mul` and `add` must be finite".into());
        }
        Op::Normalize { mean, std, scale, axis } => {
            w.finite("mean", mean);
            w.divisor("std", std);
            w.unless(scale.is_finite(), || format!("`scale` is {scale}"));
            w.axis(*axis);
        }
        Op::Standardize { mean, std } => {
            w.finite("mean", mean);
            w.divisor("std", std);
        }
        Op::Clip { min, max } => {
            w.unless(min <= max, || format!("`min` {min} is not below `max` {max}"));
        }
        Op::Dequantize { scale, zero_point, axis } => {
            w.finite("scale", scale);
            w.finite("zero_point", zero_point);
            w.axis(*axis);
        }
        Op::Transpose { axes } => {
            let all: BTreeSet<_> = axes.iter().copied().collect();
            let good = axes.len() <= 8 && all.len() == axes.len() && all.iter().copied().eq(0..axes.len());
            w.unless(good, || format!("`axes` {axes:?} is no order of the dimensions 0, 1, ..."));
        }
        Op::Reshape { shape } => {
            let good = shape.len() <= 8
                && shape.iter().all(|dim| (-1..=1 << 31).contains(dim))
                && shape.iter().filter(|dim| **dim == -1).count() <= 1;
            w.unless(good, || format!("`shape` {shape:?}: at most 8 dimensions, one of them -1"));
        }
        Op::Select { columns } => w.count("columns", columns.len(), MAX_ENTRIES),
        Op::Concat { parts } => w.count("parts", parts.len(), 4096),
        Op::Impute { value, missing } => {
            w.finite("value", value);
            w.unless(missing.is_none_or(f64::is_finite), || {
                "`missing` is not finite; NaN always counts".into()
            });
        }
        Op::CategoryMap { values, .. } => {
            w.count("values", values.len(), MAX_ENTRIES);
            let distinct: BTreeSet<_> = values.iter().collect();
            w.unless(distinct.len() == values.len(), || "`values` holds a value twice".into());
        }
        Op::OneHot { depth, .. } => w.count("depth", *depth, MAX_ENTRIES),
        Op::Window { length, hop, .. } => {
            w.count("length", *length, MAX_WINDOW);
            w.count("hop", *hop, MAX_WINDOW);
        }
        Op::Mel { rate, bins, fmin, fmax, .. } => {
            w.positive("rate", *rate);
            w.count("bins", *bins, 1024);
            let fmax = fmax.unwrap_or(rate / 2.0);
            let good = *fmin >= 0.0 && *fmin < fmax && fmax <= rate / 2.0;
            w.unless(good, || {
                format!("`fmin` {fmin} to `fmax` {fmax} is no band within 0 to {}", rate / 2.0)
            });
        }
        Op::Log { scale, floor, top_db } => {
            let least = if *scale == super::LogScale::Log1p { -1.0 } else { 0.0 };
            w.unless(floor.is_finite() && *floor > least, || {
                format!("`floor` is {floor}, not above {least}")
            });
            if let Some(top_db) = top_db {
                w.positive("top_db", *top_db);
                w.unless(*scale == super::LogScale::Db, || "`top_db` goes with `scale` db only".into());
            }
        }
        Op::Softmax { axis, temperature } => {
            w.axis(*axis);
            w.positive("temperature", *temperature);
        }
        Op::Argmax { axis } => w.axis(*axis),
        Op::TopK { k, indices } => {
            w.count("k", *k, MAX_ENTRIES);
            w.count("indices (length of the name)", indices.len(), super::MAX_NAME_BYTES);
        }
        Op::Threshold { at } => w.unless(at.is_finite(), || format!("`at` is {at}")),
        Op::Abstain { min, margin, .. } => {
            let good = min.is_finite() && margin.is_finite();
            w.unless(good, || "`min` and `margin` must be finite".into());
        }
        Op::Label { names, .. } => {
            if let Some(names) = names {
                w.count("names", names.len(), MAX_ENTRIES);
            }
        }
        Op::Debounce { k, n } => {
            w.count("n", *n, MAX_MEMORY);
            w.unless(2 * k > *n && k <= n, || {
                format!("`k` is {k}; more than half of `n` ({n}) must agree, so that only one answer can win")
            });
        }
        Op::DecodeYolo { score, candidates, .. } => {
            w.share("score", *score);
            w.count("candidates", *candidates, MAX_BOXES);
        }
        Op::DecodeSsd { priors, size, variances, score, candidates, .. } => {
            w.share("score", *score);
            w.count("candidates", *candidates, MAX_BOXES);
            w.size("size", *size);
            variances.iter().for_each(|v| w.positive("variances", *v));
            w.count("priors", priors.len(), 16);
            for level in priors {
                w.unless(level.map.iter().all(|n| (1..=512).contains(n)), || {
                    format!("`map` {:?}: not 1 to 512 cells", level.map)
                });
                w.count("ratios + 1", level.ratios.len() + 1, 16);
                w.positive("step", level.step);
                w.positive("min_size", level.min_size);
                level.max_size.iter().for_each(|max| w.positive("max_size", *max));
                level.ratios.iter().for_each(|ratio| w.positive("ratios", *ratio));
            }
        }
        Op::Nms { iou, max, score, .. } => {
            w.share("iou", *iou);
            w.share("score", *score);
            w.count("max", *max, MAX_BOXES);
        }
        Op::ScaleBoxes { .. } => {
            w.unless(side == Side::Post, || "stands after the model only: it undoes what `pre` did".into());
        }
        Op::Template { text } => w.count("text (bytes)", text.len(), MAX_TEMPLATE),
    }
    if let Op::Debounce { .. } = step.op {
        w.unless(side == Side::Post, || "stands after the model only".into());
    }
    wrong.0
}
