//! Which time certificates are judged by, on a device whose clock may say 1970 or 2036.
//!
//! The local clock is believed only from the signed floor up to 400 days above it; outside of that
//! the floor itself is the time. The first floor is the age of this program, then `issued` of the
//! newest signed document. Only signed times raise it.

use edgefleet_shared::{
    reported::ClockQuality,
    time::{Timestamp, believed},
};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// This source is not older than 2026-11-01 (seconds since 1970), raised with each release. A
/// constant, so that two builds of one source are the same file.
const BUILD_FLOOR_SECS: u64 = 1_793_491_200;

/// The floor before anything signed was seen.
pub fn build_floor() -> Timestamp {
    Timestamp::from_secs(BUILD_FLOOR_SECS)
}

/// The time to act by, and how good the local clock is.
pub fn judge(local: Timestamp, floor: Timestamp) -> (Timestamp, ClockQuality) {
    let now = believed(local, floor);
    let quality = match local {
        _ if local < floor => ClockQuality::BehindFloor,
        _ if local == now => ClockQuality::Plausible,
        _ => ClockQuality::FarAhead,
    };
    (now, quality)
}

/// The local clock under the rule of [`judge`]; shared by everything that checks certificates.
pub struct TrustedClock {
    floor_millis: AtomicU64,
    local: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

impl TrustedClock {
    /// The device's clock, with the floor of this build.
    pub fn system() -> Arc<Self> {
        Self::with_local(crate::clock::now)
    }
    /// Another source of local time, for tests.
    pub fn with_local(local: impl Fn() -> Timestamp + Send + Sync + 'static) -> Arc<Self> {
        let floor_millis = AtomicU64::new(build_floor().as_millis());
        Arc::new(Self { floor_millis, local: Box::new(local) })
    }
    /// A signed time was seen. Earlier ones change nothing.
    pub fn raise(&self, signed: Timestamp) {
        self.floor_millis.fetch_max(signed.as_millis(), Ordering::Relaxed);
    }
    pub fn floor(&self) -> Timestamp {
        Timestamp::from_millis(self.floor_millis.load(Ordering::Relaxed))
    }
    pub fn local(&self) -> Timestamp {
        (self.local)()
    }
    pub fn now(&self) -> Timestamp {
        judge(self.local(), self.floor()).0
    }
    pub fn quality(&self) -> ClockQuality {
        judge(self.local(), self.floor()).1
    }
}
impl fmt::Debug for TrustedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedClock({} above {})", self.now(), self.floor())
    }
}
impl TimeProvider for TrustedClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.now().as_millis())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_clock_is_believed_only_in_a_band_above_the_floor() {
        let floor = Timestamp::from_secs(1_000_000_000);
        let day = Duration::from_secs(24 * 3600);
        for (local, wanted, quality) in [
            (Timestamp::EPOCH, floor, ClockQuality::BehindFloor),
            (floor - Duration::from_millis(1), floor, ClockQuality::BehindFloor),
            (floor, floor, ClockQuality::Plausible),
            (floor + day * 400, floor + day * 400, ClockQuality::Plausible),
            (floor + day * 401, floor, ClockQuality::FarAhead),
        ] {
            assert_eq!(judge(local, floor), (wanted, quality), "{local}");
        }
    }

    #[test]
    fn a_floor_only_rises() {
        let clock = TrustedClock::with_local(|| Timestamp::EPOCH);
        let later = build_floor() + Duration::from_secs(9);
        clock.raise(later);
        clock.raise(build_floor());
        assert_eq!((clock.floor(), clock.now()), (later, later));
    }
}
