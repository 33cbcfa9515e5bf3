//! The documents of one transaction: loaded once, changed in memory, staged together.

use super::{
    aggregate::{AGGREGATE, Aggregate},
    cohort::{Cohort, Cohorts},
    dedup::Verdict,
    device_profile::{DEVICE_PROFILE, DeviceProfile},
    device_totals::{DEVICE_TELEMETRY, DeviceTelemetry},
    level::BucketId,
    profile_totals::{PROFILE_HOUR, ProfileTotals},
};
use crate::store::{Expect, FleetStore, Kind, StoreError, Transaction};
use edgefleet_shared::{
    ids::{BootId, BundleName, DeviceId, ModelName},
    telemetry::Ack,
    time::Timestamp,
};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

/// Which cohorts a model has shown.
pub const COHORTS: Kind = Kind::new("cohorts");

/// What came of a transaction.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub counted: u64,
    pub repeats: u64,
    pub acks: Vec<(DeviceId, Ack)>,
    /// Whose profile of a primary bundle is new.
    pub profiled: BTreeSet<(BundleName, DeviceId, Cohort)>,
}

struct Loaded<T> {
    expect: Expect,
    value: T,
}

pub(super) struct Working<'a> {
    store: &'a dyn FleetStore,
    devices: BTreeMap<DeviceId, Loaded<DeviceTelemetry>>,
    aggregates: BTreeMap<String, Loaded<Aggregate>>,
    profiles: BTreeMap<String, Loaded<ProfileTotals>>,
    of_devices: BTreeMap<String, Loaded<DeviceProfile>>,
    cohorts: BTreeMap<ModelName, Loaded<Cohorts>>,
    changed_cohorts: BTreeSet<ModelName>,
    /// Boots heard of in this round, by device.
    boots: BTreeMap<DeviceId, BTreeSet<BootId>>,
    pub known: BTreeMap<BundleName, bool>,
    pub profiled: BTreeSet<(BundleName, DeviceId, Cohort)>,
    counted: u64,
    repeats: u64,
}

async fn load<T: DeserializeOwned + Default>(
    store: &dyn FleetStore,
    kind: Kind,
    id: &str,
) -> Result<Loaded<T>, StoreError> {
    let unreadable = |source| StoreError::Unreadable { kind, id: id.to_owned(), source };
    Ok(match store.get(kind, id).await? {
        None => Loaded { expect: Expect::Absent, value: T::default() },
        Some(found) => {
            let value = serde_json::from_slice(&found.body).map_err(unreadable)?;
            Loaded { expect: Expect::Revision(found.revision), value }
        }
    })
}

/// The document under `key`, read if it is not yet here.
async fn entry<'w, K: Ord + AsRef<str>, T: DeserializeOwned + Default>(
    map: &'w mut BTreeMap<K, Loaded<T>>,
    store: &dyn FleetStore,
    kind: Kind,
    key: K,
) -> Result<&'w mut T, StoreError> {
    match map.entry(key) {
        Entry::Occupied(entry) => Ok(&mut entry.into_mut().value),
        Entry::Vacant(entry) => {
            let loaded = load(store, kind, entry.key().as_ref()).await?;
            Ok(&mut entry.insert(loaded).value)
        }
    }
}

impl<'a> Working<'a> {
    pub(super) fn new(store: &'a dyn FleetStore) -> Self {
        Self {
            store,
            devices: BTreeMap::new(),
            aggregates: BTreeMap::new(),
            profiles: BTreeMap::new(),
            of_devices: BTreeMap::new(),
            cohorts: BTreeMap::new(),
            changed_cohorts: BTreeSet::new(),
            boots: BTreeMap::new(),
            known: BTreeMap::new(),
            profiled: BTreeSet::new(),
            counted: 0,
            repeats: 0,
        }
    }

    /// Whether a record is new; remembers it.
    pub(super) async fn note(
        &mut self,
        device: &DeviceId,
        boot: BootId,
        seq: u64,
        now: Timestamp,
    ) -> Result<Verdict, StoreError> {
        self.boots.entry(device.clone()).or_default().insert(boot);
        let own = self.device(device).await?;
        let verdict = own.seen.note(boot, seq);
        match verdict {
            Verdict::New => {
                own.last = now;
                self.counted += 1;
            }
            Verdict::Repeat => self.repeats += 1,
            Verdict::OutOfOrder => {}
        }
        Ok(verdict)
    }

    pub(super) async fn device(&mut self, device: &DeviceId) -> Result<&mut DeviceTelemetry, StoreError> {
        match self.devices.entry(device.clone()) {
            Entry::Occupied(entry) => Ok(&mut entry.into_mut().value),
            Entry::Vacant(entry) => {
                let loaded = load(self.store, DEVICE_TELEMETRY, device.as_str()).await?;
                Ok(&mut entry.insert(loaded).value)
            }
        }
    }

    pub(super) async fn aggregate(&mut self, id: BucketId) -> Result<&mut Aggregate, StoreError> {
        entry(&mut self.aggregates, self.store, AGGREGATE, id.to_string()).await
    }

    pub(super) async fn profiles(&mut self, hour: BucketId) -> Result<&mut ProfileTotals, StoreError> {
        entry(&mut self.profiles, self.store, PROFILE_HOUR, hour.to_string()).await
    }

    /// One device's own; one that cannot be read begins anew, it is a memory and no record.
    pub(super) async fn profile_of(&mut self, id: String) -> Result<&mut DeviceProfile, StoreError> {
        match self.of_devices.entry(id) {
            Entry::Occupied(entry) => Ok(&mut entry.into_mut().value),
            Entry::Vacant(entry) => {
                let loaded = match self.store.get(DEVICE_PROFILE, entry.key()).await? {
                    None => Loaded { expect: Expect::Absent, value: DeviceProfile::default() },
                    Some(found) => {
                        let value = DeviceProfile::parse(&found.body).unwrap_or_else(|error| {
                            tracing::warn!(id = entry.key(), %error, "telemetry.profile: begun anew");
                            DeviceProfile::default()
                        });
                        Loaded { expect: Expect::Revision(found.revision), value }
                    }
                };
                Ok(&mut entry.insert(loaded).value)
            }
        }
    }

    pub(super) async fn cohorts(&mut self, model: &ModelName) -> Result<&mut Cohorts, StoreError> {
        match self.cohorts.entry(model.clone()) {
            Entry::Occupied(entry) => Ok(&mut entry.into_mut().value),
            Entry::Vacant(entry) => {
                let loaded = load(self.store, COHORTS, model.as_str()).await?;
                Ok(&mut entry.insert(loaded).value)
            }
        }
    }

    /// Only then are a model's cohorts written.
    pub(super) fn cohorts_changed(&mut self, model: &ModelName) {
        self.changed_cohorts.insert(model.clone());
    }

    /// Everything that was loaded to be changed.
    pub(super) fn stage(&self, mut to: Transaction) -> Result<Transaction, StoreError> {
        for (device, loaded) in &self.devices {
            to = to.put_json(DEVICE_TELEMETRY, device.as_str(), loaded.expect, &loaded.value)?;
        }
        for (id, loaded) in &self.aggregates {
            to = to.put_json(AGGREGATE, id.as_str(), loaded.expect, &loaded.value)?;
        }
        for (id, loaded) in &self.profiles {
            to = to.put_json(PROFILE_HOUR, id.as_str(), loaded.expect, &loaded.value)?;
        }
        for (id, loaded) in &self.of_devices {
            let body = loaded.value.to_bytes().map_err(|error| {
                StoreError::invalid(format!("{DEVICE_PROFILE} `{id}`"), error.to_string())
            })?;
            to = to.put(DEVICE_PROFILE, id.as_str(), loaded.expect, body);
        }
        for (model, loaded) in self.cohorts.iter().filter(|(model, _)| self.changed_cohorts.contains(model)) {
            to = to.put_json(COHORTS, model.as_str(), loaded.expect, &loaded.value)?;
        }
        Ok(to)
    }

    pub(super) fn taken(&self) -> Taken {
        let acks = self.boots.iter().filter_map(|(device, boots)| {
            let boots: Vec<_> = boots.iter().copied().collect();
            Some((device.clone(), self.devices.get(device)?.value.seen.ack(&boots)))
        });
        let profiled = self.profiled.clone();
        Taken { counted: self.counted, repeats: self.repeats, acks: acks.collect(), profiled }
    }
}
