//! Pure: a device that does not take its desired state is not told again and again.
//!
//! A refusal (expired, another signature, a nonce that does not fit) is a report, and a report of a
//! device that is behind is answered with the desired state. Without a pause the two would talk as
//! fast as the line allows.

use edgefleet_shared::{
    ids::{BootId, DeviceId},
    time::Timestamp,
};
use std::{collections::HashMap, time::Duration};

/// The same answer to the same report at most this often; shorter than the heartbeat that repeats it.
const PAUSE: Duration = Duration::from_secs(30);
/// Devices remembered; beyond, those whose pause is over are forgotten.
const MANY: usize = 10_000;

/// What a report says that could call for the desired state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub boot: BootId,
    /// As the device has it.
    pub generation: u64,
    /// As it should be.
    pub current: u64,
    pub nonce: Option<String>,
}

#[derive(Debug, Default)]
pub struct Resends {
    last: HashMap<DeviceId, (Said, Timestamp)>,
}

impl Resends {
    /// Whether to answer now; remembers that it was done.
    pub fn is_due(&mut self, device: &DeviceId, said: Said, now: Timestamp) -> bool {
        let rests = |at: &Timestamp| now >= *at && now.since(*at) < PAUSE;
        if self.last.get(device).is_some_and(|(last, at)| *last == said && rests(at)) {
            return false;
        }
        if self.last.len() >= MANY {
            self.last.retain(|_, (_, at)| rests(at));
        }
        self.last.insert(device.clone(), (said, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_report_is_answered_once_in_a_while_and_a_new_one_at_once() {
        let device: DeviceId = "dev-1".parse().unwrap();
        let said = |generation, nonce: Option<&str>| Said {
            boot: BootId::from_random([7; 16]),
            generation,
            current: 9,
            nonce: nonce.map(str::to_owned),
        };
        let mut resends = Resends::default();
        for (secs, said, due) in [
            (100, said(3, None), true),
            (101, said(3, None), false),
            (129, said(3, None), false),
            (131, said(3, None), true),
            (132, said(4, None), true),
            (132, said(4, Some("n")), true),
            (133, said(4, Some("n")), false),
            (50, said(4, Some("n")), true), // the clock was set back
        ] {
            let now = Timestamp::from_secs(secs);
            assert_eq!(resends.is_due(&device, said.clone(), now), due, "{secs} s: {said:?}");
        }
        assert!(resends.is_due(&"dev-2".parse().unwrap(), said(3, None), Timestamp::from_secs(50)));
    }
}
