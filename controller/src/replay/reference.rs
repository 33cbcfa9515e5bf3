//! The baseline that a bundle would ship, of the reference rows.

use super::rows::{DataSet, Row};
use crate::advice::fit::{calibrate, calibration_error};
use edgefleet_shared::{
    bundle::{
        Baseline,
        baseline::{BASELINE_SCHEMA, BaselineChannel, BaselineQuality, Calibration, ChannelKind},
    },
    ids::ChannelId,
    telemetry::{Moments, channel::bin_of},
};
use std::collections::BTreeMap;

/// Bins of a numeric channel.
const BINS: usize = 12;
/// Answers by class, as a channel.
pub(super) const LABEL: &str = "output/label";

pub(super) fn baseline(set: &DataSet, rows: &[&Row]) -> Baseline {
    let mut channels: Vec<_> = set
        .channels
        .iter()
        .enumerate()
        .map(|(at, (id, kind))| numbers(id, *kind, rows.iter().map(|row| row.0[at]).collect()))
        .collect();
    let mut classes: BTreeMap<String, u64> = BTreeMap::new();
    for row in rows {
        *classes.entry(set.classes[row.1].clone()).or_default() += 1;
    }
    if let Ok(id) = LABEL.parse() {
        channels.push(BaselineChannel {
            id,
            kind: ChannelKind::Output,
            n: rows.len() as u64,
            missing: 0,
            edges: Vec::new(),
            bins: Vec::new(),
            moments: Moments::default(),
            categories: classes.clone(),
        });
    }
    channels.sort_by(|a, b| a.id.cmp(&b.id));
    Baseline {
        schema: BASELINE_SCHEMA,
        rows: rows.len() as u64,
        dataset: set.name.clone(),
        channels,
        classes,
        quality: Some(quality(rows)),
    }
}

/// Edges at the quantiles; equal ones fall together.
fn numbers(id: &ChannelId, kind: ChannelKind, mut values: Vec<f64>) -> BaselineChannel {
    let mut moments = Moments::default();
    values.iter().for_each(|x| moments.take(*x));
    values.sort_by(f64::total_cmp);
    let mut edges: Vec<f64> = (1..BINS).map(|at| values[at * values.len() / BINS]).collect();
    edges.dedup();
    let mut bins = vec![0; edges.len() + 1];
    values.iter().for_each(|x| bins[bin_of(&edges, *x)] += 1);
    BaselineChannel {
        id: id.clone(),
        kind,
        n: values.len() as u64,
        missing: 0,
        edges,
        bins,
        moments,
        categories: BTreeMap::new(),
    }
}

fn quality(rows: &[&Row]) -> BaselineQuality {
    let points: Vec<_> =
        rows.iter().map(|row| (row.confidence(), f64::from(u8::from(row.is_right())), 1.0)).collect();
    let accuracy = points.iter().map(|(_, right, _)| right).sum::<f64>() / points.len().max(1) as f64;
    let raw = Calibration::default();
    let ece_before = calibration_error(&points, &raw).0;
    let fitted = calibrate(&points, &raw);
    let (calibration, ece_after) =
        fitted.map_or((raw, ece_before), |fitted| (fitted.calibration, fitted.error_after));
    let mut confidence: Vec<_> = rows.iter().map(|row| row.confidence()).collect();
    confidence.sort_by(f64::total_cmp);
    // As many rows above as are right.
    let wrong = ((1.0 - accuracy) * confidence.len() as f64).round() as usize;
    let atc_threshold = confidence.get(wrong).copied().unwrap_or(1.0);
    BaselineQuality {
        n: rows.len() as u64,
        accuracy,
        atc_threshold,
        calibration,
        ece_before,
        ece_after,
        confusion: Vec::new(),
    }
}
