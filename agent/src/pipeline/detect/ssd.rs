//! SSD: offsets to default boxes. Default boxes as in the original implementation (Liu et al. 2016, Caffe
//! and its PyTorch port): per cell the square, the larger square, then each ratio and its inverse.

use super::{Best, Detection, boxes_kind, decoded};
use crate::pipeline::{
    error::Fault,
    kind::Kind,
    step::{Around, Built, Compiled, Run, arrays},
    value::Value,
};
use edgefleet_shared::bundle::pipeline::{Op, PriorLevel};

/// Most default boxes; the largest published models have some 100,000.
const MAX_PRIORS: usize = 1 << 18;

struct Ssd {
    /// Centre x, centre y, width, height, as shares of the input.
    priors: Vec<[f32; 4]>,
    /// Width and height of the model's input.
    size: [f32; 2],
    variances: [f32; 2],
    score: f32,
    background: Option<usize>,
    candidates: usize,
}

pub(super) fn compile(op: &Op, boxes: &Kind, scores: &Kind) -> Built {
    let Op::DecodeSsd { priors, size, variances, clip, score, background, candidates, .. } = op else {
        return Err("is no SSD".into());
    };
    let count: usize = priors.iter().map(per_level).sum();
    if count > MAX_PRIORS {
        return Err(format!("has {count} default boxes, at most {MAX_PRIORS} are allowed"));
    }
    let priors = default_boxes(priors, *size, *clip);
    let count = priors.len() as i64;
    let is = |dim: i64, wanted: i64| dim == -1 || dim == wanted;
    let batch = match (boxes.as_numbers()?, scores.as_numbers()?) {
        ((_, [batch, rows, 4]), (_, [_, score_rows, _])) if is(*rows, count) && is(*score_rows, count) => {
            *batch
        }
        _ => {
            return Err(format!(
                "with {count} default boxes reads offsets [batch, {count}, 4] and scores [batch, {count}, classes], \
                 not {boxes} and {scores}"
            ));
        }
    };
    let ssd = Ssd {
        priors,
        size: [size[1] as f32, size[0] as f32],
        variances: variances.map(|v| v as f32),
        score: *score as f32,
        background: *background,
        candidates: *candidates,
    };
    Compiled::one(boxes_kind(batch), ssd)
}

fn per_level(level: &PriorLevel) -> usize {
    let [rows, columns] = level.map.map(|n| n as usize);
    rows * columns * (1 + usize::from(level.max_size.is_some()) + 2 * level.ratios.len())
}

fn default_boxes(levels: &[PriorLevel], [height, width]: [u32; 2], clip: bool) -> Vec<[f32; 4]> {
    let mut boxes = Vec::new();
    let (height, width) = (f64::from(height), f64::from(width));
    for level in levels {
        let [rows, columns] = level.map;
        let mut sizes = vec![(level.min_size, level.min_size)];
        if let Some(max) = level.max_size {
            let mean = (level.min_size * max).sqrt();
            sizes.push((mean, mean));
        }
        for ratio in &level.ratios {
            let root = ratio.sqrt();
            sizes.push((level.min_size * root, level.min_size / root));
            sizes.push((level.min_size / root, level.min_size * root));
        }
        for row in 0..rows {
            for column in 0..columns {
                let x = (f64::from(column) + 0.5) * level.step / width;
                let y = (f64::from(row) + 0.5) * level.step / height;
                boxes.extend(sizes.iter().map(|(w, h)| {
                    let exact = [x, y, w / width, h / height];
                    exact.map(|v| if clip { v.clamp(0.0, 1.0) } else { v } as f32)
                }));
            }
        }
    }
    boxes
}

impl Run for Ssd {
    fn run(&self, inputs: Vec<Value>, _: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let [offsets, scores] = arrays(inputs)?;
        let (offset_shape, offsets) = offsets.into_f32()?;
        let (score_shape, scores) = scores.into_f32()?;
        let count = self.priors.len();
        let (batch, classes) = match (&offset_shape[..], &score_shape[..]) {
            ([batch, rows, 4], [same, score_rows, classes])
                if batch == same && *rows == count && *score_rows == count =>
            {
                (*batch, *classes)
            }
            _ => {
                let reason =
                    format!("offsets {offset_shape:?} and scores {score_shape:?} for {count} default boxes");
                return Err(Fault::shape(reason));
            }
        };
        let offsets = offsets.as_chunks::<4>().0;
        let image = |image: usize| {
            let mut found = Best::of(self.candidates);
            for (index, prior) in self.priors.iter().enumerate() {
                let row = image * count + index;
                for class in (0..classes).filter(|class| Some(*class) != self.background) {
                    let score = scores[row * classes + class];
                    if score >= self.score {
                        let edges = self.edges(prior, &offsets[row]);
                        found.offer(Detection { edges, score, class: class as f32 });
                    }
                }
            }
            found
        };
        Ok(vec![Value::Array(decoded(batch, image)?)])
    }
}

impl Ssd {
    fn edges(&self, [x, y, w, h]: &[f32; 4], offset: &[f32; 4]) -> [f32; 4] {
        let [center, extent] = self.variances;
        let (x, y) = (x + offset[0] * center * w, y + offset[1] * center * h);
        let (w, h) = (w * (offset[2] * extent).exp(), h * (offset[3] * extent).exp());
        let [width, height] = self.size;
        [(x - w / 2.0) * width, (y - h / 2.0) * height, (x + w / 2.0) * width, (y + h / 2.0) * height]
    }
}
