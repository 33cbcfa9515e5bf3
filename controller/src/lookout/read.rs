//! What people ask the lookout, and what they say of its advice.

use super::{
    records::{
        self, ADVICE, AdviceRecord, DRIFT_COHORT, INCIDENT, IncidentRecord, MARK, Mark, TAKEN, TakenBy,
    },
    subject::CohortRecord,
};
use crate::{
    advice::{Precision, Scope, Standing, precision},
    fleet::Actor,
    store::{
        Expect, FleetStore, Repository, Scan, StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use edgefleet_shared::{
    ids::{BundleName, DeviceId},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Longest note beside a mark, characters.
const MAX_NOTE: usize = 500;

/// Which incidents, or which advice.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub bundle: Option<BundleName>,
    pub device: Option<DeviceId>,
    /// Also what is over.
    pub resolved: bool,
}

/// A piece of advice with what a person said of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Marked {
    #[serde(flatten)]
    pub record: AdviceRecord,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// It was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<TakenBy>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    #[error("there is no incident `{id}`")]
    NoIncident { id: String },
    #[error("there is no advice `{id}`")]
    NoAdvice { id: String },
    #[error("the note has {found} characters, {MAX_NOTE} are allowed")]
    Note { found: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Reading {
    store: Arc<dyn FleetStore>,
    audit: Arc<AuditLog>,
    incidents: Repository<IncidentRecord>,
    advice: Repository<AdviceRecord>,
    marks: Repository<Mark>,
    taken: Repository<TakenBy>,
}

impl Reading {
    pub fn new(store: Arc<dyn FleetStore>, audit: Arc<AuditLog>) -> Self {
        Self {
            incidents: Repository::new(store.clone(), INCIDENT),
            advice: Repository::new(store.clone(), ADVICE),
            marks: Repository::new(store.clone(), MARK),
            taken: Repository::new(store.clone(), TAKEN),
            store,
            audit,
        }
    }

    /// The latest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn incidents(&self, filter: &Filter) -> Result<Vec<IncidentRecord>, StoreError> {
        let mut all: Vec<IncidentRecord> =
            records::all::<IncidentRecord>(&*self.store, INCIDENT).await?.into_values().collect();
        all.retain(|record| {
            let key = &record.incident.key;
            let of_device = |device: &DeviceId| {
                key.device.as_ref() == Some(device) || record.incident.examples.contains(device)
            };
            (filter.resolved || record.resolved.is_none())
                && filter.bundle.as_ref().is_none_or(|bundle| key.bundle == *bundle)
                && filter.device.as_ref().is_none_or(of_device)
        });
        all.sort_by(|a, b| b.opened.cmp(&a.opened).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    /// # Errors
    /// [`ReadingError`].
    pub async fn incident(&self, id: &str) -> Result<IncidentRecord, ReadingError> {
        let found = self.incidents.find_json(&known_id(id)).await?;
        found.map(|found| found.value).ok_or_else(|| ReadingError::NoIncident { id: known_id(id) })
    }

    /// What is known of each cohort of a bundle, by name. Unreadable ones are told and passed over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cohorts(&self, bundle: &BundleName) -> Result<BTreeMap<String, CohortRecord>, StoreError> {
        let mut scan = Scan::all().prefix(format!("{bundle}/"));
        let mut found = BTreeMap::new();
        loop {
            let page = self.store.scan(DRIFT_COHORT, scan.clone()).await?;
            for (id, document) in page.entries {
                let cohort = records::split(&id).map(|(_, cohort)| cohort.to_owned());
                match cohort.zip(records::parse_cohort(&document.body)) {
                    Some((cohort, record)) => drop(found.insert(cohort, record)),
                    None => tracing::error!(id, "lookout.cohorts: a record cannot be read"),
                }
            }
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return Ok(found),
            }
        }
    }

    /// The gravest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn advice(&self, filter: &Filter) -> Result<Vec<Marked>, StoreError> {
        let marks = records::all::<Mark>(&*self.store, MARK).await?;
        let taken = records::all::<TakenBy>(&*self.store, TAKEN).await?;
        let all = records::all::<AdviceRecord>(&*self.store, ADVICE).await?;
        let with = |record: AdviceRecord| Marked {
            mark: marks.get(&record.id).cloned(),
            taken: taken.get(&record.id).cloned(),
            record,
        };
        let mut all: Vec<Marked> = all.into_values().map(with).collect();
        all.retain(|one| {
            let scope = &one.record.tracked.finding.scope;
            let is_over = matches!(one.record.tracked.standing, Standing::Resolved { .. });
            let of_device =
                |device: &DeviceId| matches!(scope, Scope::Device { device: own, .. } if own == device);
            (filter.resolved || !is_over)
                && filter.bundle.as_ref().is_none_or(|bundle| scope.bundle() == bundle)
                && filter.device.as_ref().is_none_or(of_device)
        });
        let rank = |one: &Marked| {
            let tracked = &one.record.tracked;
            let open = matches!(tracked.standing, Standing::Open);
            (std::cmp::Reverse((open, tracked.finding.severity, tracked.opened)), one.record.id.clone())
        };
        all.sort_by_key(rank);
        Ok(all)
    }

    /// # Errors
    /// [`ReadingError`].
    pub async fn one_advice(&self, id: &str) -> Result<Marked, ReadingError> {
        let id = known_id(id);
        let found = self.advice.find_json(&id).await?;
        let record =
            found.map(|found| found.value).ok_or_else(|| ReadingError::NoAdvice { id: id.clone() })?;
        let mark = self.marks.find_json(&id).await?.map(|found| found.value);
        let taken = self.taken.find_json(&id).await?.map(|found| found.value);
        Ok(Marked { record, mark, taken })
    }

    /// Says whether a piece of advice was useful; a later word replaces an earlier one.
    ///
    /// # Errors
    /// [`ReadingError`].
    pub async fn mark(
        &self,
        actor: &Actor,
        id: &str,
        useful: bool,
        note: String,
        now: Timestamp,
    ) -> Result<Marked, ReadingError> {
        let found = note.chars().count();
        if found > MAX_NOTE {
            return Err(ReadingError::Note { found });
        }
        let before = self.one_advice(id).await?;
        let mark = Mark { useful, by: actor.name().to_owned(), at: now, note };
        let draft = AuditDraft {
            at: now.to_string(),
            who: actor.name().to_owned(),
            action: "advice.mark".into(),
            subject: format!("advice/{}", before.record.id),
            before: before.mark.as_ref().and_then(|mark| serde_json::to_string(mark).ok()),
            after: serde_json::to_string(&mark).ok(),
            ..AuditDraft::default()
        };
        let transaction = Transaction::new().put_json(MARK, before.record.id.as_str(), Expect::Any, &mark)?;
        self.audit.commit(transaction, &[draft]).await?;
        Ok(Marked { mark: Some(mark), ..before })
    }

    /// How often people found each rule's advice useful, in the order of the rules.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn precision(&self) -> Result<Vec<Precision>, StoreError> {
        let all = self.advice(&Filter { resolved: true, ..Filter::default() }).await?;
        let mark = |one: &Marked| Some((one.record.tracked.finding.rule, one.mark.as_ref()?.useful));
        let marks: Vec<_> = all.iter().filter_map(mark).collect();
        Ok(precision(&marks))
    }
}

/// What cannot be an id is no id of anything; it goes into messages, so it is short.
fn known_id(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect()
}
