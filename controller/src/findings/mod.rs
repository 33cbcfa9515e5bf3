//! What a person has to look at: found by the controller itself, open until it is gone or resolved.
//!
//! One small document per (device, code), so that a device that repeats itself costs one document and, at
//! most once a minute, one write. [`Findings::isolates`] is answered from memory: it is asked for every
//! hand-out and every batch of telemetry.

#[cfg(test)]
mod tests;

use crate::{
    alerts::{self, sources},
    fleet::Actor,
    store::{
        Expect, FleetStore, Kind, Repository, StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use edgefleet_shared::{ids::DeviceId, time::Timestamp};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};
use tokio::sync::Mutex;

pub const FINDING: Kind = Kind::new("finding");
/// A finding that repeats is written again after this time.
const REWRITE_AFTER: Duration = Duration::from_secs(60);

/// What was found. The texts are part of the API.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum FindingCode {
    /// Two agents use one identity in turns. The device gets no new generation and its windows are kept out
    /// of aggregates until a person resolves this.
    DuplicateIdentity,
    /// The device knew a later generation than the store: the controller came back from a backup.
    ControllerStateBehind,
    /// The device claims a generation that cannot be. It gets nothing until a person resolves this.
    ImpossibleGeneration,
}

impl FindingCode {
    pub const ALL: [Self; 3] =
        [Self::DuplicateIdentity, Self::ControllerStateBehind, Self::ImpossibleGeneration];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::DuplicateIdentity => "duplicate-identity",
            Self::ControllerStateBehind => "controller-state-behind",
            Self::ImpossibleGeneration => "impossible-generation",
        }
    }
    /// What a person can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::DuplicateIdentity => {
                "find the copy, wipe its state and enrol it as a device of its own; then resolve this"
            }
            Self::ControllerStateBehind => {
                "nothing if the controller was restored on purpose: it went on beyond what the device knew"
            }
            Self::ImpossibleGeneration => {
                "wipe the device's state, enrol it again with its key; then resolve this"
            }
        }
    }
}

impl fmt::Display for FindingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text that is no finding's code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no finding's code; known are {known}")]
pub struct UnknownCode {
    text: String,
    known: String,
}

impl FromStr for FindingCode {
    type Err = UnknownCode;
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL.into_iter().find(|code| code.as_str() == text).ok_or_else(|| UnknownCode {
            text: text.chars().take(40).collect(),
            known: Self::ALL.map(Self::as_str).join(", "),
        })
    }
}

/// One open finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Finding {
    #[schema(value_type = String)]
    pub device: DeviceId,
    pub code: FindingCode,
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    #[schema(value_type = String, format = DateTime)]
    pub last: Timestamp,
    /// For people.
    pub message: String,
    /// What the message's numbers are, for programs.
    #[serde(default)]
    pub numbers: BTreeMap<String, u64>,
}

type Key = (DeviceId, FindingCode);

fn finding_id((device, code): &Key) -> String {
    format!("{device}/{code}")
}

/// There is nothing to resolve.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("device {device} has no open finding `{code}`")]
    NotOpen { device: DeviceId, code: FindingCode },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All open findings: in memory and in the store.
pub struct Findings {
    store: Arc<dyn FleetStore>,
    audit: Arc<AuditLog>,
    open: RwLock<BTreeMap<Key, Finding>>,
    /// Held over memory and store together, so that a late write does not open what was resolved.
    gate: Mutex<()>,
}

impl Findings {
    /// Reads what is open.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(store: Arc<dyn FleetStore>, audit: Arc<AuditLog>) -> Result<Self, StoreError> {
        let all = Repository::<Finding>::new(store.clone(), FINDING).list_all("").await?;
        let open =
            all.into_iter().map(|(_, found)| ((found.value.device.clone(), found.value.code), found.value));
        Ok(Self { store, audit, open: RwLock::new(open.collect()), gate: Mutex::new(()) })
    }

    /// Opens a finding or notes that it is still so. In memory at once; a store that fails is logged.
    pub async fn note(
        &self,
        device: &DeviceId,
        code: FindingCode,
        message: String,
        numbers: BTreeMap<String, u64>,
        now: Timestamp,
    ) {
        let key = (device.clone(), code);
        let _gate = self.gate.lock().await;
        let known = self.open.read().get(&key).cloned();
        if known
            .as_ref()
            .is_some_and(|known| now.since(known.last) < REWRITE_AFTER && known.numbers == numbers)
        {
            return;
        }
        let is_new = known.is_none();
        if is_new {
            tracing::error!(%device, %code, message, "finding.open");
        }
        let since = known.map_or(now, |known| known.since);
        let finding = Finding { device: device.clone(), code, since, last: now, message, numbers };
        let written = Transaction::new().put_json(FINDING, finding_id(&key), Expect::Any, &finding);
        let written = match is_new {
            true => written.and_then(|one| alerts::outbox(one, &sources::finding_opened(&finding))),
            false => written,
        };
        self.open.write().insert(key, finding);
        let result = match written {
            Ok(transaction) => self.store.commit(transaction).await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::error!(%device, %code, %error, "finding.store");
        }
    }

    /// Closes a finding for a person, with an audit entry.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn resolve(
        &self,
        actor: &Actor,
        device: &DeviceId,
        code: FindingCode,
        now: Timestamp,
    ) -> Result<Finding, ResolveError> {
        let key = (device.clone(), code);
        let _gate = self.gate.lock().await;
        let known = self.open.read().get(&key).cloned();
        let finding = known.ok_or_else(|| ResolveError::NotOpen { device: device.clone(), code })?;
        let draft = AuditDraft {
            at: now.to_string(),
            who: actor.name().to_owned(),
            action: "finding.resolve".into(),
            subject: format!("finding/{}", finding_id(&key)),
            before: serde_json::to_string(&finding).ok(),
            ..AuditDraft::default()
        };
        let transaction = Transaction::new().delete(FINDING, finding_id(&key), Expect::Any);
        let transaction =
            alerts::outbox(transaction, &sources::finding_resolved(&finding, actor.name(), now))?;
        self.audit.commit(transaction, &[draft]).await?;
        self.open.write().remove(&key);
        Ok(finding)
    }

    /// Drops what was found about a device that is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget(&self, device: &DeviceId) -> Result<(), StoreError> {
        let _gate = self.gate.lock().await;
        let mut transaction = Transaction::new();
        for finding in self.of(device) {
            let id = finding_id(&(finding.device, finding.code));
            transaction = transaction.delete(FINDING, id, Expect::Any);
        }
        if !transaction.operations.is_empty() {
            self.store.commit(transaction).await?;
        }
        self.open.write().retain(|(known, _), _| known != device);
        Ok(())
    }

    /// Everything that is open, by device.
    pub fn list(&self) -> Vec<Finding> {
        self.open.read().values().cloned().collect()
    }

    pub fn of(&self, device: &DeviceId) -> Vec<Finding> {
        let open = self.open.read();
        FindingCode::ALL.iter().filter_map(|code| open.get(&(device.clone(), *code)).cloned()).collect()
    }

    /// Whether nobody knows which of two agents speaks for the device : no new generations,
    /// and its windows are no evidence.
    pub fn isolates(&self, device: &DeviceId) -> bool {
        let open = self.open.read();
        !open.is_empty() && open.contains_key(&(device.clone(), FindingCode::DuplicateIdentity))
    }

    /// How many are open, by code.
    pub fn counts(&self) -> BTreeMap<FindingCode, usize> {
        let mut counts: BTreeMap<_, _> = FindingCode::ALL.into_iter().map(|code| (code, 0)).collect();
        for (_, code) in self.open.read().keys() {
            *counts.entry(*code).or_default() += 1;
        }
        counts
    }
}
