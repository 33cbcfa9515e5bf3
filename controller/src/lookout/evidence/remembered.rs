//! What captures say is asked anew only when it may have changed: reading them is the dearest part of a thought.

use super::audits::{OLDEST, Seen};
use crate::{
    captures::{Captures, CapturesError, PolicyRecord},
    store::StoreError,
};
use edgefleet_shared::{ids::ModelName, time::Timestamp};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Newest captures of a model that are looked at: about 15 MiB of documents, a quarter of a second.
const MOST: usize = 10_000;
/// A device's clock may be ahead by so much.
const AHEAD: Duration = Duration::from_secs(86_400);
/// Nothing is read again within this time ...
const SOON: Duration = Duration::from_secs(60);
/// ... and within this time only if something changed.
const STALE: Duration = Duration::from_secs(600);
/// Models remembered at once, the last ones asked for.
const MODELS: usize = 8;

/// Captures of one model and what is asked of devices.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub captures: Vec<Seen>,
    pub policy: Option<PolicyRecord>,
    at: Timestamp,
    changes: u64,
}

/// Reads captures, and remembers them for a while.
pub(super) struct Remembered {
    captures: Arc<Captures>,
    known: Mutex<BTreeMap<ModelName, Arc<Kept>>>,
}

impl Remembered {
    pub(super) fn new(captures: Arc<Captures>) -> Self {
        Self { captures, known: Mutex::default() }
    }

    /// # Errors
    /// [`StoreError`].
    pub(super) async fn of(&self, model: &ModelName, now: Timestamp) -> Result<Arc<Kept>, StoreError> {
        let changes = self.captures.changes();
        let is_fresh = |kept: &&Arc<Kept>| {
            let age = now.since(kept.at);
            now >= kept.at && (age < SOON || (age < STALE && kept.changes == changes))
        };
        if let Some(kept) = self.known.lock().get(model).filter(is_fresh) {
            return Ok(kept.clone());
        }
        let mut captures = Vec::new();
        let of = (now - OLDEST, now + AHEAD);
        self.captures.newest(model, of, MOST, |record| captures.push(record.into())).await?;
        let policy = match self.captures.policy(model).await {
            Ok(policy) => Some(policy),
            Err(CapturesError::Store(error)) => return Err(error),
            Err(_) => None,
        };
        let kept = Arc::new(Kept { captures, policy, at: now, changes });
        let mut known = self.known.lock();
        known.insert(model.clone(), kept.clone());
        while known.len() > MODELS {
            let oldest = known.iter().min_by_key(|(_, kept)| kept.at).map(|(model, _)| model.clone());
            let Some(oldest) = oldest else { break };
            known.remove(&oldest);
        }
        Ok(kept)
    }
}
