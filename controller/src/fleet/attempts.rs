//! Failed attempts per address: guessing an invite's secret must not be free.
//!
//! A secret has 160 bits, so this protects the log and the CPU more than the secret. Only failures count:
//! a site of a thousand devices behind one address enrols without being slowed down.

use edgefleet_shared::time::Timestamp;
use parking_lot::Mutex;
use std::{collections::HashMap, net::IpAddr, time::Duration};

/// Failures one address may have per [`WINDOW`].
const LIMIT: u32 = 20;
const WINDOW: Duration = Duration::from_secs(60);
/// Addresses remembered at most. When full, those whose window is over go first, then nobody new is
/// counted: an attacker with that many addresses is not stopped by counting them.
const MAX_ADDRESSES: usize = 10_000;

#[derive(Default)]
pub(super) struct FailedAttempts {
    seen: Mutex<HashMap<IpAddr, (Timestamp, u32)>>,
}

impl FailedAttempts {
    /// Seconds to wait, if this address has failed too often.
    pub(super) fn blocked(&self, address: IpAddr, now: Timestamp) -> Option<u64> {
        let seen = self.seen.lock();
        let (start, failures) = seen.get(&key(address))?;
        let over = *start + WINDOW;
        // A start in the future: the clock was set back; do not block for years.
        (*failures >= LIMIT && now < over && *start <= now).then(|| over.since(now).as_secs().max(1))
    }

    pub(super) fn record(&self, address: IpAddr, now: Timestamp) {
        let mut seen = self.seen.lock();
        let current = |start: &Timestamp| *start <= now && now < *start + WINDOW;
        if seen.len() >= MAX_ADDRESSES && !seen.contains_key(&key(address)) {
            seen.retain(|_, (start, _)| current(start));
            if seen.len() >= MAX_ADDRESSES {
                return;
            }
        }
        let entry = seen.entry(key(address)).or_insert((now, 0));
        if !current(&entry.0) {
            *entry = (now, 0);
        }
        entry.1 = entry.1.saturating_add(1);
    }
}

/// One household of IPv6 has a /64 of addresses.
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_fails_too_often_waits_for_the_window_to_end_and_others_do_not() {
        let attempts = FailedAttempts::default();
        let (bad, good) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let start = Timestamp::from_secs(1_000);
        for _ in 0..LIMIT {
            assert_eq!(attempts.blocked(bad, start), None);
            attempts.record(bad, start);
        }
        assert_eq!(attempts.blocked(bad, start + Duration::from_secs(20)), Some(40));
        assert_eq!(attempts.blocked(good, start), None);
        assert_eq!(attempts.blocked(bad, start + WINDOW), None);
        assert_eq!(attempts.blocked(bad, Timestamp::EPOCH), None, "the clock went back");
    }

    #[test]
    fn memory_stays_bounded() {
        let attempts = FailedAttempts::default();
        for n in 0..(MAX_ADDRESSES as u32 + 500) {
            attempts.record(IpAddr::from(n.to_be_bytes()), Timestamp::from_secs(5));
        }
        assert_eq!(attempts.seen.lock().len(), MAX_ADDRESSES);
        attempts.record(IpAddr::from([255, 0, 0, 1]), Timestamp::from_secs(500));
        assert_eq!(attempts.seen.lock().len(), 1);
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        let attempts = FailedAttempts::default();
        for n in 0..LIMIT {
            attempts.record(format!("fd00::{n:x}").parse().unwrap(), Timestamp::EPOCH);
        }
        assert!(attempts.blocked("fd00::ffff".parse().unwrap(), Timestamp::EPOCH).is_some());
        assert!(attempts.blocked("fd00:0:0:1::1".parse().unwrap(), Timestamp::EPOCH).is_none());
    }
}
