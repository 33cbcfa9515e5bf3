//! Who is in the fleet, as rollouts ask for it.

use crate::fleet::{
    Fleet,
    devices::{DeviceQuery, DeviceState},
};
use edgefleet_shared::{ids::DeviceId, selector::Selector, time::Timestamp};
use std::collections::BTreeMap;

/// An enrolled device with what selectors and strata see of it.
#[derive(Clone, Debug)]
pub struct Enlisted {
    pub device: DeviceId,
    pub attributes: BTreeMap<String, String>,
}

/// What rollouts ask of the fleet.
pub trait Roster: Send + Sync {
    /// Every enrolled device that any of `selectors` selects, in the order of their ids.
    fn select(&self, selectors: &[Selector]) -> Vec<Enlisted>;
    /// Last sign of life of a device.
    fn last_seen(&self, device: &DeviceId) -> Option<Timestamp>;
    /// The highest generation the device said it has.
    fn reported_generation(&self, device: &DeviceId) -> u64;
    fn is_enrolled(&self, device: &DeviceId) -> bool;
    fn is_online(&self, device: &DeviceId) -> bool;
}

impl Roster for Fleet {
    fn select(&self, selectors: &[Selector]) -> Vec<Enlisted> {
        let query = DeviceQuery {
            selectors: selectors.to_vec(),
            state: Some(DeviceState::Enrolled),
            after: None,
            limit: usize::MAX,
        };
        let page = self.list_devices(&query);
        let enlist = |known: crate::fleet::index::Known| Enlisted {
            device: known.device.id.clone(),
            attributes: known.attributes(),
        };
        page.items.into_iter().map(enlist).collect()
    }

    fn last_seen(&self, device: &DeviceId) -> Option<Timestamp> {
        self.device(device).ok()?.status.last_seen
    }

    fn reported_generation(&self, device: &DeviceId) -> u64 {
        let known = self.device(device).ok();
        known.and_then(|known| known.status.reported.as_ref().map(|said| said.generation)).unwrap_or(0)
    }

    fn is_enrolled(&self, device: &DeviceId) -> bool {
        self.enrolled_device(device).is_ok()
    }

    fn is_online(&self, device: &DeviceId) -> bool {
        self.device(device).is_ok_and(|known| known.status.online)
    }
}
