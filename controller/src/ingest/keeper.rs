//! Carries out what [`rollup`](super::rollup) plans, in the background.
//!
//! A fold is one transaction that names the revision of everything it touches: adding to the coarser bucket and deleting
//! the parts happen together or not at all, so a kill at any point is a repeat, and a part that ingestion changed
//! meanwhile waits for the next round. It takes a few buckets at a time and never holds anything that ingestion needs.

use super::{
    Aggregate, DEVICE_PROFILE, DeviceProfile, Monitoring, ProfileTotals,
    level::{BucketId, Level, Summed},
    rollup::{Fold, due},
};
use crate::{
    clock,
    store::{Document, Expect, FleetStore, Kind, Scan, StoreError, Transaction},
};
use edgefleet_shared::time::Timestamp;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How often it looks. Nothing waits for it: whatever is there is read.
const EVERY: Duration = Duration::from_secs(600);
/// Buckets in memory at a time: an hour of all cohorts is 396.
const PAGE: usize = 400;
/// Profiles of devices looked at in a round: 50,000 within a day.
const DEVICES_A_ROUND: usize = 500;
/// A device's profile is forgotten when none has come for so long.
const FORGET_DEVICE: Duration = Duration::from_secs(31 * 86_400);

/// The background task.
pub struct Keeper {
    store: Arc<dyn FleetStore>,
    monitoring: Monitoring,
    /// The last device profile that was looked at.
    sweep: Mutex<Option<String>>,
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Buckets that were added to coarser ones.
    pub folded: u64,
    /// Buckets that were deleted for their age.
    pub deleted: u64,
    /// Folds put off: ingestion changed a part meanwhile.
    pub put_off: u64,
}

impl Keeper {
    pub fn new(store: Arc<dyn FleetStore>, monitoring: Monitoring) -> Self {
        Self { store, monitoring, sweep: Mutex::default() }
    }

    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let round = tokio::select! {
                () = stop.cancelled() => return, // whatever was committed stays
                round = self.round(clock::now()) => round,
            };
            match round {
                Ok(kept) if kept == Kept::default() => {}
                Ok(Kept { folded, deleted, put_off }) => {
                    tracing::info!(folded, deleted, put_off, "telemetry.keep");
                }
                Err(error) => tracing::error!(%error, "telemetry.keep"),
            }
        }
    }

    /// Whatever is due at `now`.
    ///
    /// # Errors
    /// [`StoreError`]; what was done until then stays done.
    pub async fn round(&self, now: Timestamp) -> Result<Kept, StoreError> {
        let mut kept = Kept::default();
        self.series::<Aggregate>(now, &mut kept).await?;
        self.series::<ProfileTotals>(now, &mut kept).await?;
        self.forget_devices(now, &mut kept).await?;
        Ok(kept)
    }

    async fn forget_devices(&self, now: Timestamp, kept: &mut Kept) -> Result<(), StoreError> {
        let after = self.sweep.lock().clone();
        let scan = Scan { prefix: None, after, limit: DEVICES_A_ROUND };
        let page = self.store.scan(DEVICE_PROFILE, scan).await?;
        for (id, document) in page.entries {
            let old = |profile: DeviceProfile| profile.last + FORGET_DEVICE <= now;
            if !DeviceProfile::parse(&document.body).is_ok_and(old) {
                continue;
            }
            let deleted = Transaction::new().delete(DEVICE_PROFILE, id, Expect::Revision(document.revision));
            match self.store.commit(deleted).await {
                Ok(_) => kept.deleted += 1,
                Err(StoreError::StaleRevision { .. }) => kept.put_off += 1,
                Err(error) => return Err(error),
            }
        }
        *self.sweep.lock() = page.next;
        Ok(())
    }

    async fn series<T: Summed>(&self, now: Timestamp, kept: &mut Kept) -> Result<(), StoreError> {
        for (at, (level, kind)) in T::LEVELS.iter().enumerate() {
            let coarser = T::LEVELS.get(at + 1).copied();
            let mut after = None;
            loop {
                let scan = Scan { prefix: None, after: after.take(), limit: 1 };
                let page = self.store.scan(*kind, scan).await?;
                let Some((id, _)) = page.entries.into_iter().next() else { break };
                let Ok(first) = id.parse::<BucketId>() else {
                    tracing::warn!(kind = kind.as_str(), id, "telemetry.keep: not the id of a bucket");
                    after = Some(id);
                    continue;
                };
                after = Some(BucketId::after_all(&first.bundle, first.role));
                let retention = self.monitoring.settings().retention;
                if !due(*level, coarser.map(|c| c.0), std::slice::from_ref(&first), retention, now).ended {
                    self.bundle::<T>((*level, *kind), coarser, &first, now, kept).await?;
                }
            }
        }
        Ok(())
    }

    /// All of one bundle and role that is due in one level.
    async fn bundle<T: Summed>(
        &self,
        (level, kind): (Level, Kind),
        coarser: Option<(Level, Kind)>,
        first: &BucketId,
        now: Timestamp,
        kept: &mut Kept,
    ) -> Result<(), StoreError> {
        let prefix = BucketId::prefix(&first.bundle, first.role);
        let retention = self.monitoring.settings().retention;
        let mut after = None;
        loop {
            let scan = Scan { prefix: Some(prefix.clone()), after: after.take(), limit: PAGE };
            let page = self.store.scan(kind, scan).await?;
            let known = page.entries.into_iter().filter_map(|(id, document)| {
                let parsed = id.parse::<BucketId>().ok()?;
                Some((parsed, (id, document)))
            });
            let (ids, documents): (Vec<_>, Vec<_>) = known.unzip();
            let due = due(level, coarser.map(|c| c.0), &ids, retention, now);
            for fold in &due.folds {
                let parts: Vec<_> = fold.parts.iter().map(|at| &documents[*at]).collect();
                match self.fold::<T>(kind, coarser.map(|c| c.1), fold, &parts).await {
                    Ok(()) if fold.into.is_some() => kept.folded += parts.len() as u64,
                    Ok(()) => kept.deleted += parts.len() as u64,
                    Err(StoreError::StaleRevision { .. }) => kept.put_off += 1,
                    // One document that cannot be read must not keep all others from growing old.
                    Err(error @ (StoreError::Unreadable { .. } | StoreError::TooLarge { .. })) => {
                        tracing::error!(%error, "telemetry.keep: left as it is");
                    }
                    Err(error) => return Err(error),
                }
            }
            match page.next {
                Some(next) if !due.ended => after = Some(next),
                _ => return Ok(()),
            }
        }
    }

    async fn fold<T: Summed>(
        &self,
        kind: Kind,
        coarser: Option<Kind>,
        fold: &Fold,
        parts: &[&(String, Document)],
    ) -> Result<(), StoreError> {
        let mut transaction = Transaction::new();
        if let (Some(into), Some(coarser)) = (&fold.into, coarser) {
            let id = into.to_string();
            let found = self.store.get(coarser, &id).await?;
            let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Revision(found.revision));
            let mut sum = match &found {
                Some(found) => read::<T>(coarser, &id, found)?,
                None => T::default(),
            };
            for (id, part) in parts {
                sum.merge(&read(kind, id, part)?);
            }
            transaction = transaction.put_json(coarser, id, expect, &sum)?;
        }
        for (id, part) in parts {
            transaction = transaction.delete(kind, id.as_str(), Expect::Revision(part.revision));
        }
        self.store.commit(transaction).await.map(|_| ())
    }
}

fn read<T: Summed>(kind: Kind, id: &str, document: &Document) -> Result<T, StoreError> {
    serde_json::from_slice(&document.body).map_err(|source| StoreError::Unreadable {
        kind,
        id: id.to_owned(),
        source,
    })
}
