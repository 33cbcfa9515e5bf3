//! From labelled answers to a calibration: isotonic or Platt, whichever lowers the error on rows it has not seen.

use super::evidence::ScoredLabel;
use edgefleet_shared::bundle::baseline::{Calibration, MAX_STEPS};

/// Bins of the expected calibration error (Naeini et al., AAAI 2015).
const BINS: usize = 15;
const FOLDS: usize = 3;
/// Labels looked at; of more, the newest.
pub const MOST_LABELS: usize = 20_000;

/// (confidence, right: 0 or 1, weight); numbers that cannot be are left out.
pub fn points(labels: &[ScoredLabel]) -> Vec<(f64, f64, f64)> {
    let recent = &labels[labels.len().saturating_sub(MOST_LABELS)..];
    let sound = |l: &&ScoredLabel| (0.0..=1.0).contains(&l.confidence) && l.weight > 0.0 && l.weight < 1e9;
    recent.iter().filter(sound).map(|l| (l.confidence, f64::from(u8::from(l.correct)), l.weight)).collect()
}

/// One bin of a reliability diagram.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reliability {
    pub confidence: f64,
    pub accuracy: f64,
    pub weight: f64,
    pub n: u64,
}

/// Bins of equal width that hold anything.
pub fn reliability(points: &[(f64, f64, f64)], calibration: &Calibration) -> Vec<Reliability> {
    let mut bins = [(0.0, 0.0, 0.0, 0_u64); BINS];
    for (confidence, right, weight) in points {
        let p = calibration.probability(*confidence);
        let bin = &mut bins[((p * BINS as f64) as usize).min(BINS - 1)];
        *bin = (bin.0 + weight * p, bin.1 + weight * right, bin.2 + weight, bin.3 + 1);
    }
    let full = bins.iter().filter(|bin| bin.2 > 0.0);
    full.map(|(p, right, weight, n)| Reliability {
        confidence: p / weight,
        accuracy: right / weight,
        weight: *weight,
        n: *n,
    })
    .collect()
}

/// Expected calibration error, and what chance alone would make of it with so few labels: sum over bins of
/// share x sqrt(2 p(1-p) / (pi n)).
pub fn calibration_error(points: &[(f64, f64, f64)], calibration: &Calibration) -> (f64, f64) {
    let bins = reliability(points, calibration);
    let all: f64 = bins.iter().map(|bin| bin.weight).sum();
    if all <= 0.0 {
        return (0.0, 0.0);
    }
    let error = bins.iter().map(|bin| bin.weight * (bin.confidence - bin.accuracy).abs()).sum::<f64>() / all;
    let chance = |bin: &Reliability| {
        let p = bin.confidence.clamp(0.0, 1.0);
        bin.weight * (2.0 * p * (1.0 - p) / (std::f64::consts::PI * bin.n as f64)).sqrt()
    };
    (error, bins.iter().map(chance).sum::<f64>() / all)
}

/// Isotonic regression by pooling adjacent violators; at most [`MAX_STEPS`] steps.
/// Source: Ayer et al., Ann. Math. Statist. 26 (1955); Zadrozny and Elkan, KDD 2002.
pub fn isotonic(points: &[(f64, f64, f64)]) -> Calibration {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    // (first x, sum of w*y, sum of w)
    let mut blocks: Vec<(f64, f64, f64)> = Vec::new();
    for (x, y, w) in sorted {
        match blocks.last_mut() {
            Some(last) if last.0 == x => *last = (x, last.1 + w * y, last.2 + w),
            _ => blocks.push((x, w * y, w)),
        }
        while let [.., a, b] = blocks[..]
            && a.1 / a.2 >= b.1 / b.2
        {
            blocks.pop();
            if let Some(last) = blocks.last_mut() {
                *last = (a.0, a.1 + b.1, a.2 + b.2);
            }
        }
    }
    let every = blocks.len().div_ceil(MAX_STEPS).max(1);
    let merged = blocks.chunks(every).map(|chunk| {
        let (right, weight) = chunk.iter().fold((0.0, 0.0), |sum, b| (sum.0 + b.1, sum.1 + b.2));
        (chunk[0].0, (right / weight).clamp(0.0, 1.0))
    });
    let (confidence, probability) = merged.unzip();
    Calibration { confidence, probability }
}

/// Logistic regression on the logit of the confidence, as a table of 33 steps. Smoothed targets.
/// Source: Platt 1999, with the targets of Lin, Lin and Weng, Machine Learning 68 (2007).
pub fn platt(points: &[(f64, f64, f64)]) -> Calibration {
    let logit = |p: f64| {
        let p = p.clamp(1e-6, 1.0 - 1e-6);
        (p / (1.0 - p)).ln()
    };
    let (right, all) = points.iter().fold((0.0, 0.0), |sum, (_, y, w)| (sum.0 + w * y, sum.1 + w));
    let (high, low) = ((right + 1.0) / (right + 2.0), 1.0 / (all - right + 2.0));
    let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
    let (mut a, mut b) = (1.0, 0.0);
    for _ in 0..50 {
        // Newton, with a little ridge so that separable rows stay finite.
        let (mut ga, mut gb, mut haa, mut hab, mut hbb) = (1e-6 * (a - 1.0), 0.0, 1e-6, 0.0, 1e-6);
        for (x, y, w) in points {
            let x = logit(*x);
            let p = sigmoid(a * x + b);
            let target = if *y > 0.5 { high } else { low };
            let (g, h) = (w * (p - target), w * (p * (1.0 - p)).max(1e-9));
            (ga, gb) = (ga + g * x, gb + g);
            (haa, hab, hbb) = (haa + h * x * x, hab + h * x, hbb + h);
        }
        let det = haa * hbb - hab * hab;
        if det <= 1e-12 {
            break;
        }
        let (da, db) = ((hbb * ga - hab * gb) / det, (haa * gb - hab * ga) / det);
        (a, b) = ((a - da).clamp(0.0, 20.0), (b - db).clamp(-20.0, 20.0));
        if da.abs() + db.abs() < 1e-9 {
            break;
        }
    }
    let confidence: Vec<f64> = (0..=32).map(|x| f64::from(x) / 32.0).collect();
    let probability = confidence.iter().map(|x| sigmoid(a * logit(*x) + b).clamp(0.0, 1.0)).collect();
    Calibration { confidence, probability }
}

/// A proposed calibration, and its error on rows it was not fitted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    pub method: &'static str,
    pub calibration: Calibration,
    pub error_before: f64,
    pub error_after: f64,
}

/// Fits both ways on all rows; judged over three folds. `None` if neither lowers the error of the present table.
pub fn calibrate(points: &[(f64, f64, f64)], present: &Calibration) -> Option<Fitted> {
    if points.len() < 10 * FOLDS {
        return None;
    }
    let error_before = calibration_error(points, present).0;
    type Method = fn(&[(f64, f64, f64)]) -> Calibration;
    let methods: [(&'static str, Method); 2] = [("isotonic", isotonic), ("platt", platt)];
    let tried = methods.map(|(method, fit)| {
        let errors = (0..FOLDS).map(|fold| {
            let part = |is_held: bool| {
                let chosen = points.iter().enumerate().filter(|(at, _)| (at % FOLDS == fold) == is_held);
                chosen.map(|(_, point)| *point).collect::<Vec<_>>()
            };
            calibration_error(&part(true), &fit(&part(false))).0
        });
        (method, errors.sum::<f64>() / FOLDS as f64, fit)
    });
    // Errors of a third of the rows against an error of a third of the rows.
    let thirds = (0..FOLDS).map(|fold| {
        let held: Vec<_> =
            points.iter().enumerate().filter(|(at, _)| at % FOLDS == fold).map(|(_, point)| *point).collect();
        calibration_error(&held, present).0
    });
    let present_error = thirds.sum::<f64>() / FOLDS as f64;
    let best = tried.into_iter().min_by(|a, b| a.1.total_cmp(&b.1))?;
    (best.1 < present_error).then(|| Fitted {
        method: best.0,
        calibration: best.2(points),
        error_before,
        error_after: best.1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::random::Random;
    use proptest::prelude::*;

    /// Confidence c, right with probability c^2: an overconfident model.
    fn overconfident(n: usize) -> Vec<(f64, f64, f64)> {
        let mut random = Random::new(4);
        (0..n)
            .map(|_| {
                let c = 0.3 + 0.7 * random.unit();
                (c, f64::from(random.chance(c * c)), 1.0)
            })
            .collect()
    }

    #[test]
    fn an_overconfident_model_gets_a_better_table() {
        let points = overconfident(1_500);
        let found = calibrate(&points, &Calibration::default()).unwrap();
        assert!(found.error_before > 0.12 && found.error_after < 0.06, "{found:?}");
        for c in [0.5, 0.7, 0.9] {
            assert!((found.calibration.probability(c) - c * c).abs() < 0.08, "{c}");
        }
        let (error, chance) = calibration_error(&overconfident(300), &Calibration::default());
        assert!(error > chance + 0.05, "{error} {chance}");
    }

    #[test]
    fn platt_finds_the_logistic_it_was_drawn_from() {
        let mut random = Random::new(9);
        let points: Vec<_> = (0..4_000)
            .map(|_| {
                let c: f64 = 0.02 + 0.96 * random.unit();
                let z = 0.5 * (c / (1.0 - c)).ln() - 0.4;
                (c, f64::from(random.chance(1.0 / (1.0 + (-z).exp()))), 1.0)
            })
            .collect();
        let found = platt(&points);
        for c in [0.1_f64, 0.5, 0.9] {
            let wanted = 1.0 / (1.0 + (-(0.5 * (c / (1.0 - c)).ln() - 0.4)).exp());
            assert!((found.probability(c) - wanted).abs() < 0.04, "{c}: {}", found.probability(c));
        }
    }

    #[test]
    fn a_calibrated_model_is_left_alone_by_chance_more_often_than_not() {
        let mut random = Random::new(1);
        let points: Vec<_> = (0..600)
            .map(|_| {
                let c = random.unit();
                (c, f64::from(random.chance(c)), 1.0)
            })
            .collect();
        let (error, chance) = calibration_error(&points, &Calibration::default());
        assert!(error < chance + 0.02, "{error} {chance}");
    }

    proptest! {
        #[test]
        fn tables_never_fall(points in prop::collection::vec((0.0..=1.0f64, 0u8..2, 0.1..9.0f64), 0..400)) {
            let points: Vec<_> = points.into_iter().map(|(x, y, w)| (x, f64::from(y), w)).collect();
            for table in [isotonic(&points), platt(&points)] {
                prop_assert!(table.probability.is_sorted() && table.confidence.len() <= MAX_STEPS);
                prop_assert!(table.confidence.is_sorted_by(|a, b| a < b));
                prop_assert!(table.probability.iter().all(|p| (0.0..=1.0).contains(p)));
            }
        }
    }
}
