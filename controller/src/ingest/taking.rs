//! Records into documents, and the documents into one transaction.

use super::{
    Monitoring,
    aggregate::Aggregate,
    cohort::{Cohort, Cohorts},
    dedup::Verdict,
    device_profile::device_profile_id,
    health::CpuSeen,
    level::{BucketId, Level},
    thin::rows_in,
    worker::Surroundings,
    working::{Taken, Working},
};
use crate::{
    rollouts::{Documents, Ears, Rollouts, Working as Heard},
    store::{FleetStore, StoreError, Transaction},
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    telemetry::{LabelCounts, Profile, RecordBody, Role, TelemetryBatch, Window, window::MAX_POWERS},
    time::Timestamp,
};
use std::{sync::Arc, time::Duration};

/// How old or how far ahead a bucket may be; outside of it the time of arrival counts. A device may
/// claim any time, and every new bucket is a document.
pub(super) const OLDEST_BUCKET: Duration = Duration::from_secs(30 * 86_400);
pub(super) const AHEAD: Duration = Duration::from_secs(3_600);

/// What happens to what records say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Counted,
    /// They are only noted as seen.
    LeftOut,
}

/// Takes records in.
pub(super) struct Taking {
    store: Arc<dyn FleetStore>,
    rollouts: Rollouts,
    around: Arc<dyn Surroundings>,
    monitoring: Monitoring,
}

/// One transaction on its way.
struct Round<'a> {
    work: Working<'a>,
    heard: Heard<'a>,
    ears: Ears<'a>,
    now: Timestamp,
    contents: Contents,
}

impl Taking {
    pub(super) fn new(
        store: Arc<dyn FleetStore>,
        rollouts: Rollouts,
        around: Arc<dyn Surroundings>,
        monitoring: Monitoring,
    ) -> Self {
        Self { store, rollouts, around, monitoring }
    }

    /// Stores `batches` in one transaction; repeats it from fresh documents if another writer (an assignment that
    /// supersedes an attempt, buckets that grew old) was faster. `None`: there was nothing to store.
    pub(super) async fn store_all(
        &self,
        batches: &[&TelemetryBatch],
        now: Timestamp,
        contents: Contents,
    ) -> Result<Option<Taken>, StoreError> {
        loop {
            let documents: &Documents = self.rollouts.documents();
            let mut round = Round {
                work: Working::new(&*self.store),
                heard: self.rollouts.working(),
                ears: Ears::new(documents),
                now,
                contents,
            };
            for batch in batches {
                self.take(&mut round, batch).await?;
            }
            let Round { work, heard, .. } = round;
            let transaction = heard.stage(work.stage(Transaction::new())?)?;
            if transaction.operations.is_empty() {
                return Ok(None);
            }
            match self.store.commit(transaction).await {
                Ok(_) => {
                    self.rollouts.after(heard.aftermath());
                    return Ok(Some(work.taken()));
                }
                Err(StoreError::StaleRevision { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn take(&self, round: &mut Round<'_>, batch: &TelemetryBatch) -> Result<(), StoreError> {
        let device = &batch.device;
        let isolated = self.around.is_isolated(device);
        for record in &batch.records {
            match round.work.note(device, record.boot, record.seq, round.now).await? {
                Verdict::New => {}
                Verdict::Repeat | Verdict::OutOfOrder => continue,
            }
            if round.contents == Contents::LeftOut || !is_sound(&record.body) {
                continue;
            }
            round.ears.hear(&mut round.heard, device, record, !isolated, round.now).await?;
            match &record.body {
                RecordBody::Window(window) => self.window(round, device, isolated, window).await?,
                RecordBody::Profile(profile) => self.profile(round, device, isolated, profile).await?,
                RecordBody::Labels(labels) => self.labels(round, device, isolated, labels).await?,
                RecordBody::Terminal(_) | RecordBody::Unknown => {}
                RecordBody::Dropped { records, reason } => {
                    tracing::warn!(%device, records, reason, "telemetry.lost on the device");
                    let own = round.work.device(device).await?;
                    own.dropped = own.dropped.saturating_add(*records);
                }
            }
        }
        Ok(())
    }

    async fn window(
        &self,
        round: &mut Round<'_>,
        device: &DeviceId,
        isolated: bool,
        window: &Window,
    ) -> Result<(), StoreError> {
        if !self.is_known(round, &window.bundle).await {
            return Ok(());
        }
        let own = round.work.device(device).await?;
        own.add_window(window);
        let spent = CpuSeen::since(&mut own.cpu, window);
        if !isolated {
            let sum = self.aggregate(round, device, &window.bundle, window.role, window.wall_start).await?;
            sum.add_window(window);
            sum.add_health(window, spent);
        }
        Ok(())
    }

    async fn labels(
        &self,
        round: &mut Round<'_>,
        device: &DeviceId,
        isolated: bool,
        labels: &LabelCounts,
    ) -> Result<(), StoreError> {
        if !self.is_known(round, &labels.bundle).await {
            return Ok(());
        }
        round.work.device(device).await?.add_labels(labels);
        if !isolated {
            let sum = self.aggregate(round, device, &labels.bundle, Role::Primary, labels.bucket).await?;
            sum.add_labels(labels);
            sum.add_versus(labels, device);
        }
        Ok(())
    }

    async fn profile(
        &self,
        round: &mut Round<'_>,
        device: &DeviceId,
        isolated: bool,
        profile: &Profile,
    ) -> Result<(), StoreError> {
        let (bundle, role, content) = (&profile.bundle, profile.role, &profile.content);
        if isolated || !self.is_known(round, bundle).await {
            return Ok(());
        }
        let start = plausible(profile.wall_start, round.now);
        let hour = Level::Hour.start_of(start);
        let own = round.work.profile_of(device_profile_id(device, bundle, role)).await?;
        own.add(start, plausible(profile.wall_end, round.now).max(start), content, round.now);
        let grant = own.spent.take(hour.as_secs() / Level::Hour.span().as_secs(), rows_in(content));
        if grant.rows > 0 {
            let cohort = self.cohort(round, device, bundle).await?;
            if role == Role::Primary {
                round.work.profiled.insert((bundle.clone(), device.clone(), cohort.clone()));
            }
            let id = BucketId { bundle: bundle.clone(), role, start: hour, cohort };
            round.work.profiles(id).await?.add(content, grant);
        }
        Ok(())
    }

    async fn aggregate<'w>(
        &self,
        round: &'w mut Round<'_>,
        device: &DeviceId,
        bundle: &BundleName,
        role: Role,
        claimed: Timestamp,
    ) -> Result<&'w mut Aggregate, StoreError> {
        let start = Level::FiveMinutes.start_of(plausible(claimed, round.now));
        let cohort = self.cohort(round, device, bundle).await?;
        round.work.aggregate(BucketId { bundle: bundle.clone(), role, start, cohort }).await
    }

    async fn cohort(
        &self,
        round: &mut Round<'_>,
        device: &DeviceId,
        bundle: &BundleName,
    ) -> Result<Cohort, StoreError> {
        let choice = self.monitoring.settings().cohorts_of(&bundle.model);
        if choice.by.is_empty() {
            return Ok(Cohort::all());
        }
        let labels = self.around.labels(device);
        let met = round.work.cohorts(&bundle.model).await?;
        let mut next: Cohorts = met.clone();
        let (cohort, changed) = next.place(&choice, &labels);
        if changed {
            *met = next;
            round.work.cohorts_changed(&bundle.model);
        }
        Ok(cohort)
    }

    async fn is_known(&self, round: &mut Round<'_>, bundle: &BundleName) -> bool {
        if let Some(known) = round.work.known.get(bundle) {
            return *known;
        }
        let known = self.around.is_known(bundle).await;
        round.work.known.insert(bundle.clone(), known);
        known
    }
}

fn plausible(claimed: Timestamp, now: Timestamp) -> Timestamp {
    if claimed + OLDEST_BUCKET >= now && claimed <= now + AHEAD { claimed } else { now }
}

fn is_sound(body: &RecordBody) -> bool {
    match body {
        RecordBody::Window(window) => {
            let latency = &window.latency;
            let parts = [&latency.queue, &latency.infer, &latency.pre, &latency.post, &latency.total];
            parts.iter().all(|sketch| sketch.is_sound()) && latency.passes.len() <= MAX_POWERS
        }
        RecordBody::Profile(profile) => profile.content.is_sound(),
        RecordBody::Labels(_)
        | RecordBody::Terminal(_)
        | RecordBody::Dropped { .. }
        | RecordBody::Unknown => true,
    }
}
