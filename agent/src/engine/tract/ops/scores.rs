//! From the sums of a classifier or regressor to its scores, the way ONNX Runtime does it.
//!
//! Source: ONNX operators for ML, `post_transform`; where the text is silent (two classes but one score),
//! the behaviour of ONNX Runtime, held by the parity fixtures.

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Post {
    None,
    Softmax,
    Logistic,
    SoftmaxZero,
    Probit,
}

impl Post {
    pub(super) fn parse(name: &str) -> TractResult<Self> {
        Ok(match name {
            "NONE" => Self::None,
            "SOFTMAX" => Self::Softmax,
            "LOGISTIC" => Self::Logistic,
            "SOFTMAX_ZERO" => Self::SoftmaxZero,
            "PROBIT" => Self::Probit,
            other => bail!("`post_transform` is `{other}`, which ONNX does not know"),
        })
    }
    /// As the operator TreeEnsemble numbers them.
    pub(super) fn numbered(number: i64) -> TractResult<Self> {
        let all = [Self::None, Self::Softmax, Self::Logistic, Self::SoftmaxZero, Self::Probit];
        let found = usize::try_from(number).ok().and_then(|at| all.get(at).copied());
        found.with_context(|| format!("`post_transform` is {number}, not 0 to 4"))
    }

    /// One row of two or more scores, in place.
    pub(super) fn row(self, scores: &mut [f64]) {
        match self {
            Self::None => {}
            Self::Logistic => scores.iter_mut().for_each(|s| *s = logistic(*s)),
            Self::Probit => scores.iter_mut().for_each(|s| *s = probit(*s)),
            Self::Softmax | Self::SoftmaxZero => {
                let top = scores.iter().copied().fold(f64::from(f32::MIN), f64::max);
                // SOFTMAX_ZERO leaves scores of zero near zero.
                let zero = |s: f64| self == Self::SoftmaxZero && s.abs() <= 1e-7;
                let mut sum = 0.0;
                for score in scores.iter_mut() {
                    if zero(*score) {
                        *score *= (-top).exp();
                    } else {
                        *score = (*score - top).exp();
                        sum += *score;
                    }
                }
                scores.iter_mut().for_each(|s| *s /= sum);
            }
        }
    }

    /// A lone score: of a regressor with one target.
    pub(super) fn single(self, score: f64) -> f64 {
        if self == Self::Probit { probit(score) } else { score }
    }
}

pub(super) fn logistic(x: f64) -> f64 {
    let v = 1.0 / (1.0 + (-x.abs()).exp());
    if x < 0.0 { 1.0 - v } else { v }
}

/// The approximation of the inverse error function that ONNX Runtime uses, constants included.
#[allow(clippy::approx_constant, reason = "the reference has pi to six digits; ours must agree with it")]
fn probit(p: f64) -> f64 {
    let x = 2.0 * p - 1.0;
    let sign = if x < 0.0 { -1.0 } else { 1.0 };
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let v = 2.0 / (3.14159 * 0.147) + 0.5 * log;
    let v2 = log / 0.147;
    1.414_213_56 * sign * (-v + (v * v - v2).sqrt()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_agree_with_the_definition() {
        let of = |post: Post, mut row: Vec<f64>| {
            post.row(&mut row);
            row.iter().map(|s| (s * 1e4).round() / 1e4).collect::<Vec<_>>()
        };
        assert_eq!(of(Post::None, vec![1.0, -2.0]), [1.0, -2.0]);
        assert_eq!(of(Post::Logistic, vec![0.0, -2.0]), [0.5, 0.1192]);
        assert_eq!(of(Post::Softmax, vec![1.0, 1.0]), [0.5, 0.5]);
        assert_eq!(of(Post::SoftmaxZero, vec![1.0, 0.0, 1.0]), [0.5, 0.0, 0.5]);
        // The median and the upper 97.5 % of the normal distribution.
        assert_eq!(of(Post::Probit, vec![0.5, 0.975])[0], 0.0);
        assert!((of(Post::Probit, vec![0.5, 0.975])[1] - 1.96).abs() < 0.01);
    }
}
