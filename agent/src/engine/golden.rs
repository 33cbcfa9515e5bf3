//! Compares a model's answers with those its author saw. Pure.
//!
//! A floating-point element `y` passes if `|y - expected| <= atol + rtol * |expected|`, if both are
//! NaN, or if both are the same infinity; every other datatype must be equal bit for bit.

use edgefleet_shared::{
    probe::GoldenResult,
    tensor::{Datatype, Tensor},
};

/// Compares `found` with the outputs of the golden sample `name`.
///
/// Every expected output must be there, by name, with its datatype and shape; outputs the sample
/// does not mention are ignored. `max_abs_diff` is over all floating-point elements of tensors that
/// could be compared (`f64::MAX` where one side is NaN or infinite and the other is not), `mismatch`
/// tells the first difference.
pub fn compare(name: &str, expected: &[Tensor], found: &[Tensor], rtol: f64, atol: f64) -> GoldenResult {
    let mut mismatch = None;
    let mut max_abs_diff = 0f64;
    for want in expected {
        let problem = match found.iter().find(|t| t.name() == want.name()) {
            None => Some(format!("output `{}` is missing", want.name())),
            Some(have) => match geometry(want, have) {
                Some(problem) => Some(problem),
                None => {
                    let difference = elements(want, have, rtol, atol);
                    max_abs_diff = max_abs_diff.max(difference.largest);
                    difference.first
                }
            },
        };
        mismatch = mismatch.or(problem);
    }
    GoldenResult { name: name.to_owned(), passed: mismatch.is_none(), max_abs_diff, mismatch }
}

fn geometry(want: &Tensor, have: &Tensor) -> Option<String> {
    if (want.datatype(), want.shape()) == (have.datatype(), have.shape()) {
        return None;
    }
    Some(format!(
        "output `{}` is {} {:?}, expected {} {:?}",
        want.name(),
        have.datatype(),
        have.shape(),
        want.datatype(),
        want.shape()
    ))
}

#[derive(Default)]
struct Difference {
    largest: f64,
    first: Option<String>,
}

fn elements(want: &Tensor, have: &Tensor, rtol: f64, atol: f64) -> Difference {
    let mut difference = Difference::default();
    let Some(size) = want.datatype().size() else {
        if want.data() != have.data() {
            difference.first = Some(format!("output `{}` differs in its BYTES elements", want.name()));
        }
        return difference;
    };
    let pairs = want.data().chunks_exact(size).zip(have.data().chunks_exact(size));
    for (position, (w, h)) in pairs.enumerate() {
        let told = match (float(want.datatype(), w), float(have.datatype(), h)) {
            (Some(w), Some(h)) => {
                let apart = distance(w, h);
                difference.largest = difference.largest.max(apart);
                (apart > atol + rtol * w.abs() || (apart > 0.0 && !w.is_finite()))
                    .then(|| format!("expected {w}, found {h} (rtol {rtol}, atol {atol})"))
            }
            _ => (w != h).then(|| {
                format!("expected {}, found {}", exact(want.datatype(), w), exact(want.datatype(), h))
            }),
        };
        if let (None, Some(told)) = (&difference.first, told) {
            let index = index_of(position, want.shape());
            difference.first = Some(format!("output `{}` at {index:?}: {told}", want.name()));
        }
    }
    difference
}

/// Zero for two NaNs and for equal infinities, `f64::MAX` where no number would be honest.
fn distance(want: f64, have: f64) -> f64 {
    if want == have || (want.is_nan() && have.is_nan()) {
        return 0.0;
    }
    let apart = (want - have).abs();
    if apart.is_finite() { apart } else { f64::MAX }
}

fn index_of(mut position: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (at, dim) in index.iter_mut().zip(shape).rev() {
        let dim = (*dim).max(1);
        *at = position % dim;
        position /= dim;
    }
    index
}

/// The element as a number, if its datatype is a floating-point one. `raw` has the datatype's size.
pub(super) fn float(datatype: Datatype, raw: &[u8]) -> Option<f64> {
    match (datatype, raw) {
        (Datatype::Fp16, &[a, b]) => Some(half::f16::from_le_bytes([a, b]).to_f64()),
        (Datatype::Bf16, &[a, b]) => Some(half::bf16::from_le_bytes([a, b]).to_f64()),
        (Datatype::Fp32, raw) => Some(f64::from(f32::from_le_bytes(raw.try_into().ok()?))),
        (Datatype::Fp64, raw) => Some(f64::from_le_bytes(raw.try_into().ok()?)),
        _ => None,
    }
}

/// An integer or truth value as text.
fn exact(datatype: Datatype, raw: &[u8]) -> String {
    let mut wide = [0u8; 16];
    let signed = matches!(datatype, Datatype::Int8 | Datatype::Int16 | Datatype::Int32 | Datatype::Int64);
    if signed && raw.last().is_some_and(|top| top & 0x80 != 0) {
        wide = [0xff; 16];
    }
    for (to, from) in wide.iter_mut().zip(raw) {
        *to = *from;
    }
    i128::from_le_bytes(wide).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn floats(values: &[f32]) -> Tensor {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new("y", Datatype::Fp32, vec![1, values.len()], Bytes::from(raw)).unwrap()
    }
    fn longs(values: &[i64]) -> Tensor {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new("y", Datatype::Int64, vec![values.len()], Bytes::from(raw)).unwrap()
    }
    fn passes(want: f32, have: f32) -> bool {
        compare("s", &[floats(&[want])], &[floats(&[have])], 1e-3, 1e-4).passed
    }

    #[test]
    fn floats_pass_within_tolerance_and_special_values_only_if_equal() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for (want, have, good) in [
            (1.0, 1.001, true),
            (1.0, 1.002, false),
            (0.0, 0.00009, true),
            (0.0, 0.0002, false),
            (-0.0, 0.0, true),
            (nan, nan, true),
            (nan, 0.0, false),
            (0.0, nan, false),
            (inf, inf, true),
            (inf, -inf, false),
            (inf, 3.0, false),
            (3.0, inf, false),
        ] {
            assert_eq!(passes(want, have), good, "{want} and {have}");
        }
    }

    #[test]
    fn integers_are_exact_and_a_mismatch_names_place_and_values() {
        assert!(compare("s", &[longs(&[1, -2])], &[longs(&[1, -2])], 1.0, 1.0).passed);
        let result = compare("seven", &[longs(&[1, -2])], &[longs(&[1, 3])], 1.0, 1.0);
        assert_eq!(result.mismatch.as_deref(), Some("output `y` at [1]: expected -2, found 3"));
        let result = compare("s", &[floats(&[0.0, 0.5])], &[floats(&[0.0, 0.75])], 0.0, 0.0);
        assert_eq!(
            result.mismatch.as_deref(),
            Some("output `y` at [0, 1]: expected 0.5, found 0.75 (rtol 0, atol 0)")
        );
        assert_eq!(result.max_abs_diff, 0.25);
    }

    #[test]
    fn a_missing_output_another_shape_or_datatype_is_a_mismatch_not_a_panic() {
        for have in [vec![], vec![floats(&[1.0])], vec![longs(&[1])], vec![longs(&[]).with_name("z")]] {
            assert!(!compare("s", &[longs(&[1, 2])], &have, 0.0, 0.0).passed);
        }
    }

    #[test]
    fn a_result_with_nan_still_survives_json() {
        let result = compare("s", &[floats(&[1.0])], &[floats(&[f32::NAN])], 0.0, 0.0);
        let json = serde_json::to_string(&result).unwrap();
        assert_eq!(serde_json::from_str::<GoldenResult>(&json).unwrap(), result);
    }
}
