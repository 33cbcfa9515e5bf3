//! Captures for tests.

use super::{
    decide::{Choice, Reasons},
    describe::{Chosen, Why},
    scores::RowScores,
};
use crate::monitor::{Moment, Subject};
use bytes::Bytes;
use edgefleet_shared::{
    capture::{CapturePolicy, Reason},
    digest::BundleDigest,
    ids::{AttemptId, BootId, PredictionId},
    reported::ClockQuality,
    telemetry::Role,
    tensor::{Datatype, Tensor},
    time::Timestamp,
};
use std::sync::Arc;

pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(super) fn chosen(seed: u64, is_audit: bool) -> Chosen {
    let mut reasons = Reasons::default();
    reasons.add(if is_audit { Reason::Random } else { Reason::LowMargin });
    let names = ["zero", "one", "two"].map(str::to_owned);
    Chosen {
        prediction: PredictionId {
            device: "dev-1".parse().unwrap(),
            boot: BootId::from_random([1; 16]),
            sequence: seed,
        },
        subject: Arc::new(Subject {
            slot: "digits".parse().unwrap(),
            bundle: "digits@1".parse().unwrap(),
            digest: BundleDigest::of(b"digits"),
            role: Role::Primary,
            attempt: AttemptId { rollout: "r-1".parse().unwrap(), number: 1 },
            classes: Arc::new(names.as_slice().into()),
        }),
        at: Moment { mono_ms: 5, wall: Timestamp::from_secs(1_800_000_000), clock: ClockQuality::Plausible },
        why: Why::Choice(Choice { reasons, share: 0.25, audit: is_audit.then_some(seed) }),
        class: 2,
        scores: RowScores { top: 0.6, second: 0.3, entropy: f32::NAN },
        inputs: vec![Tensor::new("x", Datatype::Uint8, vec![1, 64], Bytes::from(noise(seed, 64))).unwrap()],
        outputs: vec![Tensor::new("p", Datatype::Uint8, vec![1, 3], Bytes::from(vec![1, 2, 3])).unwrap()],
        label: None,
    }
}

pub(super) fn capture_file(seed: u64, is_audit: bool) -> Vec<u8> {
    chosen(seed, is_audit).to_file(&CapturePolicy::default()).unwrap()
}
