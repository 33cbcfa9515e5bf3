//! How many connections the broker takes, in all and from one address.

use parking_lot::Mutex;
use std::{collections::HashMap, net::IpAddr, sync::Arc};

/// Descriptors kept for store, blobs, HTTPS and child processes.
const RESERVED_DESCRIPTORS: usize = 512;

/// Soft limit of open files of this process, from `/proc/self/limits`; `None` if it cannot be read or
/// there is no limit.
pub fn descriptor_limit() -> Option<usize> {
    parse_limit(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

fn parse_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Connections that fit under the descriptor limit (one descriptor each), at most `wanted`.
pub(super) fn connection_budget(wanted: Option<usize>, descriptors: Option<usize>) -> usize {
    let fits = descriptors.map_or(usize::MAX, |limit| {
        // A tiny limit still leaves half of it to connections.
        limit.saturating_sub(RESERVED_DESCRIPTORS).max(limit / 2)
    });
    wanted.unwrap_or(usize::MAX).min(fits).max(1)
}

/// Counts open connections; a place is given back when its [`Place`] is dropped.
pub(super) struct Gate {
    max: usize,
    max_per_address: usize,
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// One connection's place in the [`Gate`].
pub(super) struct Place {
    gate: Arc<Gate>,
    address: IpAddr,
}

/// Why there was no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("all {0} connections are in use")]
    Total(usize),
    #[error("this address has {0} connections, its limit")]
    Address(usize),
}

impl Gate {
    pub(super) fn new(max: usize, max_per_address: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            max,
            max_per_address: max_per_address.unwrap_or(usize::MAX).max(1),
            open: Mutex::default(),
        })
    }

    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let mut open = self.open.lock();
        let (total, by_address) = &mut *open;
        if *total >= self.max {
            return Err(Full::Total(self.max));
        }
        let here = by_address.get(&address).copied().unwrap_or(0);
        if here >= self.max_per_address {
            return Err(Full::Address(self.max_per_address));
        }
        *total += 1;
        by_address.insert(address, here + 1);
        Ok(Place { gate: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.gate.open.lock();
        let (total, by_address) = &mut *open;
        *total -= 1;
        if let Some(here) = by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_limit_of_this_process_is_known() {
        assert!(descriptor_limit().is_some_and(|limit| limit >= 64), "{:?}", descriptor_limit());
        let text = "Limit   Soft Limit   Hard Limit   Units\nMax open files            20000                20000                files     \n";
        assert_eq!(parse_limit(text), Some(20_000));
        assert_eq!(parse_limit("Max open files unlimited unlimited files"), None);
    }

    #[test]
    fn connections_leave_room_for_other_descriptors() {
        for (wanted, descriptors, expected) in [
            (None, Some(20_000), 19_488),
            (Some(100), Some(20_000), 100),
            (Some(50_000), Some(20_000), 19_488),
            (None, Some(100), 50),
            (Some(7), None, 7),
        ] {
            assert_eq!(connection_budget(wanted, descriptors), expected, "{wanted:?} {descriptors:?}");
        }
    }

    #[test]
    fn places_are_given_back() {
        let gate = Gate::new(3, Some(2));
        let (a, b): (IpAddr, IpAddr) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let first = gate.enter(a).unwrap();
        let _second = gate.enter(a).unwrap();
        assert_eq!(gate.enter(a).err(), Some(Full::Address(2)));
        let _third = gate.enter(b).unwrap();
        assert_eq!(gate.enter(b).err(), Some(Full::Total(3)));
        drop(first);
        assert!(gate.enter(a).is_ok());
    }
}
