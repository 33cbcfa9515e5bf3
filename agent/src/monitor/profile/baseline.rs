//! Makes a baseline: runs held-out rows through the model and counts them as a device would. Pure but for the model.

use super::{
    Profiler, Seen,
    calibration::{self, Judged},
    counter::Counter,
    plan::What,
};
use crate::{
    engine::{LoadedModel, RunError, aside},
    monitor::{Class, ClassNames, ClassReader},
};
use edgefleet_shared::{
    bundle::{Baseline, BaselineChannel, BaselineQuality, Manifest, baseline::BASELINE_SCHEMA},
    telemetry::channel::{MAX_CATEGORIES, MAX_CATEGORY_BYTES, OTHER},
    tensor::{Datatype, Tensor},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Steps between the edges of a channel: each holds 5 % of the rows.
const QUANTILES: usize = 20;
/// Digits of an edge after the first: what a float32 holds.
const DIGITS: usize = 6;

/// One row as a client would send it, and its true class if that is known.
#[derive(Clone, Debug)]
pub struct Row {
    pub inputs: Vec<Tensor>,
    /// Name or index.
    pub label: Option<String>,
}

/// Why there is no baseline.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    #[error("row {row} cannot be run")]
    Run { row: usize, source: RunError },
    #[error("row {row}: the label {label:?} is no class of this model")]
    Label { row: usize, label: String },
    #[error("there are no rows")]
    Empty,
}

/// `dataset` names the data. The same rows give the same baseline, on whichever machine the engine gives the same
/// answers.
///
/// # Errors
/// [`MakeError`] names the first row that cannot be used.
pub fn make(
    model: &dyn LoadedModel,
    manifest: &Manifest,
    rows: &[Row],
    dataset: String,
) -> Result<Baseline, MakeError> {
    if rows.is_empty() {
        return Err(MakeError::Empty);
    }
    let plain = Profiler::new(manifest, super::BundleBaseline::Absent);
    let profiler = Profiler::with_categories(manifest, categories(&plain, rows));
    let reader = ClassReader::new(manifest);
    let names = ClassNames::from(manifest.labels.as_slice());
    let mut values: Vec<Vec<f64>> = vec![Vec::new(); profiler.plan().channels().len()];
    let mut classes: BTreeMap<String, u64> = BTreeMap::new();
    let mut confusion: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut judged: Vec<Judged> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let look = profiler.look(&row.inputs);
        let (answer, aside) = aside::collect(|| model.run(&row.inputs));
        let outputs = answer.map_err(|source| MakeError::Run { row: number, source })?;
        let found = reader.as_ref().map(|reader| reader.read(&outputs)).unwrap_or_default();
        let scores = profiler.scores(&outputs, &found);
        let seen = Seen { look: &look, scores, pictures: &aside.pictures, remembers: false };
        profiler.each_input(&seen, |channel, value| values[channel].push(value));
        profiler.each_answer(&seen.scores, |channel, value| values[channel].push(value));
        for class in &found {
            *classes.entry(names.name(class.index)).or_default() += 1;
        }
        let ([Class { index, confidence }], Some(label)) = (&found[..], &row.label) else { continue };
        let unknown = || MakeError::Label { row: number, label: label.clone() };
        let truth = names.index(label).ok_or_else(unknown)?;
        *confusion.entry((names.name(truth), names.name(*index))).or_default() += 1;
        judged.push((f64::from(*confidence), truth == *index));
    }
    let described = profiler.plan().channels().iter().zip(&profiler.categories).zip(values);
    let mut channels: Vec<_> = described
        .map(|((channel, known), values)| {
            let edges = if channel.is_category() { vec![] } else { edges(&values) };
            let mut counter = match channel.is_category() {
                true => Counter::categories(known.names.len()),
                false => Counter::numbers(edges.clone()),
            };
            values.iter().for_each(|value| counter.take(*value));
            let moments = counter.moments();
            let counted = counter.cut(&channel.id, &known.names);
            BaselineChannel {
                id: channel.id.clone(),
                kind: channel.kind,
                n: counted.n,
                missing: counted.missing,
                edges,
                bins: counted.bins,
                moments,
                categories: counted.categories,
            }
        })
        .collect();
    channels.sort_by(|a, b| a.id.cmp(&b.id));
    let quality = (!judged.is_empty()).then(|| quality(&judged, confusion));
    Ok(Baseline { schema: BASELINE_SCHEMA, rows: rows.len() as u64, dataset, channels, classes, quality })
}

fn quality(judged: &[Judged], confusion: BTreeMap<(String, String), u64>) -> BaselineQuality {
    let right = judged.iter().filter(|(_, right)| *right).count();
    let fitted = calibration::fit(judged);
    BaselineQuality {
        n: judged.len() as u64,
        accuracy: right as f64 / judged.len() as f64,
        atc_threshold: calibration::atc_threshold(judged),
        calibration: fitted.calibration,
        ece_before: fitted.ece_before,
        ece_after: fitted.ece_after,
        confusion: confusion.into_iter().map(|((truth, found), n)| (truth, found, n)).collect(),
    }
}

/// Least, every twentieth and greatest of the finite values, each once.
fn edges(values: &[f64]) -> Vec<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|x| x.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return vec![] };
    let at = |step: usize| sorted[(step * last + QUANTILES / 2) / QUANTILES];
    let mut edges: Vec<f64> = (0..=QUANTILES).map(|step| super::counter::rounded(at(step), DIGITS)).collect();
    edges.dedup();
    edges
}

/// The categories that occur in each channel of them. What has more than can be told apart is free text, of which
/// nothing is kept.
fn categories(profiler: &Profiler, rows: &[Row]) -> HashMap<usize, Vec<String>> {
    let mut found: HashMap<usize, BTreeSet<String>> = HashMap::new();
    for of in &profiler.plan().inputs {
        let What::Categories { columns } = of.what else { continue };
        for tensor in rows.iter().flat_map(|row| row.inputs.iter().filter(|t| t.name() == of.tensor)) {
            for (index, text) in texts(tensor).into_iter().enumerate() {
                let names = found.entry(of.first + index % columns).or_default();
                let fits = (1..=MAX_CATEGORY_BYTES).contains(&text.len()) && text != OTHER;
                if fits && names.len() <= MAX_CATEGORIES {
                    names.insert(text);
                }
            }
        }
    }
    let told_apart = found.into_iter().filter(|(_, names)| names.len() <= MAX_CATEGORIES);
    told_apart.map(|(channel, names)| (channel, names.into_iter().collect())).collect()
}

fn texts(tensor: &Tensor) -> Vec<String> {
    let mut texts = Vec::new();
    if tensor.datatype() != Datatype::Bytes {
        return texts;
    }
    let mut rest = &tensor.data()[..];
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let Some((text, tail)) = tail.split_at_checked(u32::from_le_bytes(*length) as usize) else { break };
        texts.push(String::from_utf8_lossy(text).into_owned());
        rest = tail;
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;
    use edgefleet_shared::telemetry::channel::bin_of;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn edges_ascend_and_share_the_values_out(values in prop::collection::vec(-1e6..1e6f64, 1..500)) {
            let edges = edges(&values);
            prop_assert!(edges.is_sorted_by(|a, b| a < b) && edges.len() <= QUANTILES + 1);
            let mut bins = vec![0; edges.len() + 1];
            values.iter().for_each(|x| bins[bin_of(&edges, *x)] += 1);
            // Values of which no two are nearly equal: a twentieth each, and one more at the ends.
            let most = values.len() / QUANTILES + 2;
            prop_assert!(bins.iter().all(|n| *n <= most), "{bins:?}");
        }
    }

    #[test]
    fn values_that_occur_often_make_fewer_edges() {
        assert_eq!(edges(&[2.0; 9]), [2.0]);
        assert_eq!(edges(&[f64::NAN]), [0.0; 0]);
        assert_eq!(edges(&[0.0, 0.0, 1.0]), [0.0, 1.0]);
    }
}
