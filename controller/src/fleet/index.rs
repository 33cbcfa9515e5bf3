//! All devices in memory: about 1 KiB each, read at start, changed after every commit.

use super::devices::{Device, DeviceState, Status};
use super::{Fleet, attributes::attributes, certificate::Serial};
use crate::{
    broker::embedded::{Admission, Verdict},
    store::{Revision, Versioned},
};
use edgefleet_shared::{ids::DeviceId, selector::Selector};
use parking_lot::RwLock;
use std::{collections::BTreeMap, ops::Bound, sync::Arc};

/// A device and what is known of it now.
#[derive(Clone, Debug)]
pub struct Known {
    pub revision: Revision,
    pub device: Arc<Device>,
    pub status: Arc<Status>,
}

impl Known {
    /// Whether `selector` selects it; see [`super::attributes`].
    pub fn matches(&self, selector: &Selector) -> bool {
        selector.matches(&self.attributes())
    }

    /// What selectors and strata see of it.
    pub fn attributes(&self) -> BTreeMap<String, String> {
        let device = &self.device;
        let state = device.state.as_str();
        let status = &self.status;
        attributes(&device.id, &device.name, state, status.online, &device.labels, &status.facts)
    }
}

/// How many devices are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub pending: usize,
    pub enrolled: usize,
    pub denied: usize,
    pub removed: usize,
    pub online: usize,
}

/// Devices looked at in one go: the lock is held while so many pairs of pointers are copied.
const CHUNK: usize = 512;

#[derive(Default)]
pub(super) struct DeviceIndex {
    known: RwLock<BTreeMap<DeviceId, Known>>,
}

impl DeviceIndex {
    /// Takes a committed device. Commits may be told out of order, so an older revision changes nothing.
    pub(super) fn put(&self, found: Versioned<Device>) -> Known {
        let mut known = self.known.write();
        let id = found.value.id.clone();
        let device = Arc::new(found.value);
        let entry = known.entry(id).or_insert_with(|| Known {
            revision: found.revision,
            device: Arc::clone(&device),
            status: Arc::new(Status::unknown(device.id.clone())),
        });
        if entry.revision < found.revision {
            entry.revision = found.revision;
            entry.device = device;
        }
        entry.clone()
    }

    /// Changes what is known of a device; `None` if there is no such device.
    pub(super) fn update_status(
        &self,
        id: &DeviceId,
        change: impl FnOnce(&mut Status),
    ) -> Option<Arc<Status>> {
        let mut known = self.known.write();
        let entry = known.get_mut(id)?;
        change(Arc::make_mut(&mut entry.status));
        Some(Arc::clone(&entry.status))
    }

    pub(super) fn get(&self, id: &DeviceId) -> Option<Known> {
        self.known.read().get(id).cloned()
    }

    /// Up to `limit` devices after `after` for which `keep` holds, and whether there are more. `keep` runs
    /// without the lock: judging a large fleet must not hold up handshakes.
    pub(super) fn page(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
        keep: impl Fn(&Known) -> bool,
    ) -> (Vec<Known>, bool) {
        let mut after = after.cloned();
        let mut found = Vec::new();
        loop {
            let chunk = self.chunk(after.as_ref());
            let Some(last) = chunk.last() else { return (found, false) };
            after = Some(last.device.id.clone());
            for known in chunk.into_iter().filter(|known| keep(known)) {
                if found.len() == limit {
                    return (found, true);
                }
                found.push(known);
            }
        }
    }

    fn chunk(&self, after: Option<&DeviceId>) -> Vec<Known> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let known = self.known.read();
        let rest = known.range::<DeviceId, _>((start, Bound::Unbounded));
        rest.take(CHUNK).map(|(_, known)| known.clone()).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for known in self.known.read().values() {
            match known.device.state {
                DeviceState::Pending => counts.pending += 1,
                DeviceState::Enrolled => counts.enrolled += 1,
                DeviceState::Denied => counts.denied += 1,
                DeviceState::Removed => counts.removed += 1,
            }
            counts.online += usize::from(known.status.online);
        }
        counts
    }
}

impl Fleet {
    /// Whether a certificate that our authority issued may be used now: the device is enrolled and the serial
    /// number is one of its own. Answers from memory; made for every handshake.
    ///
    /// # Errors
    /// The reason, for the log. Peers are only told "not authorized".
    pub fn admits(&self, device: &DeviceId, serial: &Serial) -> Result<(), String> {
        let Some(known) = self.index.get(device) else { return Err("the device is unknown".into()) };
        match known.device.state {
            DeviceState::Enrolled => {}
            state @ (DeviceState::Pending | DeviceState::Denied | DeviceState::Removed) => {
                return Err(format!("the device is {state}"));
            }
        }
        if known.device.certificates.iter().any(|certificate| certificate.serial == *serial) {
            return Ok(());
        }
        Err(format!("certificate {serial} is not one of the device's current ones"))
    }

    /// How many devices there are, for metrics.
    pub fn counts(&self) -> Counts {
        self.index.counts()
    }
}

impl Admission for Fleet {
    fn admit(&self, identity: &DeviceId, certificate_serial: &[u8]) -> Verdict {
        match self.admits(identity, &Serial::from_bytes(certificate_serial)) {
            Ok(()) => Verdict::Allow,
            Err(reason) => Verdict::Refuse(reason),
        }
    }
}
