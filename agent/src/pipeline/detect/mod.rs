//! From a detector's answer to boxes: `[batch, boxes, 6]` of left, top, right, bottom, score, class, best
//! first; rows of fewer boxes are filled up with zeros of class -1.

mod nms;
mod ssd;
mod yolo;

use super::{
    classify::largest,
    error::Fault,
    kind::Kind,
    step::{Around, Built, Compiled, Run, arrays},
    value::{Array, Value, room},
};
use edgefleet_shared::{bundle::pipeline::Op, tensor::Datatype};

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

/// Numbers of a box.
const WIDTH: usize = 6;
/// Most boxes of one image that go from step to step.
const MAX_BOXES: usize = 8192;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Detection {
    /// Left, top, right, bottom.
    edges: [f32; 4],
    score: f32,
    class: f32,
}

impl Detection {
    /// Boxes that are not numbers are nothing anybody can use.
    fn is_sound(&self) -> bool {
        self.edges.iter().all(|edge| edge.is_finite()) && self.score.is_finite() && self.class >= 0.0
    }
}

/// The best `most`, best first; equal scores in their order.
fn best(found: Vec<Detection>, most: usize) -> Vec<Detection> {
    let scores: Vec<f32> = found.iter().map(|detection| detection.score).collect();
    largest(&scores, most).into_iter().map(|index| found[index]).collect()
}

/// The best boxes of an image out of as many as come: no more are held than are wanted.
struct Best {
    most: usize,
    seen: usize,
    /// The worst on top.
    kept: BinaryHeap<Reverse<Ranked>>,
}

/// A better score first, and of equal ones the earlier.
struct Ranked {
    detection: Detection,
    order: usize,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.detection.score.total_cmp(&other.detection.score).then(other.order.cmp(&self.order))
    }
}
impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Ranked {}

impl Best {
    fn of(most: usize) -> Self {
        Self { most, seen: 0, kept: BinaryHeap::new() }
    }

    /// Takes one unless it is nothing anybody can use, or worse than all that are wanted.
    fn offer(&mut self, detection: Detection) {
        if !detection.is_sound() {
            return;
        }
        let ranked = Ranked { detection, order: self.seen };
        self.seen += 1;
        if self.kept.len() < self.most {
            self.kept.push(Reverse(ranked));
        } else if self.kept.peek().is_some_and(|Reverse(worst)| ranked > *worst) {
            self.kept.pop();
            self.kept.push(Reverse(ranked));
        }
    }

    fn finish(self) -> Vec<Detection> {
        self.kept.into_sorted_vec().into_iter().map(|Reverse(ranked)| ranked.detection).collect()
    }
}

/// The boxes of `batch` images, which together with the tensor they become stay within the bound of a value.
///
/// # Errors
/// [`Fault::TooLarge`] as soon as they do not.
fn decoded(batch: usize, mut image: impl FnMut(usize) -> Best) -> Result<Array, Fault> {
    let within = |most: usize| room(&[batch, most, WIDTH], 2 * 4);
    within(0)?;
    let mut images = Vec::with_capacity(batch);
    let mut most = 0;
    for index in 0..batch {
        let found = image(index);
        most = most.max(found.kept.len());
        within(most)?;
        images.push(found.finish());
    }
    pack(&images)
}

/// Lists of boxes as one tensor.
fn pack(images: &[Vec<Detection>]) -> Result<Array, Fault> {
    let most = images.iter().map(Vec::len).max().unwrap_or(0);
    let shape = vec![images.len(), most, WIDTH];
    let mut data = Vec::with_capacity(room(&shape, 4)?);
    for image in images {
        for Detection { edges, score, class } in image {
            data.extend_from_slice(edges);
            data.extend([*score, *class]);
        }
        for _ in image.len()..most {
            data.extend([0.0, 0.0, 0.0, 0.0, 0.0, -1.0]);
        }
    }
    Ok(Array::floats(shape, data))
}

/// Back to lists, without the filling.
fn unpack(array: Array) -> Result<Vec<Vec<Detection>>, Fault> {
    let (shape, data) = array.into_f32()?;
    let [_, boxes, WIDTH] = shape[..] else {
        return Err(Fault::shape(format!("boxes are [batch, boxes, {WIDTH}], not {shape:?}")));
    };
    if boxes > MAX_BOXES {
        return Err(Fault::TooLarge {
            what: "boxes of an image",
            found: boxes as u64,
            limit: MAX_BOXES as u64,
        });
    }
    if boxes == 0 {
        return Ok(vec![vec![]; shape[0]]);
    }
    let one = |row: &[f32; WIDTH]| {
        let [left, top, right, bottom, score, class] = *row;
        Detection { edges: [left, top, right, bottom], score, class }
    };
    let images = data.chunks_exact(boxes * WIDTH);
    Ok(images
        .map(|image| image.as_chunks::<WIDTH>().0.iter().map(one).filter(Detection::is_sound).collect())
        .collect())
}

fn boxes_kind(batch: i64) -> Kind {
    Kind::array(Datatype::Fp32, vec![batch, -1, WIDTH as i64])
}

/// Boxes as input of a later step.
fn boxes_of(input: &Kind) -> Result<i64, String> {
    match input.as_numbers()? {
        (Datatype::Fp32, [batch, _, 6]) => Ok(*batch),
        _ => Err(format!("works on boxes, FP32 [batch, boxes, 6], not on {input}")),
    }
}

pub(super) fn compile(op: &Op, inputs: &[Kind], placed: &[String]) -> Built {
    match (op, inputs) {
        (Op::DecodeYolo { version, score, candidates }, [input]) => {
            yolo::compile(*version, *score as f32, *candidates, input)
        }
        (Op::DecodeSsd { .. }, [boxes, scores]) => ssd::compile(op, boxes, scores),
        (Op::Nms { iou, max, score, across_classes }, [input]) => {
            let batch = boxes_of(input)?;
            let nms = nms::Nms {
                iou: *iou as f32,
                max: *max,
                score: *score as f32,
                across_classes: *across_classes,
            };
            Compiled::one(boxes_kind(batch), nms)
        }
        (Op::ScaleBoxes { image, clip }, [input]) => {
            boxes_of(input)?;
            let image = match (image, placed) {
                (Some(name), _) if placed.contains(name) => name.clone(),
                (Some(name), _) => return Err(format!("model input `{name}` is not made of images")),
                (None, [only]) => only.clone(),
                (None, []) => return Err("no model input is made of images".into()),
                (None, several) => return Err(format!("which `image`: {}?", several.join(", "))),
            };
            Compiled::one(input.clone(), ScaleBoxes { image, clip: *clip })
        }
        (other, _) => Err(format!("`{}` is no operation on boxes", other.name())),
    }
}

/// From the model's input back to the picture the client sent.
struct ScaleBoxes {
    image: String,
    clip: bool,
}

impl Run for ScaleBoxes {
    fn run(&self, inputs: Vec<Value>, around: &mut Around<'_>) -> Result<Vec<Value>, Fault> {
        let [array] = arrays(inputs)?;
        let mut images = unpack(array)?;
        let found = around.placements.iter().find(|(name, _)| *name == self.image);
        let placements = &found.ok_or_else(|| Fault::value("the request's images are not known"))?.1;
        if placements.len() != images.len() {
            let (rows, sent) = (images.len(), placements.len());
            return Err(Fault::shape(format!("{rows} rows of boxes for {sent} images")));
        }
        for (boxes, placement) in images.iter_mut().zip(placements.iter()) {
            for Detection { edges, .. } in boxes {
                for corner in edges.as_chunks_mut::<2>().0 {
                    let mut there = placement.back(corner.map(f64::from));
                    if self.clip {
                        for (edge, side) in there.iter_mut().zip(placement.picture) {
                            *edge = edge.clamp(0.0, side as f64);
                        }
                    }
                    *corner = there.map(|edge| edge as f32);
                }
            }
        }
        Ok(vec![Value::Array(pack(&images)?)])
    }
}

#[cfg(test)]
mod tests;
