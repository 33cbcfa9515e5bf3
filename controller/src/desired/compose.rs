//! Pure: from the intents of one device to the content of its desired state.

use super::intent::Intent;
use edgefleet_shared::{
    desired::{DESIRED_SCHEMA, Desired, Settings, SlotDesired},
    ids::DeviceId,
    time::Timestamp,
};

/// The content `device` should have; generation and times are [`super::decide()`]'s to set.
///
/// Total and deterministic: the order of `intents` does not matter, intents of other devices are
/// ignored, and of two for one slot the one of the later rollout (by id, which starts with its time)
/// holds.
pub fn compose(device: &DeviceId, intents: &[Intent], settings: &Settings, trust_version: u64) -> Desired {
    let mut mine: Vec<_> = intents.iter().filter(|intent| intent.device == *device).collect();
    mine.sort_by(|a, b| a.rollout.cmp(&b.rollout));
    let slots = mine
        .into_iter()
        .map(|intent| {
            let slot = SlotDesired {
                active: intent.active.clone(),
                candidate: None,
                probation_secs: intent.probation_secs,
                thresholds: vec![],
                shadow: None,
                window: None,
            };
            (intent.slot.clone(), slot)
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use edgefleet_shared::{desired::Assigned, digest::EnvelopeDigest, ids::AttemptId};

    pub(in crate::desired) fn intent(device: &str, slot: &str, bundle: &str, rollout: &str) -> Intent {
        let rollout: edgefleet_shared::ids::RolloutId = rollout.parse().unwrap();
        Intent {
            device: device.parse().unwrap(),
            slot: slot.parse().unwrap(),
            active: Assigned {
                bundle: bundle.parse().unwrap(),
                release: EnvelopeDigest::of(bundle.as_bytes()),
                release_size: 10,
                attempt: AttemptId { rollout: rollout.clone(), number: 1 },
            },
            probation_secs: 60,
            rollout,
        }
    }

    #[test]
    fn the_later_rollout_holds_whatever_the_order() {
        let device: DeviceId = "dev-1".parse().unwrap();
        let intents = [
            intent("dev-1", "digits", "digits@1", "r-1"),
            intent("dev-1", "digits", "digits@2", "r-2"),
            intent("dev-1", "voice", "voice@1", "r-1"),
            intent("dev-2", "digits", "digits@9", "r-9"),
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
