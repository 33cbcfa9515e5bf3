//! The file of a capture: `EFCAP1\n\0`, the header's length (u32, little endian), the header as JSON
//! ([`CaptureDocument`]), then one zstd frame with the bytes of every kept tensor in order.
//!
//! The same content gives the same bytes, so its SHA-256 is its identity. [`Capture::parse`] treats every
//! byte as hostile: sizes are bounded before anything is allocated, and what it returns is consistent.

use super::document::{CAPTURE_SCHEMA, CaptureDocument, Kept};
use crate::{
    digest::BlobDigest,
    tensor::{Datatype, Tensor, TensorError, element_count},
};
use bytes::Bytes;
use std::io::{Read, Write};

const MAGIC: [u8; 8] = *b"EFCAP1\n\0";
const FRONT: usize = MAGIC.len() + 4;
/// Largest file.
pub const MAX_CAPTURE_BYTES: usize = 8 << 20;
/// Largest header.
pub const MAX_HEADER_BYTES: usize = 64 << 10;
/// All tensors together, unpacked.
pub const MAX_RAW_BYTES: usize = 16 << 20;
const MAX_TENSORS: usize = 64;
const MAX_RANK: usize = 16;
const MAX_NAME: usize = 256;
const MAX_REASONS: usize = 16;
const LEVEL: i32 = 3;

/// Why a capture cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    #[error("{what} of a capture has {found} bytes, {limit} are allowed")]
    TooLarge { what: &'static str, found: u64, limit: usize },
    #[error("this is not a capture: {reason}")]
    NotOne { reason: &'static str },
    #[error("capture schema {found} is not understood, this program knows {CAPTURE_SCHEMA}")]
    UnknownSchema { found: u64 },
    #[error("the header of a capture is not of the expected form: {reason}")]
    Malformed { reason: String },
    #[error("the tensors of a capture cannot be unpacked: {reason}")]
    Packed { reason: String },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// A capture with the tensors that were kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    pub document: CaptureDocument,
    /// The inputs and then the outputs that were kept whole, under their own names.
    pub inputs: Vec<Tensor>,
    pub outputs: Vec<Tensor>,
}

impl Capture {
    /// The file. The document's tensor entries must describe exactly `inputs` and `outputs`.
    ///
    /// # Errors
    /// [`CaptureError`] where [`Capture::parse`] would refuse the result.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CaptureError> {
        let malformed = |reason: String| CaptureError::Malformed { reason };
        let header = serde_json::to_vec(&self.document).map_err(|e| malformed(e.to_string()))?;
        check_len("the header", header.len(), MAX_HEADER_BYTES)?;
        let raw = check(&self.document)?;
        let tensors = || self.inputs.iter().chain(&self.outputs);
        if tensors().map(|tensor| tensor.data().len()).sum::<usize>() != raw {
            return Err(malformed("its tensors are not those of the header".into()));
        }
        let mut file = Vec::with_capacity(FRONT + header.len() + raw / 2);
        file.extend_from_slice(&MAGIC);
        file.extend_from_slice(&(header.len() as u32).to_le_bytes()); // bounded above
        file.extend_from_slice(&header);
        let packed = |e: std::io::Error| CaptureError::Packed { reason: e.to_string() };
        let mut encoder = zstd::Encoder::new(file, LEVEL).map_err(packed)?;
        for tensor in tensors() {
            encoder.write_all(tensor.data()).map_err(packed)?;
        }
        let file = encoder.finish().map_err(packed)?;
        check_len("the file", file.len(), MAX_CAPTURE_BYTES)?;
        Ok(file)
    }

    /// The header alone, without unpacking anything.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn parse_document(file: &[u8]) -> Result<CaptureDocument, CaptureError> {
        Ok(front(file)?.0)
    }

    /// # Errors
    /// [`CaptureError`]; allocates no more than the header says, and that is at most [`MAX_RAW_BYTES`].
    pub fn parse(file: &[u8]) -> Result<Self, CaptureError> {
        let (document, raw, frame) = front(file)?;
        let packed = |e: std::io::Error| CaptureError::Packed { reason: e.to_string() };
        let mut decoder = zstd::Decoder::with_buffer(frame).map_err(packed)?;
        decoder.window_log_max(24).map_err(packed)?; // 16 MiB: a frame may not ask for more memory
        let mut bytes = Vec::with_capacity(raw);
        decoder.by_ref().take(raw as u64 + 1).read_to_end(&mut bytes).map_err(packed)?;
        if bytes.len() != raw {
            let reason = format!("{} bytes came, {raw} are announced", bytes.len());
            return Err(CaptureError::Packed { reason });
        }
        let mut rest = Bytes::from(bytes);
        let mut take = |entries: &[super::TensorEntry]| {
            let kept = entries.iter().filter_map(|entry| match entry.kept {
                Kept::Bytes { bytes } => Some((entry, bytes as usize)), // checked: the sum is bounded
                Kept::Dropped { .. } | Kept::Hashed { .. } => None,
            });
            kept.map(|(entry, bytes)| {
                let data = rest.split_to(bytes);
                Tensor::new(entry.name.clone(), entry.datatype, entry.shape.clone(), data)
            })
            .collect::<Result<Vec<_>, _>>()
        };
        let (inputs, outputs) = (take(&document.inputs)?, take(&document.outputs)?);
        Ok(Self { document, inputs, outputs })
    }

    /// The identity of a capture's file.
    pub fn id(file: &[u8]) -> BlobDigest {
        BlobDigest::of(file)
    }
}

fn check_len(what: &'static str, found: usize, limit: usize) -> Result<(), CaptureError> {
    if found > limit {
        return Err(CaptureError::TooLarge { what, found: found as u64, limit });
    }
    Ok(())
}

/// The document, the bytes its tensors have, and the frame they are packed in.
fn front(file: &[u8]) -> Result<(CaptureDocument, usize, &[u8]), CaptureError> {
    check_len("the file", file.len(), MAX_CAPTURE_BYTES)?;
    let rest = file.strip_prefix(&MAGIC).ok_or(CaptureError::NotOne { reason: "it begins otherwise" })?;
    let cut = CaptureError::NotOne { reason: "it ends within its header" };
    let (len, rest) = rest.split_first_chunk::<4>().ok_or(cut.clone())?;
    let len = u32::from_le_bytes(*len) as usize;
    check_len("the header", len, MAX_HEADER_BYTES)?;
    let (header, frame) = rest.split_at_checked(len).ok_or(cut)?;
    #[derive(serde::Deserialize)]
    struct Head {
        schema: u64,
    }
    let malformed = |e: serde_json::Error| CaptureError::Malformed { reason: e.to_string() };
    let head: Head = serde_json::from_slice(header).map_err(malformed)?;
    if head.schema != u64::from(CAPTURE_SCHEMA) {
        return Err(CaptureError::UnknownSchema { found: head.schema });
    }
    let document: CaptureDocument = serde_json::from_slice(header).map_err(malformed)?;
    let raw = check(&document)?;
    Ok((document, raw, frame))
}

/// Bytes of the kept tensors, if everything the document says can be true.
fn check(document: &CaptureDocument) -> Result<usize, CaptureError> {
    let wrong = |reason: String| Err(CaptureError::Malformed { reason });
    let found = document.inputs.len() + document.outputs.len();
    if found > MAX_TENSORS {
        return wrong(format!("{found} tensors, at most {MAX_TENSORS} are allowed"));
    }
    if document.reasons.is_empty() || document.reasons.len() > MAX_REASONS {
        return wrong(format!("{} reasons", document.reasons.len()));
    }
    let is_share = |share: f64| share > 0.0 && share <= 1.0;
    if document.inclusion.is_some_and(|share| !is_share(share))
        || document.audit.is_some_and(|audit| !is_share(audit.share))
    {
        return wrong("a probability is not above 0 and at most 1".into());
    }
    if document.audit.is_some() && document.inclusion.is_none() {
        return wrong("an audited row has an inclusion probability".into());
    }
    let texts = [document.label.as_deref(), document.predicted.as_ref().map(|p| p.class.as_str())];
    if texts.into_iter().flatten().any(|text| text.len() > MAX_NAME) {
        return wrong(format!("a class name has more than {MAX_NAME} bytes"));
    }
    let mut raw = 0u64;
    for entry in document.inputs.iter().chain(&document.outputs) {
        if entry.name.len() > MAX_NAME || entry.shape.len() > MAX_RANK {
            return wrong("a tensor's name or shape is too long".into());
        }
        let count = element_count(&entry.shape);
        let Some(count) = count.filter(|count| *count <= MAX_RAW_BYTES) else {
            return wrong(format!("shape {:?} is too large", entry.shape));
        };
        if let Kept::Bytes { bytes } = entry.kept {
            let least = count as u64 * entry.datatype.size().unwrap_or(4) as u64;
            if bytes < least || (entry.datatype != Datatype::Bytes && bytes != least) {
                return wrong(format!("{bytes} bytes are no {} of shape {:?}", entry.datatype, entry.shape));
            }
            raw = raw.saturating_add(bytes);
        }
    }
    if raw > MAX_RAW_BYTES as u64 {
        return Err(CaptureError::TooLarge { what: "the tensors", found: raw, limit: MAX_RAW_BYTES });
    }
    Ok(raw as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capture::{Audit, Predicted, Reason, Statistics, TensorEntry},
        digest::BundleDigest,
        ids::{AttemptId, BootId, PredictionId},
        reported::ClockQuality,
        time::Timestamp,
    };
    use proptest::prelude::*;

    fn sample() -> Capture {
        let data = |n: usize| Bytes::from((0..n).map(|i| (i * 7) as u8).collect::<Vec<_>>());
        let image = Tensor::new("image", Datatype::Fp32, vec![1, 8, 8], data(256)).unwrap();
        let text =
            Tensor::new("text", Datatype::Bytes, vec![1], Bytes::from_static(b"\x02\0\0\0ab")).unwrap();
        let scores = Tensor::new("scores", Datatype::Fp32, vec![1, 2], data(8)).unwrap();
        let entry = |tensor: &Tensor| TensorEntry {
            name: tensor.name().into(),
            datatype: tensor.datatype(),
            shape: tensor.shape().to_vec(),
            kept: Kept::Bytes { bytes: tensor.data().len() as u64 },
        };
        let secret = TensorEntry {
            name: "face".into(),
            datatype: Datatype::Uint8,
            shape: vec![1, 100],
            kept: Kept::Dropped { statistics: Statistics { n: 100, ..Default::default() } },
        };
        let document = CaptureDocument {
            schema: CAPTURE_SCHEMA,
            prediction: PredictionId {
                device: "dev-1".parse().unwrap(),
                boot: BootId::from_random([7; 16]),
                sequence: 5,
            },
            slot: "digits".parse().unwrap(),
            bundle: "digits@1".parse().unwrap(),
            digest: BundleDigest::of(b"x"),
            attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
            at: Timestamp::from_secs(1_800_000_000),
            clock: ClockQuality::Plausible,
            reasons: vec![Reason::Random, Reason::LowMargin],
            inclusion: Some(1.0),
            audit: Some(Audit { share: 0.01, sequence: 3 }),
            predicted: Some(Predicted {
                index: 1,
                class: "one".into(),
                confidence: Some(0.5),
                margin: Some(0.01),
                entropy: None,
            }),
            inputs: vec![entry(&image), secret, entry(&text)],
            outputs: vec![entry(&scores)],
            label: None,
        };
        Capture { document, inputs: vec![image, text], outputs: vec![scores] }
    }

    #[test]
    fn a_capture_survives_the_round_trip_and_equal_ones_are_equal_bytes() {
        let capture = sample();
        let file = capture.to_bytes().unwrap();
        assert_eq!(file, sample().to_bytes().unwrap());
        assert_eq!(Capture::parse(&file).unwrap(), capture);
        assert_eq!(Capture::parse_document(&file).unwrap(), capture.document);
    }

    #[test]
    fn sizes_that_lie_are_refused_before_they_cost_anything() {
        let reseal = |change: &dyn Fn(&mut serde_json::Value), frame: &[u8]| {
            let mut json = serde_json::to_value(sample().document).unwrap();
            change(&mut json);
            let header = serde_json::to_vec(&json).unwrap();
            let mut file = MAGIC.to_vec();
            file.extend_from_slice(&(header.len() as u32).to_le_bytes());
            file.extend_from_slice(&header);
            file.extend_from_slice(frame);
            Capture::parse(&file)
        };
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
        assert!(matches!(reseal(&|_| {}, &bomb), Err(CaptureError::Packed { .. })));
        let huge = |json: &mut serde_json::Value| {
            json["inputs"][0]["shape"] = serde_json::json!([1u64 << 40, 1u64 << 40]);
        };
        assert!(matches!(reseal(&huge, &bomb), Err(CaptureError::Malformed { .. })));
        let large = |json: &mut serde_json::Value| {
            json["inputs"][2]["kept"]["bytes"] = serde_json::json!(u64::MAX);
        };
        assert!(matches!(reseal(&large, &bomb), Err(CaptureError::TooLarge { .. })));
        for (pointer, value) in [
            ("/inclusion", serde_json::json!(0.0)),
            ("/audit/share", serde_json::json!(1.5)),
            ("/reasons", serde_json::json!([])),
            ("/inputs/0/kept/bytes", serde_json::json!(255)),
        ] {
            let change = |json: &mut serde_json::Value| *json.pointer_mut(pointer).unwrap() = value.clone();
            assert!(matches!(reseal(&change, &bomb), Err(CaptureError::Malformed { .. })), "{pointer}");
        }
        let newer = |json: &mut serde_json::Value| json["schema"] = 9.into();
        assert_eq!(reseal(&newer, &bomb), Err(CaptureError::UnknownSchema { found: 9 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn no_bytes_make_the_parser_panic(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Capture::parse(&noise);
            let mut behind_magic = MAGIC.to_vec();
            behind_magic.extend_from_slice(&noise);
            prop_assert!(Capture::parse(&behind_magic).is_err());
        }

        #[test]
        fn a_damaged_file_is_refused_or_still_consistent(
            at in 0usize..4_096, byte in any::<u8>(), cut in 0usize..4_096
        ) {
            let mut file = sample().to_bytes().unwrap();
            let at = at % file.len();
            file[at] = byte;
            file.truncate(file.len() - cut % 64);
            if let Ok(capture) = Capture::parse(&file) {
                prop_assert!(capture.to_bytes().is_ok());
            }
        }
    }
}
