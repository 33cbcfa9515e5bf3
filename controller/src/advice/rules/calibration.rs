//! A05 and A06: what a confidence means, and from which one on an answer is given.

use super::super::{
    action::Action,
    evidence::Evidence,
    finding::{Confidence, Finding, Plot, RuleId, Severity, percent},
    fit::{calibrate, calibration_error, points, reliability},
    rule::{AdviceSettings, Judged},
    thresholds::propose,
};
use edgefleet_shared::{bundle::baseline::Calibration, time::Timestamp};

/// Limit of the expected calibration error, beyond twice of what chance makes of it.
const ERROR: f64 = 0.05;
/// Answers within so much of a threshold ...
const NEAR: f64 = 0.05;
/// ... are many from this share on.
const MANY: f64 = 0.15;
/// Gain of F1 worth a change.
const GAIN: f64 = 0.02;

fn present(evidence: &Evidence) -> Calibration {
    let quality = evidence.baseline.as_ref().and_then(|baseline| baseline.quality.as_ref());
    quality.map_or_else(Calibration::default, |quality| quality.calibration.clone())
}

pub(in super::super) fn off(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    let table = present(evidence);
    for slice in &evidence.slices {
        let labels = points(&slice.labels);
        if (labels.len() as u64) < 2 * settings.min_labels {
            continue;
        }
        let (error, by_chance) = calibration_error(&labels, &table);
        let fitted = (error > ERROR + 2.0 * by_chance).then(|| calibrate(&labels, &table)).flatten();
        let found = fitted.map(|fitted| {
            let bins = reliability(&labels, &table);
            let diagram = Plot::Lines {
                title: "Share of right answers by confidence".into(),
                x: "confidence".into(),
                y: "right".into(),
                series: vec![
                    ("found".into(), bins.iter().map(|bin| (bin.confidence, bin.accuracy)).collect()),
                    ("honest".into(), vec![(0.0, 0.0), (1.0, 1.0)]),
                ],
            };
            let (said, was) = labels.iter().fold((0.0, 0.0), |sum, (c, right, w)| {
                (sum.0 + w * table.probability(*c), sum.1 + w * right)
            });
            let which = if said > was { "surer than it may be" } else { "less sure than it could be" };
            let what = format!(
                "The model is {which}: over {} labels its confidence is off by {} in the mean (by chance {}). A new {} calibration lowers that to {} on labels it was not fitted on.",
                labels.len(),
                percent(error),
                percent(by_chance),
                fitted.method,
                percent(fitted.error_after)
            );
            let (ece_before, ece_after) = (fitted.error_before, fitted.error_after);
            let action =
                Action::PushCalibration { calibration: fitted.calibration, ece_before, ece_after };
            Finding::new(RuleId::A05, slice.scope.clone(), now, action)
                .rated(Severity::Warning, Confidence::High)
                .number("error", error)
                .number("by_chance", by_chance)
                .number("error_after", ece_after)
                .number("labels", labels.len() as f64)
                .plot(diagram)
                .says(
                    what,
                    "The table from confidence to probability was fitted on data that differs from the field; the answers themselves need not be worse.",
                    "Push the calibration alone: devices keep the model, only the table changes.".into(),
                )
        });
        judged.look(&slice.scope, found);
    }
    judged
}

/// Share of answers whose confidence lies within [`NEAR`] of the threshold, by the bins of the confidence channel.
fn near(evidence: &Evidence, slice: &super::super::evidence::Slice, threshold: f64) -> Option<(f64, u64)> {
    let now = slice.now.as_ref()?;
    let known =
        evidence.baseline.as_ref()?.channels.iter().find(|c| c.id.as_str().ends_with("confidence"))?;
    let channel = now.channel(known.id.as_str())?;
    if channel.bins.len() != known.edges.len() + 1 || channel.n == 0 {
        return None;
    }
    let end = |at: Option<usize>, open: f64| at.and_then(|at| known.edges.get(at)).copied().unwrap_or(open);
    let overlap = channel.bins.iter().enumerate().map(|(bin, n)| {
        let (low, high) = (end(bin.checked_sub(1), 0.0).max(0.0), end(Some(bin), 1.0).min(1.0));
        let inside = (high.min(threshold + NEAR) - low.max(threshold - NEAR)).max(0.0);
        if high > low { *n as f64 * inside / (high - low) } else { 0.0 }
    });
    Some((overlap.sum::<f64>() / channel.n as f64, channel.n))
}

pub(in super::super) fn threshold(evidence: &Evidence, settings: &AdviceSettings, now: Timestamp) -> Judged {
    let mut judged = Judged::default();
    let Some(present_threshold) = evidence.thresholds.values().copied().next() else { return judged };
    let table = present(evidence);
    for slice in &evidence.slices {
        let Some((share, rows)) = near(evidence, slice, present_threshold) else { continue };
        if rows < settings.min_rows || (slice.labels.len() as u64) < settings.min_labels {
            continue;
        }
        // Thresholds are on the score the model says; the calibration would move them.
        let raw = Calibration::default();
        let thresholds =
            propose(&slice.labels, &raw, &evidence.thresholds, settings.min_labels as usize, GAIN);
        let found = (share >= MANY && !thresholds.is_empty()).then(|| {
            let told: Vec<_> = thresholds
                .iter()
                .take(3)
                .map(|t| {
                    format!(
                        "{}: {:.2} gives precision {} (now {}) and recall {} (now {})",
                        t.class,
                        t.threshold,
                        percent(t.precision),
                        percent(t.precision_now),
                        percent(t.recall),
                        percent(t.recall_now)
                    )
                })
                .collect();
            let expected = table.probability(present_threshold);
            Finding::new(RuleId::A06, slice.scope.clone(), now, Action::ProposeThresholds { thresholds })
                .rated(Severity::Info, Confidence::Medium)
                .number("near", share)
                .number("threshold", present_threshold)
                .number("right_at_threshold", expected)
                .number("labels", slice.labels.len() as f64)
                .says(
                    format!(
                        "{} of {rows} answers lie within {NEAR} of the threshold {present_threshold:.2}. {}.",
                        percent(share),
                        told.join("; ")
                    ),
                    "Where many scores meet the threshold, a small move of it changes many answers; labels say it is not at its best place.",
                    "Take the proposed thresholds over into a settings-only bundle and let a canary show them.".into(),
                )
        });
        judged.look(&slice.scope, found);
    }
    judged
}
