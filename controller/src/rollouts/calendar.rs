//! The freeze calendar and the "stop the line" switch: one small document, kept in memory for every tick.

use crate::{
    fleet::Actor,
    rollout::{FreezePeriod, LineStopped},
    store::{
        Expect, FleetStore, Kind, Repository, Revision, StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use edgefleet_shared::time::Timestamp;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;

const CALENDAR: Kind = Kind::new("calendar");
const ID: &str = "calendar";
/// Periods that may be written down at a time.
const MAX_PERIODS: usize = 500;
/// Longest name or reason, characters.
const MAX_TEXT: usize = 200;
/// Ended periods are kept this long, so that people see why last week stood still.
const KEEP_ENDED: Duration = Duration::from_secs(30 * 86_400);

/// What holds hand-outs back, whatever the rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Calendar {
    pub periods: Vec<FreezePeriod>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<LineStopped>,
}

/// Why the calendar did not change.
#[derive(Debug, thiserror::Error)]
pub enum CalendarError {
    #[error("a freeze named `{name}` exists already")]
    Taken { name: String },
    #[error("there is no freeze named `{name}`")]
    Unknown { name: String },
    #[error("freeze `{name}` would end ({until}) before it begins ({from})")]
    Backwards { name: String, from: Timestamp, until: Timestamp },
    #[error("{what} has {found} characters; 1 to {MAX_TEXT} are allowed, none of them a control character")]
    Text { what: &'static str, found: usize },
    #[error("the calendar holds {MAX_PERIODS} freezes; remove one that is over")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Calendars {
    audit: Arc<AuditLog>,
    documents: Repository<Calendar>,
    now: Arc<RwLock<Arc<Calendar>>>,
    gate: Arc<Mutex<()>>,
}

impl Calendars {
    /// Reads the calendar.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(store: Arc<dyn FleetStore>, audit: Arc<AuditLog>) -> Result<Self, StoreError> {
        let documents = Repository::new(store, CALENDAR);
        let found = documents.find_json(ID).await?.map(|found| found.value).unwrap_or_default();
        Ok(Self { audit, documents, now: Arc::new(RwLock::new(Arc::new(found))), gate: Arc::default() })
    }

    /// As it is now.
    pub fn current(&self) -> Arc<Calendar> {
        self.now.read().clone()
    }

    /// Nothing is handed out between `period.from` and `period.until`.
    ///
    /// # Errors
    /// [`CalendarError`].
    pub async fn add(
        &self,
        actor: &Actor,
        period: FreezePeriod,
        now: Timestamp,
    ) -> Result<FreezePeriod, CalendarError> {
        check("a freeze's name", &period.name, 1)?;
        check("a freeze's reason", &period.reason, 0)?;
        if period.until <= period.from {
            let FreezePeriod { name, from, until, .. } = period;
            return Err(CalendarError::Backwards { name, from, until });
        }
        let added = period.clone();
        let subject = format!("freeze/{}", period.name);
        self.change(actor, "freeze.add", subject, Some(period.reason.clone()), now, |calendar| {
            calendar.periods.retain(|old| old.until + KEEP_ENDED > now);
            if calendar.periods.iter().any(|old| old.name == period.name) {
                return Err(CalendarError::Taken { name: period.name.clone() });
            }
            if calendar.periods.len() >= MAX_PERIODS {
                return Err(CalendarError::Full);
            }
            calendar.periods.push(period);
            calendar.periods.sort_by(|a, b| (a.from, &a.name).cmp(&(b.from, &b.name)));
            Ok(())
        })
        .await?;
        Ok(added)
    }

    /// # Errors
    /// [`CalendarError`].
    pub async fn remove(
        &self,
        actor: &Actor,
        name: &str,
        now: Timestamp,
    ) -> Result<FreezePeriod, CalendarError> {
        let mut removed = None;
        let subject = format!("freeze/{}", name.chars().take(MAX_TEXT).collect::<String>());
        self.change(actor, "freeze.remove", subject, None, now, |calendar| {
            let at = calendar.periods.iter().position(|period| period.name == name);
            let at = at.ok_or_else(|| CalendarError::Unknown { name: name.to_owned() })?;
            removed = Some(calendar.periods.remove(at));
            Ok(())
        })
        .await?;
        removed.ok_or_else(|| CalendarError::Unknown { name: name.to_owned() })
    }

    /// Stops all hand-outs at once, or lets them go on.
    ///
    /// # Errors
    /// [`CalendarError`].
    pub async fn stop_the_line(
        &self,
        actor: &Actor,
        stop: bool,
        reason: String,
        now: Timestamp,
    ) -> Result<Arc<Calendar>, CalendarError> {
        check("a reason", &reason, 0)?;
        let action = if stop { "line.stop" } else { "line.go" };
        let by = actor.name().to_owned();
        self.change(actor, action, "line".to_owned(), Some(reason.clone()), now, |calendar| {
            calendar.stopped = stop.then_some(LineStopped { by, at: now, reason });
            Ok(())
        })
        .await?;
        Ok(self.current())
    }

    async fn change(
        &self,
        actor: &Actor,
        action: &str,
        subject: String,
        note: Option<String>,
        now: Timestamp,
        change: impl FnOnce(&mut Calendar) -> Result<(), CalendarError>,
    ) -> Result<(), CalendarError> {
        // One process has the store: the gate is enough, the revision is the second lock.
        let _gate = self.gate.lock().await;
        let found = self.documents.find_json(ID).await?;
        let revision: Option<Revision> = found.as_ref().map(|found| found.revision);
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
            note,
        };
        let expect = revision.map_or(Expect::Absent, Expect::Revision);
        let transaction = Transaction::new().put_json(CALENDAR, ID, expect, &next)?;
        self.audit.commit(transaction, &[draft]).await?;
        *self.now.write() = Arc::new(next);
        Ok(())
    }
}

fn check(what: &'static str, text: &str, at_least: usize) -> Result<(), CalendarError> {
    let found = text.chars().count();
    if found < at_least || found > MAX_TEXT || text.chars().any(char::is_control) {
        return Err(CalendarError::Text { what, found });
    }
    Ok(())
}
