//! What devices do: presence, last report. Kept in memory at once, on disk when something changed that people
//! would miss after a restart; the mere time of the last sign of life is not worth a write each.

use super::{
    Fleet, FleetError,
    attributes::tame,
    devices::{DeviceState, STATUS},
};
use crate::store::{Expect, Transaction};
use edgefleet_shared::{
    ids::DeviceId,
    reported::{MAX_REPORT_BYTES, Reported},
};
use std::hash::{BuildHasher, RandomState};
use tokio::sync::Mutex;

const MAX_REASON: usize = 200;

/// Lets writes for one device happen in order while those for others run beside them.
pub(super) struct Gates {
    hasher: RandomState,
    gates: [Mutex<()>; 64],
}

impl Default for Gates {
    fn default() -> Self {
        Self { hasher: RandomState::new(), gates: std::array::from_fn(|_| Mutex::new(())) }
    }
}

impl Gates {
    fn of(&self, device: &DeviceId) -> &Mutex<()> {
        let at = self.hasher.hash_one(device) as usize % self.gates.len();
        &self.gates[at]
    }
}

impl Fleet {
    /// A sign of life. In memory only.
    pub fn record_seen(&self, id: &DeviceId) {
        let now = self.now();
        self.index.update_status(id, |status| status.last_seen = Some(now));
    }

    /// A device came or went. A removed one never comes. Unknown devices are ignored.
    ///
    /// # Errors
    /// Store errors; memory has changed all the same.
    pub async fn record_presence(&self, id: &DeviceId, online: bool, reason: &str) -> Result<(), FleetError> {
        let Some(known) = self.index.get(id) else { return Ok(()) };
        let online = online && known.device.state == DeviceState::Enrolled;
        let now = self.now();
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect();
        self.index.update_status(id, |status| {
            status.online = online;
            status.reason.clone_from(&reason);
            // Learning that it is gone is no sign of life.
            if online {
                status.last_seen = Some(now);
            }
        });
        if known.status.online == online && known.status.reason == reason {
            return Ok(());
        }
        self.save_status(id).await
    }

    /// A full report of a device. The caller has checked that `reported.device` is who sent it.
    ///
    /// # Errors
    /// Store errors; memory has changed all the same.
    pub async fn record_report(&self, mut reported: Reported) -> Result<(), FleetError> {
        let id = reported.device.clone();
        let Some(known) = self.index.get(&id) else { return Ok(()) };
        let now = self.now();
        reported.facts = tame(std::mem::take(&mut reported.facts));
        let facts = reported.facts.clone();
        reported.bound_engines();
        let is_large =
            |report: &Reported| serde_json::to_vec(report).map_or(true, |json| json.len() > MAX_REPORT_BYTES);
        if is_large(&reported) {
            reported.forget_engines();
        }
        // Of one that is still too large only facts and generation stay.
        if is_large(&reported) {
            tracing::warn!(device = %id, "a report is too large to keep; its slots are dropped");
            reported.slots.clear();
            reported.refused = None;
            reported.nonce = None;
        }
        let same = known.status.facts == facts
            && known.status.reported.as_ref().is_some_and(|old| {
                Reported { at: reported.at, seq: reported.seq, ..(**old).clone() } == reported
            });
        self.index.update_status(&id, |status| {
            status.facts = facts;
            status.reported = Some(Box::new(reported));
            status.last_seen = Some(now);
        });
        if same { Ok(()) } else { self.save_status(&id).await }
    }

    /// Writes what memory holds now; the gate keeps an older state from overtaking a newer one.
    pub(super) async fn save_status(&self, id: &DeviceId) -> Result<(), FleetError> {
        let _gate = self.status_gates.of(id).lock().await;
        let Some(known) = self.index.get(id) else { return Ok(()) };
        let transaction = Transaction::new().put_json(STATUS, id.as_str(), Expect::Any, &*known.status)?;
        self.store.commit(transaction).await?;
        Ok(())
    }
}
