//! What a bundle's held-out data was like, channel by channel, and how good the model was on it.
//!
//! A blob of the bundle (`manifest.baseline`), JSON. Devices take the edges of their histograms, the calibration and
//! the ATC threshold from it, the controller what to compare with. The agent's own code computes it (`edgefleet-agent
//! baseline`), so that author and device read an input alike.

use crate::{
    ids::ChannelId,
    telemetry::{
        Moments,
        channel::{MAX_CATEGORIES, MAX_CATEGORY_BYTES, MAX_CHANNELS, MAX_EDGES},
    },
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const BASELINE_SCHEMA: u32 = 1;
/// Largest baseline in bytes.
pub const MAX_BASELINE_BYTES: u64 = 4 << 20;
/// Steps of a calibration.
pub const MAX_STEPS: usize = 256;
const MAX_CLASSES: usize = 100_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub schema: u32,
    /// Rows it was computed from.
    pub rows: u64,
    /// Which data that was: a file's `sha256:...` or a dataset's digest.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dataset: String,
    /// Ascending by id.
    pub channels: Vec<BaselineChannel>,
    /// Rows by predicted class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, u64>,
    /// Absent if the data had no labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<BaselineQuality>,
}

/// What a channel is about: some advice looks at inputs alone, some at answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelKind {
    /// Numbers a client sent.
    Input,
    /// Luma, contrast, sharpness, saturation, size of a picture a client sent.
    Image,
    /// Numbers the model answered.
    Output,
    /// Confidence, entropy.
    Score,
    /// Categories a client sent.
    Category,
}

/// Numbers have edges and bins, categories have categories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineChannel {
    pub id: ChannelId,
    pub kind: ChannelKind,
    pub n: u64,
    #[serde(default)]
    pub missing: u64,
    /// Ascending; bins as in [`Channel`](crate::telemetry::Channel).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edges: Vec<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bins: Vec<u64>,
    #[serde(default)]
    pub moments: Moments,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub categories: BTreeMap<String, u64>,
}

/// On labelled rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineQuality {
    /// Labelled rows.
    pub n: u64,
    /// Share of right answers, 0 to 1.
    pub accuracy: f64,
    /// Confidence at or above which lies a share of rows equal to `accuracy`.
    pub atc_threshold: f64,
    pub calibration: Calibration,
    /// Expected calibration error of the confidence as it is and after calibration, 0 to 1, 15 bins of equal width
    /// (Naeini et al., AAAI 2015), the latter on rows the calibration has not seen.
    pub ece_before: f64,
    pub ece_after: f64,
    /// (truth, predicted, rows).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<(String, String, u64)>,
}

/// From confidence to the probability of being right: a step function that never falls, as isotonic regression
/// yields it. Empty: the confidence is taken as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Calibration {
    /// Ascending.
    pub confidence: Vec<f64>,
    /// Of confidences from the entry of the same index up to the next.
    pub probability: Vec<f64>,
}

impl Calibration {
    /// Probability that an answer of this confidence is right, 0 to 1. Linear between the steps, so that a
    /// confidence just above a step is not treated apart from one just below.
    pub fn probability(&self, confidence: f64) -> f64 {
        let at = self.confidence.partition_point(|x| *x <= confidence);
        let p = match (at.checked_sub(1), self.confidence.get(at)) {
            _ if self.confidence.is_empty() => confidence,
            (None, _) => self.probability[0],
            (Some(before), None) => self.probability[before],
            (Some(before), Some(next)) => {
                let (x0, y0) = (self.confidence[before], self.probability[before]);
                let y1 = self.probability[at];
                y0 + (y1 - y0) * (confidence - x0) / (next - x0)
            }
        };
        if p.is_finite() { p.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// Why bytes are no baseline.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaselineError {
    #[error("baseline has {found} bytes, {MAX_BASELINE_BYTES} are allowed")]
    TooLarge { found: u64 },
    #[error("baseline is not valid JSON of the expected form: {reason}")]
    Malformed { reason: String },
    #[error("baseline schema {found} is not understood, this program knows {BASELINE_SCHEMA}")]
    UnknownSchema { found: u64 },
    #[error("baseline `{field}`: {reason}")]
    Invalid { field: String, reason: String },
}

impl Baseline {
    pub fn channel(&self, id: &ChannelId) -> Option<&BaselineChannel> {
        self.channels.binary_search_by(|channel| channel.id.cmp(id)).ok().map(|at| &self.channels[at])
    }

    /// # Errors
    /// [`BaselineError`], the first mistake found.
    pub fn parse(bytes: &[u8]) -> Result<Self, BaselineError> {
        let found = bytes.len() as u64;
        if found > MAX_BASELINE_BYTES {
            return Err(BaselineError::TooLarge { found });
        }
        let malformed = |e: serde_json::Error| BaselineError::Malformed { reason: e.to_string() };
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.schema != u64::from(BASELINE_SCHEMA) {
            return Err(BaselineError::UnknownSchema { found: head.schema });
        }
        let baseline: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        baseline.check()?;
        Ok(baseline)
    }

    fn check(&self) -> Result<(), BaselineError> {
        let require = |holds: bool, field: &str, reason: &str| match holds {
            true => Ok(()),
            false => Err(BaselineError::Invalid { field: field.to_owned(), reason: reason.to_owned() }),
        };
        require(self.channels.len() <= MAX_CHANNELS, "channels", "there are more than 128")?;
        require(self.channels.is_sorted_by(|a, b| a.id < b.id), "channels", "they do not ascend by id")?;
        require(self.classes.len() <= MAX_CLASSES, "classes", "there are more than 100,000")?;
        for channel in &self.channels {
            let field = format!("channels.{}", channel.id);
            require(channel.edges.len() <= MAX_EDGES, &field, "there are more than 64 edges")?;
            require(channel.edges.iter().all(|x| x.is_finite()), &field, "an edge is not finite")?;
            require(channel.edges.is_sorted_by(|a, b| a < b), &field, "the edges do not ascend")?;
            let bins = if channel.edges.is_empty() { 0 } else { channel.edges.len() + 1 };
            require(channel.bins.len() == bins, &field, "there must be one bin more than edges")?;
            require(channel.moments.is_sound(), &field, "the moments cannot belong together")?;
            require(channel.categories.len() <= MAX_CATEGORIES + 1, &field, "there are too many categories")?;
            let short = channel.categories.keys().all(|name| name.len() <= MAX_CATEGORY_BYTES);
            require(short, &field, "a category's name has more than 64 bytes")?;
        }
        let Some(quality) = &self.quality else { return Ok(()) };
        let share = |x: f64| (0.0..=1.0).contains(&x);
        require(share(quality.accuracy), "quality.accuracy", "it is not between 0 and 1")?;
        require(quality.atc_threshold.is_finite(), "quality.atc_threshold", "it is not finite")?;
        let steps = &quality.calibration;
        let field = "quality.calibration";
        require(steps.confidence.len() <= MAX_STEPS, field, "there are more than 256 steps")?;
        require(steps.confidence.len() == steps.probability.len(), field, "it has two different lengths")?;
        require(steps.confidence.iter().all(|x| x.is_finite()), field, "a confidence is not finite")?;
        require(steps.confidence.is_sorted_by(|a, b| a < b), field, "the confidences do not ascend")?;
        require(steps.probability.iter().all(|p| share(*p)), field, "a probability is not between 0 and 1")?;
        require(steps.probability.is_sorted(), field, "the probabilities fall")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn baseline() -> Baseline {
        let channel = BaselineChannel {
            id: "input/x".parse().unwrap(),
            kind: ChannelKind::Input,
            n: 4,
            missing: 1,
            edges: vec![0.0, 1.0],
            bins: vec![1, 2, 1],
            moments: Moments { n: 4, mean: 0.5, m2: 1.0, min: -0.5, max: 1.5 },
            categories: BTreeMap::new(),
        };
        let quality = BaselineQuality {
            n: 100,
            accuracy: 0.9,
            atc_threshold: 0.4,
            calibration: Calibration { confidence: vec![0.2, 0.8], probability: vec![0.1, 0.9] },
            ece_before: 0.1,
            ece_after: 0.02,
            confusion: vec![("1".into(), "7".into(), 3)],
        };
        Baseline {
            schema: BASELINE_SCHEMA,
            rows: 5,
            dataset: "sha256:abc".into(),
            channels: vec![channel],
            classes: [("7".to_owned(), 5)].into(),
            quality: Some(quality),
        }
    }

    #[test]
    fn it_survives_the_round_trip_and_finds_its_channels() {
        let bytes = serde_json::to_vec(&baseline()).unwrap();
        assert_eq!(Baseline::parse(&bytes).unwrap(), baseline());
        assert_eq!(baseline().channel(&"input/x".parse().unwrap()).unwrap().n, 4);
        assert!(baseline().channel(&"input/y".parse().unwrap()).is_none());
    }

    #[test]
    fn mistakes_are_refused_with_their_place() {
        type Mistake = (fn(&mut Baseline), &'static str);
        let mistakes: [Mistake; 6] = [
            (|b| b.schema = 2, "baseline schema 2 is not understood, this program knows 1"),
            (
                |b| b.channels[0].edges = vec![1.0, 1.0],
                "baseline `channels.input/x`: the edges do not ascend",
            ),
            (
                |b| b.channels[0].bins = vec![],
                "baseline `channels.input/x`: there must be one bin more than edges",
            ),
            (|b| b.channels.push(b.channels[0].clone()), "baseline `channels`: they do not ascend by id"),
            (
                |b| b.quality.as_mut().unwrap().calibration.probability = vec![0.9, 0.1],
                "baseline `quality.calibration`: the probabilities fall",
            ),
            (
                |b| b.quality.as_mut().unwrap().accuracy = 1.5,
                "baseline `quality.accuracy`: it is not between 0 and 1",
            ),
        ];
        for (mistake, wanted) in mistakes {
            let mut odd = baseline();
            mistake(&mut odd);
            let found = Baseline::parse(&serde_json::to_vec(&odd).unwrap()).unwrap_err();
            assert_eq!(found.to_string(), wanted);
        }
        assert!(matches!(Baseline::parse(b"{"), Err(BaselineError::Malformed { .. })));
        let large = vec![b' '; MAX_BASELINE_BYTES as usize + 1];
        assert!(matches!(Baseline::parse(&large), Err(BaselineError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn calibration_never_falls_and_stays_a_probability(a in 0.0..1.0f64, b in 0.0..1.0f64) {
            let calibration = baseline().quality.unwrap().calibration;
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(calibration.probability(low) <= calibration.probability(high));
            prop_assert!((0.0..=1.0).contains(&calibration.probability(a)));
            prop_assert_eq!(Calibration::default().probability(a), a);
        }
    }

    #[test]
    fn beyond_its_steps_calibration_goes_on_level() {
        let calibration = baseline().quality.unwrap().calibration;
        let found: Vec<_> = [0.0, 0.2, 0.5, 0.8, 1.0].map(|x| calibration.probability(x)).into();
        for (found, wanted) in found.into_iter().zip([0.1, 0.1, 0.5, 0.9, 0.9]) {
            assert!((found - wanted).abs() < 1e-12, "{found} {wanted}");
        }
        assert_eq!(calibration.probability(f64::NAN), 0.1, "no confidence is the lowest");
        assert_eq!(Calibration::default().probability(f64::NAN), 0.0);
    }
}
