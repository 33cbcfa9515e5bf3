//! The telemetry message and its acknowledgement.
//!
//! Exactly-once in effect: a record keeps its (boot, seq) until the controller's *store* has it and
//! says so; the controller drops repeats by (device, boot, seq).

use super::{
    columns,
    profile::Profile,
    window::{LabelCounts, Window},
};
use crate::{
    ids::{BootId, DeviceId, SlotName},
    reported::{Installed, Phase, Refusal},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

pub const TELEMETRY_SCHEMA: u32 = 1;
/// Largest decompressed message in bytes: a compressed one of 256 KiB could otherwise hold gigabytes.
pub const MAX_BATCH_BYTES: usize = 2 << 20;
/// Of zstd, for messages that are not in columns.
const LEVEL: i32 = 12;
/// Records in one message.
pub const MAX_RECORDS: usize = 256;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TelemetryBatch {
    pub schema: u32,
    pub device: DeviceId,
    pub records: Vec<Record>,
}

/// One thing a device has to say, numbered from 1 within its boot without gaps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub boot: BootId,
    pub seq: u64,
    #[serde(flatten)]
    pub body: RecordBody,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RecordBody {
    Window(Box<Window>),
    Profile(Box<Profile>),
    Labels(LabelCounts),
    Terminal(TerminalReport),
    /// Records lost before they could be sent, so that loss is known and counted.
    Dropped {
        records: u64,
        reason: String,
    },
    /// Of a later version; acknowledged and not looked at.
    #[serde(other)]
    Unknown,
}

/// How an attempt ended on a device; kept until acknowledged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TerminalReport {
    pub slot: SlotName,
    pub generation: u64,
    pub phase: Phase,
    pub target: Installed,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// From seeing the desired state to the end, milliseconds.
    pub took_ms: u64,
    /// Bytes fetched over the network for this attempt.
    pub fetched_bytes: u64,
    pub at: Timestamp,
}

/// Why a telemetry payload is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("telemetry payload is not columns or JSON in zstd of at most {limit} bytes: {reason}")]
    Compression { limit: usize, reason: String },
    #[error("telemetry is not valid JSON of the expected form: {reason}")]
    Malformed { reason: String },
    #[error("telemetry schema {found} is not understood")]
    UnknownSchema { found: u64 },
    #[error("{found} telemetry records came in one message, {MAX_RECORDS} are allowed")]
    TooMany { found: usize },
}

impl TelemetryBatch {
    /// As it goes over the wire: JSON in columns, compressed by zstd.
    ///
    /// # Errors
    /// [`BatchError::Compression`] if zstd fails.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BatchError> {
        let malformed = |reason: String| BatchError::Malformed { reason };
        let json = serde_json::to_value(self).map_err(|e| malformed(e.to_string()))?;
        // A message of more columns than the format has goes as it is.
        columns::to_payload(&json).or_else(|_| {
            let failed = |reason: String| BatchError::Compression { limit: MAX_BATCH_BYTES, reason };
            zstd::bulk::compress(json.to_string().as_bytes(), LEVEL).map_err(|e| failed(e.to_string()))
        })
    }

    /// Takes JSON as it is as well: who writes by hand need not turn it.
    ///
    /// # Errors
    /// [`BatchError`]; never allocates more than three times [`MAX_BATCH_BYTES`] for texts.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let failed = |reason: String| BatchError::Compression { limit: MAX_BATCH_BYTES, reason };
        let json = match columns::is_packed(bytes) {
            true => columns::to_json(bytes, MAX_BATCH_BYTES).map_err(|e| failed(e.to_string()))?.into_bytes(),
            false => zstd::bulk::decompress(bytes, MAX_BATCH_BYTES).map_err(|e| failed(e.to_string()))?,
        };
        #[derive(Deserialize)]
        struct Head {
            schema: u64,
        }
        let malformed = |e: serde_json::Error| BatchError::Malformed { reason: e.to_string() };
        let head: Head = serde_json::from_slice(&json).map_err(malformed)?;
        if head.schema != u64::from(TELEMETRY_SCHEMA) {
            return Err(BatchError::UnknownSchema { found: head.schema });
        }
        let batch: Self = serde_json::from_slice(&json).map_err(malformed)?;
        match batch.records.len() {
            found if found > MAX_RECORDS => Err(BatchError::TooMany { found }),
            _ => Ok(batch),
        }
    }
}

/// What the controller's store has of a device's records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    pub schema: u32,
    pub boots: Vec<BootAck>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootAck {
    pub boot: BootId,
    /// Every record up to and including this one is stored.
    pub contiguous: u64,
    /// Stored ranges beyond, inclusive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra: Vec<(u64, u64)>,
}

impl BootAck {
    pub fn covers(&self, seq: u64) -> bool {
        seq <= self.contiguous || self.extra.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_refused_without_being_unpacked() {
        let bomb = zstd::bulk::compress(&vec![b' '; 64 << 20], 3).unwrap();
        assert!(bomb.len() < 64 * 1024);
        assert!(matches!(TelemetryBatch::parse(&bomb), Err(BatchError::Compression { .. })));
        assert!(matches!(TelemetryBatch::parse(b"{}"), Err(BatchError::Compression { .. })));
    }

    /// The form of version 1 on the wire; a change here is a change every controller and device sees.
    #[test]
    fn a_batch_of_every_kind_survives_the_round_trip() {
        use crate::{
            digest::BundleDigest,
            ids::AttemptId,
            reported::ClockQuality,
            telemetry::{
                Agreement, Channel, ClassAgreement, Counts, Exceed, Latency, Moments, ProfileContent,
                Quality, Repeats, Role, Sketch, Versus,
            },
        };
        let boot = BootId::from_random([1; 16]);
        let attempt = AttemptId { rollout: "r-1".parse().unwrap(), number: 1 };
        let mut total = Sketch::default();
        [900, 1_000, 250_000].into_iter().for_each(|us| total.record_us(us));
        let window = Window {
            slot: "digits".parse().unwrap(),
            bundle: "digits@1".parse().unwrap(),
            digest: BundleDigest::of(b"manifest"),
            role: Role::Primary,
            attempt: attempt.clone(),
            mono_start_ms: 0,
            mono_end_ms: 300_000,
            wall_start: Timestamp::from_secs(1_800_000_000),
            wall_end: Timestamp::from_secs(1_800_000_300),
            clock: ClockQuality::Plausible,
            counts: Counts {
                requests: 4,
                rows: 4,
                ok: 3,
                errors: [("engine".to_owned(), 1)].into(),
                rejected: 2,
            },
            latency: Latency { total, ..Latency::default() },
            classes: [("7".to_owned(), 3)].into(),
            first_bad_ms: Some(12),
            exceed: vec![Exceed { id: "slow".into(), n: 3, x: 1 }],
            agreement: None,
            device: None,
        };
        let shadow = Window {
            role: Role::Shadow,
            agreement: Some(Agreement {
                n: 3,
                disagree: 1,
                errors: 1,
                classes: [("7".to_owned(), ClassAgreement { n: 3, disagree: 1 })].into(),
            }),
            ..window.clone()
        };
        let mut luma = Channel::new("input/image/luma".parse().unwrap());
        (luma.n, luma.missing, luma.bins, luma.lag1, luma.longest_run) = (3, 1, vec![0, 2, 1], 0.25, 2);
        luma.moments = Moments { n: 3, mean: 0.5, m2: 0.125, min: 0.25, max: 0.75 };
        let mut colour = Channel::new("input/colour".parse().unwrap());
        (colour.n, colour.categories) = (3, [("red".to_owned(), 3)].into());
        let profile = Profile {
            slot: window.slot.clone(),
            bundle: window.bundle.clone(),
            digest: window.digest,
            role: Role::Primary,
            attempt: attempt.clone(),
            mono_start_ms: 0,
            mono_end_ms: 3_600_000,
            wall_start: window.wall_start,
            wall_end: window.wall_end,
            clock: ClockQuality::Plausible,
            content: ProfileContent {
                rows: 4,
                channels: vec![colour, luma],
                quality: Some(Quality {
                    n: 3,
                    expected_correct: 2.5,
                    variance: 0.25,
                    above: 2,
                    ..Quality::default()
                }),
                faults: [("decode_image".to_owned(), 1)].into(),
                repeats: Some(Repeats { rows: 4, distinct: 3, remembered: 0 }),
            },
        };
        let labels = LabelCounts {
            slot: window.slot.clone(),
            bundle: window.bundle.clone(),
            digest: window.digest,
            attempt: attempt.clone(),
            bucket: Timestamp::from_secs(1_800_000_000),
            source: "local".into(),
            matched: 3,
            correct: 2,
            confusion: vec![("1".into(), "7".into(), 1)],
            unmatched: [("expired".to_owned(), 1)].into(),
            versus: None,
        };
        let compared = LabelCounts {
            versus: Some(Versus {
                bundle: "digits@2".parse().unwrap(),
                digest: BundleDigest::of(b"candidate"),
                attempt: attempt.clone(),
                wins: 1,
                losses: 0,
                both_right: 2,
                both_wrong: 0,
            }),
            ..labels.clone()
        };
        let terminal = TerminalReport {
            slot: window.slot.clone(),
            generation: 2,
            phase: Phase::Committed,
            target: Installed { bundle: window.bundle.clone(), digest: Some(window.digest), attempt },
            refusal: None,
            took_ms: 1_200,
            fetched_bytes: 40_000,
            at: Timestamp::from_secs(1_800_000_000),
        };
        let bodies = [
            RecordBody::Window(Box::new(window)),
            RecordBody::Labels(labels),
            RecordBody::Terminal(terminal),
            RecordBody::Dropped { records: 5, reason: "outbox full".into() },
            RecordBody::Window(Box::new(shadow)),
            RecordBody::Labels(compared),
            RecordBody::Profile(Box::new(profile)),
        ];
        let records = bodies.into_iter().zip(1..).map(|(body, seq)| Record { boot, seq, body }).collect();
        let batch = TelemetryBatch { schema: TELEMETRY_SCHEMA, device: "dev-1".parse().unwrap(), records };
        assert_eq!(TelemetryBatch::parse(&batch.to_bytes().unwrap()).unwrap(), batch);
        insta::assert_json_snapshot!("telemetry_v1", batch);
    }

    #[test]
    fn a_record_of_a_later_version_is_no_reason_to_refuse_the_others() {
        let boot = BootId::from_random([1; 16]);
        let dropped = RecordBody::Dropped { records: 5, reason: "outbox full".into() };
        let mut batch = serde_json::to_value(TelemetryBatch {
            schema: TELEMETRY_SCHEMA,
            device: "dev-1".parse().unwrap(),
            records: vec![
                Record { boot, seq: 1, body: dropped.clone() },
                Record { boot, seq: 2, body: dropped },
            ],
        })
        .unwrap();
        batch["records"][0] =
            serde_json::json!({"boot": boot, "seq": 1, "kind": "spectrum", "lines": [1, 2]});
        let bytes = zstd::bulk::compress(&serde_json::to_vec(&batch).unwrap(), 3).unwrap();
        let bodies: Vec<_> =
            TelemetryBatch::parse(&bytes).unwrap().records.into_iter().map(|r| r.body).collect();
        assert!(matches!(bodies[..], [RecordBody::Unknown, RecordBody::Dropped { .. }]), "{bodies:?}");
    }

    #[test]
    fn acknowledgements_cover_the_prefix_and_the_islands() {
        let ack = BootAck { boot: BootId::from_random([0; 16]), contiguous: 4, extra: vec![(6, 7)] };
        let covered: Vec<_> = (1..=9).filter(|seq| ack.covers(*seq)).collect();
        assert_eq!(covered, [1, 2, 3, 4, 6, 7]);
    }
}
