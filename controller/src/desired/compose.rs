//! Pure: from the intents of one device to the content of its desired state.

use super::intent::Intent;
use edgefleet_shared::{
    desired::{DESIRED_SCHEMA, Desired, Metric, Settings, SlotDesired, Threshold},
    ids::DeviceId,
    time::Timestamp,
};

/// The content `device` should have; generation and times are [`super::decide()`]'s to set.
///
/// Total and deterministic: the order of `intents` does not matter, intents of other devices are
/// ignored. A slot without a bundle to answer is not there, shadow or not.
pub fn compose(device: &DeviceId, intents: &[Intent], settings: &Settings, trust_version: u64) -> Desired {
    let mine = intents.iter().filter(|intent| intent.device == *device);
    let slots = mine
        .filter_map(|intent| {
            let slot = SlotDesired {
                active: intent.active.clone()?,
                candidate: intent.candidate.clone(),
                probation_secs: intent.probation_secs,
                slower_percent: intent.slower_percent,
                thresholds: intent.slow_us.map(slow).into_iter().collect(),
                shadow: None,
                window: intent.window.clone(),
            };
            Some((intent.slot.clone(), slot))
        })
        .collect();
    Desired {
        schema: DESIRED_SCHEMA,
        device: device.clone(),
        generation: 0,
        issued: Timestamp::EPOCH,
        expires: Timestamp::EPOCH,
        nonce: None,
        trust_version,
        slots,
        settings: settings.clone(),
    }
}

fn slow(us: u64) -> Threshold {
    Threshold { id: "latency".to_owned(), metric: Metric::TotalMs, value: us as f64 / 1e3 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use edgefleet_shared::{desired::Assigned, digest::EnvelopeDigest, ids::AttemptId};

    pub(in crate::desired) fn intent(device: &str, slot: &str, bundle: &str, rollout: &str) -> Intent {
        Intent {
            active: Some(Assigned {
                bundle: bundle.parse().unwrap(),
                release: EnvelopeDigest::of(bundle.as_bytes()),
                release_size: 10,
                attempt: AttemptId { rollout: rollout.parse().unwrap(), number: 1 },
            }),
            probation_secs: 60,
            ..Intent::empty(device.parse().unwrap(), slot.parse().unwrap())
        }
    }

    #[test]
    fn the_order_of_intents_does_not_matter_and_a_slot_needs_something_to_answer() {
        let device: DeviceId = "dev-1".parse().unwrap();
        let shadow_only = Intent {
            candidate: intent("dev-1", "faces", "faces@1", "r-1").active,
            active: None,
            ..intent("dev-1", "faces", "faces@1", "r-1")
        };
        let intents = [
            intent("dev-1", "digits", "digits@2", "r-2"),
            intent("dev-1", "voice", "voice@1", "r-1"),
            intent("dev-2", "digits", "digits@9", "r-9"),
            shadow_only,
        ];
        let forward = compose(&device, &intents, &Settings::default(), 1);
        let mut reversed = intents.clone();
        reversed.reverse();
        assert_eq!(forward, compose(&device, &reversed, &Settings::default(), 1));
        let slots: Vec<_> =
            forward.slots.iter().map(|(slot, want)| format!("{slot} {}", want.active.bundle)).collect();
        assert_eq!(slots, ["digits digits@2", "voice voice@1"]);
    }
}
