//! What devices said last, in memory; the report itself is also stored when it changes.

use crate::store::{Expect, FleetStore, Kind, StoreError, Transaction};
use edgefleet_shared::{
    ids::{BootId, DeviceId},
    reported::Reported,
    time::Timestamp,
};
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// The last full report of a device, as it came.
pub(super) const REPORT: Kind = Kind::new("report");

#[derive(Clone, Debug, Default, PartialEq)]
pub struct LiveDevice {
    pub online: bool,
    /// Why it is offline, or what its presence said.
    pub presence: String,
    pub last_seen: Option<Timestamp>,
    pub boot: Option<BootId>,
    pub report: Option<Arc<Reported>>,
    /// Takeovers noticed, newest last: two agents with one identity alternate.
    pub takeovers: Vec<Timestamp>,
}

/// Takeovers within this time ...
const TAKEOVER_SPAN_SECS: u64 = 300;
/// ... this many of them mean two agents share an identity (DECISIONS 2).
const TAKEOVERS: usize = 3;

impl LiveDevice {
    /// Notes a takeover; true if the identity is now known to be shared.
    fn taken_over(&mut self, now: Timestamp) -> bool {
        self.takeovers.retain(|at| now.since(*at).as_secs() <= TAKEOVER_SPAN_SECS);
        self.takeovers.push(now);
        self.takeovers.len() >= TAKEOVERS
    }
}

pub struct Live {
    store: Arc<dyn FleetStore>,
    devices: RwLock<HashMap<DeviceId, LiveDevice>>,
    changes: AtomicU64,
}

impl Live {
    /// Starts from the stored reports; everybody is offline until heard of.
    pub async fn open(store: Arc<dyn FleetStore>) -> Result<Self, StoreError> {
        let stored = crate::store::Repository::<Reported>::new(store.clone(), REPORT).list_all("").await?;
        let devices = stored
            .into_iter()
            .map(|(_, report)| {
                let report = report.value;
                let device = report.device.clone();
                let live = LiveDevice {
                    presence: "not heard of since the controller started".into(),
                    last_seen: Some(report.at),
                    report: Some(Arc::new(report)),
                    ..LiveDevice::default()
                };
                (device, live)
            })
            .collect();
        Ok(Self { store, devices: RwLock::new(devices), changes: AtomicU64::new(0) })
    }

    pub fn get(&self, device: &DeviceId) -> LiveDevice {
        self.devices.read().get(device).cloned().unwrap_or_default()
    }

    pub fn online(&self) -> usize {
        self.devices.read().values().filter(|device| device.online).count()
    }

    /// Grows with every change: what waits for one compares.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub fn presence(&self, device: &DeviceId, online: bool, presence: &str, now: Timestamp) {
        self.change(device, |live| {
            live.online = online;
            live.presence = presence.to_owned();
            if online {
                live.last_seen = Some(now);
            }
        });
    }

    /// True if this makes the identity one that two agents share.
    pub fn taken_over(&self, device: &DeviceId, now: Timestamp) -> bool {
        let mut shared = false;
        self.change(device, |live| shared = live.taken_over(now));
        shared
    }

    pub fn seen(&self, device: &DeviceId, now: Timestamp) {
        if let Some(live) = self.devices.write().get_mut(device) {
            live.last_seen = Some(now);
        }
    }

    /// Takes a report in; stores it if anything but its time changed.
    ///
    /// # Errors
    /// [`StoreError`]; the report is known in memory all the same.
    pub async fn reported(&self, report: Reported, now: Timestamp) -> Result<(), StoreError> {
        let device = report.device.clone();
        let report = Arc::new(report);
        let mut changed = true;
        self.change(&device, |live| {
            if let Some(last) = &live.report {
                changed = Reported { at: last.at, ..(*report).clone() } != **last;
            }
            live.last_seen = Some(now);
            live.boot = Some(report.boot);
            live.report = Some(report.clone());
        });
        if !changed {
            return Ok(());
        }
        let transaction = Transaction::new().put_json(REPORT, device.as_str(), Expect::Any, &*report)?;
        self.store.commit(transaction).await.map(|_| ())
    }

    pub async fn forget(&self, device: &DeviceId) -> Result<(), StoreError> {
        self.devices.write().remove(device);
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.store.commit(Transaction::new().delete(REPORT, device.as_str(), Expect::Any)).await.map(|_| ())
    }

    fn change(&self, device: &DeviceId, change: impl FnOnce(&mut LiveDevice)) {
        change(self.devices.write().entry(device.clone()).or_default());
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_takeovers_within_five_minutes_are_a_shared_identity() {
        let at = Timestamp::from_secs;
        for (times, shared) in [
            (vec![0, 10, 20], true),
            (vec![0, 10], false),
            (vec![0, 200, 400], false),
            (vec![0, 200, 400, 450], true),
        ] {
            let mut live = LiveDevice::default();
            let last = times.iter().fold(None, |_, secs| Some(live.taken_over(at(*secs))));
            assert_eq!(last, Some(shared), "{times:?}");
        }
    }
}
