//! Margin and entropy of an answer's rows, read where they lie: nothing is allocated.

use edgefleet_shared::tensor::{Datatype, Tensor};

/// A sum of scores this far from 1 is no distribution, and has no entropy.
const SUM_TOLERANCE: f64 = 0.02;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowScores {
    pub top: f32,
    /// NaN with a single class.
    pub second: f32,
    /// `1 + sum(p ln p) / ln C`; NaN if it was not asked for or the scores are no distribution.
    pub entropy: f32,
}

pub const UNKNOWN: RowScores = RowScores { top: f32::NAN, second: f32::NAN, entropy: f32::NAN };

/// The scores of row `row` of `rows`, from `[rows, classes]` or, for one row, `[classes]`.
pub fn of_row(tensor: &Tensor, rows: usize, row: usize, with_entropy: bool) -> Option<RowScores> {
    let classes = match tensor.shape() {
        [classes] if rows == 1 => *classes,
        [found, classes] if *found == rows && row < rows => *classes,
        _ => return None,
    };
    let size = tensor.datatype().size()?;
    let width = classes.checked_mul(size)?;
    let from = width.checked_mul(row)?;
    let raw = tensor.data().get(from..from.checked_add(width)?)?;
    match tensor.datatype() {
        Datatype::Fp32 => each(raw, |b| f64::from(f32::from_le_bytes(b)), with_entropy),
        Datatype::Fp64 => each(raw, f64::from_le_bytes, with_entropy),
        Datatype::Fp16 => each(raw, |b| half::f16::from_le_bytes(b).to_f64(), with_entropy),
        _ => None,
    }
}

fn each<const N: usize>(raw: &[u8], read: impl Fn([u8; N]) -> f64, with_entropy: bool) -> Option<RowScores> {
    let (mut top, mut second) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    let (mut sum, mut plogp, mut is_distribution, mut classes) = (0.0, 0.0, true, 0usize);
    for chunk in raw.as_chunks::<N>().0 {
        let score = read(*chunk);
        classes += 1;
        if score > top {
            (top, second) = (score, top);
        } else if score > second {
            second = score;
        }
        if with_entropy {
            sum += score;
            is_distribution &= (0.0..=1.0 + SUM_TOLERANCE).contains(&score);
            if score > 0.0 {
                plogp += score * score.ln();
            }
        }
    }
    let known = with_entropy && is_distribution && classes > 1 && (sum - 1.0).abs() <= SUM_TOLERANCE;
    let entropy = if known { 1.0 + plogp / (classes as f64).ln() } else { f64::NAN };
    let finite = |score: f64| if score.is_finite() { score as f32 } else { f32::NAN };
    top.is_finite().then(|| RowScores { top: finite(top), second: finite(second), entropy: entropy as f32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn scores(shape: &[usize], values: &[f32]) -> Tensor {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new("p", Datatype::Fp32, shape.to_vec(), Bytes::from(raw)).unwrap()
    }

    #[test]
    fn margin_and_entropy_of_each_row() {
        let two = scores(&[2, 4], &[0.25, 0.25, 0.25, 0.25, 0.0, 0.7, 0.3, 0.0]);
        let flat = of_row(&two, 2, 0, true).unwrap();
        assert_eq!((flat.top, flat.second), (0.25, 0.25));
        assert!(flat.entropy.abs() < 1e-6, "{flat:?}");
        let sure = of_row(&two, 2, 1, true).unwrap();
        assert_eq!((sure.top, sure.second), (0.7, 0.3));
        let wanted = 1.0 + (0.7 * 0.7f64.ln() + 0.3 * 0.3f64.ln()) / 4f64.ln();
        assert!((f64::from(sure.entropy) - wanted).abs() < 1e-6);
        assert!(of_row(&two, 2, 1, false).unwrap().entropy.is_nan());
        assert!(of_row(&scores(&[3], &[5.0, -1.0, 2.0]), 1, 0, true).unwrap().entropy.is_nan(), "logits");
        for (tensor, rows, row) in [
            (scores(&[2, 2], &[0.0; 4]), 3, 0),
            (scores(&[2, 2], &[0.0; 4]), 2, 2),
            (scores(&[1, 2], &[f32::NAN; 2]), 1, 0),
            (scores(&[1, 0], &[]), 1, 0),
            (scores(&[1, 1, 2], &[0.5; 2]), 1, 0),
        ] {
            assert_eq!(of_row(&tensor, rows, row, true), None, "{tensor:?}");
        }
    }
}
