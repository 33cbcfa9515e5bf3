//! Carries steps out.

use super::{Outcome, Prepared, TAKEN, TakeError, TakenRecord, TakenStep, Taking};
use crate::{
    advice::{
        Finding,
        take::{Doing, Source, State, Step, make},
    },
    fleet::Actor,
    rollout::Release,
    rollouts::{self, NewRolloutRequest, OrderError, StartError},
    settings::NewRule,
    store::{Expect, Transaction, audit::AuditDraft},
};
use bytes::Bytes;
use edgefleet_shared::{
    bundle::BlobRef,
    ids::{BundleName, RolloutId},
    time::Timestamp,
};
use std::time::Duration;

/// How a person wants it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consent {
    /// The number of devices of a rollout was seen: needed above 10.
    pub confirmed: bool,
    /// May make bundles.
    pub publisher: bool,
}

/// The rollout that taking this advice starts: the same each time.
pub(super) fn rollout_id(state: &State) -> Result<RolloutId, TakeError> {
    let tail = state.advice.trim_start_matches("adv-");
    rollouts::rollout_id(state.opened, tail)
        .map_err(|source| TakeError::Id { advice: state.advice.clone(), source })
}

impl Taking {
    /// Does what the advice says, or says what was done when it was taken before. `true` is new.
    ///
    /// # Errors
    /// [`TakeError`]. Steps before the one that failed stay done; taking it again goes on.
    pub async fn take(
        &self,
        advice: &str,
        actor: &Actor,
        consent: Consent,
        now: Timestamp,
    ) -> Result<(Finding, TakenRecord, bool), TakeError> {
        let _turn = self.gate.lock().await;
        let Prepared { finding, state, steps, taken } = self.prepare(advice, now).await?;
        if let Some(taken) = taken {
            return Ok((finding, taken, false));
        }
        let made = steps.iter().find_map(|step| match &step.doing {
            Doing::MakeBundle { bundle, .. } => Some(bundle.clone()),
            _ => None,
        });
        if let Some(bundle) = made.filter(|_| !consent.publisher) {
            return Err(TakeError::PublisherNeeded { advice: state.advice, bundle });
        }
        let mut done = Vec::new();
        for step in steps {
            done.push(self.carry_out(step, &finding, &state, actor, consent, now).await?);
        }
        let record = TakenRecord {
            advice: state.advice.clone(),
            rule: finding.rule,
            bundle: finding.scope.bundle().clone(),
            by: actor.name().to_owned(),
            at: now,
            steps: done,
        };
        let draft = AuditDraft {
            at: now.to_string(),
            who: actor.name().to_owned(),
            action: "advice.take".to_owned(),
            subject: format!("advice/{}", record.advice),
            after: serde_json::to_string(&record.steps).ok(),
            note: Some(finding.text.what.clone()),
            ..AuditDraft::default()
        };
        let transaction = Transaction::new().put_json(TAKEN, record.advice.as_str(), Expect::Any, &record)?;
        self.parts.audit.commit(transaction, &[draft]).await?;
        Ok((finding, record, true))
    }

    async fn carry_out(
        &self,
        step: Step,
        finding: &Finding,
        state: &State,
        actor: &Actor,
        consent: Consent,
        now: Timestamp,
    ) -> Result<TakenStep, TakeError> {
        let done =
            |step, made: Option<String>, manifest| TakenStep { step, outcome: Outcome::Done, made, manifest };
        match step.doing.clone() {
            Doing::Look | Doing::ByHand { .. } => {
                Ok(TakenStep { step, outcome: Outcome::ForPeople, made: None, manifest: None })
            }
            // The filter is saved with the record.
            Doing::OpenQueue { .. } => Ok(done(step, None, None)),
            Doing::SetRule { rule, order, select, set, days } => {
                let until = now + Duration::from_secs(u64::from(days) * 86_400);
                let new = NewRule { name: rule.clone(), order, select, set, until: Some(until) };
                self.parts.settings.put(actor, new, now).await?;
                Ok(done(step, Some(rule), None))
            }
            Doing::MakeBundle { bundle, .. } => {
                let manifest = self.make_bundle(finding, state).await?;
                Ok(done(step, Some(bundle.to_string()), manifest))
            }
            Doing::StartRollout { .. } => {
                let id = rollout_id(state)?;
                match self.parts.rollouts.show(&id).await {
                    Ok(_) => {} // an earlier take was cut off behind it
                    Err(OrderError::NoSuchRollout { .. }) => {
                        if let Some(request) = self.request(&step, finding, state, consent).await? {
                            self.parts.rollouts.start(request, id.clone(), actor, now).await?;
                        }
                    }
                    Err(OrderError::Store(error)) => return Err(error.into()),
                    Err(OrderError::Refused(refused)) => {
                        return Err(StartError::Refused(refused).into());
                    }
                    Err(OrderError::Conflict { rollout, slot, bundle, devices }) => {
                        let conflict = StartError::Conflict { rollout, slot, bundle, devices };
                        return Err(conflict.into());
                    }
                }
                Ok(done(step, Some(id.to_string()), None))
            }
        }
    }

    /// What a step asks of the rollouts; `None`: it asks nothing.
    ///
    /// # Errors
    /// [`TakeError::UnknownBundle`].
    pub async fn request(
        &self,
        step: &Step,
        finding: &Finding,
        state: &State,
        consent: Consent,
    ) -> Result<Option<NewRolloutRequest>, TakeError> {
        let Doing::StartRollout { plan } = &step.doing else { return Ok(None) };
        let release = self.release(&plan.rollout.bundle).await?;
        Ok(Some(NewRolloutRequest {
            plan: (**plan).clone(),
            release,
            confirmed: consent.confirmed,
            start: true,
            reason: format!("{} {}: {}", state.advice, finding.rule, finding.text.what),
        }))
    }

    async fn release(&self, bundle: &BundleName) -> Result<Release, TakeError> {
        let found = self.parts.registry.find(bundle).await?;
        let record = found.ok_or_else(|| TakeError::UnknownBundle { bundle: bundle.clone() })?;
        Ok(Release {
            bundle: bundle.clone(),
            envelope: record.release,
            envelope_size: record.release_size,
            download: record.download_bytes(),
        })
    }

    /// Stores manifest and baseline as blobs: the bundle that is fetched is the one that was made.
    async fn make_bundle(&self, finding: &Finding, state: &State) -> Result<Option<BlobRef>, TakeError> {
        let Some((digest, manifest)) = &state.manifest else { return Ok(None) };
        let source =
            Source { digest: *digest, manifest, baseline: state.baseline.as_ref(), newest: state.newest };
        // The plan made it from the same state: it is the same again.
        let made = make(&finding.action, source, state.seen.as_ref(), &state.advice);
        let Some(Ok(made)) = made else { return Ok(None) };
        if let Some(baseline) = made.baseline {
            self.parts.blobs.put(Bytes::from(baseline)).await?;
        }
        let stored = self.parts.blobs.put(Bytes::from(made.manifest)).await?;
        Ok(Some(BlobRef { digest: stored.digest, size: stored.size }))
    }
}
