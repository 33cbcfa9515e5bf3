//! Accuracy without labels, how sure it is, and how right it was once labels came.
//!
//! Pure. Two estimators from the counters of a profile: CBPE (mean calibrated probability of being right) and ATC
//! (share of confidences above the baseline's threshold). **Both assume that a confidence means in the field what it
//! meant on the held-out data.** If the inputs alone change they often hold; if the meaning of an input changes (concept
//! drift: the same picture has another truth now) confidence does not move, and neither do they: they go on naming the
//! old accuracy and cannot know better. Garg et al. prove that without assumptions on the shift no estimator can.
//! Hence [`EstimatorScore`]: each is compared with labels as they arrive, and marked untrusted where it was wrong.
//!
//! Source: NannyML, confidence-based performance estimation; Garg et al., ICLR 2022 (arXiv 2201.04234).

use crate::drift::chance::normal_quantile;
use edgefleet_shared::{bundle::baseline::BaselineQuality, telemetry::Quality, time::Timestamp};
use serde::{Deserialize, Serialize};

/// Level of the intervals.
const BEYOND: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimator {
    Cbpe,
    Atc,
}

impl Estimator {
    pub const ALL: [Self; 2] = [Self::Cbpe, Self::Atc];
    pub fn name(self) -> &'static str {
        match self {
            Self::Cbpe => "CBPE",
            Self::Atc => "ATC",
        }
    }
}

/// An accuracy, 0 to 1, with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// Rows it was made of.
    pub n: u64,
    /// Standard deviation from the rows themselves (which of them are right is chance) ...
    pub sampling: f64,
    /// ... from the labelled rows the calibration or threshold was fitted on ...
    pub fitting: f64,
    /// ... and what the calibration was off by on rows it had not seen (its ECE): added to both sides, not averaged.
    pub bias: f64,
}

impl Estimate {
    fn of(value: f64, n: u64, sampling: f64, fitting: f64, bias: f64) -> Self {
        let half = normal_quantile(BEYOND) * sampling.hypot(fitting) + bias;
        let (low, high) = ((value - half).clamp(0.0, 1.0), (value + half).clamp(0.0, 1.0));
        Self { value, low, high, n, sampling, fitting, bias }
    }
    pub fn deviation(&self) -> f64 {
        self.sampling.hypot(self.fitting)
    }
}

/// `None` without rows. Numbers that cannot be are brought into range.
pub fn estimate(which: Estimator, quality: &Quality, baseline: &BaselineQuality) -> Option<Estimate> {
    if quality.n == 0 {
        return None;
    }
    let n = quality.n as f64;
    let fitted = baseline.n.max(1) as f64;
    let accuracy = baseline.accuracy.clamp(0.0, 1.0);
    // A share of `fitted` rows; also what ATC's threshold was chosen by.
    let fitting = (accuracy * (1.0 - accuracy) / fitted).sqrt();
    let estimate = match which {
        Estimator::Cbpe => {
            let value = share(quality.expected_correct / n);
            let sampling = quality.variance.clamp(0.0, 0.25 * n).sqrt() / n;
            Estimate::of(value, quality.n, sampling, fitting, share(baseline.ece_after))
        }
        Estimator::Atc => {
            let value = share(quality.above as f64 / n);
            let sampling = (value * (1.0 - value) / n).sqrt();
            Estimate::of(value, quality.n, sampling, fitting, 0.0)
        }
    };
    Some(estimate)
}

fn share(x: f64) -> f64 {
    if x.is_finite() { x.clamp(0.0, 1.0) } else { 0.0 }
}

/// How far an estimate lies below another of the same estimator; what both share (fitting, bias) cancels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// From `before` to `now`, 95 %.
pub fn drop(before: &Estimate, now: &Estimate) -> Drop {
    let half = normal_quantile(BEYOND) * before.sampling.hypot(now.sampling);
    let value = before.value - now.value;
    Drop { value, low: value - half, high: value + half }
}

/// From the accuracy on held-out data.
pub fn drop_from(baseline: &BaselineQuality, now: &Estimate) -> Drop {
    let half = normal_quantile(BEYOND) * now.deviation() + now.bias;
    let value = baseline.accuracy - now.value;
    Drop { value, low: value - half, high: value + half }
}

/// One hour (or day) for which both an estimate and labels exist.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    pub at: Timestamp,
    pub estimate: f64,
    /// Standard deviation of the estimate.
    pub deviation: f64,
    /// Accuracy by labels or audit, and its standard deviation.
    pub truth: f64,
    pub truth_deviation: f64,
    pub labels: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Too few labels to say.
    Unknown,
    Trusted,
    /// Not to be believed for this model until it was right again (A23).
    Untrusted,
}

/// How right an estimator was.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EstimatorScore {
    pub hours: u64,
    pub labels: u64,
    /// Mean of |estimate - truth|, weighed by labels.
    pub mean_gap: f64,
    /// Mean of estimate - truth: above 0 it flatters.
    pub bias: f64,
    /// Mean gap that chance alone would make; labels are few.
    pub by_chance: f64,
    pub trust: Trust,
}

/// What [`score`] asks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreSettings {
    pub hours: u64,
    pub labels: u64,
    /// A mean gap beyond chance and this is untrusted; below half of it trusted again.
    pub gap: f64,
}

impl Default for ScoreSettings {
    fn default() -> Self {
        Self { hours: 24, labels: 200, gap: 0.05 }
    }
}

/// `before`: the verdict so far, for hysteresis.
pub fn score(checked: &[Checked], before: Trust, settings: &ScoreSettings) -> EstimatorScore {
    let sound = |c: &&Checked| {
        let shares = [c.estimate, c.truth].iter().all(|x| (0.0..=1.0).contains(x));
        shares && c.deviation.is_finite() && c.truth_deviation.is_finite() && c.labels > 0
    };
    let told: Vec<_> = checked.iter().filter(sound).collect();
    let labels = told.iter().fold(0_u64, |sum, c| sum.saturating_add(c.labels));
    let mean = |of: &dyn Fn(&Checked) -> f64| {
        told.iter().map(|c| c.labels as f64 * of(c)).sum::<f64>() / (labels as f64).max(1.0)
    };
    let mean_gap = mean(&|c| (c.estimate - c.truth).abs());
    let bias = mean(&|c| c.estimate - c.truth);
    // E|Z| = sd sqrt(2/pi).
    let by_chance = mean(&|c| c.deviation.hypot(c.truth_deviation)) * (2.0 / std::f64::consts::PI).sqrt();
    let hours = told.len() as u64;
    // The bias averages chance away; the mean gap does not and is compared with what chance makes of it.
    let off = (mean_gap - by_chance).max(bias.abs() - by_chance / (hours as f64).max(1.0).sqrt());
    let trust = match () {
        () if hours < settings.hours || labels < settings.labels => Trust::Unknown,
        () if off > settings.gap => Trust::Untrusted,
        () if off > settings.gap / 2.0 && before == Trust::Untrusted => Trust::Untrusted,
        () => Trust::Trusted,
    };
    EstimatorScore { hours, labels, mean_gap, bias, by_chance, trust }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::random::Random;
    use edgefleet_shared::bundle::baseline::Calibration;

    fn baseline(accuracy: f64) -> BaselineQuality {
        BaselineQuality {
            n: 1_000,
            accuracy,
            atc_threshold: 0.5,
            calibration: Calibration::default(),
            ece_before: 0.05,
            ece_after: 0.01,
            confusion: Vec::new(),
        }
    }

    /// Rows whose confidence is uniform in [low, 1] and means what it says; returns counters and true accuracy.
    fn rows(seed: u64, n: u64, low: f64, honest: bool) -> (Quality, f64) {
        let mut random = Random::new(seed);
        let (mut quality, mut right) = (Quality { n, ..Quality::default() }, 0.0);
        for _ in 0..n {
            let p = low + (1.0 - low) * random.unit();
            quality.expected_correct += p;
            quality.variance += p * (1.0 - p);
            quality.above += u64::from(p >= 0.5);
            // Concept drift: the truth was permuted, what the model believes did not change.
            right += f64::from(random.chance(if honest { p } else { 0.1 }));
        }
        (quality, right / n as f64)
    }

    #[test]
    fn the_interval_holds_the_truth_where_confidence_means_what_it_meant() {
        let held = (0..300).filter(|seed| {
            let (quality, truth) = rows(*seed, 400, 0.4, true);
            let found = estimate(Estimator::Cbpe, &quality, &baseline(0.7)).unwrap();
            found.low <= truth && truth <= found.high
        });
        assert!(held.count() >= 285, "95 % at least");
    }

    #[test]
    fn under_concept_drift_both_go_on_naming_the_old_accuracy_and_the_score_says_so() {
        let mut checked = Vec::new();
        for hour in 0..48 {
            let (quality, truth) = rows(hour, 200, 0.6, false);
            let found = estimate(Estimator::Cbpe, &quality, &baseline(0.8)).unwrap();
            assert!(found.value > 0.75 && truth < 0.25, "it cannot know");
            let at = Timestamp::from_secs(hour * 3_600);
            let (deviation, truth_deviation) = (found.deviation(), 0.1);
            checked.push(Checked {
                at,
                estimate: found.value,
                deviation,
                truth,
                truth_deviation,
                labels: 10,
            });
        }
        let found = score(&checked, Trust::Trusted, &ScoreSettings::default());
        assert_eq!(found.trust, Trust::Untrusted);
        assert!(found.bias > 0.5, "{found:?}");
        assert_eq!(score(&checked[..10], Trust::Trusted, &ScoreSettings::default()).trust, Trust::Unknown);
    }

    #[test]
    fn few_labels_an_hour_do_not_make_an_honest_estimator_untrusted() {
        let mut random = Random::new(8);
        let checked: Vec<_> = (0..72)
            .map(|hour| {
                let truth = random.binomial(10, 0.8) as f64 / 10.0;
                let at = Timestamp::from_secs(hour * 3_600);
                Checked { at, estimate: 0.8, deviation: 0.02, truth, truth_deviation: 0.126, labels: 10 }
            })
            .collect();
        let found = score(&checked, Trust::Unknown, &ScoreSettings::default());
        assert!(found.trust == Trust::Trusted && found.mean_gap > 0.05, "{found:?}");
    }

    #[test]
    fn odd_numbers_stay_in_range() {
        assert!(estimate(Estimator::Atc, &Quality::default(), &baseline(0.9)).is_none());
        let odd =
            Quality { n: 3, expected_correct: f64::NAN, variance: -1.0, above: 99, ..Quality::default() };
        for which in Estimator::ALL {
            let found = estimate(which, &odd, &baseline(f64::INFINITY)).unwrap();
            assert!((0.0..=1.0).contains(&found.value) && found.low <= found.high, "{found:?}");
        }
    }
}
