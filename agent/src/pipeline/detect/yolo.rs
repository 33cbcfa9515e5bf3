//! YOLO exports whose boxes are already in pixels of the model's input (what Ultralytics and others write).

use super::{Best, Detection, boxes_kind, decoded};
use crate::pipeline::{
    error::Fault,
    kind::Kind,
    step::{Built, Compiled, OnArray},
    value::Array,
};
use edgefleet_shared::bundle::pipeline::op::Yolo;

pub(super) fn compile(version: Yolo, score: f32, candidates: usize, input: &Kind) -> Built {
    let wrong = || match version {
        Yolo::V5 => format!("v5 is [batch, boxes, 5 + classes], not {input}"),
        Yolo::V8 => format!("v8 is [batch, 4 + classes, boxes], not {input}"),
    };
    let (_, [batch, second, third]) = input.as_numbers()? else { return Err(wrong()) };
    let (attributes, least) = match version {
        Yolo::V5 => (*third, 6),
        Yolo::V8 => (*second, 5),
    };
    if (0..least).contains(&attributes) {
        return Err(wrong());
    }
    let run = OnArray(move |array| decode(array, version, score, candidates));
    Compiled::one(boxes_kind(*batch), run)
}

fn decode(array: Array, version: Yolo, least: f32, candidates: usize) -> Result<Array, Fault> {
    let (shape, data) = array.into_f32()?;
    let [batch, second, third] = shape[..] else {
        return Err(Fault::shape(format!("has the shape {shape:?}, not three dimensions")));
    };
    let (boxes, attributes, first_class) = match version {
        Yolo::V5 => (second, third, 5),
        Yolo::V8 => (third, second, 4),
    };
    if attributes <= first_class {
        return Err(Fault::shape(format!("{shape:?} has no classes")));
    }
    decoded(batch, |image| {
        let image = &data[image * boxes * attributes..(image + 1) * boxes * attributes];
        let value = |row: usize, attribute: usize| match version {
            Yolo::V5 => image[row * attributes + attribute],
            Yolo::V8 => image[attribute * boxes + row],
        };
        let mut found = Best::of(candidates);
        for row in 0..boxes {
            let sure = if version == Yolo::V5 { value(row, 4) } else { 1.0 };
            if sure < least {
                continue; // no class can be likelier
            }
            let (mut class, mut score) = (0, f32::NEG_INFINITY);
            for attribute in first_class..attributes {
                if value(row, attribute) > score {
                    (class, score) = (attribute - first_class, value(row, attribute));
                }
            }
            let score = score * sure;
            let [x, y, w, h] = std::array::from_fn(|attribute| value(row, attribute));
            let edges = [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0];
            if score >= least {
                found.offer(Detection { edges, score, class: class as f32 });
            }
        }
        found
    })
}
