//! A bundle of the same model with another calibration, baseline or threshold: nothing of the model's source is
//! needed, and devices that have the model download only what changed.

use super::step::Change;
use crate::advice::{Action, ProposedThreshold};
use edgefleet_shared::{
    bundle::{
        Baseline, BlobRef, Calibration, Manifest, PipelineSpec,
        baseline::{BASELINE_SCHEMA, BaselineChannel, BaselineError},
        pipeline::Op,
    },
    digest::{BlobDigest, BundleDigest},
    ids::BundleName,
    telemetry::{Channel, ProfileContent},
};
use std::collections::BTreeMap;

/// Rows below which a baseline would be chance.
const LEAST_ROWS: u64 = 1_000;

/// The bundle a finding is about.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub digest: BundleDigest,
    pub manifest: &'a Manifest,
    pub baseline: Option<&'a Baseline>,
    /// Highest counter the model has in the registry.
    pub newest: u64,
}

/// What devices of the finding's scope saw lately.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub content: ProfileContent,
    /// Answers by class.
    pub classes: BTreeMap<String, u64>,
    /// Which time and which devices, for the baseline's own note.
    pub of: String,
}

/// A manifest that is not signed yet, and the baseline that it names if that is another one.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub name: BundleName,
    pub manifest: Vec<u8>,
    pub baseline: Option<Vec<u8>>,
    pub change: Change,
}

/// Why a bundle takes a person's hands.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unable {
    #[error("{bundle} has no baseline")]
    NoBaseline { bundle: BundleName },
    #[error("the baseline of {bundle} has no labelled rows, so it has no calibration to replace")]
    NoQuality { bundle: BundleName },
    #[error("devices told {rows} rows, a baseline needs {LEAST_ROWS}")]
    FewRows { rows: u64 },
    #[error("no channel of the profiles fits the baseline of {bundle}")]
    NoChannel { bundle: BundleName },
    #[error("{thresholds} thresholds are proposed and the pipeline of {bundle} has {steps} steps with one")]
    Thresholds { bundle: BundleName, thresholds: usize, steps: usize },
    #[error("the new baseline would not be accepted")]
    Baseline(#[source] BaselineError),
    #[error("the new manifest would not be accepted: {reason}")]
    Manifest { reason: String },
}

/// Builds the next bundle for a finding with the id `advice`. `None`: the action is about something else.
///
/// # Errors
/// [`Unable`].
pub fn make(
    action: &Action,
    source: Source<'_>,
    seen: Option<&Seen>,
    advice: &str,
) -> Option<Result<Made, Unable>> {
    match action {
        Action::PushCalibration { calibration, ece_before, ece_after } => Some(
            calibrated(source, calibration, (*ece_before, *ece_after))
                .and_then(|baseline| packed(source, Some(baseline), None, Change::Calibration, advice)),
        ),
        Action::ProposeBaseline { .. } | Action::SeasonalBaselines { .. } => {
            Some(rebased(source, seen).and_then(|baseline| {
                let change = Change::Baseline { rows: baseline.rows };
                packed(source, Some(baseline), None, change, advice)
            }))
        }
        Action::ProposeThresholds { thresholds } => {
            Some(with_threshold(source, thresholds).and_then(|(pipeline, from, to)| {
                packed(source, None, Some(pipeline), Change::Threshold { from, to }, advice)
            }))
        }
        _ => None,
    }
}

fn calibrated(
    source: Source<'_>,
    calibration: &Calibration,
    (before, after): (f64, f64),
) -> Result<Baseline, Unable> {
    let bundle = source.manifest.name();
    let mut baseline =
        source.baseline.cloned().ok_or_else(|| Unable::NoBaseline { bundle: bundle.clone() })?;
    let quality = baseline.quality.as_mut().ok_or(Unable::NoQuality { bundle })?;
    quality.calibration = calibration.clone();
    (quality.ece_before, quality.ece_after) = (before, after);
    Ok(baseline)
}

/// The channels as devices see them now, in the old one's bins. What labels said of the model (accuracy, calibration)
/// stays: no label is in the profiles.
fn rebased(source: Source<'_>, seen: Option<&Seen>) -> Result<Baseline, Unable> {
    let bundle = source.manifest.name();
    let old = source.baseline.ok_or_else(|| Unable::NoBaseline { bundle: bundle.clone() })?;
    let seen = seen.ok_or(Unable::FewRows { rows: 0 })?;
    let rows = seen.content.rows;
    if rows < LEAST_ROWS {
        return Err(Unable::FewRows { rows });
    }
    let now = |channel: &BaselineChannel| {
        let found = seen.content.channels.iter().find(|one| one.id == channel.id)?;
        let same_bins = found.bins.len() == channel.bins.len();
        (found.n > 0 && same_bins && (channel.categories.is_empty() || !found.categories.is_empty()))
            .then_some(found)
    };
    if !old.channels.iter().any(|channel| now(channel).is_some()) {
        return Err(Unable::NoChannel { bundle });
    }
    let channels = old.channels.iter().map(|channel| match now(channel) {
        Some(Channel { n, missing, bins, moments, categories, .. }) => BaselineChannel {
            n: *n,
            missing: *missing,
            bins: bins.clone(),
            moments: *moments,
            categories: categories.clone(),
            ..channel.clone()
        },
        None => channel.clone(),
    });
    let classes = if seen.classes.is_empty() { old.classes.clone() } else { seen.classes.clone() };
    Ok(Baseline {
        schema: BASELINE_SCHEMA,
        rows,
        dataset: seen.of.clone(),
        channels: channels.collect(),
        classes,
        quality: old.quality.clone(),
    })
}

/// The pipeline with its one threshold moved.
fn with_threshold(
    source: Source<'_>,
    thresholds: &[ProposedThreshold],
) -> Result<(PipelineSpec, f64, f64), Unable> {
    let bundle = source.manifest.name();
    let pipeline = source.manifest.pipeline.clone();
    let is_one = |op: &Op| matches!(op, Op::Threshold { .. });
    let all = |pipeline: &PipelineSpec| {
        pipeline.pre.iter().chain(&pipeline.post).filter(|step| is_one(&step.op)).count()
    };
    let steps = pipeline.as_ref().map_or(0, all);
    let refused = Unable::Thresholds { bundle, thresholds: thresholds.len(), steps };
    let ([proposed], 1, Some(mut pipeline)) = (thresholds, steps, pipeline) else { return Err(refused) };
    let found = pipeline.pre.iter_mut().chain(&mut pipeline.post).find_map(|step| match &mut step.op {
        Op::Threshold { at } => Some(at),
        _ => None,
    });
    let Some(at) = found else { return Err(refused) };
    let from = std::mem::replace(at, proposed.threshold);
    Ok((pipeline, from, proposed.threshold))
}

fn packed(
    source: Source<'_>,
    baseline: Option<Baseline>,
    pipeline: Option<PipelineSpec>,
    change: Change,
    advice: &str,
) -> Result<Made, Unable> {
    let mut manifest = source.manifest.clone();
    manifest.model.counter = source.newest.max(manifest.model.counter).saturating_add(1);
    // Build metadata of semantic versioning; a second one is one more part of it.
    let mark = if manifest.model.version.contains('+') { '.' } else { '+' };
    manifest.model.version = format!("{}{mark}{advice}", manifest.model.version);
    manifest.lineage.insert("parent".to_owned(), source.digest.to_string());
    manifest.lineage.insert("advice".to_owned(), advice.to_owned());
    manifest.lineage.insert("changed".to_owned(), change.word().to_owned());
    if let Some(pipeline) = pipeline {
        manifest.pipeline = Some(pipeline);
    }
    let baseline = baseline.map(|baseline| serde_json::to_vec(&baseline).unwrap_or_default()); // plain data
    if let Some(bytes) = &baseline {
        Baseline::parse(bytes).map_err(Unable::Baseline)?;
        manifest.baseline = Some(BlobRef { digest: BlobDigest::of(bytes), size: bytes.len() as u64 });
    }
    let bytes = manifest.to_bytes();
    Manifest::parse(&bytes).map_err(|wrong| {
        let wrong: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        Unable::Manifest { reason: wrong.join("; ") }
    })?;
    Ok(Made { name: manifest.name(), manifest: bytes, baseline, change })
}
