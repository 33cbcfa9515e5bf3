//! What people and the watchers of drift ask: how a bundle did, what its inputs were like, what one device's are like.

use super::{
    Aggregate, DEVICE_PROFILE, DeviceProfile, ProfileTotals,
    cohort::Cohort,
    device_profile_id,
    level::{BucketId, Level, Summed as _, start_of},
    reading::{Range, each, total, visit},
    settings::{ChoiceError, MonitorSettings, Retention},
};
use crate::{
    fleet::Actor,
    store::{
        Expect, FleetStore, Kind, Repository, Scan, StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId, ModelName},
    telemetry::Role,
    time::Timestamp,
};
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Mutex;

const SETTINGS: Kind = Kind::new("monitor-settings");
const ID: &str = "monitor";
/// Points of a series: a week of five minutes.
pub const MAX_POINTS: u64 = 2_016;

/// Why monitoring did not answer or change.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error("{points} points in steps of {} s were asked for, {MAX_POINTS} are allowed", step.as_secs())]
    TooFine { points: u64, step: Duration },
    #[error("profile of device `{device}` with `{bundle}` cannot be read: {reason}")]
    Unreadable { device: DeviceId, bundle: BundleName, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A stretch of a series.
#[derive(Clone, Debug)]
pub struct Point {
    pub start: Timestamp,
    /// The step asked for, or longer where the past is only kept more coarsely.
    pub length: Duration,
    pub aggregate: Aggregate,
}

/// A cohort that something is known of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watched {
    pub bundle: BundleName,
    pub role: Role,
    pub cohort: Cohort,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Monitoring {
    store: Arc<dyn FleetStore>,
    audit: Arc<AuditLog>,
    settings: Repository<MonitorSettings>,
    current: Arc<RwLock<Arc<MonitorSettings>>>,
    gate: Arc<Mutex<()>>,
}

impl Monitoring {
    /// Reads the settings.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(store: Arc<dyn FleetStore>, audit: Arc<AuditLog>) -> Result<Self, StoreError> {
        let settings = Repository::<MonitorSettings>::new(store.clone(), SETTINGS);
        let found = settings.find_json(ID).await?.map(|found| found.value).unwrap_or_default();
        let current = Arc::new(RwLock::new(Arc::new(found)));
        Ok(Self { store, audit, settings, current, gate: Arc::default() })
    }

    pub fn settings(&self) -> Arc<MonitorSettings> {
        self.current.read().clone()
    }

    /// Chooses the labels that make up a model's cohorts; none: one cohort. What was counted stays under its name.
    ///
    /// # Errors
    /// [`MonitorError`].
    pub async fn set_cohorts(
        &self,
        actor: &Actor,
        model: &ModelName,
        by: Vec<String>,
        now: Timestamp,
    ) -> Result<Arc<MonitorSettings>, MonitorError> {
        let subject = format!("model/{model}");
        self.change(actor, "monitor.cohorts", subject, now, |next| next.choose(model, by, now)).await
    }

    /// # Errors
    /// [`MonitorError`].
    pub async fn set_retention(
        &self,
        actor: &Actor,
        retention: Retention,
        now: Timestamp,
    ) -> Result<Arc<MonitorSettings>, MonitorError> {
        let change = |next: &mut MonitorSettings| {
            next.retention = retention.check()?;
            Ok(())
        };
        self.change(actor, "monitor.retention", "monitor".to_owned(), now, change).await
    }

    async fn change(
        &self,
        actor: &Actor,
        action: &str,
        subject: String,
        now: Timestamp,
        change: impl FnOnce(&mut MonitorSettings) -> Result<(), ChoiceError>,
    ) -> Result<Arc<MonitorSettings>, MonitorError> {
        // One process has the store: the gate is enough, the revision is the second lock.
        let _gate = self.gate.lock().await;
        let found = self.settings.find_json(ID).await?;
        let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Revision(found.revision));
        let before = found.map(|found| found.value).unwrap_or_default();
        let mut next = before.clone();
        change(&mut next)?;
        let draft = AuditDraft {
            at: now.to_string(),
            who: actor.name().to_owned(),
            action: action.to_owned(),
            subject,
            before: serde_json::to_string(&before).ok(),
            after: serde_json::to_string(&next).ok(),
            note: None,
        };
        let transaction = self.settings.stage(Transaction::new(), ID, expect, &next)?;
        self.audit.commit(transaction, &[draft]).await?;
        let next = Arc::new(next);
        *self.current.write() = next.clone();
        Ok(next)
    }

    /// Counts, latency, classes and labels in steps, oldest first; steps without anything are left out.
    ///
    /// # Errors
    /// [`MonitorError::TooFine`] above [`MAX_POINTS`].
    pub async fn series(&self, range: Range<'_>, step: Duration) -> Result<Vec<Point>, MonitorError> {
        let step = step.max(Level::FiveMinutes.span());
        let points = range.until.since(range.from).as_secs() / step.as_secs().max(1);
        if points > MAX_POINTS {
            return Err(MonitorError::TooFine { points, step });
        }
        let mut found = BTreeMap::<Timestamp, (Duration, Aggregate)>::new();
        visit(&*self.store, range, |level, start, part: Aggregate| {
            let (length, sum) = found.entry(start_of(step, start)).or_default();
            *length = (*length).max(level.span()).max(step);
            sum.merge(&part);
        })
        .await?;
        let point = |(start, (length, aggregate))| Point { start, length, aggregate };
        Ok(found.into_iter().map(point).collect())
    }

    /// All of a range together.
    ///
    /// # Errors
    /// [`MonitorError::Store`].
    pub async fn total(&self, range: Range<'_>) -> Result<Aggregate, MonitorError> {
        Ok(total(&*self.store, range).await?)
    }

    /// What inputs and answers of a range were like. Hours are the finest there is.
    ///
    /// # Errors
    /// [`MonitorError::Store`].
    pub async fn profile(&self, range: Range<'_>) -> Result<ProfileTotals, MonitorError> {
        Ok(total(&*self.store, range).await?)
    }

    /// Of one device, as far as it has sent any.
    ///
    /// # Errors
    /// [`MonitorError`].
    pub async fn device_profile(
        &self,
        device: &DeviceId,
        bundle: &BundleName,
    ) -> Result<Option<DeviceProfile>, MonitorError> {
        let id = device_profile_id(device, bundle, Role::Primary);
        let Some(found) = self.store.get(DEVICE_PROFILE, &id).await? else { return Ok(None) };
        let unreadable = |error: super::DeviceProfileError| MonitorError::Unreadable {
            device: device.clone(),
            bundle: bundle.clone(),
            reason: error.to_string(),
        };
        DeviceProfile::parse(&found.body).map(Some).map_err(unreadable)
    }

    /// Every bundle, role and cohort of which there are profiles of `from` or later.
    ///
    /// # Errors
    /// [`MonitorError::Store`].
    pub async fn watched(
        &self,
        from: Timestamp,
        until: Timestamp,
    ) -> Result<BTreeSet<Watched>, MonitorError> {
        let mut found = BTreeSet::new();
        for (level, kind) in ProfileTotals::LEVELS {
            let mut after = None;
            loop {
                let scan = Scan { prefix: None, after: after.take(), limit: 1 };
                let page = self.store.scan(*kind, scan).await?;
                let Some((id, _)) = page.entries.into_iter().next() else { break };
                let Ok(BucketId { bundle, role, .. }) = id.parse() else {
                    after = Some(id);
                    continue;
                };
                after = Some(BucketId::after_all(&bundle, role));
                let range = Range { bundle: &bundle, role, cohort: None, from, until };
                each(&*self.store, *kind, *level, range, |id, _| {
                    let cohort = id.cohort.clone();
                    found.insert(Watched { bundle: bundle.clone(), role, cohort });
                    Ok(())
                })
                .await?;
            }
        }
        Ok(found)
    }

    /// The cohorts of a bundle that counted something in a time.
    ///
    /// # Errors
    /// [`MonitorError::Store`].
    pub async fn cohorts(&self, range: Range<'_>) -> Result<BTreeSet<Cohort>, MonitorError> {
        let mut found = BTreeSet::new();
        for (level, kind) in Aggregate::LEVELS {
            each(&*self.store, *kind, *level, range, |id, _| {
                found.insert(id.cohort.clone());
                Ok(())
            })
            .await?;
        }
        Ok(found)
    }

    /// One page of device profiles in the order of `device/bundle`, unreadable ones and shadows left out. `after`: the
    /// `next` of the page before.
    ///
    /// # Errors
    /// [`MonitorError::Store`].
    pub async fn device_profiles(
        &self,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<(DeviceId, BundleName, DeviceProfile)>, Option<String>), MonitorError> {
        let page = self.store.scan(DEVICE_PROFILE, Scan { prefix: None, after, limit }).await?;
        let profiles = page.entries.iter().filter_map(|(id, document)| {
            let (device, bundle) = id.split_once('/')?;
            let profile = DeviceProfile::parse(&document.body).ok()?;
            Some((device.parse().ok()?, bundle.parse().ok()?, profile))
        });
        Ok((profiles.collect(), page.next))
    }
}
