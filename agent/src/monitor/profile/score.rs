//! What an answer says of itself: how sure it is, and its numbers.

use super::{
    plan::ChannelPlan,
    read::{number, outputs as read_outputs, rows_of},
};
use crate::{monitor::Class, pipeline::appearance::MAX_LOOKS};
use edgefleet_shared::tensor::Tensor;

/// Scores of a row that are looked at; models with more classes have no entropy.
const MAX_CLASSES: usize = MAX_LOOKS;
/// How far from 1 the sum of probabilities may be, rounding of half-precision numbers included.
const SUM_SLACK: f64 = 0.02;

/// The channels of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// By row.
    pub(in crate::monitor) classes: Vec<Class>,
    /// 0 to 1 by row looked at; NaN where there is none.
    pub(super) entropy: Vec<f32>,
    /// Rows looked at, one after the other.
    pub(super) numbers: Vec<f64>,
}

pub(super) fn scores(plan: &ChannelPlan, outputs: &[Tensor], classes: &[Class]) -> Scores {
    let mut scores = Scores { classes: classes.to_vec(), ..Scores::default() };
    let named = |name: &String| outputs.iter().find(|tensor| tensor.name() == name);
    if let Some(tensor) = plan.scores.as_ref().filter(|_| plan.entropy.is_some()).and_then(named) {
        scores.entropy = entropies(tensor);
    }
    if let Some((first, tensor)) =
        plan.outputs.iter().find_map(|of| Some((of, outputs.iter().find(|t| t.name() == of.tensor)?)))
    {
        let rows = rows_of(first, tensor);
        let stride = tensor.len().div_ceil(MAX_LOOKS).clamp(1, rows.max(1));
        scores.numbers = read_outputs(plan, outputs, rows, stride);
    }
    scores
}

/// Entropy of each row of `[rows, classes]` or `[classes]`, divided by that of a guess: 0 is sure, 1 knows nothing.
/// Numbers that are no probabilities are made some by softmax.
fn entropies(tensor: &Tensor) -> Vec<f32> {
    let (rows, classes) = match tensor.shape() {
        [classes] => (1, *classes),
        [rows, classes] => (*rows, *classes),
        _ => return vec![],
    };
    if !(2..=MAX_CLASSES).contains(&classes) {
        return vec![];
    }
    let stride = tensor.len().div_ceil(MAX_LOOKS).clamp(1, rows.max(1));
    let mut row_of = vec![0.0; classes];
    let mut entropy = |row: usize| {
        for (class, score) in row_of.iter_mut().enumerate() {
            *score = number(tensor, row * classes + class);
        }
        entropy(&mut row_of) as f32
    };
    (0..rows).step_by(stride).map(&mut entropy).collect()
}

fn entropy(scores: &mut [f64]) -> f64 {
    let sum: f64 = scores.iter().sum();
    let are_probabilities = scores.iter().all(|p| *p >= 0.0) && (sum - 1.0).abs() <= SUM_SLACK;
    if !are_probabilities {
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum: f64 = scores.iter().sum();
        scores.iter_mut().for_each(|x| *x /= sum);
    }
    let nats: f64 = scores.iter().map(|p| if *p == 0.0 { 0.0 } else { -p * p.ln() }).sum();
    if nats.is_finite() { (nats / (scores.len() as f64).ln()).clamp(0.0, 1.0) } else { f64::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_guess_has_all_the_entropy_and_a_sure_answer_none() {
        for (scores, wanted) in [
            (vec![0.25; 4], 1.0),
            (vec![0.0, 1.0, 0.0], 0.0),
            (vec![7.0, 7.0], 1.0), // logits
            (vec![-900.0, 900.0], 0.0),
        ] {
            assert!((entropy(&mut scores.clone()) - wanted).abs() < 1e-9, "{scores:?}");
        }
        assert!(entropy(&mut [f64::NAN, 0.5]).is_nan());
        // scipy.stats.entropy([0.7, 0.2, 0.1]) / log(3)
        assert!((entropy(&mut [0.7, 0.2, 0.1]) - 0.729_847_2).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn any_scores_give_a_share_or_nothing(mut scores in prop::collection::vec(prop::num::f64::ANY, 2..40)) {
            let found = entropy(&mut scores);
            prop_assert!(found.is_nan() || (0.0..=1.0).contains(&found), "{found}");
        }
    }
}
