//! From a chosen row to the file of its capture. Pure, apart from nothing.

use super::{
    decide::{Choice, Reasons},
    near::{Likeness, Luma, dhash, luma},
    scores::RowScores,
};
use crate::monitor::{Moment, Subject};
use edgefleet_shared::{
    capture::{
        Audit, CAPTURE_SCHEMA, Capture, CaptureDocument, CaptureError, CapturePolicy, Kept, Predicted,
        Redaction, Statistics, TensorEntry,
    },
    digest::{BlobDigest, DigestHasher},
    ids::PredictionId,
    tensor::{Datatype, Tensor},
};
use std::sync::Arc;

/// Pixels of a compressed image that is unpacked to compare it with others.
const MAX_PIXELS: u64 = 40_000_000;

/// A row that shall be kept.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub prediction: PredictionId,
    pub subject: Arc<Subject>,
    pub at: Moment,
    pub why: Why,
    pub class: u32,
    pub scores: RowScores,
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
    pub label: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub enum Why {
    Choice(Choice),
    /// Known after the answer: it says nothing about other rows.
    Late(Reasons),
}

impl Chosen {
    pub fn is_audit(&self) -> bool {
        matches!(&self.why, Why::Choice(choice) if choice.audit.is_some())
    }

    /// Bytes it keeps in memory.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().chain(&self.outputs).map(|tensor| tensor.data().len()).sum()
    }

    /// By which copies of it are recognised.
    pub fn likeness(&self) -> Likeness {
        let mut content = DigestHasher::new();
        for tensor in &self.inputs {
            content.update(tensor.name().as_bytes());
            content.update(&(tensor.data().len() as u64).to_le_bytes());
            content.update(tensor.data());
        }
        let picture = match self.inputs.as_slice() {
            [only] if only.datatype() == Datatype::Bytes => {
                let picture = only.data().get(4..).and_then(|file| crate::pipeline::gray(file, MAX_PIXELS));
                picture.map(|(width, height, pixels)| Luma {
                    width,
                    height,
                    values: pixels.into_iter().map(f32::from).collect(),
                })
            }
            [only] => luma(only),
            _ => None,
        };
        let picture = picture.and_then(|picture| dhash(&picture));
        Likeness { content: BlobDigest::from_bytes(content.finish()), picture }
    }

    /// The file.
    ///
    /// # Errors
    /// [`CaptureError`] where it is larger than a capture may be.
    pub fn to_file(self, policy: &CapturePolicy) -> Result<Vec<u8>, CaptureError> {
        let Self { prediction, subject, at, why, class, scores, inputs, outputs, label } = self;
        let (reasons, inclusion, audit) = match why {
            Why::Choice(choice) => {
                let audit = choice.audit.map(|sequence| Audit { share: choice.share, sequence });
                (choice.reasons, Some(choice.inclusion()), audit)
            }
            Why::Late(reasons) => (reasons, None, None),
        };
        let known = |score: f32| score.is_finite().then_some(f64::from(score));
        let predicted = Predicted {
            index: class,
            class: subject.class_name(class),
            confidence: known(scores.top),
            margin: known(scores.top - scores.second),
            entropy: known(scores.entropy),
        };
        let (mut kept, mut entries) = (Vec::new(), Vec::new());
        for tensor in inputs {
            let entry = entry(&tensor, policy.redaction(tensor.name()));
            if matches!(entry.kept, Kept::Bytes { .. }) {
                kept.push(tensor);
            }
            entries.push(entry);
        }
        let document = CaptureDocument {
            schema: CAPTURE_SCHEMA,
            prediction,
            slot: subject.slot.clone(),
            bundle: subject.bundle.clone(),
            digest: subject.digest,
            attempt: subject.attempt.clone(),
            at: at.wall,
            clock: at.clock,
            reasons: reasons.iter().collect(),
            inclusion,
            audit,
            predicted: Some(predicted),
            inputs: entries,
            outputs: outputs.iter().map(|tensor| entry(tensor, None)).collect(),
            label,
        };
        Capture { document, inputs: kept, outputs }.to_bytes()
    }
}

fn entry(tensor: &Tensor, redaction: Option<Redaction>) -> TensorEntry {
    let bytes = tensor.data().len() as u64;
    let kept = match redaction {
        None => Kept::Bytes { bytes },
        Some(Redaction::Drop) => Kept::Dropped { statistics: statistics(tensor) },
        Some(Redaction::Hash) => Kept::Hashed { sha256: BlobDigest::of(tensor.data()), bytes },
    };
    let (name, datatype) = (tensor.name().to_owned(), tensor.datatype());
    TensorEntry { name, datatype, shape: tensor.shape().to_vec(), kept }
}

fn statistics(tensor: &Tensor) -> Statistics {
    let numbers = crate::monitor::classes::numbers(tensor).unwrap_or_else(|| match tensor.datatype() {
        Datatype::Bool => tensor.data().iter().map(|value| f64::from(u8::from(*value != 0))).collect(),
        _ => {
            let mut rest = &tensor.data()[..];
            let mut lengths = Vec::new();
            while let Some((len, tail)) = rest.split_first_chunk::<4>() {
                let len = u32::from_le_bytes(*len);
                lengths.push(f64::from(len));
                rest = tail.get(len as usize..).unwrap_or_default();
            }
            lengths
        }
    });
    let mut found = Statistics { n: 0, min: f64::MAX, max: f64::MIN, mean: 0.0, std: 0.0 };
    let mut m2 = 0.0;
    for value in numbers.into_iter().filter(|value| value.is_finite()) {
        found.n += 1;
        let delta = value - found.mean;
        found.mean += delta / found.n as f64;
        m2 += delta * (value - found.mean);
        (found.min, found.max) = (found.min.min(value), found.max.max(value));
    }
    if found.n == 0 {
        return Statistics::default();
    }
    found.std = (m2 / found.n as f64).sqrt();
    // Sums of huge numbers overflow, and JSON has no infinity.
    let finite = |value: f64| if value.is_finite() { value } else { f64::MAX };
    Statistics { mean: finite(found.mean), std: finite(found.std), ..found }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::chosen;

    #[test]
    fn redacted_inputs_leave_only_what_the_policy_allows() {
        for (redaction, kept) in [(None, 1), (Some(Redaction::Drop), 0), (Some(Redaction::Hash), 0)] {
            let policy = CapturePolicy {
                redact: redaction.map(|how| ("*".to_owned(), how)).into_iter().collect(),
                ..CapturePolicy::default()
            };
            let row = chosen(3, true);
            let raw = row.inputs[0].data().clone();
            let file = row.to_file(&policy).unwrap();
            let capture = Capture::parse(&file).unwrap();
            assert_eq!(capture.inputs.len(), kept);
            assert_eq!(capture.outputs.len(), 1);
            match (&redaction, &capture.document.inputs[0].kept) {
                (None, Kept::Bytes { bytes }) => assert_eq!(*bytes, raw.len() as u64),
                (Some(Redaction::Drop), Kept::Dropped { statistics }) => {
                    assert_eq!(statistics.n, 64);
                    assert!(statistics.min <= statistics.mean && statistics.mean <= statistics.max);
                }
                (Some(Redaction::Hash), Kept::Hashed { sha256, .. }) => {
                    assert_eq!(*sha256, BlobDigest::of(&raw))
                }
                other => panic!("{other:?}"),
            }
            let document = capture.document;
            assert_eq!(document.audit.map(|audit| audit.sequence), Some(3));
            assert_eq!(document.inclusion, Some(0.25));
            assert_eq!(document.predicted.unwrap().class, "two");
        }
    }
}
