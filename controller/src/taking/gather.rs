//! What a plan rests on, read from the parts that know it.

use super::{TakeError, TakenRecord, Taking};
use crate::{
    advice::{
        Action, Finding, Standing,
        take::{Doing, Seen, State, Step, plan, queue},
    },
    captures::{CapturesError, LabelState, Wanted},
    ingest::{Cohort, Range},
    rollouts::Roster as _,
};
use edgefleet_shared::{
    bundle::{Baseline, Manifest, baseline::MAX_BASELINE_BYTES},
    ids::BundleName,
    telemetry::Role,
    time::Timestamp,
};
use std::time::Duration;

/// Longest time that a new baseline is made from: a week has every hour of a rhythm.
const SEEN: Duration = Duration::from_secs(7 * 86_400);

/// A piece of advice, what is known about it, and what taking it comes to.
#[derive(Debug)]
pub struct Prepared {
    pub finding: Finding,
    pub state: State,
    pub steps: Vec<Step>,
    /// It was taken before: what was done then.
    pub taken: Option<TakenRecord>,
}

impl Taking {
    /// Plans, and changes nothing.
    ///
    /// # Errors
    /// [`TakeError::Over`] for advice that is no longer so and was never taken.
    pub async fn prepare(&self, advice: &str, now: Timestamp) -> Result<Prepared, TakeError> {
        let record = self.parts.lookout.one_advice(advice).await?.record;
        let mut taken = self.taken(&record.id).await?;
        if let Some(earlier) = &taken
            && self.was_overtaken(earlier).await?
        {
            taken = None;
        }
        if taken.is_none() && matches!(record.tracked.standing, Standing::Resolved { .. }) {
            return Err(TakeError::Over { advice: record.id });
        }
        let finding = record.tracked.finding;
        let state = self.state(record.id, record.tracked.opened, &finding, now).await?;
        let steps = plan(&finding, &state);
        Ok(Prepared { finding, state, steps, taken })
    }

    /// Somebody pushed another bundle under the number of the one that was made: it has to be made anew.
    async fn was_overtaken(&self, earlier: &TakenRecord) -> Result<bool, TakeError> {
        for step in &earlier.steps {
            let (Doing::MakeBundle { bundle, .. }, Some(manifest)) = (&step.step.doing, &step.manifest)
            else {
                continue;
            };
            let pushed = self.parts.registry.find(bundle).await?;
            if pushed.is_some_and(|pushed| pushed.digest.to_string() != manifest.digest.to_string()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn state(
        &self,
        advice: String,
        opened: Timestamp,
        finding: &Finding,
        now: Timestamp,
    ) -> Result<State, TakeError> {
        let bundle = finding.scope.bundle();
        let policy = match self.parts.captures.policy(&bundle.model).await {
            Ok(found) => Some(found.policy),
            Err(CapturesError::NoPolicy { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let mut state = State { advice, opened, policy, ..State::default() };
        state.waiting = self.waiting(finding).await?;
        match &finding.action {
            Action::PushCalibration { .. }
            | Action::ProposeThresholds { .. }
            | Action::ProposeBaseline { .. }
            | Action::SeasonalBaselines { .. } => self.add_bundle(&mut state, finding, now).await?,
            Action::StartCanary { bundle, .. } => {
                let all = self.parts.rollouts.list().await?;
                let open = all.into_iter().find(|one| one.is_active() && one.release.bundle == *bundle);
                // The one that an earlier take started is found again by its id, not by this.
                let own = super::carry::rollout_id(&state).ok();
                state.rollout = open.map(|one| one.id).filter(|id| Some(id) != own.as_ref());
            }
            _ => {}
        }
        Ok(state)
    }

    async fn waiting(&self, finding: &Finding) -> Result<u64, TakeError> {
        let Some(filter) = queue(finding) else { return Ok(0) };
        let wanted = match &finding.action {
            Action::OpenLabelling { filter } => filter.count,
            Action::LabelDisagreements { count, .. } | Action::TargetCaptures { count, .. } => *count,
            _ => 0,
        };
        let devices = filter
            .select
            .iter()
            .flat_map(|select| self.parts.fleet.select(std::slice::from_ref(select)))
            .map(|one| one.device)
            .chain(filter.devices.iter().cloned())
            .collect();
        let everywhere = filter.select.is_none() && filter.devices.is_empty();
        let wanted_captures = Wanted {
            bundle: Some(filter.bundle),
            devices: (!everywhere).then_some(devices),
            reasons: filter.reasons,
            classes: filter.classes,
            state: Some(LabelState::Unlabelled),
            ..Wanted::default()
        };
        Ok(self.parts.captures.count(&wanted_captures, wanted).await?)
    }

    async fn add_bundle(
        &self,
        state: &mut State,
        finding: &Finding,
        now: Timestamp,
    ) -> Result<(), TakeError> {
        let bundle = finding.scope.bundle();
        let Some(record) = self.parts.registry.find(bundle).await? else { return Ok(()) };
        let bytes = self.parts.registry.manifest(&record).await?;
        let Some(manifest) = parse(&bytes) else { return Ok(()) };
        if let Some(blob) = &manifest.baseline {
            let bytes = self.parts.blobs.read(&blob.digest, MAX_BASELINE_BYTES).await?;
            state.baseline = Baseline::parse(&bytes).ok();
        }
        state.manifest = Some((record.digest, manifest));
        let model = self.parts.registry.model(&bundle.model).await?;
        state.newest = model.map_or(bundle.counter, |model| model.newest);
        let since = match &finding.action {
            Action::ProposeBaseline { .. } => Some(finding.since),
            Action::SeasonalBaselines { .. } => Some(Timestamp::EPOCH),
            _ => None,
        };
        if let Some(since) = since {
            state.seen = Some(self.seen(bundle, finding, since, now).await?);
        }
        Ok(())
    }

    /// What devices of the finding's scope saw since then, at most a week.
    async fn seen(
        &self,
        bundle: &BundleName,
        finding: &Finding,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<Seen, TakeError> {
        let name = match &finding.action {
            Action::ProposeBaseline { cohort, .. } | Action::SeasonalBaselines { cohort, .. } => {
                cohort.as_str()
            }
            _ => "all",
        };
        let cohort: Option<Cohort> = name.parse().ok();
        let oldest = u64::try_from(SEEN.as_millis()).unwrap_or(u64::MAX);
        let from = since.max(Timestamp::from_millis(now.as_millis().saturating_sub(oldest)));
        let range = Range { bundle, role: Role::Primary, cohort: cohort.as_ref(), from, until: now };
        let content = self.parts.monitoring.profile(range).await?.content;
        let classes = self.parts.monitoring.total(range).await?.classes;
        Ok(Seen { content, classes, of: format!("profiles of {bundle}, {name}, {from} to {now}") })
    }
}

pub(super) fn parse(manifest: &[u8]) -> Option<Manifest> {
    Manifest::parse(manifest).ok()
}
