//! Pure token buckets in bytes: one for the controller, one for each device.

use edgefleet_shared::{ids::DeviceId, time::Timestamp};
use std::{collections::HashMap, time::Duration};

/// Bytes per second; `None` is no limit. Defaults: fleet-control 6.3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub controller_bytes_per_sec: Option<u64>,
    pub device_bytes_per_sec: Option<u64>,
}

impl Limits {
    pub const NONE: Self = Self { controller_bytes_per_sec: None, device_bytes_per_sec: None };
}
impl Default for Limits {
    fn default() -> Self {
        // 100 Mbit/s in all and 4 Mbit/s for each device: a rollout must not fill a plant's uplink.
        Self { controller_bytes_per_sec: Some(12_500_000), device_bytes_per_sec: Some(500_000) }
    }
}

/// A bucket holds at most one second's worth, but never less than one request may ask for.
const MIN_BURST_BYTES: u64 = 2 << 20;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: u64,
    level: u64,
    filled: Timestamp,
}

impl Bucket {
    fn full(rate: u64, now: Timestamp) -> Self {
        Self { rate, level: Self::burst(rate), filled: now }
    }
    fn burst(rate: u64) -> u64 {
        rate.max(MIN_BURST_BYTES)
    }
    fn refill(&mut self, now: Timestamp) {
        let millis = now.since(self.filled).as_millis().min(3_600_000) as u64;
        let gained = self.rate.saturating_mul(millis) / 1_000;
        if gained > 0 {
            self.level = (self.level + gained).min(Self::burst(self.rate));
            self.filled = now;
        }
    }
    /// How long until `bytes` are there.
    fn wait(&self, bytes: u64) -> Duration {
        let missing = bytes.min(Self::burst(self.rate)).saturating_sub(self.level);
        Duration::from_millis(missing.saturating_mul(1_000).div_ceil(self.rate.max(1)))
    }
}

/// Longest wait that is told: whoever waits looks again soon after the line got shorter.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Byte budgets of the whole controller and of each device.
///
/// Who is turned away by the controller's budget stands in line: the line's bytes drain at the budget's
/// rate, and the next one is told to wait for all of them. Otherwise a thousand devices would all be told
/// to come back for the same few bytes.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    controller: Option<Bucket>,
    /// Bytes that were turned away and may still come back.
    line: u64,
    lined: Timestamp,
    devices: HashMap<DeviceId, Bucket>,
}

impl Budget {
    pub fn new(limits: Limits, now: Timestamp) -> Self {
        let controller = limits.controller_bytes_per_sec.map(|rate| Bucket::full(rate, now));
        Self { limits, controller, line: 0, lined: now, devices: HashMap::new() }
    }

    /// Takes `bytes` for `device`, or says how long to wait; then nothing was taken.
    ///
    /// # Errors
    /// The shortest wait after which asking again makes sense.
    pub fn take(&mut self, device: &DeviceId, bytes: u64, now: Timestamp) -> Result<(), Duration> {
        let mut own = self.limits.device_bytes_per_sec.map(|rate| {
            let mut bucket = self.devices.get(device).copied().unwrap_or_else(|| Bucket::full(rate, now));
            bucket.refill(now);
            bucket
        });
        let common = self.common_wait(bytes, now);
        let wait = own.as_ref().map(|bucket| bucket.wait(bytes)).unwrap_or_default().max(common);
        if wait.is_zero() {
            for bucket in [own.as_mut(), self.controller.as_mut()].into_iter().flatten() {
                bucket.level = bucket.level.saturating_sub(bytes);
            }
        }
        if let Some(bucket) = own {
            self.devices.insert(device.clone(), bucket);
        }
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    fn common_wait(&mut self, bytes: u64, now: Timestamp) -> Duration {
        let Some(bucket) = &mut self.controller else { return Duration::ZERO };
        bucket.refill(now);
        let elapsed = now.since(self.lined).as_millis().min(3_600_000) as u64;
        self.line = self.line.saturating_sub(bucket.rate.saturating_mul(elapsed) / 1_000);
        self.lined = now;
        let wait = bucket.wait(bytes);
        if wait.is_zero() {
            return wait;
        }
        let before = Duration::from_millis(self.line.saturating_mul(1_000) / bucket.rate.max(1));
        self.line = self.line.saturating_add(bytes);
        wait.max((wait + before).min(LONGEST_WAIT))
    }

    /// Drops the buckets that are full again: a device that fetches nothing costs nothing.
    pub fn forget_idle(&mut self, now: Timestamp) {
        self.devices.retain(|_, bucket| {
            bucket.refill(now);
            bucket.level < Bucket::burst(bucket.rate)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn device(n: u8) -> DeviceId {
        format!("dev-{n}").parse().unwrap()
    }

    #[test]
    fn without_limits_nothing_waits() {
        let mut budget = Budget::new(Limits::NONE, Timestamp::EPOCH);
        assert_eq!(budget.take(&device(1), u64::MAX, Timestamp::EPOCH), Ok(()));
    }

    #[test]
    fn who_is_turned_away_is_spread_over_the_time_it_takes_to_serve_them() {
        let limits = Limits { controller_bytes_per_sec: Some(2 << 20), device_bytes_per_sec: None };
        let start = Timestamp::from_secs(1_000);
        let mut budget = Budget::new(limits, start);
        let (mut asks, mut served) = (0, 0);
        // A hundred devices want 64 KiB each, 6.25 MiB at 2 MiB/s: three seconds, of which the first is there.
        let mut due: std::collections::BTreeMap<(u64, u8), ()> = (0..100).map(|n| ((0, n), ())).collect();
        while let Some(((at, n), ())) = due.pop_first() {
            asks += 1;
            match budget.take(&device(n), 64 << 10, start + Duration::from_millis(at)) {
                Ok(()) => served += 1,
                Err(wait) => drop(due.insert((at + wait.as_millis() as u64, n), ())),
            }
            assert!(asks < 1_000, "{served} served after {asks} asks");
        }
        assert!((served, asks) < (101, 400), "{served} served after {asks} asks");
    }

    proptest! {
        /// Whatever is asked for and whoever asks: what is handed out within a time is at most the burst
        /// plus the rate times that time, and whoever waits as told gets something.
        #[test]
        fn no_more_than_the_rate_leaves_and_waiting_as_told_helps(
            asks in prop::collection::vec((0u8..3, 1u64..2_000_000, 0u64..500), 1..200)
        ) {
            let limits = Limits { controller_bytes_per_sec: Some(3_000_000), device_bytes_per_sec: Some(1_000_000) };
            let start = Timestamp::from_secs(1_000);
            let mut budget = Budget::new(limits, start);
            let (mut now, mut total, mut per_device) = (start, 0u64, [0u64; 3]);
            for (who, bytes, pause_ms) in asks {
                now = now + Duration::from_millis(pause_ms);
                if let Err(wait) = budget.take(&device(who), bytes, now) {
                    now = now + wait;
                    prop_assert_eq!(budget.take(&device(who), bytes, now), Ok(()));
                }
                total += bytes;
                per_device[who as usize] += bytes;
                let secs = now.since(start).as_millis() as u64;
                prop_assert!(total <= 3_000_000 + 3_000 * secs);
                prop_assert!(per_device.iter().all(|sum| *sum <= MIN_BURST_BYTES + 1_000 * secs));
            }
            budget.forget_idle(now + Duration::from_secs(3_600));
            prop_assert!(budget.devices.is_empty());
        }
    }
}
