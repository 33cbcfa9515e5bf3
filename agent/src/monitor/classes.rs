//! Reads an answer as classes, as the manifest says.

use edgefleet_shared::{
    bundle::Manifest,
    tensor::{Datatype, Tensor},
};

/// One predicted row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Class {
    pub index: u32,
    /// Highest score, 0 to 1 for probabilities; NaN if the model gives none.
    pub confidence: f32,
}

/// Which outputs hold the class and its score.
#[derive(Clone, Debug)]
pub struct ClassReader {
    class: Option<String>,
    scores: Option<String>,
}

impl ClassReader {
    /// `None` if the model's answer is no class.
    pub fn new(manifest: &Manifest) -> Option<Self> {
        let prediction = manifest.prediction.as_ref()?;
        let (class, scores) = (prediction.class.clone(), prediction.scores.clone());
        (class.is_some() || scores.is_some()).then_some(Self { class, scores })
    }

    /// One entry per row; empty if the outputs cannot be read as the manifest says. Never fails:
    /// what cannot be read is simply not counted.
    pub fn read(&self, outputs: &[Tensor]) -> Vec<Class> {
        let find = |name: &Option<String>| outputs.iter().find(|o| Some(o.name()) == name.as_deref());
        let scores = find(&self.scores).and_then(best_of_rows);
        match (&self.class, scores) {
            (None, scores) => scores.unwrap_or_default(),
            (Some(_), scores) => {
                let Some(indices) = find(&self.class).and_then(indices) else { return vec![] };
                let scores = scores.filter(|scores| scores.len() == indices.len());
                let confidence = |row: usize| scores.as_ref().map_or(f32::NAN, |s| s[row].confidence);
                indices
                    .into_iter()
                    .enumerate()
                    .map(|(row, index)| Class { index, confidence: confidence(row) })
                    .collect()
            }
        }
    }
}

/// Elements of a numeric tensor as `f64`; `None` for BYTES and BOOL.
pub fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    fn each<const N: usize>(raw: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        raw.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
    }
    let raw = tensor.data();
    Some(match tensor.datatype() {
        Datatype::Uint8 => each(raw, |b| f64::from(u8::from_le_bytes(b))),
        Datatype::Uint16 => each(raw, |b| f64::from(u16::from_le_bytes(b))),
        Datatype::Uint32 => each(raw, |b| f64::from(u32::from_le_bytes(b))),
        Datatype::Uint64 => each(raw, |b| u64::from_le_bytes(b) as f64),
        Datatype::Int8 => each(raw, |b| f64::from(i8::from_le_bytes(b))),
        Datatype::Int16 => each(raw, |b| f64::from(i16::from_le_bytes(b))),
        Datatype::Int32 => each(raw, |b| f64::from(i32::from_le_bytes(b))),
        Datatype::Int64 => each(raw, |b| i64::from_le_bytes(b) as f64),
        Datatype::Fp16 => each(raw, |b| half::f16::from_le_bytes(b).to_f64()),
        Datatype::Bf16 => each(raw, |b| half::bf16::from_le_bytes(b).to_f64()),
        Datatype::Fp32 => each(raw, |b| f64::from(f32::from_le_bytes(b))),
        Datatype::Fp64 => each(raw, f64::from_le_bytes),
        Datatype::Bool | Datatype::Bytes => return None,
    })
}

fn indices(tensor: &Tensor) -> Option<Vec<u32>> {
    let whole = |n: f64| (n >= 0.0 && n <= f64::from(u32::MAX) && n.fract() == 0.0).then_some(n as u32);
    numbers(tensor)?.into_iter().map(whole).collect()
}

/// Arg max of each row of `[batch, classes]`; the first of equals wins, NaN never does.
fn best_of_rows(tensor: &Tensor) -> Option<Vec<Class>> {
    let (classes, rows) = match tensor.shape() {
        [classes] => (*classes, 1),
        [rows, classes] => (*classes, *rows),
        _ => return None,
    };
    let scores = numbers(tensor)?;
    if classes == 0 {
        return None;
    }
    let best = |row: &[f64]| {
        let mut best = Class { index: 0, confidence: f32::NEG_INFINITY };
        for (index, score) in row.iter().enumerate() {
            if *score as f32 > best.confidence {
                best = Class { index: index as u32, confidence: *score as f32 };
            }
        }
        best.confidence.is_finite().then_some(best)
    };
    let read: Option<Vec<_>> = scores.chunks_exact(classes).map(best).collect();
    read.filter(|read| read.len() == rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn floats(shape: &[usize], values: &[f32]) -> Tensor {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new("scores", Datatype::Fp32, shape.to_vec(), Bytes::from(raw)).unwrap()
    }
    fn classes(values: &[i64]) -> Tensor {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new("label", Datatype::Int64, vec![values.len()], Bytes::from(raw)).unwrap()
    }

    #[test]
    fn classes_come_from_the_class_output_or_the_best_score() {
        let by_score = ClassReader { class: None, scores: Some("scores".into()) };
        let by_class = ClassReader { class: Some("label".into()), scores: Some("scores".into()) };
        let scores = floats(&[2, 3], &[0.1, 0.7, 0.2, 0.5, 0.2, 0.3]);
        let wanted = [Class { index: 1, confidence: 0.7 }, Class { index: 0, confidence: 0.5 }];
        assert_eq!(by_score.read(std::slice::from_ref(&scores)), wanted);
        assert_eq!(by_class.read(&[scores.clone(), classes(&[1, 0])]), wanted);
        for (name, outputs) in [
            ("missing output", vec![]),
            ("no class at all", vec![scores.clone()]),
            ("negative class", vec![scores, classes(&[-1, 0])]),
        ] {
            assert_eq!(by_class.read(&outputs), [], "{name}");
        }
        for odd in [floats(&[1, 2], &[f32::NAN, f32::NAN]), floats(&[0, 3], &[]), floats(&[1, 0], &[])] {
            assert_eq!(by_score.read(&[odd.clone()]), [], "{odd:?}");
        }
    }
}
