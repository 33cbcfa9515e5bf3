//! Below which score an answer should not be given, by class.

use super::{action::ProposedThreshold, evidence::ScoredLabel, fit::MOST_LABELS};
use edgefleet_shared::bundle::baseline::Calibration;
use std::collections::BTreeMap;

/// Answers given and right at a threshold. Recall: of all right answers of the class, those that are given.
fn rates(scores: &[(f64, bool, f64)], threshold: f64) -> (f64, f64) {
    let (mut given, mut given_right, mut right) = (0.0, 0.0, 0.0);
    for (score, correct, weight) in scores {
        right += if *correct { *weight } else { 0.0 };
        if *score >= threshold {
            given += weight;
            given_right += if *correct { *weight } else { 0.0 };
        }
    }
    let share = |x: f64, n: f64| if n > 0.0 { x / n } else { 0.0 };
    (share(given_right, given), share(given_right, right))
}

fn f1((precision, recall): (f64, f64)) -> f64 {
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

/// For each class with at least `least` labels: the threshold on a grid of 0.01 with the best F1, if it gains at
/// least `gain` over the present one on the labels it was **not** chosen by (two halves, each judging the other's).
pub fn propose(
    labels: &[ScoredLabel],
    calibration: &Calibration,
    present: &BTreeMap<String, f64>,
    least: usize,
    gain: f64,
) -> Vec<ProposedThreshold> {
    let recent = &labels[labels.len().saturating_sub(MOST_LABELS)..];
    let mut classes: BTreeMap<&str, Vec<(f64, bool, f64)>> = BTreeMap::new();
    for label in recent.iter().filter(|l| l.weight > 0.0 && l.confidence.is_finite()) {
        let score = calibration.probability(label.confidence);
        classes.entry(&label.predicted).or_default().push((score, label.correct, label.weight));
    }
    let grid = || (0..100).map(|x| f64::from(x) / 100.0);
    let best = |scores: &[(f64, bool, f64)]| {
        grid().max_by(|a, b| f1(rates(scores, *a)).total_cmp(&f1(rates(scores, *b)))).unwrap_or(0.0)
    };
    let mut proposed = Vec::new();
    for (class, scores) in classes.into_iter().filter(|(_, scores)| scores.len() >= least) {
        let Some(now) = present.get(class).or_else(|| present.get("*")).copied() else { continue };
        let half = |odd: bool| -> Vec<_> {
            scores.iter().enumerate().filter(|(at, _)| (at % 2 == 1) == odd).map(|(_, s)| *s).collect()
        };
        let (even, odd) = (half(false), half(true));
        let gained = 0.5
            * (f1(rates(&odd, best(&even))) - f1(rates(&odd, now)) + f1(rates(&even, best(&odd)))
                - f1(rates(&even, now)));
        if gained < gain {
            continue;
        }
        let threshold = best(&scores);
        let ((precision, recall), (precision_now, recall_now)) =
            (rates(&scores, threshold), rates(&scores, now));
        proposed.push(ProposedThreshold {
            class: class.to_owned(),
            threshold,
            precision,
            recall,
            precision_now,
            recall_now,
            n: scores.len() as u64,
        });
    }
    proposed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::random::Random;

    fn labels(n: u32) -> Vec<ScoredLabel> {
        let mut random = Random::new(2);
        (0..n)
            .map(|_| {
                let confidence = random.unit();
                let correct = random.chance(if confidence > 0.4 { 0.95 } else { 0.05 });
                ScoredLabel { confidence, predicted: "ok".into(), correct, weight: 1.0 }
            })
            .collect()
    }

    #[test]
    fn a_threshold_that_is_too_high_is_lowered_and_a_right_one_is_left() {
        let calibration = Calibration::default();
        let present = |t: f64| BTreeMap::from([("*".to_owned(), t)]);
        let found = propose(&labels(600), &calibration, &present(0.8), 100, 0.02);
        assert_eq!(found.len(), 1);
        assert!((found[0].threshold - 0.4).abs() < 0.06, "{found:?}");
        assert!(found[0].recall > 0.9 && found[0].recall_now < 0.4 && found[0].precision > 0.85);
        assert!(propose(&labels(600), &calibration, &present(0.4), 100, 0.02).is_empty());
        assert!(propose(&labels(60), &calibration, &present(0.8), 100, 0.02).is_empty());
        assert!(propose(&labels(600), &calibration, &BTreeMap::new(), 100, 0.02).is_empty());
    }
}
