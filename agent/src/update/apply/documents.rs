//! Signed documents on their way in: desired states, and the trust documents they may need first.

use super::{
    super::{
        fetch::{Problem, chain},
        transfer::TransferError,
    },
    Internal, MAX_SLOTS, Updater, refusal, storage_code,
};
use crate::{
    engine::panic_text,
    update::machine::{CANDIDATE_LANE, Event, SlotState},
};
use bytes::Bytes;
use edgefleet_shared::{
    desired::Desired,
    digest::BlobDigest,
    ids::SlotName,
    reported::{Refusal, RefusalCode},
    trust::{RoleName, TrustError},
};
use futures::FutureExt;
use std::{any::Any, panic::AssertUnwindSafe};

impl Updater {
    pub(super) async fn desired(&mut self, raw: Bytes) {
        let mut next = self.trust.trust().clone();
        match next.accept(&raw, &self.config.device, (self.config.clock)()) {
            Ok((desired, _)) if desired.slots.len() > MAX_SLOTS => {
                let found = desired.slots.len();
                let said = format!("{found} slots, {MAX_SLOTS} are allowed");
                self.refuse_document(&raw, RefusalCode::DocumentMalformed, said);
            }
            Ok((desired, _)) => {
                // Whatever is Known here may not have reached the slots before a kill: always applied.
                if let Err(e) = self.trust.set(next) {
                    // It comes again at the next connect.
                    return self.refuse_document(&raw, storage_code(&e), chain(&e));
                }
                self.refused = None;
                self.pending = None;
                self.dirty = true;
                self.apply(desired).await;
            }
            // Perhaps signed by keys that a trust document we lack brings.
            Err(
                e @ (TrustError::TrustBehind { .. }
                | TrustError::Threshold { role: RoleName::Controller, .. }),
            ) => {
                self.pending = Some((raw, e));
                self.fetch_trust();
            }
            Err(e) => self.refuse_document(&raw, RefusalCode::from(&e), chain(&e)),
        }
    }

    /// Refuses a desired state. The controller answers a report of an older generation by sending the
    /// desired state again: saying the same of the same bytes each time would never end.
    fn refuse_document(&mut self, raw: &[u8], code: RefusalCode, message: String) {
        let digest = BlobDigest::of(raw);
        let said = self.refused.as_ref().is_some_and(|refused| refused.code == code);
        if said && self.refused_document == Some(digest) {
            return;
        }
        self.refuse(code, message);
        self.refused_document = Some(digest);
    }

    async fn apply(&mut self, desired: Desired) {
        let Desired { generation, slots, settings, .. } = desired;
        if self.doc.settings != settings {
            self.world.blocks.set_block_bytes(settings.block_bytes);
            self.doc.settings = settings.clone();
            self.settings.send_replace(settings);
            if let Err(e) = self.persist().await {
                tracing::error!(reason = chain(&e), "settings could not be saved");
            }
        }
        let gone: Vec<_> = self.doc.slots.keys().filter(|name| !slots.contains_key(*name)).cloned().collect();
        for slot in gone {
            self.dispatch(slot.clone(), Event::Removed { generation }).await;
            self.forget_if_over(&slot);
        }
        for (name, slot) in slots {
            self.world.host.thresholds(&name, slot.thresholds.clone());
            self.world.host.slower(&name, slot.slower_percent);
            self.dispatch(name, Event::Desired { generation, slot: Box::new(slot) }).await;
        }
    }

    /// A slot that is neither wanted nor serves anything is none, once its last word is with the outbox.
    pub(super) fn forget_if_over(&mut self, slot: &SlotName) {
        if self.doc.slots.get(slot).is_some_and(SlotState::is_over) {
            self.doc.slots.remove(slot);
            self.dirty = true;
        }
    }

    pub(super) fn refuse(&mut self, code: RefusalCode, message: String) {
        tracing::warn!(%code, message, "document refused");
        self.refused_document = None;
        self.refused = Some(Refusal { subject: Some("desired state".into()), ..self.refusal(code, message) });
        self.dirty = true;
    }

    pub(super) fn refusal(&self, code: RefusalCode, message: String) -> Refusal {
        refusal(code, message, (self.config.clock)())
    }

    /// Fetches the next trust document, unless that is under way.
    pub(super) fn fetch_trust(&mut self) {
        if self.trust_job.is_some() {
            return;
        }
        let Some(version) = self.trust.trust().trust.version.checked_add(1) else { return };
        let (blocks, tx) = (self.world.blocks.clone(), self.internal.0.clone());
        let job = tokio::spawn(async move {
            let result = AssertUnwindSafe(blocks.trust(version)).catch_unwind().await;
            let broke = |panic: Box<dyn Any + Send>| TransferError::Broke { reason: panic_text(&*panic) };
            let result = result.unwrap_or_else(|panic| Err(broke(panic)));
            let _ = tx.send(Internal::Trust { version, result });
        });
        self.trust_job = Some(job.abort_handle());
    }

    pub(super) async fn trust_came(&mut self, version: u64, result: Result<Bytes, TransferError>) {
        self.trust_job = None;
        let came = result.is_ok();
        let problem = match result.map(|raw| self.trust.advance(&raw)) {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(refused))) => Some((RefusalCode::from(&refused), chain(&refused))),
            Ok(Err(e)) => Some((RefusalCode::StorageFailed, chain(&e))),
            Err(e) => {
                let code = if self.pending.is_some() { None } else { Some(RefusalCode::TrustBehind) };
                Some((
                    code.unwrap_or(e.code()),
                    format!("trust document {version} did not come: {}", chain(&e)),
                ))
            }
        };
        if problem.is_none() {
            self.dirty = true;
            self.check_again().await;
        }
        match problem {
            None if self.trust_head > version => self.fetch_trust(),
            None => {
                if let Some((raw, _)) = self.pending.take() {
                    self.desired(raw).await;
                }
            }
            Some((code, said)) => match self.pending.take() {
                // It only names the trust document; that one is what cannot be believed.
                Some((raw, why @ TrustError::TrustBehind { .. })) if came => {
                    self.refuse_document(&raw, code, format!("trust document {version}: {said} ({why})"));
                }
                // The document's own fault comes first; that nothing newer helps is the footnote.
                Some((raw, why)) => {
                    self.refuse_document(&raw, RefusalCode::from(&why), format!("{why} ({said})"));
                }
                None => self.refuse(code, said),
            },
        }
    }

    /// A new trust document may revoke what is being fetched: floors rise, publishers go.
    async fn check_again(&mut self) {
        let mut revoked = Vec::new();
        for (name, slot) in &self.doc.slots {
            for ticket in [slot.ticket, CANDIDATE_LANE | slot.lane_ticket] {
                let Some(assigned) = slot.assigned(ticket) else { continue };
                let Some(raw) = self.fetcher.store.release(assigned.release, assigned.release_size) else {
                    continue; // not here yet: checked when it comes
                };
                if let Err(e) = self.trust.trust().check_release(&raw, assigned, &self.config.hardware) {
                    let problem = Problem::new(RefusalCode::from(&e), chain(&e));
                    revoked.push((name.clone(), self.failed(ticket, problem)));
                }
            }
        }
        for (slot, event) in revoked {
            self.dispatch(slot, event).await;
        }
    }
}
