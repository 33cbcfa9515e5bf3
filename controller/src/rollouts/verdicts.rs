//! The effects `Verdict` and `Note`: what was decided, from which numbers, by which rule or person, signed.

use super::working::{Aftermath, Working};
use crate::{
    rollout::{Because, EffectId, Event, Note, Rollout, VerdictRecord},
    signing::signer::{OnlineKey, SignerError},
    store::{
        StoreError, Transaction,
        audit::{AuditDraft, AuditLog},
    },
};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use edgefleet_shared::{ids::RolloutId, time::Timestamp, trust::KeyId};
use serde::{Deserialize, Serialize};

/// One log per rollout.
pub const VERDICT_LOG: &str = "verdict";

/// A verdict with the controller's signature over exactly its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SignedVerdict {
    #[schema(value_type = Object)]
    pub record: VerdictRecord,
    /// Base64 of the DSSE envelope (JSON) whose payload is the record as it was signed.
    pub envelope: String,
    /// The controller's key that signed it.
    #[schema(value_type = String)]
    pub key: KeyId,
}

/// Why a verdict is not in the log yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerdictError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("could not sign a verdict of rollout {rollout}")]
    Sign { rollout: RolloutId, source: SignerError },
}

pub(super) fn log_of(rollout: &RolloutId) -> String {
    format!("{VERDICT_LOG}/{rollout}")
}

/// Takes a verdict into the audit log and the rollout's own, and reports the effect done: one transaction, stale
/// if somebody else did it since `working` loaded the rollout.
pub(super) async fn record(
    mut working: Working<'_>,
    audit: &AuditLog,
    key: &OnlineKey,
    rollout: &Rollout,
    effect: EffectId,
    record: &VerdictRecord,
    now: Timestamp,
) -> Result<Aftermath, VerdictError> {
    let sign = |source| VerdictError::Sign { rollout: rollout.id.clone(), source };
    let envelope = key.sign_verdict(record).map_err(sign)?;
    let signed = SignedVerdict { record: record.clone(), envelope: BASE64.encode(&envelope), key: key.id() };
    let body = serde_json::to_vec(&signed).unwrap_or_default(); // plain data: cannot fail
    let (who, note) = match &record.because {
        Because::Rule { sentence, .. } => ("controller".to_owned(), sentence.clone()),
        Because::Person { by, reason } => (by.clone(), reason.clone()),
    };
    let draft = AuditDraft {
        at: record.at.to_string(),
        who,
        action: "rollout.verdict".to_owned(),
        subject: format!("rollout/{}", rollout.id),
        before: None,
        after: serde_json::to_string(&signed).ok(),
        note: Some(note),
    };
    done(&mut working, rollout, effect, now).await?;
    let transaction = working.stage(Transaction::new().append(log_of(&rollout.id), body))?;
    audit.commit(transaction, &[draft]).await?;
    Ok(working.aftermath())
}

/// Tells people in the log; `rollout show` has the same sentence.
pub(super) async fn note(
    mut working: Working<'_>,
    rollout: &Rollout,
    effect: EffectId,
    note: &Note,
    now: Timestamp,
) -> Result<Aftermath, StoreError> {
    let said = serde_json::to_string(note).unwrap_or_default(); // plain data: cannot fail
    tracing::warn!(rollout = %rollout.id, bundle = %rollout.release.bundle, note = said, "rollout.note");
    done(&mut working, rollout, effect, now).await?;
    working.documents().store.commit(working.stage(Transaction::new())?).await?;
    Ok(working.aftermath())
}

async fn done(
    working: &mut Working<'_>,
    rollout: &Rollout,
    effect: EffectId,
    now: Timestamp,
) -> Result<(), StoreError> {
    if let Err(refused) = working.apply(&rollout.id, &Event::Done { effect }, now).await? {
        tracing::error!(rollout = %rollout.id, %refused, "rollout.done");
    }
    Ok(())
}
