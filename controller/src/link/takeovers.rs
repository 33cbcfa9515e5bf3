//! Pure: two agents that share an identity throw each other out in turns (DECISIONS 2).

use edgefleet_shared::{ids::DeviceId, time::Timestamp};
use std::collections::HashMap;

/// Takeovers within this time ...
const SPAN_SECS: u64 = 300;
/// ... this many of them mean that two agents share an identity.
const MANY: usize = 3;
/// Devices remembered; a takeover storm of more than this is a storm of one cause, not of clones.
const MAX_DEVICES: usize = 10_000;

#[derive(Debug, Default)]
pub struct Takeovers {
    recent: HashMap<DeviceId, Vec<Timestamp>>,
}

impl Takeovers {
    /// Notes a takeover; true if the identity is now known to be shared.
    pub fn note(&mut self, device: &DeviceId, now: Timestamp) -> bool {
        let fresh = |at: &Timestamp| now.since(*at).as_secs() <= SPAN_SECS;
        if self.recent.len() >= MAX_DEVICES {
            self.recent.retain(|_, times| times.iter().any(fresh));
        }
        if self.recent.len() >= MAX_DEVICES && !self.recent.contains_key(device) {
            return false;
        }
        let times = self.recent.entry(device.clone()).or_default();
        times.retain(fresh);
        times.push(now);
        times.len() >= MANY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_takeovers_within_five_minutes_are_a_shared_identity() {
        let device: DeviceId = "dev-1".parse().unwrap();
        for (times, shared) in [
            (vec![0, 10, 20], true),
            (vec![0, 10], false),
            (vec![0, 200, 400], false),
            (vec![0, 200, 400, 450], true),
        ] {
            let mut takeovers = Takeovers::default();
            let last =
                times.iter().fold(None, |_, secs| Some(takeovers.note(&device, Timestamp::from_secs(*secs))));
            assert_eq!(last, Some(shared), "{times:?}");
        }
    }
}
