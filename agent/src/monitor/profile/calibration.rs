//! How far a model's confidence can be believed, from labelled rows it was not trained on.
//!
//! Sources: isotonic regression by pooling adjacent violators (Ayer et al., Annals of Mathematical Statistics 26,
//! 1955); expected calibration error with 15 bins (Naeini et al., AAAI 2015); threshold of ATC (Garg et al., ICLR
//! 2022).

use edgefleet_shared::bundle::{Calibration, baseline::MAX_STEPS};

/// Bins of the expected calibration error.
const ECE_BINS: usize = 15;
/// Parts of the rows, each judged by what the others taught.
const SPLITS: usize = 3;
/// Rows below which nothing is learnt from them.
const MIN_ROWS: usize = 30;

/// A confidence and whether the answer was right.
pub type Judged = (f64, bool);

/// What calibration does to the expected calibration error of rows it has not seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    /// Empty if it would not lower the error.
    pub calibration: Calibration,
    pub ece_before: f64,
    pub ece_after: f64,
}

/// Learns from all rows, if what each two thirds teach lowers the error on the third left out.
pub fn fit(rows: &[Judged]) -> Fitted {
    let ece_before = ece(rows);
    let unseen: Vec<Judged> = (0..SPLITS)
        .flat_map(|part| {
            let others = rows.iter().enumerate().filter(|(n, _)| n % SPLITS != part).map(|(_, row)| *row);
            let taught = isotonic(&others.collect::<Vec<_>>());
            let held_out = rows.iter().skip(part).step_by(SPLITS);
            held_out.map(move |(confidence, right)| (taught.probability(*confidence), *right))
        })
        .collect();
    let ece_after = ece(&unseen);
    if rows.len() < MIN_ROWS || ece_after >= ece_before {
        return Fitted { calibration: Calibration::default(), ece_before, ece_after: ece_before };
    }
    Fitted { calibration: isotonic(rows), ece_before, ece_after }
}

/// Rows of about the same confidence.
#[derive(Clone, Copy)]
struct Block {
    from: f64,
    to: f64,
    n: f64,
    right: f64,
}

impl Block {
    fn share(&self) -> f64 {
        self.right / self.n
    }
}

/// The function that never falls and is nearest to the rows, in the least squares.
pub fn isotonic(rows: &[Judged]) -> Calibration {
    let mut rows: Vec<Judged> =
        rows.iter().copied().filter(|(confidence, _)| confidence.is_finite()).collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut blocks: Vec<Block> = Vec::new();
    for (confidence, right) in rows {
        let right = f64::from(u8::from(right));
        match blocks.last_mut() {
            // Rows of one confidence cannot be told apart.
            Some(last) if last.from == confidence && last.to == confidence => {
                (last.n, last.right) = (last.n + 1.0, last.right + right);
            }
            _ => blocks.push(Block { from: confidence, to: confidence, n: 1.0, right }),
        }
    }
    let mut pooled: Vec<Block> = Vec::new();
    for mut block in blocks {
        while let Some(before) = pooled.pop_if(|before| before.share() >= block.share()) {
            let (n, right) = (before.n + block.n, before.right + block.right);
            block = Block { from: before.from, to: block.to, n, right };
        }
        pooled.push(block);
    }
    // Two steps for each block: level from its first to its last confidence.
    let every = (2 * pooled.len()).div_ceil(MAX_STEPS).max(1);
    let mut calibration = Calibration::default();
    for block in pooled.iter().step_by(every) {
        for confidence in [block.from, block.to] {
            if calibration.confidence.last().is_none_or(|last| *last < confidence) {
                calibration.confidence.push(confidence);
                calibration.probability.push(block.share());
            }
        }
    }
    calibration
}

/// Expected calibration error, 0 to 1; 0 without rows.
pub fn ece(rows: &[Judged]) -> f64 {
    let mut bins = [(0.0, 0.0, 0.0); ECE_BINS];
    for (confidence, right) in rows.iter().filter(|(confidence, _)| confidence.is_finite()) {
        let bin = ((confidence * ECE_BINS as f64) as usize).min(ECE_BINS - 1);
        let (n, sum, rights) = &mut bins[bin];
        *n += 1.0;
        *sum += confidence;
        *rights += f64::from(u8::from(*right));
    }
    let total: f64 = bins.iter().map(|(n, ..)| n).sum();
    if total == 0.0 {
        return 0.0;
    }
    bins.iter().map(|(_, sum, rights)| (sum - rights).abs() / total).sum()
}

/// The confidence at or above which lies a share of rows nearest to the share of right answers.
pub fn atc_threshold(rows: &[Judged]) -> f64 {
    let mut confidences: Vec<f64> = rows.iter().map(|row| row.0).filter(|c| c.is_finite()).collect();
    confidences.sort_by(f64::total_cmp);
    let right = rows.iter().filter(|(confidence, right)| *right && confidence.is_finite()).count();
    let above = |threshold: f64| confidences.len() - confidences.partition_point(|c| *c < threshold);
    let beyond = confidences.last().map_or(1.0, |most| most.next_up());
    let best = confidences.iter().copied().chain([beyond]).min_by_key(|c| above(*c).abs_diff(right));
    best.filter(|threshold| threshold.is_finite()).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// scikit-learn's IsotonicRegression on x = 1..8, y = 0 1 0 1 1 0 1 1: 0, 1/2, 1/2, 2/3, 2/3, 2/3, 1, 1.
    #[test]
    fn it_pools_as_the_reference_does() {
        let y = [0, 1, 0, 1, 1, 0, 1, 1];
        let rows: Vec<Judged> = (1..9).zip(y).map(|(x, y)| (f64::from(x) / 10.0, y == 1)).collect();
        let found = isotonic(&rows);
        let wanted = [0.0, 0.5, 0.5, 2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 1.0, 1.0];
        for ((x, _), wanted) in rows.iter().zip(wanted) {
            assert!((found.probability(*x) - wanted).abs() < 1e-12, "{x}: {found:?}");
        }
    }

    #[test]
    fn a_model_that_is_too_sure_is_corrected_and_a_right_one_left_alone() {
        // Says 0.95, is right in 7 of 10; says 0.55, is right in 5 of 10.
        let rows: Vec<Judged> = (0..300).flat_map(|n| [(0.95, n % 10 < 7), (0.55, n % 2 == 0)]).collect();
        let fitted = fit(&rows);
        assert!((fitted.ece_before - 0.15).abs() < 1e-9 && fitted.ece_after < 0.02, "{fitted:?}");
        assert!((fitted.calibration.probability(0.95) - 0.7).abs() < 1e-9);
        let right: Vec<Judged> = (0..300).map(|n| (0.9, n % 10 != 0)).collect();
        let fitted = fit(&right);
        assert_eq!((fitted.calibration, fitted.ece_after), (Calibration::default(), fitted.ece_before));
    }

    #[test]
    fn the_threshold_of_atc_splits_off_as_many_as_are_right() {
        let rows: Vec<Judged> = (0..10).map(|n| (f64::from(n) / 10.0, n >= 3)).collect();
        assert_eq!(atc_threshold(&rows), 0.3);
        assert_eq!(atc_threshold(&[(0.5, false), (0.5, false)]), 0.5f64.next_up());
        assert_eq!(atc_threshold(&[]), 1.0);
    }

    proptest! {
        #[test]
        fn steps_are_what_a_baseline_may_hold(rows in prop::collection::vec((0.0..1.0f64, any::<bool>()), 0..2_000)) {
            let found = isotonic(&rows);
            prop_assert!(found.confidence.len() <= MAX_STEPS);
            prop_assert!(found.confidence.is_sorted_by(|a, b| a < b));
            prop_assert!(found.probability.is_sorted());
            prop_assert!((0.0..=1.0).contains(&ece(&rows)) && atc_threshold(&rows).is_finite());
            let fitted = fit(&rows);
            prop_assert!(fitted.ece_after <= fitted.ece_before);
        }
    }
}
