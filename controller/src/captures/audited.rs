//! Accuracy from labelled captures, weighted by the probability they were kept with. Pure.
//!
//! Two estimates, and what each assumes:
//!
//! - [`random_only`] uses the audit sample alone: rows that chance picked, each with the share it had. It assumes that
//!   labelled audit rows are like audit rows that are not labelled, or were lost on the way: nothing about models.
//! - [`combined`] adds what strategies chose (probability 1) as a stratum of its own, each stratum weighted by the rows
//!   it stands for. It assumes the same **within each stratum**, and that strategies lost nothing but copies of what
//!   they kept. Captures that only something late asked for (disagreement, feedback) stand for nothing and are left
//!   out of both.
//!
//! The mean is the Hajek estimator `sum(y/p) / sum(1/p)`. Its interval is Wilson's score interval with the effective
//! sample size `(sum w)^2 / sum w^2` in place of n.
//!
//! Sources: Horvitz and Thompson 1952 (weights); Hajek 1971 (ratio form); Kish 1965 (effective size); Wilson 1927;
//! Korn and Graubard 1998 (score-type intervals with effective size in surveys).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Two-sided 95 %.
pub const Z95: f64 = 1.959_963_984_540_054;

/// One capture as the estimate sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Probability of the random draw, if chance picked it.
    pub audit_share: Option<f64>,
    /// Whether a strategy known at the time of the answer chose it.
    pub is_hard: bool,
    /// Whether the answer was right; `None` without a label.
    pub correct: Option<bool>,
}

/// An estimate of the share of right answers among all that were served.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    pub accuracy: f64,
    /// 95 % interval.
    pub low: f64,
    pub high: f64,
    /// Labelled captures it rests on.
    pub labelled: u64,
    /// How many plain random labels would say as much.
    pub effective_n: f64,
}

/// Wilson's interval around `p` after `n` (not necessarily whole) observations.
pub fn wilson(p: f64, n: f64, z: f64) -> (f64, f64) {
    if n.is_nan() || n <= 0.0 {
        return (0.0, 1.0);
    }
    let z2 = z * z;
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = z / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

/// Sums over one stratum.
#[derive(Clone, Copy, Debug, Default)]
struct Stratum {
    /// Rows it stands for, labelled or not.
    size: f64,
    labelled: u64,
    weight: f64,
    weight2: f64,
    right: f64,
}

impl Stratum {
    fn add(&mut self, weight: f64, correct: Option<bool>) {
        self.size += weight;
        if let Some(correct) = correct {
            self.labelled += 1;
            self.weight += weight;
            self.weight2 += weight * weight;
            self.right += weight * f64::from(u8::from(correct));
        }
    }
    fn mean(&self) -> f64 {
        self.right / self.weight
    }
    fn effective_n(&self) -> f64 {
        self.weight * self.weight / self.weight2
    }
}

fn weight(share: f64) -> Option<f64> {
    (share > 0.0 && share <= 1.0).then(|| 1.0 / share)
}

fn estimate(accuracy: f64, effective_n: f64, labelled: u64, z: f64) -> Estimate {
    let (low, high) = wilson(accuracy, effective_n, z);
    Estimate { accuracy, low, high, labelled, effective_n }
}

/// From the audit sample alone. `None` without a labelled audit row.
pub fn random_only(rows: impl IntoIterator<Item = Row>, z: f64) -> Option<Estimate> {
    let mut audit = Stratum::default();
    for row in rows {
        if let Some(weight) = row.audit_share.and_then(weight) {
            audit.add(weight, row.correct);
        }
    }
    (audit.labelled > 0).then(|| estimate(audit.mean(), audit.effective_n(), audit.labelled, z))
}

/// From both strata. `None` while one that stands for rows has no label.
pub fn combined(rows: impl IntoIterator<Item = Row>, z: f64) -> Option<Estimate> {
    let (mut hard, mut rest) = (Stratum::default(), Stratum::default());
    for row in rows {
        match (row.is_hard, row.audit_share.and_then(weight)) {
            (true, _) => hard.add(1.0, row.correct),
            (false, Some(weight)) => rest.add(weight, row.correct),
            (false, None) => {}
        }
    }
    let strata = [hard, rest].into_iter().filter(|stratum| stratum.size > 0.0);
    let total: f64 = strata.clone().map(|stratum| stratum.size).sum();
    if total <= 0.0 || strata.clone().any(|stratum| stratum.labelled == 0) {
        return None;
    }
    let (mut accuracy, mut spread, mut labelled) = (0.0, 0.0, 0);
    for stratum in strata {
        let share = stratum.size / total;
        accuracy += share * stratum.mean();
        spread += share * share / stratum.effective_n();
        labelled += stratum.labelled;
    }
    Some(estimate(accuracy, 1.0 / spread, labelled, z))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    fn audit(share: f64, correct: Option<bool>) -> Row {
        Row { audit_share: Some(share), is_hard: false, correct }
    }
    fn hard(correct: Option<bool>) -> Row {
        Row { audit_share: None, is_hard: true, correct }
    }

    #[test]
    fn small_cases_are_exact() {
        // Equal shares: the plain mean, and Wilson's interval as textbooks have it (8 of 10).
        let ten: Vec<_> = (0..10).map(|n| audit(0.1, Some(n < 8))).collect();
        let found = random_only(ten.clone(), Z95).unwrap();
        assert!((found.accuracy - 0.8).abs() < 1e-12 && (found.effective_n - 10.0).abs() < 1e-9);
        assert!((found.low - 0.4902).abs() < 1e-4 && (found.high - 0.9433).abs() < 1e-4, "{found:?}");
        assert_eq!(combined(ten, Z95), Some(found));
        // A row kept with half the probability stands for twice as many.
        let uneven = [audit(0.5, Some(true)), audit(0.25, Some(false))];
        let found = random_only(uneven, Z95).unwrap();
        assert!((found.accuracy - 1.0 / 3.0).abs() < 1e-12);
        assert!((found.effective_n - 36.0 / 20.0).abs() < 1e-12);
        // 10 hard rows all wrong, 90 others of which 9 were drawn, all right: 90 %.
        let both = (0..10).map(|_| hard(Some(false))).chain((0..9).map(|_| audit(0.1, Some(true))));
        let found = combined(both, Z95).unwrap();
        assert!((found.accuracy - 0.9).abs() < 1e-12, "{found:?}");
        // Half of the hard ones labelled says the same: strata have their own sizes.
        let half = (0..10).map(|n| hard((n < 5).then_some(false)));
        let found = combined(half.chain((0..9).map(|_| audit(0.1, Some(true)))), Z95).unwrap();
        assert!((found.accuracy - 0.9).abs() < 1e-12, "{found:?}");
        assert_eq!(found.labelled, 14);
        assert_eq!(random_only([hard(Some(true)), audit(0.1, None)], Z95), None);
        assert_eq!(combined([hard(None), audit(0.1, Some(true))], Z95), None);
        assert_eq!(random_only([audit(0.0, Some(true)), audit(f64::NAN, Some(true))], Z95), None);
    }

    /// Uncertain rows are wrong more often, and kept always up to a quota; the share halves on the way; only
    /// some captures get labels. A plain mean over captures would be far off.
    #[test]
    fn intervals_cover_the_truth_and_the_plain_mean_does_not() {
        let mut random = StdRng::seed_from_u64(5);
        let (runs, rows) = (600, 4_000);
        let (mut covered, mut covered_both, mut covered_plain) = (0, 0, 0);
        let (mut bias, mut narrower) = (0.0, 0);
        for _ in 0..runs {
            let (mut kept, mut right, mut quota) = (vec![], 0, 120);
            for n in 0..rows {
                let uncertain = random.random_bool(0.1);
                let correct = random.random_bool(if uncertain { 0.55 } else { 0.97 });
                right += u32::from(correct);
                let share = if n < rows / 2 { 0.08 } else { 0.04 };
                let is_hard = uncertain && quota > 0;
                quota -= i32::from(is_hard);
                let audit_share = random.random_bool(share).then_some(share);
                if is_hard || audit_share.is_some() {
                    let labelled = random.random_bool(if is_hard { 0.5 } else { 0.9 });
                    kept.push(Row { audit_share, is_hard, correct: labelled.then_some(correct) });
                }
            }
            let truth = f64::from(right) / f64::from(rows);
            let both = combined(kept.iter().copied(), Z95).unwrap();
            covered_both += u32::from((both.low..=both.high).contains(&truth));
            bias += (both.accuracy - truth) / f64::from(runs);
            // With every audit row labelled, the audit sample alone is right as well.
            let all = kept.iter().map(|row| Row {
                correct: row.correct.or_else(|| {
                    row.audit_share.map(|_| random.random_bool(if row.is_hard { 0.55 } else { 0.97 }))
                }),
                ..*row
            });
            let all: Vec<_> = all.collect();
            let only = random_only(all.iter().copied(), Z95).unwrap();
            covered += u32::from((only.low..=only.high).contains(&truth));
            narrower += u32::from(both.high - both.low < only.high - only.low);
            let labels: Vec<_> = kept.iter().filter_map(|row| row.correct).collect();
            let n = labels.len() as f64;
            let plain = labels.iter().filter(|correct| **correct).count() as f64 / n;
            let (low, high) = wilson(plain, n, Z95);
            covered_plain += u32::from((low..=high).contains(&truth));
        }
        let share = |n: u32| f64::from(n) / f64::from(runs);
        println!(
            "coverage of 95 %: audit {:.3}, combined {:.3}, plain mean {:.3}; bias of combined {bias:+.4}; \
             combined narrower in {:.3}",
            share(covered),
            share(covered_both),
            share(covered_plain),
            share(narrower)
        );
        assert!(share(covered) > 0.93 && share(covered_both) > 0.93);
        assert!(share(covered_plain) < 0.3 && bias.abs() < 0.005);
    }
}
