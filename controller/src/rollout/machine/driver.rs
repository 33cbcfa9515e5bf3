//! What the driver reports.

use super::super::{
    assignment::MembershipSummary,
    effect::Effect,
    event::{Change, Cursor, EffectId, Move},
    rollout::{Rollout, State},
    span::Span,
    stage::{Bucket, Counts, StageState},
};
use edgefleet_shared::{digest::BlobDigest, time::Timestamp};
use std::time::Duration;

/// Redundancy groups at their limit are asked again after this.
const GROUPS_AGAIN: Span = Span::secs(5);
/// After a move a tick is wanted within this.
const SOON: Span = Span::secs(1);

impl Rollout {
    fn take_pending(&mut self, id: EffectId, wanted: fn(&Effect) -> bool) -> Option<Effect> {
        let at = self.pending.iter().position(|pending| pending.id == id && wanted(&pending.effect))?;
        Some(self.pending.remove(at).effect)
    }

    pub(super) fn members_written(
        &mut self,
        effect: EffectId,
        digest: BlobDigest,
        written: u64,
        done: Option<&MembershipSummary>,
        now: Timestamp,
    ) {
        let pending = self.pending.iter().any(|p| p.id == effect && p.effect == Effect::WriteMembers);
        if !pending || !matches!(self.state, State::Assigning { .. }) {
            return;
        }
        // Another draw than the one announced before: what was counted of that one is void.
        let announced = match &self.state {
            State::Assigning { digest, .. } => *digest,
            _ => None,
        };
        if announced.is_some_and(|announced| announced != digest) {
            self.stages.iter_mut().for_each(|stage| stage.counts = Counts::default());
        }
        let Some(summary) = done else {
            self.state = State::Assigning { written, digest: Some(digest) };
            return;
        };
        self.pending.retain(|pending| pending.id != effect);
        self.membership = summary.clone();
        self.membership.digest = Some(digest);
        for (stage, size) in self.stages.iter_mut().zip(&summary.stages) {
            let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            stage.counts.add(Bucket::Planned, count(size.devices.saturating_sub(size.controls)));
            stage.counts.add(Bucket::Held, count(size.controls));
        }
        self.enter(State::Running, now);
    }

    pub(super) fn handed_out(
        &mut self,
        effect: EffectId,
        count: u64,
        controls: u64,
        cursor: Option<u64>,
        exhausted: bool,
        now: Timestamp,
    ) {
        let Some(Effect::HandOut { stage, at_most, again, .. }) =
            self.take_pending(effect, |effect| matches!(effect, Effect::HandOut { .. }))
        else {
            return;
        };
        // Turns that were not used may be used by others.
        self.tokens.credit += at_most.saturating_sub(count) as f64;
        self.tokens.bytes = self.tokens.bytes.saturating_add(count.saturating_mul(self.release.download));
        self.tokens.blocked_until = (count == 0 && !exhausted).then(|| now + self.plan.wait(GROUPS_AGAIN));
        let Some(stage) = self.stages.get_mut(usize::from(stage)) else { return };
        let n = i64::try_from(count).unwrap_or(i64::MAX);
        let held = i64::try_from(controls.min(count)).unwrap_or(i64::MAX);
        stage.counts.add(Bucket::InFlight, n);
        stage.handed_out = stage.handed_out.saturating_add(count);
        if again {
            stage.counts.add(Bucket::Again, -n);
        } else {
            stage.counts.add(Bucket::Planned, held - n);
            stage.counts.add(Bucket::Held, -held);
            stage.cursor = cursor.or(stage.cursor);
            stage.exhausted = exhausted;
        }
    }

    pub(super) fn swept(&mut self, effect: EffectId, cursor: Option<Cursor>, count: u64, exhausted: bool) {
        let sweeps = |effect: &Effect| matches!(effect, Effect::Revert { .. } | Effect::Cancel { .. });
        let Some(found) = self.take_pending(effect, sweeps) else { return };
        if let Effect::Revert { at_most, .. } = found {
            self.tokens.credit += at_most.saturating_sub(count) as f64;
        }
        if let Some(sweep) = &mut self.sweep {
            sweep.swept = sweep.swept.saturating_add(count);
            // Downwards only: a report of an older piece must not move it back up.
            sweep.cursor = match (sweep.cursor, cursor) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            sweep.exhausted |= exhausted;
        }
    }

    /// Members of the dynamic last stage that were selected late.
    pub(super) fn joined(&mut self, devices: u64) {
        let open = matches!(self.state, State::Running | State::Paused { .. } | State::Completed { .. });
        let dynamic = self.plan.stages.last().is_some_and(|stage| stage.dynamic);
        if !open || !dynamic {
            return;
        }
        if let Some((stage, size)) = self.stages.last_mut().zip(self.membership.stages.last_mut()) {
            stage.counts.add(Bucket::Planned, i64::try_from(devices).unwrap_or(i64::MAX));
            stage.exhausted = false;
            size.devices = size.devices.saturating_add(devices);
        }
    }

    pub(super) fn moved(&mut self, moved: &Move, now: Timestamp) {
        match moved {
            Move::Change(change) => self.changed(change, now),
            Move::Observed { observation } => self.evidence.observe(observation, &self.plan.gates),
            Move::ControlsJoin { .. } | Move::CompareDue { .. } => {}
        }
    }

    fn changed(&mut self, change: &Change, now: Timestamp) {
        let Some(stage) = self.stages.get_mut(usize::from(change.stage)) else { return };
        stage.counts.add(change.from, -1);
        stage.counts.add(change.to, 1);
        for (failure, by) in [(change.failed, 1), (change.unfailed, -1)] {
            let Some(failure) = failure else { continue };
            stage.failures.add(failure.kind, by);
            let code = stage.codes.entry(failure.code.as_str().to_owned()).or_default();
            *code = code.saturating_add(by);
        }
        let good = |bucket| matches!(bucket, Bucket::Committed | Bucket::Shadowing);
        if good(change.to) && !good(change.from) {
            self.tokens.successes = self.tokens.successes.saturating_add(1);
            stage.late += u64::from(change.unfailed.is_some());
        }
        // The numbers decide at the next tick, which is wanted soon.
        let soon = now + self.plan.wait(SOON).max(Duration::from_millis(10));
        let over = matches!(self.state, State::Reverted { .. } | State::Expired);
        if !over && self.wake.is_none_or(|wake| wake > soon) {
            self.wake = Some(soon);
        }
    }

    /// Whether a stage is open; for people.
    pub fn open_stage_state(&self) -> Option<StageState> {
        self.stages.get(usize::from(self.stage)).map(|stage| stage.state)
    }
}
