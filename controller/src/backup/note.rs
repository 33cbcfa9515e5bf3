//! The note that a restore leaves in the store for the controller that starts next.

use crate::{
    fleet::Actor,
    store::{
        Expect, FleetStore, Kind, Repository, StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use edgefleet_shared::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const RESTORED: Kind = Kind::new("restored");
const ID: &str = "controller";

/// Which backup this store came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredNote {
    /// When the backup was made.
    pub created: Timestamp,
    pub restored: Timestamp,
    /// The newest revision at that time.
    pub revision: u64,
}

/// Leaves the note in a store that was just imported.
pub(super) async fn leave(store: &dyn FleetStore, note: &RestoredNote) -> Result<(), StoreError> {
    let note = Transaction::new().put_json(RESTORED, ID, Expect::Any, note)?;
    store.commit(note).await.map(|_| ())
}

/// At the first start after a restore: writes `controller.restored` into the audit log, forgets the note and
/// returns it, so that the program can say so. `None` at every other start. Both changes are one transaction:
/// the entry comes exactly once.
///
/// # Errors
/// As [`FleetStore::commit`].
pub async fn note_restored(
    store: &Arc<dyn FleetStore>,
    audit: &AuditLog,
    now: Timestamp,
) -> Result<Option<RestoredNote>, StoreError> {
    let notes = Repository::<RestoredNote>::new(Arc::clone(store), RESTORED);
    let Some(found) = notes.find_json(ID).await? else { return Ok(None) };
    let note = found.value;
    let forget = Transaction::new().delete(RESTORED, ID, Expect::Revision(found.revision));
    let draft = AuditDraft {
        at: now.to_string(),
        who: Actor::controller().name().to_owned(),
        action: "controller.restored".into(),
        subject: "controller".into(),
        after: Some(format!("revision {}", note.revision)),
        note: Some(format!("from the backup of {}, restored at {}", note.created, note.restored)),
        ..AuditDraft::default()
    };
    audit.commit(forget, &[draft]).await?;
    Ok(Some(note))
}
